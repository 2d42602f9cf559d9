//! Who is the current task? Read from the kernel's own structs, at the offsets that the agent found
//! in this kernel's BTF.
use crate::maps::{BLANK, PATHS};
use aya_ebpf::{
    Global,
    bindings::BPF_ANY,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_probe_read_kernel,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_task, bpf_get_current_task_btf,
            bpf_probe_read_kernel_str,
        },
    },
};
use tollgate_common::{
    flow::{Inode, Owner, Path},
    limits::{PART_BYTES, PATH_PARTS},
    settings::Offsets,
};

/// Set by the agent before loading.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Global<Offsets> = Global::new(Offsets {
    task_group_leader: 0,
    task_start: 0,
    task_mm: 0,
    mm_exe_file: 0,
    file_inode: 0,
    file_dentry: 0,
    inode_ino: 0,
    inode_sb: 0,
    sb_dev: 0,
    dentry_parent: 0,
    dentry_name: 0,
    task_tgid: 0,
    task_cgroups: 0,
    set_cgroup: 0,
    cgroup_level: 0,
    cgroup_node: 0,
    cgroup_ancestors: 0,
    cgroup_root: 0,
    root_hierarchy: 0,
    node_id: 0,
    node_name: 0,
    task_namespaces: 0,
    namespaces_net: 0,
    net_cookie: 0,
    inode_changed: 0,
    inode_changed_nanoseconds: 0,
    address_pointer: 0,
    address_length: 0,
    namespaces_mounts: 0,
    mounts_user: 0,
    task_credentials: 0,
    credentials_user: 0,
    user_level: 0,
    file_private: 0,
    inode_mode: 0,
    socket_sk: 0,
    sock_family: 0,
    sock_state: 0,
    sock_cgroup: 0,
    sock_protocol: 0,
    sock_flags: 0,
    sock_kernel: 0,
    sock_port: 0,
    sock_peer_port: 0,
    sock_peer4: 0,
    sock_peer6: 0,
    socket_file: 0,
    unix_bound: 0,
    unix_peer: 0,
    bound_length: 0,
    bound_name: 0,
    sb_magic: 0,
    mount_sb: 0,
    reserved: 0,
});

/// One of [`OFFSETS`]. All of them would be copied to the stack.
macro_rules! offset {
    ($field:ident) => {{
        let offsets = core::ptr::from_ref(&$crate::attribute::OFFSETS)
            .cast::<tollgate_common::settings::Offsets>();
        // SAFETY: `Global` is its value and nothing else; volatile because the agent sets it.
        #[allow(unused_unsafe)] // Where it is asked for in another one.
        let offset = unsafe { core::ptr::read_volatile(&raw const (*offsets).$field) };
        offset
    }};
}
pub(crate) use offset;

/// Writes the current task into `owner`, which is memory of a map entry or a ring entry. `None`: the
/// task has no program of its own (a kernel thread), or a read failed; the owner is then unknown.
///
/// # Safety
/// `owner` must be writable for the whole of `Owner`; the verifier checks it.
#[inline(always)]
pub(crate) unsafe fn current(owner: *mut Owner, workload: u32) -> Option<()> {
    let ids = bpf_get_current_uid_gid();
    // SAFETY: writes within `owner` by the contract; helpers are called as documented; what is read of the kernel begins
    // at the task, whose type the verifier knows.
    unsafe {
        (*owner).workload = workload;
        (*owner).reserved = 0;
        (*owner).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*owner).uid = ids as u32;
        (*owner).gid = (ids >> 32) as u32;
        (*owner).cgroup = bpf_get_current_cgroup_id();
        let task = bpf_get_current_task_btf().cast_const().cast::<u8>();
        let leader = follow(task, offset!(task_group_leader))?;
        (*owner).start = load(leader, offset!(task_start));
        let mm = follow(task, offset!(task_mm))?;
        let exe = follow(mm, offset!(mm_exe_file))?;
        let inode = follow(exe, offset!(file_inode))?;
        (*owner).exe_inode = load(inode, offset!(inode_ino));
        (*owner).exe_dev = load(follow(inode, offset!(inode_sb))?, offset!(sb_dev));
    }
    Some(())
}

