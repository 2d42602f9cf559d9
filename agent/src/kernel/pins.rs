//! Where an instance's maps and links are kept, so that they outlive the agent, and whether what is
//! there fits this agent.
use super::{Error, hooks::HOOKS, left, probe, sys};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tollgate_common::{ABI, event, flow, limits, openings, quota, recognise, settings};

/// A map's name and the sizes of its key and value.
struct Shape {
    name: &'static str,
    key: usize,
    value: usize,
    entries: u32,
}

const fn shape<K, V>(name: &'static str, entries: u32) -> Shape {
    Shape {
        name,
        key: size_of::<K>(),
        value: size_of::<V>(),
        entries,
    }
}

/// Every map that is pinned. A ring and socket storage have no fixed count of entries. One more raises [`ABI`], as a change does:
/// where it is missing it is taken for lost.
const MAPS: &[Shape] = &[
    shape::<u32, settings::Settings>("SETTINGS", 1),
    shape::<u32, recognise::Scope>("SCOPE", 1),
    shape::<u64, recognise::Subtree>("GOVERNED", limits::MAX_GOVERNED),
    shape::<u32, recognise::Beyond>("BEYOND", 1),
    shape::<u32, recognise::Mark>("PROCESSES", recognise::MAX_PROCESSES),
    shape::<u32, settings::Name>("WORKLOADS", limits::MAX_WORKLOADS),
    shape::<[u8; recognise::CGROUP_NAME], u32>("NAMES", recognise::MAX_STEPS),
    shape::<recognise::Step, recognise::Arrival>("STEPS", recognise::MAX_STEPS),
    shape::<recognise::File, recognise::Executable>("EXECUTABLES", recognise::MAX_EXECUTABLES),
    shape::<[u8; recognise::EXE_NAME], u32>("EXE_NAMES", recognise::MAX_RULES),
    shape::<recognise::Case, recognise::Rule>("RULES", recognise::MAX_RULES),
    shape::<u32, recognise::Waiting>("WAITING", recognise::MAX_WAITING),
    shape::<u64, settings::Ports>("NAMESPACES", limits::MAX_NAMESPACES),
    shape::<u64, u64>("STRANGERS", limits::MAX_STRANGERS),
    shape::<openings::Listen, u32>("LISTEN", limits::MAX_LISTEN),
    shape::<Key<openings::Named>, u32>("UNIX", limits::MAX_SOCKET_NAMES),
    shape::<u64, openings::Kept>("KEPT", limits::MAX_KEPT),
    shape::<i32, flow::Client>("CLIENTS", 0),
    shape::<i32, flow::AgentSocket>("AGENT_SOCKETS", 0),
    shape::<i32, event::Pending>("PENDING", 0),
    shape::<i32, u64>("ORIGIN", 0),
    shape::<i32, flow::Steered>("ACCEPTED", 0),
    shape::<flow::Port, flow::Steered>("ORPHANS", limits::MAX_ORPHANS),
    shape::<flow::Inode, flow::Path>("PATHS", limits::MAX_PATHS),
    shape::<u32, flow::Path>("BLANK", 1),
    shape::<i32, flow::Asker>("ASKERS", 0),
    shape::<flow::Query, flow::Asker>("QUERIES", limits::MAX_QUERIES),
    shape::<u32, flow::Account>("ACCOUNTS", limits::MAX_WORKLOADS + 1),
    shape::<event::RefusalKey, u64>("REFUSALS", limits::MAX_WORKLOADS * 8),
    shape::<u32, u32>("RELEASED", limits::MAX_WORKLOADS + 1),
    shape::<u32, quota::Quota>("QUOTAS", limits::MAX_WORKLOADS + 1),
    shape::<u32, quota::Spent>("SPENT", limits::MAX_WORKLOADS + 1),
    shape::<(), ()>("EVENTS", limits::EVENT_BYTES),
    shape::<u32, u64>("LOST", 1),
];

/// Programs that use it are not on every kernel, and each agent writes it anew.
const SPARE: &str = "UNIX";

/// A map that the programs in force use, open whatever becomes of its pin.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) name: &'static str,
    map: OwnedFd,
    info: sys::MapInfo,
}

impl Held {
    /// The kernel's number of it.
    pub(super) fn id(&self) -> u32 {
        self.info.id()
    }
}

