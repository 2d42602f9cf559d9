//! Refusing: what cannot be steered does not pass, and the agent is told.
use crate::{
    account, attribute,
    maps::{CLIENTS, EVENTS, RESOLVERS, socket_of},
};
use aya_ebpf::{
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_set_retval},
    programs::SockAddrContext,
};
use tollgate_common::{
    event::{REFUSED, Reason, Refused},
    flow::Address,
    rules::{DATAGRAM, DNS, UDP},
};

/// What a hook returns to let pass.
pub(crate) const PASS: i32 = 1;
/// What a hook returns to refuse, after [`Attempt::refuse`] set the error.
const REFUSE: i32 = 0;

/// What the caller of a refused system call sees.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(crate) enum Errno {
    /// It may not.
    Eperm = 1,
    /// Nobody is there.
    Econnrefused = 111,
}

/// What a governed task tried.
#[derive(Clone, Copy)]
pub(crate) struct Attempt {
    /// Whose task.
    pub(crate) workload: u32,
    /// `IPPROTO_…`
    pub(crate) protocol: u32,
    /// `SOCK_…`
    pub(crate) socket_type: u32,
    /// Where to; `None` where a socket is only being made.
    pub(crate) destination: Option<Address>,
}

impl Attempt {
    /// Refuses it: counts, tells the agent, sets the error. Returns what the hook shall return.
    #[inline(always)]
    pub(crate) fn refuse(&self, reason: Reason, errno: Errno) -> i32 {
        self.report(reason);
        // SAFETY: needed to call a helper; available in every hook that refuses.
        unsafe { bpf_set_retval(-(errno as i32)) };
        REFUSE
    }

    /// Counts and tells the agent. Not inlined: every hook has several ways to get here.
    #[inline(never)]
    pub(crate) fn report(&self, reason: Reason) {
        account::refusal(self.workload, reason);
        let Some(mut entry) = EVENTS.reserve(0) else {
            return account::lost();
        };
        let event: *mut Refused = entry.as_mut_ptr();
        // SAFETY: the entry is ours until submitted; each field is written, and of the path as much
        // as `parts` says.
        let known = unsafe {
            (*event).kind = REFUSED;
            (*event).reason = reason as u32;
            (*event).time = bpf_ktime_get_boot_ns();
            (*event).protocol = self.protocol;
            (*event).socket_type = self.socket_type;
            (*event).has_destination = u32::from(self.destination.is_some());
            (*event).reserved = 0;
            (*event).destination = self.destination.unwrap_or(Address {
                ip: [0; 4],
                port: 0,
                reserved: [0; 3],
            });
            (*event).owner.parts = 0;
            (*event).owner.exe_dev = 0;
            (*event).owner.exe_inode = 0;
            (*event).owner.start = 0;
            attribute::current(&raw mut (*event).owner, self.workload)
        };
        // A task without a program (a kernel thread) is refused all the same and told as what it is.
        let _ = known;
        entry.submit(0);
    }
}

/// A datagram, or a datagram socket's peer: only DNS to a resolver.
#[inline(always)]
pub(crate) fn datagram(ctx: &SockAddrContext, attempt: &Attempt, destination: &Address) -> i32 {
    if attempt.protocol != UDP || attempt.socket_type != DATAGRAM {
        return attempt.refuse(Reason::Protocol, Errno::Eperm);
    }
    if destination.port != DNS || RESOLVERS.get_ptr(destination.ip).is_none() {
        return attempt.refuse(Reason::Udp, Errno::Eperm);
    }
    // So that its packets are counted; without memory for that they pass uncounted.
    if let Some(client) = CLIENTS.of_or_new(socket_of(ctx)) {
        client.workload = attempt.workload;
    }
    PASS
}
