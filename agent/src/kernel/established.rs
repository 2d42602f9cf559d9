//! Connections that processes had before they were governed: no hook saw them made. They are ended, or go on where policy
//! says so.
use super::diag::{Diag, Protocol, Socket};
use super::namespaces::{self, Network};
use super::translate::ip;
use super::{Before, Earlier, Fate, Fence, Governed, Outcome, Process, cgroup, processes};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use tollgate_common::flow::Address;
use tollgate_common::openings::Kept;
use tollgate_common::settings::Ports;

/// Threads of a process that are looked at: each may have its own descriptors, and be in a network namespace of its own.
const THREADS: usize = 64;
/// Descriptors that are looked at, of all processes together.
const DESCRIPTORS: usize = 1 << 20;
/// Network namespaces that are looked at.
const NETWORKS: usize = 1024;

/// What policy says of a workload's connections from before; `None`: there is no such workload.
pub(super) type Says<'a> = &'a (dyn Fn(&str) -> Option<Before> + Sync);

/// Whose sockets are: by the descriptors of processes, and by the cgroups that they were made in.
#[derive(Debug, Default)]
struct Holders {
    /// Inode → process.
    sockets: HashMap<u32, u32>,
    /// Governed cgroups → workload.
    cgroups: HashMap<u64, Arc<str>>,
    /// By inode.
    networks: BTreeMap<u64, Network>,
}

/// A listener that a process had before it was governed.
struct Unheld {
    workload: String,
    pid: u32,
    local: SocketAddr,
}

impl Unheld {
    fn warn(&self) {
        tracing::warn!(
            workload = self.workload,
            pid = self.pid,
            "connections to {} are not refused: the process listened there before it was governed; restart it, or list the port under `listen`",
            self.local
        );
    }
}

/// One look at one network namespace.
struct Look<'a> {
    diag: Diag,
    /// Where the agent listens in it.
    ports: Ports,
    /// Ports that somebody listens on.
    listening: HashSet<u16>,
    holders: &'a Holders,
    /// What goes on already, and whether anything else is looked for.
    kept: &'a HashMap<u64, Kept>,
    only_kept: bool,
}

impl Fence {
    /// Ends, or keeps, what these processes had open before.
    pub(super) fn look_for_earlier(&self, processes: &[u32], says: Says<'_>) -> Vec<Earlier> {
        let holders = Holders::of(self, processes);
        self.look_through(&holders, &self.all_kept(), false, says).0
    }

    /// Looks at what goes on: forgets what has ended, and ends what policy lets go on no longer.
    pub(super) fn look_at_kept(&self, says: Says<'_>) -> Vec<Earlier> {
        let kept = self.all_kept();
        if kept.is_empty() {
            return Vec::new();
        }
        let governed = self.processes().into_iter().map(|process| process.pid);
        let holders = Holders::of(self, &governed.collect::<Vec<_>>());
        let (changed, seen) = self.look_through(&holders, &kept, true, says);
        for cookie in kept.keys().filter(|cookie| !seen.contains(cookie)) {
            self.forget_kept(*cookie);
        }
        changed
    }

    /// How many connections from before go on, by workload.
    pub(super) fn count_kept(&self) -> BTreeMap<String, usize> {
        let mut all = BTreeMap::new();
        for kept in self.all_kept().values() {
            *all.entry(self.names.workload(kept.workload).to_string())
                .or_default() += 1;
        }
        all
    }

    fn all_kept(&self) -> HashMap<u64, Kept> {
        self.maps.kept.iter().filter_map(Result::ok).collect()
    }

    fn forget_kept(&self, cookie: u64) {
        // Gone already is as good.
        let _ = self.maps.write().kept.remove(&cookie);
    }

