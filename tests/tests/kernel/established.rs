//! Connections from before their process was governed: ended, or going on where policy says so.
use crate::before::IPS;
use crate::exit::{at, heard, receiver};
use crate::listen::dial;
use crate::looks::{ended, enrol, looks};
use crate::support::*;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::Duration;
use tollgate::kernel::{Before, Fate, Outcome};

/// Connects in every way, says so, then says how each socket fares at every line that it is sent.
const CONNECTED: &str = r"
def udp(ip, port):
    s = socket.socket(family(ip), socket.SOCK_DGRAM); s.connect((ip, port)); return s
def waiting(ip, port):
    s = socket.socket(family(ip), socket.SOCK_STREAM); s.setblocking(False)
    name(lambda: s.connect((ip, port))); return s
def fares(s, what):
    s.settimeout(0.2)
    try:
        s.send(what); return 'sent'
    except OSError as e:
        return errno.errorcode[e.errno]
def failed(s):
    return errno.errorcode.get(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), 'ok')
";

/// Both families: a connection, a datagram socket, and a connection that is being made.
struct Peers {
    listeners: Vec<Elsewhere>,
    datagrams: Vec<UdpSocket>,
    /// Listeners that accept nobody, and what fills their queues.
    full: Vec<(Elsewhere, Vec<TcpStream>)>,
}

impl Peers {
    fn new() -> Self {
        let ips = ["127.0.0.1", "::1"];
        let datagram = |ip: &&str| {
            let socket = UdpSocket::bind((*ip, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE / 20)).unwrap();
            socket
        };
        Self {
            listeners: ips.iter().map(|ip| Elsewhere::new(ip)).collect(),
            datagrams: ips.iter().map(datagram).collect(),
            full: ips.iter().map(|ip| full(ip)).collect(),
        }
    }

    /// What a process does to be connected to all of them.
    fn script(&self) -> String {
        let mut lines = String::from(CONNECTED);
        let ports = |at: usize| {
            (
                self.listeners[at].address.port(),
                self.datagrams[at].local_addr().unwrap().port(),
                self.full[at].0.address.port(),
            )
        };
        for (at, ip) in ["127.0.0.1", "::1"].iter().enumerate() {
            let (tcp, udp, full) = ports(at);
            lines += &format!(
                "t{at} = tcp('{ip}', {tcp})[0]; u{at} = udp('{ip}', {udp}); w{at} = waiting('{ip}', {full})\n"
            );
        }
        let [ip4, ip6] = [0, 1].map(|at| ports(at).0);
        lines
            + &format!(
                "say('up')
for line in sys.stdin:
    if line == 'anew\\n':
        anew = tcp('127.0.0.1', {ip4}), tcp('::1', {ip6}); say(anew[0][1], anew[1][1]); continue
    say(*[fares(s, b'x') for s in (t0, t1, u0, u1)], failed(w0), failed(w1))
"
            )
    }
}

/// What the fence holds when a test is over; it goes in this order.
struct Held {
    /// Is it free?
    is_free: Box<dyn FnMut(&mut Running) -> bool>,
    process: Running,
    cgroup: Option<Cgroup>,
}

impl Held {
    /// What it connects anew, after it was told to, does not come to these.
    fn connects(
        stand: &Stand,
        mut process: Running,
        listeners: Vec<Elsewhere>,
        cgroup: Option<Cgroup>,
    ) -> Self {
        let is_free = move |process: &mut Running| {
            process.send("anew\n");
            let said = process.line();
            let mut came = listeners.iter().map(|l| l.listener.accept().is_ok());
            said == "ok ok" && came.all(|came| came)
        };
        assert!(!is_free(&mut process));
        for agent in [&stand.agent4, &stand.agent6] {
            assert!(stand.fence().flow_of(&accept(agent)).is_some());
        }
        Self {
            is_free: Box::new(is_free),
            process,
            cgroup,
        }
    }

    fn goes_free(mut self) {
        eventually("it is the fence that holds it", || {
            (self.is_free)(&mut self.process)
        });
        self.process.finish();
        drop(self.cgroup);
    }
}

