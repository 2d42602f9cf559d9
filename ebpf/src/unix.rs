//! Unix sockets: a local daemon that a workload may speak to acts outside the fence, so it speaks to those that
//! its policy names, and to its own without a name.
//!
//! The name is read from the kernel's copy of the address: what the kernel goes on to look up, whatever another
//! thread does to the caller's memory. It counts only where it means what it means to the host: who has a user
//! namespace can mount anything anywhere in a mount namespace of that one.
use crate::{
    account,
    attribute::{self, OFFSETS},
    fence::{Attempt, Errno, PASS},
    lsm,
    maps::{EVENTS, UNIX},
    repeat::{GO_ON, STOP, repeat},
    select::{self, Governed},
};
use aya_ebpf::{
    EbpfContext as _,
    btf_maps::lpm_trie::Key,
    helpers::generated::{bpf_get_current_task, bpf_probe_read_kernel},
    programs::{LsmContext, SockAddrContext},
};
use tollgate_common::{
    event::{NAME_REFUSED, NameRefused, Reason},
    limits::SOCKET_NAME_BYTES,
    openings::Named,
    rules::{DATAGRAM, STREAM, address6},
};

/// `offsetof(struct sockaddr_un, sun_path)`
const PATH: u64 = 2;
/// Bits of a key in `UNIX`: all of it, for the longest beginning to be found.
const KEY_BITS: u32 = 8 * size_of::<Named>() as u32;
/// What an abstract name begins with, and nothing else can.
const ABSTRACT: u8 = 0;

/// May a governed task speak to the socket at this address?
#[inline(always)]
pub(crate) fn speak(ctx: &SockAddrContext) -> i32 {
    let Some(governed) = select::task() else {
        return PASS;
    };
    let kind = field!(ctx.sock_addr, type_);
    match is_allowed(&governed, kind, |name| asked_for(ctx, name)) {
        true => PASS,
        false => Attempt::fail(Errno::Eperm),
    }
}

/// `unix_stream_connect(sock, other, newsk)`: the same where the kernel has no hook for the name that is asked for. It has
/// looked it up by now: what counts is what the other socket was bound to, wherever the name led.
#[inline(always)]
pub(crate) fn connect(ctx: &LsmContext) -> i32 {
    judge(ctx.arg::<*const u8>(1) as u64, STREAM)
}

/// `unix_may_send(sock, other)`: a datagram, or its socket's connect. One that is connected was judged then, or by whoever
/// passed it in.
#[inline(always)]
pub(crate) fn send(ctx: &LsmContext) -> i32 {
    let at = OFFSETS.load();
    let (from, to) = (
        ctx.arg::<*const u8>(0) as u64,
        ctx.arg::<*const u8>(1) as u64,
    );
    // SAFETY: as in `copy`.
    let (peer, to) = unsafe {
        let Some(to) = attribute::pointer(to, at.socket_sk) else {
            return lsm::PASS; // It is closed.
        };
        let from = attribute::pointer(from, at.socket_sk);
        (
            from.and_then(|from| attribute::pointer(from, at.unix_peer)),
            to,
        )
    };
    match peer == Some(to) {
        true => lsm::PASS,
        false => judge(to, DATAGRAM),
    }
}

/// May the current task speak to this socket? One that was bound to no name is of a pair that somebody handed out.
#[inline(always)]
fn judge(other: u64, kind: u32) -> i32 {
    let Some(governed) = select::task() else {
        return lsm::PASS;
    };
    // SAFETY: as in `copy`.
    let Some(bound) = (unsafe { attribute::pointer(other, OFFSETS.load().unix_bound) }) else {
        return lsm::PASS;
    };
    match is_allowed(&governed, kind, |name| bound_to(bound, name)) {
        true => lsm::PASS,
        false => lsm::REFUSE,
    }
}

/// Does policy let the workload speak to the socket whose name `read` writes? If not, that is told.
#[inline(always)]
fn is_allowed(
    governed: &Governed,
    kind: u32,
    read: impl FnOnce(&mut [u8; SOCKET_NAME_BYTES]) -> Option<()>,
) -> bool {
    let mut key = Key::new(
        KEY_BITS,
        Named {
            workload: governed.workload,
            name: [0; SOCKET_NAME_BYTES],
        },
    );
    let has_name = read(&mut key.data.name).is_some();
    if has_name
        && is_whole(&key.data.name)
        && is_the_hosts_view() == Some(true)
        && UNIX.get(&key).is_some()
    {
        return true;
    }
    let attempt = Attempt {
        workload: governed.workload,
        governed: governed.cgroup,
        protocol: 0,
        socket_type: kind,
        destination: address6([0; 4], 0),
        has_destination: false,
    };
    report(&attempt, &key.data.name);
    false
}

/// The name that the hook's caller asks for. `None`: it is none, or the kernel keeps it elsewhere.
#[inline(always)]
fn asked_for(ctx: &SockAddrContext, name: &mut [u8; SOCKET_NAME_BYTES]) -> Option<()> {
    let at = OFFSETS.load();
    let context = ctx.as_ptr() as u64;
    // SAFETY: needed to reach what the context does not offer. It is the kernel's `bpf_sock_addr_kern`; what is
    // read goes through `probe_read`, which fails instead of faulting.
    let (address, length): (u64, u32) = unsafe {
        (
            attribute::read(context, at.address_pointer)?,
            attribute::read(context, at.address_length)?,
        )
    };
    copy(address, length, name)
}

