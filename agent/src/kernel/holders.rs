//! Who has which sockets open: by the descriptors of processes, and by the cgroups that sockets were made in.
use super::missed::{Missed, unless_short};
use super::namespaces::Network;
use super::{Fence, Governed, processes};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fmt::Display;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Threads of a process that are looked at: each may have its own descriptors, and be in a network namespace of its own.
const THREADS: usize = 64;
/// Descriptors that are looked at, of all processes together.
const DESCRIPTORS: usize = 1 << 20;
/// Network namespaces that are looked at.
const NETWORKS: usize = 1024;

/// Who has a socket open.
#[derive(Debug, Clone, Copy)]
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
    /// Governed cgroups → workload.
    pub(super) cgroups: HashMap<u64, Arc<str>>,
    /// By inode.
    pub(super) networks: BTreeMap<u64, Network>,
}

impl Holders {
    pub(super) fn of(fence: &Fence, processes: &[u32], missed: &mut Missed) -> Self {
        let mut found = Self::default();
        // A socket stays where it was made, and its process may have gone elsewhere.
        let own = std::process::id();
        if let Err(error) = found.add_network(Network::of(own, own)) {
            missed.of_everybody("the agent's network namespace cannot be opened", &error);
        }
        let governed = fence.all_governed();
        for &process in processes {
            if let Err(error) = found.add_process(fence, &governed, process) {
                missed.of([process], "what a process has open cannot be read", &error);
            }
        }
        found
    }

    /// An error: not all that the process has was seen, for want of descriptors or memory.
    fn add_process(
        &mut self,
        fence: &Fence,
        governed: &[Governed],
        process: u32,
    ) -> io::Result<()> {
        self.add_cgroup(fence, governed, process)?;
        let threads = unless_short(std::fs::read_dir(format!("/proc/{process}/task")))?;
        for thread in threads.into_iter().flatten().take(THREADS) {
            let name = unless_short(thread)?.map(|thread| thread.file_name());
            let name = name.as_ref().and_then(|name| name.to_str());
            if let Some(thread) = name.and_then(|name| name.parse().ok()) {
                self.add_network(Network::of(process, thread))?;
                self.add_sockets(process, thread)?;
            }
        }
        Ok(())
    }

    /// Who has this one open: the first who is governed still.
    pub(super) fn of_socket(&self, fence: &Fence, inode: u32) -> Option<(u32, String)> {
        let mut holders = self.sockets.get(&inode)?.iter();
        holders.find_map(|holder| {
            let workload = fence.workload_of_process(holder.process)?;
            Some((holder.process, workload))
        })
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
    pub(super) fn others(&self, fence: &Fence) -> Result<&HashMap<u32, u32>, &io::Error> {
        let others = self.others.get_or_init(|| self.find_others(fence));
        others.as_ref()
    }

    fn find_others(&self, fence: &Fence) -> io::Result<HashMap<u32, u32>> {
        let own = std::process::id();
        let is_other = |pid: &u32| *pid != own && fence.workload_of_process(*pid).is_none();
        let mut others = HashMap::new();
        for process in processes::all_ids()?.into_iter().filter(is_other) {
            let open = sockets(Path::new(&format!("/proc/{process}/fd")))?.into_iter();
            let shared = open.filter(|(_, inode)| self.sockets.contains_key(inode));
            others.extend(shared.map(|(_, inode)| (inode, process)));
        }
        Ok(others)
    }

    fn add_sockets(&mut self, process: u32, thread: u32) -> io::Result<()> {
        let directory = format!("/proc/{process}/task/{thread}/fd");
        for (number, inode) in sockets(Path::new(&directory))? {
            if self.sockets.len() >= DESCRIPTORS {
                tracing::error!("too many descriptors to look at all of them");
                break;
            }
            let holder = Holder {
                process,
                descriptor: (thread == process).then_some(number),
            };
            let known = self.sockets.entry(inode).or_default();
            if known.len() < HOLDERS {
                known.push(holder);
            }
        }
        Ok(())
    }

    /// An error: descriptors or memory are short.
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
            tracing::error!("too many network namespaces to look at all of them");
        }
        Ok(())
    }

    /// Sockets are a governed cgroup's as well if nobody has them open any more.
    fn add_cgroup(&mut self, fence: &Fence, governed: &[Governed], process: u32) -> io::Result<()> {
        let text = unless_short(std::fs::read_to_string(format!("/proc/{process}/cgroup")))?;
        let text = text.unwrap_or_default();
        let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::")) else {
            return Ok(());
        };
        let above = |of: &&Governed| {
            let root = of.cgroup.as_deref();
            root.is_some_and(|root| Path::new(own).starts_with(root))
        };
        let deepest = governed
            .iter()
            .filter(above)
            .max_by_key(|of| of.cgroup.as_ref().map_or(0, String::len));
        let directory = fence.root.path.join(own.trim_start_matches('/'));
        if let (Some(deepest), Ok(meta)) = (deepest, std::fs::metadata(directory)) {
            self.cgroups
                .insert(meta.ino(), Arc::from(deepest.workload.as_str()));
        }
        Ok(())
    }
}

/// The sockets in a directory of descriptors: number and inode. None where it is gone or may not be read; an error: descriptors
/// or memory are short.
fn sockets(directory: &Path) -> io::Result<Vec<(RawFd, u32)>> {
    let mut found = Vec::new();
    let entries = unless_short(std::fs::read_dir(directory))?;
    for entry in entries.into_iter().flatten() {
        let Some(entry) = unless_short(entry)? else {
            continue;
        };
        let Some(link) = unless_short(std::fs::read_link(entry.path()))? else {
            continue;
        };
        found.extend(socket(&entry.file_name(), &link));
    }
    Ok(found)
}

/// `None`: it is no socket's.
fn socket(number: &OsStr, link: &Path) -> Option<(RawFd, u32)> {
    let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
    Some((number.to_str()?.parse().ok()?, inode.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn sockets_are_found_among_descriptors() {
        let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
        let found = sockets(Path::new("/proc/self/fd")).unwrap();
        for end in [one, other] {
            let inode = rustix::fs::fstat(&end).unwrap().st_ino;
            let expected = (end.as_raw_fd(), u32::try_from(inode).unwrap());
            assert!(found.contains(&expected), "{expected:?} in {found:?}");
        }
        // Of who has ended there is nothing left to see, which is no failure.
        assert_eq!(sockets(Path::new("/proc/0/fd")).unwrap(), []);
        assert_eq!(socket(OsStr::new("3"), Path::new("pipe:[7]")), None);
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
