//! Which conditions cgroups fulfil, as the hooks have it. While these may still go by the rules of the policy before, bits are only
//! added to a cgroup's: whom those rules mean stays theirs, and whom the next ones mean is theirs from their first moment on.
use super::super::cgroups;
use super::super::containers::Container;
use super::Rules;
use crate::kernel::{Error, Fence};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Fulfilling {
    /// Containers that are known, by their cgroups.
    contained: HashMap<String, Container>,
    /// Conditions that cgroups fulfil, as the hooks were told. `None`: they are to be asked for that.
    told: Option<HashMap<String, u64>>,
    /// Cgroups have not been looked at by the conditions of this policy.
    pub(super) is_new: bool,
    /// They may have bits that only the policy before had.
    pub(super) is_left: bool,
}

impl Rules {
    /// Says which conditions each cgroup fulfils. Returns those of which the hooks could not be told, and why.
    pub(in super::super) fn settle(
        &mut self,
        fence: &Fence,
        directories: &[PathBuf],
        contained: &HashMap<String, Container>,
    ) -> Vec<(String, Error)> {
        let mut untold = Vec::new();
        if self.fulfilling.contained != *contained {
            self.fulfilling.contained.clone_from(contained);
            self.scan();
        }
        if self.are_told() && self.fulfilling.is_left {
            // Also from cgroups that are seen no more, and from those that were made while the policy was taken up.
            match fence.keep_bits(self.selectors.conditions.bits()) {
                Ok(()) => self.fulfilling.is_left = false,
                Err(e) => untold.push(("/".to_owned(), e)),
            }
            self.fulfilling.told = None;
        }
        self.fulfil(fence, directories, &mut untold);
        untold
    }

    /// Says it of these, of which `untold` becomes those of which it could not be.
    fn fulfil(
        &mut self,
        fence: &Fence,
        directories: &[PathBuf],
        untold: &mut Vec<(String, Error)>,
    ) {
        let (root, is_told) = (fence.cgroup_root(), self.are_told());
        let told = self.fulfilling.told.take();
        let mut told = told.unwrap_or_else(|| fence.fulfilled().into_iter().collect());
        let mut next = HashMap::new();
        for directory in directories {
            let Ok(below) = directory.strip_prefix(root) else {
                continue;
            };
            let cgroup = format!("/{}", below.display());
            let before = told.remove(&cgroup).unwrap_or_default();
            let wanted = match (self.fulfilled(&cgroup), is_told) {
                (wanted, true) => wanted,
                (wanted, false) => wanted | before,
            };
            if wanted == 0 && before == 0 {
                continue;
            }
            let done = match is_told {
                true => fence.fulfils(Path::new(&cgroup), wanted),
                false => fence.fulfils_also(Path::new(&cgroup), wanted),
            };
            match done {
                Ok(_) if wanted == 0 => {}
                Ok(_) => drop(next.insert(cgroup, wanted)),
                Err(e) if e.is_of_a_cgroup_gone() => {}
                Err(e) => {
                    untold.push((cgroup.clone(), e));
                    next.insert(cgroup, before);
                }
            }
        }
        // Not all that there are may have been seen.
        let is_there = |cgroup: &str| root.join(cgroup.trim_start_matches('/')).exists();
        next.extend(told.into_iter().filter(|(cgroup, _)| is_there(cgroup)));
        self.fulfilling.told = Some(next);
    }

    /// The same before rules go by it that the hooks do not have yet. What cannot be told now is settled after.
    pub(super) fn fulfil_ahead(&mut self, fence: &Fence) {
        if !std::mem::take(&mut self.fulfilling.is_new) || self.selectors.conditions.bits() == 0 {
            return;
        }
        let also = |cgroup: String| {
            let wanted = self.fulfilled(&cgroup);
            if wanted != 0 {
                let _ = fence.fulfils_also(Path::new(&cgroup), wanted);
            }
        };
        cgroups::all(fence.cgroup_root()).into_iter().for_each(also);
    }

    /// Gives bits to conditions that have none, once no rule has those of the policy before.
    ///
    /// # Errors
    /// There are still not enough.
    pub(super) fn give_bits(&mut self, fence: &Fence) -> Result<(), String> {
        let kept = self.selectors.conditions.bits();
        fence.keep_bits(kept).map_err(|e| e.to_string())?;
        // What was told by their former meaning must not be told again.
        self.fulfilling.told = None;
        self.selectors.conditions.give_bits(&fence.bits());
        self.fulfilling.is_new = true;
        match self.selectors.conditions.lack_bits() {
            true => Err("conditions on cgroups of the policy before are still in use".to_owned()),
            false => Ok(()),
        }
    }

    /// What holds for the cgroup that a process is in: for it or for one above it.
    ///
    /// # Errors
    /// Nobody can say now.
    pub(super) fn conditions(&self, process: u32) -> io::Result<u64> {
        let above = cgroups::of_process(process)?;
        let each = above.iter().map(|cgroup| self.fulfilled(cgroup));
        Ok(each.fold(0, |all, bits| all | bits))
    }

    /// Conditions that a cgroup itself fulfils, as a container or by its path.
    fn fulfilled(&self, cgroup: &str) -> u64 {
        let container = self.fulfilling.contained.get(cgroup);
        self.selectors.fulfilled(cgroup, container)
    }
}
