//! Sending over connections that the workload did not make: inherited, handed in, or taken. The hook of a packet sees
//! whose its socket is; only this one sees who sends.
//!
//! Every send on the host comes by here. That of a process which is not governed costs one load, of its mark: who is in a
//! governed cgroup has one, but for the moment before the agent has looked at it, in which nothing is refused.
//!
//! Nor is anything of a process that has become no other program since it was first governed: what it has is not told from
//! what it made before, as a daemon that is moved, or whose user is recognised late. What becomes of that, policy says elsewhere.
use crate::{
    account, atomic, attribute,
    attribute::{OFFSETS, pointer, read},
    entry, exit,
    fence::Attempt,
    lsm::{PASS, REFUSE},
    maps::{ASKERS, KEPT, ORIGIN, PENDING, client_of},
    names, recognise,
    select::{self, Governed},
};
use aya_ebpf::{
    cty::c_void,
    helpers::generated::{bpf_get_current_task, bpf_get_socket_cookie},
    programs::LsmContext,
};
use tollgate_common::{
    event::{Reason, TOLD_PASSED},
    flow::{Address, Client, MADE},
    recognise::UNSETTLED,
    rules::{CARRIES_A_DISK, TCP, address4, address6, is_ip, is_ip4, is_looked_at, is_unconnected},
};

/// `socket_sendmsg(socket, message, size)`
#[inline(always)]
pub(crate) fn send(ctx: &LsmContext) -> i32 {
    let mark = recognise::mark(recognise::current()).unwrap_or_default();
    if !mark.is_governed() || mark.has_earlier() {
        return PASS;
    }
    let Some(socket) = Socket::of(ctx) else {
        return PASS;
    };
    let client = client_of(socket.sk);
    let is_its = |client: &Client| client.workload == u32::from(mark.workload());
    if client.is_some_and(|client| is_its(client) && is_held(client)) {
        return PASS; // What follows costs more.
    }
    let Some(governed) = select::task() else {
        return PASS;
    };
    // Who is not settled may have made it before it came here.
    let is_its = is_ip(socket.family) && socket.is_of(&governed);
    if governed.workload == u32::from(UNSETTLED) || is_its {
        return PASS;
    }
    socket.refuse(&governed)
}

/// A socket of IP that sends to somebody whom no other hook looks at, or of a family of which no governed task may make any.
struct Socket {
    /// As the kernel passed it: storage is kept for no pointer that was read.
    sk: *mut c_void,
    family: u32,
    protocol: u32,
}

impl Socket {
    #[inline(always)]
    fn of(ctx: &LsmContext) -> Option<Self> {
        let at = OFFSETS.load();
        let socket = ctx.arg::<*const u8>(0);
        // SAFETY: needed because of what `sk` says. The argument is a live `struct socket`, and the verifier holds the place
        // against its type.
        let sk = unsafe {
            core::ptr::read_volatile(socket.add(at.socket_sk as usize).cast::<*mut c_void>())
        };
        if sk.is_null() {
            return None;
        }
        // SAFETY: reads through a helper that checks the address.
        unsafe {
            let family = u32::from(read::<u16>(sk as u64, at.sock_family)?);
            let state: u8 = read(sk as u64, at.sock_state)?;
            let protocol = u32::from(read::<u16>(sk as u64, at.sock_protocol)?);
            let is_left_to_others = match is_ip(family) {
                true => is_unconnected(state, protocol),
                false => is_looked_at(family, protocol),
            };
            if is_left_to_others {
                return None;
            }
            let has_descriptor = pointer(socket as u64, at.socket_file).is_some();
            (has_descriptor && is_the_kernels(sk as u64) == Some(false)).then_some(Self {
                sk,
                family,
                protocol,
            })
        }
    }

    /// Did this workload make it, connect it, or accept it where its policy has it listen; or may it go on?
    #[inline(always)]
    fn is_of(&self, governed: &Governed) -> bool {
        // SAFETY: as in `of`.
        let cgroup = unsafe { pointer(self.sk as u64, OFFSETS.load().sock_cgroup) };
        let maker = cgroup.and_then(select::above);
        maker.is_some_and(|maker| maker.workload == governed.workload)
            || client_of(self.sk).is_some_and(|client| {
                let is_its = client.workload == governed.workload;
                is_its && (is_held(client) || self.asks_the_agent()) || is_of_this_process(client)
            })
            // What the agent claimed is from before, and goes on only where policy lets it.
            || ORIGIN
                .of(self.sk)
                .is_some_and(|origin| *origin & !MADE == u64::from(governed.workload))
            || self.is_served(governed.workload)
            || self.is_kept(governed.workload)
    }

