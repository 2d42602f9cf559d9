//! A connection on its way from the hook that steered it to the agent that accepts it.
use crate::{
    limits::{PART_BYTES, PATH_PARTS},
    pod,
};

/// An IP address and port. IPv4 is kept v4-mapped (`::ffff:a.b.c.d`), as the kernel itself does.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// Network order.
    pub ip: [u32; 4],
    /// Host order.
    pub port: u16,
    /// Explicit padding.
    pub reserved: [u16; 3],
}

/// A program as the kernel saw it in the hook. Every field is a fact of the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// Start of the process, nanoseconds since boot.
    pub start: u64,
    /// Its own cgroup, not the governed ancestor.
    pub cgroup: u64,
    /// Inode of the executable.
    pub exe_inode: u64,
    /// Device of the executable, in the kernel's encoding: major << 20 | minor.
    pub exe_dev: u32,
    /// Thread-group id in the initial pid namespace.
    pub tgid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Real group id in the initial user namespace.
    pub gid: u32,
    /// Key into `WORKLOADS`.
    pub workload: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// An executable by what it is: the key of `PATHS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub number: u64,
    /// As [`Owner::exe_dev`].
    pub device: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// Where an executable was, for a person to read: the value of `PATHS`. Entries make room for others.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// How many of `names` are set; `PATH_PARTS + 1`: cut, there are more.
    pub parts: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// Components of the path within its filesystem, the file first, each up to NUL.
    pub names: [[u8; PART_BYTES]; PATH_PARTS],
}

/// Bytes and packets of a flow or of a workload.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// IP bytes sent.
    pub bytes_out: u64,
    /// IP bytes received.
    pub bytes_in: u64,
    /// Packets sent, as the stack handled them (offloads may join several).
    pub packets_out: u64,
    /// Packets received.
    pub packets_in: u64,
}

/// A steered connection: the value of `ACCEPTED`, and of `ORPHANS` by the client's end.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Steered {
    /// Which connection.
    pub connection: Connection,
    /// What its SYN says, which the agent's socket keeps too: only the connection that begins with it is this one.
    pub syn: Syn,
    /// Where the client asked to go.
    pub destination: Address,
    /// Who asked.
    pub owner: Owner,
}

/// What tells a SYN from others between the same ends, as it stands in the packet; all zero before it left.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Syn {
    /// The sequence number (RFC 9293, 3.4.1). Linux's comes again after 275 seconds.
    pub sequence: [u8; 4],
    /// The four bytes at [`SYN_CLOCK`]: in Linux's SYN the sender's clock, in milliseconds from a secret start (`TSval`, RFC 7323, 3).
    pub clock: [u8; 4],
}

/// Milliseconds after which a SYN is not sent again, and before which its number does not come again.
const SENT_AGAIN: u32 = 240_000;

impl Syn {
    /// Is this `first`, or that sent again, as it is where a listener had no room? Then it has the same number, and a later clock.
    #[must_use]
    pub fn repeats(&self, first: &Self) -> bool {
        let [clock, since] = [self.clock, first.clock].map(u32::from_be_bytes);
        self.sequence == first.sequence && clock.wrapping_sub(since) < SENT_AGAIN
    }
}

/// Where a TCP header has its sequence number.
pub const SYN_SEQUENCE: usize = 4;
/// Where Linux's SYN has its clock, unless `net.ipv4.tcp_timestamps` is off.
pub const SYN_CLOCK: usize = 28;

/// What is told when a steered connection has ended.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// [`crate::event::CLOSED`].
    pub kind: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// Counted on the client's socket.
    pub traffic: Traffic,
    /// What it was.
    pub steered: Steered,
}

/// [`Client::state`]: its end was told.
pub const CLIENT_CLOSED: u64 = 1;
/// [`Client::state`]: the agent has asked whose connection it is.
pub const CLIENT_KNOWN: u64 = 2;

