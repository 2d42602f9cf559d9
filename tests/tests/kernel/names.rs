//! Names: what a governed task asks of port 53, anywhere, goes to the agent, with who asked; answers come from
//! where they were asked for.
use crate::exit::{DATAGRAM, heard, told};
use crate::refuse::counted;
use crate::support::*;
use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Instant;
use tollgate::kernel::namespaces::Network;
use tollgate::kernel::{Flow, Namespace, since_boot};

/// The next query that the agent reads.
pub fn query(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 512];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => return (buffer[..length].to_vec(), from),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "nobody asked");
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// The server that is asked where nobody steers.
fn receiver_at(ip: &str) -> UdpSocket {
    let real = UdpSocket::bind((ip, 53)).unwrap();
    real.set_nonblocking(true).unwrap();
    real
}

pub fn asker(stand: &Stand, socket: &UdpSocket, message: &[u8], from: SocketAddr) -> Option<Flow> {
    let namespace = Namespace::of(socket).unwrap();
    let id = message.first_chunk().unwrap();
    stand.fence().asker_of(namespace, from, *id)
}

pub fn agents<'s>(stand: &'s Stand, ip: &str) -> &'s UdpSocket {
    match ip.contains(':') && !ip.contains('.') {
        true => &stand.dns6,
        false => &stand.dns4,
    }
}

/// Asks `server` three times, with a destination, connected, and with a control message, and tells what it hears.
fn asking(server: &str) -> String {
    format!(
        "{DATAGRAM}
server = ('{server}', 53)
def hear(s):
    s.settimeout(5); answer, sender = s.recvfrom(64); say(answer.decode(), sender[0], sender[1])
s = datagram(server[0]); say(name(lambda: s.sendto(b'a1', server))); hear(s)
s = datagram(server[0]); say(name(lambda: s.connect(server)), s.getpeername()[:2] == server); s.send(b'a2'); hear(s)
tos = (socket.IPPROTO_IPV6, 67, (16).to_bytes(4, 'little')) if ':' in server[0] else (socket.IPPROTO_IP, socket.IP_TOS, (16).to_bytes(4, 'little'))
say(name(lambda: s.sendmsg([b'a3'], [tos]))); hear(s)
s.sendto(b'a4', server); hear(s)"
    )
}

fn the_agent_is_asked(stand: &Stand, server: &str, real: &UdpSocket) {
    let mut client = Running::start(&stand.cgroup, &asking(server));
    let agent = agents(stand, server);
    for (nth, before) in ["ok", "ok True", "ok", ""].into_iter().enumerate() {
        if !before.is_empty() {
            assert_eq!(client.line(), before);
        }
        let (message, from) = query(agent);
        assert_eq!(message, format!("a{}", nth + 1).as_bytes());
        let flow = asker(stand, agent, &message, from).expect("it was entered");
        assert_eq!(&*flow.workload, stand.workload());
        assert_eq!(flow.process.pid, client.pid());
        assert!(flow.process.exe.contains("python3"));
        assert_eq!(flow.process.cgroup, format!("/{}", stand.workload()));
        let asked: std::net::IpAddr = server.parse().unwrap();
        assert_eq!(flow.destination, (asked.to_canonical(), 53).into());
        assert!(
            asker(stand, agent, &message, from).is_none(),
            "it is taken once"
        );
        agent.send_to(b"yes", from).unwrap();
        assert_eq!(client.line(), format!("yes {server} 53"));
    }
    client.finish();
    assert_eq!(heard(real), 0, "the server was not asked");
    assert!(counted(stand).is_empty());
    let account = stand.account();
    assert_eq!(
        (account.counters.packets_out, account.counters.packets_in),
        (4, 4)
    );
}

#[test]
fn names_are_asked_of_the_agent() {
    let ways = [
        ("127.77.8.4", "127.77.8.4"),
        ("::1", "::1"),
        ("::ffff:127.77.8.5", "127.77.8.5"),
    ];
    let ways = ways.map(|(server, ip)| {
        let real = receiver_at(ip);
        (server, real)
    });
    let mut stand = Stand::new();
    for (server, real) in &ways {
        stand.renew();
        the_agent_is_asked(&stand, server, real);
    }
    stand.lift();
    for (server, real) in &ways {
        let client = Running::start(&stand.cgroup, &asking(server));
        let (message, from) = query(real);
        assert_eq!(message, b"a1");
        assert_eq!(heard(&stand.dns4) + heard(&stand.dns6), 0);
        real.send_to(b"no", from).unwrap();
        drop(client);
    }
}