    /// Is it connected to the agent, to ask for names? That its workload wanted to connect it there is not enough: that may have
    /// failed, and left it connected to whom it was.
    #[inline(always)]
    fn asks_the_agent(&self) -> bool {
        ASKERS.of(self.sk).is_some_and(|asker| {
            let peer = self.peer();
            peer.is_some_and(|peer| names::is_the_agent(&peer, asker.netns))
        })
    }

    /// Has policy the workload listen where this one was accepted, be it by somebody else? Of TCP: nothing else is accepted there.
    #[inline(always)]
    fn is_served(&self, workload: u32) -> bool {
        if self.protocol != TCP {
            return false;
        }
        // SAFETY: as in `of`.
        let port: Option<u16> = unsafe { read(self.sk as u64, OFFSETS.load().sock_port) };
        port.is_some_and(|port| entry::may_listen(workload, port))
    }

    /// Was it there before the workload was governed, and does policy let it go on?
    #[inline(always)]
    fn is_kept(&self, workload: u32) -> bool {
        // SAFETY: needed to call a helper, with a socket that the kernel passed, and to read an entry: one that is removed
        // meanwhile stays readable.
        let kept = unsafe { KEPT.get(bpf_get_socket_cookie(self.sk)) };
        kept.is_some_and(|kept| kept.workload == workload && kept.ends == 0)
    }

    /// Refuses, and tells it with the first send.
    #[inline(always)]
    fn refuse(&self, governed: &Governed) -> i32 {
        let destination = self.peer().unwrap_or_default();
        let attempt = Attempt {
            workload: governed.workload,
            governed: governed.cgroup,
            protocol: self.protocol,
            socket_type: 0,
            destination,
            has_destination: destination.port != 0,
        };
        match self.was_told() {
            true => account::refusal(governed.workload, Reason::Passed),
            false => attempt.report(Reason::Passed),
        }
        REFUSE
    }

    /// If it was not, it is now. Without room to remember it, it is told each time.
    #[inline(always)]
    fn was_told(&self) -> bool {
        let Some(pending) = PENDING.of_or_new(self.sk) else {
            return false;
        };
        // SAFETY: `state` is in the socket's own value, aligned to 8.
        unsafe { atomic::fetch_or(&raw mut pending.state, TOLD_PASSED) & TOLD_PASSED != 0 }
    }

    #[inline(always)]
    fn peer(&self) -> Option<Address> {
        if !is_ip(self.family) {
            return None; // It has no such place.
        }
        let at = OFFSETS.load();
        // SAFETY: as in `of`.
        unsafe {
            let port = u16::from_be(read(self.sk as u64, at.sock_peer_port)?);
            Some(match is_ip4(self.family) {
                true => address4(read(self.sk as u64, at.sock_peer4)?, port),
                false => address6(read(self.sk as u64, at.sock_peer6)?, port),
            })
        }
    }
}

/// Did the kernel make this socket, or was it given to it for a disk? It sends over those in the name of whoever reads a file.
#[inline(always)]
fn is_the_kernels(sk: u64) -> Option<bool> {
    let at = OFFSETS.load();
    // SAFETY: reads through a helper that checks the address.
    unsafe {
        let flags: u64 = read(sk, at.sock_flags)?;
        let byte: u8 = read(sk, at.sock_kernel / 8)?;
        Some(flags & CARRIES_A_DISK != 0 || byte >> (at.sock_kernel % 8) & 1 != 0)
    }
}

/// Does `exit` hold the socket to its workload, wherever it was made?
#[inline(always)]
fn is_held(client: &Client) -> bool {
    exit::is_steered(client) || client.is_marked != 0
}

/// Did the current process connect this socket itself? What it is recognised as may have changed since.
#[inline(always)]
fn is_of_this_process(client: &Client) -> bool {
    let steered = &client.record.steered;
    // SAFETY: needed to call a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    steered.connection.cookie != 0
        && steered.owner.tgid == recognise::current()
        && attribute::start(task) == Some(steered.owner.start)
}
