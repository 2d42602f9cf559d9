//! Who may connect to a workload, and whose the agent's port is.
use crate::refuse::{counted, events, layer, refusals};
use crate::support::*;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;
use tollgate::kernel::{Event, Refusal};

/// Long enough for an answer on loopback, on a busy machine too.
const ANSWER: Duration = Duration::from_millis(400);

/// Serves each connection, one after the other: says `hello`, then echoes lines until its input closes.
pub const SERVE: &str = "
import select, threading
def serve(server):
    while True:
        s, _ = server.accept()
        threading.Thread(target=echo, args=(s,), daemon=True).start()
def echo(s):
    try:
        s.sendall(b'hello')
        while True:
            got = s.recv(64)
            if not got: return
            s.sendall(got)
    except OSError: pass
def start(ip):
    server = socket.create_server((ip, 0), family=family(ip))
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    return server.getsockname()[1]
";

pub fn dial(ip: &str, port: u16) -> Option<TcpStream> {
    let ip: IpAddr = ip.parse().unwrap();
    let stream = TcpStream::connect_timeout(&SocketAddr::new(ip, port), ANSWER).ok()?;
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    Some(stream)
}

pub fn hears(stream: &mut TcpStream) -> bool {
    let mut said = [0; 5];
    stream.read_exact(&mut said).is_ok()
}

/// Returns the server and its port.
fn nobody_connects_in(stand: &Stand, ip: &str) -> (Running, u16) {
    let serve = format!("{SERVE}say(os.getpid(), start('{ip}'))\nsys.stdin.read()");
    let mut server = Running::start(&stand.cgroup, &serve);
    let line = server.line();
    let (pid, port) = line.split_once(' ').unwrap();
    let port: u16 = port.parse().unwrap();

    assert!(dial(ip, port).is_none(), "refused by default");
    assert!(counted(stand)["listen"] >= 1);
    let told = refusal_of(stand);
    assert_eq!((told.reason, &*told.protocol), ("listen", "tcp"));
    assert_eq!(
        told.destination,
        Some(SocketAddr::new(ip.parse().unwrap(), port))
    );
    assert_eq!(
        told.process.pid.to_string(),
        pid,
        "who bound it was remembered"
    );

    stand.permit(&[port.wrapping_add(1)], &[]);
    assert!(dial(ip, port).is_none(), "another port is another thing");
    stand.permit(&[port], &[]);
    let mut open = dial(ip, port).unwrap();
    assert!(hears(&mut open), "its policy lets it");

    stand.permit(&[], &[]);
    open.write_all(b"again").unwrap();
    assert!(!hears(&mut open), "no longer, on open connections too");
    assert!(dial(ip, port).is_none());
    (server, port)
}

/// The first that is told of the workload.
fn refusal_of(stand: &Stand) -> Refusal {
    let own = |event: &Event| match event {
        Event::Refused(refusal) if *refusal.workload == *stand.workload() => Some(refusal.clone()),
        _ => None,
    };
    let events = events(stand.fence(), |events| {
        events.iter().any(|e| own(e).is_some())
    });
    events.iter().find_map(own).unwrap()
}

#[test]
fn nobody_connects_to_a_workload() {
    let mut stand = Stand::new();
    let servers = ["127.0.0.1", "::1"].map(|ip| {
        stand.renew();
        (ip, nobody_connects_in(&stand, ip))
    });
    stand.lift();
    for (ip, (server, port)) in servers {
        let hears_now = || dial(ip, port).is_some_and(|mut free| hears(&mut free));
        eventually("it is the fence that keeps them", hears_now);
        server.finish();
    }
}

/// A listener for both families is one socket.
#[test]
fn a_dual_stack_listener_is_held_over_both() {
    let mut stand = Stand::new();
    let serve = format!(
        "{SERVE}
server = socket.create_server(('', 0), family=socket.AF_INET6, dualstack_ipv6=True)
threading.Thread(target=serve, args=(server,), daemon=True).start()
say(server.getsockname()[1]); sys.stdin.read()"
    );
    let mut server = Running::start(&stand.cgroup, &serve);
    let port: u16 = server.line().parse().unwrap();
    assert!(dial("127.0.0.1", port).is_none() && dial("::1", port).is_none());
    stand.permit(&[port], &[]);
    let both = ["127.0.0.1", "::1"];
    for ip in both {
        assert!(hears(&mut dial(ip, port).unwrap()), "{ip}");
    }
    stand.permit(&[], &[]);
    assert!(both.iter().all(|ip| dial(ip, port).is_none()));
    stand.lift();
    for ip in both {
        let hears_now = || dial(ip, port).is_some_and(|mut free| hears(&mut free));
        eventually("it is the fence that keeps them", hears_now);
    }
    server.finish();
}

