//! Who has which sockets open: by the descriptors of processes, and by the cgroups that sockets were made in.
use super::namespaces::Network;
use super::{Fence, Governed, processes};
use std::collections::{BTreeMap, HashMap};
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
    others: OnceLock<HashMap<u32, u32>>,
    /// Governed cgroups → workload.
    pub(super) cgroups: HashMap<u64, Arc<str>>,
    /// By inode.
    pub(super) networks: BTreeMap<u64, Network>,
}

impl Holders {
    pub(super) fn of(fence: &Fence, processes: &[u32]) -> Self {
        let mut found = Self::default();
        // A socket stays where it was made, and its process may have gone elsewhere.
        let own = std::process::id();
        found.add_network(Network::of(own, own));
        let governed = fence.all_governed();
        for &process in processes {
            found.add_cgroup(fence, &governed, process);
            let threads = std::fs::read_dir(format!("/proc/{process}/task"));
            let threads = threads.into_iter().flatten().filter_map(Result::ok);
            for thread in threads.take(THREADS) {
                let name = thread.file_name();
                if let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) {
                    found.add_network(Network::of(process, thread));
                    found.add_sockets(process, thread);
                }
            }
        }
        found
    }

    /// Who has this one open: the first who is governed still.
    pub(super) fn of_socket(&self, fence: &Fence, inode: u32) -> Option<(u32, String)> {
        let mut holders = self.sockets.get(&inode)?.iter();
        holders.find_map(|holder| {
            let workload = fence.workload_of_process(holder.process)?;
            Some((holder.process, workload))
        })
    }

    pub(super) fn has(&self, inode: u32) -> bool {
        self.sockets.contains_key(&inode)
    }

    /// Which of these sockets processes have open besides that are not governed: inode → process.
    pub(super) fn others(&self, fence: &Fence) -> &HashMap<u32, u32> {
        let own = std::process::id();
        let is_other = |pid: &u32| *pid != own && fence.workload_of_process(*pid).is_none();
        self.others.get_or_init(|| {
            let each = processes::ids().filter(is_other).flat_map(|process| {
                let open = sockets(Path::new(&format!("/proc/{process}/fd")));
                open.map(move |(_, inode)| (inode, process))
            });
            each.filter(|(inode, _)| self.sockets.contains_key(inode))
                .collect()
        })
    }

    fn add_sockets(&mut self, process: u32, thread: u32) {
        let directory = format!("/proc/{process}/task/{thread}/fd");
        for (number, inode) in sockets(Path::new(&directory)) {
            if self.sockets.len() >= DESCRIPTORS {
                tracing::error!("too many descriptors to look at all of them");
                return;
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
    }

    pub(super) fn add_network(&mut self, network: io::Result<Network>) {
        let Ok(network) = network else { return };
        let Ok(inode) = network.inode() else { return };
        if self.networks.len() < NETWORKS {
            self.networks.entry(inode).or_insert(network);
        } else if !self.networks.contains_key(&inode) {
            tracing::error!("too many network namespaces to look at all of them");
        }
    }

    /// Sockets are a governed cgroup's as well if nobody has them open any more.
    fn add_cgroup(&mut self, fence: &Fence, governed: &[Governed], process: u32) {
        let text = std::fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
        let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::")) else {
            return;
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
    }
}

/// The sockets in a directory of descriptors: number and inode.
fn sockets(directory: &Path) -> impl Iterator<Item = (RawFd, u32)> + use<> {
    let all = std::fs::read_dir(directory).into_iter().flatten();
    all.filter_map(|entry| {
        let entry = entry.ok()?;
        let link = std::fs::read_link(entry.path()).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        Some((number, inode.parse().ok()?))
    })
}
