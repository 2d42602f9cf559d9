//! Where packets go: routes and devices that a process, or what the agent answers, could leave by.
use crate::exit::heard;
use crate::refuse::counted;
use crate::support::*;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use tollgate::kernel::namespaces::Network;

fn network_of(client: &Running) -> Network {
    Network::of(client.pid(), client.pid()).unwrap()
}

/// The agent's sockets in a client's network namespace, admitted.
fn agent_within(stand: &Stand, network: &Network) -> [(TcpListener, UdpSocket); 2] {
    let agent = network
        .within(|| Ok([both("127.0.0.1:0"), both("[::1]:0")]))
        .unwrap();
    let [(four, dns4), (six, dns6)] = &agent;
    let admitted = [four.as_fd(), dns4.as_fd(), six.as_fd(), dns6.as_fd()];
    let fence = stand.fence();
    fence.admit(&admitted, port(four), Some(port(six))).unwrap();
    agent
}

/// A namespace of its own, whose loopback goes on with what others have routed; then tries each way at every line.
const ROUTED: &str = "
import ctypes, struct, subprocess
if ctypes.CDLL(None).unshare(0x40000000) != 0: sys.exit('no namespace')
def ip(*words): subprocess.run(['ip', *words], check=True)
ip('link', 'set', 'lo', 'up')
for at in 'fd09::7', 'fd09::9': ip('address', 'add', at + '/128', 'dev', 'lo', 'nodad')
IPV4 = ['ipv4/conf/%s/' + setting for setting in ('accept_source_route', 'accept_local', 'route_localnet')]
for setting in IPV4 + ['ipv6/conf/%s/seg6_enabled']:
    for device in 'all', 'lo':
        with open('/proc/sys/net/' + setting % device, 'w') as f: f.write('1')
HOP = socket.inet_pton(socket.AF_INET6, 'fd09::9')
route = struct.pack('BBB4sB', 131, 7, 4, socket.inet_aton('127.0.0.9'), 0)
segments = struct.pack('BBBBBBH16s16s', 0, 4, 4, 1, 1, 0, 0, bytes(16), HOP)
home = struct.pack('BBBB4x16s', 0, 2, 2, 1, HOP)
FOUR = '127.77.7.8', 53, (socket.IPPROTO_IP, socket.IP_OPTIONS)
SIX = 'fd09::7', 53, (socket.IPPROTO_IPV6, socket.IPV6_RTHDR)
def new(ip, kind):
    s = socket.socket(family(ip), kind); s.settimeout(1); return s
def stream(ip, port, option, value):
    s = new(ip, socket.SOCK_STREAM); s.setsockopt(*option, value)
    try: s.connect((ip, port)); return 'ok'
    except TimeoutError: return 'timeout'
def kept(ip, port, option, value):
    s = new(ip, socket.SOCK_DGRAM); s.setsockopt(*option, value)
    return name(lambda: s.sendto(b'xx', (ip, port))), name(lambda: (s.connect((ip, port)), s.send(b'xx')))
def told(ip, port, option, value):
    s, t = new(ip, socket.SOCK_DGRAM), new(ip, socket.SOCK_DGRAM)
    value = [(*option, value)]
    return name(lambda: s.sendmsg([b'xx'], value, 0, (ip, port))), name(lambda: (t.connect((ip, port)), t.sendmsg([b'xx'], value)))
say('in')
for line in sys.stdin:
    say(stream(*FOUR, route), *kept(*FOUR, route))
    say(stream(*SIX, segments), *kept(*SIX, segments)) # With a datagram it cannot be told.
    known = name(lambda: new('::1', socket.SOCK_DGRAM).setsockopt(*SIX[2], home)) == 'ok'
    say(*(kept(*SIX, home) + told(*SIX, home) if known else ['unknown']))
";

