//! Processes that were there before what governs them: their marks are the agent's to write, once; from then on
//! the hooks keep them.
mod reader;
mod status;

pub(super) use self::reader::keep_one;
pub use self::reader::owner;
pub use self::status::{has_ended, real_user, threads};
use super::missed::unless_short;
use super::{Error, Evidence, Fence, GovernedProcess, bounded, cgroup, sys};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tollgate_common::recognise::{BY_CGROUP, EXEMPT, INHERITED, Mark};

/// Passes over the processes before the rest is left to the hooks: each finds what forked during the one before.
const PASSES: usize = 64;

/// Nanoseconds in a tick of [`began`]: `USER_HZ` is 100 on every architecture that eBPF in Rust is built for.
pub(super) const TICK: u64 = 10_000_000;

/// One process, as `/proc` tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) process: u32,
    pub(super) parent: u32,
}

/// What `/proc` says of a process at its own directory or, since that says nothing of a program once the first thread has ended, at
/// another thread's.
pub fn of_process<T>(process: u32, ask: impl Fn(&str) -> Option<T>) -> Option<T> {
    first_of(process, |at| Ok(ask(at))).ok().flatten()
}

/// The same where it may be that nobody can say now. Who is gone has nothing.
fn first_of<T>(process: u32, ask: impl Fn(&str) -> io::Result<Option<T>>) -> io::Result<Option<T>> {
    let own = format!("/proc/{process}");
    if let Some(found) = ask(&own)? {
        return Ok(Some(found));
    }
    for thread in unless_short(threads(process))?.unwrap_or_default() {
        if let Some(found) = ask(&format!("{own}/task/{thread}"))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The file that a process runs: device and inode. Its filesystem is not asked how the file is by now: one that the process
/// itself serves (FUSE) might never answer. Neither might the kernel: to be asked by [`bounded`].
pub(super) fn executable(process: u32) -> Option<(u64, u64)> {
    let ask = |at: &str| {
        let (at, flags) = (format!("{at}/exe"), AtFlags::STATX_DONT_SYNC);
        rustix::fs::statx(CWD, at, flags, StatxFlags::INO).ok()
    };
    let found = of_process(process, ask)?;
    let device = rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor);
    Some((device, found.stx_ino))
}

/// The path of the file that a process runs, as it was when that began. To be asked by [`bounded`].
pub fn program(process: u32) -> Option<PathBuf> {
    of_process(process, |at| std::fs::read_link(format!("{at}/exe")).ok())
}

/// When a process began, in clock ticks since boot. To be asked by [`bounded`].
pub(super) fn began(process: u32) -> Option<u64> {
    let text = reader::read(&format!("/proc/{process}"), "stat").ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name, in parentheses, may hold anything.
    let mut fields = text.rsplit(')').next()?.split_whitespace();
    fields.nth(19)?.parse().ok()
}

/// A process, whoever has its id by now.
#[derive(Debug)]
pub struct Handle {
    process: u32,
    handle: OwnedFd,
}

impl Handle {
    /// `None`: it is gone.
    ///
    /// # Errors
    /// Descriptors or memory are short.
    pub fn of(process: u32) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(process).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let opened = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from);
        let handle = unless_short(opened)?;
        Ok(handle.map(|handle| Self { process, handle }))
    }

    /// Has it ended? Then its id may be another's.
    fn has_ended(&self) -> bool {
        // Of whom nobody can say he stays governed.
        has_it_ended(&self.handle).unwrap_or(false)
    }
}

fn has_it_ended(handle: &OwnedFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(handle, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut polled, Some(&Timespec::default())) {
            // A signal of the agent's own, as one to reload.
            Err(Errno::INTR) => {}
            known => return Ok(known? > 0),
        }
    }
}

/// Has the process ended that connected a Unix socket? Then its id may be another's, and may have been. A kernel before 6.5 does not say:
/// it has not.
///
/// # Errors
/// Descriptors or memory are short.
pub fn has_peer_ended(socket: &impl AsFd) -> io::Result<bool> {
    match sys::peer(socket.as_fd()) {
        Ok(handle) => has_it_ended(&handle),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(false),
        other => unless_short(other).map(|handle| handle.is_none()),
    }
}

fn handle(process: u32) -> Result<Option<Handle>, Error> {
    Handle::of(process).map_err(|source| unread(format!("/proc/{process}"), source))
}

/// It was not looked at whose processes are.
pub(super) fn unread(path: impl Into<PathBuf>, source: io::Error) -> Error {
    Error::Pin {
        action: "look at the processes of",
        path: path.into(),
        source,
    }
}

