//! Who has which sockets open: by the descriptors of processes, and by the cgroups that sockets were made in.
mod tables;

pub(super) use self::tables::Reading;
use super::missed::{Missed, unless_short};
use super::namespaces::Network;
use super::{Fence, Governed, processes};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::Display;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Network namespaces that are looked at.
const NETWORKS: usize = 1024;

/// Who has a socket open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) process: u32,
    /// Its number there; `None`: in a table of descriptors that a thread may have for itself.
    pub(super) descriptor: Option<RawFd>,
}

/// Holders of one socket that are remembered: some may end meanwhile.
const HOLDERS: usize = 4;

/// What some processes have.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// By inode.
    pub(super) sockets: HashMap<u32, Vec<Holder>>,
    /// The same sockets where processes have them open that are not governed: inode → process.
    others: OnceLock<io::Result<HashMap<u32, u32>>>,
    /// Whose they were as they were looked at: who has ended since is nobody's.
    workloads: HashMap<u32, String>,
    /// Governed cgroups → workload.
    pub(super) cgroups: HashMap<u64, Arc<str>>,
    /// By inode.
    pub(super) networks: BTreeMap<u64, Network>,
}

impl Holders {
    pub(super) fn of(fence: &Fence, processes: &[u32], missed: &mut Missed) -> Self {
        Self::within(fence, processes, &mut Reading::default(), missed)
    }

    /// The same in a look that is made of several.
    pub(super) fn within(
        fence: &Fence,
        processes: &[u32],
        reading: &mut Reading,
        missed: &mut Missed,
    ) -> Self {
        const UNREAD: &str = "what a process has open cannot be read";
        let mut found = Self::default();
        // A socket stays where it was made, and its process may have gone elsewhere.
        let own = std::process::id();
        if let Err(error) = found.add_network(Network::of(own, own)) {
            missed.of_everybody("the agent's network namespace cannot be opened", &error);
        }
        let governed = fence.all_governed();
        let whose = |one: &u32| Some((*one, fence.workload_of_process(*one)?));
        found.workloads = processes.iter().filter_map(whose).collect();
        for process in tables::in_turns(processes.to_vec(), tables::user_of) {
            if let Err(error) = found.add_places(fence, &governed, process) {
                missed.of([process], UNREAD, &error);
            }
        }
        let mut add = |holder, inode| found.add_socket(holder, inode);
        let mut short = |process, error: &io::Error| missed.of([process], UNREAD, error);
        let all = processes.iter().copied();
        reading.find(all, tables::threads, &mut add, &mut short);
        found
    }

    /// Where the process is. An error: not all of that was seen, for want of descriptors or memory.
    fn add_places(&mut self, fence: &Fence, governed: &[Governed], process: u32) -> io::Result<()> {
        self.add_cgroup(fence, governed, process)?;
        let all = Network::all_of(process, tables::threads(process)?);
        for (_, network) in unless_short(all)?.unwrap_or_default() {
            self.add_network(Ok(network))?;
        }
        Ok(())
    }

    /// Who has this one open: the first who is governed still, or has ended as that. Whom he has given it to has it then.
    pub(super) fn of_socket(&self, fence: &Fence, inode: u32) -> Option<(u32, String)> {
        let mut holders = self.sockets.get(&inode)?.iter();
        holders.find_map(|holder| {
            let workload = fence.workload_of_process(holder.process);
            let workload = workload.or_else(|| self.as_it_ended(holder.process))?;
            Some((holder.process, workload))
        })
    }

    /// One who has this one open, governed still if there is such, with a number of it if there is.
    pub(super) fn first_of(&self, fence: &Fence, inode: u32) -> Option<Holder> {
        let holders = self.sockets.get(&inode)?.iter().copied();
        holders.max_by_key(|holder| {
            let workload = fence.workload_of_process(holder.process);
            (workload.is_some(), holder.descriptor.is_some())
        })
    }

    fn as_it_ended(&self, process: u32) -> Option<String> {
        let workload = self.workloads.get(&process)?;
        processes::has_ended(process).then(|| workload.clone())
    }

    /// Something of this socket was not looked at, of all of these processes that have it open.
    pub(super) fn miss(&self, inode: u32, missed: &mut Missed, what: &str, why: &dyn Display) {
        match self.sockets.get(&inode) {
            Some(holders) if holders.len() < HOLDERS => {
                missed.of(holders.iter().map(|holder| holder.process), what, why);
            }
            // There may be more than are known.
            _ => missed.of_everybody(what, why),
        }
    }

    pub(super) fn has(&self, inode: u32) -> bool {
        self.sockets.contains_key(&inode)
    }