/// A source route, or a routing header, leads a packet past the address that the hooks saw.
#[test]
fn source_routes_lead_nowhere() {
    let mut stand = Stand::new();
    let mut client = Running::start(&stand.cgroup, ROUTED);
    assert_eq!(client.line(), "in");
    let network = network_of(&client);
    let [(four, dns4), (six, dns6)] = agent_within(&stand, &network);
    let servers = network
        .within(|| Ok([both("127.77.7.8:53"), both("[fd09::7]:53")]))
        .unwrap();
    let mut tried = || {
        client.send("go\n");
        [client.line(), client.line(), client.line()]
    };
    let [routed, segments, home] = tried();
    assert_eq!(routed, "timeout EPERM EPERM");
    assert_eq!(segments, "timeout EPERM EPERM");
    let is_known = home != "unknown"; // Not every kernel speaks to who is not at home.
    assert!(!is_known || home == "EPERM EPERM EPERM EPERM", "{home}");
    for (streams, datagrams) in &servers {
        assert_quiet(streams);
        assert_eq!(heard(datagrams), 0);
    }
    let counted = counted(&stand);
    assert!(counted["unsteered"] >= 2, "{counted:?}");
    assert_eq!(counted["udp"], if is_known { 8 } else { 4 });
    assert_eq!((heard(&dns4), heard(&dns6)), (0, 0));
    assert_quiet(&four);
    assert_quiet(&six);

    stand.lift();
    // The kernel may take the programs away a moment later.
    eventually("it is the fence that keeps it", || {
        let [routed, segments, home] = tried();
        // What is sent to somebody's home leaves, and nobody here takes it.
        routed == "ok ok ok"
            && segments == "ok ok ok"
            && (!is_known || home == "ok ok ok ok")
            && servers
                .iter()
                .all(|(streams, datagrams)| streams.accept().is_ok() && heard(datagrams) > 0)
    });
}

/// Makes a network namespace and a cable in it, with the way to everywhere over its one end.
const CABLE: &str = "
import ctypes, subprocess
if ctypes.CDLL(None).unshare(0x40000000) != 0: sys.exit('no namespace')
def ip(*words): subprocess.run(['ip', *words], check=True)
ip('link', 'add', 'c0', 'type', 'veth', 'peer', 'name', 'c1')
for end in 'c0', 'c1': ip('link', 'set', end, 'up')
ip('address', 'add', '10.9.0.1/24', 'dev', 'c0'); ip('address', 'add', 'fd09::1/64', 'dev', 'c0', 'nodad')
for hop in '10.9.0.2', 'fd09::2': ip('neighbour', 'add', hop, 'lladdr', '02:00:00:00:00:09', 'dev', 'c0')
ip('neighbour', 'add', '127.0.0.1', 'lladdr', '02:00:00:00:00:09', 'dev', 'c0')
ip('neighbour', 'add', '::1', 'lladdr', '02:00:00:00:00:09', 'dev', 'c0')
ip('route', 'add', 'default', 'via', '10.9.0.2', 'dev', 'c0'); ip('-6', 'route', 'add', 'default', 'via', 'fd09::2', 'dev', 'c0')
";

/// Says what TCP and UDP it sees leave by the cable: a name that stands between `<` and `>`, or `syn`.
const SNIFF: &str = "
import ctypes, re
assert ctypes.CDLL(None).setns(os.open('/proc/{PID}/ns/net', os.O_RDONLY), 0x40000000) == 0
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)); s.bind(('c1', 3)); s.settimeout(0.5)
say('ready'); sys.stdin.readline()
heard = set()
while True:
    try: p = s.recv(4096)
    except TimeoutError: break
    ports = 20 if p[0] >> 4 == 4 else 40
    protocol = p[9] if ports == 20 else p[6]
    if protocol == 6 and p[ports + 13] & 2: heard.add('syn')
    heard.update(name.decode() for name in re.findall(b'<((?:tcp|udp)_[a-z_]+[46])>', p))
say(*sorted(heard))
";

/// Every way to name a device, in a namespace with a cable.
const BY_DEVICE: &str = "
import ctypes, struct
DEVICE, FAST = 25, 0x20000000
index = socket.if_nametoindex('c0')
TO = {socket.AF_INET: '198.51.100.7', socket.AF_INET6: '2001:db8::7'}
OWN = {socket.AF_INET: '10.9.0.1', socket.AF_INET6: 'fd09::1'}
def bind(s): s.setsockopt(socket.SOL_SOCKET, DEVICE, b'c0\\0')
def new(f, kind):
    s = socket.socket(f, kind); s.settimeout(1); return s
def udp_bound(f, text):
    s = new(f, socket.SOCK_DGRAM); bind(s); s.sendto(text, (TO[f], 53))
def udp_bound_and_connected(f, text):
    s = new(f, socket.SOCK_DGRAM); bind(s); s.connect((TO[f], 53)); s.send(text)
def udp_connected_and_bound(f, text):
    s = new(f, socket.SOCK_DGRAM); s.connect((TO[f], 53)); bind(s); s.send(text)
