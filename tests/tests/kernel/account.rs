//! What the kernel counts.
use crate::refuse::{counted, events};
use crate::support::*;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use tollgate::kernel::Event;
use tollgate::kernel::namespaces::Network;

/// More than an IP and a TCP header with all their options.
const HEADERS: u64 = 120;

fn are_counted(stand: &Stand, ip: &str) {
    const SENT: usize = 300_000;
    const RECEIVED: usize = 70_000;
    let client = Running::start(
        &stand.cgroup,
        &format!(
            "s, r = tcp('{ip}', 443)
s.sendall(bytes({SENT})); s.shutdown(socket.SHUT_WR)
n = 0
while True:
    d = s.recv(65536)
    if not d: break
    n += len(d)
# tcp_info: what TCP itself sent, retransmissions too
say(r, n, int.from_bytes(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 208)[200:], sys.byteorder))
s.close()"
        ),
    );
    let mut accepted = stand.accept(stand.agent(ip));
    let mut body = Vec::new();
    accepted.read_to_end(&mut body).unwrap();
    assert_eq!(body.len(), SENT);
    accepted.write_all(&[0; RECEIVED]).unwrap();
    let live = stand.fence().flows().unwrap();
    assert!(live[0].counters.bytes_out >= SENT as u64, "{live:?}");
    drop(accepted);
    let said = client.finish();
    let (said, sent) = said.rsplit_once(' ').unwrap();
    assert_eq!(said, format!("ok {RECEIVED}"));
    let sent: u64 = sent.parse().unwrap();

    let events = events(stand.fence(), |events| !events.is_empty());
    let [
        Event::Closed {
            flow,
            opened,
            counters,
        },
    ] = events.as_slice()
    else {
        panic!("{events:?}")
    };
    let asked: std::net::IpAddr = ip.parse().unwrap();
    assert_eq!(flow.destination, (asked, 443).into());
    let earlier = live[0].opened.duration_since((*opened).try_into().unwrap());
    assert!(
        earlier.abs() < jiff::SignedDuration::from_millis(50),
        "{earlier}"
    );
    assert_eq!(&*flow.workload, stand.workload());
    let within = |bytes: u64, packets: u64, payload: u64| {
        let is_so = (payload..=payload + packets * HEADERS).contains(&bytes);
        assert!(is_so, "{bytes} in {packets} packets for {payload}");
    };
    within(counters.bytes_out, counters.packets_out, sent);
    // The agent's side may have sent a packet twice; TCP tells the client of the first only.
    assert!(counters.bytes_in >= RECEIVED as u64, "{counters:?}");
    assert!(counters.bytes_in <= 2 * RECEIVED as u64, "{counters:?}");

    let account = stand.account();
    assert_eq!(account.connections, 1);
    assert_eq!(account.counters, *counters, "the workload's only flow");
    assert_eq!(stand.fence().lost_events(), 0);
}

#[test]
fn bytes_and_packets_are_counted() {
    let mut stand = Stand::new();
    for ip in ["198.51.100.7", "2001:db8::7"] {
        stand.renew();
        are_counted(&stand, ip);
    }
}

/// Bound to an address that has no way to the agent: the hook steers, the kernel then fails. Was its end told?
fn tells_of_its_end(stand: &Stand, [own, ip]: [&str; 2]) -> bool {
    let script = format!(
        "s = socket.socket(family('{ip}'), socket.SOCK_STREAM)
if s.family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
else: s.setsockopt(socket.IPPROTO_IP, 15, 1) # IP_FREEBIND
s.bind(('{own}', 0))
say(name(lambda: s.connect(('{ip}', 443))))
sys.stdin.readline()
s.close()
say('closed')
sys.stdin.read()"
    );
    let mut client = Running::start(&stand.cgroup, &script);
    assert_ne!(client.line(), "ok");
    client.send("\n");
    assert_eq!(client.line(), "closed");
    assert!(stand.fence().flows().unwrap().is_empty());
    client.finish();
    let told = ends_told(stand);
    let asked: std::net::IpAddr = ip.parse().unwrap();
    assert!(told.len() <= 1, "{told:?}");
    told.contains(&(asked.to_canonical(), 443).into())
}

