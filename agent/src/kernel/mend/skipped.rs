//! Tracepoints at which the kernel did not call the program.
use super::super::hooks::TRACEPOINT;
use super::super::{Fence, sys};
use std::collections::BTreeMap;

impl Fence {
    /// How often the kernel has skipped each tracepoint's program since this agent loaded it. It runs no such program within itself
    /// on one processor: where tracepoints may be preempted (from Linux 6.19 on), not for a process that comes to one while another
    /// is within its program. Of whom a hook was skipped nothing was seen: look at [`Self::governed_processes`] again, with
    /// [`Self::enrol_descendants`] and [`Self::end_earlier`]. Kernels before 5.12 do not count.
    pub fn skipped(&self) -> BTreeMap<&'static str, u64> {
        let programs = self.programs.loaded.iter();
        let traced = programs.filter(|program| program.hook.attach == TRACEPOINT);
        // What cannot be asked now is asked again with the next check.
        let counts = traced.filter_map(|program| {
            let count = sys::recursion_misses(&program.fd).ok()?;
            Some((program.hook.name, count))
        });
        counts.collect()
    }
}
