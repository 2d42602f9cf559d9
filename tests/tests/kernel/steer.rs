//! Governed connections reach the agent, with their owner and destination; others do not.
use crate::owner::start_ticks;
use crate::support::*;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Connects to `ip`, tells what it sees, and waits.
fn connecting(ip: &str, port: u16) -> String {
    format!(
        "s, result = tcp('{ip}', {port})
say(result, s.getpeername()[0], s.getpeername()[1])
sys.stdin.read()"
    )
}

fn is_steered(stand: &Stand, ip: &str) {
    let mut client = Running::start(&stand.cgroup, &connecting(ip, 443));
    let accepted = stand.accept(stand.agent(ip));
    assert_eq!(
        client.line(),
        format!("ok {ip} 443"),
        "the client sees the address it asked for"
    );

    let flow = stand.fence().flow_of(&accepted).expect("steered");
    assert_eq!(flow.destination.port(), 443);
    assert_eq!(
        flow.destination.ip(),
        ip.parse::<std::net::IpAddr>().unwrap().to_canonical()
    );
    assert_eq!(&*flow.workload, stand.workload());
    let process = &flow.process;
    assert_eq!(process.pid, client.pid());
    assert_eq!(process.uid, rustix::process::getuid().as_raw());
    assert_eq!(process.cgroup, format!("/{}", stand.workload()));
    assert_eq!(process.unit, None);
    let exe = Path::new("/proc")
        .join(client.pid().to_string())
        .join("exe");
    let found = exe.metadata().unwrap();
    assert_eq!(
        (process.exe_dev, process.exe_inode),
        (found.dev(), found.ino())
    );
    assert_eq!(Path::new(&process.exe), exe.read_link().unwrap());
    assert_eq!(
        process.start / 10_000_000,
        start_ticks(client.pid()),
        "in hundredths of a second"
    );

    let live = stand.fence().flows().unwrap();
    assert_eq!(live.len(), 1);
    assert_eq!(
        (live[0].cookie, live[0].destination),
        (flow.cookie, flow.destination)
    );
    let age = jiff::Timestamp::now().duration_since(live[0].opened).abs();
    assert!(
        age < jiff::SignedDuration::from_secs(10),
        "opened {age} ago"
    );

    client.finish();
    eventually("the flow is no longer live", || {
        stand.fence().flows().unwrap().is_empty()
    });
    assert!(
        stand.fence().flow_of(&accepted).is_some(),
        "still known while the agent's side is open"
    );
}

fn connections_are_steered(stand: &Stand) {
    for ip in ["198.51.100.7", "2001:db8::7", "::ffff:198.51.100.7"] {
        is_steered(stand, ip);
    }
}

#[test]
fn nothing_is_steered_after_lift() {
    let mut stand = Stand::new();
    let servers = servers();
    for (server, script) in &servers {
        assert_eq!(stand.run(script), "ok");
        stand.accept(stand.agent(&server.address.ip().to_string()));
        assert_quiet(&server.listener);
    }
    stand.lift();
    for (server, script) in &servers {
        assert_eq!(stand.run(script), "ok");
        accept(&server.listener);
    }
    assert_quiet(&stand.agent4);
    assert_quiet(&stand.agent6);
}

fn a_released_cgroup_is_not_steered(stand: &Stand) {
    stand.fence().release(stand.cgroup.id()).unwrap();
    stand
        .fence()
        .release(stand.cgroup.id())
        .expect("twice is as good");
    let governed = stand.fence().governed();
    assert!(governed.iter().all(|of| of.workload != stand.workload()));
    for (server, script) in servers() {
        assert_eq!(stand.run(&script), "ok");
        accept(&server.listener);
    }
}

#[test]
fn the_wildcard_address_is_steered() {
    let mut stand = Stand::new();
    let ways = [("0.0.0.0", "127.0.0.1"), ("::", "::1")].map(|(any, ip)| {
        let elsewhere = Elsewhere::new(ip);
        let port = elsewhere.address.port();
        let script = format!("say(tcp('{any}', {port})[1])");
        assert_eq!(stand.run(&script), "ok");
        let accepted = stand.accept(stand.agent(ip));
        let flow = stand.fence().flow_of(&accepted).unwrap();
        let asked: std::net::IpAddr = any.parse().unwrap();
        assert_eq!(flow.destination, (asked, port).into());
        assert_quiet(&elsewhere.listener);
        (elsewhere, script)
    });
    stand.lift();
    for (elsewhere, script) in &ways {
        reaches(elsewhere, || stand.run(script));
    }
}

