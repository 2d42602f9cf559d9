//! What a workload may do besides connecting through the agent: the exceptions of its policy.
use crate::{flow::Address, limits::SOCKET_NAME_BYTES, pod};

/// A port that a workload may listen on: the key of `LISTEN`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Listen {
    /// Key into `WORKLOADS`.
    pub workload: u32,
    /// Host order.
    pub port: u16,
    /// Explicit padding.
    pub reserved: u16,
}

/// A Unix socket's name: a path, or NUL and an abstract name; padded with NUL.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketName {
    /// As `struct sockaddr_un` has it.
    pub bytes: [u8; SOCKET_NAME_BYTES],
    /// How many count.
    pub length: u32,
}

/// A Unix socket that a workload may speak to, or how its name begins: what follows the length in a key of `UNIX`,
/// which finds the longest beginning.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    /// Key into `WORKLOADS`.
    pub workload: u32,
    /// As in [`SocketName`]. A whole name has its NUL within the key's length, the beginning of one has not.
    pub name: [u8; SOCKET_NAME_BYTES],
}

/// A connection from before its workload was governed that goes on: the value of `KEPT`, by the socket's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its peer. What the socket sends elsewhere is refused.
    pub peer: Address,
    /// Key into `WORKLOADS`.
    pub workload: u32,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub protocol: u8,
    /// Not 0: it is being ended, or could not be, and sends no more than that (TCP's RST).
    pub ends: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(size_of::<Listen>() == 8);
const _: () = assert!(size_of::<SocketName>() == 112);
const _: () = assert!(size_of::<Named>() == 112);
const _: () = assert!(size_of::<Kept>() == 32);
pod!(Listen, SocketName, Named, Kept);
