//! Many connections over few ports: an owner is never missing and never somebody else's.
use crate::support::*;
use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};

/// Per client; there are four, two over each family.
const CONNECTIONS: u32 = 2_500;

/// Connects again and again from a few ports of its own, tells who and which it is, and ends abruptly
/// (so that the port is free at once) or properly by turns.
fn client(ip: &str, seed: u16) -> String {
    format!(
        "import struct
n = 0; at = 0; refused = 0
local = '::1' if ':' in '{ip}' else '127.0.0.1'
ports = range(61000 + {seed} * 40, 61000 + {seed} * 40 + 40)
while n < {CONNECTIONS}:
    s = socket.socket(family('{ip}'), socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if n % 2: s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    if n % 2: 
        at += 1
        if name(lambda: s.bind((local, ports[at % len(ports)]))) != 'ok': s.close(); continue
    s.settimeout(10)
    r = name(lambda: s.connect(('{ip}', 1 + n % 60000)))
    if r == 'EADDRNOTAVAIL': s.close(); continue
    assert r == 'ok', r
    s.sendall(struct.pack('!II', os.getpid(), 1 + n % 60000))
    assert s.recv(1) == b'.'
    s.close(); n += 1
say('done')"
    )
}

#[test]
fn ten_thousand_connections_each_have_their_own_owner() {
    use std::io::Write;
    let stand = Stand::new();
    let others = stand.cgroup.child("others");
    stand.fence().govern(&others.name, "others").unwrap();
    let clients = [
        Running::start(&stand.cgroup, &client("198.51.100.7", 0)),
        Running::start(&others, &client("198.51.100.7", 1)),
        Running::start(&stand.cgroup, &client("2001:db8::7", 2)),
        Running::start(&others, &client("2001:db8::7", 3)),
    ];
    let governed_by = |pid: u32| {
        if pid == clients[1].pid() || pid == clients[3].pid() {
            "others"
        } else {
            stand.workload()
        }
    };
    let seen = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for listener in [&stand.agent4, &stand.agent4, &stand.agent6, &stand.agent6] {
            listener.set_nonblocking(true).unwrap();
            scope.spawn(|| {
                while seen.load(Ordering::Relaxed) < 4 * CONNECTIONS {
                    let Ok((mut accepted, _)) = listener.accept() else {
                        std::thread::yield_now();
                        continue;
                    };
                    // At once, before anything was read: the record must be there already.
                    let flow = stand
                        .fence()
                        .flow_of(&accepted)
                        .expect("every connection has its record");
                    accepted.set_nonblocking(false).unwrap();
                    let mut said = [0; 8];
                    accepted.read_exact(&mut said).unwrap();
                    let (pid, port) = (
                        u32::from_be_bytes(said[..4].try_into().unwrap()),
                        u32::from_be_bytes(said[4..].try_into().unwrap()),
                    );
                    assert_eq!(
                        (flow.process.pid, u32::from(flow.destination.port())),
                        (pid, port)
                    );
                    assert_eq!(&*flow.workload, governed_by(pid));
                    accepted.write_all(b".").unwrap();
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    for client in clients {
        assert_eq!(client.finish(), "done");
    }
    eventually("no flow is left", || stand.fence().flows().is_empty());
    let connections: u64 = stand
        .fence()
        .accounts()
        .iter()
        .map(|account| account.connections)
        .sum();
    assert!(connections >= u64::from(4 * CONNECTIONS));
    let pins = stand.options.pin_dir.join("maps");
    for map in ["FLOWS", "PORTS"] {
        eventually("the map is empty", || entries(&pins.join(map)) == 0);
    }
}

fn entries(pin: &std::path::Path) -> usize {
    let output = std::process::Command::new("bpftool")
        .args(["-j", "map", "dump", "pinned"])
        .arg(pin)
        .output()
        .unwrap();
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    all.as_array().unwrap().len()
}
