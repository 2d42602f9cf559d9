//! Steering: a governed TCP connection goes to the agent's own listener, or nowhere.
use crate::{
    account, attribute,
    fence::{Attempt, Errno, PASS, Refusal},
    flow, listener,
    maps::{ASKERS, CLIENTS, PENDING, cookie_of, socket_of},
    namespace, quota, recognise, select,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock,
    cty::c_void,
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_setsockopt},
    programs::SockAddrContext,
};
use aya_log_ebpf::warn;
use tollgate_common::{
    event::{CLOSED, Reason},
    flow::{Address, Syn, Traffic},
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
    if !leaves_its_device(ctx) {
        return Err((Reason::Device, Errno::Eperm));
    }
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
    if record(ctx.as_ptr(), attempt, destination, netns) != RECORDED {
        no_room(ctx.as_ptr());
        return Err((Reason::Unrecorded, Errno::Econnrefused));
    }
    account::connection(attempt.workload);
    Ok(listener)
}

/// A socket that is bound to a device has no way to the agent, and is not found by its ends. Bound to none it has both; who may
/// not change it once it is bound (without `CAP_NET_RAW`) is not helped.
#[inline(always)]
fn leaves_its_device(ctx: &SockAddrContext) -> bool {
    const SOL_SOCKET: i32 = 1;
    const SO_BINDTODEVICE: i32 = 25;
    let socket: *mut bpf_sock = socket_of(ctx).cast();
    if field!(socket, bound_dev_if) == 0 {
        return true;
    }
    let mut none = [0_u8; 4];
    let (value, size) = (none.as_mut_ptr().cast(), none.len() as i32);
    // SAFETY: needed to call a helper, with memory of our own that it reads: an empty name.
    unsafe { bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_BINDTODEVICE, value, size) == 0 }
}

#[inline(never)]
fn no_room(ctx: *mut c_void) -> u32 {
    let ctx = SockAddrContext::new(ctx.cast());
    warn!(
        &ctx,
        "a connection could not be recorded and was refused: there is no memory"
    );
    0
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

/// Records on the socket who connects where. On a stack of its own: the hook's has no room for it.
#[inline(never)]
fn record(ctx: *mut c_void, attempt: &Attempt, destination: &Address, netns: u64) -> u32 {
    let ctx = SockAddrContext::new(ctx.cast());
    try_record(&ctx, attempt, destination, netns).map_or(0, |()| RECORDED)
}

#[inline(always)]
fn try_record(
    ctx: &SockAddrContext,
    attempt: &Attempt,
    destination: &Address,
    netns: u64,
) -> Option<()> {
    let client = CLIENTS.of_or_new(socket_of(ctx))?;
    // The connection that this socket had before, if any, is over; its end may not have been told.
    flow::client_closed(client);
    // Field by field: whole, it would pass over the stack. Which connection it is comes first and last.
    client.record.steered.connection.cookie = 0;
    client.record.steered.syn = Syn::default();
    client.record.kind = CLOSED;
    client.record.traffic = Traffic::default();
    client.record.steered.destination = *destination;
    client.port.netns = netns;
    client.port.address.port = 0;
    client.workload = attempt.workload;
    client.is_marked |= u32::from(attempt.governed == select::MARKED);
    let owner = &raw mut client.record.steered.owner;
    // SAFETY: it is the socket's own, and whole.
    unsafe { attribute::current(owner, attempt.workload) }?;
    // SAFETY: needed to call a helper without arguments.
    client.record.steered.connection.opened = unsafe { bpf_ktime_get_boot_ns() };
    client.state = 0;
    client.record.steered.connection.cookie = cookie_of(ctx);
    Some(())
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