/// Has `PATHS` say where the program is that the current task runs, if it does not.
#[inline(always)]
pub(crate) fn know(owner: &Owner) {
    let inode = Inode {
        number: owner.exe_inode,
        device: owner.exe_dev,
        reserved: 0,
    };
    if PATHS.get_ptr(inode).is_none() {
        // SAFETY: needed to call a helper without arguments.
        learn(unsafe { bpf_get_current_task() });
    }
}

/// Reads where the program is that a task runs: for who asks when the task is gone. On a stack of its own.
#[inline(never)]
pub(crate) fn learn(task: u64) -> u32 {
    try_learn(task).unwrap_or(0)
}

#[inline(always)]
#[allow(clippy::needless_borrows_for_generic_args)] // A copy of `BLANK` would not fit the stack.
fn try_learn(task: u64) -> Option<u32> {
    // SAFETY: reads through a helper that checks the addresses; both map values are live. The entry is filled in place: two that
    // do it at once write the same.
    unsafe {
        let exe = pointer(pointer(task, offset!(task_mm))?, offset!(mm_exe_file))?;
        let inode = pointer(exe, offset!(file_inode))?;
        let inode = Inode {
            number: read(inode, offset!(inode_ino))?,
            device: read(pointer(inode, offset!(inode_sb))?, offset!(sb_dev))?,
            reserved: 0,
        };
        if PATHS.get_ptr(inode).is_none() {
            let blank = &*BLANK.get_ptr(0)?;
            PATHS.insert(inode, blank, u64::from(BPF_ANY)).ok()?;
        }
        let to = PATHS.get_ptr_mut(inode)?;
        (*to).parts = path(to, pointer(exe, offset!(file_dentry))?)?;
        Some((*to).parts)
    }
}

/// Reads a field of a kernel struct whose type the verifier knows: without a call, and zero where there is nothing.
///
/// # Safety
/// The verifier checks that a `T` is there.
#[inline(always)]
pub(crate) unsafe fn load<T>(base: *const u8, offset: u32) -> T {
    // SAFETY: the contract.
    unsafe { core::ptr::read_volatile(base.add(offset as usize).cast()) }
}

/// Reads a pointer in the same way; `None` where it leads nowhere.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub(crate) unsafe fn follow(base: *const u8, offset: u32) -> Option<*const u8> {
    // SAFETY: the contract.
    let to: *const u8 = unsafe { load(base, offset) };
    (!to.is_null()).then_some(to)
}

/// When a task's process started, nanoseconds since boot.
#[inline(always)]
pub(crate) fn start(task: u64) -> Option<u64> {
    // SAFETY: reads through a helper that checks the address.
    unsafe {
        read(
            read::<u64>(task, offset!(task_group_leader))?,
            offset!(task_start),
        )
    }
}

/// The components of `dentry`'s path, itself first; returns how many, or one more than fit.
#[inline(always)]
unsafe fn path(to: *mut Path, mut dentry: u64) -> Option<u32> {
    for part in 0..PATH_PARTS {
        // SAFETY: as in `current`; `part` is in bounds.
        unsafe {
            let parent = pointer(dentry, offset!(dentry_parent))?;
            if parent == dentry {
                return Some(part as u32);
            }
            let name = pointer(dentry, offset!(dentry_name))?;
            let slot = (&raw mut (*to).names).cast::<u8>().add(part * PART_BYTES);
            if bpf_probe_read_kernel_str(slot.cast(), PART_BYTES as u32, name as *const _) < 0 {
                return None;
            }
            dentry = parent;
        }
    }
    Some(PATH_PARTS as u32 + 1)
}

/// Reads a field of a kernel struct.
#[inline(always)]
pub(crate) unsafe fn read<T>(base: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(u64::from(offset)) as *const T).ok() }
}

/// Reads a pointer that must not be null.
#[inline(always)]
pub(crate) unsafe fn pointer(base: u64, offset: u32) -> Option<u64> {
    // SAFETY: as in `read`.
    unsafe { read::<u64>(base, offset).filter(|&address| address != 0) }
}
