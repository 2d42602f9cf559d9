//! What processes had open before they were governed: no hook saw it made. Connections are ended, or go on where policy says
//! so; what has no peer becomes the workload's.
use super::claim::{Claimed, Claims, Unheld};
use super::diag::{Diag, Protocol, Socket};
use super::holders::Holders;
use super::namespaces;
use super::translate::ip;
use super::{Before, Earlier, Fate, Fence, Outcome, Process, cgroup, processes};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use tollgate_common::flow::Address;
use tollgate_common::openings::Kept;
use tollgate_common::settings::Ports;

/// Looks at whom others have made meanwhile, before that is left to the next.
const PASSES: usize = 32;

/// What policy says of a workload's connections from before; `None`: there is no such workload.
pub(super) type Says<'a> = &'a (dyn Fn(&str) -> Option<Before> + Sync);

/// One look at one network namespace.
struct Look<'a> {
    diag: Diag,
    /// Where the agent listens in it.
    ports: Ports,
    /// Ports that somebody listens on.
    listening: HashSet<u16>,
    /// Listeners that nobody else serves beside, and that are a workload's since this look.
    claimed: Vec<Claimed>,
    holders: &'a Holders,
    claims: &'a Claims,
    /// What goes on already, and whether anything else is looked for.
    kept: &'a HashMap<u64, Kept>,
    only_kept: bool,
}

impl Fence {
    /// Ends, or keeps, what these processes had open before, all that nobody has looked at, and whom those make meanwhile.
    pub(super) fn look_for_earlier(&self, processes: &[u32], says: Says<'_>) -> Vec<Earlier> {
        let (mut found, mut seen) = (Vec::new(), HashSet::new());
        for _ in 0..PASSES {
            let all = self.unseen().into_iter().chain(processes.iter().copied());
            let new: Vec<u32> = all.filter(|process| seen.insert(*process)).collect();
            if new.is_empty() {
                return found;
            }
            let mut holders = Holders::of(self, &new);
            let claims = holders.claim(self);
            let of = (&holders, &claims);
            found.extend(self.look_through(of, &self.all_kept(), false, says).0);
        }
        tracing::warn!("processes that are governed since fork faster than they can be looked at");
        found
    }

    /// Looks at what goes on: forgets what has ended, and ends what policy lets go on no longer.
    pub(super) fn look_at_kept(&self, says: Says<'_>) -> Vec<Earlier> {
        let kept = self.all_kept();
        if kept.is_empty() {
            return Vec::new();
        }
        let governed = self.processes().into_iter().map(|process| process.pid);
        let holders = Holders::of(self, &governed.collect::<Vec<_>>());
        let (changed, seen) = self.look_through((&holders, &Claims::default()), &kept, true, says);
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
        (holders, claims): (&Holders, &Claims),
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
                    claimed: Vec::new(),
                    holders,
                    claims,
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
            let listening = look.diag.list(protocol, Socket::listens)?;
            look.listening = listening.iter().map(|s| s.local().port()).collect();
            if !look.only_kept {
                unheld.extend(self.take(&mut look, &listening, says));
            }
            // Only now: what is accepted from here on is known by its listener.
            let found = look
                .diag
                .list(protocol, |s| !s.listens() && look.concerns(s))?;
            for socket in &found {
                if look.kept.contains_key(&socket.cookie()) {
                    seen.push(socket.cookie());
                }
                changed.extend(self.settle(&look, socket, says));
            }
        }
        Ok((changed, seen, unheld))
    }

    /// Tells the listeners that are workloads' since this look. Returns those that could not become so, where nothing else
    /// holds them.
    fn take(&self, look: &mut Look<'_>, listening: &[Socket], says: Says<'_>) -> Vec<Unheld> {
        let (mut unheld, mut others) = (Vec::new(), HashSet::new());
        for socket in listening {
            match look.claims.of_listener(self, look.holders, socket) {
                Some(Ok(claimed)) => look.claimed.push(claimed),
                Some(Err(error)) => {
                    let open = says(&error.workload).map(|says| says.listen);
                    let port = socket.local().port();
                    let is_open = open.is_none_or(|open| open.contains(&port));
                    if !is_open && !look.holders.cgroups.contains_key(&socket.cgroup) {
                        unheld.push(error);
                    }
                    others.insert(port);
                }
                None => drop(others.insert(socket.local().port())),
            }
        }
        // Whose listener accepted what is in no process yet cannot be told where others serve beside.
        let is_alone = |own: &Claimed| !others.contains(&own.port());
        look.claimed.retain(is_alone);
        unheld
    }

    /// Does with one socket what policy says; `None` where nothing changes.
    fn settle(&self, look: &Look<'_>, socket: &Socket, says: Says<'_>) -> Option<Earlier> {
        let cookie = socket.cookie();
        let holder = look.holders.of_socket(self, socket.inode);
        let holder = holder.map(|(process, _)| process);
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
        let (exe_dev, exe_inode) = processes::executable(pid).unwrap_or_default();
        let cgroup = self.names.cgroup(&self.root, socket.cgroup);
        Process {
            pid,
            start: seen.map_or(0, |seen| seen.start.saturating_mul(processes::TICK)),
            exe: exe.map_or("unknown".to_owned(), |exe| {
                exe.to_string_lossy().into_owned()
            }),
            exe_dev,
            exe_inode,
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
        self.kept.contains_key(&socket.cookie())
            || (!self.only_kept
                && (self.holders.has(socket.inode)
                    || self.holders.cgroups.contains_key(&socket.cgroup)
                    || self.claimed.iter().any(|own| own.has_accepted(socket))))
    }

    /// Whose a socket is that nobody has looked at yet.
    fn whose(&self, fence: &Fence, socket: &Socket, holder: Option<u32>) -> Option<Arc<str>> {
        let of_process = holder.and_then(|process| fence.workload_of_process(process));
        let of_cgroup = || self.holders.cgroups.get(&socket.cgroup).cloned();
        let of_listener = || {
            let own = self.claimed.iter().find(|own| own.has_accepted(socket));
            own.map(|own| Arc::from(own.workload.as_str()))
        };
        of_process
            .map(Arc::from)
            .or_else(of_cgroup)
            .or_else(of_listener)
    }

    /// Was this one made since, through the hooks? Then it leads to the agent.
    fn is_steered(&self, socket: &Socket) -> bool {
        let (peer, port) = (socket.peer().ip(), socket.peer().port());
        port != 0 && peer.is_loopback() && [self.ports.port4, self.ports.port6].contains(&port)
    }
}
