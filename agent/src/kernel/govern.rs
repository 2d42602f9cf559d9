//! What is governed and where it is steered: what the agent tells the hooks.
use super::missed::Missed;
use super::{
    Beyond, Enrolled, Error, Fence, Governed, cgroup,
    holders::Holders,
    maps::{Maps, Swept, Writers, read, write},
    namespaces, processes, syn,
    translate::text,
};
use aya::maps::MapError;
use rustix::net::{SocketType, sockopt::socket_type};
use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tollgate_common::ABI;
use tollgate_common::flow::{AgentSocket, LISTENER_TAG, Port, Query};
use tollgate_common::limits::{MAX_WORKLOADS, NAME_BYTES};
use tollgate_common::recognise::{Mark, Subtree, UNSETTLED, WORKLOAD_IDS};
use tollgate_common::settings::{Name, Ports, Settings};

/// Workloads that the hooks hold, of all that policies have named since the fence was made.
pub const MOST_WORKLOADS: usize = MAX_WORKLOADS as usize;

/// In place of a workload's name, where it is not known yet whose something is.
pub const UNSETTLED_NAME: &str = "unsettled";

/// How long a cgroup cannot be opened before it is taken for gone, where no hook has said so. The hooks have a new one before anybody can
/// open it, and who is making it may have to wait in between.
const BEING_MADE: Duration = Duration::from_secs(10);

/// Stamps the maps with their version, and forgets what was sent to an earlier agent, and who connected to it: nobody asks.
pub(super) fn prepare(maps: &Maps) -> Result<(), Error> {
    let mut writers = maps.write();
    let unread: Vec<Query> = writers.queries.keys().filter_map(Result::ok).collect();
    for query in unread {
        let _ = writers.queries.remove(&query);
    }
    let unasked: Vec<Port> = writers.orphans.keys().filter_map(Result::ok).collect();
    for port in unasked {
        let _ = writers.orphans.remove(&port);
    }
    writers.set(Settings { abi: ABI })
}

impl Fence {
    pub(super) fn admit_listeners(
        &self,
        listeners: &[impl AsFd],
        port4: u16,
        port6: Option<u16>,
    ) -> Result<u64, Error> {
        let namespace = listeners.first().map_or_else(
            || Err(ErrorKind::InvalidInput.into()),
            |first| namespaces::cookie(first.as_fd()),
        );
        let namespace = namespace.map_err(|source| Error::Namespace { source })?;
        let mut writers = self.maps.write();
        let tag = AgentSocket { tag: LISTENER_TAG };
        for listener in listeners.iter().map(AsFd::as_fd) {
            let kept = match socket_type(listener) {
                Ok(SocketType::STREAM) => syn::keep(listener),
                _ => Ok(()),
            };
            kept.map_err(|source| Error::Listener {
                source: source.into(),
            })?;
            let tagged = writers.agent_sockets.insert(&listener.as_raw_fd(), tag, 0);
            tagged.map_err(|source| Error::Listener {
                source: Box::new(source),
            })?;
        }
        let listeners: Vec<_> = listeners.iter().map(|l| l.as_fd().as_raw_fd()).collect();
        // Only now: a port without a tag behind it refuses.
        let ports = Ports {
            port4,
            port6: port6.unwrap_or(0),
            reserved: 0,
        };
        writers
            .namespaces
            .insert(namespace, ports, 0)
            .map_err(write("NAMESPACES"))?;
        self.listeners.set(namespace, ports, listeners);
        Ok(namespace)
    }

    pub(super) fn retire_listeners(&self, namespace: u64) -> Result<(), Error> {
        let mut writers = self.maps.write();
        self.listeners.remove(namespace);
        removed(writers.namespaces.remove(&namespace), "NAMESPACES")
    }

    pub(super) fn retire_strangers(&self) -> Result<(), Error> {
        let mut writers = self.maps.write();
        let known: Vec<u64> = writers.namespaces.keys().filter_map(Result::ok).collect();
        for namespace in known.into_iter().filter(|n| !self.listeners.has(*n)) {
            removed(writers.namespaces.remove(&namespace), "NAMESPACES")?;
        }
        Ok(())
    }

