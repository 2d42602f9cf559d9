//! What the hooks tell the agent through the `EVENTS` ring. Each begins with its `kind`.
use crate::{
    flow::{Address, Owner},
    openings::SocketName,
    pod,
};

/// `kind` of a [`crate::flow::Record`]: the flow ended.
pub const CLOSED: u32 = 1;
/// `kind` of a [`Refused`].
pub const REFUSED: u32 = 2;
/// `kind` of a [`NameRefused`].
pub const NAME_REFUSED: u32 = 16;

/// `kind` of a [`Stranger`].
pub const STRANGER: u32 = 3;

/// `kind` of an [`Overspent`].
pub const OVERSPENT: u32 = 4;

/// Why a hook refused. The numbers are keys of `REFUSALS` and stay as they are.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No listener of the agent where the connection would go.
    AgentDown = 1,
    /// A datagram that asks for no name: to another port than 53.
    Udp = 2,
    /// A raw socket.
    Raw = 3,
    /// A protocol that is neither TCP nor UDP.
    Protocol = 4,
    /// A connection to the agent itself, with no hook's record to go by.
    Direct = 5,
    /// The connection's owner could not be recorded.
    Unrecorded = 6,
    /// A packet of a governed socket that no hook steered.
    Unsteered = 7,
    /// A connection from a network namespace in which the agent does not listen.
    Namespace = 8,
    /// The workload has spent what it may in this window.
    Quota = 9,
    /// Whose it is was not known yet.
    Unsettled = 10,
    /// A socket that is bound to a network device: from there it would not get to the agent.
    Device = 11,
    /// A connection to a port that the workload may not listen on.
    Listen = 16,
    /// The agent's own port, for a socket of a governed task.
    Port = 17,
    /// A Unix socket that the workload may not speak to.
    Unix = 18,
    /// A socket of a family that no hook looks at.
    Family = 19,
    /// Another's process, looked into.
    Trace = 20,
    /// A signal for the agent.
    Signal = 21,
    /// A connected socket of somebody else's.
    Passed = 22,
    /// What holds the fence: programs, maps, and where these are pinned.
    Fence = 23,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::AgentDown,
        Self::Udp,
        Self::Raw,
        Self::Protocol,
        Self::Direct,
        Self::Unrecorded,
        Self::Unsteered,
        Self::Namespace,
        Self::Quota,
        Self::Unsettled,
        Self::Device,
        Self::Listen,
        Self::Port,
        Self::Unix,
        Self::Family,
        Self::Trace,
        Self::Signal,
        Self::Passed,
        Self::Fence,
    ];
}

/// A refusal.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// [`REFUSED`].
    pub kind: u32,
    /// A [`Reason`].
    pub reason: u32,
    /// When, nanoseconds since boot.
    pub time: u64,
    /// `IPPROTO_…`
    pub protocol: u32,
    /// `SOCK_…`
    pub socket_type: u32,
    /// 1: `destination` is set.
    pub has_destination: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// What for.
    pub destination: Address,
    /// Who tried.
    pub owner: Owner,
}

/// A governed task is in a network namespace in which the agent does not listen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Stranger {
    /// [`STRANGER`].
    pub kind: u32,
    /// Its thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// Key into `WORKLOADS`.
    pub workload: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// Cookie of the namespace.
    pub netns: u64,
}

/// A workload has spent what it may in this window, and something more of it was dropped. Told once a second.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Overspent {
    /// [`OVERSPENT`].
    pub kind: u32,
    /// Key into `WORKLOADS`.
    pub workload: u32,
}

/// A refusal of something that has a name instead of an address.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NameRefused {
    /// All the rest, with [`NAME_REFUSED`] for its kind.
    pub refused: Refused,
    /// The socket's name, as its caller gave it.
    pub name: SocketName,
}

/// [`Pending::state`]: the refusal was told, and is not told again for the same destination.
pub const TOLD: u64 = 1;

/// [`Pending::state`]: that nothing is sent over the socket, since its workload did not make it, was told.
pub const TOLD_PASSED: u64 = 2;

/// [`Pending::waits`]: its owner did.
pub const OF_WHO_WAITS: u64 = 1 << 32;

/// A refusal that is due with the first packet that its socket sends: the value of `PENDING`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    /// Bits above.
    pub state: u64,
    /// The governed cgroup by which its owner was found: a key of `GOVERNED`.
    pub governed: u64,
    /// What its owner waited for then, with [`OF_WHO_WAITS`]: see `recognise::Waiting`. 0: it did not.
    pub waits: u64,
    /// What is told then, all but its time.
    pub refused: Refused,
}

/// Refusals of one workload for one reason: the key of `REFUSALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusalKey {
    /// Key into `WORKLOADS`.
    pub workload: u32,
    /// A [`Reason`].
    pub reason: u32,
}

const _: () = assert!(size_of::<Refused>() == 56 + size_of::<Owner>());
const _: () = assert!(size_of::<Stranger>() == 24);
const _: () = assert!(size_of::<Overspent>() == 8);
const _: () = assert!(size_of::<Pending>() == 24 + size_of::<Refused>());
const _: () = assert!(size_of::<NameRefused>() == 112 + size_of::<Refused>());
const _: () = assert!(size_of::<RefusalKey>() == 8);
pod!(
    Refused,
    NameRefused,
    Stranger,
    Overspent,
    Pending,
    RefusalKey
);
