//! Steering: a governed TCP connection goes to the agent's own listener, or nowhere.
use crate::{
    account, attribute,
    fence::{Attempt, Errno, PASS, Refusal},
    flow, listener,
    maps::{ASKERS, BLANK, CLIENTS, FLOWS, PENDING, cookie_of, socket_of},
    namespace, quota, recognise, select,
};
use aya_ebpf::{
    EbpfContext as _, bindings::BPF_NOEXIST, cty::c_void,
    helpers::generated::bpf_ktime_get_boot_ns, programs::SockAddrContext,
};
use aya_log_ebpf::warn;
use tollgate_common::{
    event::{CLOSED, Reason},
    flow::{Address, COMPLETE, Connection, Port},
    rules::{is_mapped, leads_to_loopback, loopback4, loopback6},
    settings::Ports,
};

/// Where a governed connection to `destination` has to go instead.
#[inline(always)]
pub(crate) fn connect(
    ctx: &SockAddrContext,
    attempt: &Attempt,
    destination: &Address,
) -> Result<Address, Refusal> {
    let netns = namespace::cookie(ctx.as_ptr());
    let Some(ports) = namespace::ports(netns) else {
        namespace::told(netns, recognise::current(), attempt.workload);
        return Err((Reason::Namespace, Errno::Econnrefused));
    };
    if !quota::is_left(attempt.workload) {
        return Err((Reason::Quota, Errno::Edquot));
    }
    let down = (Reason::AgentDown, Errno::Econnrefused);
    let listener = listener_for(destination, &ports).ok_or(down)?;
    if destination.port == listener.port && leads_to_loopback(destination.ip) {
        return Err((Reason::Direct, Errno::Eperm));
    }
    if !listener::is_the_agents(ctx.as_ptr(), &listener) {
        return Err(down);
    }
    if record(ctx.as_ptr(), attempt, destination) != RECORDED {
        warn!(
            ctx,
            "a connection could not be recorded and was refused: FLOWS is full, or there is no memory"
        );
        return Err((Reason::Unrecorded, Errno::Econnrefused));
    }
    account::connection(attempt.workload);
    Ok(listener)
}

/// The agent's listener of the same family, if it has one.
#[inline(always)]
pub(crate) fn listener_for(destination: &Address, ports: &Ports) -> Option<Address> {
    let listener = if is_mapped(destination.ip) {
        loopback4(ports.port4)
    } else {
        loopback6(ports.port6)
    };
    (listener.port != 0).then_some(listener)
}

/// What [`record`] returns when it has.
const RECORDED: u32 = 1;

/// Records who connects where, in the map and on the socket. On a stack of its own: the hook's has no room for it.
#[inline(never)]
fn record(ctx: *mut c_void, attempt: &Attempt, destination: &Address) -> u32 {
    let ctx = SockAddrContext::new(ctx.cast());
    try_record(&ctx, attempt, destination).map_or(0, |()| RECORDED)
}

#[inline(always)]
#[allow(clippy::needless_borrows_for_generic_args)] // A copy of `BLANK` would not fit the stack.
fn try_record(ctx: &SockAddrContext, attempt: &Attempt, destination: &Address) -> Option<()> {
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
        let carried = CLIENTS.of_or_new(socket_of(ctx));
        let owner = attribute::current(&raw mut (*entry).owner, attempt.workload);
        match (carried, owner) {
            (Some(carried), Some(())) => {
                // Field by field: whole, it would pass over the stack.
                carried.connection = connection;
                carried.port = Port::default();
                carried.destination = *destination;
                carried.workload = attempt.workload;
                carried.is_marked = u32::from(attempt.governed == select::MARKED);
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

/// An ungoverned task connects: what a governed one did with this socket before no longer holds.
#[inline(always)]
pub(crate) fn ungoverned(ctx: &SockAddrContext) -> i32 {
    if let Some(client) = CLIENTS.of(socket_of(ctx)) {
        flow::client_closed(client);
        CLIENTS.forget(ctx);
        PENDING.forget(ctx);
        ASKERS.forget(ctx);
    }
    PASS
}
