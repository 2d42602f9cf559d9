//! What sockets a governed process can make: TCP's and UDP's, Unix sockets, and those that ask the kernel.
use crate::lsm::with_and_without;
use crate::refuse::{counted, refusals};
use crate::support::*;
use std::collections::BTreeMap;

const SOCKETS: &str = "
import ctypes
# Ping sockets are a setting of the network namespace: one of our own, where everybody may.
assert ctypes.CDLL(None).unshare(0x40000000) == 0
with open('/proc/sys/net/ipv4/ping_group_range', 'w') as f: f.write('0 2147483647')
for family in socket.AF_INET, socket.AF_INET6:
    icmp = 1 if family == socket.AF_INET else 58
    for kind, protocol in (3, 6), (3, 255), (3, icmp), (2, icmp), (1, 262), (2, 136), (1, 132), (5, 132):
        say(name(lambda: socket.socket(family, kind, protocol).close()))
    for kind, protocol in (1, 0), (1, 6), (2, 0), (2, 17):
        say(name(lambda: socket.socket(family, kind, protocol).close()))
";

/// Does the kernel have UDP-Lite? Linux 7.3 does not any more.
pub fn has_udp_lite() -> bool {
    python_outside("say(name(lambda: socket.socket(socket.AF_INET, 2, 136).close()))") == "ok"
}

#[test]
fn only_tcp_and_udp_sockets_can_be_made() {
    // As the refusals tell them: what every kernel has, then UDP-Lite, and streams and messages over SCTP.
    let all = ["raw", "raw", "raw", "icmp", "262", "136", "132", "132"];
    let sctp = Module::loaded("sctp");
    let mut stand = Stand::new();
    let free = python_outside(SOCKETS);
    let came: Vec<&str> = free.lines().collect();
    let (one, other) = came.split_at(all.len() + 4);
    assert_eq!(one, other, "over both families");
    let none = ["EPROTONOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"];
    for (at, came) in one.iter().enumerate() {
        let lacks = at.checked_sub(5).and_then(|at| none.get(at)) == Some(came);
        assert!(*came == "ok" || lacks, "{at}: {came}");
    }
    assert!(sctp.is_none() || one[6..8] == ["ok", "ok"], "{free}");

    // The kernel looks first whether it has such a protocol.
    let refused = one[..all.len()].iter().map(|came| match *came {
        "ok" => "EPERM",
        other => other,
    });
    let expected: Vec<&str> = refused.chain(["ok"; 4]).collect();
    let governed = stand.run(SOCKETS);
    assert_eq!(governed, [expected.clone(), expected].concat().join("\n"));
    let there = one.iter().zip(all).filter(|(came, _)| **came == "ok");
    let each: Vec<&str> = there.map(|(_, protocol)| protocol).collect();
    let others = 2 * (each.len() as u64 - 3);
    let expected = BTreeMap::from([("protocol".to_owned(), others), ("raw".to_owned(), 6)]);
    assert_eq!(counted(&stand), expected);
    let refusals = refusals(stand.fence(), 2 * each.len());
    assert!(refusals.iter().all(|refusal| refusal.destination.is_none()));
    let protocols = refusals.iter().map(|refusal| &*refusal.protocol);
    let protocols: Vec<&str> = protocols.take(each.len()).collect();
    assert_eq!(protocols, each);
    stand.lift();
    assert_eq!(stand.run(SOCKETS), free);
}

/// Families that a kernel may have or not: number, type, and the module by which Debian's has it. Of XDP that is none: it is
/// built in, or not there.
const FAMILIES: [(u32, u32, Option<&str>); 8] = [
    (21, 5, Some("rds")),
    (24, 1, Some("pppoe")),
    (30, 5, Some("tipc")),
    (38, 5, Some("af_alg")),
    (40, 1, Some("vsock")),
    (41, 5, Some("kcm")),
    (43, 1, Some("smc")),
    (44, 3, None),
];

#[test]
fn other_families_are_not_made() {
    let modules = FAMILIES.map(|(.., module)| module.and_then(Module::loaded));
    let optional = FAMILIES.map(|(family, kind, _)| format!("make({family}, {kind})"));
    let script = format!(
        "
def make(family, kind, protocol=0): return name(lambda: socket.socket(family, kind, protocol).close())
# Packets, and netlink between users.
say(make(17, socket.SOCK_RAW, 0x300), make(17, socket.SOCK_DGRAM, 0x300), make(socket.AF_NETLINK, socket.SOCK_RAW, 2))
say({})
say(make(socket.AF_UNIX, socket.SOCK_STREAM), make(socket.AF_NETLINK, socket.SOCK_RAW), make(socket.AF_INET, socket.SOCK_STREAM), make(socket.AF_INET6, socket.SOCK_DGRAM))",
        optional.join(", ")
    );
    let outside = python_outside(&script);
    let lines: Vec<&str> = outside.lines().collect();
    assert_eq!([lines[0], lines[2]], ["ok ok ok", "ok ok ok ok"]);
    for (came, (module, family)) in lines[1].split(' ').zip(modules.iter().zip(FAMILIES)) {
        match module {
            Some(_) => assert_eq!(came, "ok", "{family:?}"),
            // Not there, or built in.
            None => assert!(["ok", "EAFNOSUPPORT"].contains(&came), "{family:?}: {came}"),
        }
    }
    if let Some([with, without]) = with_and_without("socket_create", "family", &script) {
        let all = ["EPERM"; FAMILIES.len()].join(" ");
        assert_eq!(with, format!("EPERM EPERM EPERM\n{all}\nok ok ok ok"));
        assert_eq!(without, outside, "made by whoever is not governed");
    }
}