#[test]
fn connections_from_before_are_cut_off() {
    let mut stand = Stand::new();
    stand.fence().release(stand.cgroup.id()).unwrap();
    let serve = format!("{SERVE}say(start('127.0.0.1'), start('::1'))\nsys.stdin.read()");
    let mut server = Running::start(&stand.cgroup, &serve);
    let line = server.line();
    let (port4, port6) = line.split_once(' ').unwrap();
    let both = [("127.0.0.1", port4), ("::1", port6)].map(|(ip, port)| (ip, port.parse().unwrap()));
    let mut callers = both.map(|(ip, port)| dial(ip, port).unwrap());
    assert!(callers.iter_mut().all(hears));
    stand
        .fence()
        .govern(&stand.cgroup.name, stand.workload())
        .unwrap();
    for caller in &mut callers {
        caller.write_all(b"again").unwrap();
        assert!(!hears(caller));
    }
    assert!(counted(&stand)["listen"] >= 2);
    assert!(both.iter().all(|(ip, port)| dial(ip, *port).is_none()));
    stand.lift();
    for (caller, (ip, port)) in callers.iter_mut().zip(both) {
        caller.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(hears(caller), "TCP sends again what was not answered");
        assert!(dial(ip, port).is_some_and(|mut free| hears(&mut free)));
    }
    server.finish();
}

/// Its sockets are in no governed cgroup; it is known by what it was.
#[test]
fn who_left_the_cgroup_is_held_too() {
    let mut stand = Stand::new();
    let outside = stand.cgroup.root.to_str().unwrap();
    let serve = format!(
        "{SERVE}enter('{outside}')\nsay(start('127.0.0.1'), start('::1'))\nsys.stdin.read()"
    );
    let mut server = Running::start(&stand.cgroup, &serve);
    let line = server.line();
    let (port4, port6) = line.split_once(' ').unwrap();
    let both = [("127.0.0.1", port4), ("::1", port6)].map(|(ip, port)| (ip, port.parse().unwrap()));
    for (ip, port) in both {
        assert!(dial(ip, port).is_none());
        stand.permit(&[port], &[]);
        let mut open = dial(ip, port).unwrap();
        assert!(hears(&mut open));
        stand.permit(&[], &[]);
        open.write_all(b"again").unwrap();
        assert!(!hears(&mut open), "no longer, on open connections too");
    }
    assert!(counted(&stand)["listen"] >= 4);
    stand.lift();
    for (ip, port) in both {
        let hears_now = || dial(ip, port).is_some_and(|mut free| hears(&mut free));
        eventually("it is the fence that keeps them", hears_now);
    }
    server.finish();
}

/// Binding is no listening: source ports and datagrams work as before.
#[test]
fn binding_goes_on_working() {
    let stand = Stand::new();
    let script = "
for ip in '127.0.0.1', '::1', '0.0.0.0', '::':
    for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
        with socket.socket(family(ip), kind) as s: say(name(lambda: s.bind((ip, 0))), s.getsockname()[1] > 0)
for own, ip in ('127.0.0.1', '198.51.100.7'), ('::1', '2001:db8::7'):
    s = socket.socket(family(ip)); s.bind((own, 0)); say(name(lambda: s.connect((ip, 80))))";
    let said = stand.run(script);
    assert_eq!(
        said,
        [["ok True"; 8].as_slice(), &["ok"; 2]].concat().join("\n")
    );
    for [_, ip] in FAMILIES {
        let accepted = stand.accept(stand.agent(ip));
        let flow = stand.fence().flow_of(&accepted).unwrap();
        assert_eq!(flow.destination.ip().to_string(), ip);
    }
}