/// A listener on which one more connection waits for ever.
fn full(ip: &str) -> (Elsewhere, Vec<TcpStream>) {
    let domain = socket2::Domain::for_address((ip.parse::<std::net::IpAddr>().unwrap(), 0).into());
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = (ip.parse::<std::net::IpAddr>().unwrap(), 0).into();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let listener: std::net::TcpListener = socket.into();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let filled = TcpStream::connect(address).unwrap();
    (Elsewhere { listener, address }, vec![filled])
}

fn says(fate: Fate) -> impl Fn(&str) -> Option<Before> + Sync {
    move |_: &str| {
        Some(Before {
            fate,
            listen: Vec::new(),
        })
    }
}

fn received(stream: &mut TcpStream) -> Result<Vec<u8>, ErrorKind> {
    let mut bytes = [0; 8];
    let read = stream.read(&mut bytes).map_err(|e| e.kind())?;
    Ok(bytes[..read].to_vec())
}

fn what_was_connected_is_ended_and_its_peer_is_told(stand: &Stand) -> Held {
    let peers = Peers::new();
    let later = Cgroup::new(stand.fence().cgroup_root(), unique());
    let mut process = Running::start(&later, &peers.script());
    assert_eq!(process.line(), "up");
    let mut accepted: Vec<_> = peers
        .listeners
        .iter()
        .map(|l| accept(&l.listener))
        .collect();
    // Somebody else's, to the same listeners.
    let mut others: Vec<_> = peers
        .listeners
        .iter()
        .map(|l| (TcpStream::connect(l.address).unwrap(), accept(&l.listener)))
        .collect();

    let newly = stand.fence().govern(&later.name, "later").unwrap().newly;
    assert!(newly.contains(&process.pid()), "{newly:?}");
    let found = stand
        .fence()
        .end_earlier(&newly, &says(Fate::Destroy))
        .found;
    assert_eq!(found.len(), 6, "{found:?}");
    for earlier in &found {
        assert_eq!(earlier.outcome, Outcome::Destroyed, "{earlier:?}");
        assert_eq!(
            (&*earlier.workload, earlier.process.pid),
            ("later", process.pid())
        );
        assert!(earlier.process.exe.contains("python"), "{earlier:?}");
        assert_eq!(earlier.process.cgroup, format!("/{}", later.name.display()));
    }
    let peer = peers.listeners[1].address;
    assert!(
        found
            .iter()
            .any(|earlier| earlier.peer == peer && earlier.protocol == "tcp")
    );

    process.send("\n");
    let told = process.line();
    let told: Vec<&str> = told.split(' ').collect();
    let tcp = [&told[..2], &told[4..]].concat().join(" ");
    assert!(are_ended(&tcp), "{told:?}");
    assert!(!told[2..4].contains(&"sent"), "{told:?}");
    for stream in &mut accepted {
        assert_eq!(received(stream), Err(ErrorKind::ConnectionReset));
    }
    for socket in &peers.datagrams {
        assert!(socket.recv(&mut [0]).is_err(), "a datagram arrived");
    }
    for (theirs, ours) in &mut others {
        theirs.write_all(b"y").unwrap();
        assert_eq!(received(ours).unwrap(), b"y", "somebody else's was ended");
    }
    assert!(stand.fence().kept().is_empty());
    assert!(
        stand
            .fence()
            .end_earlier(&newly, &says(Fate::Destroy))
            .found
            .is_empty()
    );
    Held::connects(stand, process, peers.listeners, Some(later))
}

/// Who is recognised by what it runs, or by its user, has sockets that no cgroup tells of.
fn what_a_process_outside_of_governed_cgroups_had_is_ended(stand: &Stand) -> Held {
    let peers = Peers::new();
    let mut process = Running::start_outside(&peers.script());
    assert_eq!(process.line(), "up");
    let mut accepted: Vec<_> = peers
        .listeners
        .iter()
        .map(|l| accept(&l.listener))
        .collect();
    let newly = stand.fence().enrol(process.pid(), "by-rule", 3).unwrap();
    // Without it, it goes on: this is what ends it.
    process.send("\n");
    assert!(process.line().starts_with("sent sent sent sent"));
    for stream in &mut accepted {
        assert_eq!(received(stream).unwrap(), b"x");
    }
    for socket in &peers.datagrams {
        assert_eq!(socket.recv(&mut [0]).unwrap(), 1);
    }
    let found = stand
        .fence()
        .end_earlier(&newly, &says(Fate::Destroy))
        .found;
    assert_eq!(found.len(), 6, "{found:?}");
    process.send("\n");
    assert!(!process.line().contains("sent"));
    for stream in &mut accepted {
        assert_eq!(received(stream), Err(ErrorKind::ConnectionReset));
    }
    for socket in &peers.datagrams {
        assert!(socket.recv(&mut [0]).is_err(), "a datagram arrived");
    }
    Held::connects(stand, process, peers.listeners, None)
}

