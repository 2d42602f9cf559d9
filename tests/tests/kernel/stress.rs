//! Many connections over few ports: an owner is never missing and never somebody else's.
use crate::support::*;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Per client; there are four, two over each family. Fewer where the machine is emulated: their ports change hands
/// there too, and what races between processors is tried where there are several.
fn connections() -> u32 {
    2_500 / harness::slower().min(5)
}

/// Connects again and again from a few ports of its own, tells who and which it is, and ends abruptly
/// (so that the port is free at once) or properly by turns.
fn client(ip: &str, seed: u16) -> String {
    let connections = connections();
    format!(
        "import struct
n = 0; at = 0; refused = 0
local = '::1' if ':' in '{ip}' else '127.0.0.1'
ports = range(61000 + {seed} * 40, 61000 + {seed} * 40 + 40)
while n < {connections}:
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
fn thousands_of_connections_each_have_their_own_owner() {
    use std::io::Write;
    let all = 4 * connections();
    let mut stand = Stand::new();
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
            // Woken at once for a connection; after a while for a look whether there will be any.
            listener.set_nonblocking(false).unwrap();
            let wait = Some(Duration::from_millis(50));
            socket2::SockRef::from(listener)
                .set_read_timeout(wait)
                .unwrap();
            scope.spawn(|| {
                while seen.load(Ordering::Relaxed) < all {
                    let Ok((mut accepted, _)) = listener.accept() else {
                        continue;
                    };
                    // At once, before anything was read: the record must be there already.
                    let flow = stand.fence().flow_of(&accepted).unwrap_or_else(|| {
                        let (peer, accounts) = (accepted.peer_addr(), stand.fence().accounts());
                        panic!("a connection has no record: {peer:?}, {accounts:?}")
                    });
                    accepted.set_read_timeout(Some(PATIENCE)).unwrap();
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
    eventually("no flow is left", || {
        stand.fence().flows().unwrap().is_empty()
    });
    let connections: u64 = stand
        .fence()
        .accounts()
        .iter()
        .map(|account| account.connections)
        .sum();
    assert!(connections >= u64::from(all));
    stand.lift();
    for (server, connect) in &servers() {
        reaches(server, || stand.run(connect));
        reaches(server, || python(&others, connect));
    }
}

/// Workloads, each with a cgroup.
const WORKLOADS: usize = 10_000;
/// Connections of each of six clients, open at the same time.
const OPEN: usize = 16_667;
/// Lets a process have descriptors for as many.
const DESCRIPTORS: &str = "import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))";

/// Has `OPEN` connections from an address of its own, so that there are ports enough.
fn holder(source: &str, to: &str) -> String {
    format!(
        "{DESCRIPTORS}
all = []; refused = {{}}
while len(all) < {OPEN} and len(refused) < 3:
    s = socket.socket(family('{to}'), socket.SOCK_STREAM)
    s.setsockopt(socket.IPPROTO_IP, 24, 1) # IP_BIND_ADDRESS_NO_PORT
    s.bind(('{source}', 0)); s.settimeout(20)
    r = name(lambda: s.connect(('{to}', 443)))
    if r == 'ok': all.append(s)
    else: refused[r] = len(all)
say(len(all), refused)
sys.stdin.read()"
    )
}

/// Accepts as many from the listener that is its standard input, and holds them.
struct Acceptor(std::process::Child);

impl Acceptor {
    fn start(listener: &std::net::TcpListener) -> Self {
        let script = format!(
            "import socket, time
{DESCRIPTORS}
listener = socket.socket(fileno=0)
held = [listener.accept() for _ in range({OPEN})]
time.sleep(600)"
        );
        // One is woken for each connection.
        listener.set_nonblocking(false).unwrap();
        let listener: std::os::fd::OwnedFd = listener.try_clone().unwrap().into();
        let mut command = std::process::Command::new("python3");
        command.args(["-c", &script]).stdin(listener);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_hundred_thousand_sockets_and_ten_thousand_workloads_fit() {
    let stand = Stand::new();
    let name = |number: usize| format!("w{number}");
    let cgroups: Vec<Cgroup> = (0..WORKLOADS)
        .map(|number| {
            let cgroup = stand.cgroup.child(&name(number));
            let governed = stand.fence().govern(&cgroup.name, &name(number));
            governed.unwrap_or_else(|error| panic!("workload {number}: {error}"));
            cgroup
        })
        .collect();
    assert_eq!(stand.fence().governed().len(), WORKLOADS + 1);
    let of = [
        0,
        1,
        WORKLOADS / 3,
        WORKLOADS / 2,
        WORKLOADS - 2,
        WORKLOADS - 1,
    ];
    let from = [
        "127.0.1.1",
        "127.0.1.2",
        "127.0.1.3",
        "127.0.1.4",
        "127.0.1.5",
        "::1",
    ];
    let acceptors = from.map(|source| match source {
        "::1" => Acceptor::start(&stand.agent6),
        _ => Acceptor::start(&stand.agent4),
    });
    let clients = std::iter::zip(of, from).map(|(number, source)| {
        let to = match source {
            "::1" => "2001:db8::7",
            _ => "198.51.100.7",
        };
        Running::start(&cgroups[number], &holder(source, to))
    });
    let mut clients: Vec<Running> = clients.collect();
    for client in &mut clients {
        assert_eq!(client.line(), format!("{OPEN} {{}}"));
    }
    let expected = BTreeMap::from(of.map(|number| (name(number), OPEN)));
    let listed = || {
        let mut counts = BTreeMap::new();
        for flow in stand.fence().flows().unwrap() {
            *counts.entry(flow.workload).or_insert(0) += 1;
        }
        counts
    };
    // The kernel may leave one out where another socket's entry goes while it lists them.
    eventually("every connection is listed", || listed() == expected);
    for client in clients {
        client.finish();
    }
    drop(acceptors);
    eventually("no flow is left", || {
        stand.fence().flows().unwrap().is_empty()
    });
}
