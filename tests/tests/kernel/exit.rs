//! What leaves nevertheless: datagrams of connected sockets, and packets that no hook steered.
use crate::refuse::{counted, events};
use crate::support::*;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::time::Duration;
use tollgate::kernel::{Event, Refusal};

/// Somebody else's, who should hear nothing.
pub fn receiver(ip: &str) -> UdpSocket {
    let receiver = UdpSocket::bind((ip, 0)).unwrap();
    receiver.set_nonblocking(true).unwrap();
    receiver
}

pub fn heard(receiver: &UdpSocket) -> usize {
    std::thread::sleep(Duration::from_millis(20));
    std::iter::from_fn(|| receiver.recv(&mut [0; 64]).ok()).count()
}

pub fn at(receiver: &UdpSocket) -> String {
    let address = receiver.local_addr().unwrap();
    format!("('{}', {})", address.ip(), address.port())
}

/// The refusals told, once all are that will be: `last` comes after them. Not those of the name service that the C
/// library asks for.
pub fn told(stand: &Stand) -> Vec<Refusal> {
    stand.run("name(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))");
    let is_last = |event: &Event| matches!(event, Event::Refused(r) if r.reason == "raw");
    let events = events(stand.fence(), |events| events.iter().any(is_last));
    let refusals = events.into_iter().filter_map(|event| match event {
        Event::Refused(refusal) if !["raw", "unix"].contains(&refusal.reason) => Some(refusal),
        _ => None,
    });
    refusals.collect()
}

pub const DATAGRAM: &str = "
import array
def datagram(ip): return socket.socket(family(ip), socket.SOCK_DGRAM)
UNSPEC = array.array('H', [0, 0, 0, 0, 0, 0, 0, 0]).tobytes()
def disconnect(s):
    import ctypes
    assert ctypes.CDLL(None).connect(s.fileno(), UNSPEC, len(UNSPEC)) == 0
";

#[test]
fn a_probe_that_sends_nothing_is_no_refusal() {
    let stand = Stand::new();
    let script = format!(
        "{DATAGRAM}
say(len(socket.getaddrinfo(None, 443, type=socket.SOCK_STREAM)))
for ip in '127.0.0.9', '::1', '::ffff:127.0.0.9':
    s = datagram(ip); say(name(lambda: s.connect((ip, 443))), s.getsockname()[0], *s.getpeername()[:2])"
    );
    assert_eq!(
        stand.run(&script),
        "2\nok 127.0.0.1 127.0.0.9 443\nok ::1 ::1 443\nok ::ffff:127.0.0.1 ::ffff:127.0.0.9 443"
    );
    assert!(told(&stand).is_empty());
    let mut counted = counted(&stand);
    counted.remove("unix");
    assert_eq!(counted, BTreeMap::from([("raw".to_owned(), 1)]));
}

/// Sends to `dialled` over a connected socket, in every way that there is.
fn sends_connected(dialled: &str, port: u16) -> String {
    format!(
        "{DATAGRAM}
s = datagram('{dialled}'); s.connect(('{dialled}', {port}))
plain = [name(lambda: s.send(b'x')) for n in range(3)]
gso = name(lambda: s.sendmsg([b'x' * 3000], [(socket.IPPROTO_UDP, 103, (1000).to_bytes(2, 'little'))]))
more = name(lambda: (s.send(b'x', socket.MSG_MORE), s.send(b'y')))
say(os.getpid(), *plain, gso, more)"
    )
}

fn connected_datagrams_do_not_leave(stand: &Stand, receiver: &UdpSocket, script: &str) {
    let said = stand.run(script);
    let (pid, said) = said.split_once(' ').unwrap();
    assert_eq!(said, "EPERM EPERM EPERM EPERM EPERM");
    assert_eq!(heard(receiver), 0, "no packet left");
    assert_eq!(counted(stand)["udp"], 5, "all are counted");
    let told = told(stand);
    let [refusal] = told.as_slice() else {
        panic!("one is told: {told:?}")
    };
    assert_eq!((refusal.reason, &*refusal.protocol), ("udp", "udp"));
    assert_eq!(refusal.destination, Some(receiver.local_addr().unwrap()));
    assert_eq!(refusal.process.pid.to_string(), pid);
    assert!(refusal.process.exe.contains("python3"));
    assert_eq!(&*refusal.workload, stand.workload());
    assert!(refusal.time.elapsed().unwrap() < PATIENCE);
}

