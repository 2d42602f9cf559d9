//! Which workload is the current task of, or a packet's socket?
use crate::maps::{GOVERNED, SETTINGS};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_skb_ancestor_cgroup_id},
    programs::SkBuffContext,
};
use tollgate_common::{
    limits::MAX_LEVEL,
    settings::{Settings, filter},
};

/// The agent's settings. Read each field through the pointer once: they change while we run.
#[inline(always)]
pub(crate) fn settings() -> Option<*const Settings> {
    SETTINGS.get_ptr(0)
}

/// A governed cgroup.
#[derive(Clone, Copy)]
pub(crate) struct Governed {
    /// Its id.
    pub(crate) cgroup: u64,
    /// Whose it is.
    pub(crate) workload: u32,
}

/// The deepest governed cgroup above the current task.
#[inline(always)]
pub(crate) fn task() -> Option<Governed> {
    // SAFETY: needed to call a helper; it takes any number and returns 0 below the task's depth.
    deepest(|level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

/// The deepest governed cgroup above the one in which a packet's socket was made.
#[inline(always)]
pub(crate) fn socket(ctx: &SkBuffContext) -> Option<Governed> {
    // SAFETY: as in `task`, with the context that the kernel passed.
    deepest(|level| unsafe { bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level) })
}

/// Only levels at which something is governed are asked, and only cgroups that may be governed are
/// looked up: who is not governed pays next to nothing, also with every packet.
#[inline(always)]
fn deepest(ancestor: impl Fn(i32) -> u64) -> Option<Governed> {
    // SAFETY: the pointer is into a map value, which lives while the program runs; volatile because
    // the agent writes it meanwhile.
    let (levels, known) = unsafe {
        let settings = settings()?;
        (
            core::ptr::read_volatile(&raw const (*settings).levels),
            core::ptr::read_volatile(&raw const (*settings).filter),
        )
    };
    let mut found = None;
    for level in 0..MAX_LEVEL {
        let rest = levels >> level;
        if rest == 0 {
            break;
        }
        if rest & 1 == 0 {
            continue;
        }
        let cgroup = ancestor(level as i32);
        if cgroup == 0 {
            break;
        }
        if filter(cgroup) & known == 0 {
            continue;
        }
        if let Some(workload) = workload_of(cgroup) {
            found = Some(Governed { cgroup, workload });
        }
    }
    found
}

/// Whose a cgroup is, if it is governed.
#[inline(always)]
pub(crate) fn workload_of(cgroup: u64) -> Option<u32> {
    // SAFETY: the value is one word, read once; a removed entry's memory stays readable.
    unsafe { GOVERNED.get(cgroup) }.copied()
}
