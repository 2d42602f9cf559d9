//! What is governed and where it is steered: what the agent tells the hooks.
use super::{
    Enrolled, Error, Fence, Governed, cgroup,
    maps::{Maps, Writers, read, write},
    namespaces,
    translate::{self, text},
};
use aya::maps::{MapError, PerCpuValues};
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use tollgate_common::ABI;
use tollgate_common::flow::{Account, AgentSocket, Connection, LISTENER_TAG};
use tollgate_common::limits::{MAX_RESOLVERS, MAX_WORKLOADS, NAME_BYTES};
use tollgate_common::recognise::Subtree;
use tollgate_common::settings::{Name, Ports, Settings};

/// `BPF_NOEXIST`
const NOT_THERE: u64 = 1;

/// Stamps the maps with their version and sets the resolvers to exactly these.
pub(super) fn prepare(maps: &Maps, resolvers: &[IpAddr]) -> Result<(), Error> {
    if resolvers.len() > MAX_RESOLVERS as usize {
        return Err(Error::TooMany {
            what: "resolvers",
            limit: MAX_RESOLVERS,
        });
    }
    let mut writers = maps.write();
    writers.set(Settings { abi: ABI })?;
    let wanted: Vec<[u32; 4]> = resolvers.iter().map(|&ip| translate::ip(ip)).collect();
    let old: Vec<[u32; 4]> = writers.resolvers.keys().filter_map(Result::ok).collect();
    for ip in old.iter().filter(|ip| !wanted.contains(ip)) {
        writers.resolvers.remove(ip).map_err(write("RESOLVERS"))?;
    }
    for ip in &wanted {
        writers
            .resolvers
            .insert(ip, 1, 0)
            .map_err(write("RESOLVERS"))?;
    }
    Ok(())
}

impl Fence {
    pub(super) fn admit_listeners(
        &self,
        listeners: &[impl AsFd],
        port4: u16,
        port6: Option<u16>,
    ) -> Result<u64, Error> {
        let namespace = listeners.first().map_or_else(
            || Err(std::io::ErrorKind::InvalidInput.into()),
            |first| namespaces::cookie(first.as_fd()),
        );
        let namespace = namespace.map_err(|source| Error::Namespace { source })?;
        let mut writers = self.maps.write();
        let tag = AgentSocket {
            tag: LISTENER_TAG,
            connection: Connection::default(),
        };
        let listeners: Vec<_> = listeners.iter().map(|l| l.as_fd().as_raw_fd()).collect();
        for listener in &listeners {
            let tagged = writers.agent_sockets.insert(listener, tag, 0);
            tagged.map_err(|source| Error::Listener {
                source: Box::new(source),
            })?;
        }
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

    pub(super) fn govern_subtree(&self, path: &Path, workload: &str) -> Result<Enrolled, Error> {
        let name = name(workload)?;
        let subtree = cgroup::subtree(&self.root, path)?;
        let mut writers = self.maps.write();
        let id = self.workload_id(&mut writers, workload, name)?;
        let found = Subtree {
            workload: id,
            ..Subtree::default()
        };
        writers
            .governed
            .insert(subtree.id, found, 0)
            .map_err(write("GOVERNED"))?;
        self.scope.add(subtree.id, subtree.level);
        drop(writers);
        let directory = self.root.path.join(&subtree.path);
        let newly = self.enrol_subtree(&directory, u16::try_from(id).unwrap_or_default());
        Ok(Enrolled {
            cgroup_id: subtree.id,
            newly,
        })
    }

    /// The workload's id, made if it has none. Ids are counted up and never given to another name:
    /// records and counters of the past keep theirs.
    pub(super) fn workload_id(
        &self,
        writers: &mut Writers,
        workload: &str,
        name: Name,
    ) -> Result<u32, Error> {
        let known = self.names.workloads.load();
        if let Some((&id, _)) = known.iter().find(|(_, known)| &***known == workload) {
            return Ok(id);
        }
        let id = known.keys().max().map_or(1, |last| last + 1);
        if id > MAX_WORKLOADS {
            return Err(Error::TooMany {
                what: "workloads",
                limit: MAX_WORKLOADS,
            });
        }
        let cpus = aya::util::nr_cpus().unwrap_or(1);
        // Zeros on every CPU. The account first: a workload without one would go uncounted.
        if let Ok(zeros) = PerCpuValues::try_from(vec![Account::default(); cpus]) {
            match writers.accounts.insert(id, zeros, NOT_THERE) {
                Err(MapError::SyscallError(error))
                    if error.io_error.raw_os_error() == Some(libc::EEXIST) => {}
                result => result.map_err(write("ACCOUNTS"))?,
            }
        }
        writers
            .workloads
            .insert(id, name, 0)
            .map_err(write("WORKLOADS"))?;
        let mut all = HashMap::clone(&known);
        all.insert(id, Arc::from(workload));
        self.names.workloads.store(Arc::new(all));
        Ok(id)
    }

    pub(super) fn release_subtree(&self, id: u64) -> Result<(), Error> {
        removed(self.maps.write().governed.remove(&id), "GOVERNED")
    }

    pub(super) fn all_governed(&self) -> Vec<Governed> {
        let entries = self.maps.governed.iter().filter_map(Result::ok);
        let mut all: Vec<Governed> = entries
            .map(|(cgroup_id, subtree)| Governed {
                cgroup_id,
                cgroup: cgroup::path(&self.root, cgroup_id)
                    .map(|path| format!("/{}", path.display())),
                workload: self.names.workload(subtree.workload).to_string(),
            })
            .collect();
        all.sort_by(|a, b| (&a.workload, a.cgroup_id).cmp(&(&b.workload, b.cgroup_id)));
        all
    }

    /// Takes over the names that earlier agents gave.
    pub(super) fn read_workloads(&self) -> Result<(), Error> {
        let writers = self.maps.write();
        let names: Result<HashMap<u32, Arc<str>>, MapError> = writers
            .workloads
            .iter()
            .map(|entry| entry.map(|(id, name)| (id, Arc::from(text(&name.0)))))
            .collect();
        self.names
            .workloads
            .store(Arc::new(names.map_err(read("WORKLOADS"))?));
        Ok(())
    }
}

/// What is not there need not be removed.
fn removed(result: Result<(), MapError>, map: &'static str) -> Result<(), Error> {
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

/// A name that fits, with a NUL after it.
pub(super) fn name(workload: &str) -> Result<Name, Error> {
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
