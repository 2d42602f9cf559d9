//! The second fence, where the host runs BPF LSM programs: what no hook at the cgroup root sees. It refuses besides
//! the others, and passes nothing that they refuse.
use crate::{
    attribute::{OFFSETS, pointer, read},
    fence::Attempt,
    recognise,
    select::{self, Governed, MARKED},
};
use aya_ebpf::programs::LsmContext;
use tollgate_common::{
    event::Reason,
    recognise::EXEMPT,
    rules::{LISTENING, UNCONNECTED, address6, is_ip, is_looked_at},
};

/// What a program returns to let pass.
pub(crate) const PASS: i32 = 0;
/// What it returns to refuse: `-EPERM`.
pub(crate) const REFUSE: i32 = -1;
/// `PTRACE_MODE_ATTACH`
const ATTACH: u32 = 2;
/// `S_IFMT` and `S_IFSOCK`
const KIND: u16 = 0o170_000;
const SOCKET: u16 = 0o140_000;
/// `BPF_FS_MAGIC`
const BPFFS: u64 = 0xcafe_4a11;

#[inline(always)]
fn refuse(governed: &Governed, reason: Reason, protocol: u32, socket_type: u32) -> i32 {
    let attempt = Attempt {
        workload: governed.workload,
        governed: governed.cgroup,
        protocol,
        socket_type,
        destination: address6([0; 4], 0),
        has_destination: false,
    };
    attempt.report(reason);
    REFUSE
}

/// `socket_create(family, type, protocol, kern)`: hooks at the cgroup root see IP only.
#[inline(always)]
pub(crate) fn socket_create(ctx: &LsmContext) -> i32 {
    let family = ctx.arg::<i32>(0) as u32;
    let is_the_kernels = ctx.arg::<i32>(3) != 0;
    if is_the_kernels || is_looked_at(family, ctx.arg::<i32>(2) as u32) {
        return PASS;
    }
    match select::task() {
        Some(governed) => refuse(&governed, Reason::Family, family, ctx.arg::<i32>(1) as u32),
        None => PASS,
    }
}

/// `ptrace_access_check(child, mode)`: another's memory and its descriptors, which `pidfd_getfd` takes.
#[inline(always)]
pub(crate) fn ptrace_access_check(ctx: &LsmContext) -> i32 {
    if ctx.arg::<u32>(1) & ATTACH == 0 {
        return PASS;
    }
    let Some(governed) = select::task() else {
        return PASS;
    };
    let child = ctx.arg::<*const u8>(0) as u64;
    if is_of(child, governed.workload) {
        return PASS;
    }
    refuse(&governed, Reason::Trace, 0, 0)
}

/// `task_kill(p, info, sig, cred)`: whom the agent governs does not end it.
#[inline(always)]
pub(crate) fn task_kill(ctx: &LsmContext) -> i32 {
    let is_a_question = ctx.arg::<i32>(2) == 0;
    let target = ctx.arg::<*const u8>(0) as u64;
    if is_a_question || mark_of(target) != Some(EXEMPT) {
        return PASS;
    }
    match select::task() {
        Some(governed) => refuse(&governed, Reason::Signal, 0, 0),
        None => PASS,
    }
}

/// Is a task this workload's?
#[inline(always)]
fn is_of(task: u64, workload: u32) -> bool {
    mark_of(task).is_some_and(|mark| u32::from(mark) == workload)
        || select::other(task).is_some_and(|other| other.workload == workload)
}

/// The mark of a task's process.
#[inline(always)]
fn mark_of(task: u64) -> Option<u16> {
    // SAFETY: a task that the kernel passed; the read goes through a helper that checks the address.
    let process = unsafe { read(task, OFFSETS.load().task_tgid) }?;
    Some(recognise::mark(process)?.workload())
}

/// `file_receive(file)`: a descriptor comes over a Unix socket, or by `pidfd_getfd`. A connected socket leads where
/// somebody else connected it to.
#[inline(always)]
pub(crate) fn file_receive(ctx: &LsmContext) -> i32 {
    let Some(governed) = select::task() else {
        return PASS;
    };
    if governed.cgroup == MARKED {
        return PASS; // Nothing tells its own sockets from others'.
    }
    match foreign(ctx.arg::<*const u8>(0) as u64, &governed) {
        Some(true) => refuse(&governed, Reason::Passed, 0, 0),
        _ => PASS,
    }
}

/// Is this file a socket of IP that is connected, and was not made in a cgroup of this workload's, or one of a family of which no
/// governed task may make any?
#[inline(always)]
fn foreign(file: u64, governed: &Governed) -> Option<bool> {
    let at = OFFSETS.load();
    // SAFETY: a file that the kernel passed; all reads go through a helper that checks the address, and what is behind
    // `private_data` is a `struct socket` where the inode is one.
    unsafe {
        let mode: u16 = read(pointer(file, at.file_inode)?, at.inode_mode)?;
        if mode & KIND != SOCKET {
            return Some(false);
        }
        let socket = pointer(pointer(file, at.file_private)?, at.socket_sk)?;
        let family: u16 = read(socket, at.sock_family)?;
        let state: u8 = read(socket, at.sock_state)?;
        if !is_ip(u32::from(family)) {
            let protocol: u16 = read(socket, at.sock_protocol)?;
            return Some(!is_looked_at(u32::from(family), u32::from(protocol)));
        }
        if [UNCONNECTED, LISTENING].contains(&state) {
            return Some(false);
        }
        let owner = select::above(pointer(socket, at.sock_cgroup)?);
        Some(owner.is_none_or(|owner| owner.workload != governed.workload))
    }
}

/// `bpf(cmd, attr, size)`: programs, links and maps, the fence's among them.
#[inline(always)]
pub(crate) fn bpf() -> i32 {
    keep(true)
}

/// `inode_unlink(dir, dentry)` and `inode_rename(old_dir, …)`: a pin is all that holds a program.
#[inline(always)]
pub(crate) fn take_out(ctx: &LsmContext) -> i32 {
    let directory = ctx.arg::<*const u8>(0) as u64;
    keep(is_bpffs(directory, OFFSETS.load().inode_sb) == Some(true))
}

/// `sb_umount(mnt, flags)`: with its last mount go the pins.
#[inline(always)]
pub(crate) fn sb_umount(ctx: &LsmContext) -> i32 {
    let mount = ctx.arg::<*const u8>(0) as u64;
    keep(is_bpffs(mount, OFFSETS.load().mount_sb) == Some(true))
}

/// Is the file system of this inode or mount, which has its super block at `sb`, one of pins?
#[inline(always)]
fn is_bpffs(of: u64, sb: u32) -> Option<bool> {
    // SAFETY: reads of what the kernel passed, through a helper that checks the address.
    let magic: u64 = unsafe { read(pointer(of, sb)?, OFFSETS.load().sb_magic)? };
    Some(magic == BPFFS)
}

/// Refuses a governed task what meddles with the fence.
#[inline(always)]
fn keep(meddles: bool) -> i32 {
    if !meddles {
        return PASS;
    }
    match select::task() {
        Some(governed) => refuse(&governed, Reason::Fence, 0, 0),
        None => PASS,
    }
}