#[test]
fn datagrams_of_connected_sockets_do_not_leave() {
    let ways = [
        ("127.0.0.9", "127.0.0.9"),
        ("::1", "::1"),
        ("127.0.0.9", "::ffff:127.0.0.9"),
    ];
    let ways = ways.map(|(ip, dialled)| {
        let receiver = receiver(ip);
        let script = sends_connected(dialled, receiver.local_addr().unwrap().port());
        (receiver, script)
    });
    let mut stand = Stand::new();
    for (receiver, script) in &ways {
        stand.renew();
        connected_datagrams_do_not_leave(&stand, receiver, script);
    }
    stand.lift();
    for (receiver, script) in &ways {
        assert!(stand.run(script).ends_with("ok ok ok ok ok"));
        assert!(heard(receiver) >= 5, "it is the fence that keeps them");
    }
}

#[test]
fn a_socket_that_asks_for_names_again_may_send() {
    let mut stand = Stand::new();
    let ways = [("127.0.0.9", "127.77.7.9"), ("::1", "::1")].map(|(ip, resolver)| {
        stand.renew();
        asks_for_names_again(&stand, ip, resolver)
    });
    stand.lift();
    for (peers, script) in &ways {
        eventually("it is the fence that keeps them", || {
            let said = stand.run(script);
            let heard = peers.each_ref().map(heard);
            said == "ok ok ok ok ok\nEDESTADDRREQ ok ok\nok" && heard == [3, 1, 4]
        });
    }
}

/// Returns whom it sends to, the resolver last, and how.
fn asks_for_names_again(stand: &Stand, ip: &str, resolver_ip: &str) -> ([UdpSocket; 3], String) {
    let resolver = UdpSocket::bind((resolver_ip, 53)).unwrap();
    resolver.set_nonblocking(true).unwrap();
    let (first, second) = (receiver(ip), receiver(ip));
    let script = format!(
        "{DATAGRAM}
resolver = ('{resolver_ip}', 53)
s = datagram('{ip}')
ids = iter(range(256))
def send(*to):
    query = bytes([next(ids), 0])
    return name(lambda: s.sendto(query, *to) if to else s.send(query))
def to(peer): s.connect(peer); return send()
say(to({first}), to(resolver), to({first}), to({second}), to(resolver))
s.connect({first}); disconnect(s)
say(send(), send(resolver), send({first}))
s.connect(resolver)
tos = (socket.IPPROTO_IP, socket.IP_TOS) if s.family == socket.AF_INET else (socket.IPPROTO_IPV6, 67)
say(name(lambda: s.sendmsg([b'yy'], [(*tos, (16).to_bytes(4, 'little'))])))",
        first = at(&first),
        second = at(&second),
    );
    assert_eq!(
        stand.run(&script),
        "EPERM ok EPERM EPERM ok\nEDESTADDRREQ ok EPERM\nok"
    );
    assert_eq!((heard(&first), heard(&second)), (0, 0));
    let asked = heard(&stand.dns4) + heard(&stand.dns6);
    assert_eq!((heard(&resolver), asked), (0, 4));
    let told: Vec<_> = told(stand)
        .iter()
        .map(|refusal| refusal.destination.unwrap().port())
        .collect();
    // Connected, told once for each that follows another; sent with a destination, told each time.
    let [to_first, to_second] = [&first, &second].map(|one| one.local_addr().unwrap().port());
    assert_eq!(told, [to_first, to_second, to_first]);
    assert_eq!(counted(stand)["udp"], 4);
    ([first, second, resolver], script)
}

/// The socket is not the cgroup's; it was connected there, and that holds until somebody ungoverned
/// connects it.
#[test]
fn a_socket_made_outside_is_held_after_it_was_connected_inside() {
    let mut stand = Stand::new();
    let ways = ["127.0.0.9", "::1"].map(|ip| {
        stand.renew();
        is_held_after_it_was_connected_inside(&stand, ip)
    });
    stand.lift();
    for (receiver, script) in &ways {
        eventually("it is the fence that holds it", || {
            let said = python_outside(script);
            said == "ok\nok ok\nok\nok\nok\nok" && heard(receiver) == 7
        });
    }
}