    /// `kept`: bits that stay where they are.
    pub(super) fn set_conditions(
        &self,
        path: &Path,
        conditions: u64,
        kept: u64,
    ) -> Result<u64, Error> {
        let subtree = cgroup::subtree(&self.root, path)?;
        let mut writers = self.maps.write();
        let old = writers.governed.get(&subtree.id, 0).unwrap_or_default();
        let conditions = conditions | old.conditions & kept;
        if old.conditions == conditions {
            return Ok(subtree.id);
        }
        let new = Subtree { conditions, ..old };
        if new == Subtree::default() {
            removed(writers.governed.remove(&subtree.id), "GOVERNED")?;
        } else {
            self.enter(&mut writers, &subtree, new)?;
        }
        self.scope.ask_again();
        Ok(subtree.id)
    }

    pub(super) fn govern_subtree(&self, path: &Path, workload: &str) -> Result<Enrolled, Error> {
        let subtree = cgroup::subtree_of_others(&self.root, path)?;
        let mut writers = self.maps.write();
        let ids = self.workload_ids(&mut writers, std::iter::once(workload))?;
        let id = ids.get(workload).copied().unwrap_or_default();
        let old = writers.governed.get(&subtree.id, 0).unwrap_or_default();
        let found = Subtree {
            workload: id,
            ..old
        };
        self.enter(&mut writers, &subtree, found)?;
        drop(writers);
        let directory = self.root.path.join(&subtree.path);
        let newly = self.enrol_subtree(&directory, u16::try_from(id).unwrap_or_default());
        let newly = newly.map_err(|source| processes::unread(directory, source))?;
        Ok(Enrolled {
            cgroup_id: subtree.id,
            newly,
        })
    }

    pub(super) fn hold_subtree(&self, path: &Path) -> Result<(), Error> {
        let subtree = cgroup::subtree_of_others(&self.root, path)?;
        let mut writers = self.maps.write();
        let old = writers.governed.get(&subtree.id, 0).unwrap_or_default();
        if old.workload != 0 {
            return Ok(());
        }
        let held = Subtree {
            workload: u32::from(UNSETTLED),
            ..old
        };
        self.enter(&mut writers, &subtree, held)
    }

    /// What is refused because there was no room to govern it, for [`Self::let_in`].
    pub fn beyond(&self) -> Beyond {
        self.beyond.all()
    }

    /// All that was `beyond` has been looked at since: it is refused no longer, unless there was no room again.
    pub fn let_in(&self, beyond: &Beyond) {
        self.beyond.remove(beyond);
    }

    /// What there is no room for is refused.
    fn enter(
        &self,
        writers: &mut Writers,
        subtree: &cgroup::Subtree,
        value: Subtree,
    ) -> Result<(), Error> {
        let inserted = writers.governed.insert(subtree.id, value, 0);
        if inserted.is_err() {
            self.beyond.add(subtree.id);
        }
        self.scope.add(subtree.id, subtree.level);
        inserted.map_err(write("GOVERNED"))?;
        if subtree.is_gone() {
            // Its removal may have been seen before: nobody would take the entry away.
            removed(writers.governed.remove(&subtree.id), "GOVERNED")?;
            return Err(Error::Cgroup {
                path: subtree.path.clone(),
                source: ErrorKind::NotFound.into(),
            });
        }
        Ok(())
    }

    /// Forgets what cgroups fulfilled that are gone, where no hook has seen them go: at one look after the other, far enough apart.
    pub fn forget_gone(&self) {
        let mut swept = self
            .maps
            .swept
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if swept.at.is_some_and(|at| at.elapsed() < BEING_MADE) {
            return;
        }
        let entries = self.maps.governed.iter().filter_map(Result::ok);
        let ids = entries
            .filter(|(_, subtree)| subtree.workload == 0)
            .map(|(id, _)| id);
        let is_gone = |id: &u64| cgroup::path(&self.root, *id).is_err_and(|why| why.is_gone);
        let gone: HashSet<u64> = ids.filter(is_gone).collect();
        let mut writers = self.maps.write();
        for id in gone.intersection(&swept.gone) {
            let _ = writers.governed.remove(id);
        }
        *swept = Swept {
            at: Some(Instant::now()),
            gone,
        };
    }

