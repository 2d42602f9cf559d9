//! Where a socket's file lies in this view of the mounts.
//!
//! The kernel tells by which name a socket was bound, and which file it lies in. The name need not lead there: the file was linked or
//! renamed since (OpenSSH's `ControlPath` is), or its filesystem is mounted elsewhere too.
//!
//! Names are strangers' words and may lead anywhere, also to a filesystem that never answers (a file server that is away, FUSE). What a
//! socket is bound to is in the kernel's memory with all directories above, so nothing else is asked of such a filesystem.
#[cfg(test)]
mod tests;

use super::super::Mounted;
use crate::kernel::local::{File, Local};
use anyhow::Context;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

/// Filesystems of this host's own memory and disks, which answer.
const QUICK: [&str; 12] = [
    "tmpfs", "ramfs", "devtmpfs", "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs",
    "bcachefs", "overlay",
];
/// Links that a path may have, as the kernel has it.
const LINKS: usize = 40;
/// Steps that one name may have, with those of its links, and those of all that are looked up in a round. Each of the links may have
/// a thousand, and anybody can have any number of names.
const STEPS: usize = 512;
const ALL_STEPS: usize = 200_000;
/// A directory that is renamed somewhere, and anything that anybody mounts, has the kernel say that it does not know a name at once.
const TRIES: usize = 4;
/// The same where nothing else can be asked.
const MANY: usize = 64;
/// Directories that are asked for sockets that are not where they were bound, and what is looked at in them.
const DIRECTORIES: usize = 200_000;
const ENTRIES: usize = 200_000;
/// Of one directory: anybody can fill his own.
const EACH: usize = 8192;

/// A socket's mount, and its device and inode there.
pub(super) type Place = (u64, (u32, u32), u64);

/// What is at a path.
pub(super) enum Looked {
    Socket(Socket),
    /// No socket, or one that is nowhere in this view of the mounts.
    Nothing,
    /// On a filesystem that keeps it from root, or is not asked.
    Unreachable,
}

/// A socket's file, as it is open.
pub(super) struct Socket {
    pub(super) file: OwnedFd,
    pub(super) place: Place,
    owner: u32,
    /// Names that it has.
    links: u32,
}

/// One name of a file at one mount: the mount, and the path within its filesystem.
pub(super) type Spot = (u64, PathBuf);

/// Where a socket is to be covered.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Each with what it is called there.
    pub(super) at: BTreeMap<Spot, (Place, PathBuf)>,
    /// Names that the file has.
    links: u32,
    /// Root may not look where it was bound.
    pub(super) unreachable: bool,
    /// It is in this view, or has names in it, and nobody knows where.
    pub(super) lost: bool,
}

/// The mounts, and what was found in directories.
pub(super) struct Places {
    mounts: HashMap<u64, Mounted>,
    known: HashMap<PathBuf, HashMap<File, Vec<PathBuf>>>,
    /// What may still be looked through: directories and entries.
    directories: usize,
    entries: usize,
    /// Steps that may still be gone.
    steps: Cell<usize>,
}

impl Places {
    pub(super) fn of_this_view(mounts: Vec<Mounted>) -> Self {
        let mounts = mounts.into_iter().map(|mount| (mount.id, mount));
        Self {
            mounts: mounts.collect(),
            known: HashMap::new(),
            directories: DIRECTORIES,
            entries: ENTRIES,
            steps: Cell::new(ALL_STEPS),
        }
    }

    pub(super) fn mounts(&self) -> impl Iterator<Item = &Mounted> {
        self.mounts.values()
    }

    /// All places of a socket.
    pub(super) fn find(&mut self, socket: &Local) -> anyhow::Result<Found> {
        let name = Path::new(OsStr::from_bytes(&socket.name));
        let mut found = Found::default();
        if let Some((device, _)) = socket.file
            && !self.mounts().any(|mount| mount.device == device)
        {
            return Ok(found); // In another view of the mounts.
        }
        let looked = self.look(name)?;
        found.unreachable = socket.file.is_none() && matches!(looked, Looked::Unreachable);
        self.add((name, looked), socket.file, &mut found)?;
        let Some(file) = socket.file else {
            return Ok(found);
        };
        if found.at.is_empty() || found.links > 1 {
            for name in self.search(name, file)? {
                self.add((&name, self.look(&name)?), Some(file), &mut found)?;
            }
        }
        let names: BTreeSet<&PathBuf> = found.at.keys().map(|(_, path)| path).collect();
        found.lost = names.len() < usize::try_from(found.links.max(1)).unwrap_or(usize::MAX);
        Ok(found)
    }

    /// By the name alone.
    pub(super) fn owner_of(&self, socket: &Local) -> anyhow::Result<Option<u32>> {
        let name = Path::new(OsStr::from_bytes(&socket.name));
        Ok(match self.look(name)? {
            Looked::Socket(at) => Some(at.owner),
            _ => None,
        })
    }

