//! Which of the executables that a policy names a file is: by its device and inode, and by its content, which is read
//! once and again when the file was changed.
use crate::kernel::FileState;
use rustix::fs::{FileType, Mode, OFlags};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Bytes of a file that are read for its digest; a longer one is none that a policy names.
const FILE_BYTES: u64 = 2 << 30;
/// Digests that are remembered.
const DIGESTS: usize = 65_536;
/// A file that was changed this short a while ago may be changed again within the same tick of the file system's clock.
const TICK: Duration = Duration::from_millis(20);
/// Classes, after which the hooks have no more numbers.
const CLASSES: u16 = 60_000;

/// An executable as a selector names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) exe: Option<PathBuf>,
    pub(super) sha256: Option<String>,
}

/// What is known of files.
#[derive(Debug, Default)]
pub(super) struct Executables {
    wants: Vec<Wants>,
    /// The file at each path that is named, where there is one.
    paths: HashMap<PathBuf, FileState>,
    /// Which of `wants` the files of each class are.
    pub(super) classes: BTreeMap<u16, Vec<usize>>,
    digests: HashMap<FileState, String>,
}

impl Executables {
    /// From here on these are named.
    pub(super) fn want(&mut self, wants: &[Wants]) {
        self.wants = wants.to_vec();
        self.classes.clear();
        self.look_at_paths();
    }

    /// Looks at what lies at the named paths now; whether it is something else than before.
    pub(super) fn look_at_paths(&mut self) -> bool {
        let named = self.wants.iter().filter_map(|wants| wants.exe.as_ref());
        let found: HashMap<PathBuf, FileState> = named
            .filter_map(|path| Some((path.clone(), state(&found(path)?, None)?)))
            .collect();
        let changed = found != self.paths;
        self.paths = found;
        // Whatever runs from there is asked for soon.
        changed
    }

    /// The files at the named paths as they were looked at last.
    pub(super) fn named(&self) -> Vec<(File, FileState)> {
        let at = |(path, known): (&PathBuf, &FileState)| {
            let file = read(&found(path)?)?;
            (state(&file, None)? == *known).then_some((file, *known))
        };
        self.paths.iter().filter_map(at).collect()
    }

    /// Which of the named executables this file is, as the indices of what names it.
    pub(super) fn fulfils(&mut self, file: &mut File, state: &FileState) -> Vec<usize> {
        let by_digest = |wants: &Wants| wants.sha256.is_some() && self.is_at(wants, state);
        let digest = match self.wants.iter().any(by_digest) {
            true => self.digest(file, state),
            false => None,
        };
        let is = |wants: &Wants| {
            self.is_at(wants, state) && (wants.sha256.is_none() || wants.sha256 == digest)
        };
        let all = self.wants.iter().enumerate();
        all.filter(|(_, wants)| is(wants))
            .map(|(number, _)| number)
            .collect()
    }

    fn is_at(&self, wants: &Wants, state: &FileState) -> bool {
        let same = |known: &FileState| (known.device, known.inode) == (state.device, state.inode);
        wants
            .exe
            .as_ref()
            .is_none_or(|path| self.paths.get(path).is_some_and(same))
    }

    /// The number of the class of files that are these; `None` for those that are nothing that is named. A class's number
    /// comes of what it is, so that another agent gives it the same.
    pub(super) fn class(&mut self, fulfilled: &[usize]) -> Option<u16> {
        if fulfilled.is_empty() {
            return None;
        }
        let known = self.classes.iter().find(|(_, known)| *known == fulfilled);
        if let Some((class, _)) = known {
            return Some(*class);
        }
        let mut text = Sha256::new();
        for number in fulfilled {
            text.update(format!("{:?}\n", self.wants.get(*number)));
        }
        let digest = text.finalize();
        let first = digest
            .iter()
            .take(2)
            .fold(0, |sum, byte| sum * 256 + u32::from(*byte));
        let numbers = (0..u32::from(CLASSES)).map(|more| (first + more) % u32::from(CLASSES));
        let class = numbers
            .filter_map(|number| u16::try_from(number).ok())
            .find(|number| !self.classes.contains_key(number))?;
        self.classes.insert(class, fulfilled.to_vec());
        Some(class)
    }

    /// The digest of a file that was read while it was in `state`, if it was.
    pub(super) fn known_digest(&self, state: &FileState) -> Option<&String> {
        self.digests.get(state)
    }

    fn digest(&mut self, file: &mut File, state: &FileState) -> Option<String> {
        if let Some(known) = self.digests.get(state) {
            return Some(known.clone());
        }
        if file.metadata().ok()?.size() > FILE_BYTES {
            return None;
        }
        let changed = Duration::new(state.changed.0.unsigned_abs(), state.changed.1);
        let age = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + changed);
        if age.is_ok_and(|age| age < TICK) {
            std::thread::sleep(TICK);
        }
        let mut sum = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        let mut left = FILE_BYTES;
        while let Ok(read @ 1..) = file.read(&mut buffer) {
            sum.update(buffer.get(..read)?);
            left = left.checked_sub(read as u64)?;
        }
        // Changed while it was read: it will be asked for again.
        if self::state(file, None)?.changed != state.changed {
            return None;
        }
        let text: String = sum
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        if self.digests.len() >= DIGESTS {
            self.digests.clear();
        }
        self.digests.insert(*state, text.clone());
        Some(text)
    }
}