/// Where those connections led whose ends were told since this was last asked.
pub fn ends_told(stand: &Stand) -> Vec<SocketAddr> {
    // What is told after them.
    stand.run("name(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))");
    let is_last = |event: &Event| matches!(event, Event::Refused(r) if r.reason == "raw");
    let events = events(stand.fence(), |events| events.iter().any(is_last));
    let ends = events.iter().filter_map(|event| match event {
        Event::Closed { flow, .. } => Some(flow.destination),
        _ => None,
    });
    ends.collect()
}

#[test]
fn a_socket_that_never_connected_ends_too() {
    let stand = Stand::new();
    let ways = [
        ["::1", "::ffff:198.51.100.7"],
        ["::ffff:127.0.0.1", "2001:db8::7"],
        ["198.51.100.9", "198.51.100.7"],
    ];
    for way in ways {
        assert!(tells_of_its_end(&stand, way), "{way:?}");
    }
    std::fs::remove_file(stand.options.pin_dir.join("links/tcp_destroy_sock")).unwrap();
    for way in ways {
        eventually("nobody tells", || !tells_of_its_end(&stand, way));
    }
}

/// A connect that is put off until the first data (TCP_FASTOPEN_CONNECT) is steered like any other,
/// and one whose data never comes ends with its socket.
#[test]
fn a_deferred_connect_is_steered_and_ends() {
    let mut stand = Stand::new();
    let ways = ["127.0.0.1", "::1"].map(|ip| is_deferred(&stand, ip));
    stand.lift();
    for (server, script) in &ways {
        reaches(server, || stand.run(script));
    }
}

/// Returns where it would come to, and how.
fn is_deferred(stand: &Stand, ip: &str) -> (Elsewhere, String) {
    let server = Elsewhere::new(ip);
    let port = server.address.port();
    let script = format!(
        "
def deferred():
    s = socket.socket(family('{ip}'), socket.SOCK_STREAM)
    s.setsockopt(socket.IPPROTO_TCP, 30, 1) # TCP_FASTOPEN_CONNECT
    s.setsockopt(socket.IPPROTO_TCP, 34, 1) # TCP_FASTOPEN_NO_COOKIE
    s.connect(('{ip}', {port}))
    return s
never = deferred()
say(int.from_bytes(never.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1), 'little'))
never.close()
s = deferred(); s.sendall(b'early')
sys.stdin.read()"
    );
    let mut client = Running::start(&stand.cgroup, &script);
    assert_eq!(client.line(), "2", "SYN_SENT, with no SYN sent");
    let mut accepted = stand.accept(stand.agent(ip));
    let flow = stand.fence().flow_of(&accepted).expect("steered");
    assert_eq!(flow.destination, server.address);
    let mut early = [0; 5];
    accepted.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early");
    assert_eq!(
        stand.fence().flows().unwrap().len(),
        1,
        "the one that never sent is over"
    );
    client.finish();
    eventually("none is live", || stand.fence().flows().unwrap().is_empty());
    assert_quiet(&server.listener);
    (server, script)
}