/// What a client's socket carries: the value of `CLIENTS`. What each packet needs is at the start: one line of the cache.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Key into `WORKLOADS`; 0: it has only been made, and is nobody's so far.
    pub workload: u32,
    /// 1: its maker was governed without being in a governed cgroup. The socket is then that workload's for good.
    pub is_marked: u32,
    /// Its latest steered connection, as it will be told; all zero for a datagram socket, and before there is one.
    pub record: Record,
    /// Its end of that connection; port 0 before its SYN left.
    pub port: Port,
    /// Bits above.
    pub state: u64,
}

/// A client's end of a connection to the agent: the key of `ORPHANS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Its address and port.
    pub address: Address,
}

/// One connection of one socket. A socket may connect again, its cookie stays.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Cookie of the client's socket.
    pub cookie: u64,
    /// When it was steered, nanoseconds since boot.
    pub opened: u64,
}

/// What the agent's listeners carry: the value of `AGENT_SOCKETS`. The agent puts it there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentSocket {
    /// [`LISTENER_TAG`].
    pub tag: u64,
}

/// In `ORIGIN`, above the workload: the socket was not seen to listen.
pub const MADE: u64 = 1 << 63;
/// Likewise: it is from before its process was governed, and says nothing for sending over it.
pub const CLAIMED: u64 = 1 << 62;

/// [`AgentSocket::tag`] of a listener that the agent opened.
pub const LISTENER_TAG: u64 = 0x746f_6c6c_6761_7465;

/// What a datagram socket carries that a governed task asks for names with: the value of `ASKERS`, and,
/// copied as each query leaves, of `QUERIES`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// When its latest query left, nanoseconds since boot.
    pub time: u64,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// The server that was asked last, as its caller named it: answers come from there.
    pub server: Address,
    /// The server that it is connected to; port 0: none.
    pub peer: Address,
    /// Who asked last.
    pub owner: Owner,
}

/// A query on its way to the agent: the key of `QUERIES`. There is one of a kind at a time, so that what
/// the agent reads is the asker's whose it is, whoever had the port before or has it since.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Where it comes from.
    pub from: Port,
    /// Its first two bytes as they stand: the message's id.
    pub id: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// Per-CPU account of a workload: the value of `ACCOUNTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Connections steered.
    pub connections: u64,
    /// Bytes and packets.
    pub traffic: Traffic,
}

const _: () = assert!(size_of::<Address>() == 24);
const _: () = assert!(size_of::<Owner>() == 48);
const _: () = assert!(size_of::<Inode>() == 16);
const _: () = assert!(size_of::<Path>() == 8 + PART_BYTES * PATH_PARTS);
const _: () = assert!(size_of::<Syn>() == 8);
const _: () = assert!(size_of::<Steered>() == 96);
const _: () = assert!(size_of::<Record>() == 136);
const _: () = assert!(size_of::<Client>() == 184);
const _: () = assert!(size_of::<Port>() == 32);
const _: () = assert!(size_of::<AgentSocket>() == 8);
const _: () = assert!(size_of::<Asker>() == 64 + size_of::<Owner>());
const _: () = assert!(size_of::<Query>() == 40);
const _: () = assert!(size_of::<Account>() == 40);
pod!(
    Address,
    Owner,
    Inode,
    Path,
    Traffic,
    Syn,
    Steered,
    Record,
    Client,
    Port,
    Connection,
    AgentSocket,
    Asker,
    Query,
    Account
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_that_is_sent_again_is_the_same() {
        let syn = |number: u32, clock: u32| Syn {
            sequence: number.to_be_bytes(),
            clock: clock.to_be_bytes(),
        };
        let first = syn(7, u32::MAX - 500);
        for (later, expected) in [
            (syn(7, u32::MAX - 500), true),
            (syn(7, 515), true),
            (syn(8, 515), false),
            (syn(7, u32::MAX - 501), false),
            (syn(7, 275_000), false),
        ] {
            assert_eq!(later.repeats(&first), expected, "{later:?}");
        }
    }
}