/// What is where a map should be pinned.
#[derive(Debug)]
pub(super) enum Unpinned {
    /// Another object.
    Another,
    /// Nothing that can be opened.
    Gone(io::Error),
    /// The kernel gave no answer for want of something else.
    Unknown(io::Error),
}

/// An instance's directory, held by this agent alone.
#[derive(Debug)]
pub(super) struct Pins {
    dir: PathBuf,
    maps: PathBuf,
    links: PathBuf,
    /// Locks the directory for as long as it is open.
    lock: Mutex<OwnedFd>,
}

impl Pins {
    /// Opens the directory, making it where it is not there.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        probe::bpffs(dir)?;
        let (maps, links) = (dir.join(MAPS_DIR), dir.join(LINKS_DIR));
        for path in [dir, &maps, &links] {
            std::fs::create_dir_all(path).map_err(|source| match source.kind() {
                io::ErrorKind::ReadOnlyFilesystem => Error::ReadOnly {
                    path: path.to_owned(),
                },
                io::ErrorKind::PermissionDenied => Error::NotPermitted,
                _ => Error::Pin {
                    action: "make the directory",
                    path: path.to_owned(),
                    source,
                },
            })?;
        }
        let lock = lock(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            maps,
            links,
            lock: Mutex::new(lock),
        })
    }

    /// The instance's directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where each map is pinned.
    pub(super) fn maps(&self) -> impl Iterator<Item = (&'static str, PathBuf)> + '_ {
        MAPS.iter().map(|map| (map.name, self.maps.join(map.name)))
    }

    /// Where a map is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps.join(name)
    }

    /// Keeps a map that the programs use.
    pub(super) fn hold(&self, name: &'static str, map: BorrowedFd<'_>) -> Result<Held, Error> {
        let failed = |source| unread(self.map(name), source);
        let map = map.try_clone_to_owned().map_err(failed)?;
        let info = sys::map_info(&map).map_err(failed)?;
        Ok(Held { name, map, info })
    }

    /// What is in the place of a map's pin; `None`: its pin.
    pub(super) fn instead_of(&self, held: &Held) -> Option<Unpinned> {
        match sys::open_pin(&self.map(held.name)).and_then(sys::map_info) {
            Ok(info) if info == held.info => None,
            Ok(_) => Some(Unpinned::Another),
            Err(error) if sys::is_shortage(&error) => Some(Unpinned::Unknown(error)),
            Err(error) => Some(Unpinned::Gone(error)),
        }
    }

    /// Makes the directories anew that somebody removed, and holds the instance's own as before.
    pub(super) fn make_again(&self) -> Result<(), Error> {
        for path in [&self.dir, &self.maps, &self.links] {
            match std::fs::create_dir(path) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::Pin {
                        action: "make the directory",
                        path: path.clone(),
                        source,
                    });
                }
                _ => {}
            }
        }
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let place = |stat: fs::Stat| (stat.st_dev, stat.st_ino);
        let is_held = match (fs::stat(&self.dir), fs::fstat(&*held)) {
            (Ok(there), Ok(locked)) => place(there) == place(locked),
            _ => false,
        };
        if !is_held {
            *held = lock(&self.dir)?;
        }
        Ok(())
    }

    /// Pins a map in the place of what may be there.
    pub(super) fn pin_again(&self, held: &Held) -> Result<(), Error> {
        self.pin_map(held.name, held.map.as_fd())
    }

    fn pin_map(&self, name: &str, map: BorrowedFd<'_>) -> Result<(), Error> {
        let path = self.map(name);
        sys::pin_over(map, &path).map_err(|source| Error::Pin {
            action: "pin",
            path,
            source,
        })
    }

    /// Notes which hooks an agent attaches: nobody else can tell one that was taken away from one that the kernel does not have.
    pub(super) fn note(&self, is_attached: impl Fn(&str) -> bool) -> Result<(), Error> {
        for name in HOOKS.iter().map(|hook| hook.name) {
            let path = attached(&self.dir, name);
            match is_attached(name) {
                true => std::fs::create_dir_all(&path).map_err(|source| Error::Pin {
                    action: "make the directory",
                    path,
                    source,
                })?,
                false => remove_dir(&path)?,
            }
        }
        Ok(())
    }

    /// Where a hook's link is pinned.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.links.join(name)
    }

    /// Did an earlier agent get as far as attaching something? Then what is here is adopted, and
    /// never removed because this agent cannot start.
    pub(super) fn are_in_force(&self) -> bool {
        HOOKS.iter().any(|hook| self.link(hook.name).exists())
    }

    /// Was there a fence of which not all was in force, or one that was put back and of which what had passed was not looked for yet?
    pub(super) fn was_open(&self) -> bool {
        // Somebody may have left nothing but maps, which say who is governed.
        let was_there = self.are_in_force() || self.map("GOVERNED").exists();
        was_there && (self.is_unseen() || left::was_open(&self.dir))
    }

    /// Notes, before hooks that were away are put back, that not all that is governed has been looked at since: who looks may end
    /// first, and nothing else tells the next agent.
    pub(super) fn note_unseen(&self) -> Result<(), Error> {
        let path = self.dir.join(UNSEEN);
        std::fs::create_dir_all(&path).map_err(|source| Error::Pin {
            action: "make the directory",
            path,
            source,
        })
    }

    /// All of it has been.
    pub(super) fn note_seen(&self) -> Result<(), Error> {
        remove_dir(&self.dir.join(UNSEEN))
    }

    /// Is it noted that not all has been?
    pub(super) fn is_unseen(&self) -> bool {
        is_unseen(&self.dir)
    }

    /// Sees to it that the maps of what is in force are there, and refuses those that this agent does not fit: what is not
    /// pinned would be made anew, and programs put in force that know of nobody who is governed.
    pub(super) fn adopt(&self) -> Result<(), Error> {
        let in_force = self.are_in_force();
        if in_force {
            self.recover()?;
        }
        self.check_shapes()?;
        self.check_version()?;
        let mut maps = MAPS.iter().filter(|map| map.name != SPARE);
        match maps.find(|map| in_force && !self.map(map.name).exists()) {
            Some(lost) => Err(Error::MapLost {
                path: self.dir.clone(),
                map: lost.name,
            }),
            None => Ok(()),
        }
    }

    /// Pins again what programs in force use, where nothing is or something that none of them uses.
    fn recover(&self) -> Result<(), Error> {
        let used = self.used_in_force()?;
        for (name, path) in self.maps() {
            let mut called = used.iter().filter(|(info, _)| info.is_called(name));
            let Some((info, map)) = called.next() else {
                continue;
            };
            match sys::open_pin(&path).and_then(sys::map_info) {
                Ok(found) if found == *info || called.any(|(info, _)| *info == found) => continue,
                Err(error) if sys::is_shortage(&error) => return Err(unread(path, error)),
                _ => self.pin_map(name, map.as_fd())?,
            }
            tracing::error!(
                "the fence was changed by another hand: the map {name} was not pinned, and is again"
            );
        }
        Ok(())
    }

    /// The maps of the programs that the pinned links hold.
    fn used_in_force(&self) -> Result<Vec<(sys::MapInfo, OwnedFd)>, Error> {
        let mut used: Vec<(sys::MapInfo, OwnedFd)> = Vec::new();
        for path in HOOKS.iter().map(|hook| self.link(hook.name)) {
            let maps = match of_link(&path) {
                Ok(maps) => maps,
                Err(error) if sys::is_shortage(&error) => return Err(unread(path, error)),
                // No link is there, or none with a program: the others tell.
                Err(_) => continue,
            };
            for (info, map) in maps {
                if !used.iter().any(|(other, _)| *other == info) {
                    used.push((info, map));
                }
            }
        }
        Ok(used)
    }

    /// Refuses maps of another shape: hooks of two versions must not share them.
    fn check_shapes(&self) -> Result<(), Error> {
        for map in MAPS {
            let path = self.maps.join(map.name);
            if !path.exists() {
                continue;
            }
            let found = MapInfo::from_pin(&path).map_err(|error| match shortage(error) {
                Some(source) => unread(path, source),
                None => self.incompatible(format!("{} is not a map", map.name)),
            })?;
            let sizes = (
                found.key_size() as usize,
                found.value_size() as usize,
                found.max_entries(),
            );
            if sizes != (map.key, map.value, map.entries) {
                return Err(self.incompatible(format!(
                    "{} holds {}×({}+{}) bytes instead of {}×({}+{})",
                    map.name, sizes.2, sizes.0, sizes.1, map.entries, map.key, map.value
                )));
            }
        }
        Ok(())
    }

    /// Refuses maps of another version, likewise.
    fn check_version(&self) -> Result<(), Error> {
        let path = self.map("SETTINGS");
        if !path.exists() {
            return Ok(());
        }
        match pinned_abi(&path) {
            Ok(0 | ABI) => Ok(()),
            Ok(other) => Err(self.incompatible(format!("ABI {other} instead of {ABI}"))),
            Err(error) => Err(match shortage(error) {
                Some(source) => unread(path, source),
                None => self.incompatible("SETTINGS tells no ABI".to_owned()),
            }),
        }
    }

    fn incompatible(&self, what: String) -> Error {
        Error::Incompatible {
            path: self.dir.clone(),
            what,
        }
    }

    /// Removes every pin and the directory. What steers goes first: while the rest goes, a governed
    /// connection passes rather than being steered to where nobody can attribute it.
    pub(super) fn remove(&self) -> Result<(), Error> {
        for hook in HOOKS.iter().rev() {
            remove_file(&self.link(hook.name))?;
            remove_file(&sys::beside(&self.link(hook.name)))?;
        }
        for (_, path) in self.maps() {
            remove_file(&path)?;
            remove_file(&sys::beside(&path))?;
        }
        self.note(|_| false)?;
        self.note_seen()?;
        for path in [&self.links, &self.maps, &self.dir.join(ATTACHED)] {
            remove_dir(path)?;
        }
        if probe::is_mount_of_bpffs(&self.dir) {
            rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH).map_err(
                |errno| Error::Pin {
                    action: "unmount",
                    path: self.dir.clone(),
                    source: errno.into(),
                },
            )?;
        }
        remove_dir(&self.dir)
    }
}

