//! What the agent tells the hooks.
use crate::{limits::NAME_BYTES, pod};

/// The one entry of `SETTINGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// [`crate::ABI`] of whoever made the maps; 0 until the first start is complete.
    pub abi: u32,
}

/// Where the agent listens in one network namespace: the value of `NAMESPACES`, by the namespace's
/// cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// On 127.0.0.1, host order; 0: nowhere.
    pub port4: u16,
    /// On ::1, host order; 0: nowhere.
    pub port6: u16,
    /// Explicit padding to 8 bytes.
    pub reserved: u32,
}

/// A workload's name, padded with NUL: the value of `WORKLOADS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(pub [u8; NAME_BYTES]);

/// Where the running kernel keeps what the hooks read of a task, in bytes from the start of each
/// struct. There is no CO-RE for Rust: the agent takes them from the kernel's BTF before loading.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `task_struct.group_leader`
    pub task_group_leader: u32,
    /// `task_struct.start_boottime`
    pub task_start: u32,
    /// `task_struct.mm`
    pub task_mm: u32,
    /// `mm_struct.exe_file`
    pub mm_exe_file: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `file.f_path.dentry`
    pub file_dentry: u32,
    /// `inode.i_ino`
    pub inode_ino: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// `super_block.s_dev`
    pub sb_dev: u32,
    /// `dentry.d_parent`
    pub dentry_parent: u32,
    /// `dentry.d_name.name`
    pub dentry_name: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `css_set.dfl_cgrp`
    pub set_cgroup: u32,
    /// `cgroup.level`
    pub cgroup_level: u32,
    /// `cgroup.kn`
    pub cgroup_node: u32,
    /// `cgroup.ancestors`
    pub cgroup_ancestors: u32,
    /// `cgroup.root`
    pub cgroup_root: u32,
    /// `cgroup_root.hierarchy_id`
    pub root_hierarchy: u32,
    /// `kernfs_node.id`
    pub node_id: u32,
    /// `kernfs_node.name`
    pub node_name: u32,
    /// `task_struct.nsproxy`
    pub task_namespaces: u32,
    /// `nsproxy.net_ns`
    pub namespaces_net: u32,
    /// `net.net_cookie`
    pub net_cookie: u32,
    /// `inode.i_ctime_sec`, or where `inode.i_ctime` and its seconds are
    pub inode_changed: u32,
    /// `inode.i_ctime_nsec`, or where those of `inode.i_ctime` are
    pub inode_changed_nanoseconds: u32,
    /// `bpf_sock_addr_kern.uaddr`
    pub address_pointer: u32,
    /// `bpf_sock_addr_kern.uaddrlen`; 0 where the kernel has no hooks for Unix sockets
    pub address_length: u32,
    /// `nsproxy.mnt_ns`
    pub namespaces_mounts: u32,
    /// `mnt_namespace.user_ns`
    pub mounts_user: u32,
    /// `task_struct.cred`
    pub task_credentials: u32,
    /// `cred.user_ns`
    pub credentials_user: u32,
    /// `user_namespace.level`
    pub user_level: u32,
    /// `file.private_data`
    pub file_private: u32,
    /// `inode.i_mode`
    pub inode_mode: u32,
    /// `socket.sk`
    pub socket_sk: u32,
    /// `sock.__sk_common.skc_family`
    pub sock_family: u32,
    /// `sock.__sk_common.skc_state`
    pub sock_state: u32,
    /// `sock.sk_cgrp_data.cgroup`
    pub sock_cgroup: u32,
    /// `sock.sk_protocol`
    pub sock_protocol: u32,
    /// `sock.__sk_common.skc_flags`
    pub sock_flags: u32,
    /// `sock.sk_kern_sock`, in bits
    pub sock_kernel: u32,
    /// `sock.__sk_common.skc_num`
    pub sock_port: u32,
    /// `sock.__sk_common.skc_dport`
    pub sock_peer_port: u32,
    /// `sock.__sk_common.skc_daddr`
    pub sock_peer4: u32,
    /// `sock.__sk_common.skc_v6_daddr`; 0 where the kernel has no IPv6
    pub sock_peer6: u32,
    /// `socket.file`
    pub socket_file: u32,
    /// `unix_sock.addr`; 0 where the kernel does not describe its Unix sockets, a module of it doing so
    pub unix_bound: u32,
    /// `unix_sock.peer`
    pub unix_peer: u32,
    /// `unix_address.len`
    pub bound_length: u32,
    /// `unix_address.name`
    pub bound_name: u32,
    /// `super_block.s_magic`
    pub sb_magic: u32,
    /// `vfsmount.mnt_sb`
    pub mount_sb: u32,
    /// Explicit padding to a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Settings>() == 4);
const _: () = assert!(size_of::<Ports>() == 8);
const _: () = assert!(size_of::<Name>() == 64);
const _: () = assert!(size_of::<Offsets>() == 216);
pod!(Settings, Ports, Name, Offsets);
