//! Processes that wait until it is known what they, or who made them, have run. By that they are recognised, whatever they run by
//! now: the hooks do it when one connects, and the agent before.
use super::recognise::{entries, told};
use super::{Error, Fence, FileState, Ran, maps::write, processes, translate};
use std::collections::{HashMap, HashSet};
use std::io;
use tollgate_common::recognise::{MAX_BEFORE, Mark, UNKNOWN, Waiting};

/// `BPF_EXIST`
const EXIST: u64 = 2;
/// `BPF_NOEXIST`: a hook may have given the number to another by then.
const NO_EXIST: u64 = 1;

impl Fence {
    /// Processes that wait, and the number of what each waits for.
    ///
    /// # Errors
    /// The system's word: not all of them are known.
    pub fn waiting(&self) -> io::Result<Vec<(u32, u32)>> {
        if self.maps.write().waiting.keys().next().is_none() {
            return Ok(Vec::new());
        }
        let awaits = |process| Some((process, self.awaits(process)?));
        Ok(processes::all_ids()?
            .into_iter()
            .filter_map(awaits)
            .collect())
    }

    /// What a process waits for, if it does.
    pub fn awaits(&self, process: u32) -> Option<u32> {
        self.marks.get(process).awaits()
    }

    /// The programs that are waited for under this number, in the order in which they were run; none: nobody can say any more.
    pub fn waited_for(&self, number: u32) -> Vec<Ran> {
        let writers = self.maps.write();
        let (mut found, mut next) = (Vec::new(), number);
        while next != 0 && found.len() < MAX_BEFORE as usize {
            let Ok(one) = writers.waiting.get(&next, 0) else {
                return Vec::new();
            };
            next = one.before;
            found.push(Ran {
                file: state(&one),
                uid: one.uid,
                conditions: one.conditions,
                is_known: one.class as u16 != UNKNOWN,
            });
        }
        found.reverse();
        found
    }

    /// By what it has run, a process that waits under this number is nobody's: what it runs now is asked for.
    pub fn waits_no_more(&self, process: u32, number: u32) {
        self.marks
            .replace(process, Mark::waiting(number), Mark::running(UNKNOWN));
    }

    /// Says of which class files are that are waited for; `None`: of none.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn know_all_run(&self, files: &HashMap<FileState, Option<u16>>) -> Result<(), Error> {
        if files.is_empty() {
            return Ok(());
        }
        self.say(|one| files.get(&state(one)).map(|class| told(*class)))
    }

    /// Forgets of which classes those are.
    pub(super) fn forget_run(&self) {
        // What stays known is what it was.
        let _ = self.say(|_| Some(u32::from(UNKNOWN)));
    }

    fn say(&self, class: impl Fn(&Waiting) -> Option<u32>) -> Result<(), Error> {
        let mut writers = self.maps.write();
        let new = |(number, one): (u32, Waiting)| {
            let class = class(&one).filter(|class| *class != one.class)?;
            Some((number, Waiting { class, ..one }))
        };
        let all: Vec<(u32, Waiting)> = entries(&writers.waiting).filter_map(new).collect();
        for (number, one) in all {
            let told = writers.waiting.insert(number, one, EXIST);
            told.map_err(write("WAITING"))?;
        }
        Ok(())
    }

    /// Where a file was within its filesystem when it was run, as far as that is known.
    pub fn path_within(&self, file: &FileState) -> Option<String> {
        translate::path_within(file.inode, file.device, &self.maps.paths)
    }

    /// Makes room of what nobody waits for: now, and at the call before, which left it in `idle`. Where it is not known who waits, all
    /// of it may be waited for.
    pub fn forget_waiting(&self, idle: &mut HashSet<u32>) {
        let all: HashMap<u32, Waiting> = entries(&self.maps.write().waiting).collect();
        let Ok(used) = self.used(&all) else {
            return idle.clear();
        };
        let unused: HashSet<u32> = all.keys().filter(|n| !used.contains(n)).copied().collect();
        let gone: Vec<u32> = unused.intersection(idle).copied().collect();
        for number in &gone {
            let _ = self.maps.write().waiting.remove(number);
        }
        // A hook may have taken one up meanwhile.
        let used = self.used(&all);
        let is_used = |number: &&u32| used.as_ref().map_or(true, |used| used.contains(number));
        for number in gone.iter().filter(is_used) {
            if let Some(one) = all.get(number) {
                let _ = self.maps.write().waiting.insert(number, one, NO_EXIST);
            }
        }
        *idle = unused;
    }

    /// What processes wait for, with what was run before.
    fn used(&self, all: &HashMap<u32, Waiting>) -> io::Result<HashSet<u32>> {
        let mut used = HashSet::new();
        if all.is_empty() {
            return Ok(used);
        }
        let processes = processes::all_ids()?.into_iter();
        for mut number in processes.filter_map(|process| self.awaits(process)) {
            while let Some(one) = all.get(&number) {
                if !used.insert(number) {
                    break;
                }
                number = one.before;
            }
        }
        Ok(used)
    }
}

fn state(one: &Waiting) -> FileState {
    FileState {
        device: one.file.device,
        inode: one.file.inode,
        changed: (one.seconds, one.nanoseconds),
    }
}