def udp_with_index(f, text):
    s = new(f, socket.SOCK_DGRAM)
    if f == socket.AF_INET: told = (socket.IPPROTO_IP, 8, struct.pack('i8x', index))
    else: told = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, bytes(16) + struct.pack('I', index))
    s.sendmsg([text], [told], 0, (TO[f], 53))
def udp_unicast_index(f, text):
    s = new(f, socket.SOCK_DGRAM)
    if f == socket.AF_INET: s.setsockopt(socket.IPPROTO_IP, 50, struct.pack('!I', index))
    else: s.setsockopt(socket.IPPROTO_IPV6, 76, struct.pack('!I', index))
    s.sendto(text, (TO[f], 53))
def tcp_bound(f, text):
    s = new(f, socket.SOCK_STREAM); bind(s); s.connect((TO[f], 443)); s.send(text)
def tcp_bound_by_nobody(f, text):
    s = new(f, socket.SOCK_STREAM); bind(s); os.seteuid(65534)
    try: s.connect((TO[f], 443)); s.send(text)
    finally: os.seteuid(0)
def tcp_fast_open(f, text):
    s = new(f, socket.SOCK_STREAM); bind(s); s.setsockopt(socket.IPPROTO_TCP, 34, 1)
    s.sendto(text, FAST, (TO[f], 443))
def tcp_bound_afterwards(f, text):
    s = new(f, socket.SOCK_STREAM); s.bind((OWN[f], 0)); s.connect((TO[f], 443))
    bind(s); s.send(text)
ways = [udp_bound, udp_bound_and_connected, udp_connected_and_bound, udp_with_index, udp_unicast_index,
        tcp_bound, tcp_bound_by_nobody, tcp_fast_open, tcp_bound_afterwards]
if line == 'some\\n': ways = [udp_bound, udp_with_index, tcp_fast_open]
came = {}
for f, digit in (socket.AF_INET, '4'), (socket.AF_INET6, '6'):
    for way in ways:
        called = way.__name__ + digit; text = f'.............<{called}>'.encode()
        came[called] = name(lambda: way(f, text))
say(came)
";

/// A route to the agent's address by another device than loopback's leads elsewhere.
#[test]
fn what_leaves_by_another_device_does_not_leave() {
    let mut stand = Stand::new();
    let client = format!("{CABLE}\nsay('in')\nfor line in sys.stdin:\n    exec({BY_DEVICE:?})");
    let mut client = Running::start(&stand.cgroup, &client);
    assert_eq!(client.line(), "in");
    let _agent = agent_within(&stand, &network_of(&client));
    let sniff = SNIFF.replace("{PID}", &client.pid().to_string());
    let mut tried = |ways: &str| {
        let mut sniffer = Running::start_outside(&sniff);
        assert_eq!(sniffer.line(), "ready");
        client.send(ways);
        let came = client.line();
        sniffer.send("\n");
        (came, sniffer.line())
    };
    let (came, heard) = tried("all\n");
    assert_eq!(heard, "", "{came}");
    for told in [
        "'udp_bound4': 'EPERM'",
        "'udp_with_index6': 'EPERM'",
        "'tcp_bound4': 'ok'", // Steered, and bound to none.
        "'tcp_bound6': 'ok'",
        "'tcp_bound_by_nobody4': 'EPERM'",
        "'tcp_bound_by_nobody6': 'EPERM'",
    ] {
        assert!(came.contains(told), "{came}");
    }
    assert!(counted(&stand)["device"] >= 12, "{:?}", counted(&stand));
    stand.lift();
    let (_, open) = tried("some\n");
    for way in ["udp_bound4", "udp_with_index6", "tcp_fast_open4", "syn"] {
        assert!(open.contains(way), "it is the fence that keeps it: {open}");
    }
}

/// Asks for a name from addresses that are nobody's here, and connects from one.
const FROM_AFAR: &str = "
def transparent(kind):
    s = socket.socket(socket.AF_INET, kind); s.settimeout(1)
    s.setsockopt(socket.IPPROTO_IP, 19, 1) # IP_TRANSPARENT
    s.bind(('203.0.113.9', 0)); return s
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, 78, 1) # IPV6_FREEBIND
s.bind(('2001:db8:77::9', 0)); say(name(lambda: s.sendto(b'ask', ('2001:db8::7', 53))))
s = transparent(socket.SOCK_DGRAM); say(name(lambda: s.sendto(b'ask', ('198.51.100.7', 53))))
def connect():
    try: transparent(socket.SOCK_STREAM).connect(('198.51.100.7', 443))
    except TimeoutError: pass
