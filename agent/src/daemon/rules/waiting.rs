//! Who has run what was not known yet, and runs something else by now: settled by what it has run.
use super::super::digests::{At, Owner};
use super::super::places::{Place, Places};
use super::Rules;
use crate::kernel::{Fence, FileState, Ran};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// What is remembered of them.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// What nobody waited for when they were looked at last.
    idle: HashSet<u32>,
    /// Files that were told of as not to be found, as long as somebody waits for them: there are no more than the hooks have room for.
    unfound: HashSet<FileState>,
    places: Places,
    /// Of which class files are that the hooks have as unknown still, as far as this look has found.
    learned: HashMap<FileState, Option<u16>>,
    /// The process with which the next look begins: there was no time for what it waits for.
    next: u32,
    /// When they were settled last, and how long that took.
    last: Option<(Instant, Duration)>,
}

/// So many times as long as it took to settle them, before one who asks has them settled again: not all the agent's time is theirs.
const REST: u32 = 3;

impl Rules {
    /// The same as [`Self::settle_waiting`], or soon, where that has just been done: whoever waits can have it asked for all the time.
    pub(super) fn settle_waiting_soon(&mut self, fence: &Fence) {
        let last = self.waiting.last;
        match last.is_some_and(|(then, took)| then.elapsed() < took * REST) {
            true => self.learned().notify_one(),
            false => self.settle_waiting(fence),
        }
    }

    /// Settles all who wait for programs that are known by now, and has the others read. They may be many, and wait for the same.
    pub(super) fn settle_waiting(&mut self, fence: &Fence) {
        let Ok(mut waiting) = fence.waiting() else {
            return; // They wait for the next look.
        };
        let begun = Instant::now();
        self.waiting.places.look_again();
        waiting.sort_unstable();
        let next = std::mem::take(&mut self.waiting.next);
        let first = waiting.partition_point(|(process, _)| *process < next);
        waiting.rotate_left(first);
        let (mut wanted, mut all) = (HashSet::new(), HashMap::new());
        for (process, number) in waiting {
            let ran = all
                .entry(number)
                .or_insert_with(|| fence.waited_for(number));
            wanted.extend(ran.iter().map(|one| one.file));
            if ran.is_empty() {
                continue; // Nobody can say: it is refused.
            }
            match self.whose(fence, process, ran) {
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
        // At once: many may wait for many.
        if let Err(e) = fence.know_all_run(&std::mem::take(&mut self.waiting.learned)) {
            tracing::error!("who waits for programs that are known is refused still: {e}");
        }
        self.waiting.unfound.retain(|file| wanted.contains(file));
        self.waiting.places.keep(|file| wanted.contains(file));
        fence.forget_waiting(&mut self.waiting.idle);
        self.waiting.last = Some((Instant::now(), begun.elapsed()));
    }

    /// By which rule a process is whose, by what it has run: of several, the first. `None`: not all of that is known.
    fn whose(&mut self, fence: &Fence, process: u32, ran: &[Ran]) -> Option<Option<(u16, String)>> {
        for one in ran {
            let runs = self.fulfilled_by(fence, process, one)?;
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
    fn fulfilled_by(&mut self, fence: &Fence, process: u32, ran: &Ran) -> Option<Vec<usize>> {
        let file = &ran.file;
        let at = match self.executables.is_to_be_found(file) {
            // Where it lies and what it is called there says nothing.
            false => At::Process(process, None),
            true => self.place(fence, process, file)?,
        };
        // Another one may run it, and much else.
        let asks = Some(Owner::User(ran.uid));
        let fulfilled = self.executables.fulfils_for(asks, &at, file)?;
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
            self.waiting.learned.insert(*file, class);
        }
        Some(fulfilled)
    }

    fn place(&mut self, fence: &Fence, process: u32, file: &FileState) -> Option<At> {
        let waiting = &mut self.waiting;
        match waiting.places.of(process, file, || fence.path_within(file)) {
            Place::At(at) => return Some(at),
            Place::Nowhere if waiting.unfound.insert(*file) => tracing::warn!(
                process,
                inode = file.inode,
                "it has run a file that a rule could mean by its content, or at a path that cannot be looked at, and that is not to be found any more: until it is, the process and what it makes are refused"
            ),
            Place::NotYet if waiting.next == 0 => waiting.next = process,
            Place::Nowhere | Place::NotYet => {}
        }
        None
    }
}