    /// What changed, and the cookies that were seen of what goes on.
    fn look_through(
        &self,
        holders: &Holders,
        kept: &HashMap<u64, Kept>,
        only_kept: bool,
        says: Says<'_>,
    ) -> (Vec<Earlier>, HashSet<u64>) {
        let (mut changed, mut seen) = (Vec::new(), HashSet::new());
        for (inode, network) in &holders.networks {
            let looked = network.within(|| {
                let look = Look {
                    diag: Diag::open()?,
                    ports: self.ports_here()?,
                    listening: HashSet::new(),
                    holders,
                    kept,
                    only_kept,
                };
                self.look(look, says)
            });
            match looked {
                Ok((some, cookies, unheld)) => {
                    changed.extend(some);
                    seen.extend(cookies);
                    unheld.iter().for_each(Unheld::warn);
                }
                // What goes on is not known to be over.
                Err(error) => {
                    seen.extend(kept.keys());
                    tracing::error!(
                        namespace = inode,
                        "connections from before processes were governed cannot be looked for: {error}"
                    );
                }
            }
        }
        (changed, seen)
    }

    /// Where the agent listens in the calling thread's network namespace; zeros where it does not.
    fn ports_here(&self) -> io::Result<Ports> {
        let here = UdpSocket::bind("127.0.0.1:0")?;
        let cookie = namespaces::cookie(here.as_fd())?;
        Ok(self.listeners.ports(cookie).unwrap_or_default())
    }

    /// What changed, the cookies of what goes on, and listeners that are not held.
    fn look(
        &self,
        mut look: Look<'_>,
        says: Says<'_>,
    ) -> io::Result<(Vec<Earlier>, Vec<u64>, Vec<Unheld>)> {
        let (mut changed, mut seen, mut unheld) = (Vec::new(), Vec::new(), Vec::new());
        for protocol in Protocol::ALL {
            let found = look.diag.list(protocol, |s| look.concerns(s))?;
            let listening = found.iter().filter(|s| s.listens());
            look.listening = listening.clone().map(|s| s.local().port()).collect();
            unheld.extend(listening.filter_map(|s| self.unheld(&look, s, says)));
            for socket in found.iter().filter(|s| !s.listens()) {
                if look.kept.contains_key(&socket.cookie()) {
                    seen.push(socket.cookie());
                }
                changed.extend(self.settle(&look, socket, says));
            }
        }
        Ok((changed, seen, unheld))
    }

    /// What a process listens on that was not in a governed cgroup says nothing of whose it is: it is not held.
    fn unheld(&self, look: &Look<'_>, socket: &Socket, says: Says<'_>) -> Option<Unheld> {
        let pid = look.holders.sockets.get(&socket.inode).copied()?;
        if look.only_kept || look.holders.cgroups.contains_key(&socket.cgroup) {
            return None;
        }
        let workload = self.workload_of_process(pid)?;
        let is_open = says(&workload)?.listen.contains(&socket.local().port());
        (!is_open).then(|| Unheld {
            workload,
            pid,
            local: socket.local(),
        })
    }

    /// Does with one socket what policy says; `None` where nothing changes.
    fn settle(&self, look: &Look<'_>, socket: &Socket, says: Says<'_>) -> Option<Earlier> {
        let cookie = socket.cookie();
        let holder = look.holders.sockets.get(&socket.inode).copied();
        let kept = look.kept.get(&cookie);
        let workload = match kept {
            Some(kept) => self.names.workload(kept.workload),
            None => look.whose(self, socket, holder)?,
        };
        let Some(before) = says(&workload) else {
            self.forget_kept(cookie);
            return None;
        };
        let is_served = socket.protocol == Protocol::Tcp
            && before.listen.contains(&socket.local().port())
            && look.listening.contains(&socket.local().port());
        let outcome = match before.fate {
            _ if look.is_steered(socket) || is_served => return None,
            Fate::Keep if kept.is_some() => return None,
            Fate::Keep => match self.keep(socket, &workload) {
                Ok(()) => Outcome::Kept,
                Err(_) => self.end(look, socket, &workload)?,
            },
            Fate::Destroy => self.end(look, socket, &workload)?,
        };
        Some(Earlier {
            process: Arc::new(self.process_of(holder, socket)),
            workload,
            protocol: socket.protocol.name(),
            local: socket.local(),
            peer: socket.peer(),
            outcome,
        })
    }

