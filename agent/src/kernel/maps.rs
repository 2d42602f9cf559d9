//! The pinned maps, typed. Reading takes no lock; what the agent writes, it writes under one.
use super::{Error, pins::Pins, sys};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf, SkStorage};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tollgate_common::event::RefusalKey;
use tollgate_common::flow::{Account, AgentSocket, Asker, Inode, Path, Port, Query, Steered};
use tollgate_common::openings::{Kept, Listen, Named};
use tollgate_common::quota::{Quota, Spent};
use tollgate_common::recognise::{
    Arrival, CGROUP_NAME, Case, EXE_NAME, Executable, File, Rule, Step, Subtree, Waiting,
};
use tollgate_common::settings::{Name, Ports, Settings};

/// What is read.
pub(super) struct Maps {
    /// Cgroups that cannot be opened, though `GOVERNED` has them, and since when.
    pub(super) gone: Mutex<std::collections::HashMap<u64, Instant>>,
    pub(super) swept: Mutex<Swept>,
    pub(super) governed: HashMap<MapData, u64, Subtree>,
    pub(super) agent_sockets: SkStorage<MapData, AgentSocket>,
    pub(super) accepted: SkStorage<MapData, Steered>,
    /// `ORPHANS`, of which entries are taken.
    pub(super) orphans: OwnedFd,
    pub(super) paths: HashMap<MapData, Inode, Path>,
    /// `CLIENTS`, which is listed.
    pub(super) clients: OwnedFd,
    pub(super) kept: HashMap<MapData, u64, Kept>,
    pub(super) accounts: PerCpuArray<MapData, Account>,
    pub(super) refusals: HashMap<MapData, RefusalKey, u64>,
    pub(super) quotas: Array<MapData, Quota>,
    pub(super) spent: Array<MapData, Spent>,
    pub(super) lost: PerCpuArray<MapData, u64>,
    /// `QUERIES`, of which entries are taken.
    pub(super) queries: OwnedFd,
    /// Taken by whoever waits for events.
    pub(super) events: Mutex<Option<RingBuf<MapData>>>,
    writers: Mutex<Writers>,
}

/// Cgroups that were gone, of which only conditions are known, at the last look at all of them.
#[derive(Default)]
pub(super) struct Swept {
    pub(super) at: Option<Instant>,
    pub(super) gone: std::collections::HashSet<u64>,
}

/// What is written.
pub(super) struct Writers {
    pub(super) settings: Array<MapData, Settings>,
    pub(super) governed: HashMap<MapData, u64, Subtree>,
    pub(super) workloads: HashMap<MapData, u32, Name>,
    /// The same by their names.
    pub(super) ids: std::collections::HashMap<Arc<str>, u32>,
    pub(super) queries: HashMap<MapData, Query, Asker>,
    pub(super) orphans: HashMap<MapData, Port, Steered>,
    pub(super) namespaces: HashMap<MapData, u64, Ports>,
    pub(super) released: Array<MapData, u32>,
    pub(super) quotas: Array<MapData, Quota>,
    pub(super) spent: Array<MapData, Spent>,
    pub(super) agent_sockets: SkStorage<MapData, AgentSocket>,
    pub(super) origin: SkStorage<MapData, u64>,
    pub(super) names: HashMap<MapData, [u8; CGROUP_NAME], u32>,
    pub(super) steps: HashMap<MapData, Step, Arrival>,
    pub(super) executables: HashMap<MapData, File, Executable>,
    pub(super) exe_names: HashMap<MapData, [u8; EXE_NAME], u32>,
    pub(super) rules: HashMap<MapData, Case, Rule>,
    pub(super) waiting: HashMap<MapData, u32, Waiting>,
    pub(super) listen: HashMap<MapData, Listen, u32>,
    pub(super) unix: LpmTrie<MapData, Named, u32>,
    pub(super) kept: HashMap<MapData, u64, Kept>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Maps")
    }
}

impl Maps {
    /// Opens every map at its pin.
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self {
            gone: Mutex::default(),
            swept: Mutex::default(),
            governed: open(pins, "GOVERNED")?,
            agent_sockets: open(pins, "AGENT_SOCKETS")?,
            accepted: open(pins, "ACCEPTED")?,
            orphans: open_raw(pins, "ORPHANS")?,
            paths: open(pins, "PATHS")?,
            clients: open_raw(pins, "CLIENTS")?,
            kept: open(pins, "KEPT")?,
            accounts: open(pins, "ACCOUNTS")?,
            refusals: open(pins, "REFUSALS")?,
            quotas: open(pins, "QUOTAS")?,
            spent: open(pins, "SPENT")?,
            lost: open(pins, "LOST")?,
            queries: open_raw(pins, "QUERIES")?,
            events: Mutex::new(Some(open(pins, "EVENTS")?)),
            writers: Mutex::new(Writers {
                settings: open(pins, "SETTINGS")?,
                governed: open(pins, "GOVERNED")?,
                workloads: open(pins, "WORKLOADS")?,
                ids: std::collections::HashMap::new(),
                queries: open(pins, "QUERIES")?,
                orphans: open(pins, "ORPHANS")?,
                namespaces: open(pins, "NAMESPACES")?,
                released: open(pins, "RELEASED")?,
                quotas: open(pins, "QUOTAS")?,
                spent: open(pins, "SPENT")?,
                agent_sockets: open(pins, "AGENT_SOCKETS")?,
                origin: open(pins, "ORIGIN")?,
                names: open(pins, "NAMES")?,
                steps: open(pins, "STEPS")?,
                executables: open(pins, "EXECUTABLES")?,
                exe_names: open(pins, "EXE_NAMES")?,
                rules: open(pins, "RULES")?,
                waiting: open(pins, "WAITING")?,
                listen: open(pins, "LISTEN")?,
                unix: open(pins, "UNIX")?,
                kept: open(pins, "KEPT")?,
            }),
        })
    }

    /// The maps that are written; one writer at a time.
    pub(super) fn write(&self) -> MutexGuard<'_, Writers> {
        // A writer that panicked left a map as it was or as it should be: one system call each.
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writers {
    /// Has policy let go of a workload?
    pub(super) fn is_released(&self, id: u32) -> Result<bool, Error> {
        let released = self.released.get(&id, 0).map_err(read("RELEASED"))?;
        Ok(released != 0)
    }

    /// Changes the settings.
    pub(super) fn set(&mut self, settings: Settings) -> Result<(), Error> {
        self.settings.set(0, settings, 0).map_err(write("SETTINGS"))
    }
}

fn open_raw(pins: &Pins, name: &'static str) -> Result<OwnedFd, Error> {
    sys::open_pin(&pins.map(name)).map_err(|source| Error::Pin {
        action: "open",
        path: pins.map(name),
        source,
    })
}

fn open<T>(pins: &Pins, name: &'static str) -> Result<T, Error>
where
    T: TryFrom<Map, Error = MapError>,
{
    MapData::from_pin(pins.map(name))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(read(name))
}

/// An error of reading a map.
pub(super) fn read(map: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map {
        action: "read",
        map,
        source: Box::new(source),
    }
}

/// An error of writing a map.
pub(super) fn write(map: &'static str) -> impl Fn(MapError) -> Error {
    move |source| Error::Map {
        action: "write",
        map,
        source: Box::new(source),
    }
}
