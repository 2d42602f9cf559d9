//! Clients that ask, download and go on without end, and who counts what reaches it.
use crate::support::*;
use harness::eventually;
use harness::process::Ended;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What every client starts with: it goes on until its input closes, then prints one line of JSON.
const PRELUDE: &str = r#"
import collections, errno, json, random, select, socket, sys, time
def ended(pause): return bool(select.select([sys.stdin], [], [], pause)[0])
def family(ip): return socket.AF_INET6 if ":" in ip else socket.AF_INET
def host(ip, port): return ("[%s]:%d" if ":" in ip else "%s:%d").__mod__((ip, port)).encode()
def name(e): return errno.errorcode.get(e.errno, type(e).__name__)
"#;

/// Connects to where nobody may, again and again, and waits for the agent's answer; beside it a datagram and a query for
/// a name: what came of each, how long refusals took, and when an answer came again.
pub(crate) const CONNECTOR: &str = r#"
QUERY = b"\1\2\1\0\0\1\0\0\0\0\0\0\1a\4test\0\0\1\0\1"
names = "connects", "answers", "datagrams", "queries"
came = {name: collections.Counter() for name in names}
refused, denied, up, was_up = [], [], [], False
while not ended(0.004):
    for ip, port in TARGETS:
        with socket.socket(family(ip), socket.SOCK_STREAM) as s:
            s.settimeout(20)
            begun = time.monotonic()
            try:
                s.connect((ip, port)); what = "steered"
            except OSError as e:
                what = name(e)
            if what == "ECONNREFUSED": refused.append((time.monotonic() - begun) * 1000)
            came["connects"][what] += 1
            answer = None
            if what == "steered":
                try:
                    s.sendall(b"GET / HTTP/1.1\r\nhost: %s\r\n\r\n" % host(ip, port))
                    answer = s.recv(12).decode("latin-1") or "ended"
                except OSError as e:
                    answer = name(e)
                came["answers"][answer] += 1
            is_up = answer == "HTTP/1.1 403"
            if is_up and not was_up: up.append(time.monotonic())
            was_up = is_up
        for kind, to, what in ("datagrams", port, b"x"), ("queries", 53, QUERY):
            with socket.socket(family(ip), socket.SOCK_DGRAM) as s:
                begun = time.monotonic()
                try:
                    s.sendto(what, (ip, to)); came[kind]["sent"] += 1
                except OSError as e:
                    denied.append((time.monotonic() - begun) * 1000)
                    came[kind][name(e)] += 1
print(json.dumps({**came, "refused": refused, "denied": denied, "up": up}))
"#;

/// Downloads without end from where it may, from an address or port of its own by which an unsteered byte would show.
const DOWNLOADER: &str = r#"
got = 0
while not ended(0.005):
    with socket.socket(family(TARGET[0])) as s:
        s.settimeout(0.5)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((TARGET[0], random.randrange(*OWN)) if ":" in TARGET[0] else ("127.0.0.77", 0))
            s.connect(TARGET)
            while not ended(0):
                chunk = s.recv(1 << 16)
                if not chunk: break
                got += len(chunk)
        except OSError: pass
print(json.dumps({"got": got}))
"#;

/// Nobody governs this one: a connection that stays and new ones all the time, and not one error.
pub(crate) const BYSTANDER: &str = r#"
kept = [socket.create_connection(target) for target in TARGETS]
rounds = 0
def echo(s):
    s.sendall(b"y" * 4096)
    left = 4096
    while left:
        got = len(s.recv(left))
        assert got, "the connection ended"
        left -= got
while not ended(0.004):
    for s in kept: echo(s)
    for target in TARGETS:
        try:
            with socket.create_connection(target, 20) as s: echo(s)
        except OSError as e:
            sys.exit("nobody's connection %d to %s failed: %r" % (rounds, target, e))
    rounds += 1
print(json.dumps({"rounds": rounds}))
"#;

/// A client while it runs; killed if the test ends first.
pub(crate) struct Client(Ended);

impl Client {
    pub(crate) fn start(cgroup: Option<&Path>, script: &str) -> Self {
        Self::start_as(0, cgroup, script)
    }

