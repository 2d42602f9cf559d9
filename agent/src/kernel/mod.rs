//! The kernel half's userspace: probe, load, attach, pin, and translation of the ABI to the domain.
//! The only module that names aya or the ABI crate.

pub mod aside;
mod askers;
pub mod bounded;
mod btf;
mod cgroup;
mod claim;
mod conditions;
mod copies;
mod counted;
pub mod descriptors;
mod diag;
mod ends;
mod error;
mod established;
mod events;
mod exceptions;
mod flows;
mod govern;
mod holders;
mod hooks;
pub mod keys;
mod layers;
mod left;
mod load;
pub mod local;
mod log;
mod maps;
mod mend;
mod missed;
mod model;
pub mod namespaces;
mod pins;
pub mod present;
mod probe;
mod processes;
mod quota;
mod raw;
mod recognise;
mod shared;
mod syn;
mod sys;
mod translate;
mod waiting;

pub use askers::{Namespace, since_boot};
pub use btf::Kernel;
pub use claim::Unheld;
pub use conditions::Bits;
pub use counted::{Counted, WorkloadAccount, counted_by_another};
pub use error::Error;
pub use govern::{MOST_WORKLOADS, UNSETTLED_NAME};
pub use left::{Left, Open, Standing, left};
pub use mend::Mended;
pub use missed::{is_ended, unless_short};
pub use model::{
    Before, Case, CgroupPath, Earlier, Enrolled, Fate, FileState, Governed, Looked, Outcome, Ran,
    Recognition, Runs,
};
pub(crate) use probe::unescape;
pub use processes::{
    Handle, all_ids as all_processes, has_ended, has_peer_ended, of_process, owner, program,
    real_user,
};
pub use quota::{Allowance, Usage};
pub use recognise::can_follow;
pub use shared::Beyond;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
pub use sys::is_shortage;

/// What the fence needs to know to stand up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory in a bpffs for this instance's pins; the bpffs is mounted if it is not.
    pub pin_dir: PathBuf,
    /// cgroup2 mount; found from `/proc/self/mountinfo` if not given.
    pub cgroup_root: Option<PathBuf>,
    /// Whether packets are counted and held to quotas. Off for a bench only, which measures what that costs.
    pub counts: bool,
}

/// The programs, links and maps in force. Dropping it leaves everything pinned and enforcing.
#[derive(Debug)]
pub struct Fence {
    pins: pins::Pins,
    root: probe::CgroupRoot,
    maps: maps::Maps,
    scope: shared::SharedScope,
    beyond: shared::SharedBeyond,
    marks: shared::Marks,
    programs: load::Programs,
    names: translate::Names,
    listeners: layers::Admitted,
    hook_log: log::HookLog,
    /// Workloads that policy is letting go of.
    leaving: arc_swap::ArcSwap<std::collections::HashSet<u32>>,
    /// See [`Self::was_open`].
    was_open: bool,
    /// See [`Self::enrol_missed`].
    missed_some: std::sync::atomic::AtomicBool,
}

/// A program as the kernel recorded it when it connected.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Process {
    /// Thread-group id in the initial pid namespace.
    pub pid: u32,
    /// Start, nanoseconds since boot (tells a reused pid).
    pub start: u64,
    /// Path of the executable: a label only, never an identity.
    pub exe: String,
    /// Device and inode of the executable.
    pub exe_dev: u64,
    /// Inode.
    pub exe_inode: u64,
    /// SHA-256 of the executable in hex, where it was taken.
    pub sha256: Option<String>,
    /// Real user id.
    pub uid: u32,
    /// Cgroup path below the cgroup2 root, or `id:N` where it no longer exists.
    pub cgroup: String,
    /// Systemd unit, where the cgroup path names one.
    pub unit: Option<String>,
}

/// A steered connection or a query for a name: who made it and where it was going.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Kernel's id of the client's socket; 0 of a query's.
    pub cookie: u64,
    /// The workload that the kernel recognised.
    pub workload: Arc<str>,
    /// Who connected.
    pub process: Arc<Process>,
    /// Where to.
    pub destination: SocketAddr,
}

/// What the kernel counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// IP bytes the workload sent.
    pub bytes_out: u64,
    /// IP bytes it received.
    pub bytes_in: u64,
    /// Packets it sent.
    pub packets_out: u64,
    /// Packets it received.
    pub packets_in: u64,
}