#[test]
fn the_agents_port_is_the_agents() {
    let mut stand = Stand::new();
    let (port4, port6) = (port(&stand.agent4), port(&stand.agent6));
    // It dies.
    (stand.agent4, stand.agent6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
    let datagrams = |at: &str| std::net::UdpSocket::bind(at).unwrap();
    (stand.dns4, stand.dns6) = (datagrams("127.0.0.1:0"), datagrams("[::1]:0"));
    let script = format!(
        "def bind(ip, port, kind=socket.SOCK_STREAM):
    with socket.socket(family(ip), kind) as s:
        # Or a connection of somebody's that is over may still have the number.
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); return name(lambda: s.bind((ip, port)))
say(bind('127.0.0.1', {port4}), bind('0.0.0.0', {port4}), bind('::ffff:127.0.0.1', {port4}))
say(bind('::1', {port6}), bind('::', {port6}), bind('127.0.0.1', {port4}, socket.SOCK_DGRAM))
say(bind('127.0.0.77', {port4}), bind('::ffff:127.0.0.77', {port4}))
say(bind('::1', {port6}, socket.SOCK_DGRAM))"
    );
    assert_eq!(
        stand.run(&script),
        "EPERM EPERM EPERM\nEPERM EPERM EPERM\nok ok\nEPERM",
        "its port elsewhere, as the kernel may choose it for anybody, is not its own"
    );
    assert_eq!(counted(&stand)["port"], 7);
    let told = refusals(stand.fence(), 7).remove(0);
    assert_eq!(
        told.destination.unwrap().to_string(),
        format!("127.0.0.1:{port4}")
    );
    assert_eq!(
        python_outside(&script),
        "ok ok ok\nok ok ok\nok ok\nok",
        "nobody else is kept from it"
    );
    // Self-connection: from the agent's port to the agent's port.
    let own = format!(
        "for ip, port, far in ('127.0.0.1', {port4}, '198.51.100.7'), ('::1', {port6}, '2001:db8::7'):
    s = socket.socket(family(ip)); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    name(lambda: s.bind((ip, port)))
    say(name(lambda: s.connect((ip, port))), name(lambda: s.connect((far, 80))))"
    );
    assert_eq!(stand.run(&own), ["EPERM ECONNREFUSED"; 2].join("\n"));
    stand.lift();
    assert_eq!(stand.run(&script), "ok ok ok\nok ok ok\nok ok\nok");
    let alone = ["ok EISCONN"; 2].join("\n");
    eventually("it is the fence that keeps it", || stand.run(&own) == alone);
}

/// Connects at once and sends its SYN with the first byte, as the kernel's fast open does.
const DEFERRED: &str = "
def deferred(ip, port):
    s = socket.socket(family(ip)); s.settimeout(0.5)
    s.setsockopt(socket.IPPROTO_TCP, 30, 1) # TCP_FASTOPEN_CONNECT
    s.setsockopt(socket.IPPROTO_TCP, 34, 1) # TCP_FASTOPEN_NO_COOKIE
    return s, name(lambda: s.connect((ip, port)))
def send(s):
    try: s.sendall(b'secret'); return 'sent'
    except OSError as e: return type(e).__name__
";

/// The hook saw the agent's listener; when the SYN leaves, somebody else is at its port, and programs of the fence are gone.
fn stepped_into_the_gap(stand: &mut Stand, [ip, target]: [&str; 2], gone: &[&str]) -> TcpListener {
    let script = format!(
        "{DEFERRED}s, r = deferred('{target}', 80); say(r); sys.stdin.readline(); say(send(s))"
    );
    let mut client = Running::start(&stand.cgroup, &script);
    assert_eq!(client.line(), "ok");
    let agent = match ip {
        "::1" => &mut stand.agent6,
        _ => &mut stand.agent4,
    };
    let address = agent.local_addr().unwrap();
    *agent = Elsewhere::new(ip).listener;
    let impostor = listen(&address.to_string());
    for name in gone {
        let _ = std::fs::remove_file(stand.options.pin_dir.join("links").join(name));
        assert!(!layer(stand.fence(), name).enforcing);
    }
    client.send("\n");
    client.line();
    client.finish();
    std::thread::sleep(ANSWER);
    impostor
}

fn hears_the_secret(impostor: &TcpListener) {
    let mut heard = [0; 6];
    accept(impostor).read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"secret");
}

/// An address of the agent, and one that is steered there.
const FAMILIES: [[&str; 2]; 2] = [["127.0.0.1", "198.51.100.7"], ["::1", "2001:db8::7"]];

#[test]
fn nobody_steps_between_hook_and_syn() {
    let mut stand = Stand::new();
    for family in FAMILIES {
        stand.renew();
        let impostor = stepped_into_the_gap(&mut stand, family, &[]);
        assert_quiet(&impostor);
        assert!(counted(&stand)["agent_down"] >= 1);
        // The same way, with nothing to steer it, it does reach whoever is there.
        let script = format!(
            "{DEFERRED}s, r = deferred('{}', {}); say(r, send(s))",
            family[0],
            port(&impostor)
        );
        assert_eq!(python_outside(&script), "ok sent");
        hears_the_secret(&impostor);
    }
}

