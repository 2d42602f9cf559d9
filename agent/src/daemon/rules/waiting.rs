//! Who has run what was not known yet, and runs something else by now: settled by what it has run.
use super::super::digests::At;
use super::super::places::Places;
use super::Rules;
use crate::kernel::{Fence, FileState, Ran};
use std::collections::{HashMap, HashSet};

/// What is remembered of them.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// What nobody waited for when they were looked at last.
    idle: HashSet<u32>,
    /// Files that were told of as not to be found, as long as somebody waits for them: there are no more than the hooks have room for.
    unfound: HashSet<FileState>,
}

impl Rules {
    /// Settles all who wait for programs that are known by now, and has the others read. They may be many, and wait for the same.
    pub(super) fn settle_waiting(&mut self, fence: &Fence) {
        let Ok(waiting) = fence.waiting() else {
            return; // They wait for the next look.
        };
        let (mut wanted, mut places) = (HashSet::new(), Places::default());
        let mut all = HashMap::new();
        for (process, number) in waiting {
            let ran = all
                .entry(number)
                .or_insert_with(|| fence.waited_for(number));
            wanted.extend(ran.iter().map(|one| one.file));
            if ran.is_empty() {
                continue; // Nobody can say: it is refused.
            }
            match self.whose(fence, &mut places, process, ran) {
                None => {}
                Some(None) => {
                    fence.waits_no_more(process, number);
                    self.enrol_again(fence, process);
                }
                Some(Some((rule, workload))) => {
                    if let Err(e) = fence.enrol_waiting(process, number, &workload, rule) {
                        tracing::error!(process, "not governed: {e}");
                    }
                }
            }
        }
        self.waiting.unfound.retain(|file| wanted.contains(file));
        fence.forget_waiting(&mut self.waiting.idle);
    }

    /// By which rule a process is whose, by what it has run: of several, the first. `None`: not all of that is known.
    fn whose(
        &mut self,
        fence: &Fence,
        places: &mut Places,
        process: u32,
        ran: &[Ran],
    ) -> Option<Option<(u16, String)>> {
        for one in ran {
            let runs = self.fulfilled_by(fence, places, process, one)?;
            let users = self.users.as_ref()?;
            let found = self
                .selectors
                .process(one.uid, &runs, one.conditions, users);
            if let Some((rule, workload)) = found {
                return Some(Some((rule, workload.to_owned())));
            }
        }
        Some(None)
    }

    /// Which of the named executables was run. `None`: that is not known yet.
    fn fulfilled_by(
        &mut self,
        fence: &Fence,
        places: &mut Places,
        process: u32,
        ran: &Ran,
    ) -> Option<Vec<usize>> {
        let file = &ran.file;
        let at = match self.executables.is_to_be_found(file) {
            // Where it lies and what it is called there says nothing.
            false => At::Process(process, None),
            true => self.place(fence, places, process, file)?,
        };
        let fulfilled = self.executables.fulfils(&at, file)?;
        // It may have been run by another name, or been called otherwise at the same moment.
        let path = fence.path_within(file);
        let name = path.as_deref().and_then(|path| path.rsplit('/').next());
        if fulfilled.is_empty() && self.executables.is_unclear(name) {
            return None;
        }
        if !ran.is_known {
            let class = self.executables.class(&fulfilled);
            if !self.has_rules_for(fence, class) {
                return None;
            }
            if let Err(e) = fence.know_run(file, class) {
                tracing::error!(process, "it is refused still: {e}");
            }
        }
        Some(fulfilled)
    }

    fn place(
        &mut self,
        fence: &Fence,
        places: &mut Places,
        process: u32,
        file: &FileState,
    ) -> Option<At> {
        let place = places.of(process, file, || fence.path_within(file));
        if place.is_none() && self.waiting.unfound.insert(*file) {
            tracing::warn!(
                process,
                inode = file.inode,
                "it has run a file that a rule could mean by its content, or at a path that cannot be looked at, and that is not to be found any more: until it is, the process and what it makes are refused"
            );
        }
        place
    }
}