/// One live flow's account.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct FlowAccount {
    /// Kernel's id of the client's socket.
    pub cookie: u64,
    /// The workload.
    pub workload: String,
    /// Who connected.
    pub process: Process,
    /// Where to.
    pub destination: SocketAddr,
    /// When.
    pub opened: jiff::Timestamp,
    /// Bytes and packets so far.
    #[serde(flatten)]
    pub counters: Counters,
}

/// A process under governance.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct GovernedProcess {
    /// Its id in the initial pid namespace.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Path of its executable: a label only.
    pub exe: String,
    /// Whose it is.
    pub workload: String,
    /// Since when, to a second.
    pub since: jiff::Timestamp,
    /// By what it, or the ancestor that it has this from, was recognised.
    pub evidence: Evidence,
    /// It has this from its parent.
    pub inherited: bool,
}

/// How a process was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// It was in a governed cgroup.
    Cgroup,
    /// A rule of this number held.
    Rule(u16),
}

/// What a workload may do besides connecting through the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Openings {
    /// The workload.
    pub workload: String,
    /// TCP ports that others may connect to it on.
    pub listen: Vec<u16>,
    /// Unix sockets that it may speak to.
    pub unix: Vec<SocketName>,
}

/// A Unix socket as programs name it: a path, or `@` and an abstract name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketName {
    /// The name, or how it begins.
    pub name: String,
    /// Whatever follows is meant too.
    pub any_rest: bool,
}

/// Something the kernel did on its own.
#[derive(Debug, Clone)]
pub enum Event {
    /// A connection or datagram refused.
    Refused(Refusal),
    /// A governed process is in a network namespace in which no listeners are admitted.
    Stranger {
        /// Its pid.
        pid: u32,
        /// Its workload.
        workload: Arc<str>,
    },
    /// A workload has spent its quota, and something more of it was dropped: its connections move nothing any more.
    Overspent {
        /// The workload.
        workload: Arc<str>,
    },
    /// A process runs a file that is to be looked at before it may connect.
    Unseen {
        /// The process.
        pid: u32,
        /// The file, as it was then.
        file: FileState,
    },
    /// A steered connection ended.
    Closed {
        /// The flow.
        flow: Flow,
        /// When it was made, as the kernel saw it.
        opened: SystemTime,
        /// Its final account.
        counters: Counters,
    },
}

/// A refusal by the kernel.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// When, as the kernel saw it.
    pub time: SystemTime,
    /// The workload.
    pub workload: Arc<str>,
    /// Who tried.
    pub process: Arc<Process>,
    /// What for; `None` where a socket was refused before it had a destination.
    pub destination: Option<SocketAddr>,
    /// What for, where it has a name instead: a Unix socket's path, or `@` and its abstract name.
    pub name: Option<String>,
    /// `tcp`, `udp`, `icmp`, `raw`, `unix`, or the protocol's number.
    pub protocol: String,
    /// Stable code: `agent_down`, `udp`, `raw`, `protocol`, `direct`, `unrecorded`, `unsteered`,
    /// `namespace`, `quota`, `unsettled`, `device`, `listen`, `port`, `unix`, `established`, `family`, `trace`, `signal`,
    /// `passed`, `fence`.
    pub reason: &'static str,
    /// The reason for a person, and what to do.
    pub detail: String,
}

/// One layer of the fence, as it is on this host right now.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Layer {
    /// E.g. `connect4`.
    pub name: String,
    /// Attached and effective at the cgroup root, asked of the kernel now.
    pub enforcing: bool,
    /// Scopes are not held without it: something governed gets past that this kernel could stop.
    pub needed: bool,
    /// What is not stopped without it.
    pub leaves_open: String,
    /// Why it is not in force.
    pub why: Option<String>,
}

impl Drop for Fence {
    fn drop(&mut self) {
        self.exempt_no_more();
    }
}