fn what_may_go_on_does_and_goes_nowhere_else(stand: &Stand) -> Held {
    let peers = Peers::new();
    let later = Cgroup::new(stand.fence().cgroup_root(), unique());
    let elsewhere = ["127.0.0.1", "::1"].map(receiver);
    let script = peers.script().replace(
        "for line in sys.stdin:",
        &format!(
            "for line in sys.stdin:
    if line == 'elsewhere\\n':
        u0.connect({}); u1.connect({}); say(fares(u0, b'z'), fares(u1, b'z')); continue",
            at(&elsewhere[0]),
            at(&elsewhere[1])
        ),
    );
    let mut process = Running::start(&later, &script);
    assert_eq!(process.line(), "up");
    let mut accepted: Vec<_> = peers
        .listeners
        .iter()
        .map(|l| accept(&l.listener))
        .collect();
    let newly = stand.fence().govern(&later.name, "later").unwrap().newly;
    let found = stand.fence().end_earlier(&newly, &says(Fate::Keep)).found;
    assert_eq!(found.len(), 6, "{found:?}");
    assert!(found.iter().all(|earlier| earlier.outcome == Outcome::Kept));
    assert_eq!(stand.fence().kept()["later"], 6);
    process.send("\n");
    assert!(process.line().starts_with("sent sent sent sent"));
    for stream in &mut accepted {
        assert_eq!(received(stream).unwrap(), b"x");
        stream.write_all(b"answer").unwrap();
    }
    for socket in &peers.datagrams {
        assert_eq!(socket.recv(&mut [0]).unwrap(), 1);
    }
    // What it makes anew goes to the agent, and a socket that may go on has no other peer.
    process.send("anew\n");
    assert_eq!(process.line(), "ok ok");
    let steered = [&stand.agent4, &stand.agent6].map(accept);
    for (steered, peer) in steered.iter().zip(&peers.listeners) {
        assert_eq!(&*stand.fence().flow_of(steered).unwrap().workload, "later");
        assert_quiet(&peer.listener);
    }
    process.send("elsewhere\n");
    process.line();
    assert_eq!(elsewhere.each_ref().map(heard), [0, 0], "datagrams");

    // Looked at again, nothing changes; what is over is forgotten; a policy that lets it go on no longer ends it.
    assert!(
        stand
            .fence()
            .review_kept(&says(Fate::Keep))
            .found
            .is_empty()
    );
    let before = stand.fence().kept()["later"];
    drop(peers.full);
    eventually("what is over is forgotten", || {
        stand.fence().review_kept(&says(Fate::Keep));
        stand.fence().kept()["later"] < before
    });
    let ended = stand.fence().review_kept(&says(Fate::Destroy)).found;
    assert!(
        ended.iter().all(|e| e.outcome == Outcome::Destroyed),
        "{ended:?}"
    );
    for stream in &mut accepted {
        assert_eq!(received(stream), Err(ErrorKind::ConnectionReset));
    }
    assert!(stand.fence().kept().is_empty());
    // What was made since was left alone.
    for mut steered in steered {
        steered.set_nonblocking(true).unwrap();
        let open = steered.read(&mut [0]).unwrap_err().kind();
        assert_eq!(
            open,
            ErrorKind::WouldBlock,
            "a steered connection was ended"
        );
    }
    Held {
        is_free: Box::new(move |process| {
            process.send("elsewhere\n");
            process.line() == "sent sent" && elsewhere.each_ref().map(heard) == [1, 1]
        }),
        process,
        cgroup: Some(later),
    }
}

