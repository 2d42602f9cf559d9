//! Rules for who is in no governed cgroup: kept true to the policy, to the host's users and to the files that
//! executables are; processes that ran before a rule are enrolled.
mod fulfilling;
mod waiting;

use super::cgroups;
use super::digests::{At, changed, each_running, run_by, running, runs};
use super::executables::Executables;
use super::selectors::Selectors;
use super::troubles::Troubles;
use super::users::Database;
use crate::kernel::{
    Error, Fence, FileState, Handle, Recognition, has_ended, real_user, unless_short,
};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tollgate_policy::Policy;

/// Passes over the processes before the rest is left to the next walk.
const PASSES: usize = 16;
/// Walks at which they are asked for in any case.
const SCANS: usize = 3;
/// More walks at which they are, with fewer passes, while some fork and end too fast to be asked for; then they are left to the
/// hooks. On a host where programs come and go all the time that is a minute.
const MORE_SCANS: usize = 60;
const MORE_PASSES: usize = 4;

/// Processes that are asked at once.
const AT_ONCE: usize = 64;

/// A file that somebody runs: its inode, and when it was changed. Its device may be one that only a hook could tell.
type Run = (u64, (i64, u32));

/// How often those are asked for of whom it is not known what they run.
const LATE: Duration = Duration::from_secs(1);

/// After how long of not knowing it that is not what is to be expected.
const UNREAD: Duration = Duration::from_secs(3);

/// How long a new policy waits for the content of what runs to be read. Who runs a file whose is not is refused until it is.
const READING: Duration = Duration::from_secs(10);

/// What the policy recognises processes by, and what is known for that.
#[derive(Debug, Default)]
pub(super) struct Rules {
    policy: Option<String>,
    selectors: Selectors,
    /// Nothing is told before they have been read: what an earlier agent told by them stays in force.
    users: Option<Database>,
    executables: Executables,
    told: Option<Recognition>,
    /// Classes of which the hooks have the rules, be there none: a user may be absent.
    given: HashSet<u16>,
    fulfilling: fulfilling::Fulfilling,
    /// What the hooks are told is to be made again.
    stale: bool,
    /// The hooks may take files for what they were by the policy before.
    unclassed: bool,
    /// Other executables are named than when processes were marked.
    reclassed: bool,
    /// Why they were not told all of it.
    untold: Option<String>,
    /// What was said of selectors last.
    unresolved: Vec<String>,
    /// How often who runs already is to be asked for still: the hooks were told something else than before. The last
    /// [`MORE_SCANS`] of them only while not all were.
    scans: usize,
    /// Processes that may be a rule's by what they run, which is not known yet: as no hook asks for who does not connect, whether
    /// that can be read at last is asked here. Since when they are.
    late: HashMap<u32, Instant>,
    /// When they were last asked for.
    late_at: Option<Instant>,
    waiting: waiting::Waiting,
}

impl Rules {
    /// Takes up a policy, users and files that changed, and tells the hooks.
    pub(super) fn take_up(&mut self, fence: &Fence, policy: &Policy, troubles: &mut Troubles) {
        let is_new = self.policy.as_deref() != Some(policy.hash());
        if is_new {
            let next = Selectors::of(policy, &self.selectors, &fence.bits());
            let old = std::mem::replace(&mut self.selectors, next);
            self.fulfilling.is_new = true;
            self.fulfilling.is_left = true;
            let before = self.policy.replace(policy.hash().to_owned());
            if old.wants != self.selectors.wants {
                self.executables.want(&self.selectors.wants);
                if before.is_none() {
                    self.executables.take_over(&fence.known_executables());
                }
                self.unclassed = true;
                self.stale = true;
            }
        }
        if self.unclassed {
            let done = troubles.note("executables of the policy before", self.reclass(fence));
            self.unclassed = done.is_none();
        }
        // Who cannot be read about now is who he was.
        let users = match &self.users {
            Some(users) => users.again(),
            None => Database::read(),
        };
        let users = troubles.note("users in /etc/passwd", users);
        let users = users.or_else(|| self.users.clone()).or_else(|| {
            // What an earlier agent told by them stays, if there is such.
            let is_needed = self.selectors.names_users() && fence.has_rules();
            (!is_needed).then(Database::default)
        });
        let moved = !self.selectors.wants.is_empty() && self.executables.look_at_paths();
        let are_others = users != self.users;
        if moved {
            // Who runs what has come there since the last look may have been taken for nobody's, and is not asked for again.
            self.scan();
        }
        if is_new || moved || are_others {
            self.users = users;
            self.stale = true;
        }
        self.tell_of_unresolved();
        let mut read = Vec::new();
        if self.users.is_some() && !self.unclassed && std::mem::take(&mut self.stale) {
            self.untold = None;
            match self.tell_anew(fence) {
                Ok(found) => read = found,
                Err(e) => {
                    self.stale = true;
                    self.untold = Some(format!("processes cannot be listed: {e}"));
                }
            }
        }
        let told = self.untold.as_ref().map_or(Ok(()), Err);
        troubles.note("recognition by user, executable and path", told);
        read.extend(self.executables.digests.take());
        if !self.met(fence, &read) {
            self.settle_waiting(fence);
        }
    }

