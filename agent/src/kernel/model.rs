//! By what workloads are recognised, and what becomes of what they had open, as the agent says it.
use super::{Process, Unheld};
use std::net::SocketAddr;
use std::sync::Arc;

/// A file at one moment: written or replaced, it is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileState {
    /// Its filesystem's device, in the kernel's own encoding.
    pub device: u32,
    /// Its inode.
    pub inode: u64,
    /// When it was last changed, in seconds and nanoseconds.
    pub changed: (i64, u32),
}

/// A program that was run before it was known, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    /// What was run.
    pub file: FileState,
    /// The real user.
    pub uid: u32,
    /// What conditions held for its cgroups.
    pub conditions: u64,
    /// The hooks know by now what it is.
    pub is_known: bool,
}

/// A cgroup subtree under governance.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Governed {
    /// Kernel id of the subtree's root.
    pub cgroup_id: u64,
    /// Its path below the cgroup2 root, where that is known.
    pub cgroup: Option<String>,
    /// It no longer exists.
    #[serde(skip)]
    pub is_gone: bool,
    /// The workload it belongs to.
    pub workload: String,
}

/// What came of governing a subtree.
#[derive(Debug, Clone)]
pub struct Enrolled {
    /// Kernel id of the subtree's root.
    pub cgroup_id: u64,
    /// Processes that ran in it, or that such ones had made, and that nothing governed before.
    pub newly: Vec<u32>,
}

/// By what the hooks recognise workloads, without the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recognition {
    /// Cgroups that are governed, or looked at by rules, from their birth on.
    pub paths: Vec<CgroupPath>,
    /// Rules for who is in no governed cgroup.
    pub cases: Vec<Case>,
    /// Names of executables' files of which each is looked at.
    pub exe_names: std::collections::HashSet<String>,
    /// Some rule names executables.
    pub by_executable: bool,
    /// Some rule names executables by their content.
    pub by_digest: bool,
    /// Some selector names containers: their cgroups are refused until they are looked up.
    pub by_container: bool,
}

/// A cgroup's path, of names, or any at some places.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupPath {
    /// From the root; `None`: any name.
    pub names: Vec<Option<String>>,
    /// All but the last must be slices.
    pub slices: bool,
    /// Who has such a cgroup.
    pub workload: Option<String>,
    /// It is the agent's own: nobody's, whatever else has such a path.
    pub is_own: bool,
    /// Of several paths that a cgroup has, the lowest counts.
    pub rank: u32,
    /// Which condition it fulfils.
    pub condition: Option<u32>,
}

/// All that must hold for a process to be a workload's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// A condition that its cgroup, or one above it, fulfils.
    pub condition: Option<u32>,
    /// What that condition is: never 0, and another number for another condition. See [`super::Bits`].
    pub meaning: u32,
    /// It has a condition that has no bit yet: who fulfils the rest is refused until it has.
    pub is_held: bool,
    /// Its real user.
    pub uid: Option<u32>,
    /// What it runs.
    pub executable: Runs,
    /// Whose it is then.
    pub workload: String,
    /// Of several cases that hold, the lowest counts.
    pub rank: u32,
    /// For [`super::Evidence::Rule`].
    pub number: u32,
}

/// What executable a case is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// Whatever it is.
    Anything,
    /// Of this class.
    Class(u16),
    /// One that is not known yet: refused until it is.
    Unknown,
}

/// What policy says of connections that processes had before they were governed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// What becomes of them.
    pub fate: Fate,
    /// Ports that others may connect to the workload on: such connections are not looked at.
    pub listen: Vec<u16>,
}

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is ended.
    Destroy,
    /// It goes on.
    Keep,
}

/// A connection that a process had before it was governed.
#[derive(Debug, Clone)]
pub struct Earlier {
    /// The workload.
    pub workload: Arc<str>,
    /// Who held it; pid 0: nobody any more, or nobody who is governed. Its start is rounded.
    pub process: Arc<Process>,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Its own end.
    pub local: SocketAddr,
    /// The other.
    pub peer: SocketAddr,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a look at connections from before.
#[derive(Debug, Default)]
pub struct Looked {
    /// What changed.
    pub found: Vec<Earlier>,
    /// Processes of which all was looked at that can be, or that have ended.
    pub complete: Vec<u32>,
    /// Listeners that nothing holds.
    pub unheld: Vec<Unheld>,
    /// Why not all could be looked at, where another look may do better.
    pub missed: Option<String>,
}

impl Looked {
    pub(super) fn add(&mut self, more: Self) {
        self.found.extend(more.found);
        self.complete.extend(more.complete);
        self.unheld.extend(more.unheld);
        self.missed = self.missed.take().or(more.missed);
    }
}

/// What came of a connection from before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was ended.
    Destroyed,
    /// It goes on.
    Kept,
    /// It was to be ended and was not.
    Failed(String),
}