/// In an instance's directory: where its maps are pinned.
const MAPS_DIR: &str = "maps";

/// In an instance's directory: where its links are pinned.
const LINKS_DIR: &str = "links";

/// Where an instance pins a map.
pub(super) fn map(dir: &Path, name: &str) -> PathBuf {
    dir.join(MAPS_DIR).join(name)
}

/// In an instance's directory: a directory for each hook that its agent attached. A bpffs has nothing else to write into.
const ATTACHED: &str = "attached";

/// In an instance's directory: there while not all has been looked at again since hooks were away.
const UNSEEN: &str = "unseen";

pub(super) fn is_unseen(dir: &Path) -> bool {
    dir.join(UNSEEN).exists()
}

/// Is there once an agent attached this hook.
pub(super) fn attached(dir: &Path, hook: &str) -> PathBuf {
    dir.join(ATTACHED).join(hook)
}

/// The maps that the program of a pinned link uses.
fn of_link(path: &Path) -> io::Result<Vec<(sys::MapInfo, OwnedFd)>> {
    let link = sys::link_info(sys::open_pin(path)?)?;
    let maps = sys::maps_used_by(link.program)?.into_iter();
    maps.map(|map| Ok((sys::map_info(&map)?, map))).collect()
}

fn pinned_abi(path: &Path) -> Result<u32, MapError> {
    let map = Map::from_map_data(MapData::from_pin(path)?)?;
    let settings: Array<MapData, settings::Settings> = map.try_into()?;
    Ok(settings.get(&0, 0)?.abi)
}

