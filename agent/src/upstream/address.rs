//! Which addresses a name may lead to without an explicit rule: only public unicast ones.
//!
//! A name is somebody else's to point where they like; without this, an allowed name that resolves to
//! 127.0.0.1 or 169.254.169.254 would lend the workload the agent's place on the network.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What keeps `address` from being dialled without a rule; `None` for public unicast.
pub(super) fn reserved(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => reserved_v4(v4),
        IpAddr::V6(v6) => match embedded_v4(v6) {
            Some(v4) => reserved_v4(v4).or(Some("an IPv6 form of an IPv4 address")),
            None => reserved_v6(v6),
        },
    }
}

/// Whether connecting there ends at one of these listeners on loopback: by their address, or another that leads to it.
pub(super) fn leads_to(address: SocketAddr, listeners: &[SocketAddr]) -> bool {
    let ip = address.ip().to_canonical();
    let local = ip.is_loopback() || ip.is_unspecified();
    let is_it = |own: &SocketAddr| own.port() == address.port() && (local || own.ip() == ip);
    listeners.iter().any(is_it)
}

/// Blocks of the IANA special-purpose registry (RFC 6890) and clouds' metadata services.
fn reserved_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, d] = address.octets();
    Some(match (a, b, c, d) {
        (0, ..) => "this host",
        (127, ..) => "a loopback address",
        (169, 254, ..) | (168, 63, 129, 16) | (100, 100, 100, 200) | (192, 0, 0, 192) => {
            "a link-local or cloud metadata address"
        }
        (10, ..) | (172, 16..=31, ..) | (192, 168, ..) => "a private address",
        (100, 64..=127, ..) => "a carrier's shared address",
        (192, 0, 0 | 2, _)
        | (198, 18 | 19, ..)
        | (198, 51, 100, _)
        | (203, 0, 113, _)
        | (192, 88, 99, _) => "an address reserved for documentation, tests or protocols",
        (224..=239, ..) => "a multicast address",
        (240..=255, ..) => "a reserved or broadcast address",
        _ => return None,
    })
}

fn reserved_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    let [first, second, ..] = segments;
    Some(match first {
        _ if address.is_unspecified() => "this host",
        _ if address.is_loopback() => "a loopback address",
        0xfe80..=0xfebf => "a link-local address",
        0xfc00..=0xfdff => "a unique local address",
        0xfec0..=0xfeff => "a site-local address",
        0xff00..=0xffff => "a multicast address",
        0x2001 if second == 0x0db8 => "an address reserved for documentation",
        0x3fff if second < 0x1000 => "an address reserved for documentation",
        0x0100 if segments.get(1..4) == Some(&[0, 0, 0]) => "a discard address",
        0x2000..=0x3fff => return None,
        _ => "not a global unicast address",
    })
}

/// The IPv4 address that an IPv6 one carries: mapped, compatible, NAT64 (RFC 6052, 8215), 6to4 (RFC 3056), Teredo (RFC 4380).
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = address.segments();
    let at = |high: usize| {
        let [h, l] = [*s.get(high)?, *s.get(high + 1)?];
        Some(Ipv4Addr::from((u32::from(h) << 16) | u32::from(l)))
    };
    match s {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => {
            at(6)
        }
        // Compatible; `::` and `::1` are IPv6's own.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => at(6),
        [0, 0, 0, 0, 0xffff, 0, ..] => at(6),
        [0x2002, ..] => at(1),
        [0x2001, 0, ..] => at(6).map(|v4| Ipv4Addr::from(!u32::from(v4))),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_is_found_in_every_spelling() {
        let own = ["127.0.0.1:15400", "[::1]:15400"].map(|own| own.parse().unwrap());
        for (address, expected) in [
            ("127.0.0.1:15400", true),
            ("127.9.9.9:15400", true),
            ("0.0.0.0:15400", true),
            ("[::]:15400", true),
            ("[::1]:15400", true),
            ("[::ffff:127.0.0.1]:15400", true),
            ("127.0.0.1:15401", false),
            ("10.0.0.1:15400", false),
        ] {
            assert_eq!(
                leads_to(address.parse().unwrap(), &own),
                expected,
                "{address}"
            );
        }
    }

    #[test]
    fn only_public_unicast_needs_no_rule() {
        for refused in [
            "0.0.0.0",
            "127.0.0.1",
            "127.8.8.8",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "169.254.170.2",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "100.64.0.1",
            "192.0.2.1",
            "198.51.100.7",
            "203.0.113.9",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "fd00:ec2::254",
            "fc00::1",
            "ff02::1",
            "2001:db8::1",
            "3fff::1",
            "::ffff:127.0.0.1",
            "::ffff:93.184.216.34",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::a00:1",
            "2002:7f00:1::",
            "2001:0:0:0:0:0:80ff:fffe",
            "100::1",
            "::ffff:0:127.0.0.1",
            "4000::1",
        ] {
            assert!(reserved(refused.parse().unwrap()).is_some(), "{refused}");
        }
        for public in [
            "93.184.216.34",
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:2800:220:1::1",
            "2a00:1450::1",
        ] {
            assert_eq!(reserved(public.parse().unwrap()), None, "{public}");
        }
    }
}