    /// Which of these sockets processes have open besides that are not governed: inode → process. An error: not all of those
    /// are known, for want of descriptors or memory.
    pub(super) fn others(
        &self,
        fence: &Fence,
        reading: &mut Reading,
    ) -> Result<&HashMap<u32, u32>, &io::Error> {
        let others = self.others.get_or_init(|| self.find_others(fence, reading));
        others.as_ref()
    }

    fn find_others(&self, fence: &Fence, reading: &mut Reading) -> io::Result<HashMap<u32, u32>> {
        let own = std::process::id();
        let is_other = |pid: &u32| *pid != own && fence.workload_of_process(*pid).is_none();
        let mut others = HashMap::new();
        let mut add = |other: Holder, inode| {
            if self.sockets.contains_key(&inode) {
                others.insert(inode, other.process);
            }
        };
        let mut first = None;
        // Of one who is stuck in `execve` it is not waited until he has gone on: nobody is to keep a workload's sockets from being it.
        let mut short = |_, error: &io::Error| {
            if error.kind() != io::ErrorKind::TimedOut {
                first.get_or_insert_with(|| io::Error::new(error.kind(), error.to_string()));
            }
        };
        let each = processes::all_ids()?.into_iter().filter(is_other);
        let itself = |process| Ok(vec![process]);
        reading.find(each, itself, &mut add, &mut short);
        first.map_or(Ok(others), Err)
    }

    fn add_socket(&mut self, holder: Holder, inode: u32) {
        let known = self.sockets.entry(inode).or_default();
        // What was read first of somebody who has many is read again.
        if known.len() < HOLDERS && !known.contains(&holder) {
            known.push(holder);
        }
    }

    /// An error: descriptors or memory are short, or there are more than are looked at.
    pub(super) fn add_network(&mut self, network: io::Result<Network>) -> io::Result<()> {
        let Some(network) = unless_short(network)? else {
            return Ok(());
        };
        let Some(inode) = unless_short(network.inode())? else {
            return Ok(());
        };
        if self.networks.len() < NETWORKS {
            self.networks.entry(inode).or_insert(network);
        } else if !self.networks.contains_key(&inode) {
            let many = format!("there are more than {NETWORKS} network namespaces to look at");
            return Err(io::Error::other(many));
        }
        Ok(())
    }

    /// Sockets are a governed cgroup's as well if nobody has them open any more.
    fn add_cgroup(&mut self, fence: &Fence, governed: &[Governed], process: u32) -> io::Result<()> {
        let text = unless_short(std::fs::read(format!("/proc/{process}/cgroup")))?;
        let text = text.unwrap_or_default();
        // A cgroup's name may be any bytes.
        let mut lines = text.split(|byte| *byte == b'\n');
        let Some(own) = lines.find_map(|line| line.strip_prefix(b"0::")) else {
            return Ok(());
        };
        let own = Path::new(OsStr::from_bytes(own));
        let above = |of: &&Governed| {
            let root = of.cgroup.as_deref();
            root.is_some_and(|root| own.starts_with(root))
        };
        let deepest = governed
            .iter()
            .filter(above)
            .max_by_key(|of| of.cgroup.as_ref().map_or(0, String::len));
        let directory = fence.root.path.join(own.strip_prefix("/").unwrap_or(own));
        if let (Some(deepest), Ok(meta)) = (deepest, std::fs::metadata(directory)) {
            self.cgroups
                .insert(meta.ino(), Arc::from(deepest.workload.as_str()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::process::{Resource, getrlimit, setrlimit};

    #[test]
    fn what_is_in_a_namespace_beyond_those_that_are_looked_at_is_not_taken_for_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let mut holders = Holders::default();
        let network = |number: usize| {
            let at = folder.path().join(number.to_string());
            std::fs::write(&at, "").unwrap();
            Network::at(&at)
        };
        let mut limit = getrlimit(Resource::Nofile);
        let needed = 2 * NETWORKS as u64;
        limit.current = limit.current.map(|now| now.max(needed));
        setrlimit(Resource::Nofile, limit).unwrap();
        for number in 0..NETWORKS {
            holders.add_network(network(number)).unwrap();
        }
        holders.add_network(network(0)).unwrap();
        let beyond = holders.add_network(network(NETWORKS)).unwrap_err();
        assert!(beyond.to_string().contains("1024 network namespaces"));
    }

    #[test]
    fn everybody_is_missed_where_more_may_have_a_socket_than_are_known() {
        let holder = |process| Holder {
            process,
            descriptor: None,
        };
        let mut holders = Holders::default();
        holders.sockets.insert(7, vec![holder(1)]);
        holders.sockets.insert(8, (1..=4).map(holder).collect());
        for (inode, complete) in [(7, vec![2, 9]), (8, vec![]), (9, vec![])] {
            let mut missed = Missed::default();
            holders.miss(inode, &mut missed, "x", &"y");
            assert_eq!(missed.complete(vec![1, 2, 9]), complete, "{inode}");
        }
    }
}