/// Was it for want of descriptors or memory? That tells nothing of what is pinned.
fn shortage(error: MapError) -> Option<io::Error> {
    match error {
        MapError::SyscallError(error) => Some(error.io_error).filter(sys::is_shortage),
        MapError::IoError(error) => Some(error).filter(sys::is_shortage),
        _ => None,
    }
}

fn unread(path: PathBuf, source: io::Error) -> Error {
    Error::Pin {
        action: "open",
        path,
        source,
    }
}

fn lock(dir: &Path) -> Result<OwnedFd, Error> {
    let failed = |errno: Errno| Error::Pin {
        action: "lock",
        path: dir.to_owned(),
        source: errno.into(),
    };
    let fd = fs::open(
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    match fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(fd),
        Err(Errno::WOULDBLOCK) => Err(Error::InUse {
            path: dir.to_owned(),
        }),
        Err(errno) => Err(failed(errno)),
    }
}

pub(super) fn remove_file(path: &Path) -> Result<(), Error> {
    gone(path, std::fs::remove_file(path))
}

fn remove_dir(path: &Path) -> Result<(), Error> {
    gone(path, std::fs::remove_dir(path))
}

fn gone(path: &Path, result: io::Result<()>) -> Result<(), Error> {
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::Pin {
            action: "remove",
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
