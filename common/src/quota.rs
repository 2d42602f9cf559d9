//! Byte quotas: what the agent sets and what the hooks count.
use crate::pod;

/// A workload's quota: the value of `QUOTAS`, by workload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes in a window.
    pub limit: u64,
    /// Length of a window, nanoseconds; 0: no quota.
    pub length: u64,
    /// The wall clock less the time since boot, nanoseconds: windows are counted from 1970.
    pub offset: u64,
}

/// What a workload has spent: the value of `SPENT`, by workload. The hooks count; the agent writes it only
/// while there is no quota.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Bytes that passed, ever; only added to.
    pub total: u64,
    /// `total` when window `epoch` began: the difference was spent in it.
    pub base: u64,
    /// The window: whole lengths since 1970.
    pub epoch: u64,
    /// When the agent was last told that something was dropped, nanoseconds since boot.
    pub told: u64,
    /// The window in which something was dropped, and the limit that it was too much for: nothing new
    /// begins in it until there is more.
    pub over: u64,
    /// See `over`.
    pub over_limit: u64,
}

const _: () = assert!(size_of::<Quota>() == 24);
const _: () = assert!(size_of::<Spent>() == 48);
pod!(Quota, Spent);
