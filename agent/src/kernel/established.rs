//! What processes had open before they were governed: no hook saw it made. Connections are ended, or go on where policy says
//! so; what has no peer becomes the workload's.
use super::claim::{self, Claimed, Claims};
use super::diag::{Diag, Protocol, Socket};
use super::ends;
use super::holders::{Holders, Reading};
use super::missed::{self, Missed};
use super::namespaces;
use super::translate::ip;
use super::{
    Before, Earlier, Fate, Fence, Looked, Outcome, Process, Unheld, bounded, cgroup, processes,
};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;
use tollgate_common::flow::Address;
use tollgate_common::openings::Kept;
use tollgate_common::settings::Ports;

/// Looks at whom others have made meanwhile, before that is left to the next.
const PASSES: usize = 32;

/// How often a map is asked to take what a peer is told by, and how long it is waited in between.
const TRIES: usize = 8;
const PAUSE: Duration = Duration::from_millis(1);

/// What policy says of a workload's connections from before; `None`: there is no such workload.
type Says<'a> = &'a (dyn Fn(&str) -> Option<Before> + Sync);

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

/// What came of one.
#[derive(Debug, Default)]
struct Found {
    changed: Vec<Earlier>,
    /// Cookies of what goes on already, or may.
    open: HashSet<u64>,
    unheld: Vec<Unheld>,
    missed: Missed,
}

impl Found {
    /// What it comes to, if it was for these.
    fn told(self, processes: Vec<u32>) -> Looked {
        Looked {
            complete: self.missed.complete(processes),
            found: self.changed,
            unheld: self.unheld,
            missed: self.missed.why(),
        }
    }
}

impl Fence {
    /// Ends, or lets go on, what these processes had open before they were governed, and all of whom nobody has looked at, and
    /// of whom those make meanwhile, as `says` says of their workloads. To be called after they are governed: from then on the
    /// hooks see what they make.
    pub fn end_earlier(&self, processes: &[u32], says: Says<'_>) -> Looked {
        let (mut looked, mut seen) = (Looked::default(), HashSet::new());
        // However many passes: others are kept from making one after the other.
        let (mut reading, mut of_others) = (Reading::default(), Reading::default());
        for _ in 0..PASSES {
            let mut found = Found::default();
            let all = found.missed.listed(self.unseen()).into_iter();
            let all = all.chain(processes.iter().copied());
            let new: Vec<u32> = all.filter(|process| seen.insert(*process)).collect();
            if new.is_empty() {
                looked.add(found.told(new));
                return looked;
            }
            let mut holders = Holders::within(self, &new, &mut reading, &mut found.missed);
            let claims = holders.claim(self, &mut of_others, &mut found.missed);
            let of = (&holders, &claims);
            self.look_through(of, (&self.all_kept(), false), says, &mut found);
            looked.add(found.told(new));
        }
        let mut left = Found::default();
        left.missed.of_everybody(
            "processes that are governed since",
            &"they make others faster than they can be looked at",
        );
        looked.add(left.told(Vec::new()));
        looked
    }

    /// Looks again at what was let go on: forgets what has ended, and ends what policy lets go on no longer.
    pub fn review_kept(&self, says: Says<'_>) -> Looked {
        let kept = self.all_kept();
        if kept.is_empty() {
            return Looked::default();
        }
        let mut found = Found::default();
        let governed = found.missed.listed(self.governed_ids());
        let holders = Holders::of(self, &governed, &mut found.missed);
        let of = (&holders, &Claims::default());
        self.look_through(of, (&kept, true), says, &mut found);
        // What was not found is over only if everything was looked at.
        if found.missed.is_nothing() {
            for cookie in kept.keys().filter(|cookie| !found.open.contains(cookie)) {
                self.forget_kept(*cookie);
            }
        }
        found.told(governed)
    }

