//! A steered connection's way to the agent and its end.
//!
//! The client's SYN enters the connection into `FLOWS` by the client's end. The agent's side, once established, writes
//! its own cookie there: that happens before `accept` returns, since the kernel changes the new socket's state with its lock
//! held, and `accept` takes that lock. The agent asks for the client's end, and takes the entry for its socket's only if
//! the cookie is that socket's: whoever has had that end before or has it since is somebody else.
// A key or a value would pass over the stack, which has little room.
#![allow(clippy::needless_borrows_for_generic_args)]
use crate::{
    account, atomic,
    attribute::{follow, load, offset, read},
    maps::{CLIENTS, EVENTS, FLOW_COUNT, FLOWS},
};
use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_EXIST, BPF_NOEXIST, BPF_TCP_CLOSE, BPF_TCP_ESTABLISHED, BPF_TCP_SYN_RECV,
        seq_file,
    },
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_seq_write},
    programs::{BtfTracePointContext, SkBuffContext},
};
use aya_log_ebpf::warn;
use tollgate_common::{
    event::Reason,
    flow::{Address, CLIENT_CLOSED, Client, Port, Record},
    limits::MAX_FLOWS,
    rules::{address4, address6, is_ip4, loopback4, loopback6},
    settings::Offsets,
};

/// Is there no room for another one?
#[inline(always)]
pub(crate) fn are_too_many() -> bool {
    // SAFETY: a live map value of one word; volatile because others write it meanwhile.
    let is_full = |count| unsafe { core::ptr::read_volatile(count) } >= u64::from(MAX_FLOWS);
    FLOW_COUNT.get_ptr(0).is_none_or(is_full)
}

/// A client's SYN leaves from `source`, maybe not for the first time.
#[inline(always)]
pub(crate) fn begins(skb: *mut __sk_buff, client: &mut Client, source: &Address) {
    if client.port.address.port == 0 && enter(client, source) == 0 {
        full(skb, client.workload);
    }
}

/// Too late to refuse here: the agent will find no record and reset the connection.
#[inline(never)]
fn full(skb: *mut __sk_buff, workload: u32) -> u32 {
    let ctx = SkBuffContext::new(skb);
    account::refusal(workload, Reason::Unrecorded);
    warn!(&ctx, "FLOWS is full: a connection will be reset");
    0
}

/// Enters a connection; 0: there is no room.
#[inline(never)]
fn enter(client: &mut Client, source: &Address) -> u32 {
    client.port.address = *source;
    let enter = |flags| FLOWS.insert(&client.port, &client.record.steered, flags);
    if enter(u64::from(BPF_NOEXIST)).is_ok() {
        count(1);
        return 1;
    }
    u32::from(enter(u64::from(BPF_EXIST)).is_ok())
}

/// A TCP socket's state changed.
#[inline(always)]
pub(crate) fn changed(ctx: &BtfTracePointContext) {
    let (before, now) = (ctx.arg::<u64>(1) as u32, ctx.arg::<u64>(2) as u32);
    if now == BPF_TCP_ESTABLISHED && before == BPF_TCP_SYN_RECV {
        accepted(ctx);
    } else if now == BPF_TCP_CLOSE {
        closed(ctx);
    }
}

/// Somebody's side of a connection to them is established.
#[inline(always)]
fn accepted(ctx: &BtfTracePointContext) {
    let socket = ctx.arg::<*const u8>(0);
    let Some(steered) = far_end(socket).and_then(|port| FLOWS.get_ptr_mut(port)) else {
        return;
    };
    // SAFETY: `steered` is a live map value, the socket the tracepoint's. That of a socket which has this end is there once.
    unsafe {
        if (*steered).accepted == 0 {
            (*steered).accepted = bpf_get_socket_cookie(socket.cast_mut().cast());
        }
    }
}

/// A socket is closed: a client's, the agent's, or anybody's.
#[inline(always)]
fn closed(ctx: &BtfTracePointContext) {
    let socket = ctx.arg::<*const u8>(0);
    let itself: *mut c_void = socket.cast_mut().cast();
    if let Some(client) = CLIENTS.of(itself) {
        return client_closed(client);
    }
    let Some(port) = far_end(socket) else { return };
    let Some(steered) = FLOWS.get_ptr(port) else {
        return;
    };
    // SAFETY: as in `accepted`.
    if unsafe { (*steered).accepted == bpf_get_socket_cookie(itself) } {
        forget(&port);
    }
}

/// Whom a socket at the loopback address is connected to, where the agent's are.
#[inline(always)]
fn far_end(socket: *const u8) -> Option<Port> {
    // SAFETY: the tracepoint's socket, whose type the verifier knows; addresses of IPv6 go through a helper.
    unsafe {
        let port = u16::from_be(load(socket, offset!(sock_peer_port)));
        let address = if is_ip4(u32::from(load::<u16>(socket, offset!(sock_family)))) {
            if load::<u32>(socket, offset!(sock_own4)) != loopback4(0).ip[3] {
                return None;
            }
            address4(load(socket, offset!(sock_peer4)), port)
        } else {
            if read::<[u32; 4]>(socket as u64, offset!(sock_own6))? != loopback6(0).ip {
                return None;
            }
            address6(read(socket as u64, offset!(sock_peer6))?, port)
        };
        let netns = load(follow(socket, offset!(sock_net))?, offset!(net_cookie));
        Some(Port { netns, address })
    }
}

/// The client's socket is closed, or about to be used again: tells the end, once. The agent's side, if there is one,
/// may still ask whose connection it was.
#[inline(always)]
pub(crate) fn client_closed(client: &mut Client) {
    if client.record.steered.connection.cookie == 0 {
        return;
    }
    // SAFETY: `state` is in the socket's own value, aligned to 8.
    if unsafe { atomic::fetch_or(&raw mut client.state, CLIENT_CLOSED) } & CLIENT_CLOSED != 0 {
        return;
    }
    if let Some(steered) = FLOWS.get_ptr(&client.port)
        // SAFETY: a live map value; if it is removed meanwhile its memory stays one.
        && unsafe {
            (*steered).connection == client.record.steered.connection && (*steered).accepted == 0
        }
    {
        forget(&client.port);
    }
    if EVENTS.output_untyped::<Record>(&client.record, 0).is_err() {
        account::lost();
    }
}

#[inline(always)]
fn forget(port: &Port) {
    if FLOWS.remove(port).is_ok() {
        count(u64::MAX);
    }
}

/// Counts entries that come; `u64::MAX`: one that goes.
#[inline(always)]
fn count(more: u64) {
    if let Some(count) = FLOW_COUNT.get_ptr_mut(0) {
        // SAFETY: a live map value of one word, aligned to 8.
        unsafe { atomic::add(count, more) };
    }
}

/// A socket of those that the agent has listed: `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub(crate) struct Listed {
    meta: *const Meta,
    map: *const c_void,
    socket: *const c_void,
    value: *const Client,
}

/// `struct bpf_iter_meta`
#[repr(C)]
struct Meta {
    file: *mut seq_file,
}

/// Writes what a client's socket carries.
#[inline(always)]
pub(crate) fn list(listed: *const Listed) -> i32 {
    let value = field!(listed, value);
    if value.is_null() {
        return 0;
    }
    let meta = field!(listed, meta);
    let file = field!(meta, file);
    // SAFETY: needed to call a helper, with the file that the kernel passed and a whole value of its map.
    unsafe { bpf_seq_write(file, value.cast(), size_of::<Client>() as u32) };
    0
}
