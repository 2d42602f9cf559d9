//! Who listens at an address?
use crate::maps::AGENT_SOCKETS;
use aya_ebpf::{
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, BPF_TCP_SYN_SENT, bpf_sock, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    cty::c_void,
    helpers::generated::{
        bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
    },
};
use tollgate_common::{
    flow::{Address, LISTENER_TAG},
    rules::is_mapped,
};

/// Is there a listener in the network namespace of the hook's socket, and did the agent tag it? An impostor on
/// the same port has no tag.
#[inline(always)]
pub(crate) fn is_the_agents(ctx: *mut c_void, address: &Address) -> bool {
    any(ctx, address, is_tagged)
}

/// Did the agent tag it?
#[inline(always)]
pub(crate) fn is_tagged(socket: *mut bpf_sock) -> bool {
    AGENT_SOCKETS
        .of(socket.cast())
        .is_some_and(|carried| carried.tag == LISTENER_TAG)
}

/// Is there a listener at `address`, in the network namespace of the hook's socket, that `holds`?
#[inline(always)]
pub(crate) fn any(
    ctx: *mut c_void,
    address: &Address,
    holds: impl Fn(*mut bpf_sock) -> bool,
) -> bool {
    // From port 0, which no connection has: only a listener can be found.
    let from = Address {
        port: 0,
        ..*address
    };
    let (mut tuple, size) = tuple(&from, address);
    // SAFETY: needed to look up a socket. The helper returns null or a socket that we hold until
    // `bpf_sk_release`, which follows on every path; the verifier counts.
    unsafe {
        let current = BPF_F_CURRENT_NETNS as u64;
        let socket = bpf_skc_lookup_tcp(ctx, &raw mut tuple, size, current, 0);
        if socket.is_null() {
            return false;
        }
        let found = (*socket).state == BPF_TCP_LISTEN && holds(socket);
        bpf_sk_release(socket.cast());
        found
    }
}

/// Would what `from` sends reach a listener of the agent's, or a connection that one is about to make, of which the kernel gives the
/// listener? Not a socket that itself connects from the agent's port: it could have been bound there before the agent listened.
#[inline(always)]
pub(crate) fn answers(ctx: *mut c_void, from: &Address, to: &Address) -> bool {
    let (mut tuple, size) = tuple(from, to);
    // SAFETY: as in `any`.
    unsafe {
        let current = BPF_F_CURRENT_NETNS as u64;
        let socket = bpf_sk_lookup_tcp(ctx, &raw mut tuple, size, current, 0);
        if socket.is_null() {
            return false;
        }
        let answers = (*socket).state == BPF_TCP_LISTEN && is_tagged(socket);
        bpf_sk_release(socket.cast());
        answers
    }
}

/// Is there a datagram socket at `address`, as in [`any`], that `holds`?
#[inline(always)]
pub(crate) fn datagrams(
    ctx: *mut c_void,
    address: &Address,
    holds: impl Fn(*mut bpf_sock) -> bool,
) -> bool {
    // As in `any`: only one without a peer.
    let peer = Address {
        port: 0,
        ..*address
    };
    sends(ctx, address, &peer, holds)
}

/// Is there a datagram socket at `address`, connected to `peer` or to nobody, that `holds`?
#[inline(always)]
pub(crate) fn sends(
    ctx: *mut c_void,
    address: &Address,
    peer: &Address,
    holds: impl Fn(*mut bpf_sock) -> bool,
) -> bool {
    let (mut tuple, size) = tuple(peer, address);
    // SAFETY: as in `any`.
    unsafe {
        let current = BPF_F_CURRENT_NETNS as u64;
        let socket = bpf_sk_lookup_udp(ctx, &raw mut tuple, size, current, 0);
        if socket.is_null() {
            return false;
        }
        let found = holds(socket);
        bpf_sk_release(socket.cast());
        found
    }
}

/// Does `with` the socket at `to` what is to be done with it, if its connection to `from` stands, in the network namespace of the
/// hook's socket.
#[inline(always)]
pub(crate) fn with_connection<T>(
    ctx: *mut c_void,
    from: &Address,
    to: &Address,
    with: impl Fn(*mut bpf_sock) -> Option<T>,
) -> Option<T> {
    let (mut tuple, size) = tuple(from, to);
    // SAFETY: as in `any`.
    unsafe {
        let current = BPF_F_CURRENT_NETNS as u64;
        let socket = bpf_sk_lookup_tcp(ctx, &raw mut tuple, size, current, 0);
        if socket.is_null() {
            return None;
        }
        let done = match (*socket).state {
            BPF_TCP_LISTEN | BPF_TCP_SYN_SENT => None,
            _ => with(socket),
        };
        bpf_sk_release(socket.cast());
        done
    }
}

/// The ends of a packet that would reach a socket at `to`.
#[inline(always)]
fn tuple(from: &Address, to: &Address) -> (bpf_sock_tuple, u32) {
    // SAFETY: all zero is a valid tuple of integers.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if is_mapped(to.ip) {
        tuple.__bindgen_anon_1.ipv4 = Tuple4 {
            saddr: from.ip[3],
            daddr: to.ip[3],
            sport: from.port.to_be(),
            dport: to.port.to_be(),
        };
        size_of::<Tuple4>()
    } else {
        tuple.__bindgen_anon_1.ipv6 = Tuple6 {
            saddr: from.ip,
            daddr: to.ip,
            sport: from.port.to_be(),
            dport: to.port.to_be(),
        };
        size_of::<Tuple6>()
    };
    (tuple, size as u32)
}