/// The file at a path, not to read it. Who may write there may put a pipe there, on which to open it would wait, or a device, which
/// may act on that: neither is one that runs.
fn found(path: &Path) -> Option<File> {
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file).ok()?.st_mode);
    kind.is_file().then(|| file.into())
}

/// The same file to read. Nor does it wait for somebody's lease of it to end.
fn read(found: &File) -> Option<File> {
    let at = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Some(rustix::fs::open(at, flags, Mode::empty()).ok()?.into())
}

/// What a process runs, and how that file is now.
pub(super) fn running(process: u32) -> Option<(File, FileState)> {
    let file = read(&found(Path::new(&format!("/proc/{process}/exe")))?)?;
    let state = state(&file, Some(process))?;
    Some((file, state))
}

/// The processes that run the same file as this one, itself among them.
pub(super) fn sharers(process: u32) -> impl Iterator<Item = u32> {
    let wanted = crate::kernel::executable(process);
    let all = crate::kernel::processes().into_iter();
    all.filter(move |other| wanted.is_some() && crate::kernel::executable(*other) == wanted)
}

/// How a file is now. `of`: whose view of the mounts it was opened through.
pub(super) fn state(file: &File, of: Option<u32>) -> Option<FileState> {
    let found = file.metadata().ok()?;
    Some(FileState {
        device: device(file, of).unwrap_or_else(|| encoded(found.dev())),
        inode: found.ino(),
        changed: (found.ctime(), u32::try_from(found.ctime_nsec()).ok()?),
    })
}

/// The device of the file's filesystem, as the mount table has it. What `stat` says is another one on Btrfs and on some
/// overlays.
fn device(file: &File, of: Option<u32>) -> Option<u32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let mount = info
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:"))?
        .trim();
    let own = mounted(Path::new("/proc/self/mountinfo"), mount);
    own.or_else(|| mounted(Path::new(&format!("/proc/{}/mountinfo", of?)), mount))
}

/// The third field of the mount's line: `major:minor`.
fn mounted(table: &Path, mount: &str) -> Option<u32> {
    let table = std::fs::read_to_string(table).ok()?;
    let line = table
        .lines()
        .find(|line| line.split(' ').next() == Some(mount))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    Some((major.parse::<u32>().ok()? << 20) | minor.parse::<u32>().ok()?)
}

fn encoded(device: u64) -> u32 {
    (rustix::fs::major(device) << 20) | rustix::fs::minor(device)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn look(executables: &mut Executables, path: &Path) -> Vec<usize> {
        let mut file = File::open(path).unwrap();
        let state = state(&file, None).unwrap();
        executables.fulfils(&mut file, &state)
    }

    #[test]
    fn files_are_known_by_inode_and_by_content() {
        let folder = tempfile::tempdir().unwrap();
        let [named, link, copy] = ["named", "link", "copy"].map(|name| folder.path().join(name));
        std::fs::write(&named, "abc").unwrap();
        std::fs::hard_link(&named, &link).unwrap();
        std::fs::copy(&named, &copy).unwrap();
        let wants = |exe: Option<&Path>, sha256: Option<&str>| Wants {
            exe: exe.map(Path::to_owned),
            sha256: sha256.map(str::to_owned),
        };
        let mut known = Executables::default();
        known.want(&[
            wants(Some(&named), None),
            wants(None, Some(ABC)),
            wants(Some(&copy), Some(&ABC.replace('b', "c"))),
        ]);
        assert_eq!(look(&mut known, &named), [0, 1]);
        assert_eq!(look(&mut known, &link), [0, 1], "another name for the same");
        assert_eq!(look(&mut known, &copy), [1], "the same content");
        let (both, one) = (known.class(&[0, 1]).unwrap(), known.class(&[1]).unwrap());
        assert_ne!(both, one);
        assert_eq!(known.class(&[1]), Some(one));
        assert_eq!(known.class(&[]), None);

        std::fs::write(&copy, "abd").unwrap();
        assert!(look(&mut known, &copy).is_empty(), "changed");
        std::fs::rename(&copy, &named).unwrap();
        assert!(look(&mut known, &named).is_empty(), "not looked at yet");
        assert!(known.look_at_paths());
        assert_eq!(look(&mut known, &named), [0], "replaced");
        assert!(!known.look_at_paths());

        // Nobody writes to it: to open it would never end.
        std::fs::remove_file(&named).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &named, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(known.look_at_paths());
        assert!(known.named().is_empty());
    }
}