/// A host may have every listener take data with the SYN: the agent's do not, since whose it is would not be known yet.
#[test]
fn data_with_the_syn_is_not_taken() {
    let _all = Setting::to("/proc/sys/net/ipv4/tcp_fastopen", "1543"); // Whether they ask for it, and without a cookie.
    let mut stand = Stand::new();
    let ways = ["127.0.0.1", "::1"].map(|ip| {
        let server = Elsewhere::new(ip);
        let script = format!(
            "s = socket.socket(family('{ip}')); s.settimeout(5)
say(name(lambda: s.sendto(b'early', socket.MSG_FASTOPEN, ('{ip}', {})))); s.close()",
            server.address.port()
        );
        assert_eq!(stand.run(&script), "ok");
        let mut accepted = stand.accept(stand.agent(ip));
        let flow = stand.fence().flow_of(&accepted).expect("steered");
        assert_eq!(&*flow.workload, stand.workload());
        let mut said = String::new();
        accepted.read_to_string(&mut said).unwrap();
        assert_eq!(said, "early");
        assert_quiet(&server.listener);
        (server, script)
    });
    assert!(counted(&stand).is_empty());
    stand.lift();
    for (server, script) in &ways {
        reaches(server, || stand.run(script));
    }
}

/// Against others' counts. In a network namespace of its own, everything that a workload sends and receives goes over that
/// namespace's loopback interface, and nothing else does: its count is of both ways. TCP has counts of each way.
fn are_counted_as_the_interface_does(stand: &Stand, ip: &str) {
    const SENT: usize = 20_000_000;
    const RECEIVED: usize = 5_000_000;
    let mut client = Running::start(
        &stand.cgroup,
        &format!(
            "import array, ctypes, fcntl, struct
if ctypes.CDLL(None).unshare(0x40000000) != 0: sys.exit('no namespace')
for offload in (0x1f, 0x24):  # TSO and GSO, or it counts as one what holds several.
    off = array.array('B', struct.pack('II', offload, 0))
    fcntl.ioctl(socket.socket(socket.AF_UNIX), 0x8946, struct.pack('16sP', b'lo', off.buffer_info()[0]))
def moved():
    line = [l for l in open('/proc/thread-self/net/dev') if l.strip().startswith('lo:')][0].split()
    return int(line[1]), int(line[2])
say('in'); sys.stdin.readline()
before = moved()
s, r = tcp('{ip}', 443); s.settimeout(60)
s.sendall(bytes({SENT}))
n = 0
while n < {RECEIVED}: n += len(s.recv(1 << 20))
time.sleep(0.3)
info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 208)
# tcpi_segs_out and tcpi_segs_in, tcpi_bytes_sent
say(*[now - then for now, then in zip(moved(), before)], *struct.unpack('II', info[136:144]), *struct.unpack('Q', info[200:]))
sys.stdin.read()"
        ),
    );
    assert_eq!(client.line(), "in");
    let network = Network::of(client.pid(), client.pid()).unwrap();
    let address = if ip.contains(':') {
        "[::1]:0"
    } else {
        "127.0.0.1:0"
    };
    let listener = network.within(|| Ok(listen(address))).unwrap();
    let ports = match address.starts_with('[') {
        true => (0, Some(port(&listener))),
        false => (port(&listener), None),
    };
    stand.fence().admit(&[&listener], ports.0, ports.1).unwrap();
    client.send("\n");
    let mut agent = stand.accept(&listener);
    let mut body = vec![0; SENT];
    agent.read_exact(&mut body).unwrap();
    agent.write_all(&body[..RECEIVED]).unwrap();
    let line = client.line();
    let said: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
    let [bytes, packets, out, into, sent] = said[..] else {
        panic!("{line}")
    };
    // Nothing has ended yet, and nothing moves.
    let counters = stand.account().counters;
    let close = |ours: u64, theirs: u64, what: &str| {
        let differs = ours.abs_diff(theirs) * 1000 > theirs;
        assert!(!differs, "{ip}: {what}: {ours}, and not {theirs}");
    };
    close(counters.packets_out, out, "packets out");
    close(counters.packets_in, into, "packets in");
    close(counters.packets_out + counters.packets_in, packets, "all");
    close(counters.bytes_out + counters.bytes_in, bytes, "all bytes");
    // With each packet go headers of IP and TCP, of a length that this connection agreed on but for its first.
    assert!(sent >= SENT as u64, "{sent}");
    let headers = if ip.contains(':') { 72 } else { 52 };
    close(counters.bytes_out, sent + out * headers, "bytes out");
    assert!(counters.bytes_in > RECEIVED as u64, "{counters:?}");
    drop(agent);
    client.finish();
}