#[test]
fn without_an_agent_it_is_refused_at_once() {
    let mut stand = Stand::new();
    let limit = harness::at_most(std::time::Duration::from_millis(10)).as_millis();
    let script = format!(
        "{DATAGRAM}
held = [datagram(ip) for ip in ('127.77.8.6', '::1')]
held[0].connect(('127.77.8.6', 53)); held[1].connect(('::1', 53))
say('held'); sys.stdin.readline()
def timed(call):
    t = time.monotonic(); said = name(call); took = (time.monotonic() - t) * 1000
    say(said, took < {limit} or took)
for s in held: timed(lambda: s.send(b'xx'))
for ip in '127.77.8.6', '::1', '::ffff:127.77.8.6':
    timed(lambda: datagram(ip).sendto(b'xx', (ip, 53)))
    timed(lambda: datagram(ip).connect((ip, 53)))"
    );
    let real = ["127.77.8.6", "::1"].map(|ip| UdpSocket::bind((ip, 53)).unwrap());
    let mut client = Running::start(&stand.cgroup, &script);
    assert_eq!(client.line(), "held");
    let (at4, at6) = (
        stand.dns4.local_addr().unwrap(),
        stand.dns6.local_addr().unwrap(),
    );
    (stand.dns4, stand.dns6) = (both("127.0.0.1:0").1, both("[::1]:0").1);
    let impostors = [UdpSocket::bind(at4).unwrap(), UdpSocket::bind(at6).unwrap()];
    client.send("\n");
    assert_eq!(
        client.finish(),
        [["EPERM True"; 2].as_slice(), &["ECONNREFUSED True"; 6]]
            .concat()
            .join("\n")
    );
    for nobody in impostors.iter().chain(&real) {
        nobody.set_nonblocking(true).unwrap();
        assert_eq!(heard(nobody), 0, "an impostor hears nothing");
    }
    assert_eq!(
        counted(&stand),
        BTreeMap::from([("agent_down".to_owned(), 8)])
    );
    let told = told(&stand);
    assert!(told.iter().all(|refusal| refusal.reason == "agent_down"));
    assert!(
        told.iter()
            .all(|refusal| refusal.destination.unwrap().port() == 53),
        "{told:?}"
    );
    let layers = stand.fence().layers();
    let names = layers.iter().find(|layer| layer.name == "names").unwrap();
    assert!(!names.enforcing);
    stand.lift();
    let free = stand.run(&script);
    assert!(
        !free.contains("EPERM") && !free.contains("ECONNREFUSED"),
        "{free}"
    );
    assert!(real.iter().all(|real| heard(real) >= 2));
}

/// Whoever has a port when the agent gets to reading is not whoever asked from it.
#[test]
fn a_port_that_changes_hands_changes_nobodys_query() {
    let mut stand = Stand::new();
    let other = Cgroup::new(stand.fence().cgroup_root(), unique());
    stand.fence().govern(&other.name, "other").unwrap();
    let (ours, others) = (stand.cgroup.path(), other.path());
    let ways = ["127.77.8.7", "::1"].map(|ip| {
        let agent = agents(&stand, ip);
        let real = receiver_at(ip);
        let script = format!(
            "{DATAGRAM}
ours, others = {ours:?}, {others:?}
def ask(cgroup, message, port=0):
    enter(cgroup)
    with datagram('{ip}') as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(('', port)); said = name(lambda: s.sendto(message, ('{ip}', 53)))
        return said, s.getsockname()[1]
said, port = ask(ours, b'1 ours'); say(said, port)
for message in b'1 theirs', b'2 theirs', b'2 again': say(ask(others, message, port)[0])
sys.stdin.readline()
say(ask(others, b'1 theirs', port)[0])"
        );
        let mut client = Running::start_outside(&script);
        let said = client.line();
        assert_eq!(said.split(' ').next(), Some("ok"));
        assert_eq!(client.line(), "EPERM", "one like it is not read yet");
        assert_eq!(client.line(), "ok");
        assert_eq!(client.line(), "EPERM");
        let read = || {
            let (message, from) = query(agent);
            assert!(said.ends_with(&from.port().to_string()));
            let flow = asker(&stand, agent, &message, from).unwrap();
            (String::from_utf8(message).unwrap(), flow.workload)
        };
        assert_eq!(read(), ("1 ours".into(), stand.workload().into()));
        assert_eq!(read(), ("2 theirs".into(), "other".into()));
        client.send("\n");
        assert_eq!(client.line(), "ok");
        assert_eq!(read(), ("1 theirs".into(), "other".into()));
        client.finish();
        assert_eq!((heard(agent), heard(&real)), (0, 0));
        (real, script)
    });
    let told = told(&stand);
    assert!(told.iter().all(|refusal| refusal.reason == "unrecorded"
        && &*refusal.workload == "other"
        && refusal.destination.unwrap().port() == 53));
    stand.lift();
    for (real, script) in &ways {
        eventually("it is the fence that steers", || {
            python_outside(script).ends_with("ok\nok\nok\nok") && heard(real) == 5
        });
    }
}

