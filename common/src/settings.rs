//! What the agent tells the hooks.
use crate::{limits::NAME_BYTES, pod};

/// The one entry of `SETTINGS`. The hooks read its fields one by one; each is a single load.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// [`crate::ABI`] of whoever made the maps; 0 until the first start is complete.
    pub abi: u32,
    /// Bit N: some subtree whose root is at cgroup level N is governed. Bits are only ever added,
    /// so a change never hides another subtree.
    pub levels: u32,
    /// The agent's port on 127.0.0.1, host order; 0: none.
    pub port4: u16,
    /// The agent's port on ::1, host order; 0: none.
    pub port6: u16,
    /// Explicit padding to 16 bytes.
    pub reserved: u32,
    /// [`filter`] of every cgroup governed, together: one whose bit is not set is not governed, and
    /// need not be looked up. Bits are only ever added, as with `levels`.
    pub filter: u64,
}

/// A cgroup's bit in [`Settings::filter`]. Ids are numbers that follow each other.
#[inline(always)]
pub const fn filter(cgroup: u64) -> u64 {
    1 << (cgroup & 63)
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
    /// Explicit padding to a multiple of 8.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Settings>() == 24);
const _: () = assert!(size_of::<Name>() == 64);
const _: () = assert!(size_of::<Offsets>() == 48);
pod!(Settings, Name, Offsets);