    /// What a name leads to, if it is the file, and the same wherever else its filesystem is mounted.
    fn add(
        &self,
        (name, looked): (&Path, Looked),
        file: Option<File>,
        found: &mut Found,
    ) -> anyhow::Result<()> {
        let Looked::Socket(first) = looked else {
            return Ok(());
        };
        let own = self.file(&first);
        if file.is_some_and(|file| file != own) {
            return Ok(());
        }
        found.links = first.links;
        let Some((mount, path, name)) = self.within(&first) else {
            let spot = (first.place.0, name.to_owned());
            found.at.insert(spot, (first.place, name.to_owned()));
            return Ok(());
        };
        let spot = (mount.id, path.clone());
        found.at.insert(spot, (first.place, name));
        for other in self.mounts().filter(|other| other.id != mount.id) {
            if let Some(place) = other.place_of(mount.device, &path)
                && let Looked::Socket(at) = self.look(&place)?
                && self.file(&at) == own
            {
                let spot = (at.place.0, path.clone());
                found.at.insert(spot, (at.place, place));
            }
        }
        Ok(())
    }

    /// The mount that it is in, its path within the filesystem, and its path without links.
    fn within(&self, socket: &Socket) -> Option<(&Mounted, PathBuf, PathBuf)> {
        let mount = self.mounts.get(&socket.place.0)?;
        let link = format!("/proc/self/fd/{}", socket.file.as_raw_fd());
        let real = std::fs::read_link(link).ok()?;
        let rest = real.strip_prefix(&mount.path).ok()?;
        Some((mount, mount.root.join(rest), real))
    }

    fn file(&self, socket: &Socket) -> File {
        let (mount, (major, minor), inode) = socket.place;
        // Btrfs has `stat` say another device for each of its subvolumes.
        let device = self.mounts.get(&mount).map(|mount| mount.device);
        let lower = u32::try_from(inode & u64::from(u32::MAX)).unwrap_or_default();
        (device.unwrap_or(major << 20 | minor), lower)
    }

    /// Names of a file in the directory that it was bound in, wherever that is mounted.
    fn search(&mut self, name: &Path, file: File) -> anyhow::Result<Vec<PathBuf>> {
        if self.directories == 0 {
            return Ok(Vec::new());
        }
        let parent = name.parent().unwrap_or(name);
        let mut all = BTreeSet::new();
        if name.is_absolute() {
            all.insert(parent.to_owned());
        }
        let parts: Vec<Component<'_>> = parent.components().collect();
        for mount in self.mounts().filter(|mount| mount.device == file.0) {
            // That mount may show any part of what the name's first directories are of.
            for begin in 0..=parts.len() {
                let rest = parts.get(begin..).unwrap_or_default().iter();
                let rest: PathBuf = rest
                    .filter(|part| matches!(part, Component::Normal(_)))
                    .collect();
                all.insert(mount.path.join(rest));
            }
        }
        // Whoever has many that are nowhere keeps nobody waiting.
        self.directories = self.directories.saturating_sub(all.len());
        let mut found = Vec::new();
        for directory in all {
            found.extend_from_slice(self.in_directory(directory, file)?);
        }
        Ok(found)
    }

    fn in_directory(&mut self, directory: PathBuf, file: File) -> anyhow::Result<&[PathBuf]> {
        if !self.known.contains_key(&directory) {
            let sockets = self.sockets_in(&directory)?;
            self.known.insert(directory.clone(), sockets);
        }
        let known = self
            .known
            .get(&directory)
            .and_then(|known| known.get(&file));
        Ok(known.map_or(&[], Vec::as_slice))
    }

