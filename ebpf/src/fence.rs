//! Refusing: what cannot be steered does not pass, and the agent is told.
use crate::{
    account, atomic, attribute, bind,
    maps::{self, CLIENTS, EVENTS, PENDING, socket_of},
    names,
    select::MARKED,
};
use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_set_retval},
    programs::{SockAddrContext, SockContext},
};
use aya_log_ebpf::warn;
use tollgate_common::{
    event::{REFUSED, Reason, Refused, TOLD},
    flow::Address,
    recognise::UNSETTLED,
    rules::{DATAGRAM, DNS, STREAM, UDP, is_for_many},
};

/// What a hook returns to let pass.
pub(crate) const PASS: i32 = 1;
/// What a hook returns to refuse, after [`Attempt::refuse`] set the error.
const REFUSE: i32 = 0;
/// What a packet's hook returns to drop it; its sender, if still there, sees `EPERM`.
pub(crate) const DROP: i32 = 0;

/// What the caller of a refused system call sees.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(crate) enum Errno {
    /// It may not.
    Eperm = 1,
    /// Nobody is there.
    Econnrefused = 111,
    /// It has spent what it may.
    Edquot = 122,
}

/// Why an attempt is refused, and what its caller sees.
pub(crate) type Refusal = (Reason, Errno);

/// What a governed task tried.
#[derive(Clone, Copy)]
pub(crate) struct Attempt {
    /// Whose task.
    pub(crate) workload: u32,
    /// By what the task is governed: `Governed::cgroup`.
    pub(crate) governed: u64,
    /// `IPPROTO_…`
    pub(crate) protocol: u32,
    /// `SOCK_…`
    pub(crate) socket_type: u32,
    /// Where to; all zero where a socket is only being made.
    pub(crate) destination: Address,
    /// Whether there is a destination.
    pub(crate) has_destination: bool,
}

impl Attempt {
    /// What the hook shall return. A hook with several ways to refuse does it here only: each way to
    /// [`Attempt::report`] may cost a frame of the 512 bytes of stack there are.
    #[inline(always)]
    pub(crate) fn answer(&self, done: Result<(), Refusal>) -> i32 {
        match done {
            Ok(()) => PASS,
            Err((reason, errno)) => self.refuse(reason, errno),
        }
    }

    /// Is it not known yet whose it is?
    #[inline(always)]
    pub(crate) fn is_unsettled(&self) -> bool {
        self.workload == u32::from(UNSETTLED)
    }

    /// Refuses it: counts, tells the agent, sets the error. Returns what the hook shall return.
    #[inline(always)]
    pub(crate) fn refuse(&self, reason: Reason, errno: Errno) -> i32 {
        self.report(reason);
        Self::fail(errno)
    }

    /// Refuses it as something that was told before.
    #[inline(always)]
    fn refuse_again(&self, reason: Reason, errno: Errno) -> i32 {
        account::refusal(self.workload, reason);
        Self::fail(errno)
    }

    #[inline(always)]
    pub(crate) fn fail(errno: Errno) -> i32 {
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
        let event = entry.as_mut_ptr();
        // SAFETY: the entry is ours until submitted.
        unsafe {
            self.write(event, reason);
            attribute::know(&(*event).owner);
        }
        entry.submit(0);
    }

    /// Writes what is told.
    ///
    /// # Safety
    /// `event` must be writable for the whole of `Refused`; the verifier checks it.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, event: *mut Refused, reason: Reason) {
        // SAFETY: by the contract; each field is written, and of the path as much as `parts` says.
        let known = unsafe {
            (*event).kind = REFUSED;
            (*event).reason = reason as u32;
            (*event).time = bpf_ktime_get_boot_ns();
            (*event).protocol = self.protocol;
            (*event).socket_type = self.socket_type;
            (*event).has_destination = u32::from(self.has_destination);
            (*event).reserved = 0;
            (*event).destination = self.destination;
            (*event).owner.exe_dev = 0;
            (*event).owner.exe_inode = 0;
            (*event).owner.start = 0;
            attribute::current(&raw mut (*event).owner, self.workload)
        };
        // A task without a program (a kernel thread) is refused all the same and told as what it is.
        let _ = known;
    }
}

/// A datagram with a destination of its own: only a query for a name, which `send` sends to the agent.
#[inline(always)]
pub(crate) fn datagram(
    ctx: &SockAddrContext,
    attempt: &Attempt,
    destination: &Address,
    send: impl Fn(&Address),
) -> i32 {
    if attempt.protocol != UDP || attempt.socket_type != DATAGRAM {
        return attempt.refuse(Reason::Protocol, Errno::Eperm);
    }
    if attempt.is_unsettled() {
        return attempt.refuse(Reason::Unsettled, Errno::Econnrefused);
    }
    if destination.port == DNS {
        return attempt.answer(names::ask(ctx, attempt, destination, false, send));
    }
    // Port 0 is nowhere: a connected socket that sends with control messages names no destination. One
    // that is connected to mapped IPv4 names its peer, which is the agent by now, or at no port. `exit` looks at all of them.
    if destination.port == 0
        || names::is_peer(ctx, destination)
        || held_peer(ctx, destination).is_some()
    {
        note(ctx, attempt);
        return PASS;
    }
    if was_told(ctx, destination) {
        return attempt.refuse_again(Reason::Udp, Errno::Eperm);
    }
    attempt.refuse(Reason::Udp, Errno::Eperm)
}