/// Returns whom it sends to, and how.
fn is_held_after_it_was_connected_inside(stand: &Stand, ip: &str) -> (UdpSocket, String) {
    let receiver = receiver(ip);
    let outside = stand.cgroup.root.to_str().unwrap();
    let script = format!(
        "{DATAGRAM}
s = datagram('{ip}'); free = datagram('{ip}'); free.connect({to})
(mine, other) = (os.pipe(), os.pipe())
if os.fork() == 0:
    os.read(mine[0], 1); s.connect({to}); say(name(lambda: s.send(b'y')))
    os.write(other[1], b'.'); os._exit(0)
enter('{inside}')
s.connect({to}); say(name(lambda: s.send(b'x')))
enter('{outside}')
say(name(lambda: s.send(b'x')), name(lambda: free.send(b'f')))
os.write(mine[1], b'.'); os.read(other[0], 1)
enter('{inside}')
s.connect({to}); say(name(lambda: s.send(b'z')))
for line in range(2): sys.stdin.readline(); say(name(lambda: s.send(b'z')))",
        to = at(&receiver),
        inside = stand.cgroup.path().to_str().unwrap(),
    );
    let mut client = Running::start_outside(&script);
    assert_eq!(client.line(), "EPERM");
    assert_eq!(client.line(), "EPERM ok");
    assert_eq!(client.line(), "ok");
    assert_eq!(client.line(), "EPERM");
    assert_eq!(heard(&receiver), 2);
    assert_eq!(counted(stand)["udp"], 3);
    stand.fence().release(stand.cgroup.id()).unwrap();
    client.send("\n");
    assert_eq!(client.line(), "EPERM", "its workload is there still");
    let workload = stand.workload();
    stand
        .fence()
        .forget_workloads(|name| name != workload)
        .unwrap();
    // It is connected to nowhere still: it has to be connected anew, by somebody who is not governed.
    assert_eq!(client.finish(), "ok", "whom nobody governs may send");
    assert_eq!(heard(&receiver), 0);
    stand.fence().govern(&stand.cgroup.name, workload).unwrap();
    let held = "EPERM\nEPERM ok\nok\nEPERM\nEPERM\nEPERM";
    assert_eq!(python_outside(&script), held, "governed again");
    assert_eq!(heard(&receiver), 2);
    (receiver, script)
}

/// Whoever connected it can leave the cgroup, and remove it.
#[test]
fn a_socket_that_was_connected_inside_is_held_when_the_cgroup_is_gone() {
    let mut stand = Stand::new();
    let outside = stand.cgroup.root.clone();
    let mut ways: Vec<(UdpSocket, Running)> = Vec::new();
    for ip in ["127.0.0.9", "::1"] {
        stand.renew();
        // Where what is held is connected to.
        let nowhere = UdpSocket::bind((ip, 1)).unwrap();
        nowhere.set_nonblocking(true).unwrap();
        let mut client = Running::start_outside(&format!(
            "{DATAGRAM}
s = datagram('{ip}'); enter({inside:?}); s.connect(('{ip}', 443)); enter({outside:?}); os.rmdir({inside:?})
say('gone')
for line in sys.stdin: say(name(lambda: s.send(b'x')))",
            inside = stand.cgroup.path(),
        ));
        assert_eq!(client.line(), "gone");
        client.send("\n");
        assert_eq!(client.line(), "EPERM", "{ip}");
        assert_eq!(heard(&nowhere), 0, "{ip}");
        assert_eq!(counted(&stand)["udp"], 1, "{ip}: its workload's");
        ways.push((nowhere, client));
    }
    stand.lift();
    for (nowhere, client) in &mut ways {
        eventually("it is the fence that keeps it", || {
            client.send("\n");
            client.line() == "ok" && heard(nowhere) == 1
        });
    }
}