impl Fence {
    /// Marks what was running in a governed subtree, and what that has made since, wherever it is now. Returns
    /// who was not governed before.
    ///
    /// # Errors
    /// Not all of that is marked, for want of descriptors or memory.
    pub(super) fn enrol_subtree(&self, directory: &Path, workload: u16) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for _ in 0..PASSES {
            let members = cgroup::members(directory)?;
            let before = found.len();
            for process in members {
                let Some(handle) = Handle::of(process)? else {
                    continue;
                };
                if self.mark(&handle, workload, BY_CGROUP) {
                    found.push(process);
                }
            }
            if found.len() == before {
                break; // Nobody there, or the hooks have seen them come.
            }
            found.extend(self.enrol_descendants()?);
        }
        Ok(found)
    }

    /// Governs a process that was there before the rule by which it is recognised, and what it has made. Returns
    /// who was not governed before.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn enrol(&self, pid: u32, workload: &str, rule: u16) -> Result<Vec<u32>, Error> {
        match handle(pid)? {
            Some(process) => self.enrol_handled(&process, workload, rule),
            None => Ok(Vec::new()),
        }
    }

    /// The same of one that was taken hold of before it was recognised: its id may be another one's by now.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn enrol_handled(
        &self,
        process: &Handle,
        workload: &str,
        rule: u16,
    ) -> Result<Vec<u32>, Error> {
        self.enrol_process(process, workload, rule, |_| true)
    }

    /// The same of a process that waits under this number, and only while it does: its id may be another one's by now.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn enrol_waiting(
        &self,
        pid: u32,
        number: u32,
        workload: &str,
        rule: u16,
    ) -> Result<Vec<u32>, Error> {
        let Some(process) = handle(pid)? else {
            return Ok(Vec::new());
        };
        self.enrol_process(&process, workload, rule, |mark| {
            mark.awaits() == Some(number)
        })
    }

    /// Marks a process that a rule recognises, if its mark is such a one, and what it has made. Returns who was not governed before.
    fn enrol_process(
        &self,
        process: &Handle,
        workload: &str,
        rule: u16,
        only: impl Fn(Mark) -> bool,
    ) -> Result<Vec<u32>, Error> {
        let ids = self.workload_ids(&mut self.maps.write(), std::iter::once(workload))?;
        let id = ids.get(workload).and_then(|id| u16::try_from(*id).ok());
        let mut found = Vec::new();
        if id.is_some_and(|id| self.mark_if(process, id, rule.saturating_add(1), only)) {
            found.push(process.process);
            let made = self.enrol_descendants();
            found.extend(made.map_err(|source| unread("/proc", source))?);
        }
        Ok(found)
    }

    /// See [`Self::enrol_descendants`].
    pub(super) fn mark_descendants(&self) -> io::Result<Vec<u32>> {
        let (mut found, mut silent) = (Vec::new(), None);
        for _ in 0..PASSES {
            let mut known = listed()?;
            let before = found.len();
            self.enrol_children(&known, &mut found, &mut silent)?;
            // Only who has come since is looked at: to look at all takes longer than one lives that forks all the time.
            for _ in 0..PASSES {
                let now = listed()?;
                let is_new = |process: &u32| known.binary_search(process).is_err();
                let new: Vec<u32> = now.iter().copied().filter(is_new).collect();
                if self.enrol_children(&new, &mut found, &mut silent)? {
                    break;
                }
                known = now;
            }
            if found.len() == before {
                break;
            }
        }
        silent.map_or(Ok(found), Err)
    }

    /// Marks those of `processes` whose parents are governed, each as soon as it is looked at. Whether there was none, and
    /// none that ended before. Of whom nothing is said keeps no others from it.
    fn enrol_children(
        &self,
        processes: &[u32],
        found: &mut Vec<u32>,
        silent: &mut Option<io::Error>,
    ) -> io::Result<bool> {
        let before = found.len();
        let mut rest = Vec::new();
        let mut all_there = true;
        for process in processes {
            match look(*process) {
                Ok(Some(one)) if self.inherits(one)? => found.push(*process),
                Ok(Some(one)) => rest.push(one),
                Ok(None) => all_there = false,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => *silent = Some(error),
                Err(error) => return Err(error),
            }
        }
        // Whose parent has a higher number.
        loop {
            let others = rest.len();
            for one in std::mem::take(&mut rest) {
                match self.inherits(one)? {
                    true => found.push(one.process),
                    false => rest.push(one),
                }
            }
            if rest.len() == others {
                return Ok(all_there && found.len() == before);
            }
        }
    }

    /// Marks a process as its parent is; whether it was nobody's before.
    fn inherits(&self, one: Seen) -> io::Result<bool> {
        let parent = self.marks.get(one.parent);
        if !parent.is_governed() || self.leaves(parent) || !self.is_free(one.process) {
            return Ok(false);
        }
        let handle = Handle::of(one.process)?;
        let how = parent.how() | INHERITED;
        Ok(handle.is_some_and(|handle| self.mark(&handle, parent.workload(), how)))
    }

    /// Marks a process as a workload's; whether it was nobody's before. Another workload's takes the new mark
    /// too, where its cgroup says so.
    fn mark(&self, process: &Handle, workload: u16, how: u16) -> bool {
        self.mark_if(process, workload, how, |_| true)
    }

    fn mark_if(
        &self,
        handle: &Handle,
        workload: u16,
        how: u16,
        only: impl Fn(Mark) -> bool,
    ) -> bool {
        let process = handle.process;
        loop {
            let old = self.marks.get(process);
            let is_held = old.is_governed() && !self.leaves(old);
            let stays = old.workload() == EXEMPT || (is_held && how != BY_CGROUP);
            if stays || old.workload() == workload || !only(old) {
                return false;
            }
            let new = Mark::governed(workload, how, seconds_since_boot()).after(old);
            let new = match is_held {
                true => new,
                false => new.to_be_looked_at(),
            };
            if !self.marks.replace(process, old, new) {
                continue;
            }
            if handle.has_ended() {
                // Its id may be another process's by now, which the hooks had marked, or not.
                self.marks.replace(process, new, old);
                return false;
            }
            return !is_held;
        }
    }

    /// Does no workload of the policy have it, and no rule?
    pub fn is_free(&self, process: u32) -> bool {
        let mark = self.marks.get(process);
        !mark.is_governed() || self.leaves(mark)
    }

    /// Is it of a workload that policy lets go of at this moment?
    fn leaves(&self, mark: Mark) -> bool {
        self.leaving.load().contains(&u32::from(mark.workload()))
    }

    /// Processes that the agent has governed while they ran, and what those have made since, of which nobody has looked at what
    /// they have open.
    ///
    /// # Errors
    /// The system's word.
    pub fn unseen(&self) -> io::Result<Vec<u32>> {
        let mut all = all_ids()?;
        all.retain(|process| self.marks.get(*process).is_to_be_looked_at());
        Ok(all)
    }

    /// The ids of all processes that are governed.
    ///
    /// # Errors
    /// The system's word: not all of them are known.
    pub fn governed_ids(&self) -> io::Result<Vec<u32>> {
        let mut all = all_ids()?;
        all.retain(|process| self.marks.get(*process).is_governed());
        Ok(all)
    }

    /// Has all who are governed looked at.
    ///
    /// # Errors
    /// The system's word: not all of them are known.
    pub fn look_again_at_all(&self) -> io::Result<()> {
        self.look_again_at(self.governed_ids()?);
        Ok(())
    }

    /// Has these processes looked at, if they are governed.
    pub fn look_again_at(&self, processes: impl IntoIterator<Item = u32>) {
        let governed = |mark: Mark| mark.is_governed().then(|| mark.to_be_looked_at());
        for process in processes {
            self.marks.change(process, governed);
        }
    }

    /// They were looked at.
    pub fn has_seen(&self, processes: impl IntoIterator<Item = u32>) {
        let seen = |mark: Mark| mark.is_to_be_looked_at().then(|| mark.looked_at());
        for process in processes {
            self.marks.change(process, seen);
        }
    }

    /// Nothing steers this process: it is the agent itself. Whose id an earlier agent had is none: only one is at these pins.
    pub(super) fn exempt_self(&self) {
        let process = std::process::id();
        self.marks
            .clear_but(process, |mark| mark.workload() == EXEMPT);
        let exempt = Mark::governed(EXEMPT, BY_CGROUP, seconds_since_boot());
        while !self.marks.replace(process, self.marks.get(process), exempt) {}
    }

    /// Whom no hook was shown has the mark of who had its id before, be it an agent's.
    pub(super) fn exempt_nobody_else(&self) {
        let exempt = |mark: Mark| (mark.workload() == EXEMPT).then_some(Mark(0));
        // Once a second: who could not be listed is at the next.
        let all = all_ids().unwrap_or_default().into_iter();
        for process in all.filter(|process| *process != std::process::id()) {
            self.marks.change(process, exempt);
        }
    }

    /// The next process with this one's id is not the agent: the kernel may not show it to the hooks.
    pub(super) fn exempt_no_more(&self) {
        let exempt = |mark: Mark| (mark.workload() == EXEMPT).then_some(Mark(0));
        self.marks.change(std::process::id(), exempt);
    }

    pub(super) fn processes(&self) -> io::Result<Vec<GovernedProcess>> {
        let governed = self.governed_ids()?;
        let programs = bounded::each(governed.clone(), program);
        let mut all = Vec::new();
        for (process, exe) in governed.into_iter().zip(programs) {
            let seen = match look(process) {
                // Nothing is said of its parent.
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    Some(Seen { process, parent: 0 })
                }
                seen => seen?,
            };
            all.extend(seen.and_then(|seen| self.governed_process(seen, exe)));
        }
        all.sort_by(|a, b| (&a.workload, a.pid).cmp(&(&b.workload, b.pid)));
        Ok(all)
    }

    /// Whoever was in a governed cgroup, and is in none now. What cannot be looked at counts: on nobody being there a fence is lifted.
    pub(super) fn gone_astray(&self) -> usize {
        let governed = self.all_governed().into_iter();
        let governed: Vec<String> = governed.filter_map(|one| one.cgroup).collect();
        let is_by_cgroup = |process: &u32| {
            let mark = self.marks.get(*process);
            mark.is_governed() && mark.how() & !INHERITED == BY_CGROUP
        };
        let Ok(all) = all_ids() else {
            return 1;
        };
        let marked = all.into_iter().filter(is_by_cgroup);
        marked
            .filter(|process| is_astray(*process, &governed) && !has_ended(*process))
            .count()
    }

    /// `exe`: `None` where the kernel does not say.
    fn governed_process(&self, one: Seen, exe: Option<Option<PathBuf>>) -> Option<GovernedProcess> {
        let mark = self.marks.get(one.process);
        if !mark.is_governed() {
            return None;
        }
        let exe = match exe {
            Some(exe) => exe?.to_string_lossy().into_owned(),
            None => "unknown".to_owned(),
        };
        let since = super::translate::time(u64::from(mark.seconds()).saturating_mul(1_000_000_000));
        Some(GovernedProcess {
            pid: one.process,
            parent: one.parent,
            exe,
            workload: self.names.workload(u32::from(mark.workload())).to_string(),
            since: since.try_into().ok()?,
            inherited: mark.how() & INHERITED != 0,
            evidence: match mark.how() & !INHERITED {
                BY_CGROUP => Evidence::Cgroup,
                rule => Evidence::Rule(rule - 1),
            },
        })
    }

    pub(super) fn workload_of_process(&self, process: u32) -> Option<String> {
        let mark = self.marks.get(process);
        let name = |mark: Mark| self.names.workload(u32::from(mark.workload())).to_string();
        mark.is_governed().then(|| name(mark))
    }
}

