//! Where an instance's maps and links are kept, so that they outlive the agent, and whether what is
//! there fits this agent.
use super::{Error, hooks::HOOKS, probe, sys};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
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

/// Every map that is pinned. A ring and socket storage have no fixed count of entries.
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

/// An instance's directory, held by this agent alone.
#[derive(Debug)]
pub(super) struct Pins {
    dir: PathBuf,
    maps: PathBuf,
    links: PathBuf,
    /// Locks the directory for as long as it is open.
    _lock: OwnedFd,
}

impl Pins {
    /// Opens the directory, making it where it is not there.
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        probe::bpffs(dir)?;
        let (maps, links) = (dir.join("maps"), dir.join("links"));
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
            _lock: lock,
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

    /// Where a hook's link is pinned.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.links.join(name)
    }

    /// Did an earlier agent get as far as attaching something? Then what is here is adopted, and
    /// never removed because this agent cannot start.
    pub(super) fn are_in_force(&self) -> bool {
        HOOKS.iter().any(|hook| self.link(hook.name).exists())
    }

    /// Refuses maps of another version or shape: hooks of two versions must not share them.
    pub(super) fn check(&self) -> Result<(), Error> {
        let incompatible = |what| Error::Incompatible {
            path: self.dir.clone(),
            what,
        };
        for map in MAPS {
            let path = self.maps.join(map.name);
            if !path.exists() {
                continue;
            }
            let found = MapInfo::from_pin(&path).map_err(|error| match shortage(error) {
                Some(source) => unread(path, source),
                None => incompatible(format!("{} is not a map", map.name)),
            })?;
            let sizes = (
                found.key_size() as usize,
                found.value_size() as usize,
                found.max_entries(),
            );
            if sizes != (map.key, map.value, map.entries) {
                return Err(incompatible(format!(
                    "{} holds {}×({}+{}) bytes instead of {}×({}+{})",
                    map.name, sizes.2, sizes.0, sizes.1, map.entries, map.key, map.value
                )));
            }
        }
        let path = self.map("SETTINGS");
        if !path.exists() {
            return Ok(());
        }
        match pinned_abi(&path) {
            Ok(0 | ABI) => Ok(()),
            Ok(other) => Err(incompatible(format!("ABI {other} instead of {ABI}"))),
            Err(error) => Err(match shortage(error) {
                Some(source) => unread(path, source),
                None => incompatible("SETTINGS tells no ABI".to_owned()),
            }),
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
        }
        for path in [&self.links, &self.maps] {
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

fn remove_file(path: &Path) -> Result<(), Error> {
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
