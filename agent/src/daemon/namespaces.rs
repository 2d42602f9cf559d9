//! Listeners in the network namespaces that something governed is in: opened when such a process is seen, closed when the
//! last one is gone. On a thread of its own, since entering a namespace takes one anyway.
mod patience;

use super::admin::wire;
use super::agent::lock;
use crate::kernel::namespaces::{Network, threads};
use crate::kernel::{Fence, is_shortage};
use crate::pipeline::{self, Doors, Listeners};
use patience::Patience;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often governed processes are looked through for namespaces that came or went.
const LOOK: Duration = Duration::from_secs(1);
/// At most this part of the time is spent on that, however many processes there are.
const SHARE: u32 = 20;
/// A namespace in which nothing governed was seen for this long is left.
const LEAVE: Duration = Duration::from_secs(2);
/// One that could not be entered is tried again after this long.
const AGAIN: Duration = Duration::from_secs(5);
/// Namespaces with listeners at once, and those of one workload: who may make namespaces could make any number, and
/// each costs descriptors.
const NAMESPACES: usize = 1024;
/// See [`NAMESPACES`].
const PER_WORKLOAD: usize = 256;
/// Namespaces of one workload that are remembered as refused, so that each is tried, and told, only now and then. They take
/// nobody's room; those beyond are not tried.
const REFUSED: usize = 256;
/// Processes waiting to be looked at; more are found by the next look through all.
const WAITING: usize = 1024;

/// What the thread is told.
#[derive(Debug)]
enum Told {
    /// A process of this workload is where the agent is not.
    Stranger(u32, Arc<str>),
    Stop,
}

/// Tells the thread of a process that is where the agent is not.
#[derive(Debug, Clone)]
pub(super) struct Look(SyncSender<Told>);

impl Look {
    /// Has this process looked at, at once.
    pub(super) fn at(&self, pid: u32, workload: Arc<str>) {
        let _ = self.0.try_send(Told::Stranger(pid, workload));
    }
}