#[test]
fn nested_cgroups_belong_to_the_deepest_governed() {
    let mut stand = Stand::new();
    let child = stand.cgroup.child("child");
    let grandchild = child.child("x.service");
    let servers = servers();
    let flow = |(server, script): &(Elsewhere, String)| {
        assert_eq!(python(&grandchild, script), "ok");
        let accepted = stand.accept(stand.agent(&server.address.ip().to_string()));
        assert_quiet(&server.listener);
        stand.fence().flow_of(&accepted).unwrap()
    };
    for flow in servers.each_ref().map(flow) {
        assert_eq!(&*flow.workload, stand.workload());
        assert_eq!(
            flow.process.cgroup,
            format!("/{}/child/x.service", stand.workload())
        );
        assert_eq!(flow.process.unit.as_deref(), Some("x.service"));
    }
    stand.fence().govern(&child.name, "inner").unwrap();
    for flow in servers.each_ref().map(flow) {
        assert_eq!(&*flow.workload, "inner");
    }
    stand.lift();
    for (server, script) in &servers {
        reaches(server, || python(&grandchild, script));
    }
    drop(grandchild);
}

#[test]
fn a_socket_made_outside_is_steered_when_connected_inside() {
    let mut stand = Stand::new();
    // Of MPTCP too, which nobody can make inside.
    let ways = [
        ("127.0.0.1", 0),
        ("::1", 0),
        ("127.0.0.1", 262),
        ("::1", 262),
    ];
    let ways = ways.map(|(ip, protocol)| {
        let server = Elsewhere::new(ip);
        let script = format!(
            "s = socket.socket(family('{ip}'), socket.SOCK_STREAM, {protocol})
enter({:?})
say(name(lambda: s.connect(('{ip}', {}))))",
            stand.cgroup.path().to_str().unwrap(),
            server.address.port()
        );
        assert_eq!(python_outside(&script), "ok");
        let accepted = stand.accept(stand.agent(ip));
        let flow = stand.fence().flow_of(&accepted).unwrap();
        assert_eq!(&*flow.workload, stand.workload());
        assert_quiet(&server.listener);
        (server, script)
    });
    stand.lift();
    for (server, script) in &ways {
        reaches(server, || python_outside(script));
    }
}

fn ungoverned_processes_are_unaffected(stand: &Stand) {
    let other = Cgroup::new(stand.fence().cgroup_root(), unique());
    for ip in ["127.0.0.1", "::1"] {
        let elsewhere = Elsewhere::new(ip);
        let script = format!(
            "s, r = tcp('{ip}', {port}); say(r, s.getpeername()[1])
u = socket.socket(family('{ip}'), socket.SOCK_DGRAM)
say(name(lambda: u.sendto(b'x', ('{ip}', 9))), name(lambda: u.connect(('{ip}', 9))))
say(name(lambda: socket.socket(family('{ip}'), socket.SOCK_RAW, socket.IPPROTO_TCP)))",
            port = elsewhere.address.port()
        );
        let expected = format!("ok {}\nok ok\nok", elsewhere.address.port());
        assert_eq!(python(&other, &script), expected);
        accept(&elsewhere.listener);
    }
    // Of who is governed under this name nobody connected.
    let accounts = stand.fence().accounts();
    let mut own = accounts.iter().filter(|of| of.workload == stand.workload());
    assert!(own.all(|account| account.connections == 0));
}

fn a_direct_connection_has_no_flow(stand: &Stand) {
    for listener in [&stand.agent4, &stand.agent6] {
        let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(stand.fence().flow_of(&stand.accept(listener)).is_none());
    }
}