    fn sockets_in(&mut self, directory: &Path) -> anyhow::Result<HashMap<File, Vec<PathBuf>>> {
        let mut found: HashMap<_, Vec<_>> = HashMap::new();
        let Ok(open) = self.open(directory, OFlags::DIRECTORY) else {
            return Ok(found);
        };
        if !self.is_quick(&open) {
            return Ok(found);
        }
        let Ok(entries) = std::fs::read_dir(format!("/proc/self/fd/{}", open.as_raw_fd())) else {
            return Ok(found);
        };
        for entry in entries.take(self.entries.min(EACH)).flatten() {
            self.entries = self.entries.saturating_sub(1);
            if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
                let name = directory.join(entry.file_name());
                if let Looked::Socket(socket) = self.look(&name)? {
                    found.entry(self.file(&socket)).or_default().push(name);
                }
            }
        }
        Ok(found)
    }

    pub(super) fn look(&self, path: &Path) -> anyhow::Result<Looked> {
        if !path.is_absolute() {
            return Ok(Looked::Nothing);
        }
        seen(self.open(path, OFlags::NOFOLLOW))
    }

    /// At once where the kernel knows all of the path and no link is in it, else step by step.
    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let at_once = ResolveFlags::CACHED | ResolveFlags::NO_SYMLINKS;
        match again(TRIES, || open(CWD, path, flags, at_once)) {
            Err(Errno::AGAIN | Errno::LOOP) => self.walk(path, flags),
            done => done,
        }
    }

    /// All of it, which may be as much as any walk.
    fn open_whole(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.spend(STEPS)?;
        again(TRIES, || open(CWD, path, flags, ResolveFlags::CACHED))
    }

    /// What nobody has spent on names that lead round and round is left for others'.
    fn spend(&self, steps: usize) -> Result<(), Errno> {
        let left = self.steps.get().checked_sub(steps);
        self.steps.set(left.unwrap_or(0));
        left.map(drop).ok_or(Errno::AGAIN)
    }

    /// The way to a socket is known to the kernel, but not the links by which its name leads there.
    fn walk(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        // It is in the kernel's memory: nobody is asked for it.
        let root = || {
            let whole = ResolveFlags::empty();
            open(CWD, Path::new("/"), OFlags::DIRECTORY, whole)
        };
        let mut rest = steps(path);
        self.spend(rest.len())?;
        let (mut at, mut links, mut all) = (root()?, 0, rest.len());
        while let Some(step) = rest.pop() {
            let next = self.step(&at, &step)?;
            let is_last = rest.is_empty() && flags.contains(OFlags::NOFOLLOW);
            if is_last || kind(&state(&next)?) != FileType::Symlink {
                at = next;
                continue;
            }
            links += 1;
            if links > LINKS {
                return Err(Errno::LOOP);
            }
            // What a link of `/proc` leads to is not what it says. Of others' filesystems the kernel may know a link already.
            if !self.is_quick(&next) {
                return self.open_whole(path, flags);
            }
            let to = rustix::fs::readlinkat(&next, "", Vec::new())?;
            let to = PathBuf::from(OsString::from_vec(to.into_bytes()));
            if to.is_absolute() {
                at = root()?;
            }
            let more = steps(&to);
            self.spend(more.len())?;
            all += more.len();
            if all > STEPS {
                return Err(Errno::AGAIN);
            }
            rest.extend(more);
        }
        Ok(at)
    }

    fn step(&self, at: &OwnedFd, step: &OsStr) -> Result<OwnedFd, Errno> {
        let step = Path::new(step);
        let asked = |how| open(at, step, OFlags::NOFOLLOW, how);
        let known = |times| again(times, || asked(ResolveFlags::CACHED));
        match known(TRIES) {
            // What is mounted on a directory is known to the kernel: else this one leads to no other filesystem.
            Err(Errno::AGAIN) if self.is_quick(at) => match asked(ResolveFlags::NO_XDEV) {
                Err(Errno::XDEV) => known(MANY),
                done => done,
            },
            Err(Errno::AGAIN) => known(MANY),
            done => done,
        }
    }

    fn is_quick(&self, file: &OwnedFd) -> bool {
        let mount = state(file)
            .ok()
            .and_then(|found| self.mounts.get(&found.stx_mnt_id));
        mount.is_some_and(|mount| QUICK.contains(&mount.kind.as_str()))
    }
}

/// What was opened without following a link at its end.
pub(super) fn seen(opened: Result<OwnedFd, Errno>) -> anyhow::Result<Looked> {
    match opened.and_then(|file| Ok((state(&file)?, file))) {
        Ok((found, file)) if kind(&found) == FileType::Socket => Ok(Looked::Socket(Socket {
            file,
            place: (
                found.stx_mnt_id,
                (found.stx_dev_major, found.stx_dev_minor),
                found.stx_ino,
            ),
            owner: found.stx_uid,
            links: found.stx_nlink,
        })),
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(Looked::Nothing),
        Err(e @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
            Err(e).context("local daemons' sockets cannot be looked at")
        }
        Err(_) => Ok(Looked::Unreachable),
    }
}

/// Asks again while the kernel does not know at once.
fn again<T>(times: usize, mut ask: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..times {
        match ask() {
            Err(Errno::AGAIN) => {}
            done => return done,
        }
    }
    ask()
}

/// The last is the first.
fn steps(path: &Path) -> Vec<OsString> {
    let steps = path
        .components()
        .rev()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    steps.map(|part| part.as_os_str().to_owned()).collect()
}

fn open(at: impl AsFd, path: &Path, flags: OFlags, how: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
    // `/proc/PID/root` leads to mounts of another view, over which nothing can be mounted.
    rustix::fs::openat2(
        at,
        path,
        flags,
        Mode::empty(),
        how | ResolveFlags::NO_MAGICLINKS,
    )
}

/// As the kernel knows it.
fn state(file: &OwnedFd) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::TYPE
        | StatxFlags::UID
        | StatxFlags::INO
        | StatxFlags::NLINK
        | StatxFlags::MNT_ID;
    rustix::fs::statx(file, "", flags, wanted)
}

fn kind(found: &Statx) -> FileType {
    FileType::from_raw_mode(found.stx_mode.into())
}