/// Of several queries in one packet only one would be entered; a datagram too short has no id.
#[test]
fn what_is_no_single_query_is_refused() {
    let mut stand = Stand::new();
    let ways = ["127.77.8.8", "::1"].map(|ip| {
        let real = receiver_at(ip);
        let script = format!(
            "{DATAGRAM}
s = datagram('{ip}'); s.connect(('{ip}', 53))
many = [(socket.IPPROTO_UDP, 103, (100).to_bytes(2, 'little'))]
say(name(lambda: s.sendmsg([b'm' * 300], many)), name(lambda: s.send(b'x')), name(lambda: s.send(b'')))"
        );
        assert_eq!(stand.run(&script), "EPERM EPERM EPERM");
        assert_eq!(heard(&real), 0);
        (real, script)
    });
    assert_eq!(counted(&stand)["udp"], 6);
    assert_eq!(heard(&stand.dns4) + heard(&stand.dns6), 0);
    stand.lift();
    for (real, script) in &ways {
        assert_eq!(stand.run(script), "ok ok ok");
        assert_eq!(heard(real), 5, "three of one packet, and two");
    }
}

/// Only the agent's answers reach a socket that asks, whatever port it has.
#[test]
fn answers_of_others_do_not_arrive() {
    let mut stand = Stand::new();
    for (ip, from) in [("127.77.8.9", "127.77.8.9"), ("::1", "::1")] {
        let forger = UdpSocket::bind((from, 53)).unwrap();
        let script = format!(
            "{DATAGRAM}
s = datagram('{ip}'); s.settimeout(0.3)
s.sendto(b'q1', ('{ip}', 53)); say(s.getsockname()[1])
sys.stdin.readline()
try: say(*[s.recvfrom(64)[0].decode() for n in range(2)])
except TimeoutError: say('nothing more')"
        );
        let forged = |stand: &Stand, client: &mut Running| {
            let port: u16 = client.line().parse().unwrap();
            let to = SocketAddr::new(
                if ip == "::1" { ip } else { "127.0.0.1" }.parse().unwrap(),
                port,
            );
            forger.send_to(b"forged", to).unwrap();
            let _ = agents(stand, ip).send_to(b"answer", to);
            client.send("\n");
        };
        let mut client = Running::start(&stand.cgroup, &script);
        forged(&stand, &mut client);
        assert_eq!(client.finish(), "nothing more", "one of two came");
        stand.fence().release(stand.cgroup.id()).unwrap();
        let mut client = Running::start(&stand.cgroup, &script);
        forged(&stand, &mut client);
        assert_eq!(
            client.finish(),
            "forged answer",
            "it is the fence that keeps it"
        );
        stand
            .fence()
            .govern(&stand.cgroup.name, stand.workload())
            .unwrap();
    }
    stand.lift();
}

/// One of several at a port, of one user.
fn sharing(address: SocketAddr) -> UdpSocket {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.into()
}