    /// As another user, with the system's own Python: one that is root's may be for root alone.
    pub(crate) fn start_as(user: u32, cgroup: Option<&Path>, script: &str) -> Self {
        let mut command = Command::new("sh");
        let enter = cgroup.map(|path| format!("echo $$ > {}/cgroup.procs && ", path.display()));
        let user = (user != 0)
            .then(|| format!("setpriv --reuid={user} --clear-groups env PATH=/usr/bin:/bin "));
        let (enter, user) = (enter.unwrap_or_default(), user.unwrap_or_default());
        let line = format!("{enter}exec {user}python3 -c \"$0\"");
        command.args(["-c", &line, &format!("{PRELUDE}{script}")]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(Ended(command.spawn().unwrap()))
    }

    /// Lets it come to its end, and reads what it has to say.
    pub(crate) fn finish(mut self) -> Value {
        drop(self.0.stdin.take());
        let mut said = String::new();
        let mut output = self.0.stdout.take().unwrap();
        output.read_to_string(&mut said).unwrap();
        assert!(self.0.wait().unwrap().success(), "a client failed: {said}");
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
    }
}

/// Counts whoever gets through to it, over TCP and UDP, on the same port.
pub(crate) struct Canary {
    pub(crate) address: (String, u16),
    hits: Arc<AtomicU64>,
}

impl Canary {
    /// `port: 0` is any that is free.
    fn at(ip: &str, port: u16) -> Self {
        let tcp = TcpListener::bind((ip, port)).unwrap();
        let port = tcp.local_addr().unwrap().port();
        let udp = UdpSocket::bind((ip, port)).unwrap();
        let hits = Arc::new(AtomicU64::new(0));
        let (streams, datagrams) = (Arc::clone(&hits), Arc::clone(&hits));
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let _ = stream.unwrap();
                streams.fetch_add(1, Ordering::SeqCst);
            }
        });
        std::thread::spawn(move || {
            while udp.recv(&mut [0; 64]).is_ok() {
                datagrams.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self {
            address: (ip.to_owned(), port),
            hits,
        }
    }

    /// Who is not governed gets through to each of them.
    pub(crate) fn all_hear(canaries: &[Self], connector: &str) {
        let free = Client::start(None, connector);
        let heard = eventually(START, || {
            canaries.iter().all(|one| one.hits() > 3).then_some(())
        });
        assert!(heard.is_some(), "the canaries hear nothing");
        free.finish();
    }

    pub(crate) fn hits(&self) -> u64 {
        self.hits.load(Ordering::SeqCst)
    }
}

/// An address of each family that nobody else has, since others may run beside it; port 53 of both is free.
pub(crate) struct Own {
    four: String,
    six: String,
}

impl Own {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(9);
        let [.., high, low] = std::process::id().to_be_bytes();
        // Whoever listens there does so until this process ends.
        let count = COUNT.fetch_add(1, Ordering::SeqCst);
        let own = Self {
            four: format!("127.{high}.{low}.{count}"),
            six: format!("fd00:746f:6c6c::{high:x}:{low:x}:{count:x}"),
        };
        assert!(own.ip("replace"), "no address for {}", own.six);
        own
    }

    fn ip(&self, verb: &str) -> bool {
        let mut command = Command::new("ip");
        command.args(["address", verb, &self.six, "dev", "lo"]);
        command.status().unwrap().success()
    }

    /// One for each family where connections and datagrams go, then one where queries for names would.
    pub(crate) fn canaries(&self) -> [Canary; 4] {
        let (four, six) = (&self.four, &self.six);
        [(four, 0), (six, 0), (four, 53), (six, 53)].map(|(ip, port)| Canary::at(ip, port))
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.ip("delete");
    }
}

/// Ports that the system gives to nobody who asks for none: a downloader over IPv6, where the loopback has one address
/// only, is known by them.
fn own_ports() -> Range<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let lowest: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    lowest - 4096..lowest
}

/// Sends without end to whoever connects; tells the agent's connections from a client's own.
pub(crate) struct Source {
    pub(crate) address: SocketAddr,
    served: Arc<AtomicU64>,
    unsteered: Arc<AtomicU64>,
}

impl Source {
    pub(crate) fn new(ip: &str) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let (served, unsteered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (a, b) = (Arc::clone(&served), Arc::clone(&unsteered));
        let ports = own_ports();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let own = stream.peer_addr().is_ok_and(|peer| match peer {
                    SocketAddr::V4(peer) => peer.ip().to_string() == "127.0.0.77",
                    SocketAddr::V6(peer) => ports.contains(&peer.port()),
                });
                if own { &b } else { &a }.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    while stream.write_all(&[b'z'; 1 << 15]).is_ok() {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
            }
        });
        Self {
            address,
            served,
            unsteered,
        }
    }

    /// Connections that were the agent's.
    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }

    /// Connections that were a downloader's own.
    pub(crate) fn unsteered(&self) -> u64 {
        self.unsteered.load(Ordering::SeqCst)
    }

    /// The script that downloads from here.
    pub(crate) fn downloader(&self) -> String {
        let (ip, port, own) = (self.address.ip(), self.address.port(), own_ports());
        let own = format!("OWN = ({}, {})", own.start, own.end);
        format!("TARGET = ('{ip}', {port})\n{own}\n{DOWNLOADER}")
    }

    /// A downloader that nobody governs is told from the agent.
    pub(crate) fn tells_whose(&self) {
        let free = Client::start(None, &self.downloader());
        let told = eventually(START, || (self.unsteered() > 0).then_some(()));
        assert!(told.is_some(), "{} tells nobody's own", self.address);
        free.finish();
        assert_eq!(self.served(), 0);
    }
}

/// Sends back what it gets.
pub(crate) fn echo(ip: &str) -> (String, u16) {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut &stream, &mut &stream);
            });
        }
    });
    (ip.to_owned(), port)
}

pub(crate) fn targets(addresses: &[&(String, u16)]) -> String {
    let all: Vec<_> = addresses
        .iter()
        .map(|(ip, port)| format!("({ip:?}, {port})"))
        .collect();
    format!("TARGETS = [{}]\n", all.join(", "))
}
