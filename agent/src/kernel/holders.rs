//! Who has which sockets open: by the descriptors of processes, and by the cgroups that sockets were made in.
use super::namespaces::Network;
use super::{Fence, Governed, processes};
use std::collections::{BTreeMap, HashMap};
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

/// What some processes have.
#[derive(Debug, Default)]
pub(super) struct Holders {
    /// By inode.
    sockets: HashMap<u32, Holder>,
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
        let governed = fence.all_governed();
        for &process in processes {
            found.add_cgroup(fence, &governed, process);
            let threads = std::fs::read_dir(format!("/proc/{process}/task"));
            let threads = threads.into_iter().flatten().filter_map(Result::ok);
            for thread in threads.take(THREADS) {
                let name = thread.file_name();
                if let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) {
                    found.add_network(process, thread);
                    found.add_sockets(process, thread);
                }
            }
        }
        found
    }

    /// Who has this one open.
    pub(super) fn of_socket(&self, inode: u32) -> Option<Holder> {
        self.sockets.get(&inode).copied()
    }

    /// Which of these sockets processes have open besides that are not governed: inode → process.
    pub(super) fn others(&self, fence: &Fence) -> &HashMap<u32, u32> {
        let own = std::process::id();
        let is_other = |pid: &u32| *pid != own && fence.workload_of_process(*pid).is_none();
        self.others.get_or_init(|| {
            let all = processes::seen().into_iter().map(|seen| seen.process);
            let each = all.filter(is_other).flat_map(|process| {
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
            let known = self.sockets.entry(inode).or_insert(holder);
            if known.descriptor.is_none() {
                *known = holder;
            }
        }
    }

    fn add_network(&mut self, process: u32, thread: u32) {
        let Ok(network) = Network::of(process, thread) else {
            return;
        };
        if let Ok(inode) = network.inode()
            && self.networks.len() < NETWORKS
        {
            self.networks.entry(inode).or_insert(network);
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