    /// Connections from before that go on, by workload.
    pub fn kept(&self) -> BTreeMap<String, usize> {
        let mut all = BTreeMap::new();
        for kept in self.all_kept().values().filter(|kept| kept.ends == 0) {
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

    /// Looks at each namespace in which there may be something.
    fn look_through(
        &self,
        (holders, claims): (&Holders, &Claims),
        (kept, only_kept): (&HashMap<u64, Kept>, bool),
        says: Says<'_>,
        found: &mut Found,
    ) {
        for (inode, network) in &holders.networks {
            let looked = network.within(|| {
                let diag = Diag::open()?;
                let look = Look {
                    ports: self.ports_here(&diag)?,
                    diag,
                    listening: HashSet::new(),
                    claimed: Vec::new(),
                    holders,
                    claims,
                    kept,
                    only_kept,
                };
                self.look(look, says, found)
            });
            let Err(error) = looked else { continue };
            // What goes on is not known to be over.
            found.open.extend(kept.keys());
            if missed::is_final(&error) {
                tracing::error!(
                    namespace = inode,
                    "connections from before processes were governed cannot be looked for: {error}"
                );
            } else {
                // Anybody may have something there: a socket stays where it was made.
                found
                    .missed
                    .of_everybody("a network namespace cannot be looked at", &error);
            }
        }
    }

    /// Where the agent listens in the network namespace of `diag`; zeros where it does not.
    fn ports_here(&self, diag: &Diag) -> io::Result<Ports> {
        let cookie = namespaces::cookie(diag.as_fd())?;
        Ok(self.listeners.ports(cookie).unwrap_or_default())
    }

    fn look(&self, mut look: Look<'_>, says: Says<'_>, found: &mut Found) -> io::Result<()> {
        for protocol in Protocol::ALL {
            let listening = look.diag.list(protocol, Socket::listens)?;
            look.listening = listening.iter().map(|s| s.local().port()).collect();
            if !look.only_kept {
                let unheld = self.take(&mut look, &listening, says);
                found.unheld.extend(unheld);
            }
            // Only now: what is accepted from here on is known by its listener.
            let connected = look
                .diag
                .list(protocol, |s| !s.listens() && look.concerns(s))?;
            for socket in &connected {
                if look.kept.contains_key(&socket.cookie()) {
                    found.open.insert(socket.cookie());
                }
                let changed = self.settle(&look, socket, says, &mut found.missed);
                found.changed.extend(changed);
            }
        }
        Ok(())
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
    fn settle(
        &self,
        look: &Look<'_>,
        socket: &Socket,
        says: Says<'_>,
        missed: &mut Missed,
    ) -> Option<Earlier> {
        let cookie = socket.cookie();
        let (holder, of_process) = look.holders.of_socket(self, socket.inode).unzip();
        let kept = look.kept.get(&cookie);
        let workload = match kept {
            Some(kept) => self.names.workload(kept.workload),
            None => look.whose(socket, of_process)?,
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
            Fate::Keep if kept.is_some_and(|kept| kept.ends == 0) => return None,
            Fate::Keep => match self.keep(socket, &workload, false) {
                Ok(()) => Outcome::Kept,
                Err(_) => self.end(look, socket, &workload, missed)?,
            },
            Fate::Destroy => self.end(look, socket, &workload, missed)?,
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

    /// Lets a socket send to its peer, be it only that it ends.
    fn keep(&self, socket: &Socket, workload: &str, ends: bool) -> Result<(), super::Error> {
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
            protocol: socket.protocol.number(),
            ends: ends.into(),
            reserved: [0; 2],
        };
        let inserted = writers.kept.insert(socket.cookie(), kept, 0);
        inserted.map_err(super::maps::write("KEPT"))
    }

    /// Ends a connection; `None`: it was over by itself.
    fn end(
        &self,
        look: &Look<'_>,
        socket: &Socket,
        workload: &str,
        missed: &mut Missed,
    ) -> Option<Outcome> {
        if !self.let_tell(socket, workload) {
            // What it was let do by an entry from before is over.
            self.forget_kept(socket.cookie());
        }
        let holder = look.holders.first_of(self, socket.inode);
        let ended = ends::end(&look.diag, socket, holder);
        // One that goes on is known by it to the next look.
        if ended.as_ref().err().is_none_or(missed::is_final) {
            self.forget_kept(socket.cookie());
        }
        match ended {
            Ok(()) => Some(Outcome::Destroyed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                if !missed::is_final(&error) {
                    let what = "a connection cannot be ended";
                    look.holders.miss(socket.inode, missed, what, &error);
                }
                Some(Outcome::Failed(error.to_string()))
            }
        }
    }

    /// Lets a socket tell its peer that it ends. A map's memory may be short for a moment; that the connection ends is more than that
    /// its peer knows. Whether it may.
    fn let_tell(&self, socket: &Socket, workload: &str) -> bool {
        for _ in 0..TRIES {
            match self.keep(socket, workload, true) {
                Err(error) if claim::may_pass(&error) => std::thread::sleep(PAUSE),
                Err(_) => return false,
                Ok(()) => return true,
            }
        }
        tracing::warn!(
            workload,
            "a peer is not told that its connection ends, for want of memory: {}",
            socket.peer()
        );
        false
    }

    /// Who holds a socket, as `/proc` tells of it now.
    fn process_of(&self, holder: Option<u32>, socket: &Socket) -> Process {
        let pid = holder.unwrap_or(0);
        let ask = |pid| {
            (
                processes::began(pid),
                processes::program(pid),
                processes::executable(pid),
            )
        };
        let (began, exe, file) = bounded::of(pid, ask).unwrap_or_default();
        let (exe_dev, exe_inode) = file.unwrap_or_default();
        let cgroup = self.names.cgroup(&self.root, socket.cgroup);
        Process {
            pid,
            start: began.map_or(0, |ticks| ticks.saturating_mul(processes::TICK)),
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
    fn whose(&self, socket: &Socket, of_process: Option<String>) -> Option<Arc<str>> {
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
        let own = match peer {
            IpAddr::V4(_) => self.ports.port4,
            IpAddr::V6(_) => self.ports.port6,
        };
        port != 0 && peer.is_loopback() && port == own
    }
}
