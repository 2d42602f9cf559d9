//! Digests of files, of which each is taken beside all else: whoever serves a file (FUSE, NFS) may answer late or never, and nobody
//! else is to wait for that. How a file is, the kernel says without asking its filesystem.
mod queue;

pub(super) use self::queue::Owner;
use self::queue::{Asked, Queue, Reading};
use super::content::{self, Content, LARGE};
use super::mounts::{are_too_many, device};
use crate::kernel::{FileState, bounded, of_process, real_user};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Digests that are remembered.
const DIGESTS: usize = 65_536;
/// How soon one that could not be read is read again.
const AGAIN: Duration = Duration::from_secs(1);
/// Files that are remembered as such.
const FAILED: usize = 4_096;

/// Where a file can be opened, with its name as that was when the file was found there: by now another one may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum At {
    Path(PathBuf),
    /// What this process runs.
    Process(u32, Option<String>),
    /// It is held, whatever becomes of its name.
    Held(Held, Option<String>),
}

impl At {
    /// What the file was called there in the state in which it was found; `None`: nobody can say.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Path(path) => path.file_name()?.to_str(),
            Self::Process(_, name) | Self::Held(_, name) => name.as_deref(),
        }
    }

    /// In whose name it is read where nobody else asks. `None`: who runs it cannot be said to be anybody's now.
    fn owner(&self) -> Option<Owner> {
        match self {
            Self::Path(_) | Self::Held(..) => Some(Owner::Named),
            Self::Process(process, _) => real_user(*process).ok()?.map(Owner::User),
        }
    }

    /// Is it a file that takes long to be read?
    fn is_large(&self) -> bool {
        let found = match self {
            Self::Path(_) => None, // Its filesystem could have to be asked.
            Self::Process(process, _) => run_by(vec![*process]).pop().and_then(|(_, found)| found),
            Self::Held(Held(file), _) => look(file, "").ok(),
        };
        found.is_some_and(|found| found.stx_size > LARGE)
    }
}

/// A file that is open, though not to be read.
#[derive(Debug, Clone)]
pub(super) struct Held(pub(super) Arc<OwnedFd>);

