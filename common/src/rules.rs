//! What the hooks decide by, free of the kernel so that it can be tested on its own.
use crate::{event::Reason, flow::Address};

/// `IPPROTO_TCP`
pub const TCP: u32 = 6;
/// `IPPROTO_UDP`
pub const UDP: u32 = 17;
/// `SOCK_STREAM`
pub const STREAM: u32 = 1;
/// `SOCK_DGRAM`
pub const DATAGRAM: u32 = 2;
/// `SOCK_RAW`
pub const RAW: u32 = 3;
/// `AF_UNIX`, `AF_INET`, `AF_INET6`, `AF_NETLINK`
const FAMILIES: [u32; 4] = [1, 2, 10, 16];
/// States of a socket that leads nowhere: `TCP_CLOSE`, which an unconnected datagram socket is in too, and `TCP_LISTEN`.
pub const UNCONNECTED: u8 = 7;
/// See [`UNCONNECTED`].
pub const LISTENING: u8 = 10;
/// `SOCK_MEMALLOC`, a bit of a socket's flags: the kernel reads or writes a disk over it.
pub const CARRIES_A_DISK: u64 = 1 << 14;
/// The port of DNS.
pub const DNS: u16 = 53;

/// `::ffff:0:0/96`, third word, in network order.
const MAPPED: u32 = 0xffff_u32.to_be();

/// May a governed task make an IP socket of this type and protocol? Protocol 0 is the type's own.
#[inline(always)]
pub const fn socket(socket_type: u32, protocol: u32) -> Result<(), Reason> {
    match (socket_type, protocol) {
        (STREAM, 0 | TCP) | (DATAGRAM, 0 | UDP) => Ok(()),
        (RAW, _) => Err(Reason::Raw),
        _ => Err(Reason::Protocol),
    }
}

/// Is this a family of IP?
#[inline(always)]
pub const fn is_ip(family: u32) -> bool {
    family == FAMILIES[1] || family == FAMILIES[2]
}

/// Is it left to others who this socket of IP sends to: is it connected to nobody, and of a protocol whose every datagram and
/// connection has a hook of its own?
#[inline(always)]
pub const fn is_unconnected(state: u8, protocol: u32) -> bool {
    matches!(state, UNCONNECTED | LISTENING) && matches!(protocol, TCP | UDP)
}

/// Is this the family of IPv4?
#[inline(always)]
pub const fn is_ip4(family: u32) -> bool {
    family == FAMILIES[1]
}

/// `NETLINK_USERSOCK`: between processes, whoever they are.
const BETWEEN_USERS: u32 = 2;

/// May a governed task make sockets of this family and protocol: those that hooks look at, and those that go to the kernel?
#[inline(always)]
pub const fn is_looked_at(family: u32, protocol: u32) -> bool {
    is_ip(family) || family == FAMILIES[0] || family == FAMILIES[3] && protocol != BETWEEN_USERS
}

/// Is this address one that leads to a listener on 127.0.0.1 or ::1: loopback, or the wildcard?
#[inline(always)]
pub const fn leads_to_loopback(ip: [u32; 4]) -> bool {
    if ip[0] != 0 || ip[1] != 0 {
        return false;
    }
    let last = u32::from_be(ip[3]);
    match ip[2] {
        0 => last <= 1,
        MAPPED => last == 0 || last >> 24 == 127,
        _ => false,
    }
}

/// Is this IPv4, v4-mapped?
#[inline(always)]
pub const fn is_mapped(ip: [u32; 4]) -> bool {
    ip[0] == 0 && ip[1] == 0 && ip[2] == MAPPED
}

/// Does an IPv4 address, mapped, stand for many: a group, or all at once? Broadcasts to a subnet are not told from others.
#[inline(always)]
pub const fn is_for_many(ip: [u32; 4]) -> bool {
    is_mapped(ip) && u32::from_be(ip[3]) >> 24 >= 224
}

/// 127.0.0.1 at `port`, v4-mapped.
#[inline(always)]
pub const fn loopback4(port: u16) -> Address {
    address4(0x7f00_0001_u32.to_be(), port)
}

/// ::1 at `port`.
#[inline(always)]
pub const fn loopback6(port: u16) -> Address {
    address6([0, 0, 0, 1_u32.to_be()], port)
}

/// An IPv4 address in network order, v4-mapped.
#[inline(always)]
pub const fn address4(ip: u32, port: u16) -> Address {
    Address {
        ip: [0, 0, MAPPED, ip],
        port,
        reserved: [0; 3],
    }
}

/// An IPv6 address in network order.
#[inline(always)]
pub const fn address6(ip: [u32; 4], port: u16) -> Address {
    Address {
        ip,
        port,
        reserved: [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip4(octets: [u8; 4]) -> [u32; 4] {
        address4(u32::from_ne_bytes(octets), 0).ip
    }

    #[test]
    fn only_tcp_and_udp_sockets() {
        assert_eq!(socket(STREAM, 0), Ok(()));
        assert_eq!(socket(STREAM, TCP), Ok(()));
        assert_eq!(socket(DATAGRAM, 0), Ok(()));
        assert_eq!(socket(DATAGRAM, UDP), Ok(()));
        assert_eq!(socket(RAW, 1), Err(Reason::Raw));
        assert_eq!(socket(RAW, TCP), Err(Reason::Raw));
        for (socket_type, protocol) in [
            (STREAM, 262),
            (STREAM, 132),
            (DATAGRAM, 1),
            (DATAGRAM, 58),
            (DATAGRAM, 136),
            (5, 132),
            (6, 33),
            (STREAM, UDP),
        ] {
            assert_eq!(socket(socket_type, protocol), Err(Reason::Protocol));
        }
    }

    #[test]
    fn what_needs_no_connection_is_never_unconnected() {
        for state in [UNCONNECTED, LISTENING] {
            assert!(is_unconnected(state, TCP) && is_unconnected(state, UDP));
            for protocol in [1, 58, 132, 136, 255, 262] {
                assert!(!is_unconnected(state, protocol), "{protocol}");
            }
        }
        for state in (1..7).chain([8, 9, 11, 12]) {
            assert!(!is_unconnected(state, TCP), "{state}");
        }
    }

    #[test]
    fn loopback_in_every_form() {
        for octets in [[127, 0, 0, 1], [127, 9, 9, 9], [0, 0, 0, 0]] {
            assert!(leads_to_loopback(ip4(octets)));
        }
        for octets in [
            [126, 0, 0, 1],
            [0, 0, 0, 1],
            [10, 0, 0, 127],
            [128, 0, 0, 1],
        ] {
            assert!(!leads_to_loopback(ip4(octets)));
        }
        assert!(leads_to_loopback([0; 4]));
        assert!(leads_to_loopback(loopback6(1).ip));
        assert!(!leads_to_loopback([0, 0, 0, 2_u32.to_be()]));
        assert!(!leads_to_loopback([1, 0, 0, 1_u32.to_be()]));
    }

    #[test]
    fn groups_are_for_many() {
        for octets in [[224, 0, 0, 1], [239, 255, 255, 250], [255, 255, 255, 255]] {
            assert!(is_for_many(ip4(octets)));
        }
        for octets in [[223, 255, 255, 255], [10, 0, 0, 255], [0, 0, 0, 0]] {
            assert!(!is_for_many(ip4(octets)));
        }
        assert!(!is_for_many([
            0xff02_u32.to_be() << 16,
            0,
            0,
            1_u32.to_be()
        ]));
    }
}