/// The running thread, and what it has in hand.
#[derive(Debug)]
pub(super) struct Namespaces {
    told: SyncSender<Told>,
    known: Arc<Mutex<Vec<wire::Namespace>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Namespaces {
    /// Starts it, with a first look through everything that is governed.
    pub(super) fn start(fence: Arc<Fence>, doors: Doors, port: u16) -> io::Result<Self> {
        let (told, waiting) = sync_channel(WAITING);
        let known = Arc::new(Mutex::new(Vec::new()));
        let keeper = Keeper {
            own: Network::of(std::process::id(), std::process::id())?.inode()?,
            fence,
            doors,
            port,
            places: Places::default(),
            patience: Patience::default(),
            was_short: false,
            known: Arc::clone(&known),
        };
        let thread = std::thread::Builder::new()
            .name("namespaces".to_owned())
            .spawn(move || keeper.run(&waiting))?;
        Ok(Self {
            told,
            known,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// A way to tell it of processes.
    pub(super) fn look(&self) -> Look {
        Look(self.told.clone())
    }

    /// What is served and what is refused, now.
    pub(super) fn all(&self) -> Vec<wire::Namespace> {
        lock(&self.known).clone()
    }

    /// Has the thread ended though nobody asked it to?
    pub(super) fn has_ended(&self) -> bool {
        lock(&self.thread)
            .as_ref()
            .is_some_and(JoinHandle::is_finished)
    }

    /// Ends the thread. What listens goes on listening until the data plane closes it.
    pub(super) fn stop(&self) {
        let _ = self.told.send(Told::Stop);
        if let Some(thread) = lock(&self.thread).take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for network namespaces had panicked");
        }
    }
}

/// A namespace that something governed is in.
#[derive(Debug)]
struct Place {
    workloads: BTreeSet<Arc<str>>,
    /// Those that the look before found in it, or the last that found any: while a look goes on, not all have been found again.
    earlier: BTreeSet<Arc<str>>,
    since: jiff::Timestamp,
    /// When something governed was last seen in it.
    seen: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    Served {
        cookie: u64,
        port: u16,
        ipv6: bool,
    },
    Refused {
        why: String,
        at: Instant,
        /// While this is believed, no other has the number: the kernel gives it to the next one that is made.
        kept: Option<Network>,
    },
}

impl Place {
    fn new(state: State) -> Self {
        Self {
            workloads: BTreeSet::new(),
            earlier: BTreeSet::new(),
            since: jiff::Timestamp::now(),
            seen: Instant::now(),
            state,
        }
    }

    /// A look through everything begins, which says anew who is in it.
    fn begin_look(&mut self) {
        if !self.workloads.is_empty() {
            self.earlier = std::mem::take(&mut self.workloads);
        }
    }

    /// Not all could be looked at: who was in it may be still.
    fn was_missed(&mut self) {
        if self.workloads.is_empty() {
            self.workloads.clone_from(&self.earlier);
        }
    }

    /// The same, where somebody of these workloads could not be looked at: each keeps what it had, and nobody else's.
    fn was_missed_of(&mut self, silent: &BTreeSet<Arc<str>>) {
        let still = self.earlier.intersection(silent);
        self.workloads.extend(still.cloned());
    }

    /// It would live on if it was kept for longer than it is needed.
    fn let_go(&mut self) {
        if let State::Refused { at, kept, .. } = &mut self.state
            && at.elapsed() > AGAIN
        {
            *kept = None;
        }
    }

    fn is_of(&self, workload: &str) -> bool {
        self.workloads.contains(workload) || self.earlier.contains(workload)
    }

    fn is_served(&self) -> bool {
        matches!(self.state, State::Served { .. })
    }
}

/// By inode; that of a namespace which is served, or was refused just now, cannot be another's.
#[derive(Debug, Default)]
struct Places(BTreeMap<u64, Place>);

impl Places {
    /// May one more be served to this workload? What is refused has no listeners, and takes no room.
    fn within_bounds(&self, workload: &str) -> Result<(), String> {
        let served = || self.0.values().filter(|place| place.is_served());
        if served().filter(|place| place.is_of(workload)).count() >= PER_WORKLOAD {
            return Err(format!(
                "the workload is served in {PER_WORKLOAD} network namespaces already: end some of them"
            ));
        }
        if served().count() >= NAMESPACES {
            return Err(format!(
                "{NAMESPACES} network namespaces are served already: end some of them"
            ));
        }
        Ok(())
    }

    /// May one more be remembered that is refused to this workload?
    fn has_room_for_refusal(&self, workload: &str) -> bool {
        let refused = self.0.values().filter(|place| !place.is_served());
        refused.filter(|place| place.is_of(workload)).count() < REFUSED
    }
}

/// What came of a look at a process.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Looked {
    /// Something is known that was not.
    is_news: bool,
    /// A namespace is served that was not.
    is_served: bool,
    /// For want of descriptors or memory, not all of it was seen.
    is_short: bool,
    /// The kernel did not say in time where it is.
    is_silent: bool,
}

impl Looked {
    fn and(self, other: Self) -> Self {
        Self {
            is_news: self.is_news || other.is_news,
            is_served: self.is_served || other.is_served,
            is_short: self.is_short || other.is_short,
            is_silent: self.is_silent || other.is_silent,
        }
    }

    /// Of what could not be looked at: else it is gone.
    fn failed(error: &io::Error) -> Self {
        Self {
            is_short: is_shortage(error),
            is_silent: error.kind() == io::ErrorKind::TimedOut,
            ..Self::default()
        }
    }
}

/// The thread's own.
struct Keeper {
    fence: Arc<Fence>,
    doors: Doors,
    port: u16,
    /// Inode of the agent's own namespace.
    own: u64,
    places: Places,
    patience: Patience,
    /// The look before was, and that was said.
    was_short: bool,
    known: Arc<Mutex<Vec<wire::Namespace>>>,
}

impl Keeper {
    fn run(mut self, told: &Receiver<Told>) {
        self.look_through();
        // What an earlier agent had and this one has not found again: the hooks tell of it when it is used.
        if let Err(error) = self.fence.forget_namespaces() {
            tracing::error!("namespaces of an earlier agent: {error}");
        }
        let mut next = Instant::now() + LOOK;
        loop {
            // Also where there is no end of what is told.
            let began = Instant::now();
            if began >= next {
                self.look_through();
                next = Instant::now() + LOOK.max(began.elapsed() * SHARE);
            }
            match told.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(Told::Stranger(pid, workload)) => self.hear(pid, &workload),
                Ok(Told::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Looks at a process that it was told of, unless too much of that was in vain.
    fn hear(&mut self, pid: u32, workload: &Arc<str>) {
        let began = Instant::now();
        if !self.patience.has_some_with(workload, began) {
            return;
        }
        let looked = self.look_at(pid, workload);
        if looked.is_news {
            self.publish();
        }
        if !looked.is_served {
            self.patience
                .spend(workload, began.elapsed(), Instant::now());
        }
    }

    /// Looks at every governed process, and leaves what none is in any more.
    fn look_through(&mut self) {
        self.patience.forget(Instant::now());
        self.places.0.values_mut().for_each(Place::begin_look);
        let is_short = self.look_at_all().is_short;
        if is_short {
            self.places.0.values_mut().for_each(Place::was_missed);
        } else {
            self.leave_what_is_empty();
        }
        if is_short && !self.was_short {
            tracing::warn!(
                "for want of descriptors or memory not all governed processes can be looked at: no network namespace is left until they can"
            );
        }
        self.was_short = is_short;
        self.places.0.values_mut().for_each(Place::let_go);
        self.publish();
    }

    fn look_at_all(&mut self) -> Looked {
        let all = match self.fence.governed_ids() {
            Ok(all) => all,
            Err(error) => {
                tracing::debug!("processes are not known: {error}");
                return Looked {
                    is_short: true,
                    ..Looked::default()
                };
            }
        };
        let (mut looked, mut silent) = (Looked::default(), BTreeSet::new());
        for pid in all {
            let Some(workload) = self.fence.workload_of(pid) else {
                continue;
            };
            let workload = Arc::from(workload);
            let of_one = self.look_at(pid, &workload);
            if of_one.is_silent {
                silent.insert(workload);
            }
            looked = looked.and(of_one);
        }
        let places = self.places.0.values_mut();
        places.for_each(|place| place.was_missed_of(&silent));
        looked
    }

    fn leave_what_is_empty(&mut self) {
        let places = self.places.0.iter();
        let over: Vec<u64> = places
            .filter(|(_, place)| place.workloads.is_empty() && place.seen.elapsed() > LEAVE)
            .map(|(inode, _)| *inode)
            .collect();
        for inode in over {
            if let Some(place) = self.places.0.remove(&inode) {
                self.leave(inode, &place);
            }
        }
    }

    /// Serves the namespaces that a process is in. One that is gone by now is in none.
    fn look_at(&mut self, pid: u32, workload: &Arc<str>) -> Looked {
        let threads = match threads(pid) {
            Ok(threads) => threads,
            Err(error) => return Looked::failed(&error),
        };
        let mut inodes = BTreeSet::from([self.own]);
        let mut looked = Looked::default();
        for thread in threads {
            looked = looked.and(match network_of(pid, thread) {
                Ok((network, inode)) if inodes.insert(inode) => {
                    self.found(network, inode, workload)
                }
                Ok(_) => Looked::default(),
                Err(error) => Looked::failed(&error),
            });
        }
        looked
    }

    fn found(&mut self, network: Network, inode: u64, workload: &Arc<str>) -> Looked {
        let mut looked = Looked::default();
        if let Some(place) = self.places.0.get_mut(&inode) {
            looked.is_news = place.workloads.insert(Arc::clone(workload));
            place.seen = Instant::now();
            match &place.state {
                State::Refused { at, .. } if at.elapsed() > AGAIN => {}
                _ => return looked,
            }
        } else if !self.places.has_room_for_refusal(workload) {
            return looked;
        }
        let bounds = self.places.within_bounds(workload);
        let state = match bounds.and_then(|()| self.serve(&network)) {
            Ok(served) => {
                tracing::info!(namespace = inode, %workload, "listening in a network namespace");
                served
            }
            Err(why) => {
                tracing::error!(namespace = inode, %workload, "network namespace refused: {why}");
                State::Refused {
                    why,
                    at: Instant::now(),
                    kept: Some(network),
                }
            }
        };
        looked.is_news = true;
        looked.is_served = matches!(state, State::Served { .. });
        match self.places.0.entry(inode) {
            Entry::Occupied(mut known) => known.get_mut().state = state,
            Entry::Vacant(new) => {
                let place = new.insert(Place::new(state));
                place.workloads.insert(Arc::clone(workload));
            }
        }
        looked
    }

    /// Listens in a namespace, and lets the hooks steer there.
    fn serve(&self, network: &Network) -> Result<State, String> {
        let (port, spread) = (self.port, self.doors.spread());
        let listeners = network
            .within(|| pipeline::bind_here(port, spread))
            .map_err(|e| format!("cannot listen in it: {e}"))?;
        let port = |set: &Listeners| set.port().map_err(|e| e.to_string());
        let first = listeners.first().ok_or("no listeners")?;
        let (port4, ipv6) = (port(first)?, first.v6.is_some());
        let sockets: Vec<BorrowedFd<'_>> = listeners.iter().flat_map(Listeners::sockets).collect();
        let cookie = self
            .fence
            .admit(&sockets, port4, ipv6.then_some(port4))
            .map_err(|e| e.to_string())?;
        self.doors.open(cookie, listeners);
        Ok(State::Served {
            cookie,
            port: port4,
            ipv6,
        })
    }

    /// Stops listening in a namespace: without it, it would live as long as the agent.
    fn leave(&self, inode: u64, place: &Place) {
        let State::Served { cookie, .. } = place.state else {
            return;
        };
        // The hooks refuse first, then the listeners close.
        if let Err(error) = self.fence.retire(cookie) {
            tracing::error!(namespace = inode, "not retired: {error}");
        }
        self.doors.close(cookie);
        tracing::info!(namespace = inode, "left a network namespace");
    }

    fn publish(&self) {
        let known = self.places.0.iter().map(|(inode, place)| {
            let (port, ipv6, refused) = match &place.state {
                State::Served { port, ipv6, .. } => (Some(*port), *ipv6, None),
                State::Refused { why, .. } => (None, false, Some(why.clone())),
            };
            wire::Namespace {
                inode: *inode,
                workloads: place.workloads.iter().map(ToString::to_string).collect(),
                since: place.since,
                port,
                ipv6,
                refused,
            }
        });
        *lock(&self.known) = known.collect();
    }
}

/// The namespace that a thread is in, by its entry among its process's.
fn network_of(pid: u32, thread: u32) -> io::Result<(Network, u64)> {
    let network = Network::of(pid, thread)?;
    let inode = network.inode()?;
    Ok((network, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVED: State = State::Served {
        cookie: 0,
        port: 0,
        ipv6: false,
    };

    fn refused() -> State {
        State::Refused {
            why: String::new(),
            at: Instant::now(),
            kept: None,
        }
    }

    /// Adds places that the workload is in.
    fn add(places: &mut Places, count: usize, workload: &str, state: impl Fn() -> State) {
        for _ in 0..count {
            let mut place = Place::new(state());
            place.workloads.insert(Arc::from(workload));
            let inode = u64::try_from(places.0.len()).unwrap();
            places.0.insert(inode, place);
        }
    }

    #[test]
    fn what_is_refused_takes_nobodys_room() {
        let mut places = Places::default();
        add(&mut places, 2 * NAMESPACES, "one", refused);
        assert_eq!(places.within_bounds("one"), Ok(()));
        assert_eq!(places.within_bounds("two"), Ok(()));
        assert!(!places.has_room_for_refusal("one"));
        assert!(places.has_room_for_refusal("two"));
    }

    #[test]
    fn one_workload_is_served_in_so_many_and_all_in_so_many() {
        let mut places = Places::default();
        add(&mut places, PER_WORKLOAD - 1, "one", || SERVED);
        assert_eq!(places.within_bounds("one"), Ok(()));
        add(&mut places, 1, "one", || SERVED);
        let why = places.within_bounds("one").unwrap_err();
        assert!(why.contains("the workload is served in 256"), "{why}");
        for other in ["two", "three", "four"] {
            assert_eq!(places.within_bounds(other), Ok(()));
            add(&mut places, PER_WORKLOAD, other, || SERVED);
        }
        let why = places.within_bounds("five").unwrap_err();
        assert!(why.contains("1024 network namespaces are served"), "{why}");
        assert!(places.has_room_for_refusal("one"));
    }

    #[test]
    fn who_cannot_be_looked_at_keeps_what_his_workload_had() {
        let mut places = Places::default();
        add(&mut places, 1, "one", || SERVED);
        add(&mut places, 1, "two", || SERVED);
        let silent = BTreeSet::from(["one".into()]);
        for _ in 0..2 {
            places.0.values_mut().for_each(Place::begin_look);
            let each = places.0.values_mut();
            each.for_each(|place| place.was_missed_of(&silent));
            let left: Vec<bool> = places.0.values().map(|p| p.workloads.is_empty()).collect();
            assert_eq!(left, [false, true]);
        }
    }

    /// Whoever is found first by a look is not the only one.
    #[test]
    fn a_look_that_goes_on_makes_no_room() {
        let mut places = Places::default();
        add(&mut places, PER_WORKLOAD, "one", || SERVED);
        add(&mut places, REFUSED, "one", refused);
        for _ in 0..2 {
            places.0.values_mut().for_each(Place::begin_look);
            assert!(places.within_bounds("one").is_err());
            assert!(!places.has_room_for_refusal("one"));
        }
    }
}
