//! Which workload is the current task of, or a packet's socket?
use crate::{
    attribute::{OFFSETS, pointer, read},
    maps::{GOVERNED, SCOPE},
    recognise,
};
use aya_ebpf::{
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_skb_ancestor_cgroup_id},
    programs::SkBuffContext,
};
use tollgate_common::{
    limits::MAX_LEVEL,
    recognise::{EXEMPT, FILTER_WORDS, Scope, place},
};

/// Whose a task or a socket is.
#[derive(Clone, Copy)]
pub(crate) struct Governed {
    /// The governed cgroup by which that is known; [`MARKED`]: by what the process was before.
    pub(crate) cgroup: u64,
    /// Whose it is.
    pub(crate) workload: u32,
}

const NOBODY: Governed = Governed {
    cgroup: 0,
    workload: 0,
};

/// [`Governed::cgroup`] of who is governed without being in a governed cgroup: no cgroup's id.
pub(crate) const MARKED: u64 = 0;

/// Whose the current task is: that of the deepest governed cgroup above it, or else its own or its
/// parent's since it was in one.
#[inline(always)]
pub(crate) fn task() -> Option<Governed> {
    let mut found = NOBODY;
    find(&mut found);
    (found.workload != 0).then_some(found)
}

/// On a stack of its own: that of the connect hooks has no room for it.
#[inline(never)]
fn find(found: &mut Governed) {
    let Some(scope) = scope() else { return };
    let levels = levels(scope);
    if levels == 0 {
        return; // Nothing was ever governed on this host.
    }
    let mark = recognise::mark(recognise::current()).unwrap_or_default();
    if mark.workload() == EXEMPT {
        return;
    }
    // SAFETY: needed to call a helper; it takes any number and returns 0 below the task's depth.
    let ancestor = |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) };
    if let Some(deepest) = deepest(scope, levels, ancestor) {
        *found = deepest;
    } else if mark.is_governed() {
        found.cgroup = MARKED;
        found.workload = u32::from(mark.workload());
    }
}

/// The deepest governed cgroup above the one in which a packet's socket was made.
#[inline(always)]
pub(crate) fn socket(ctx: &SkBuffContext) -> Option<Governed> {
    let scope = scope()?;
    // SAFETY: as in `task`, with the context that the kernel passed.
    deepest(scope, levels(scope), |level| unsafe {
        bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level)
    })
}

/// The deepest governed cgroup above another task than the current one.
#[inline(always)]
pub(crate) fn other(task: u64) -> Option<Governed> {
    let scope = scope()?;
    let levels = levels(scope);
    if levels == 0 {
        return None;
    }
    let at = OFFSETS.load();
    // SAFETY: reads through a helper that checks the address.
    let cgroup = unsafe { pointer(pointer(task, at.task_cgroups)?, at.set_cgroup)? };
    deepest(scope, levels, |level| ancestor(cgroup, level).unwrap_or(0))
}

/// The id of a cgroup's ancestor at `level`, itself at its own.
#[inline(always)]
fn ancestor(cgroup: u64, level: i32) -> Option<u64> {
    let at = OFFSETS.load();
    // SAFETY: as in `other`; beyond its own level a cgroup has no ancestors to read.
    unsafe {
        if level > read::<i32>(cgroup, at.cgroup_level)? {
            return None;
        }
        let slot = at.cgroup_ancestors.wrapping_add(level as u32 * 8);
        read(pointer(pointer(cgroup, slot)?, at.cgroup_node)?, at.node_id)
    }
}

#[inline(always)]
fn scope() -> Option<*const Scope> {
    SCOPE.get_ptr(0)
}

#[inline(always)]
fn levels(scope: *const Scope) -> u64 {
    // SAFETY: the pointer is into a map value, which lives while the program runs; volatile because
    // others write it meanwhile.
    unsafe { core::ptr::read_volatile(&raw const (*scope).levels) }
}

/// May this cgroup be governed?
#[inline(always)]
fn may_be(scope: *const Scope, cgroup: u64) -> bool {
    let (word, bit) = place(cgroup);
    // SAFETY: as in `levels`; `word` is below the count of words.
    let known = unsafe {
        let words = (&raw const (*scope).filter).cast::<u64>();
        core::ptr::read_volatile(words.add(word & (FILTER_WORDS - 1)))
    };
    known & bit != 0
}

/// Only levels at which something is governed are asked, and only cgroups that may be governed are
/// looked up: who is not governed pays next to nothing, also with every packet.
#[inline(always)]
fn deepest(scope: *const Scope, levels: u64, ancestor: impl Fn(i32) -> u64) -> Option<Governed> {
    // Not an `Option`: the compiler keeps one's unset value on the stack, where the verifier finds "R2 !read_ok".
    let mut found = NOBODY;
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
        if !may_be(scope, cgroup) {
            continue;
        }
        if let Some(workload) = workload_of(cgroup) {
            found = Governed { cgroup, workload };
        }
    }
    (found.workload != 0).then_some(found)
}

/// Whose a cgroup is, if it is governed.
#[inline(always)]
pub(crate) fn workload_of(cgroup: u64) -> Option<u32> {
    // SAFETY: the value is read once; a removed entry's memory stays readable.
    let workload = unsafe { GOVERNED.get(cgroup) }?.workload;
    (workload != 0).then_some(workload)
}
