//! Which workload is the current task of?
use crate::maps::{GOVERNED, SETTINGS};
use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use tollgate_common::{limits::MAX_LEVEL, settings::Settings};

/// The agent's settings. Read each field through the pointer once: they change while we run.
#[inline(always)]
pub(crate) fn settings() -> Option<*const Settings> {
    SETTINGS.get_ptr(0)
}

/// The workload of the deepest governed cgroup above the current task. Only levels at which
/// something is governed are asked, so that a host with nothing governed pays for one map look-up.
#[inline(always)]
pub(crate) fn workload() -> Option<u32> {
    // SAFETY: the pointer is into a map value, which lives while the program runs; volatile because
    // the agent writes it meanwhile.
    let levels = unsafe { core::ptr::read_volatile(&raw const (*settings()?).levels) };
    if levels == 0 {
        return None;
    }
    for above in 0..MAX_LEVEL {
        let level = MAX_LEVEL - 1 - above;
        if (levels >> level) & 1 == 0 {
            continue;
        }
        // SAFETY: needed to call a helper; it takes any number and returns 0 below the task's depth.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if id == 0 {
            continue;
        }
        // SAFETY: the value is one word, read once; a removed entry's memory stays readable.
        if let Some(workload) = unsafe { GOVERNED.get(id) } {
            return Some(*workload);
        }
    }
    None
}
