//! Who has run what was not known yet, and runs something else by now: settled by what it has run.
use super::super::digests::{At, place_of};
use super::Rules;
use crate::kernel::{Fence, FileState, Ran};
use std::collections::HashSet;

/// What is remembered of them.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// What nobody waited for when they were looked at last.
    idle: HashSet<u32>,
    /// Files that were told of as not to be found, as long as somebody waits for them: there are no more than the hooks have room for.
    unfound: HashSet<FileState>,
}

impl Rules {
    /// Settles all who wait for programs that are known by now, and has the others read.
    pub(super) fn settle_waiting(&mut self, fence: &Fence) {
        let mut wanted = HashSet::new();
        for (process, number) in fence.waiting() {
            let ran = fence.waited_for(number);
            wanted.extend(ran.iter().map(|one| one.file));
            if ran.is_empty() {
                continue; // Nobody can say: it is refused.
            }
            match self.whose(fence, process, &ran) {
                None => {}
                Some(None) => {
                    fence.waits_no_more(process, number);
                    self.enrol(fence, process);
                }
                Some(Some((rule, workload))) => {
                    if let Err(e) = fence.enrol(process, &workload, rule) {
                        tracing::error!(process, "not governed: {e}");
                    }
                }
            }
        }
        self.waiting.unfound.retain(|file| wanted.contains(file));
        fence.forget_waiting(&mut self.waiting.idle);
    }

    /// By which rule a process is whose, by what it has run: of several, the first. `None`: not all of that is known.
    fn whose(&mut self, fence: &Fence, process: u32, ran: &[Ran]) -> Option<Option<(u16, String)>> {
        for one in ran {
            let runs = self.fulfilled_by(fence, process, one)?;
            let found = self
                .selectors
                .process(one.uid, &runs, one.conditions, &self.users);
            if let Some((rule, workload)) = found {
                return Some(Some((rule, workload.to_owned())));
            }
        }
        Some(None)
    }

    /// Which of the named executables was run. `None`: that is not known yet.
    fn fulfilled_by(&mut self, fence: &Fence, process: u32, ran: &Ran) -> Option<Vec<usize>> {
        let file = &ran.file;
        let at = match self.executables.is_to_be_read(file) {
            // Where it lies says nothing.
            false => At::Process(process),
            true => self.place(fence, process, file)?,
        };
        let fulfilled = self.executables.fulfils(&at, file)?;
        if !ran.is_known {
            let class = self.executables.class(&fulfilled);
            if class.is_some_and(|class| !self.is_told(class)) {
                self.tell(fence);
            }
            if let Err(e) = fence.know_run(file, class) {
                tracing::error!(process, "it is refused still: {e}");
            }
        }
        Some(fulfilled)
    }

    fn place(&mut self, fence: &Fence, process: u32, file: &FileState) -> Option<At> {
        let place = place_of(process, file, fence.path_within(file).as_deref());
        if place.is_none() && self.waiting.unfound.insert(*file) {
            tracing::warn!(
                process,
                inode = file.inode,
                "it has run a file that a rule could mean by its content and that is not to be found any more: until it is, the process and what it makes are refused"
            );
        }
        place
    }
}