/// Is this where the socket is connected to, and was its refusal told? If it was not, it is now: a
/// socket that is connected to mapped IPv4 comes here with every datagram.
#[inline(always)]
fn was_told(ctx: &SockAddrContext, destination: &Address) -> bool {
    let Some(pending) = PENDING.of(socket_of(ctx)) else {
        return false;
    };
    // SAFETY: `state` is in the socket's own value, aligned to 8.
    pending.refused.destination == *destination
        && unsafe { atomic::fetch_or(&raw mut pending.state, TOLD) } & TOLD != 0
}

/// The port that governed datagram sockets are connected to where it is not the agent's: no service has it over UDP (IANA gives it to
/// TCP's multiplexer), and who binds it needs a privilege.
pub(crate) const NOWHERE: u16 = 1;

/// A datagram socket's peer: a server that is asked for names is the agent instead, as with [`datagram`].
/// Programs connect to every address that a name has and send to none, to see which way each would go; so
/// it is the first datagram to anybody else that is refused, by `exit`.
#[inline(always)]
pub(crate) fn peer(
    ctx: &SockAddrContext,
    attempt: &Attempt,
    destination: &Address,
    send: impl Fn(&Address),
) -> Result<(), Refusal> {
    if attempt.socket_type != DATAGRAM {
        return Err((Reason::Protocol, Errno::Eperm));
    }
    // Of these the kernel gives the host's own sockets a copy before `exit` sees the datagram; nobody connects to them to see a way.
    if is_for_many(destination.ip) {
        return Err((Reason::Udp, Errno::Eperm));
    }
    if destination.port == DNS {
        return names::ask(ctx, attempt, destination, true, send);
    }
    names::leave(ctx);
    if hold(ctx, attempt, destination).is_none() {
        warn!(
            ctx,
            "a datagram socket could not be marked, and its connect was refused: there is no memory"
        );
        return Err((Reason::Udp, Errno::Eperm));
    }
    // The way to it is all that may be seen, and a port is no part of that. Of a broadcast to a subnet, which nothing here tells from
    // another address, the kernel gives the host's own sockets a copy, and who sent that is not to be found: nobody hears it.
    send(&Address {
        port: NOWHERE,
        ..*destination
    });
    Ok(())
}

/// The peer that the socket's caller connected it to, where its own is that at no port; see [`peer`].
#[inline(always)]
pub(crate) fn held_peer(ctx: &SockAddrContext, own: &Address) -> Option<Address> {
    let held = PENDING.of(socket_of(ctx))?.refused.destination;
    (own.port == NOWHERE && own.ip == held.ip).then_some(held)
}

/// A governed task makes a socket. Where it is made in no governed cgroup, or when that is gone, only the socket itself can
/// tell later, when its packets leave, whose it is; without memory for that there is no socket.
#[inline(always)]
pub(crate) fn made(ctx: &SockContext, attempt: &Attempt) -> i32 {
    // Who is not settled may have it, and is told when it connects or sends; who connects to it waits as well. To listen without a
    // bind has no hook.
    if attempt.is_unsettled() {
        return match attempt.socket_type != STREAM || bind::remember(ctx, attempt).is_some() {
            true => PASS,
            false => attempt.refuse(Reason::Unrecorded, Errno::Eperm),
        };
    }
    if attempt.governed != MARKED {
        // Room for its connection, and a name: making these takes longer than all else that is done for one.
        if attempt.socket_type == STREAM {
            let _ = CLIENTS.of_or_new(ctx.as_ptr());
            // SAFETY: needed to call a helper, with the context that the kernel passed.
            unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        }
        return match maps::make(ctx, attempt.workload) {
            Some(()) => PASS,
            None => attempt.refuse(Reason::Unrecorded, Errno::Eperm),
        };
    }
    let client = CLIENTS.of_or_new(ctx.as_ptr());
    let (Some(client), Some(())) = (client, maps::make(ctx, attempt.workload)) else {
        return attempt.refuse(Reason::Unrecorded, Errno::Eperm);
    };
    client.workload = attempt.workload;
    client.is_marked = 1;
    PASS
}

/// So that its packets are counted; without memory for that they pass uncounted.
#[inline(always)]
pub(crate) fn note(ctx: &SockAddrContext, attempt: &Attempt) -> Option<()> {
    let client = CLIENTS.of_or_new(socket_of(ctx))?;
    client.workload = attempt.workload;
    // A mark is never taken away: who made the socket, or used it, may be in no governed cgroup.
    client.is_marked |= u32::from(attempt.governed == MARKED);
    Some(())
}

/// Puts the refusal on the socket that its first datagram will be told as. It stays there until an
/// ungoverned task connects the socket, also when a governed one asks for names with it: two
/// threads that connect it at once could otherwise have one's mark and the other's peer.
#[inline(always)]
fn hold(ctx: &SockAddrContext, attempt: &Attempt, destination: &Address) -> Option<()> {
    note(ctx, attempt)?;
    let pending = PENDING.of_or_new(socket_of(ctx))?;
    let refused: *mut Refused = &raw mut pending.refused;
    pending.governed = attempt.governed;
    // SAFETY: `pending` is the socket's own value.
    unsafe {
        if (*refused).destination != *destination {
            (*refused).destination = *destination;
            pending.state = 0;
        }
        (*refused).kind = REFUSED;
        (*refused).protocol = attempt.protocol;
        (*refused).socket_type = attempt.socket_type;
        // A task without a program (a kernel thread) is held all the same and told as what it is.
        let _ = attribute::current(&raw mut (*refused).owner, attempt.workload);
    }
    Some(())
}