impl Fence {
    /// Probes, loads, attaches at the cgroup root and pins; adopts what an earlier agent pinned,
    /// replacing programs atomically. A first start that fails leaves nothing behind; an adoption
    /// that fails leaves the earlier programs enforcing.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(options: &Options) -> Result<Self, Error> {
        Self::open_on(&Kernel::probe()?, options)
    }

    /// The same on a kernel that was probed before.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open_on(kernel: &Kernel, options: &Options) -> Result<Self, Error> {
        let root = probe::cgroup_root(options.cgroup_root.as_deref())?;
        let pins = pins::Pins::open(&options.pin_dir)?;
        processes::keep_one();
        let (adopting, was_open) = (pins.are_in_force(), pins.was_open());
        if was_open {
            pins.note_unseen()?;
        }
        match Self::stand_up(kernel, &pins, &root, options.counts) {
            Ok((maps, programs, hook_log)) => {
                let fence = Self {
                    scope: shared::SharedScope::open(&pins)?,
                    beyond: shared::SharedBeyond::open(&pins)?,
                    marks: shared::Marks::open(&pins)?,
                    pins,
                    root,
                    maps,
                    programs,
                    names: translate::Names::new(),
                    listeners: layers::Admitted::default(),
                    hook_log,
                    leaving: Default::default(),
                    was_open,
                    // An earlier agent may have.
                    missed_some: true.into(),
                };
                fence.read_workloads()?;
                fence.exempt_self();
                Ok(fence)
            }
            Err(error) => {
                if !(adopting || was_open)
                    && let Err(left) = pins.remove()
                {
                    tracing::error!(%left, "could not clean up after a failed start");
                }
                Err(error)
            }
        }
    }

    fn stand_up(
        kernel: &Kernel,
        pins: &pins::Pins,
        root: &probe::CgroupRoot,
        counts: bool,
    ) -> Result<(maps::Maps, load::Programs, log::HookLog), Error> {
        pins.adopt()?;
        let (programs, hook_log) = load::programs(kernel, pins, counts)?;
        let maps = maps::Maps::open(pins)?;
        govern::prepare(&maps)?;
        // Before, so that what does not come to be attached is missed.
        pins.note(|hook| programs.has(hook))?;
        load::attach(pins, root, &programs.loaded)?;
        Ok((maps, programs, hook_log))
    }

    /// Was there a fence of which not all was in force, or which the kernel had not shown all to? Then nothing is known of what passed,
    /// until it is [`Self::seen`].
    pub fn was_open(&self) -> bool {
        self.was_open
    }

    /// Tags the agent's listeners and the datagram sockets at the same ports, and tells the hooks: from here
    /// on governed connections and queries for names of the network namespace that they are in are
    /// steered. `port6: None` refuses them over IPv6. Returns the namespace's cookie.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn admit(
        &self,
        listeners: &[impl AsFd],
        port4: u16,
        port6: Option<u16>,
    ) -> Result<u64, Error> {
        self.admit_listeners(listeners, port4, port6)
    }

    /// Refuses governed connections of a network namespace from here on.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn retire(&self, namespace: u64) -> Result<(), Error> {
        self.retire_listeners(namespace)
    }

    /// Forgets listeners that an earlier agent had in network namespaces where this one has none.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn forget_namespaces(&self) -> Result<(), Error> {
        self.retire_strangers()
    }

    /// Governs a cgroup subtree (path below the cgroup2 root), and what runs in it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn govern(&self, cgroup: &Path, workload: &str) -> Result<Enrolled, Error> {
        self.govern_subtree(cgroup, workload)
    }

    /// Refuses what runs in a cgroup, unless it is governed already: whose it is, is not known yet.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn hold(&self, cgroup: &Path) -> Result<(), Error> {
        self.hold_subtree(cgroup)
    }

    /// Lets workloads do exactly this besides connecting through the agent.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn permit(&self, openings: &[Openings]) -> Result<(), Error> {
        self.permit_exactly(openings)
    }

    /// Stops governing a subtree; one that is not governed stays so. Processes that were in it stay what they are.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn release(&self, cgroup_id: u64) -> Result<(), Error> {
        self.release_subtree(cgroup_id)
    }

    /// Has the hooks recognise exactly this, from now on and without the agent.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn recognise(&self, by: &Recognition) -> Result<(), Error> {
        self.recognise_by(by)
    }

    /// Says which conditions a cgroup fulfils (path below the cgroup2 root). Returns its id.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn fulfils(&self, cgroup: &Path, conditions: u64) -> Result<u64, Error> {
        self.set_conditions(cgroup, conditions, 0)
    }

    /// The same, besides what was said of it before.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn fulfils_also(&self, cgroup: &Path, conditions: u64) -> Result<u64, Error> {
        self.set_conditions(cgroup, conditions, u64::MAX)
    }

    /// Which conditions cgroups fulfil, also as an earlier agent or a hook said.
    pub fn fulfilled(&self) -> Vec<(String, u64)> {
        self.all_fulfilled()
    }

    /// Says of which class a file is; `None`: of none.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn know(&self, file: &FileState, class: Option<u16>) -> Result<(), Error> {
        self.know_all(&[(*file, class)].into())
    }

    /// Lets go of every process of workloads for which `stays` does not hold, and of the sockets that they made.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn forget_workloads(&self, stays: impl Fn(&str) -> bool) -> Result<(), Error> {
        self.let_go(stays)
    }

    /// All subtrees governed, also those pinned by an earlier agent.
    pub fn governed(&self) -> Vec<Governed> {
        self.all_governed()
    }

    /// All processes that are governed, whatever cgroup they are in.
    ///
    /// # Errors
    /// The system's word: not all of them are known.
    pub fn governed_processes(&self) -> io::Result<Vec<GovernedProcess>> {
        self.processes()
    }

    /// How many processes are governed since they were in a governed cgroup, and are in none now, or in one that cannot be told.
    pub fn strays(&self) -> usize {
        self.gone_astray()
    }

    /// The workload that a process is of, by what it has been: it need not be in a governed cgroup.
    pub fn workload_of(&self, pid: u32) -> Option<String> {
        self.workload_of_process(pid)
    }

    /// The cgroup2 mount.
    pub fn cgroup_root(&self) -> &Path {
        &self.root.path
    }

    /// The flow behind an accepted connection; `None` if no hook steered it here. To be asked at once: what a client
    /// leaves that closes before is kept for a while only. Three system
    /// calls, no lock; a few more for a connection that its client has closed, and for a process that was not seen before.
    pub fn flow_of(&self, accepted: &impl AsFd) -> Option<Flow> {
        self.flow_behind(accepted.as_fd())
    }

    /// Who asked: the query that begins with `id` and came from `from` to a socket of `namespace`. `None`
    /// if it is no governed task's. To be called once for each query that is read, before the next is. One
    /// system call, no lock.
    pub fn asker_of(&self, namespace: Namespace, from: SocketAddr, id: [u8; 2]) -> Option<Flow> {
        self.take_asker(namespace, from, id)
    }

    /// Forgets the queries that left before `time` (nanoseconds since boot): they were lost on their way.
    /// None that is still to be read may be as old, or it will be nobody's.
    pub fn forget_queries(&self, time: u64) {
        self.forget_askers(time);
    }

    /// Live flows.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn flows(&self) -> Result<Vec<FlowAccount>, Error> {
        self.live_flows()
    }

    /// Waits for the kernel's events and hands each to `sink`, until cancelled; what the hooks say in
    /// words goes to `tracing`. Call once.
    pub async fn events(&self, sink: &mut (dyn FnMut(Event) + Send)) {
        tokio::select! {
            () = self.wait_for_events(sink) => {}
            () = self.hook_log.pass_on() => {}
        }
    }

    /// Gives exactly these workloads quotas. What was spent in a window stays spent, unless windows get another length.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn set_quotas(&self, allowances: &[Allowance<'_>]) -> Result<(), Error> {
        self.replace_quotas(allowances)
    }

    /// What every workload with a quota has spent.
    pub fn usage(&self) -> Vec<Usage> {
        self.all_usage()
    }

    /// Events lost because nobody drained them in time.
    pub fn lost_events(&self) -> u64 {
        self.count_lost()
    }

    /// Asks the kernel which layers are in force now.
    pub fn layers(&self) -> Vec<Layer> {
        self.ask_layers()
    }

    /// Puts back what somebody detached or unpinned since it was attached. What passed meanwhile was not seen: look at
    /// [`Self::governed_processes`] again, with [`Self::end_earlier`], and say so with [`Self::seen`].
    pub fn mend(&self) -> Vec<Mended> {
        self.put_back()
    }

    /// Detaches, unpins and forgets everything of this instance. Governed workloads become ungoverned.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn lift(self) -> Result<(), Error> {
        self.pins.remove()
    }
}
