//! Sockets without a peer, from before their process was governed, and from when it was: whose they are.
use crate::exit::{heard, receiver};
use crate::listen::{SERVE, dial, hears};
use crate::looks::{THERE, enrol, looks};
use crate::support::*;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use tollgate::kernel::{Before, Fate, Fence, Openings, Outcome, Recognition, Unheld};

pub const IPS: [&str; 2] = ["127.0.0.1", "::1"];

/// Serves on one listener of each family, and has another of each from which it takes nobody.
const SERVES: &str = "
idle = [socket.create_server((ip, 0), family=family(ip)) for ip in ('127.0.0.1', '::1')]
say(start('127.0.0.1'), start('::1'), *[s.getsockname()[1] for s in idle], *[s.fileno() for s in idle])
sys.stdin.read()";

/// A server that nobody governs, and the numbers that it says.
fn server() -> (Running, Vec<u16>) {
    let mut server = Running::start_outside(&format!("{SERVE}{SERVES}"));
    let said = server.line();
    let numbers = said.split(' ').map(|number| number.parse().unwrap());
    (server, numbers.collect())
}

pub fn is_served(ip: &str, port: u16) -> bool {
    dial(ip, port).is_some_and(|mut open| hears(&mut open))
}

/// Looks at what the process has from before; returns what the agent logs of it, and what came of connections.
pub fn look(fence: &Fence, processes: &[u32], listen: &[u16]) -> (String, Vec<Outcome>) {
    let mut outcomes = Vec::new();
    let log = crate::refuse::logged(|| {
        let found = fence.end_earlier(processes, &|name: &str| {
            (name == "late").then(|| Before {
                fate: Fate::Destroy,
                listen: listen.to_vec(),
            })
        });
        assert_eq!(found.missed, None);
        found.unheld.iter().for_each(Unheld::warn);
        outcomes.extend(found.found.into_iter().map(|earlier| earlier.outcome));
    });
    (log, outcomes)
}

fn lets_listen(fence: &Fence, listen: &[u16]) {
    let openings = Openings {
        workload: "late".to_owned(),
        listen: listen.to_vec(),
        unix: Vec::new(),
    };
    fence.permit(&[openings]).unwrap();
}