    /// Tells the hooks by what runs now. Returns what was read for that.
    ///
    /// # Errors
    /// It is not known what runs, and they go by what they were told before.
    fn tell_anew(&mut self, fence: &Fence) -> io::Result<Vec<(At, FileState)>> {
        let read = self.look_at_running(fence)?;
        if self.reclassed {
            // By the new rules a program may be of another class than its process's mark has.
            fence.forget_classes();
            // Who has begun one meanwhile was not asked about it yet.
            let begun = self.running()?;
            self.know_all(fence, &begun);
            self.reclassed = false;
        }
        self.tell(fence);
        Ok(read)
    }

    /// Has the hooks take no file for what it was by the policy before. What it is still it stays all the time.
    ///
    /// # Errors
    /// Some may be taken for that: the new rules are not told before it is done.
    fn reclass(&mut self, fence: &Fence) -> Result<(), Error> {
        let mut known = fence.known_executables();
        self.reclassed = true;
        // Of most it takes no more to say that they are nothing that is named.
        let may_be_named = self.executables.may_be_named();
        let are_known = self.executables.paths.are_known();
        known.retain(|(state, class)| {
            let is_nothing = are_known && class.is_none() && !may_be_named(state);
            !is_nothing && !self.executables.is_still(*class, state)
        });
        fence.know_no_more(&known)
    }

    /// Logs what selectors do not recognise as they are written, where that is new.
    fn tell_of_unresolved(&mut self) {
        let now = self.unresolved();
        for line in now.iter().filter(|line| !self.unresolved.contains(line)) {
            tracing::warn!("{line}");
        }
        self.unresolved = now;
    }

    /// Selectors by which nobody is recognised now, or not all the time, and why.
    pub(super) fn unresolved(&self) -> Vec<String> {
        let users = self.users.iter();
        let all = users.flat_map(|users| self.selectors.unresolved(users, &self.executables.paths));
        all.collect()
    }

    /// Do the hooks recognise by what was taken up last?
    pub(super) fn are_told(&self) -> bool {
        !self.stale
    }

    /// Tells the hooks what they recognise by now. In two steps where conditions of the policy before have bits that this one's
    /// need: in between, those whom it means by them are refused.
    fn tell(&mut self, fence: &Fence) {
        if self.tell_once(fence) && self.selectors.conditions.lack_bits() {
            match self.give_bits(fence) {
                Ok(()) => drop(self.tell_once(fence)),
                Err(why) => {
                    self.stale = true;
                    self.untold = Some(why);
                }
            }
        }
    }

    /// Whether they were told.
    fn tell_once(&mut self, fence: &Fence) -> bool {
        let own = cgroups::of_process(std::process::id()).unwrap_or_default();
        let own = own.into_iter().next().unwrap_or_default();
        let Some(users) = &self.users else {
            self.stale = true;
            return false;
        };
        let mut next = self
            .selectors
            .recognition(users, &self.executables.classes, &own);
        let others = self.executables.paths.other_names();
        next.exe_names.extend(others.cloned());
        if self.told.as_ref() == Some(&next) {
            self.untold = None;
            self.given = self.executables.classes.keys().copied().collect();
            return true;
        }
        self.fulfil_ahead(fence);
        match fence.recognise(&next) {
            Ok(()) => {
                self.told = Some(next);
                self.untold = None;
                self.given = self.executables.classes.keys().copied().collect();
                self.scan();
                true
            }
            Err(e) => {
                self.stale = true;
                self.untold = Some(e.to_string());
                // Part of it may be told, and part of what was told be gone.
                self.told = None;
                self.given.clear();
                self.scan();
                false
            }
        }
    }

