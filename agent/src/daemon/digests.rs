//! Digests of files, of which each is taken beside all else: whoever serves a file (FUSE, NFS) may answer late or never, and nobody
//! else is to wait for that. How a file is, the kernel says without asking its filesystem.
use super::content::{self, Content};
use crate::kernel::FileState;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Digests that are remembered.
const DIGESTS: usize = 65_536;
/// Files that are read at once.
const AT_ONCE: usize = 8;
/// One that takes longer has its place taken by the next, as long as there are not too many of them.
const LATE: Duration = Duration::from_secs(30);
const AT_ONCE_WITH_LATE: usize = 64;
/// Files that wait to be read. Who runs another is refused, and asks again.
const WAITING: usize = 4_096;

/// Where a file can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    Path(PathBuf),
    /// What this process runs.
    Process(u32),
}

/// A file that was read; without content where it was gone, changed or could not be.
struct Done {
    at: At,
    state: FileState,
    content: Option<Content>,
}

/// What is known of files' content, and who is about to know more.
#[derive(Debug)]
pub(super) struct Digests {
    known: HashMap<FileState, Content>,
    waiting: VecDeque<(At, FileState)>,
    /// Since when.
    reading: HashMap<FileState, Instant>,
    done: Receiver<Done>,
    tell: Sender<Done>,
    /// How one is read.
    pub(super) reader: fn(&Path, &FileState) -> Option<Content>,
    /// Tells that [`Self::take`] has something.
    pub(super) learned: Arc<Notify>,
}

impl Default for Digests {
    fn default() -> Self {
        let (tell, done) = channel();
        Self {
            known: HashMap::new(),
            waiting: VecDeque::new(),
            reading: HashMap::new(),
            done,
            tell,
            reader: content::read_beside,
            learned: Arc::default(),
        }
    }
}

impl Digests {
    /// What a file had in it while it was in this state, where that was read.
    pub(super) fn known(&self, state: &FileState) -> Option<&Content> {
        self.known.get(state)
    }

    /// Has a file read that is to be found there, if that is not under way.
    pub(super) fn ask(&mut self, at: &At, state: &FileState) {
        let is_asked = self.reading.contains_key(state)
            || self.waiting.iter().any(|(_, waiting)| waiting == state);
        if !is_asked && self.waiting.len() < WAITING {
            self.waiting.push_back((at.clone(), *state));
            self.go_on();
        }
    }

    /// The files that were read since they were taken last, and where.
    pub(super) fn take(&mut self) -> Vec<(At, FileState)> {
        let mut taken = Vec::new();
        while let Ok(done) = self.done.try_recv() {
            taken.extend(self.learn(done));
        }
        // Some may be late by now.
        self.go_on();
        taken
    }

    /// The same, once all are read that were asked for `since` then: waits for those no longer than so.
    pub(super) fn wait(&mut self, since: Instant, at_most: Duration) -> Vec<(At, FileState)> {
        let until = Instant::now() + at_most;
        let mut taken = self.take();
        while self.reading.values().any(|begun| *begun >= since) {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(done) = self.done.recv_timeout(left) else {
                break;
            };
            taken.extend(self.learn(done));
            self.go_on();
        }
        taken
    }

    fn learn(&mut self, done: Done) -> Option<(At, FileState)> {
        self.reading.remove(&done.state);
        let content = done.content?;
        if self.known.len() >= DIGESTS {
            self.known.clear();
        }
        self.known.insert(done.state, content);
        Some((done.at, done.state))
    }

    /// Begins to read as many as may be read.
    fn go_on(&mut self) {
        let now = Instant::now();
        let late = |since: &&Instant| now.duration_since(**since) > LATE;
        let mut free = (AT_ONCE + self.reading.values().filter(late).count())
            .min(AT_ONCE_WITH_LATE)
            .saturating_sub(self.reading.len());
        while free > 0
            && let Some((at, state)) = self.waiting.pop_front()
        {
            let (tell, learned) = (self.tell.clone(), Arc::clone(&self.learned));
            let reader = self.reader;
            let read = move || {
                let content = match &at {
                    At::Path(path) => reader(path, &state),
                    At::Process(process) => reader(&runs(*process), &state),
                };
                // Nobody listens any more: the agent ends.
                let _ = tell.send(Done { at, state, content });
                learned.notify_one();
            };
            // Without a thread it is asked for again.
            if std::thread::Builder::new().spawn(read).is_ok() {
                self.reading.insert(state, Instant::now());
                free -= 1;
            }
        }
    }
}

fn runs(process: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{process}/exe"))
}

/// What a process runs, and how the kernel last knew that file to be.
pub(super) fn running(process: u32) -> Option<FileState> {
    Some(state(&seen(CWD, runs(process))?, Some(process)))
}

/// Does a process run this file? Its device may be one that only a hook could tell.
pub(super) fn is_running(process: u32, state: &FileState) -> bool {
    let found = seen(CWD, runs(process));
    found.is_some_and(|found| (found.stx_ino, changed(&found)) == (state.inode, state.changed))
}

/// What lies at a path. A link into another process's view of the files is not followed: who may write there could have one lead to
/// files that it serves itself.
pub(super) fn lying_at(path: &Path) -> io::Result<FileState> {
    let (flags, links) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_MAGICLINKS);
    let found = rustix::fs::openat2(CWD, path, flags, Mode::empty(), links)?;
    let seen = seen(found, "").ok_or(io::ErrorKind::NotFound)?;
    Ok(state(&seen, None))
}

/// How the kernel last knew a regular file to be: its filesystem is not asked, which might never answer.
fn seen(beside: impl AsFd, path: impl rustix::path::Arg) -> Option<Statx> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::EMPTY_PATH;
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::CTIME | StatxFlags::MNT_ID;
    let found = rustix::fs::statx(beside, path, flags, wanted).ok()?;
    let kind = FileType::from_raw_mode(found.stx_mode.into());
    kind.is_file().then_some(found)
}

fn changed(found: &Statx) -> (i64, u32) {
    (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec)
}

/// `of`: through whose view of the mounts it was found.
fn state(found: &Statx, of: Option<u32>) -> FileState {
    let own = || (found.stx_dev_major << 20) | found.stx_dev_minor;
    FileState {
        device: device(found.stx_mnt_id, of).unwrap_or_else(own),
        inode: found.stx_ino,
        changed: changed(found),
    }
}

/// The device of a mount's filesystem, as the mount table has it. What `stat` says of files is another one on Btrfs and on some
/// overlays.
fn device(mount: u64, of: Option<u32>) -> Option<u32> {
    let own = mounted(Path::new("/proc/self/mountinfo"), mount);
    own.or_else(|| mounted(Path::new(&format!("/proc/{}/mountinfo", of?)), mount))
}

/// The third field of the mount's line: `major:minor`.
fn mounted(table: &Path, mount: u64) -> Option<u32> {
    let (table, mount) = (std::fs::read_to_string(table).ok()?, mount.to_string());
    let line = table
        .lines()
        .find(|line| line.split(' ').next() == Some(&mount))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some((major.parse::<u32>().ok()? << 20) | minor.parse::<u32>().ok()?)
}