/// The name in a `struct unix_address`.
#[inline(always)]
fn bound_to(bound: u64, name: &mut [u8; SOCKET_NAME_BYTES]) -> Option<()> {
    let at = OFFSETS.load();
    // SAFETY: as in `copy`.
    let length: u32 = unsafe { attribute::read(bound, at.bound_length)? };
    copy(bound.wrapping_add(u64::from(at.bound_name)), length, name)
}

/// Copies the name out of an address, as the kernel has it: what an abstract one begins with, a NUL, no path can, while any other
/// sign for that could begin one.
#[inline(always)]
fn copy(address: u64, length: u32, name: &mut [u8; SOCKET_NAME_BYTES]) -> Option<()> {
    let length = u64::from(length).wrapping_sub(PATH);
    if length == 0 || length > SOCKET_NAME_BYTES as u64 {
        return None;
    }
    let (from, to) = (address.wrapping_add(PATH), name.as_mut_ptr().cast());
    // SAFETY: needed to read the kernel's memory, through a helper that fails instead of faulting; `name` is that long.
    if unsafe { bpf_probe_read_kernel(to, length as u32, from as *const _) } < 0 {
        return None;
    }
    // One that ends in NUL is another one, and would look like that without.
    // SAFETY: as above.
    let last: u8 = unsafe { attribute::read(from.wrapping_add(length - 1), 0)? };
    (name[0] != ABSTRACT || length == 1 || last != 0).then_some(())
}

/// A name that is being looked through.
struct Look {
    name: *const [u8; SOCKET_NAME_BYTES],
    /// The three bytes that were seen last.
    last: u64,
    /// Not 0: a NUL was seen behind the first byte.
    ended: u64,
    /// Not 0: it leads elsewhere than it begins.
    leads_away: u64,
}

/// Does the name alone say which socket is meant? It is abstract or begins at the root, as a path from wherever the caller is does
/// not, and nothing in it leads elsewhere than it begins. An abstract name with NUL in it would look like a shorter one.
#[inline(always)]
fn is_whole(name: &[u8; SOCKET_NAME_BYTES]) -> bool {
    if !matches!(name[0], ABSTRACT | b'/') {
        return false;
    }
    let mut look = Look {
        name,
        last: 0,
        ended: 0,
        leads_away: 0,
    };
    repeat(SOCKET_NAME_BYTES as u32, look_at, &mut look);
    look.leads_away == 0
}

/// Looks at one byte.
extern "C" fn look_at(turn: u64, look: *mut Look) -> i64 {
    if turn >= SOCKET_NAME_BYTES as u64 {
        return STOP;
    }
    // SAFETY: `repeat` passes what it was given, and the name is longer than `turn`. Volatile: the compiler would look
    // at several bytes with one check.
    let (look, byte, first) = unsafe {
        let bytes = (*look).name.cast::<u8>();
        let byte = core::ptr::read_volatile(bytes.add(turn as usize));
        (&mut *look, byte, core::ptr::read_volatile(bytes))
    };
    look.last = (look.last << 8 | u64::from(byte)) & 0x00ff_ffff;
    let climbs = look.last == u64::from(u32::from_be_bytes(*b"\0/.."));
    if climbs || (first == ABSTRACT && look.ended != 0 && byte != 0) {
        look.leads_away = 1;
        return STOP;
    }
    if byte == 0 && turn != 0 {
        look.ended = 1;
    }
    GO_ON
}

/// Does the task see the host's files as an administrator has laid them out? That takes the initial user
/// namespace for the task and for its mounts.
#[inline(always)]
fn is_the_hosts_view() -> Option<bool> {
    let at = OFFSETS.load();
    // SAFETY: as in `copy`.
    unsafe {
        let task = bpf_get_current_task();
        let namespaces = attribute::pointer(task, at.task_namespaces)?;
        let mounts = attribute::pointer(namespaces, at.namespaces_mounts)?;
        let owner = attribute::pointer(mounts, at.mounts_user)?;
        let credentials = attribute::pointer(task, at.task_credentials)?;
        let own = attribute::pointer(credentials, at.credentials_user)?;
        let levels: (u32, u32) = (
            attribute::read(owner, at.user_level)?,
            attribute::read(own, at.user_level)?,
        );
        Some(levels == (0, 0))
    }
}

/// Counts and tells the agent, with the name.
#[inline(never)]
fn report(attempt: &Attempt, name: &[u8; SOCKET_NAME_BYTES]) {
    account::refusal(attempt.workload, Reason::Unix);
    let Some(mut entry) = EVENTS.reserve_untyped::<NameRefused>(0) else {
        return account::lost();
    };
    let event: *mut NameRefused = entry.as_mut_ptr();
    // SAFETY: the entry is ours until submitted, and every field is written.
    unsafe {
        attempt.write(&raw mut (*event).refused, Reason::Unix);
        (*event).refused.kind = NAME_REFUSED;
        (*event).name.bytes = *name;
        (*event).name.length = SOCKET_NAME_BYTES as u32;
    }
    entry.submit(0);
}