impl Held {
    /// Where it can be opened, by others too.
    fn path(&self) -> PathBuf {
        let (own, file) = (std::process::id(), self.0.as_raw_fd());
        PathBuf::from(format!("/proc/{own}/fd/{file}"))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Held {}

/// A file that was read; without content where it was gone, changed or could not be.
struct Done {
    at: At,
    state: FileState,
    owner: Owner,
    content: Option<Content>,
}

/// A file that could not be read: in whose name, and whether by what was held or by what a process ran.
type Failed = (FileState, Owner, bool);

/// What is known of files' content, and who is about to know more.
#[derive(Debug)]
pub(super) struct Digests {
    known: HashMap<FileState, Content>,
    waiting: Queue,
    reading: HashMap<FileState, Reading>,
    done: Receiver<Done>,
    tell: Sender<Done>,
    /// When that was.
    failed: HashMap<Failed, Instant>,
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
            waiting: Queue::default(),
            reading: HashMap::new(),
            failed: HashMap::new(),
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

    /// Has a file read that is to be found there, if that is not under way. `owner`: who asks for it, where that is not who runs it
    /// there.
    pub(super) fn ask(&mut self, at: &At, state: &FileState, owner: Option<Owner>) {
        if self.reading.contains_key(state) {
            return;
        }
        let Some(owner) = owner.or_else(|| at.owner()) else {
            return; // It has ended.
        };
        let failed = (*state, owner, matches!(at, At::Held(..)));
        let failed = self.failed.get(&failed);
        let is_asked =
            self.waiting.has(owner, state) || failed.is_some_and(|at| at.elapsed() < AGAIN);
        if !is_asked {
            self.waiting.add(Asked {
                at: at.clone(),
                state: *state,
                owner,
                is_large: at.is_large(),
            });
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
        while self.reading.values().any(|one| one.since >= since) {
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
        let Some(content) = done.content else {
            if self.failed.len() >= FAILED {
                self.failed.clear();
            }
            let is_held = matches!(done.at, At::Held(..));
            let failed = (done.state, done.owner, is_held);
            self.failed.insert(failed, Instant::now());
            return None;
        };
        if self.known.len() >= DIGESTS {
            self.known.clear();
        }
        self.known.insert(done.state, content);
        Some((done.at, done.state))
    }

    /// Begins to read as many as may be read.
    fn go_on(&mut self) {
        while let Some(next) = self.waiting.next(self.reading.values()) {
            // In another's name it is, or was.
            let is_asked = self.reading.contains_key(&next.state);
            if !is_asked && !self.known.contains_key(&next.state) {
                self.begin(next);
            }
        }
    }

    /// Begins to read one. Without a thread it is asked for again.
    fn begin(&mut self, asked: Asked) {
        let (tell, learned) = (self.tell.clone(), Arc::clone(&self.learned));
        let reader = self.reader;
        let Asked {
            at,
            state,
            owner,
            is_large,
        } = asked;
        let read = move || {
            let content = match &at {
                At::Path(path) => reader(path, &state),
                At::Process(process, _) => reader(&program_of(*process), &state),
                At::Held(held, _) => reader(&held.path(), &state),
            };
            // Nobody listens any more: the agent ends.
            let _ = tell.send(Done {
                at,
                state,
                owner,
                content,
            });
            // Also of one that could not be: its place is the next one's.
            learned.notify_one();
        };
        if std::thread::Builder::new().spawn(read).is_ok() {
            let since = Instant::now();
            let reading = Reading {
                since,
                owner,
                is_large,
            };
            self.reading.insert(state, reading);
        }
    }
}

/// Where what a process runs can be opened.
fn program_of(process: u32) -> PathBuf {
    let at = of_process(process, |at| {
        let at = PathBuf::from(format!("{at}/exe"));
        std::fs::read_link(&at).is_ok().then_some(at)
    });
    at.unwrap_or_default()
}

/// What a process runs, and how the kernel last knew that file to be: of one file, whatever the process becomes meanwhile. `None`:
/// nobody can say now.
pub(super) fn running(process: u32) -> Option<(At, FileState)> {
    each_running(&[process]).next()?.1
}

/// Processes that are asked at once: what they run is open meanwhile, and descriptors may be short.
const ASKED: usize = 1;

/// The same of each of these processes.
pub(super) fn each_running(
    processes: &[u32],
) -> impl Iterator<Item = (u32, Option<(At, FileState)>)> {
    let some = processes.chunks(ASKED);
    some.flat_map(|some| {
        let runs = bounded::each(some.to_vec(), run_now).into_iter();
        let known = some.iter().copied().zip(runs);
        known.map(|(process, run)| {
            (
                process,
                run.flatten().and_then(|run| known_as(process, run)),
            )
        })
    })
}

fn known_as(process: u32, run: Run) -> Option<(At, FileState)> {
    let device = device_of(&run.found, process);
    if device.is_none() && are_too_many() {
        return None; // Another device than it has would be another file's.
    }
    let state = state(&run.found, device);
    Some((At::Process(process, run.name), state))
}

/// The same, if it is this file.
pub(super) fn runs(process: u32, file: &FileState) -> Option<At> {
    let run = bounded::of(process, run_now).ok()??;
    content::is_it(file, &run.found, process).then_some(At::Process(process, run.name))
}

/// A file that a process runs.
struct Run {
    found: Statx,
    name: Option<String>,
    /// While it is open its mount is there, and no other has that one's number. `None`: there are no more descriptors.
    _open: Option<OwnedFd>,
}

fn run_now(process: u32) -> Option<Run> {
    of_process(process, |at| {
        let at = format!("{at}/exe");
        let open = rustix::fs::open(&at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok();
        let (found, name) = match &open {
            Some(file) => name_of(file)?,
            // Nobody can say what it is called.
            None => (look(CWD, at).ok()?, None),
        };
        Some(Run {
            found,
            name,
            _open: open,
        })
    })
}

/// How an open file is, and what it is called as it is. `None`: it could have been called otherwise when it was like that. Another name
/// changes a file, but for a change within the same tick of the clock; and one that is mounted by itself is shown as what it is
/// mounted on, as whoever has a namespace of his own may have it.
pub(super) fn name_of(file: &OwnedFd) -> Option<(Statx, Option<String>)> {
    let found = look(file, "").ok()?;
    let called = || {
        let by_itself = StatxAttributes::MOUNT_ROOT;
        if found.stx_attributes.contains(by_itself) || content::is_fresh(changed(&found)) {
            return None;
        }
        let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        let now = look(file, "").ok()?;
        let name = path.file_name()?.to_str()?;
        let name = name.strip_suffix(" (deleted)").unwrap_or(name);
        (changed(&now) == changed(&found)).then(|| name.to_owned())
    };
    let name = called();
    Some((found, name))
}

/// The device of the filesystem that a file is on, found through this process's view of the mounts.
pub(super) fn device_of(found: &Statx, process: u32) -> Option<u32> {
    device(found.stx_mnt_id, own_device(found), process)
}

pub(super) fn own_device(found: &Statx) -> u32 {
    (found.stx_dev_major << 20) | found.stx_dev_minor
}

/// What each of these processes runs. `None`: nobody can say now.
pub(super) fn run_by(processes: Vec<u32>) -> Vec<(u32, Option<Statx>)> {
    let ask = |process| of_process(process, |at| look(CWD, format!("{at}/exe")).ok());
    let runs = bounded::each(processes.clone(), ask).into_iter();
    let each = processes.into_iter().zip(runs);
    each.map(|(process, run)| (process, run.flatten()))
        .collect()
}

/// How the kernel last knew a regular file to be: its filesystem is not asked, which might never answer.
pub(super) fn look(beside: impl AsFd, path: impl rustix::path::Arg) -> io::Result<Statx> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::EMPTY_PATH;
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::CTIME | StatxFlags::SIZE;
    let wanted = wanted | StatxFlags::MNT_ID;
    let found = rustix::fs::statx(beside, path, flags, wanted)?;
    match FileType::from_raw_mode(found.stx_mode.into()).is_file() {
        true => Ok(found),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

pub(super) fn changed(found: &Statx) -> (i64, u32) {
    (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec)
}

/// A file as it was found. `device`: its mount's, where that is known. What `stat` says of files is another one on Btrfs and on some
/// overlays.
pub(super) fn state(found: &Statx, device: Option<u32>) -> FileState {
    FileState {
        device: device.unwrap_or_else(|| own_device(found)),
        inode: found.stx_ino,
        changed: changed(found),
    }
}
