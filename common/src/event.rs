//! What the hooks tell the agent through the `EVENTS` ring. Each begins with its `kind`.
use crate::{
    flow::{Address, Owner},
    pod,
};

/// `kind` of a [`crate::flow::Record`]: the flow ended.
pub const CLOSED: u32 = 1;
/// `kind` of a [`Refused`].
pub const REFUSED: u32 = 2;

/// Why a hook refused. The numbers are keys of `REFUSALS` and stay as they are.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No listener of the agent where the connection would go.
    AgentDown = 1,
    /// A datagram, or a datagram socket's peer, that is not a resolver on port 53.
    Udp = 2,
    /// A raw socket.
    Raw = 3,
    /// A protocol that is neither TCP nor UDP.
    Protocol = 4,
    /// A connection to the agent itself, with no hook's record to go by.
    Direct = 5,
    /// The connection's owner could not be recorded.
    Unrecorded = 6,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::AgentDown,
        Self::Udp,
        Self::Raw,
        Self::Protocol,
        Self::Direct,
        Self::Unrecorded,
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
const _: () = assert!(size_of::<RefusalKey>() == 8);
pod!(Refused, RefusalKey);
