//! How processes are recognised: what the hooks know of each, and by what the agent has them know it.
use crate::pod;

/// Every process id that a kernel gives (`PID_MAX_LIMIT`): with an entry for each, `PROCESSES` is never full.
pub const MAX_PROCESSES: u32 = 4 << 20;
/// Words of [`Scope::filter`].
pub const FILTER_WORDS: usize = 64;

/// What is known of one process: a value of `PROCESSES`, at its thread-group id.
///
/// Governed: the workload, 16 bits; how it came to be, 16 bits; when, 32 bits, in seconds since boot. Otherwise 16 bits of
/// zero, 16 bits of what executable it runs, and 32 bits that say for what the rules were last asked in vain.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub u64);

/// [`Mark::workload`] of the agent itself, which nothing steers.
pub const EXEMPT: u16 = u16::MAX;
/// Workloads have ids below this one: a mark has 16 bits for them.
pub const WORKLOAD_IDS: u32 = EXEMPT as u32;
/// [`Mark::how`]: it was in a governed cgroup.
pub const BY_CGROUP: u16 = 0;
/// [`Mark::how`], a bit: its parent was what the rest says, and it inherited.
pub const INHERITED: u16 = 1 << 15;

impl Mark {
    /// Of a governed process; `seconds` since boot.
    #[inline(always)]
    pub const fn governed(workload: u16, how: u16, seconds: u32) -> Self {
        Self(workload as u64 | (how as u64) << 16 | (seconds as u64) << 32)
    }

    /// Of a process that is not governed and runs an executable of this class.
    #[inline(always)]
    pub const fn running(class: u16) -> Self {
        Self((class as u64) << 16)
    }

    /// Whose it is; 0: nobody's.
    #[inline(always)]
    pub const fn workload(self) -> u16 {
        self.0 as u16
    }

    /// How it came to be governed: [`BY_CGROUP`], or a rule's number and 1; [`INHERITED`].
    #[inline(always)]
    pub const fn how(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// When, in seconds since boot.
    #[inline(always)]
    pub const fn seconds(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Is it a workload's?
    #[inline(always)]
    pub const fn is_governed(self) -> bool {
        !matches!(self.workload(), 0 | EXEMPT)
    }

    /// Of a child of this process, made at `seconds`.
    #[inline(always)]
    pub const fn inherited(self, seconds: u32) -> Self {
        match self.workload() {
            EXEMPT => Self(0),
            0 => self,
            workload => Self::governed(workload, self.how() | INHERITED, seconds),
        }
    }
}

/// Where something may be governed: the one entry of `SCOPE`. Hooks and agent write it at the same time: bits are only ever
/// added, atomically, so that a change never hides something else.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Bit N: some governed subtree may have its root at cgroup level N.
    pub levels: u64,
    /// Bits of [`place`] of every governed cgroup: one whose bit is not set is not governed, and need not be looked up.
    pub filter: [u64; FILTER_WORDS],
}

/// Where a cgroup's bit is in [`Scope::filter`]: the word, and its bit. Ids are numbers that follow each other.
#[inline(always)]
pub const fn place(cgroup: u64) -> (usize, u64) {
    (
        cgroup as usize & (FILTER_WORDS - 1),
        1 << ((cgroup / FILTER_WORDS as u64) & 63),
    )
}

/// A governed cgroup subtree: a value of `GOVERNED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subtree {
    /// Key into `WORKLOADS`; 0: only `conditions` are known of it.
    pub workload: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// Bit N: the N-th condition on cgroups holds in it.
    pub conditions: u64,
}

const _: () = assert!(size_of::<Mark>() == 8);
const _: () = assert!(size_of::<Scope>() == 8 + 8 * FILTER_WORDS);
const _: () = assert!(size_of::<Subtree>() == 16);
const _: () = assert!(crate::limits::MAX_WORKLOADS < WORKLOAD_IDS);
pod!(Mark, Scope, Subtree);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_inherits_all_but_exemption() {
        let parent = Mark::governed(7, BY_CGROUP, 100);
        let child = parent.inherited(101);
        assert!(child.is_governed());
        assert_eq!((child.workload(), child.seconds()), (7, 101));
        assert_eq!(child.how(), BY_CGROUP | INHERITED);
        assert_eq!(child.inherited(102).how(), BY_CGROUP | INHERITED);
        assert_eq!(Mark::governed(EXEMPT, 0, 1).inherited(2), Mark(0));
        assert_eq!(Mark::running(3).inherited(2), Mark::running(3));
        assert!(!Mark::running(u16::MAX).is_governed());
        assert!(!Mark::governed(EXEMPT, 0, 1).is_governed());
    }

    #[test]
    fn every_cgroup_has_a_place_in_the_filter() {
        assert_eq!(place(0), (0, 1));
        assert_eq!(place(65), (1, 2));
        assert_eq!(place(u64::MAX), (63, 1 << 63));
    }
}