/// Which of them a query would reach goes by where it is from. The agent itself is the only one that can have others at its port, and
/// these it did not admit.
#[test]
fn of_sockets_that_share_the_agents_port_only_its_own_is_asked() {
    let mut stand = Stand::new();
    let asks = |ip: &str| {
        format!(
            "{DATAGRAM}
all = [datagram('{ip}') for _ in range(64)]
say(*sorted({{name(lambda: s.sendto(b'a name', ('{ip}', 53))) for s in all}}))"
        )
    };
    for ip in ["127.0.0.1", "::1"] {
        // Where one without a port would reach another one, nobody is asked at all.
        let other = (0..64).find_map(|_| {
            stand.listen();
            let at = agents(&stand, ip).local_addr().unwrap();
            let agent = match ip {
                "::1" => &mut stand.dns6,
                _ => &mut stand.dns4,
            };
            *agent = UdpSocket::bind((ip, 0)).unwrap();
            *agent = sharing(at);
            let other = sharing(at);
            stand.admit();
            let told = stand.run(&asks(ip));
            assert_eq!(heard(&other), 0, "{told}");
            (told != "ECONNREFUSED").then(|| {
                assert_eq!(told, "EPERM ok");
                other
            })
        });
        let other = other.expect("somebody is asked");
        let own = heard(agents(&stand, ip));
        assert!((1..64).contains(&own), "{own}");
        // It is the look at what leaves that keeps the others from it.
        std::fs::remove_file(stand.options.pin_dir.join("links/egress")).unwrap();
        assert_eq!(stand.run(&asks(ip)), "ok");
        assert!(heard(&other) > 0);
        stand.fence().mend();
    }
    stand.lift();
}

/// A socket that somebody else made and passed in asks the agent, and is its maker's again afterwards.
#[test]
fn a_socket_made_outside_asks_the_agent() {
    let mut stand = Stand::new();
    let ways = ["127.77.8.10", "::1"].map(|ip| {
        let real = receiver_at(ip);
        let script = format!(
            "{DATAGRAM}
server = ('{ip}', 53); s = datagram('{ip}'); c = datagram('{ip}')
if os.fork() == 0:
    enter({inside:?})
    s.sendto(b's1', server); c.connect(server); c.send(b'c1')
    os._exit(0)
os.wait()
s.sendto(b's2', server); c.connect(server); c.send(b'c2')
say('done')",
            inside = stand.cgroup.path(),
        );
        assert_eq!(python_outside(&script), "done");
        let agent = agents(&stand, ip);
        for expected in [b"s1", b"c1"] {
            let (message, from) = query(agent);
            assert_eq!(message, expected);
            let flow = asker(&stand, agent, &message, from).unwrap();
            assert_eq!(&*flow.workload, stand.workload());
        }
        for expected in [b"s2", b"c2"] {
            assert_eq!(query(&real).0, expected);
        }
        (real, script)
    });
    stand.lift();
    for (real, script) in &ways {
        eventually("it is the fence that steers", || {
            python_outside(script) == "done" && heard(real) == 4
        });
    }
}

#[test]
fn the_ungoverned_ask_whom_they_like() {
    let stand = Stand::new();
    let other = Cgroup::new(stand.fence().cgroup_root(), unique());
    for ip in ["127.77.8.11", "::1"] {
        let real = receiver_at(ip);
        let script = format!(
            "{DATAGRAM}
server = ('{ip}', 53)
s = datagram('{ip}'); s.settimeout(5); s.sendto(b'q1', server)
answer, sender = s.recvfrom(64); say(answer.decode(), sender[0], sender[1])
agent = ('{agent_ip}', {agent})
say(name(lambda: s.sendto(b'q2', agent)))",
            agent_ip = if ip == "::1" { "::1" } else { "127.0.0.1" },
            agent = agents(&stand, ip).local_addr().unwrap().port(),
        );
        let mut client = Running::start(&other, &script);
        let (_, from) = query(&real);
        real.send_to(b"real", from).unwrap();
        assert_eq!(client.line(), format!("real {ip} 53"));
        assert_eq!(client.finish(), "ok");
        let (message, from) = query(agents(&stand, ip));
        assert!(
            asker(&stand, agents(&stand, ip), &message, from).is_none(),
            "straight to the agent: nobody's"
        );
    }
}

/// How many queries the fence keeps for the agent to read.
fn kept(stand: &Stand) -> usize {
    let pin = stand.options.pin_dir.join("maps/QUERIES");
    let output = std::process::Command::new("bpftool")
        .args(["map", "dump", "pinned"])
        .arg(pin)
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.starts_with('['), "{told}");
    told.matches("\"key\": ").count()
}