    /// The ids of workloads, made where they have none. Ids are counted up and never given to another name: records and
    /// counters of the past keep theirs.
    pub(super) fn workload_ids<'a>(
        &self,
        writers: &mut Writers,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<HashMap<String, u32>, Error> {
        let mut last = writers.ids.values().max().copied().unwrap_or(0);
        let (mut new, mut asked) = (Vec::new(), HashMap::new());
        for workload in names {
            let id = match writers.ids.get(workload).copied() {
                Some(id) => {
                    set_released(writers, id, false)?;
                    id
                }
                None => {
                    last += 1;
                    name_workload(writers, workload, last)?;
                    let shared: Arc<str> = Arc::from(workload);
                    writers.ids.insert(Arc::clone(&shared), last);
                    new.push((last, shared));
                    last
                }
            };
            asked.insert(workload.to_owned(), id);
        }
        if !new.is_empty() {
            let mut all = HashMap::clone(&self.names.workloads.load());
            all.extend(new);
            self.names.workloads.store(Arc::new(all));
        }
        Ok(asked)
    }

    /// Begins to let go of workloads for which `stays` does not hold: whoever is another's now becomes that one's. A workload
    /// that has a cgroup still stays. Ended by [`Fence::forget_workloads`].
    pub fn part_with(&self, stays: impl Fn(&str) -> bool) {
        let entries = self.maps.governed.iter().filter_map(Result::ok);
        let entered: HashSet<u32> = entries.map(|(_, subtree)| subtree.workload).collect();
        let names = self.names.workloads.load();
        let leaving = names
            .iter()
            .filter(|(id, name)| **id <= MAX_WORKLOADS && !entered.contains(*id) && !stays(name));
        let leaving = leaving.map(|(id, _)| *id).collect();
        self.leaving.store(Arc::new(leaving));
    }

    /// Lets go of every process that is still of such a workload, and of what was made as one.
    pub(super) fn let_go(&self, stays: impl Fn(&str) -> bool) -> Result<(), Error> {
        self.part_with(stays);
        let leaving = self.leaving.load_full();
        if leaving.is_empty() {
            return Ok(());
        }
        let is_released = |id: &u32| self.maps.write().is_released(*id);
        if leaving
            .iter()
            .any(|id| !is_released(id).unwrap_or_default())
        {
            // What others have of theirs becomes those others'.
            self.hand_over()?;
        }
        let is_leaving =
            |mark: Mark| mark.is_governed() && leaving.contains(&u32::from(mark.workload()));
        self.marks.clear(is_leaving);
        self.set_all_released(&leaving)?;
        // Who was being made as a child of one when its own went.
        self.marks.clear(is_leaving);
        self.leaving.store(Arc::default());
        Ok(())
    }

    /// An error: not all that processes have could be looked at, for want of descriptors or memory.
    fn hand_over(&self) -> Result<(), Error> {
        let mut missed = Missed::default();
        let governed = missed.listed(self.governed_ids());
        Holders::of(self, &governed, &mut missed).hand_over(self, &mut missed);
        missed
            .why()
            .map_or(Ok(()), |why| Err(Error::Unseen { why }))
    }

    /// What the tasks of these workloads made is nobody's from now on.
    fn set_all_released(&self, ids: &HashSet<u32>) -> Result<(), Error> {
        let mut writers = self.maps.write();
        ids.iter()
            .try_for_each(|id| set_released(&mut writers, *id, true))
    }

    pub(super) fn all_fulfilled(&self) -> Vec<(String, u64)> {
        let entries = self.maps.governed.iter().filter_map(Result::ok);
        entries
            .filter(|(_, subtree)| subtree.conditions != 0)
            .filter_map(|(id, subtree)| {
                let path = cgroup::path(&self.root, id).ok()?;
                Some((format!("/{}", path.display()), subtree.conditions))
            })
            .collect()
    }

    pub(super) fn release_subtree(&self, id: u64) -> Result<(), Error> {
        let mut writers = self.maps.write();
        let old = writers.governed.get(&id, 0).unwrap_or_default();
        if old.conditions == 0 {
            return removed(writers.governed.remove(&id), "GOVERNED");
        }
        // What it fulfils stays true: rules on its processes ask for it.
        let left = Subtree { workload: 0, ..old };
        let inserted = writers.governed.insert(id, left, 0);
        inserted.map_err(write("GOVERNED"))
    }

    /// How many cgroups are governed, without asking where each is.
    pub fn count_governed(&self) -> usize {
        let entries = self.maps.governed.iter().filter_map(Result::ok);
        entries.filter(|(_, subtree)| subtree.workload != 0).count()
    }