for line in sys.stdin:
    with open('/proc/sys/net/ipv4/conf/all/route_localnet', 'w') as f: f.write('1')
    connect(); say('tried')
";

/// A client may have bound an address that is not the host's: what the agent answers would go there, to whoever has it.
#[test]
fn what_the_agent_answers_does_not_leave() {
    let mut stand = Stand::new();
    let client = format!("{CABLE}\nsay('in')\nsys.stdin.readline()\n{FROM_AFAR}");
    let mut client = Running::start(&stand.cgroup, &client);
    assert_eq!(client.line(), "in");
    let [(_four, dns4), (_six, dns6)] = agent_within(&stand, &network_of(&client));
    client.send("\n");
    assert_eq!([client.line(), client.line()], ["ok"; 2]);
    let asked = |agent: &UdpSocket, afar: &str| {
        agent.set_nonblocking(false).unwrap();
        agent.set_read_timeout(Some(PATIENCE)).unwrap();
        let (_, from) = agent.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(from.ip().to_string(), afar);
        from
    };
    let from = asked(&dns6, "2001:db8:77::9");
    let from4 = asked(&dns4, "203.0.113.9");
    let sniff = SNIFF.replace("{PID}", &client.pid().to_string());
    let answered = |agent: &UdpSocket, name: &str, to: SocketAddr| {
        let mut sniffer = Running::start_outside(&sniff);
        assert_eq!(sniffer.line(), "ready");
        let came = agent.send_to(format!("..<{name}>..").as_bytes(), to);
        sniffer.send("\n");
        (came.err().map(|e| e.kind()), sniffer.line())
    };
    let answered6 = || answered(&dns6, "udp_answer6", from);
    let answered4 = || answered(&dns4, "udp_answer4", from4);
    let (denied, none) = (Some(ErrorKind::PermissionDenied), String::new());
    assert_eq!(answered6(), (denied, none.clone()));
    // Over IPv4 the kernel itself lets nothing leave that comes from loopback, where nobody sets `route_localnet`.
    assert_eq!(answered4(), (Some(ErrorKind::InvalidInput), none.clone()));
    let mut connected = || {
        let mut sniffer = Running::start_outside(&sniff);
        assert_eq!(sniffer.line(), "ready");
        client.send("\n");
        assert_eq!(client.line(), "tried");
        sniffer.send("\n");
        sniffer.line()
    };
    // Before Linux 6.13 the first answer of a listener passes no hook.
    let first = connected();
    assert!(first.is_empty() || release() < (6, 13), "{first}");
    assert_eq!(answered4(), (denied, none));
    stand.lift();
    assert_eq!(answered6(), (None, "udp_answer6".to_owned()));
    assert_eq!(answered4(), (None, "udp_answer4".to_owned()));
}

/// Hears what the host's own sockets are given a copy of.
const LISTEN_TO_MANY: &str = "
import ctypes, select, struct
assert ctypes.CDLL(None).setns(os.open('/proc/{PID}/ns/net', os.O_RDONLY), 0x40000000) == 0
four, six = [socket.socket(f, socket.SOCK_DGRAM) for f in (socket.AF_INET, socket.AF_INET6)]
four.bind(('', 5353))
four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('224.0.0.251') + socket.inet_aton('10.9.0.1'))
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1); six.bind(('::', 5353))
index = socket.if_nametoindex('c0')
# One group of this link, and one that reaches further.
for group in 'ff02::fb', 'ff05::fb':
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, socket.inet_pton(socket.AF_INET6, group) + struct.pack('I', index))
say('ready'); sys.stdin.readline()
heard = set()
while ready := select.select([four, six], [], [], 0.5)[0]:
    for s in ready: heard.add(s.recv(64).decode())
say(*sorted(heard))
";

/// Sends to many at once, with a socket of either family.
const TO_MANY: &str = "
import struct
came = {}
for kind, ip in ('group', '224.0.0.251'), ('all', '255.255.255.255'), ('subnet', '10.9.0.255'):
    for f, to in (socket.AF_INET, ip), (socket.AF_INET6, '::ffff:' + ip):
        called = kind + ('4' if f == socket.AF_INET else '-mapped')
        s = socket.socket(f, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        came[called] = name(lambda: (s.connect((to, 5353)), s.send(called.encode())))
# By the scope that the address has, by a device that the socket has, and by one that a message has.
index = socket.if_nametoindex('c0')
def scoped(s, data): s.connect(('ff02::fb', 5353, 0, index)); s.send(data)
def unconnected(s, data): s.sendto(data, ('ff02::fb', 5353, 0, index))
def chosen(s, data):
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index); s.connect(('ff05::fb', 5353)); s.send(data)
def told(s, data): s.sendmsg([data], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack('16xI', index))], 0, ('ff05::fb', 5353))
for way in scoped, unconnected, chosen, told:
    called = 'group-' + way.__name__ + '6'
    came[called] = name(lambda: way(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM), called.encode()))