/// Without the look at what leaves, what comes back is still looked at: only the agent answers.
#[test]
fn nobody_but_the_agent_answers() {
    let mut stand = Stand::new();
    for family in FAMILIES {
        let impostor = stepped_into_the_gap(&mut stand, family, &["egress"]);
        assert_quiet(&impostor);
        let closed = |event: &Event| matches!(event, Event::Closed { .. });
        events(stand.fence(), |events| events.iter().any(closed));
    }
    // Nobody looks at either.
    stand.listen();
    for family in FAMILIES {
        let impostor = stepped_into_the_gap(&mut stand, family, &["egress", "ingress"]);
        hears_the_secret(&impostor);
    }
}

/// The agent has no such key (TCP_MD5SIG): it drops what asks with one, which goes on asking.
const KEYED: &str = "
import struct
def keyed(s, ip):
    at = socket.inet_pton(family(ip), ip)
    at = struct.pack('=HH4s', family(ip), 0, at) if family(ip) == socket.AF_INET else struct.pack('=HHI16s', family(ip), 0, 0, at)
    s.setsockopt(socket.IPPROTO_TCP, 14, at.ljust(128, b'\\0') + struct.pack('=BBHI', 0, 0, 4, 0) + b'abcd'.ljust(80, b'\\0')) # TCP_MD5SIG
";

/// Meets the client's SYN on its way to the agent, or the client that asks in vain, and is taken for the agent.
const IMPOSTOR: &str = "
s = socket.socket(family(IP)); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((IP, PORT))
say('bound')
to, has_key, wait = map(int, sys.stdin.readline().split())
if has_key: keyed(s, IP)
s.setblocking(False); name(lambda: s.connect((IP, to)))
say('connecting')
s.settimeout(wait)
try: say(s.recv(64).decode())
except OSError: say('nothing')
";

/// By a key that the agent has not, its SYN is dropped.
const ASKS_IN_VAIN: &str = "
s = socket.socket(family(IP)); s.settimeout(5); keyed(s, IP); s.bind((IP, 0)); say(s.getsockname()[1], 1)
name(lambda: (s.connect((TARGET, 80)), s.sendall(b'secret'))); sys.stdin.readline()
";

/// On a port where the impostor's SYN was dropped.
const LISTENS_FIRST: &str = "
l = socket.create_server((IP, 0), family=family(IP)); port = l.getsockname()[1]; say(port, 0)
sys.stdin.readline(); l.close()
s = socket.socket(family(IP)); s.settimeout(5); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((IP, port))
name(lambda: (s.connect((TARGET, 80)), s.sendall(b'secret')))
";

/// Who bound the agent's port before it listened there, and does not listen, may not be taken for it either.
fn met_from_the_agents_port(
    stand: &mut Stand,
    [ip, target]: [&str; 2],
    client: &str,
    nobody_looks: bool,
) -> String {
    let agent = match ip {
        "::1" => &mut stand.agent6,
        _ => &mut stand.agent4,
    };
    let address = agent.local_addr().unwrap();
    *agent = Elsewhere::new(ip).listener; // The agent ends,
    let known = format!("IP, TARGET, PORT = '{ip}', '{target}', {}", address.port());
    let mut impostor = Running::start_outside(&format!("{KEYED}{known}{IMPOSTOR}"));
    assert_eq!(impostor.line(), "bound");
    *agent = listen(&address.to_string()); // and is there again.
    stand.admit();
    let mut client = Running::start(&stand.cgroup, &format!("{KEYED}{known}{client}"));
    let own = client.line();
    std::thread::sleep(ANSWER);
    let wait = if nobody_looks { 10 } else { 2 };
    impostor.send(&format!("{own} {wait}\n"));
    assert_eq!(impostor.line(), "connecting");
    std::thread::sleep(ANSWER);
    if nobody_looks {
        std::fs::remove_file(stand.options.pin_dir.join("links/ingress")).unwrap();
    }
    client.send("\n");
    impostor.line()
}

#[test]
fn nobody_meets_who_asks_the_agent() {
    let mut stand = Stand::new();
    for client in [ASKS_IN_VAIN, LISTENS_FIRST] {
        for family in FAMILIES {
            let heard = met_from_the_agents_port(&mut stand, family, client, false);
            assert_eq!(heard, "nothing", "{family:?}");
            let heard = met_from_the_agents_port(&mut stand, family, client, true);
            assert_eq!(heard, "secret", "{family:?}: nobody looks");
            assert!(!stand.fence().mend().is_empty());
        }
    }
}