/// Whoever has a connection's end after its client is somebody else, also where the agent has not asked yet; and whoever
/// has closed it by then was there.
fn an_end_that_changes_hands_is_not_taken_for_anothers(stand: &Stand) {
    for (listener, own, ip) in [
        (&stand.agent4, "127.0.0.1", "198.51.100.7"),
        (&stand.agent6, "::1", "2001:db8::7"),
    ] {
        let connect = |to: &str, port: u16, from: &str, lingers: bool| {
            format!(
                "import struct
s = socket.socket(family('{own}'), socket.SOCK_STREAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', {}, 0))
s.bind(('{own}', {from})); s.connect(('{to}', {port})); s.sendall(b'mine')
say(s.getsockname()[1])",
                u8::from(!lingers)
            )
        };
        let of = |accepted| stand.fence().flow_of(accepted);
        let at = listener.local_addr().unwrap().port();
        let end = stand.run(&connect(ip, 443, "0", false)); // Reset as it exits.
        let direct = connect(own, at, &end, false) + "\nsys.stdin.read()";
        let mut direct = Running::start_outside(&direct);
        assert_eq!(direct.line(), end);
        let (reset, theirs) = (stand.accept(listener), stand.accept(listener));
        assert_eq!(theirs.peer_addr().unwrap().port().to_string(), end);
        assert!(of(&reset).is_none() && of(&theirs).is_none());
        direct.finish();

        let end = stand.run(&connect(ip, 443, "0", false));
        let next = connect(ip, 445, &end, false) + "\nsys.stdin.read()";
        let mut next = Running::start(&stand.cgroup, &next);
        assert_eq!(next.line(), end);
        let (reset, theirs) = (stand.accept(listener), stand.accept(listener));
        assert!(of(&reset).is_none(), "not the next one's");
        assert_eq!(of(&theirs).expect("its owner").destination.port(), 445);
        next.finish();

        // Closed and never asked for: what is kept of it is not for who has its end next.
        let end = stand.run(&connect(ip, 446, "0", true));
        drop(stand.accept(listener)); // What it has not read resets it: the end is free.
        let direct = connect(own, at, &end, false) + "\nsys.stdin.read()";
        let mut direct = Running::start_outside(&direct);
        assert_eq!(direct.line(), end);
        let theirs = stand.accept(listener);
        assert!(of(&theirs).is_none(), "nobody's");
        direct.finish();

        stand.run(&connect(ip, 444, "0", true));
        let closed = stand.accept(listener);
        assert_eq!(
            of(&closed).expect("its owner is known").destination.port(),
            444
        );
    }
}

/// With SYN cookies always on the kernel keeps no SYN.
fn who_is_connected_is_known_by_both_ends(stand: &Stand) {
    let _always = Setting::to("/proc/sys/net/ipv4/tcp_syncookies", "2");
    for (listener, ip) in [
        (&stand.agent4, "198.51.100.7"),
        (&stand.agent6, "2001:db8::7"),
    ] {
        let script = format!("s, r = tcp('{ip}', 443); say(r); sys.stdin.read()");
        let mut client = Running::start(&stand.cgroup, &script);
        assert_eq!(client.line(), "ok");
        let accepted = stand.accept(listener);
        let flow = stand.fence().flow_of(&accepted).expect("known");
        assert_eq!(flow.process.pid, client.pid());
        client.finish();
    }
}

/// Where the listener has no room the SYN is sent again a second later, with another clock.
#[test]
fn who_had_to_ask_twice_is_known() {
    let mut stand = Stand::new();
    let ways = ["127.0.0.1", "::1"].map(|ip| {
        let server = Elsewhere::new(ip);
        let port = server.address.port();
        let script = format!("s, r = tcp('{ip}', {port}); say(r); sys.stdin.read()");
        let agent = match ip.contains(':') {
            true => &mut stand.agent6,
            false => &mut stand.agent4,
        };
        // Room for one (`listen(2)`), which is taken.
        socket2::SockRef::from(&*agent).listen(0).unwrap();
        let first = std::net::TcpStream::connect(agent.local_addr().unwrap()).unwrap();
        let mut client = Running::start(&stand.cgroup, &script);
        eventually("it has asked", || {
            !stand.fence().flows().unwrap().is_empty()
        });
        std::thread::sleep(std::time::Duration::from_millis(300));
        let listener = stand.agent(ip);
        drop((stand.accept(listener), first));
        assert_eq!(client.line(), "ok");
        assert_quiet(&server.listener);
        let flow = stand.fence().flow_of(&stand.accept(listener)).unwrap();
        assert_eq!(flow.process.pid, client.pid());
        client.finish();
        eventually("it is over", || stand.fence().flows().unwrap().is_empty());
        (server, script)
    });
    stand.lift();
    for (server, script) in &ways {
        reaches(server, || stand.run(script));
    }
}

fn a_socket_that_connects_again_is_two_flows(stand: &Stand) {
    for [once, again] in [
        ["198.51.100.1", "198.51.100.2"],
        ["2001:db8::1", "2001:db8::2"],
    ] {
        connects_again(stand, once, again);
    }
}

fn connects_again(stand: &Stand, once: &str, again: &str) {
    let script = format!(
        "s, r = tcp('{once}', 1001); say(r)
sys.stdin.readline()
import ctypes
# AF_UNSPEC: back to unconnected.
say(ctypes.CDLL(None).connect(s.fileno(), bytes(28), 28))
say(name(lambda: s.connect(('{again}', 1002))), s.getpeername()[0])
sys.stdin.read()"
    );
    let mut client = Running::start(&stand.cgroup, &script);
    assert_eq!(client.line(), "ok");
    let flow = |accepted| {
        let flow = stand.fence().flow_of(accepted)?;
        Some((flow.destination.ip().to_string(), flow.destination.port()))
    };
    let first = stand.accept(stand.agent(once));
    assert_eq!(flow(&first), Some((once.to_owned(), 1001)));
    client.send("\n");
    assert_eq!(client.line(), "0");
    assert_eq!(client.line(), format!("ok {again}"));
    let second = stand.accept(stand.agent(again));
    assert_eq!(flow(&first), None, "reset, on both sides");
    assert_eq!(flow(&second), Some((again.to_owned(), 1002)));
    assert_eq!(stand.fence().flows().unwrap().len(), 1);
    client.finish();
    eventually("none is live", || stand.fence().flows().unwrap().is_empty());
}

/// Nobody of the agent's listens in another network namespace, whatever port an impostor takes there.
#[test]
fn another_network_namespace_has_no_agent() {
    let mut stand = Stand::new();
    let script = format!(
        "import ctypes, fcntl, struct
assert ctypes.CDLL(None).unshare(0x40000000) == 0
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack('16sh', b'lo', 1)) # lo up
all = [(ip, socket.create_server((ip, port), family=family(ip))) for ip, port in (('127.0.0.1', {}), ('::1', {}))]
say(tcp('198.51.100.7', 80)[1], tcp('2001:db8::7', 80)[1])
say(*[tcp(ip, s.getsockname()[1])[1] for ip, s in all])
say(*[tcp(ip, 80)[1] for ip, s in all])",
        port(&stand.agent4),
        port(&stand.agent6)
    );
    let refused = "ECONNREFUSED ECONNREFUSED";
    assert_eq!(stand.run(&script), [refused; 3].join("\n"));
    assert_quiet(&stand.agent4);
    assert_quiet(&stand.agent6);
    stand.lift();
    // Nothing leads out of there, and who listens in it is heard.
    let free = format!("ENETUNREACH ENETUNREACH\nok ok\n{refused}");
    assert_eq!(stand.run(&script), free);
}