/// Of a process in no governed cgroup nothing tells whose its listeners are, until the agent has looked.
#[test]
fn a_listener_from_before_is_held() {
    let mut stand = Stand::new();
    let (server, said) = server();
    let served = [(IPS[0], said[0]), (IPS[1], said[1])];
    let mut waiting = [(IPS[0], said[2]), (IPS[1], said[3])].map(|(ip, port)| {
        let stream = TcpStream::connect((ip, port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    });
    let fence = stand.fence();
    let processes = fence.enrol(server.pid(), "late", 3).unwrap();
    assert_eq!(processes, [server.pid()]);
    let mut open = served.map(|(ip, port)| dial(ip, port).unwrap());
    assert!(open.iter_mut().all(hears), "held before anybody looked");

    let (log, outcomes) = look(fence, &processes, &[]);
    assert_eq!(outcomes, [const { Outcome::Destroyed }; 4], "{log}");
    assert!(!log.contains("not refused"), "{log}");
    for stream in open.iter_mut().chain(&mut waiting) {
        let ended = stream.read(&mut [0]).unwrap_err().kind();
        assert_eq!(ended, ErrorKind::ConnectionReset);
    }
    for (ip, port) in served {
        assert!(dial(ip, port).is_none(), "{ip}: it is not held");
        lets_listen(fence, &[port]);
        assert!(is_served(ip, port), "{ip}: its policy lets it");
        lets_listen(fence, &[]);
        assert!(dial(ip, port).is_none(), "{ip}: it is not held again");
    }
    // Of who is let go it is no longer, and it is another workload's as soon as that one has its process.
    fence.forget_workloads(|name| name != "late").unwrap();
    assert!(served.iter().all(|(ip, port)| is_served(ip, *port)));
    let processes = fence.enrol(server.pid(), "other", 3).unwrap();
    assert_eq!(processes, [server.pid()]);
    look(fence, &processes, &[]);
    assert!(served.iter().all(|(ip, port)| dial(ip, *port).is_none()));
    stand.lift();
    for (ip, port) in served {
        eventually("it is the fence that holds it", || is_served(ip, port));
    }
    server.finish();
}

/// What somebody else serves as well is not taken from them: that is said.
#[test]
fn a_listener_that_another_has_open_is_warned_of() {
    let mut stand = Stand::new();
    let fence = stand.fence();
    let (server, said) = server();
    let ports = &said[2..4];
    let other = format!(
        "import ctypes
call = ctypes.CDLL(None).syscall
process = call(434, {}, 0)
taken = [call(438, process, n, 0) for n in ({}, {})]
say(min(taken) > 0); sys.stdin.read()",
        server.pid(),
        said[4],
        said[5]
    );
    let mut other = Running::start_outside(&other);
    assert_eq!(other.line(), "True");
    let processes = fence.enrol(server.pid(), "late", 3).unwrap();
    let (log, _) = look(fence, &processes, &ports[..1]);
    let line = |ip: &str, port: u16| format!("connections to {ip}:{port} are not refused");
    assert!(!log.contains(&line(IPS[0], ports[0])), "{log}");
    assert!(log.contains(&line("[::1]", ports[1])), "{log}");
    let why = format!("process {}, which is not governed", other.pid());
    assert!(log.contains(&why), "{log}");
    assert!(dial(IPS[1], ports[1]).is_some());
    // Its own are held all the same, and these are too once they are.
    assert!(dial(IPS[1], said[1]).is_none());
    other.finish();
    let (log, _) = look(fence, &processes, &[]);
    assert!(!log.contains("not refused"), "{log}");
    assert!(dial(IPS[0], ports[0]).is_none() && dial(IPS[1], ports[1]).is_none());
    stand.lift();
    for (ip, port) in IPS.iter().zip(ports) {
        let is_there = || dial(ip, *port).is_some();
        eventually("it is the fence that holds it", is_there);
    }
    server.finish();
}

/// Says whether datagrams leave and ports, and again whenever it is told to.
const USES: &str = "
sys.stdin.readline()
u = [socket.socket(family(ip), socket.SOCK_DGRAM) for ip in ('127.0.0.9', '::1')]
t = [socket.socket(family(ip)) for ip in ('127.0.0.1', '::1')]
l = [start(ip) for ip in ('127.0.0.1', '::1')]
say(*l)
for line in sys.stdin:
    sent = [name(lambda: s.sendto(b'x', a)) for s, a in zip(u, RECEIVERS)]
    say(*sent)
    if line == 'connect\\n': say(*[name(lambda: s.connect(a)) for s, a in zip(t, SERVERS)])
";

/// A socket says for ever whose it was; policy does not.
#[test]
fn what_was_made_while_governed_is_free_once_policy_lets_it_go() {
    let mut stand = Stand::new();
    let fence = stand.fence();
    fence.recognise(&Recognition::default()).unwrap();
    let receivers = [receiver("127.0.0.9"), receiver("::1")];
    let servers = IPS.map(Elsewhere::new);
    let [four, six] = receivers
        .each_ref()
        .map(|receiver| receiver.local_addr().unwrap().port());
    let script = format!(
        "{SERVE}
RECEIVERS = ('127.0.0.9', {four}), ('::1', {six})
SERVERS = ('127.0.0.1', {}), ('::1', {}){USES}",
        servers[0].address.port(),
        servers[1].address.port()
    );
    let later = Cgroup::new(fence.cgroup_root(), unique());
    let held = [("late", true), ("enrolled", false)].map(|(workload, by_cgroup)| {
        let mut client = match by_cgroup {
            true => Running::start(&later, &script),
            false => Running::start_outside(&script),
        };
        let govern = |pid: u32| match by_cgroup {
            true => Some(fence.govern(&later.name, workload).unwrap().cgroup_id),
            false => {
                assert_eq!(fence.enrol(pid, workload, 3).unwrap(), [pid]);
                None
            }
        };
        let id = govern(client.pid());
        client.send("\n");
        let said = client.line();
        let ports: Vec<u16> = said.split(' ').map(|port| port.parse().unwrap()).collect();
        client.send("\n");
        assert_eq!(client.line(), "EPERM EPERM");
        for (ip, port) in IPS.iter().zip(&ports) {
            assert!(dial(ip, *port).is_none(), "{ip} {by_cgroup}");
        }

        id.into_iter().for_each(|id| fence.release(id).unwrap());
        fence.forget_workloads(|name| name != workload).unwrap();
        client.send("connect\n");
        assert_eq!(client.line(), "ok ok", "by cgroup: {by_cgroup}");
        assert_eq!(client.line(), "ok ok", "by cgroup: {by_cgroup}");
        for server in &servers {
            accept(&server.listener);
        }
        assert!(receivers.iter().all(|receiver| heard(receiver) == 1));
        for (ip, port) in IPS.iter().zip(&ports) {
            assert!(is_served(ip, *port), "{ip} {by_cgroup}");
        }
        // Again its policy's, it is held again.
        govern(client.pid());
        client.send("\n");
        assert_eq!(client.line(), "EPERM EPERM");
        for (ip, port) in IPS.iter().zip(&ports) {
            assert!(dial(ip, *port).is_none(), "{ip} {by_cgroup}");
        }
        assert!(receivers.iter().all(|receiver| heard(receiver) == 0));
        (client, ports)
    });
    stand.lift();
    for (mut client, ports) in held {
        let served = || std::iter::zip(IPS, &ports).all(|(ip, port)| is_served(ip, *port));
        eventually("it is the fence that holds them", || {
            client.send("\n");
            client.line() == "ok ok" && served()
        });
        assert!(receivers.iter().all(|receiver| heard(receiver) >= 1));
        client.finish();
    }
}

/// Sends what it is told to over each that there is, and says how that went.
const OTHERS: &str = "
def make(*kind):
    try: return socket.socket(family(IP), *kind)
    except OSError: return None
lite, ping, raw = make(socket.SOCK_DGRAM, 136), make(socket.SOCK_DGRAM, ICMP), make(socket.SOCK_RAW, 253)
if lite: lite.connect((IP, PORT))
for line in sys.stdin:
    mark = line.strip().encode()
    echo = bytes([8 if ICMP == 1 else 128, 0, 0, 0, 0, 0, 0, 1]) + mark
    say(name(lambda: lite.send(mark)) if lite else 'none',
        name(lambda: ping.sendto(echo, (IP, 0))), name(lambda: raw.sendto(mark, (IP, 0))))
";

/// A process that sends over other protocols, and what listens to each.
struct Others {
    sender: Running,
    at: Vec<socket2::Socket>,
}

impl Others {
    fn new(ip: &str) -> Self {
        let any = SocketAddr::new(ip.parse().unwrap(), 0);
        let icmp = if any.is_ipv4() { 1 } else { 58 };
        let made = |kind, protocol: i32| {
            let domain = socket2::Domain::for_address(any);
            let socket = socket2::Socket::new(domain, kind, Some(protocol.into())).ok()?;
            socket.bind(&any.into()).unwrap();
            socket.set_read_timeout(Some(PATIENCE / 200)).unwrap();
            Some(socket)
        };
        let (datagram, raw) = (socket2::Type::DGRAM, socket2::Type::RAW);
        // Newer kernels have no UDP-Lite.
        let lite = made(datagram, 136);
        let at = lite
            .as_ref()
            .and_then(|s| s.local_addr().unwrap().as_socket());
        let port = at.map_or(0, |at| at.port());
        let known = format!("IP, ICMP, PORT = '{ip}', {icmp}, {port}");
        let all = [lite, made(raw, icmp), made(raw, 253)];
        Self {
            sender: Running::start_outside(&format!("{known}{OTHERS}")),
            at: all.into_iter().flatten().collect(),
        }
    }

    /// How sending went, and whether it arrived, for each.
    fn send(&mut self) -> (String, Vec<bool>) {
        let mark = unique();
        self.sender.send(&format!("{mark}\n"));
        let said = self.sender.line();
        let has = |bytes: &[u8]| {
            bytes
                .windows(mark.len())
                .any(|part| part == mark.as_bytes())
        };
        let arrived = self.at.iter().map(|at| {
            let mut bytes = [0; 256];
            // What was sent before is there too.
            let mut next =
                std::iter::from_fn(|| (&*at).read(&mut bytes).ok().map(|n| has(&bytes[..n])));
            next.any(|is_it| is_it)
        });
        (said, arrived.collect())
    }
}

#[test]
fn sockets_of_other_protocols_are_held() {
    let _groups = Setting::to("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    let mut stand = Stand::new();
    let fence = stand.fence();
    let mut all = IPS.map(Others::new);
    for others in &mut all {
        let (said, arrived) = others.send();
        assert!(!arrived.contains(&false), "{said}: {arrived:?}");
        enrol(fence, &others.sender, "late");
    }
    looks(fence, &[]);
    for others in &mut all {
        let (said, arrived) = others.send();
        assert!(!arrived.contains(&true), "{said}: {arrived:?}");
    }
    stand.lift();
    for mut others in all {
        let are_free = || !others.send().1.contains(&false);
        eventually("it is the fence that holds them", are_free);
        others.sender.finish();
    }
}

/// Hands on what it has to a child and ends, again and again, until it has nothing more or that was ended.
const HANDS_ON: &str = "
sys.stdin.readline()
s.setblocking(False)
until = time.monotonic() + 20
while time.monotonic() < until:
    if os.fork(): os._exit(0)
    try: s.recv(1); break
    except BlockingIOError: pass
    except OSError: break
";

/// Who has so much open that it takes a while to see whose else a socket is.
const HAS_MANY: &str = "
import resource
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
for _ in range(min(most, 30000) - 100): os.dup(0)
say('ready'); sys.stdin.read()
";

/// No look finds one that is still there when it comes to his connection.
#[test]
fn who_hands_on_what_he_has_faster_than_is_looked_loses_it_or_it_is_told() {
    let stand = Stand::new();
    let fence = stand.fence();
    let server = Elsewhere::new("127.0.0.1");
    let port = server.address.port();
    let script = format!("import time\ns = tcp('127.0.0.1', {port})[0]\nsay('ready'){HANDS_ON}");
    let mut process = Running::start_outside(&script);
    assert_eq!(process.line(), "ready");
    let mut peer = accept(&server.listener);
    peer.set_nonblocking(true).unwrap();
    let mut other = Running::start_outside(HAS_MANY);
    assert_eq!(other.line(), "ready");
    enrol(fence, &process, "late");
    process.send("\n");
    let pid = process.pid();
    eventually("it hands on", || tollgate::kernel::has_ended(pid));
    let says = |name: &str| {
        (name == "late").then(|| Before {
            fate: Fate::Destroy,
            listen: Vec::new(),
        })
    };
    let goes_on = |peer: &mut TcpStream| {
        let read = peer.read(&mut [0]).map_err(|error| error.kind());
        read == Err(ErrorKind::WouldBlock)
    };
    for _ in 0..2 {
        let missed = fence.end_earlier(&[], &says).missed;
        if missed.is_none() {
            eventually("it is ended, since nothing is told", || !goes_on(&mut peer));
        }
        if !goes_on(&mut peer) {
            return;
        }
    }
}

/// Nothing else leads to the namespace that they are in, and somebody has them open who is not governed.
#[test]
fn what_is_in_a_namespace_that_its_process_left_is_ended_though_another_has_it_too() {
    let mut stand = Stand::new();
    let fence = stand.fence();
    let mut there = Running::start_outside(THERE);
    let to = there.line();
    let mut process = Running::start_outside(&format!(
        "import ctypes
with open('/proc/{}/ns/net') as n: assert ctypes.CDLL(None).setns(n.fileno(), 0) == 0
s = [tcp(*a)[0] for a in zip(('127.0.0.1', '::1'), map(int, '{to}'.split()))]
assert ctypes.CDLL(None).unshare(0x40000000) == 0
say(*[x.fileno() for x in s])
for line in sys.stdin: say(*[name(lambda: x.send(b'x')) for x in s])",
        there.pid()
    ));
    let numbers = process.line();
    let mut other = Running::start_outside(&format!(
        "import ctypes
call = ctypes.CDLL(None).syscall
process = call(434, {}, 0)
taken = [call(438, process, int(n), 0) for n in '{numbers}'.split()]
say(min(taken) > 0); sys.stdin.read()",
        process.pid()
    ));
    assert_eq!(other.line(), "True");
    there.send("1 1\n");
    let mut ask = |process: &mut Running| {
        process.send("\n");
        let sent = process.line();
        there.send("\n");
        (sent, there.line())
    };
    assert_eq!(
        ask(&mut process),
        ("ok ok".to_owned(), "x x nothing nothing".to_owned())
    );
    enrol(fence, &process, "late");
    assert_eq!(looks(fence, &[]).len(), 2);
    let (sent, hears) = ask(&mut process);
    assert!(are_ended(&sent), "{sent}");
    assert_eq!(hears, "ECONNRESET ECONNRESET nothing nothing");
    stand.lift();
    process.finish();
    other.finish();
    there.finish();
}
