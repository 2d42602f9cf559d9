//! Digests of files, of which each is taken beside all else: whoever serves a file (FUSE, NFS) may answer late or never, and nobody
//! else is to wait for that. How a file is, the kernel says without asking its filesystem.
use super::content::{self, Content};
use crate::kernel::{FileState, unescape};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
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
    /// It is held, whatever becomes of its name.
    Held(Held),
}

impl At {
    /// What the file is called there.
    pub(super) fn name(&self) -> Option<String> {
        let path = match self {
            Self::Path(path) => path.clone(),
            Self::Process(process) => std::fs::read_link(runs(*process)).ok()?,
            Self::Held(held) => std::fs::read_link(held.path()).ok()?,
        };
        let name = path.file_name()?.to_str()?;
        Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
    }
}

/// A file that is open, though not to be read.
#[derive(Debug, Clone)]
pub(super) struct Held(Arc<OwnedFd>);

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
        let room = match at {
            At::Held(_) => AT_ONCE_WITH_LATE, // Each has a descriptor.
            _ => WAITING,
        };
        if !is_asked && self.waiting.len() < room {
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
                    At::Held(held) => reader(&held.path(), &state),
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
    let found = look(CWD, runs(process)).ok()?;
    Some(state(&found, device(found.stx_mnt_id, process)))
}

/// Does a process run this file? Its device may be one that only a hook could tell.
pub(super) fn is_running(process: u32, state: &FileState) -> bool {
    let found = look(CWD, runs(process));
    found.is_ok_and(|found| (found.stx_ino, changed(&found)) == (state.inode, state.changed))
}

/// Where a file can be read that `process` has run: what somebody runs, or what lies where it was run from. `path`: that, within its
/// filesystem.
pub(super) fn place_of(process: u32, state: &FileState, path: Option<&str>) -> Option<At> {
    let mut all = std::iter::once(process).chain(crate::kernel::processes());
    if let Some(runner) = all.find(|process| is_running(*process, state)) {
        return Some(At::Process(runner));
    }
    let views = [
        ("/proc/self/mountinfo".to_owned(), "/".to_owned()),
        (
            format!("/proc/{process}/mountinfo"),
            format!("/proc/{process}/root"),
        ),
    ];
    let mut held = views
        .iter()
        .filter_map(|(table, root)| held_in(table, root, process, state, path?));
    held.next()
}

/// The same in one view of the mounts.
fn held_in(table: &str, root: &str, of: u32, state: &FileState, path: &str) -> Option<At> {
    let table = std::fs::read(table).ok()?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
    // Whose names are not all known to the kernel itself would be asked for them, and might never answer.
    let links = ResolveFlags::NO_MAGICLINKS | ResolveFlags::IN_ROOT | ResolveFlags::CACHED;
    let open = |path: PathBuf| rustix::fs::openat2(&root, path, flags, Mode::empty(), links).ok();
    let is_it = |file: &OwnedFd| {
        let found = look(file, "");
        found.is_ok_and(|found| self::state(&found, device(found.stx_mnt_id, of)) == *state)
    };
    let mut found = table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| Mount::of(line)?.place_of(state.device, Path::new(path)))
        .filter_map(open)
        .filter(is_it);
    Some(At::Held(Held(Arc::new(found.next()?))))
}

/// How the kernel last knew a regular file to be: its filesystem is not asked, which might never answer.
pub(super) fn look(beside: impl AsFd, path: impl rustix::path::Arg) -> io::Result<Statx> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::EMPTY_PATH;
    let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::CTIME | StatxFlags::MNT_ID;
    let found = rustix::fs::statx(beside, path, flags, wanted)?;
    match FileType::from_raw_mode(found.stx_mode.into()).is_file() {
        true => Ok(found),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

fn changed(found: &Statx) -> (i64, u32) {
    (found.stx_ctime.tv_sec, found.stx_ctime.tv_nsec)
}

/// A file as it was found. `device`: its mount's, where that is known. What `stat` says of files is another one on Btrfs and on some
/// overlays.
pub(super) fn state(found: &Statx, device: Option<u32>) -> FileState {
    let own = || (found.stx_dev_major << 20) | found.stx_dev_minor;
    FileState {
        device: device.unwrap_or_else(own),
        inode: found.stx_ino,
        changed: changed(found),
    }
}

/// The device of a mount's filesystem, as the mount table has it, or that of a process through whose view of the mounts it was found.
fn device(mount: u64, of: u32) -> Option<u32> {
    let tables = ["self".to_owned(), of.to_string()];
    tables.iter().find_map(|of| {
        let table = std::fs::read(format!("/proc/{of}/mountinfo")).ok()?;
        Some(mounted(&table, mount)?.device)
    })
}

/// A mount, as a line of the mount table has it.
pub(super) struct Mount {
    pub(super) device: u32,
    /// What of its filesystem is seen there.
    pub(super) root: PathBuf,
    pub(super) point: PathBuf,
}

impl Mount {
    /// `ID parent major:minor root point …`
    fn of(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
        let root = fields.next()?;
        Some(Self {
            device: (major.parse::<u32>().ok()? << 20) | minor.parse::<u32>().ok()?,
            root: unescape(root.strip_suffix(b"//deleted").unwrap_or(root)),
            point: unescape(fields.next()?),
        })
    }

    /// Where a file of this path within its filesystem lies, if it is to be seen there.
    fn place_of(&self, device: u32, path: &Path) -> Option<PathBuf> {
        let rest = path.strip_prefix(&self.root).ok()?;
        let place = match rest.as_os_str().is_empty() {
            true => self.point.clone(),
            false => self.point.join(rest),
        };
        (device == self.device).then_some(place)
    }
}

/// The mount of this number.
pub(super) fn mounted(table: &[u8], mount: u64) -> Option<Mount> {
    let mount = mount.to_string();
    let line = table
        .split(|byte| *byte == b'\n')
        .find(|line| line.split(|byte| *byte == b' ').next() == Some(mount.as_bytes()))?;
    Mount::of(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_below_where_its_filesystem_is_mounted() {
        let line = b"30 1 254:1 /sub /mnt/a\\040b rw,noatime shared:1 - ext4 /dev/vda1 rw";
        let device = (254 << 20) | 1;
        let found = |line: &[u8], device, path: &str| {
            Mount::of(line).and_then(|mount| mount.place_of(device, Path::new(path)))
        };
        let at = |path: &str| Some(PathBuf::from(path));
        assert_eq!(found(line, device, "/sub/x/y"), at("/mnt/a b/x/y"));
        assert_eq!(found(line, device, "/sub"), at("/mnt/a b"));
        assert_eq!(found(line, device, "/subway/x"), None);
        assert_eq!(found(line, 7, "/sub/x"), None);
        let whole = b"30 1 254:1 / / rw - ext4 /dev/vda1 rw";
        assert_eq!(found(whole, device, "/x"), at("/x"));
    }
}
