//! Everything that can keep the fence from standing. Each message says what to do.
use std::io;
use std::path::PathBuf;

/// Grouped by who can mend it: the host, whoever installed this, the caller.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A capability is missing.
    #[error(
        "loading eBPF needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON and CAP_SYS_ADMIN or root: run as root or through the service"
    )]
    NotPermitted,
    /// The kernel lacks something that every supported one has.
    #[error("Linux {release} is too old: Tollgate needs 6.1 or newer; boot a newer kernel")]
    KernelTooOld {
        /// `uname -r`
        release: String,
    },
    /// No cgroup2 mount.
    #[error(
        "no cgroup2 is mounted: mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`) or boot with systemd.unified_cgroup_hierarchy=1"
    )]
    NoCgroup2,
    /// What is named is no cgroup2 mount.
    #[error(
        "cgroup_root {path} is no cgroup2 mount: name the one of `findmnt -t cgroup2`, or leave the key out to have it found"
    )]
    NotCgroup2 {
        /// As named.
        path: PathBuf,
    },
    /// The cgroup2 mount shows a namespace's root only.
    #[error(
        "{path} is not the root of the host's cgroups but of a cgroup namespace: start the agent outside of containers, or with the host's cgroup namespace"
    )]
    NotCgroupRoot {
        /// The mount.
        path: PathBuf,
    },
    /// The agent has another view of processes than the hooks.
    #[error(
        "the agent is in a pid namespace other than the host's, where processes have other ids than to the kernel: start it outside of containers, or with the host's pid namespace"
    )]
    PidNamespace,
    /// The kernel does not describe its types.
    #[error(
        "cannot read {path}: this kernel was built without CONFIG_DEBUG_INFO_BTF; boot a distribution kernel that has it"
    )]
    NoBtf {
        /// Where it should be.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The kernel's description of its types cannot be used.
    #[error("{path} is not what was expected ({what}): please report the kernel's version")]
    BadBtf {
        /// The file.
        path: PathBuf,
        /// What was missing or damaged.
        what: String,
    },
    /// The bpffs cannot be mounted.
    #[error(
        "cannot mount a bpffs at {path}: {source}; mount it before the agent starts (`mount -t bpf bpf {path}`)"
    )]
    Mount {
        /// Where.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The bpffs is read-only.
    #[error(
        "the bpffs at {path} is read-only: remount it (`mount -o remount,rw {path}`); containers need it mounted writable"
    )]
    ReadOnly {
        /// Where.
        path: PathBuf,
    },
    /// A pin, or a file of the kernel, could not be made, read or removed.
    #[error("cannot {action} {path}: {source}")]
    Pin {
        /// `pin`, `open`, `remove`, …
        action: &'static str,
        /// What.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Another agent of this instance runs.
    #[error("another agent holds {path}: stop it first; two agents must not share one instance")]
    InUse {
        /// The instance's pins.
        path: PathBuf,
    },
    /// What is pinned belongs to another version.
    #[error(
        "what is pinned in {path} was made by another version ({what}) and still enforces: stop the governed workloads, remove {path}, and start again"
    )]
    Incompatible {
        /// The instance's pins.
        path: PathBuf,
        /// The difference.
        what: String,
    },
    /// A map of what is in force is gone.
    #[error(
        "what an earlier agent left in {path} still enforces, but another hand removed the pin of its map {map}, and with that what it held: stop the governed workloads, remove {path}, and start again"
    )]
    MapLost {
        /// The instance's pins.
        path: PathBuf,
        /// The map.
        map: &'static str,
    },
    /// The embedded object cannot be used.
    #[error("the eBPF object cannot be prepared: {source}; build again with `cargo xtask build`")]
    Object {
        /// What happened.
        source: Box<aya::EbpfError>,
    },
    /// The embedded object lacks a part.
    #[error("the eBPF object has no `{what}`: build again with `cargo xtask build`")]
    MissingPart {
        /// A program or map.
        what: &'static str,
    },
    /// The kernel's verifier or loader refused a program.
    #[error("the kernel refused the program `{program}`: {why}")]
    Refused {
        /// Which.
        program: &'static str,
        /// Why, with the end of the verifier's log. Text, so that whoever prints a chain of causes
        /// prints it once.
        why: String,
    },
    /// A program could not be attached or replaced.
    #[error("cannot attach `{hook}`: {source}")]
    Attach {
        /// Which.
        hook: &'static str,
        /// What happened.
        source: io::Error,
    },
    /// A map could not be read or written.
    #[error("cannot {action} the map {map}: {source}")]
    Map {
        /// `read` or `write`.
        action: &'static str,
        /// Which.
        map: &'static str,
        /// What happened.
        source: Box<aya::maps::MapError>,
    },
    /// The kernel cannot go through what sockets carry.
    #[error(
        "live flows cannot be listed: this kernel has no iterator over what sockets carry ({source}; bpf_sk_storage_map, since Linux 5.9); boot a distribution kernel that has it. What workloads moved is in `tollgate workloads` all the same"
    )]
    NoIterator {
        /// What happened.
        source: io::Error,
    },
    /// The kernel did not go through what sockets carry.
    #[error(
        "live flows cannot be listed: {source}; ask again, and restart the agent if it stays so"
    )]
    Unlisted {
        /// What happened.
        source: io::Error,
    },
    /// A listener that cannot be tagged.
    #[error("cannot tag a listener as the agent's: {source}; it must be an open TCP socket")]
    Listener {
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The network namespace of a listener cannot be told.
    #[error("cannot tell the network namespace of a listener: {source}; it must be an open socket")]
    Namespace {
        /// What happened.
        source: io::Error,
    },
    /// A cgroup that cannot be governed because it is not there.
    #[error("cannot govern the cgroup {path}: {source}; give a path below the cgroup2 mount")]
    Cgroup {
        /// Path below the root.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Deeper than the hooks look.
    #[error(
        "cannot govern {path}: it lies {level} levels deep, the hooks see {limit}; govern one of its parents"
    )]
    TooDeep {
        /// Path below the root.
        path: PathBuf,
        /// Its depth.
        level: usize,
        /// The bound, exclusive.
        limit: u32,
    },
    /// The agent itself would be governed.
    #[error(
        "cannot govern {path}: the agent itself runs in it and would be steered to itself; move the agent or govern a cgroup beside it"
    )]
    GovernsItself {
        /// Path below the root.
        path: PathBuf,
    },
    /// The object's programs do not fit its maps.
    #[error(
        "the eBPF programs cannot be joined with the maps at {path}: {error}; build the agent again"
    )]
    Relocate {
        /// The instance's directory.
        path: PathBuf,
        /// What is wrong.
        error: String,
    },
    /// What processes have open could not all be looked at.
    #[error("what processes have open cannot be looked at: {why}")]
    Unseen {
        /// What happened.
        why: String,
    },
    /// Not a name.
    #[error("`{name}` cannot name a workload: 1 to {limit} bytes, no control characters")]
    WorkloadName {
        /// What was given.
        name: String,
        /// The bound.
        limit: usize,
    },
    /// A bound of the maps.
    #[error(
        "too many {what}: the hooks hold {limit}, counted since the fence was made; name fewer, or stop the governed workloads and remove the pins to begin anew"
    )]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        limit: u32,
    },
}

impl Error {
    /// Is it about a cgroup that is no more?
    #[must_use]
    pub fn is_of_a_cgroup_gone(&self) -> bool {
        matches!(self, Self::Cgroup { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}