/// What others have connected to where policy lets them is the workload's to serve.
fn who_connected_to_an_allowed_port_stays_connected(stand: &Stand) -> [Held; 2] {
    ["127.0.0.1", "::1"].map(|ip| {
        let workload = unique();
        let later = Cgroup::new(stand.fence().cgroup_root(), unique());
        let mut process = Running::start(
            &later,
            &format!(
                "l = [socket.socket(family('{ip}'), socket.SOCK_STREAM) for _ in range(2)]
for s in l: s.bind(('{ip}', 0)); s.listen()
say(*[s.getsockname()[1] for s in l])
a = [s.accept()[0] for s in l]
say('accepted')
for line in sys.stdin:
    for s in a: name(lambda: s.send(b'x'))
    say('sent')"
            ),
        );
        let told = |process: &mut Running| {
            process.send("\n");
            assert_eq!(process.line(), "sent");
        };
        let ports = process.line();
        let ports: Vec<u16> = ports.split(' ').map(|p| p.parse().unwrap()).collect();
        let mut clients: Vec<TcpStream> = ports
            .iter()
            .map(|port| {
                let client = TcpStream::connect((ip, *port)).unwrap();
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                client
            })
            .collect();
        assert_eq!(process.line(), "accepted");
        told(&mut process);
        for client in &mut clients {
            assert_eq!(received(client).unwrap(), b"x", "nobody governs it yet");
        }
        let openings = tollgate::kernel::Openings {
            workload: workload.clone(),
            listen: vec![ports[0]],
            unix: Vec::new(),
        };
        stand.fence().permit(&[openings]).unwrap();
        let newly = stand.fence().govern(&later.name, &workload).unwrap().newly;
        let listen = vec![ports[0]];
        let looked = stand.fence().end_earlier(&newly, &|name: &str| {
            (name == workload).then(|| Before {
                fate: Fate::Destroy,
                listen: listen.clone(),
            })
        });
        let found = looked.found;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].local.port(), ports[1]);
        told(&mut process);
        assert_eq!(received(&mut clients[0]).unwrap(), b"x");
        assert_eq!(received(&mut clients[1]), Err(ErrorKind::ConnectionReset));
        assert!(dial(ip, ports[1]).is_none());
        Held {
            is_free: Box::new(move |_| dial(ip, ports[1]).is_some()),
            process,
            cgroup: Some(later),
        }
    })
}

fn other_network_namespaces_are_looked_at_too(stand: &Stand) -> [Held; 2] {
    ["127.0.0.1", "::1"].map(|ip| {
        let later = Cgroup::new(stand.fence().cgroup_root(), unique());
        let mut process = Running::start(
            &later,
            &format!(
                "import ctypes
assert ctypes.CDLL(None).unshare(0x40000000) == 0
assert os.system('ip link set lo up') == 0
l = socket.socket(family('{ip}'), socket.SOCK_STREAM); l.bind(('{ip}', 0)); l.listen()
s, r = tcp('{ip}', l.getsockname()[1]); a = l.accept()[0]
say(r)
for line in sys.stdin:
    say(name(lambda: s.send(b'x')), name(lambda: a.recv(1)), tcp('{ip}', l.getsockname()[1])[1])"
            ),
        );
        assert_eq!(process.line(), "ok");
        process.send("\n");
        assert_eq!(process.line(), "ok ok ok", "nobody governs it yet");
        let newly = stand.fence().govern(&later.name, "later").unwrap().newly;
        let found = stand
            .fence()
            .end_earlier(&newly, &says(Fate::Destroy))
            .found;
        // Both ends are its own, and it may listen on no port. Ending one may end the other.
        assert!(!found.is_empty(), "{ip}");
        process.send("\n");
        let told = process.line();
        assert!(!told.contains("ok"), "{ip}: {told}");
        Held {
            is_free: Box::new(|process| {
                process.send("\n");
                process.line().ends_with(" ok")
            }),
            process,
            cgroup: Some(later),
        }
    })
}

#[test]
fn what_was_open_before_is_ended_or_goes_on_as_policy_says() {
    let mut stand = Stand::new();
    let ones = [
        what_was_connected_is_ended_and_its_peer_is_told,
        what_a_process_outside_of_governed_cgroups_had_is_ended,
        what_may_go_on_does_and_goes_nowhere_else,
    ];
    let mut held: Vec<Held> = ones.iter().map(|test| test(&stand)).collect();
    held.extend(other_network_namespaces_are_looked_at_too(&stand));
    held.extend(who_connected_to_an_allowed_port_stays_connected(&stand));
    stand.lift();
    held.into_iter().for_each(Held::goes_free);
}