#[test]
fn bytes_and_packets_are_those_of_the_interface() {
    let mut stand = Stand::new();
    for ip in ["198.51.100.7", "2001:db8::7"] {
        stand.renew();
        are_counted_as_the_interface_does(&stand, ip);
    }
}

/// Moves some bytes each way, in turn; returns what the kernel counted of it, out and in.
fn moves(stand: &Stand, client: &mut Running, agent: &mut TcpStream) -> [u64; 2] {
    let counted = || {
        let counters = stand.account().counters;
        [counters.bytes_out, counters.bytes_in]
    };
    let before = counted();
    client.send("\n");
    let mut body = [0; 10_000];
    agent.read_exact(&mut body).unwrap();
    agent.write_all(&body).unwrap();
    assert_eq!(client.line(), "moved");
    // What says of the last bytes that they came leaves a moment later.
    std::thread::sleep(harness::at_most(Duration::from_millis(50)));
    let after = counted();
    [0, 1].map(|way: usize| after[way] - before[way])
}

/// Each way is counted by a program of its own; where that is gone, the bytes go on, and its count stands still.
fn stand_still(stand: &Stand, ip: &str) {
    let script = format!(
        "s, r = tcp('{ip}', 443); say(r)
for line in sys.stdin:
    s.sendall(bytes(10000)); n = 0
    while n < 10000: n += len(s.recv(10000 - n))
    say('moved')"
    );
    let mut client = Running::start(&stand.cgroup, &script);
    assert_eq!(client.line(), "ok");
    let mut agent = stand.accept(stand.agent(ip));
    let [out, into] = moves(stand, &mut client, &mut agent);
    assert!(out >= 10_000 && into >= 10_000, "{ip}: {out}, {into}");
    let mut without = |program: &str, are_counted: [bool; 2]| {
        std::fs::remove_file(stand.options.pin_dir.join("links").join(program)).unwrap();
        eventually("only what has its program is counted", || {
            let moved = moves(stand, &mut client, &mut agent);
            moved.map(|bytes| bytes >= 10_000) == are_counted
                && moved.map(|bytes| bytes > 0) == are_counted
        });
    };
    without("egress", [false, true]);
    without("ingress", [false, false]);
    client.finish();
}

#[test]
fn nothing_is_counted_without_its_program() {
    let mut stand = Stand::new();
    for ip in ["198.51.100.7", "2001:db8::7"] {
        stand.renew();
        stand.fence().mend();
        stand_still(&stand, ip);
    }
}

/// More refusals than the ring holds, while nobody reads it: each is counted, and each was told or is counted as lost.
#[test]
fn events_that_do_not_fit_are_counted() {
    const TRIES: u64 = 20_000;
    let mut stand = Stand::new();
    let script = |tries: u64| {
        format!(
            "both = (socket.AF_INET, 1), (socket.AF_INET6, 58)
def make(family, icmp): socket.socket(family, socket.SOCK_RAW, icmp).close()
say({{name(lambda: make(*both[n % 2])) for n in range({tries})}})"
        )
    };
    assert_eq!(stand.run(&script(TRIES)), "{'EPERM'}");
    assert_eq!(python_outside(&script(2)), "{'ok'}");
    assert_eq!(counted(&stand)["raw"], TRIES);
    let lost = stand.fence().lost_events();
    assert!(lost > 0 && lost < TRIES, "{lost}");
    let told = events(stand.fence(), |events| events.len() as u64 >= TRIES - lost);
    assert_eq!(told.len() as u64 + lost, TRIES);
    assert_eq!(
        stand.fence().lost_events(),
        lost,
        "nothing is lost while there is room"
    );
    stand.lift();
    let is_made = || stand.run(&script(2)) == "{'ok'}";
    eventually("it is the fence that refuses them", is_made);
}