    /// Tells when there is something to take up in between.
    pub(super) fn learned(&self) -> Arc<Notify> {
        Arc::clone(&self.executables.digests.learned)
    }

    /// Makes known what is at the paths that are named, and what every process runs. Returns what was read for that.
    fn look_at_running(&mut self, fence: &Fence) -> io::Result<Vec<(At, FileState)>> {
        if self.selectors.wants.is_empty() {
            return Ok(Vec::new());
        }
        let all = self.running()?;
        let begun = Instant::now();
        self.know_all(fence, &all);
        // Only where rules mean files otherwise is anything taken away that has to be known again at once; what else is not read yet is
        // unknown till it is, and nobody waits for it.
        let patience = if self.reclassed {
            READING
        } else {
            Duration::ZERO
        };
        let read = self.executables.digests.wait(begun, patience);
        self.know_all(fence, &read);
        Ok(read)
    }

    /// What every process runs, and what is at the paths that are named.
    fn running(&self) -> io::Result<Vec<(At, FileState)>> {
        let mut seen = HashSet::new();
        let mut all = self.executables.named();
        let running = crate::kernel::all_processes()?;
        all.extend(each_running(&running).filter_map(|(_, runs)| runs));
        all.retain(|(_, state)| seen.insert(*state));
        Ok(all)
    }