/// What there is no room to remember does not go on.
#[test]
fn connections_that_there_is_no_room_to_keep_are_ended() {
    let mut stand = Stand::new();
    let peers = Peers::new();
    let later = Cgroup::new(stand.fence().cgroup_root(), unique());
    let mut process = Running::start(&later, &peers.script());
    assert_eq!(process.line(), "up");
    let accepted = peers.listeners.iter().map(|l| accept(&l.listener));
    let mut accepted: Vec<_> = accepted.collect();
    fill(&stand, "KEPT");
    let newly = stand.fence().govern(&later.name, "later").unwrap().newly;
    let found = stand.fence().end_earlier(&newly, &says(Fate::Keep)).found;
    assert_eq!(found.len(), 6, "{found:?}");
    let ended = |earlier: &tollgate::kernel::Earlier| earlier.outcome == Outcome::Destroyed;
    assert!(found.iter().all(ended), "{found:?}");
    process.send("\n");
    let fares = process.line();
    assert!(!fares.contains("sent"), "{fares}");
    // Its peer is not told either: that, too, would have to be let through.
    for stream in &mut accepted {
        stream.set_read_timeout(Some(PATIENCE / 100)).unwrap();
        assert_eq!(received(stream), Err(ErrorKind::WouldBlock));
    }
    for socket in &peers.datagrams {
        assert!(socket.recv(&mut [0]).is_err(), "a datagram got out");
    }
    let held = Held::connects(&stand, process, peers.listeners, Some(later));
    stand.lift();
    held.goes_free();
}

/// Connected over IPv4, with so many descriptors of that in a table of many threads, and over IPv6 in one that a thread has for
/// itself.
const HAS_MANY: &str = "
import ctypes, resource, threading
limit = lambda n: resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
# Not every root may raise it.
try: limit(200000); most = 200000
except ValueError: limit(most)
for_ever, ready = threading.Event(), threading.Event()
def apart():
    assert ctypes.CDLL(None).unshare(0x400) == 0
    own = tcp('::1', PORT6)[0]; ready.set(); for_ever.wait()
for run in [apart] + [for_ever.wait] * 62: threading.Thread(target=run, daemon=True).start()
ready.wait()
s = tcp('127.0.0.1', PORT4)[0]
for _ in range(min(most - 100, 100000)): os.dup(s.fileno())
say('has')
for line in sys.stdin: say(tcp('127.0.0.1', PORT4)[1], tcp('::1', PORT6)[1])
os._exit(0)
";

/// However busy the machine is: what the look itself takes.
fn time_of_this_thread() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    spent.try_into().unwrap()
}

#[test]
fn who_has_many_descriptors_in_many_threads_is_looked_at_at_once() {
    let mut stand = Stand::new();
    let servers = IPS.map(Elsewhere::new);
    let [port4, port6] = servers.each_ref().map(|server| server.address.port());
    let script = format!("PORT4, PORT6 = {port4}, {port6}{HAS_MANY}");
    let mut process = Running::start_outside(&script);
    assert_eq!(process.line(), "has");
    let mut peers = servers.each_ref().map(|server| accept(&server.listener));
    enrol(stand.fence(), &process, "late");
    let before = time_of_this_thread();
    assert_eq!(looks(stand.fence(), &[]), [const { Outcome::Destroyed }; 2]);
    let took = time_of_this_thread() - before;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(peers.iter_mut().all(ended));
    let mut dials = || {
        process.send("\n");
        process.line()
    };
    assert_eq!(dials(), "ok ok");
    for (server, agent) in servers.iter().zip([&stand.agent4, &stand.agent6]) {
        let flow = stand.fence().flow_of(&accept(agent)).unwrap();
        assert_eq!(&*flow.workload, "late");
        assert_quiet(&server.listener);
    }
    stand.lift();
    for server in &servers {
        reaches(server, &mut dials);
    }
    process.finish();
}
