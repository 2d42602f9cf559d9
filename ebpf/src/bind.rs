//! Binding: the agent's port is for the agent, and who binds another one is remembered.
//!
//! Asked after the fact, when the kernel has chosen a port where the caller left it open; what is refused is
//! unbound again before anybody can connect to it.
use crate::{
    attribute,
    fence::{Attempt, Errno, PASS},
    maps::{self, PENDING},
    namespace, select, waiting,
};
use aya_ebpf::{EbpfContext as _, programs::SockContext};
use tollgate_common::{
    event::{REFUSED, Reason, Refused},
    flow::Address,
    rules::{STREAM, TCP, is_mapped, leads_to_loopback, loopback4},
};

/// A socket is bound to `address`.
#[inline(always)]
pub(crate) fn bound(ctx: &SockContext, address: Address) -> i32 {
    let Some(governed) = select::task() else {
        if let Some(pending) = PENDING.of(ctx.as_ptr()) {
            waiting::whose_socket(pending); // Who made it may be nobody's by now, and is told by an id that others can have later.
        }
        return PASS;
    };
    let attempt = Attempt {
        workload: governed.workload,
        governed: governed.cgroup,
        protocol: field!(ctx.sock, protocol),
        socket_type: field!(ctx.sock, type_),
        destination: address,
        has_destination: true,
    };
    if is_in_its_place(address.ip) && is_the_agents(ctx, address.port) {
        return attempt.refuse(Reason::Port, Errno::Eperm);
    }
    if attempt.protocol == TCP && attempt.socket_type == STREAM {
        // It may have been made outside, and may be about to listen.
        let is_entered = match attempt.is_unsettled() {
            true => remember(ctx, &attempt).is_some(),
            false => {
                remember(ctx, &attempt);
                maps::make(ctx, attempt.workload).is_some()
            }
        };
        if !is_entered {
            return attempt.refuse(Reason::Unrecorded, Errno::Eperm);
        }
    }
    PASS
}

/// Would a socket here be found at 127.0.0.1 or ::1, where the agent is? Another loopback address is not: the kernel
/// chooses ports there that the agent has here.
#[inline(always)]
fn is_in_its_place(ip: [u32; 4]) -> bool {
    leads_to_loopback(ip) && (!is_mapped(ip) || ip[3] == 0 || ip == loopback4(0).ip)
}

/// Is this where the agent listens in the socket's network namespace, or will again?
#[inline(always)]
fn is_the_agents(ctx: &SockContext, port: u16) -> bool {
    namespace::ports(namespace::cookie(ctx.as_ptr()))
        .is_some_and(|ports| port != 0 && (port == ports.port4 || port == ports.port6))
}

/// Puts the task on the socket: a packet that is refused there later has no task of its own to be told with, nor to ask whose it is
/// where that was not known. `None`: there is no memory.
#[inline(always)]
pub(crate) fn remember(ctx: &SockContext, attempt: &Attempt) -> Option<()> {
    let pending = PENDING.of_or_new(ctx.as_ptr())?;
    pending.waits = waiting::of_current();
    pending.governed = attempt.governed;
    let refused: *mut Refused = &raw mut pending.refused;
    // SAFETY: `pending` is the socket's own value.
    unsafe {
        (*refused).kind = REFUSED;
        (*refused).protocol = attempt.protocol;
        (*refused).socket_type = attempt.socket_type;
        // A task without a program (a kernel thread) is told as what it is.
        let _ = attribute::current(&raw mut (*refused).owner, attempt.workload);
    }
    Some(())
}