    /// Is this cgroup governed itself? One of which that cannot be known is.
    pub fn is_governed(&self, path: &Path) -> bool {
        match cgroup::subtree(&self.root, path) {
            Ok(subtree) => match self.maps.governed.get(&subtree.id, 0) {
                Ok(found) => found.workload != 0,
                Err(missing) => !matches!(missing, MapError::KeyNotFound),
            },
            // It is gone, or beside what this agent sees of the tree.
            Err(Error::Cgroup { source, .. }) => {
                !matches!(source.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput)
            }
            Err(_) => false,
        }
    }

    pub(super) fn all_governed(&self) -> Vec<Governed> {
        let entries = self.maps.governed.iter().filter_map(Result::ok);
        let entries = entries.filter(|(_, subtree)| subtree.workload != 0);
        let mut gone = self
            .maps
            .gone
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *gone);
        let mut all: Vec<Governed> = entries
            .map(|(cgroup_id, subtree)| {
                let path = cgroup::path(&self.root, cgroup_id);
                // One that is being made is there for the hooks before anybody else can open it.
                let is_away = path.as_ref().is_err_and(|missing| missing.is_gone);
                let since = is_away.then(|| {
                    let now = Instant::now();
                    let since = before.get(&cgroup_id).copied().unwrap_or(now);
                    *gone.entry(cgroup_id).or_insert(since)
                });
                Governed {
                    cgroup_id,
                    is_gone: since.is_some_and(|since| since.elapsed() > BEING_MADE),
                    cgroup: path.ok().map(|path| format!("/{}", path.display())),
                    workload: self.names.workload(subtree.workload).to_string(),
                }
            })
            .collect();
        all.sort_by(|a, b| (&a.workload, a.cgroup_id).cmp(&(&b.workload, b.cgroup_id)));
        all
    }

    /// Takes over the names that earlier agents gave.
    pub(super) fn read_workloads(&self) -> Result<(), Error> {
        let mut writers = self.maps.write();
        let names: Result<HashMap<u32, Arc<str>>, MapError> = writers
            .workloads
            .iter()
            .map(|entry| entry.map(|(id, name)| (id, Arc::from(text(&name.0)))))
            .chain(std::iter::once(Ok((
                u32::from(UNSETTLED),
                Arc::from(UNSETTLED_NAME),
            ))))
            .collect();
        let names = names.map_err(read("WORKLOADS"))?;
        let own = names.iter().filter(|(id, _)| **id < WORKLOAD_IDS);
        writers.ids = own.map(|(id, name)| (Arc::clone(name), *id)).collect();
        self.names.workloads.store(Arc::new(names));
        Ok(())
    }
}

/// Says whether what a workload's tasks made is nobody's.
fn set_released(writers: &mut Writers, id: u32, is_released: bool) -> Result<(), Error> {
    if writers.is_released(id)? == is_released {
        return Ok(());
    }
    let set = writers.released.set(id, u32::from(is_released), 0);
    set.map_err(write("RELEASED"))
}

/// What is not there need not be removed.
pub(super) fn removed(result: Result<(), MapError>, map: &'static str) -> Result<(), Error> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        result => result.map_err(write(map)),
    }
}

/// Makes a workload known under a number.
fn name_workload(writers: &mut Writers, workload: &str, id: u32) -> Result<(), Error> {
    let name = name(workload)?;
    if id > MAX_WORKLOADS {
        return Err(Error::TooMany {
            what: "workloads",
            limit: MAX_WORKLOADS,
        });
    }
    writers
        .workloads
        .insert(id, name, 0)
        .map_err(write("WORKLOADS"))
}

/// A name that fits, with a NUL after it.
fn name(workload: &str) -> Result<Name, Error> {
    let mut name = Name([0; NAME_BYTES]);
    match name.0.get_mut(..workload.len()) {
        Some(bytes)
            if !workload.is_empty()
                && workload.len() < NAME_BYTES
                && !workload.chars().any(char::is_control) =>
        {
            bytes.copy_from_slice(workload.as_bytes());
            Ok(name)
        }
        _ => Err(Error::WorkloadName {
            name: workload.escape_debug().to_string(),
            limit: NAME_BYTES - 1,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded() {
        assert!(name("report-builder").is_ok_and(|name| text(&name.0) == "report-builder"));
        assert!(name(&"x".repeat(NAME_BYTES - 1)).is_ok());
        for bad in [
            "",
            "a\nb",
            "a\0b",
            &"x".repeat(NAME_BYTES),
            &"x".repeat(NAME_BYTES + 1),
        ] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }
}