say(came)
";

/// The same to a subnet or a group, so that the sender is not where the copy says it came from: nowhere any more, at an address that it is
/// not bound to, or where somebody else is.
const FROM_ELSEWHERE: &str = "
import ctypes, struct
def many():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    return s
def cork(s):
    s.connect(('10.9.0.255', 5353)); s.send(b'corked', socket.MSG_MORE)
    ctypes.CDLL(None).connect(s.fileno(), bytes(16), 16)
    s.setsockopt(socket.IPPROTO_UDP, 1, 0)
def pose(s, data, port=0):
    s.bind(('10.9.0.1', port) if port else ('', 0)); s.connect(('10.9.0.255', 5353))
    s.sendmsg([data], [(socket.IPPROTO_IP, 8, struct.pack('=i4s4s', 0, socket.inet_aton('10.9.0.77'), bytes(4)))]) # IP_PKTINFO
GROUP = 'ff02::fb', 5353, 0, socket.if_nametoindex('c0')
def cork6(s):
    s.connect(GROUP); s.send(b'corked6', socket.MSG_MORE)
    ctypes.CDLL(None).connect(s.fileno(), bytes(28), 28)
    s.setsockopt(socket.IPPROTO_UDP, 1, 0)
def pose6(s, data, port=0):
    s.bind(('fd09::1', port) if port else ('::', 0)); s.connect(GROUP)
    s.sendmsg([data], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack('16sI', socket.inet_pton(socket.AF_INET6, 'fd09::77'), GROUP[3]))])
def six(): return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
say(name(lambda: cork(many())), name(lambda: pose(many(), b'posing')), name(lambda: pose(many(), b'theirs', 5454)),
    name(lambda: cork6(six())), name(lambda: pose6(six(), b'posing6')), name(lambda: pose6(six(), b'theirs6', 5454)))
";

/// Somebody ungoverned, in the client's namespace.
const BESIDE: &str = "
import ctypes
assert ctypes.CDLL(None).setns(os.open('/proc/{PID}/ns/net', os.O_RDONLY), 0x40000000) == 0
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('10.9.0.77', 5454))
s6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s6.bind(('fd09::77', 5454))
say('beside'); sys.stdin.read()";

#[test]
fn nobody_on_the_host_hears_what_is_sent_to_many() {
    let all = "all-mapped all4 group-chosen6 group-mapped group-scoped6 group-told6 group-unconnected6 group4 subnet-mapped subnet4";
    let came = nobody_hears(TO_MANY, all);
    assert!(!came.contains("ok"), "{came}");
}

#[test]
fn nobody_on_the_host_hears_what_comes_from_nobody() {
    nobody_hears(
        FROM_ELSEWHERE,
        "corked corked6 posing posing6 theirs theirs6",
    );
}

/// The kernel gives a copy to whoever listens on the host, before the last look at what leaves. Returns what the sender says of it.
fn nobody_hears(script: &str, all: &str) -> String {
    let mut stand = Stand::new();
    let client = format!(
        "{CABLE}
ip('address', 'add', '10.9.0.77/32', 'dev', 'lo'); ip('address', 'add', 'fd09::77/128', 'dev', 'c0', 'nodad')
say('in')
for line in sys.stdin:
    exec({script:?})"
    );
    let mut client = Running::start(&stand.cgroup, &client);
    assert_eq!(client.line(), "in");
    let pid = client.pid().to_string();
    let mut beside = Running::start_outside(&BESIDE.replace("{PID}", &pid));
    assert_eq!(beside.line(), "beside");
    let listen = LISTEN_TO_MANY.replace("{PID}", &pid);
    let mut try_all = || {
        let mut listener = Running::start_outside(&listen);
        assert_eq!(listener.line(), "ready");
        client.send("go\n");
        let came = client.line();
        listener.send("\n");
        (came, listener.line())
    };
    let (fenced, heard) = try_all();
    assert_eq!(heard, "", "{fenced}");
    stand.lift();
    let (came, heard) = try_all();
    assert_eq!(heard, all, "it is the fence that keeps it: {came}");
    fenced
}
