//! Steering: a governed TCP connection goes to the agent's own listener, or nowhere.
use crate::{
    account, attribute,
    fence::{Attempt, Errno, PASS},
    flow,
    maps::{AGENT_SOCKETS, BLANK, CLIENTS, FLOWS, cookie_of, socket_of},
    select,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_NOEXIST, BPF_TCP_LISTEN, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_sk_release, bpf_skc_lookup_tcp},
    programs::SockAddrContext,
};
use tollgate_common::{
    event::{CLOSED, Reason},
    flow::{Address, COMPLETE, Client, Connection, LISTENER_TAG, Port},
    rules::{is_mapped, leads_to_loopback, loopback4, loopback6},
};

/// Where a governed connection to `destination` has to go instead. `Err`: what the hook returns.
#[inline(always)]
pub(crate) fn connect(
    ctx: &SockAddrContext,
    attempt: &Attempt,
    destination: &Address,
) -> Result<Address, i32> {
    let listener = listener_for(destination)
        .ok_or_else(|| attempt.refuse(Reason::AgentDown, Errno::Econnrefused))?;
    if destination.port == listener.port && leads_to_loopback(destination.ip) {
        return Err(attempt.refuse(Reason::Direct, Errno::Eperm));
    }
    if !is_the_agents(ctx, &listener) {
        return Err(attempt.refuse(Reason::AgentDown, Errno::Econnrefused));
    }
    record(ctx, attempt, destination)
        .ok_or_else(|| attempt.refuse(Reason::Unrecorded, Errno::Econnrefused))?;
    account::connection(attempt.workload);
    Ok(listener)
}

/// The agent's listener of the same family, if it has one.
#[inline(always)]
fn listener_for(destination: &Address) -> Option<Address> {
    let settings = select::settings()?;
    // SAFETY: the pointer is into a map value; each port is one volatile load.
    let (port4, port6) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*settings).port4),
            core::ptr::read_volatile(&raw const (*settings).port6),
        )
    };
    let listener = if is_mapped(destination.ip) {
        loopback4(port4)
    } else {
        loopback6(port6)
    };
    (listener.port != 0).then_some(listener)
}

/// Is there a listener in the socket's own network namespace, and did the agent tag it? An
/// impostor on the same port has no tag.
#[inline(always)]
fn is_the_agents(ctx: &SockAddrContext, listener: &Address) -> bool {
    // SAFETY: all zero is a valid tuple of integers.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if is_mapped(listener.ip) {
        tuple.__bindgen_anon_1.ipv4 = Tuple4 {
            saddr: listener.ip[3],
            daddr: listener.ip[3],
            sport: 0,
            dport: listener.port.to_be(),
        };
        size_of::<Tuple4>()
    } else {
        tuple.__bindgen_anon_1.ipv6 = Tuple6 {
            saddr: listener.ip,
            daddr: listener.ip,
            sport: 0,
            dport: listener.port.to_be(),
        };
        size_of::<Tuple6>()
    };
    // SAFETY: needed to look up a socket. The helper returns null or a socket that we hold until
    // `bpf_sk_release`, which follows on every path; the verifier counts.
    unsafe {
        let socket = bpf_skc_lookup_tcp(
            ctx.as_ptr(),
            &raw mut tuple,
            size as u32,
            BPF_F_CURRENT_NETNS as u64,
            0,
        );
        if socket.is_null() {
            return false;
        }
        let listening = (*socket).state == BPF_TCP_LISTEN;
        let tagged = match AGENT_SOCKETS.of(socket.cast()) {
            Some(carried) => carried.tag == LISTENER_TAG,
            None => false,
        };
        bpf_sk_release(socket.cast());
        listening && tagged
    }
}

/// Records who connects where, in the map and on the socket. `None`: it could not be.
#[inline(always)]
#[allow(clippy::needless_borrows_for_generic_args)] // A copy of `BLANK` would not fit the stack.
fn record(ctx: &SockAddrContext, attempt: &Attempt, destination: &Address) -> Option<()> {
    // SAFETY: needed to call a helper without arguments.
    let opened = unsafe { bpf_ktime_get_boot_ns() };
    let connection = Connection {
        cookie: cookie_of(ctx),
        opened,
    };
    // The connection that this socket had before, if any, is over; its end may not have been told.
    if let Some(before) = CLIENTS.of(socket_of(ctx)) {
        flow::client_closed(before);
    }
    // Filled in place, not in per-CPU scratch memory: this hook can be preempted by another one.
    // Nobody else knows the key yet, and readers look for `COMPLETE`.
    // SAFETY: `BLANK` and the new entry are live map values.
    unsafe {
        FLOWS
            .insert(connection, &*BLANK.get_ptr(0)?, u64::from(BPF_NOEXIST))
            .ok()?;
        let entry = FLOWS.get_ptr_mut(connection)?;
        (*entry).kind = CLOSED;
        (*entry).connection = connection;
        (*entry).destination = *destination;
        let client = Client {
            connection,
            port: Port::default(),
            destination: *destination,
            workload: attempt.workload,
            reserved: 0,
        };
        let carried = CLIENTS.of_or_new(socket_of(ctx));
        let owner = attribute::current(&raw mut (*entry).owner, attempt.workload);
        match (carried, owner) {
            (Some(carried), Some(())) => {
                *carried = client;
                core::ptr::write_volatile(&raw mut (*entry).state, COMPLETE);
                Some(())
            }
            _ => {
                let _ = FLOWS.remove(connection);
                None
            }
        }
    }
}

/// An ungoverned task connects: if the socket was steered before, it is no longer.
#[inline(always)]
pub(crate) fn ungoverned(ctx: &SockAddrContext) -> i32 {
    if let Some(client) = CLIENTS.of(socket_of(ctx)) {
        flow::client_closed(client);
        CLIENTS.forget(ctx);
    }
    PASS
}