/// Whether a process may be in none of those cgroups.
fn is_astray(process: u32, cgroups: &[String]) -> bool {
    // The kernel gives no path that is too long.
    let Ok(table) = std::fs::read(format!("/proc/{process}/cgroup")) else {
        return true;
    };
    let mut lines = table.split(|byte| *byte == b'\n');
    let own = lines.find_map(|line| line.strip_prefix(b"0::"));
    let own = own.map(|path| Path::new(OsStr::from_bytes(path)));
    !own.is_some_and(|own| cgroups.iter().any(|cgroup| own.starts_with(cgroup)))
}

/// The ids of every process that `/proc` shows.
///
/// # Errors
/// The system's word: not all of them are known.
pub fn all_ids() -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        found.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(found)
}

/// The ids, in order.
fn listed() -> io::Result<Vec<u32>> {
    let mut ids = all_ids()?;
    ids.sort_unstable();
    Ok(ids)
}

/// One process, if it is there.
pub(super) fn look(process: u32) -> io::Result<Option<Seen>> {
    let parent = unless_short(status::parent(process))?.flatten();
    Ok(parent.map(|parent| Seen { process, parent }))
}

fn seconds_since_boot() -> u32 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u32::try_from(now.tv_sec).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn who_has_ended_is_told_from_who_cannot_be_looked_at() {
        let own = std::process::id();
        assert!(!has_ended(own) && has_ended(0));
        let cgroup = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let cgroup = cgroup.lines().find_map(|line| line.strip_prefix("0::"));
        assert!(!is_astray(own, &[cgroup.unwrap().to_owned()]));
        assert!(is_astray(own, &["/elsewhere".to_owned()]) && is_astray(0, &[]));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let began = std::time::Instant::now();
        while !has_ended(child.id()) {
            assert!(began.elapsed().as_secs() < 30, "it is not seen to end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait().unwrap();
    }

    #[test]
    fn proc_tells_of_this_process() {
        let own = look(std::process::id()).unwrap().unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
        assert!(began(own.process).unwrap() > 0);
        assert_eq!(look(0).unwrap(), None);
    }

    #[test]
    fn a_peer_is_there_for_as_long_as_its_process() {
        let (own, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(!has_peer_ended(&own).unwrap());
        assert!(has_peer_ended(&std::fs::File::open("/dev/null").unwrap()).unwrap());
    }

    #[test]
    fn who_is_held_is_told_from_who_has_the_id_next() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let handle = Handle::of(child.id()).unwrap().unwrap();
        assert!(!handle.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(handle.has_ended() && Handle::of(child.id()).unwrap().is_none());
    }
}