/// Attaches to the nested cgroup programs that lead every connection to an address of theirs (bpf(2); the kernel's
/// `bpf_sock_addr`).
const LEADS_ASTRAY: &str = "
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, *fields):
    attributes = b''.join(fields).ljust(120, b'\\0')
    r = libc.syscall(321, command, ctypes.create_string_buffer(attributes, 120), 120)
    if r < 0: raise OSError(ctypes.get_errno(), 'bpf')
    return r
def astray(hook, ip, port):
    code = [struct.pack('=BBhI', 0xb7, 2, 0, socket.htons(port)), struct.pack('=BBhI', 0x63, 0x21, 24, 0)]
    packed = socket.inet_pton(family(ip), ip)
    for n in range(0, len(packed), 4):
        at = (4 if len(packed) == 4 else 8) + n
        code += [struct.pack('=BB', 0xb7, 2) + b'\\0\\0' + packed[n:n + 4], struct.pack('=BBhI', 0x63, 0x21, at, 0)]
    code = b''.join(code + [struct.pack('=BBhI', 0xb7, 0, 0, 1), struct.pack('=BBhI', 0x95, 0, 0, 0)])
    code = ctypes.create_string_buffer(code); license = ctypes.create_string_buffer(b'GPL')
    insns = (len(code) - 1) // 8
    program = bpf(5, struct.pack('=IIQQIIQII16sII', 18, insns, ctypes.addressof(code), ctypes.addressof(license), 0, 0, 0, 0, 0, b'astray', 0, hook))
    cgroup = os.open(NESTED, os.O_RDONLY)
    bpf(8, struct.pack('=IIII', cgroup, program, hook, 2)) # BPF_F_ALLOW_MULTI
";

/// A program of somebody's in a cgroup within runs before those of the fence: what it makes of an address is what is
/// steered, and what policy is asked about.
#[test]
fn a_program_of_a_cgroup_within_decides_nothing() {
    let mut stand = Stand::new();
    let nested = stand.cgroup.child("nested");
    let servers = servers();
    let [v4, v6] = [0, 1].map(|n: usize| servers[n].0.address.port());
    let attach = format!(
        "NESTED = {:?}{LEADS_ASTRAY}astray(10, '127.0.0.1', {v4}); astray(11, '::1', {v6})",
        nested.path()
    );
    python_outside(&attach);
    let connect = "say(tcp('198.51.100.7', 80)[1], tcp('2001:db8::7', 80)[1])";
    assert_eq!(python(&nested, connect), "ok ok");
    for (server, _) in &servers {
        let accepted = stand.accept(stand.agent(&server.address.ip().to_string()));
        let flow = stand.fence().flow_of(&accepted).unwrap();
        assert_eq!(flow.destination, server.address);
        assert_quiet(&server.listener);
    }
    stand.lift();
    assert_eq!(python(&nested, connect), "ok ok");
    for (server, _) in &servers {
        accept(&server.listener);
    }
}

#[test]
fn each_connection_goes_where_it_should() {
    under_one_fence(&[
        connections_are_steered,
        a_released_cgroup_is_not_steered,
        ungoverned_processes_are_unaffected,
        a_direct_connection_has_no_flow,
        an_end_that_changes_hands_is_not_taken_for_anothers,
        who_is_connected_is_known_by_both_ends,
        a_socket_that_connects_again_is_two_flows,
    ]);
}