    fn know_all<'a>(
        &mut self,
        fence: &Fence,
        files: impl IntoIterator<Item = &'a (At, FileState)>,
    ) {
        let mut known = HashMap::new();
        for (at, state) in files {
            let Some(fulfilled) = self.executables.fulfils(at, state) else {
                continue;
            };
            let class = self.executables.class(&fulfilled);
            if self.has_rules_for(fence, class) {
                known.insert(*state, class);
            }
        }
        if let Err(e) = fence.know_all(&known) {
            tracing::error!("executables stay unknown, and what runs them is refused: {e}");
        }
    }

    /// Whether the hooks have the rules for a class, or have them now: a file of a class without would be nobody's.
    fn has_rules_for(&mut self, fence: &Fence, class: Option<u16>) -> bool {
        let Some(class) = class else { return true };
        // Once in a look: what cannot be told cannot for each of its files.
        if !self.is_told(class) && self.untold.is_none() && !self.unclassed {
            self.tell(fence);
        }
        self.is_told(class)
    }

    fn is_told(&self, class: u16) -> bool {
        self.given.contains(&class)
    }

    /// Looks at a file that a hook has not seen before, which `process` runs.
    pub(super) fn meet(&mut self, fence: &Fence, process: u32, seen: FileState) {
        if self.executables.look_at_paths() {
            self.stale = true;
            self.scan();
            self.learned().notify_one();
        }
        let Some(at) = runs(process, &seen) else {
            // It runs something else by now, or has ended: who waits for it is settled by where the file lies.
            return self.settle_waiting_soon(fence);
        };
        self.met(fence, &[(at, seen)]);
    }

    /// Makes files known that were not, and settles who waits; whether of one it is known what it is. Who runs it was refused until now, but may have made
    /// sockets: those are looked at, whether a hook or this says first whose it is.
    fn met(&mut self, fence: &Fence, files: &[(At, FileState)]) -> bool {
        let is_known =
            |(at, state): &&(At, FileState)| self.executables.fulfils(at, state).is_some();
        let files: Vec<&(At, FileState)> = files.iter().filter(is_known).collect();
        if files.is_empty() {
            return false;
        }
        let (Ok(mut free), Ok(waiting)) = (crate::kernel::all_processes(), fence.waiting()) else {
            return false; // Nobody could look at them: it stays unknown, and is asked for again.
        };
        free.retain(|process| fence.is_free(*process));
        self.know_all(fence, files.iter().copied());
        let met: HashSet<Run> = files
            .iter()
            .map(|(_, state)| (state.inode, state.changed))
            .collect();
        let mut unsettled = Vec::new();
        for (process, run) in run_by(free) {
            match run {
                Some(found) if !met.contains(&(found.stx_ino, changed(&found))) => {}
                Some(_) => unsettled.push(process),
                None if has_ended(process) => {}
                None => {
                    self.late.entry(process).or_insert_with(Instant::now);
                }
            }
        }
        for process in &unsettled {
            self.enrol_again(fence, *process);
        }
        self.settle_waiting(fence);
        let waiting = waiting.into_iter().map(|(process, _)| process);
        fence.look_again_at(unsettled.into_iter().chain(waiting));
        true
    }

    /// Has all who run asked for again.
    pub(super) fn scan(&mut self) {
        self.scans = SCANS + MORE_SCANS;
    }

    /// Enrols who ran before the rule that recognises it, those first that were made last: who forks and ends is found before
    /// it has.
    ///
    /// # Errors
    /// Not all of them are: they are asked for again.
    pub(super) fn enrol_running(&mut self, fence: &Fence) -> Result<(), String> {
        if !self.selectors.has_rules() {
            self.late.clear();
            return Ok(());
        }
        let of_late = self.enrol_late(fence);
        let of_all = self.enrol_scanned(fence);
        of_all.and(of_late).and(self.are_read())
    }

    /// An error: what some run has not been read for long. The hooks refuse them once they connect, and what they had connected before
    /// is not looked at.
    fn are_read(&self) -> Result<(), String> {
        let since_long = self
            .late
            .iter()
            .filter(|(_, since)| since.elapsed() > UNREAD);
        let mut unread: Vec<u32> = since_long.map(|(process, _)| *process).collect();
        unread.sort_unstable();
        let all = unread.len();
        unread.first().map_or(Ok(()), |first| {
            Err(format!("what {all} of them run, as process {first}, cannot be read, which a rule goes by: what they had connected before it goes on"))
        })
    }

    fn enrol_scanned(&mut self, fence: &Fence) -> Result<(), String> {
        if self.scans == 0 {
            return Ok(());
        }
        let is_more = self.scans <= MORE_SCANS;
        self.scans -= 1;
        for _ in 0..if is_more { MORE_PASSES } else { PASSES } {
            match self.enrol_once(fence) {
                Ok(true) => {}
                Ok(false) => {
                    if is_more {
                        self.scans = 0;
                    }
                    break;
                }
                Err(error) => {
                    self.scan();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Enrols those of whom it was not known what they run, where it is by now.
    fn enrol_late(&mut self, fence: &Fence) -> Result<(), String> {
        if self.late_at.is_some_and(|at| at.elapsed() < LATE) {
            return Ok(());
        }
        self.late_at = Some(Instant::now());
        let since = std::mem::take(&mut self.late);
        let all: Vec<u32> = since.keys().copied().collect();
        let all: Vec<u32> = all
            .into_iter()
            .filter(|process| fence.is_free(*process))
            .collect();
        let mut done = Ok(());
        for some in all.chunks(AT_ONCE) {
            for (process, found) in self.enrol_each(fence, some) {
                let Some(since) = since.get(&process) else {
                    continue;
                };
                if let Err(error) = found {
                    self.late.insert(process, *since);
                    done = Err(error);
                }
                self.late.entry(process).and_modify(|now| *now = *since);
            }
        }
        done
    }

    /// One pass; whether there may be more to enrol.
    fn enrol_once(&mut self, fence: &Fence) -> Result<bool, String> {
        let all = crate::kernel::all_processes();
        let mut all = all.map_err(|e| format!("/proc cannot be listed: {e}"))?;
        all.sort_unstable_by(|a, b| b.cmp(a));
        let (mut is_more, mut done) = (false, Ok(()));
        all.retain(|process| fence.is_free(*process));
        for some in all.chunks(AT_ONCE) {
            for (process, found) in self.enrol_each(fence, some) {
                match found {
                    Ok(found) => is_more = is_more || found || has_ended(process),
                    Err(error) => done = Err(error),
                }
            }
        }
        done.map(|()| is_more)
    }

    /// Of each of these, whether a rule recognises it, and it is governed by that from now on.
    fn enrol_each(&mut self, fence: &Fence, processes: &[u32]) -> Vec<(u32, Result<bool, String>)> {
        let runs: Vec<_> = match self.selectors.wants.is_empty() {
            true => processes.iter().map(|process| (*process, None)).collect(),
            false => each_running(processes).collect(),
        };
        let enrol = |(process, runs)| (process, self.enrol(fence, process, runs));
        runs.into_iter().map(enrol).collect()
    }

    /// Whether a rule recognises it, and it is governed by that from now on. `runs`: what it runs, if anybody can say.
    fn enrol(
        &mut self,
        fence: &Fence,
        process: u32,
        runs: Option<(At, FileState)>,
    ) -> Result<bool, String> {
        if fence.awaits(process).is_some() {
            return Ok(false); // What it has run before is asked for first.
        }
        let short = |e| format!("process {process} cannot be looked at: {e}");
        if let Some(None) = self.recognise(process, runs).map_err(short)? {
            return Ok(false);
        }
        // Its id may be another's by now: once it is held it is asked about again.
        let handle = match Handle::of(process) {
            Ok(Some(handle)) => handle,
            Ok(None) => return Ok(false),
            Err(e) => return Err(short(e)),
        };
        let has_wants = !self.selectors.wants.is_empty();
        let runs = has_wants.then(|| running(process)).flatten();
        let Some(found) = self.recognise(process, runs).map_err(short)? else {
            self.late.entry(process).or_insert_with(Instant::now);
            return Ok(false);
        };
        let Some((rule, workload)) = found else {
            return Ok(false);
        };
        match fence.enrol_handled(&handle, workload, rule) {
            Ok(newly) => Ok(!newly.is_empty()),
            Err(e) => Err(format!("process {process} is not governed: {e}")),
        }
    }

    /// The same, where the hooks ask for it again.
    fn enrol_again(&mut self, fence: &Fence, process: u32) {
        for (_, found) in self.enrol_each(fence, &[process]) {
            if let Err(error) = found {
                tracing::error!("{error}");
                self.scan();
            }
        }
    }

    /// `None`: that depends on what it runs, or on who or where it is, which is not known yet. `Some(None)`: no rule recognises it, or it is gone.
    ///
    /// # Errors
    /// Descriptors or memory are short.
    fn recognise(
        &mut self,
        process: u32,
        runs: Option<(At, FileState)>,
    ) -> io::Result<Option<Option<(u16, &str)>>> {
        if process <= 1 {
            return Ok(Some(None)); // The system's own manager: what it starts is looked at by itself.
        }
        let Some(uid) = unless_short(real_user(process))? else {
            return Ok(None);
        };
        let Some(uid) = uid else {
            return Ok(Some(None));
        };
        let runs = match self.selectors.wants.is_empty() {
            true => Some(Vec::new()),
            false => match runs {
                Some((at, state)) => self.executables.fulfils(&at, &state),
                None if has_ended(process) => return Ok(Some(None)),
                // Its filesystem says nothing to the agent.
                None => None,
            },
        };
        let Some(conditions) = unless_short(self.conditions(process))? else {
            return Ok(None);
        };
        let users = self.users.as_ref();
        let by = |runs: &[usize]| {
            users.and_then(|users| self.selectors.process(uid, runs, conditions, users))
        };
        if let Some(runs) = runs {
            return Ok(Some(by(&runs)));
        }
        // Whom a rule means whatever it runs, or none, is not waited for.
        let all: Vec<usize> = (0..self.selectors.wants.len()).collect();
        let found = by(&[]);
        Ok((found == by(&all)).then_some(found))
    }

    /// The digest of what a process runs, where it was taken.
    pub(super) fn digest_of(&self, process: u32) -> Option<String> {
        let (_, state) = running(process)?;
        self.executables.known_digest(&state).cloned()
    }

    /// A rule by its number, for a person.
    pub(super) fn describe(&self, rule: u16) -> Option<String> {
        self.selectors.describe(rule)
    }
}