/// Queries that nobody reads keep nobody from asking; a new agent starts with none.
#[test]
fn queries_that_are_not_read_are_bounded() {
    let mut stand = Stand::new();
    let ways = [["127.77.8.12", "::1"], ["::1", "127.77.8.12"]].map(|[flooded, asked]| {
        let flood = format!(
            "{DATAGRAM}
s = datagram('{flooded}'); s.connect(('{flooded}', 53))
print(sum(s.send(n.to_bytes(2, 'little')) for n in range(18000)))"
        );
        assert_eq!(stand.run(&flood), "36000", "all of it is sent");
        are_bounded(&mut stand, asked);
        stand.listen();
        (flooded, flood)
    });
    stand.lift();
    for (flooded, flood) in ways {
        let real = receiver_at(flooded);
        eventually("it is the fence that steers them", || {
            stand.run(&flood) == "36000" && heard(&real) > 0
        });
        assert_eq!(heard(agents(&stand, flooded)), 0);
    }
}

fn are_bounded(stand: &mut Stand, asked: &str) {
    // What it did not read of the flood is not in its way.
    agents(stand, asked).recv(&mut [0; 64]).unwrap_err();
    let ask = format!(
        "{DATAGRAM}
say(name(lambda: datagram('{asked}').sendto(b'xx', ('{asked}', 53))))"
    );
    let client = Running::start(&stand.cgroup, &format!("{ask}\nsys.stdin.read()"));
    let agent = agents(stand, asked);
    let (message, from) = query(agent);
    assert!(asker(stand, agent, &message, from).is_some());
    client.finish();
    stand
        .fence()
        .forget_queries(since_boot().saturating_sub(60_000_000_000));
    let all = kept(stand);
    assert!((8_192..=16_384).contains(&all), "{all}; none is so old");
    stand.fence().forget_queries(since_boot());
    assert_eq!(kept(stand), 0);
    assert_eq!(stand.run(&ask), "ok");
    assert_eq!(kept(stand), 1);
    drop(stand.fence.take());
    stand.fence = Some(open(&stand.options));
    assert_eq!(kept(stand), 0, "a new agent starts with none");
}

/// A bound address of the client's own is kept, and is what the agent answers to. In a network namespace that has one of
/// each family.
#[test]
fn a_client_with_an_address_of_its_own_is_answered() {
    for (server, at, own, prefix) in [
        ("127.77.8.13", "127.0.0.1:0", "127.9.9.9", "127.9.9.9/8"),
        ("::1", "[::1]:0", "fd00::9", "fd00::9/128"),
    ] {
        let mut stand = Stand::new();
        let script = format!(
            "{DATAGRAM}import ctypes
assert ctypes.CDLL(None).unshare(0x40000000) == 0
assert os.system('ip link set lo up && ip address add {prefix} dev lo') == 0
say('in')
for line in sys.stdin:
    with datagram('{server}') as s:
        s.bind(('{own}', 0)); s.settimeout(0.5); s.sendto(b'q1', ('{server}', 53))
        try:
            answer, sender = s.recvfrom(64); say(answer.decode(), *sender[:2])
        except TimeoutError: say('nothing')"
        );
        let mut client = Running::start(&stand.cgroup, &script);
        assert_eq!(client.line(), "in");
        let network = Network::of(client.pid(), client.pid()).unwrap();
        let (real, (listener, agent)) = network
            .within(|| Ok((receiver_at(server), both(at))))
            .unwrap();
        let (four, six) = match server.contains(':') {
            true => (0, Some(port(&listener))),
            false => (port(&listener), None),
        };
        let sockets = [listener.as_fd(), agent.as_fd()];
        stand.fence().admit(&sockets, four, six).unwrap();
        client.send("\n");
        let (message, from) = query(&agent);
        assert_eq!(from.ip().to_string(), own);
        assert!(asker(&stand, &agent, &message, from).is_some());
        agent.send_to(b"yes", from).unwrap();
        assert_eq!(client.line(), format!("yes {server} 53"));
        assert_eq!(heard(&real), 0);
        stand.lift();
        eventually("it is the fence that steers", || {
            client.send("\n");
            client.line();
            heard(&real) == 1
        });
        client.finish();
    }
}
