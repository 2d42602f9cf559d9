//! Who is the current task? Read from the kernel's own structs, at the offsets that the agent found
//! in this kernel's BTF.
use aya_ebpf::{
    Global,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_probe_read_kernel,
        generated::{
            bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_task,
            bpf_probe_read_kernel_str,
        },
    },
};
use tollgate_common::{
    flow::Owner,
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

/// Writes the current task into `owner`, which is memory of a map entry or a ring entry. `None`: the
/// task has no program of its own (a kernel thread), or a read failed; the owner is then unknown.
///
/// # Safety
/// `owner` must be writable for the whole of `Owner`; the verifier checks it.
#[inline(always)]
pub(crate) unsafe fn current(owner: *mut Owner, workload: u32) -> Option<()> {
    let at = OFFSETS.load();
    let ids = bpf_get_current_uid_gid();
    // SAFETY: writes within `owner` by the contract; helpers are called as documented, and what is
    // read of the kernel goes through `probe_read`, which fails instead of faulting.
    unsafe {
        (*owner).workload = workload;
        (*owner).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
        (*owner).uid = ids as u32;
        (*owner).gid = (ids >> 32) as u32;
        (*owner).cgroup = bpf_get_current_cgroup_id();
        // Into its place: by value it would pass over the stack.
        let comm = &raw mut (*owner).comm;
        if bpf_get_current_comm(comm.cast(), size_of::<[u8; 16]>() as u32) != 0 {
            return None;
        }
        let task = bpf_get_current_task();
        (*owner).start = start(task)?;
        let mm = pointer(task, at.task_mm)?;
        let exe = pointer(mm, at.mm_exe_file)?;
        let inode = pointer(exe, at.file_inode)?;
        (*owner).exe_inode = read(inode, at.inode_ino)?;
        (*owner).exe_dev = read(pointer(inode, at.inode_sb)?, at.sb_dev)?;
        (*owner).parts = path(owner, pointer(exe, at.file_dentry)?, &at)?;
    }
    Some(())
}

/// When a task's process started, nanoseconds since boot.
#[inline(always)]
pub(crate) fn start(task: u64) -> Option<u64> {
    let at = OFFSETS.load();
    // SAFETY: reads through a helper that checks the address.
    unsafe { read(read::<u64>(task, at.task_group_leader)?, at.task_start) }
}

/// The components of `dentry`'s path, itself first; returns how many, or one more than fit.
#[inline(always)]
unsafe fn path(owner: *mut Owner, mut dentry: u64, at: &Offsets) -> Option<u32> {
    for part in 0..PATH_PARTS {
        // SAFETY: as in `current`; `part` is in bounds.
        unsafe {
            let parent = pointer(dentry, at.dentry_parent)?;
            if parent == dentry {
                return Some(part as u32);
            }
            let name = pointer(dentry, at.dentry_name)?;
            let slot = (&raw mut (*owner).path).cast::<u8>().add(part * PART_BYTES);
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