    /// Lets a socket send to its peer.
    fn keep(&self, socket: &Socket, workload: &str) -> Result<(), super::Error> {
        let mut writers = self.maps.write();
        let id = self.workload_ids(&mut writers, std::iter::once(workload))?;
        let peer = socket.peer();
        let kept = Kept {
            peer: Address {
                ip: ip(peer.ip()),
                port: peer.port(),
                reserved: [0; 3],
            },
            workload: id.get(workload).copied().unwrap_or_default(),
            protocol: socket.protocol.number().into(),
        };
        let inserted = writers.kept.insert(socket.cookie(), kept, 0);
        inserted.map_err(super::maps::write("KEPT"))
    }

    /// Ends a connection; `None`: it was over by itself. For that moment it may send, so that its peer is told.
    fn end(&self, look: &Look<'_>, socket: &Socket, workload: &str) -> Option<Outcome> {
        let _ = self.keep(socket, workload);
        let ended = look.diag.destroy(socket);
        self.forget_kept(socket.cookie());
        match ended {
            Ok(()) => Some(Outcome::Destroyed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Outcome::Failed(error.to_string())),
        }
    }

    /// Who holds a socket, as `/proc` tells of it now.
    fn process_of(&self, holder: Option<u32>, socket: &Socket) -> Process {
        let pid = holder.unwrap_or(0);
        let seen = processes::look(pid);
        let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
        let file = std::fs::metadata(format!("/proc/{pid}/exe")).ok();
        let cgroup = self.names.cgroup(&self.root, socket.cgroup);
        Process {
            pid,
            start: seen.map_or(0, |seen| seen.start.saturating_mul(processes::TICK)),
            exe: exe.map_or("unknown".to_owned(), |exe| {
                exe.to_string_lossy().into_owned()
            }),
            exe_dev: file.as_ref().map_or(0, MetadataExt::dev),
            exe_inode: file.as_ref().map_or(0, MetadataExt::ino),
            sha256: None,
            uid: std::fs::metadata(format!("/proc/{pid}")).map_or(0, |of| of.uid()),
            unit: cgroup::unit(&cgroup),
            cgroup: cgroup.to_string(),
        }
    }
}

impl Look<'_> {
    /// Is this one to be looked at?
    fn concerns(&self, socket: &Socket) -> bool {
        socket.listens()
            || self.kept.contains_key(&socket.cookie())
            || (!self.only_kept
                && (self.holders.sockets.contains_key(&socket.inode)
                    || self.holders.cgroups.contains_key(&socket.cgroup)))
    }

    /// Whose a socket is that nobody has looked at yet.
    fn whose(&self, fence: &Fence, socket: &Socket, holder: Option<u32>) -> Option<Arc<str>> {
        let of_process = holder.and_then(|process| fence.workload_of_process(process));
        let of_cgroup = || self.holders.cgroups.get(&socket.cgroup).cloned();
        of_process.map(Arc::from).or_else(of_cgroup)
    }

    /// Was this one made since, through the hooks? Then it leads to the agent.
    fn is_steered(&self, socket: &Socket) -> bool {
        let (peer, port) = (socket.peer().ip(), socket.peer().port());
        port != 0 && peer.is_loopback() && [self.ports.port4, self.ports.port6].contains(&port)
    }
}

impl Holders {
    fn of(fence: &Fence, processes: &[u32]) -> Self {
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
                }
                found.add_sockets(process, &thread.path());
            }
        }
        found
    }

    fn add_sockets(&mut self, process: u32, thread: &Path) {
        let all = std::fs::read_dir(thread.join("fd"));
        for entry in all.into_iter().flatten().filter_map(Result::ok) {
            if self.sockets.len() >= DESCRIPTORS {
                tracing::error!("too many descriptors to look at all of them");
                return;
            }
            let inode = std::fs::read_link(entry.path()).ok().and_then(|link| {
                let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
                inode.parse().ok()
            });
            if let Some(inode) = inode {
                self.sockets.entry(inode).or_insert(process);
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