/// Everything that the cgroup had open when it was governed, but for what others opened to ports that it may serve.
#[test]
fn sockets_from_before_governance_send_nothing() {
    let mut stand = Stand::new();
    stand.fence().release(stand.cgroup.id()).unwrap();
    let datagrams = [receiver("127.0.0.9"), receiver("::1")];
    let streams = [Elsewhere::new("127.0.0.1"), Elsewhere::new("::1")];
    let script = format!(
        "{DATAGRAM}
raw = [socket.socket(family(ip), socket.SOCK_RAW, 253) for ip in ('127.0.0.9', '::1')]
raw[0].connect(('127.0.0.9', 0)); raw[1].connect(('::1', 0))
udp = [datagram(ip) for ip in ('127.0.0.9', '::1')]
udp[0].connect({}); udp[1].connect({})
tcp4, r4 = tcp('127.0.0.1', {}); tcp6, r6 = tcp('::1', {})
kept = socket.create_server(('127.0.0.1', 0)); gone = socket.create_server(('::1', 0), family=socket.AF_INET6)
say(r4, r6, kept.getsockname()[1], gone.getsockname()[1])
inbound = [kept.accept()[0], gone.accept()[0]]
say('go')
sys.stdin.readline()
for s in raw + udp: say(name(lambda: s.send(b'x')))
for s in (tcp4, tcp6): s.send(b'x')
for s in inbound: s.send(b'x')
late = [kept.accept()[0], gone.accept()[0]]
kept.close(); gone.close()
for s in late + inbound: s.send(b'y')
for line in sys.stdin:
    say(*[name(lambda: s.send(b'z')) for s in raw + udp])
    for s in (tcp4, tcp6): s.send(b'z')",
        at(&datagrams[0]),
        at(&datagrams[1]),
        streams[0].address.port(),
        streams[1].address.port(),
    );
    let mut process = Running::start(&stand.cgroup, &script);
    let line = process.line();
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(words[..2], ["ok", "ok"]);
    let dial = |ip: &str, port: &str| {
        let stream = std::net::TcpStream::connect((ip, port.parse().unwrap())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let mut callers = vec![dial("127.0.0.1", words[2]), dial("::1", words[3])];
    assert_eq!(process.line(), "go");
    let mut outbound: Vec<_> = streams.iter().map(|s| accept(&s.listener)).collect();

    let served: Vec<u16> = words[2..4]
        .iter()
        .map(|port| port.parse().unwrap())
        .collect();
    stand.permit(&served, &[]);
    stand
        .fence()
        .govern(&stand.cgroup.name, stand.workload())
        .unwrap();
    callers.extend([dial("127.0.0.1", words[2]), dial("::1", words[3])]);
    process.send("\n");
    for _ in 0..4 {
        assert_eq!(process.line(), "EPERM");
    }
    for (caller, expected) in callers.iter_mut().zip(["xy", "xy", "y", "y"]) {
        let mut said = vec![0; expected.len()];
        caller.read_exact(&mut said).unwrap();
        assert_eq!(
            said,
            expected.as_bytes(),
            "answers on ports that it may listen on pass"
        );
        caller.write_all(b"thanks").unwrap();
    }
    for stream in &mut outbound {
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        assert!(stream.read(&mut [0; 8]).is_err(), "not a byte arrives");
    }
    assert_eq!(datagrams.iter().map(heard).sum::<usize>(), 0);
    let counted = counted(&stand);
    assert_eq!(counted["udp"], 2);
    assert!(counted["unsteered"] >= 4, "{counted:?}");
    let mut told: Vec<_> = told(&stand)
        .iter()
        .map(|r| format!("{} {}", r.reason, r.destination.unwrap()))
        .collect();
    told.sort();
    let mut expected = ["127.0.0.9:0", "[::1]:0"]
        .map(|to| format!("unsteered {to}"))
        .to_vec();
    expected.extend(
        datagrams
            .iter()
            .map(|d| format!("udp {}", d.local_addr().unwrap())),
    );
    expected.extend(streams.iter().map(|s| format!("unsteered {}", s.address)));
    expected.sort();
    assert_eq!(told, expected);

    // Governed no longer, the connection goes on with what it could not send.
    stand.fence().release(stand.cgroup.id()).unwrap();
    for stream in &mut outbound {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 1);
    }
    // Nor is it held where the fence is gone with all of its programs.
    let workload = stand.workload();
    stand.fence().govern(&stand.cgroup.name, workload).unwrap();
    process.send("\n");
    assert_eq!(process.line(), "EPERM EPERM EPERM EPERM");
    stand.lift();
    for stream in &mut outbound {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 1);
    }
    eventually("it is the fence that keeps them", || {
        process.send("\n");
        !process.line().contains("EPERM") && datagrams.iter().all(|d| heard(d) > 0)
    });
    process.finish();
}

/// Says it is connected without having asked (TCP_REPAIR), and sends. What loopback carries of it is looked at.
fn repaired(ip: &str, port: u16) -> String {
    format!(
        "import array
own = to = '{ip}'
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)); wire.bind(('lo', 0)); wire.settimeout(0.5)
s = socket.socket(family(own)); s.setsockopt(socket.IPPROTO_TCP, 19, 1)
enter(CGROUP)
s.bind((own, 0)); said = [name(lambda: s.connect((to, {port})))]
name(lambda: s.setsockopt(socket.IPPROTO_TCP, 29, array.array('I', [0, 65535, 65535, 65535, 0]).tobytes())) # TCP_REPAIR_WINDOW
s.setsockopt(socket.IPPROTO_TCP, 19, -1) # no probe
said.append(name(lambda: s.send(b'<repaired>')))
seen = set()
try:
    while True:
        packet = wire.recv(2000)
        start = 40 if packet[0] >> 4 == 6 else 20
        if b'<repaired>' in packet: seen.add(int.from_bytes(packet[start + 2:start + 4], 'big') == {port})
except TimeoutError: pass
say(*said, True in seen)"
    )
}

/// A connection that nobody made is steered like one that somebody does, and what it sends does not leave.
#[test]
fn a_repaired_connection_sends_nothing() {
    let mut stand = Stand::new();
    let ways = ["127.0.0.1", "::1"].map(|ip| {
        let server = Elsewhere::new(ip);
        let script = format!(
            "CGROUP = {:?}\n{}",
            stand.cgroup.path(),
            repaired(ip, server.address.port())
        );
        (server, script)
    });
    for (_, script) in &ways {
        let said = python_outside(script);
        assert!(said.ends_with("False"), "{said}");
    }
    stand.lift();
    for (_, script) in &ways {
        assert_eq!(python_outside(script), "ok ok True");
    }
}
