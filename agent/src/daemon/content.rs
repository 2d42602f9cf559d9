//! What is in a file, read by a process of its own: who waits for a filesystem that never answers cannot be killed, and would keep
//! the agent's descriptors, its port among them, for ever.
use super::digests::{device_of, look, state as found_as};
use super::mounts;
use crate::kernel::FileState;
use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

/// Bytes of a file that are read for its digest; a longer one is none that a policy names.
const FILE_BYTES: u64 = 2 << 30;
/// What is longer than this takes long to be read. Who runs it waits, behind all else that there is to do.
pub(super) const LARGE: u64 = 256 << 20;
/// How much less urgent that is.
const NICER: i32 = 10;
/// A file that was changed this short a while ago may be changed again within the same tick of the file system's clock.
const TICK: Duration = Duration::from_millis(20);
/// What the reader says of a file that is too long.
const LONG: &str = "long";

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// In hexadecimal digits.
    Sha256(String),
    /// More than a policy can name.
    Long,
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sha256(digest) => digest,
            Self::Long => LONG,
        })
    }
}

/// Has this program read a file, as another process. `None`: it is not there in this state, or cannot be read.
pub(super) fn read_beside(path: &Path, state: &FileState) -> Option<Content> {
    let (seconds, nanoseconds) = state.changed;
    let numbers = [
        state.device.to_string(),
        state.inode.to_string(),
        seconds.to_string(),
        nanoseconds.to_string(),
    ];
    let mut command = Command::new("/proc/self/exe");
    command.arg("content").arg(path).args(numbers);
    command.arg(std::process::id().to_string()).env_clear();
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let said = command.output().ok()?.stdout;
    match std::str::from_utf8(&said).ok()?.trim_end() {
        "" => None,
        LONG => Some(Content::Long),
        digest => Some(Content::Sha256(digest.to_owned())),
    }
}

/// Has this process end with the thread that waits for it, of the process `agent`. `false`: that is gone already.
///
/// # Errors
/// The system's word.
pub fn end_with(agent: u32) -> std::io::Result<bool> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let parent = rustix::process::getppid().map(rustix::process::Pid::as_raw_pid);
    Ok(parent.is_some_and(|parent| u32::try_from(parent) == Ok(agent)))
}

/// Reads the file at a path, if it is in this state before and after.
#[must_use]
pub fn read(path: &Path, state: &FileState) -> Option<Content> {
    // Before it is opened to be read: another one's filesystem may never answer.
    let found = found(path)?;
    let process = viewer(path);
    if !look(&found, "").is_ok_and(|found| is_it(state, &found, process)) {
        return None;
    }
    let mut file = open(&found)?;
    if !is_in(state, &file) {
        return None;
    }
    let length = file.metadata().ok()?.len();
    if length > FILE_BYTES {
        return Some(Content::Long);
    }
    if length > LARGE {
        let _ = rustix::process::nice(NICER);
    }
    if is_fresh(state.changed) {
        std::thread::sleep(TICK);
    }
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut left = FILE_BYTES;
    loop {
        let read = file.read(&mut buffer).ok()?;
        if read == 0 {
            break;
        }
        sum.update(buffer.get(..read)?);
        left = left.checked_sub(read as u64)?;
    }
    // Written to meanwhile: it will be asked for again.
    is_in(state, &file).then(|| {
        let bytes = sum.finalize();
        Content::Sha256(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    })
}

/// Was a file changed so short a while ago that the next change could bear the same time?
pub(super) fn is_fresh((seconds, nanoseconds): (i64, u32)) -> bool {
    let changed = Duration::new(seconds.unsigned_abs(), nanoseconds);
    let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + changed);
    age.is_ok_and(|age| age < TICK)
}

/// Is it in this state still, also as its filesystem says?
fn is_in(state: &FileState, file: &File) -> bool {
    file.metadata().is_ok_and(|now| {
        let changed = u32::try_from(now.ctime_nsec()).map(|nanos| (now.ctime(), nanos));
        now.ino() == state.inode && changed == Ok(state.changed)
    })
}

/// Is what was found this file, as hooks tell them apart? Who serves files (FUSE) may give one the number and the time of another's.
/// `process`: through whose view of the mounts it was found; of what neither that nor the agent has mounted any more, only a hook
/// could tell the device, where `stat` has made one up (Btrfs, overlays).
pub(super) fn is_it(state: &FileState, found: &Statx, process: u32) -> bool {
    let now = found_as(found, None);
    let is_on = device_of(found, process).map_or_else(
        || {
            let may_be = is_made_up(now.device) && is_made_up(state.device);
            // What lies where the agent sees it is found there.
            now.device == state.device || may_be && !mounts::is_seen(state.device)
        },
        |device| device == state.device,
    );
    is_on && (now.inode, now.changed) == (state.inode, state.changed)
}

/// Is it no device that there is, but a number that the kernel gave a filesystem?
fn is_made_up(device: u32) -> bool {
    device < 1 << 20
}

/// The process through which a path leads, or this one.
fn viewer(path: &Path) -> u32 {
    let below = path.strip_prefix("/proc").ok();
    let process = below.and_then(|below| below.iter().next()?.to_str()?.parse().ok());
    process.unwrap_or_else(std::process::id)
}

/// The file at a path, not to read it. Who may write there may put a pipe there, on which to open it would wait, or a device, which
/// may act on that: neither is one that runs.
fn found(path: &Path) -> Option<OwnedFd> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode);
    kind.is_file().then_some(file)
}

/// The same file to read. Nor does it wait for somebody's lease of it to end.
fn open(found: &OwnedFd) -> Option<File> {
    let at = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Some(rustix::fs::open(at, flags, Mode::empty()).ok()?.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn another_filesystems_file_of_that_number_and_time_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        let found = look(rustix::fs::CWD, &path).unwrap();
        let own = std::process::id();
        let state = found_as(&found, device_of(&found, own));
        assert!(read(&path, &state).is_some() && is_it(&state, &found, own));
        let anothers = FileState {
            device: state.device + 1,
            ..state
        };
        assert!(read(&path, &anothers).is_none() && !is_it(&anothers, &found, own));
        // What lies on a mount that is in nobody's table, and says that it is a disk's file.
        let mut unknown = found;
        unknown.stx_mnt_id = u64::MAX;
        (unknown.stx_dev_major, unknown.stx_dev_minor) = (0, 77);
        let on = |device| is_it(&FileState { device, ..state }, &unknown, own);
        assert!(!on(8 << 20 | 1) && on(42));
        assert_eq!(viewer(Path::new("/proc/7/exe")), 7);
        assert_eq!(viewer(&path), own);
    }
}
