//! Every way out that is known, tried by a governed process towards somebody who listens to everything; and tried
//! again by one that is not governed, so that each is known to work.
use crate::refuse::{counted, layer};
use crate::sockets::has_udp_lite;
use crate::support::*;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

/// May be sent DNS; nobody is there.
const RESOLVER: &str = "127.77.7.9";

/// Hears what arrives at its port, over every protocol and both families.
struct Canary {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
    port: String,
}

impl Canary {
    fn new() -> Self {
        let mut child = python(include_str!("canary.py"), &[]).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut port = String::new();
        output.read_line(&mut port).unwrap();
        Self {
            child,
            output,
            port: port.trim().to_owned(),
        }
    }

    /// The names of what it heard, once nothing more arrives.
    fn heard(mut self) -> BTreeSet<String> {
        drop(self.child.stdin.take());
        let mut heard = String::new();
        self.output.read_to_string(&mut heard).unwrap();
        assert!(self.child.wait().unwrap().success());
        heard.split_whitespace().map(str::to_owned).collect()
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn python(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.args(["-c", script]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// Tries every way, from `cgroup` if there is one; returns what came of each by its name.
fn tried(cgroup: &str, canary: &Canary) -> BTreeMap<String, String> {
    let arguments = [cgroup, &canary.port, RESOLVER];
    let script = concat!(include_str!("ring.py"), include_str!("ways.py"));
    let output = python(script, &arguments)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    let lite = has_udp_lite();
    said.lines()
        .map(|line| {
            let (name, told) = line.split_once(' ').unwrap();
            (name.to_owned(), told.to_owned())
        })
        // No way where the kernel has no such protocol.
        .filter(|(name, told)| lite || !name.starts_with("udp-lite") || told != "EPROTONOSUPPORT")
        .collect()
}

/// What the second fence refuses, by its layer; where that is missing, those that no cgroup hook sees are open, and `status`
/// says so.
const BESIDE: [(&str, &str, bool); 20] = [
    ("inherited-connected4", "socket_sendmsg", true),
    ("inherited-connected6", "socket_sendmsg", true),
    ("inherited-and-asked-with4", "socket_sendmsg", true),
    ("inherited-and-asked-with6", "socket_sendmsg", true),
    ("inherited-mptcp-connected4", "socket_sendmsg", true),
    ("inherited-mptcp-connected6", "socket_sendmsg", true),
    ("inherited-packet4", "socket_sendmsg", true),
    ("inherited-packet6", "socket_sendmsg", true),
    ("packet4", "socket_create", true),
    ("packet6", "socket_create", true),
    ("passed-connected4", "file_receive", true),
    ("passed-connected6", "file_receive", true),
    ("passed-mptcp-connected4", "file_receive", true),
    ("passed-mptcp-connected6", "file_receive", true),
    ("passed-packet4", "file_receive", true),
    ("passed-packet6", "file_receive", true),
    ("taken-by-pidfd4", "ptrace_access_check", false),
    ("taken-by-pidfd6", "ptrace_access_check", false),
    ("taken-by-pidfd-connected4", "ptrace_access_check", true),
    ("taken-by-pidfd-connected6", "ptrace_access_check", true),
];

/// Ways whose socket cannot even be made.
const NO_SOCKET: [&str; 10] = [
    "mptcp4",
    "mptcp6",
    "udp-lite4",
    "udp-lite6",
    "raw4",
    "raw6",
    "icmp4",
    "icmp6",
    "raw-udp4",
    "raw-udp6",
];

#[test]
fn no_way_leads_out() {
    let mut stand = Stand::new();
    let cgroup = stand.cgroup.path();
    let cgroup = cgroup.to_str().unwrap();
    let canary = Canary::new();
    let governed = tried(cgroup, &canary);
    let heard = canary.heard();
    let (closed, missing): (Vec<_>, Vec<_>) = BESIDE
        .iter()
        .partition(|(_, name, _)| layer(stand.fence(), name).enforcing);
    let open: BTreeSet<String> = missing
        .iter()
        .filter(|(_, _, open)| *open)
        .map(|(way, ..)| (*way).to_owned())
        .collect();
    assert_eq!(heard, open, "{governed:#?}");
    assert!(governed.len() > 60, "{governed:#?}");
    for (name, told) in &governed {
        let kept = ["udp", "datagram"].iter().any(|part| name.contains(part));
        let beside = closed.iter().any(|(way, ..)| way == name);
        let expected = match kept || beside || NO_SOCKET.contains(&name.as_str()) {
            true => "EPERM",
            false => "ok", // Steered, or open.
        };
        assert_eq!(told, expected, "{name}");
    }
    let counted = counted(&stand);
    let least = if has_udp_lite() { 3 } else { 2 };
    for reason in ["udp", "raw", "protocol"] {
        assert!(counted[reason] >= least, "{counted:?}");
    }

    // The same, by the same process tree in the same place, with nobody to hold it.
    stand.lift();
    let canary = Canary::new();
    let free = tried(cgroup, &canary);
    let heard = canary.heard();
    let names: BTreeSet<String> = free.keys().cloned().collect();
    assert_eq!(heard, names, "each of them is a way out: {free:#?}");
    // Left by the way through a nested cgroup.
    for entry in std::fs::read_dir(cgroup).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            std::fs::remove_dir(entry.path()).unwrap();
        }
    }
}

/// From one port to one destination, then from the same to another, again and again.
fn flipping(ip: &str) {
    const TIMES: usize = 200;
    let mut stand = Stand::new();
    let servers = [Elsewhere::new(ip), Elsewhere::new(ip)];
    let ports = [0, 1].map(|at: usize| servers[at].address.port());
    let script = format!(
        "import struct
def to(port, own=0):
    with socket.socket(family('{ip}'), socket.SOCK_STREAM) as s:
        s.settimeout(5)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)) # Is free at once.
        s.bind(('{ip}', own)); s.connect(('{ip}', port)); s.sendall(b'x'); s.recv(1)
        return s.getsockname()[1]
own = to({0})
for n in range(1, {TIMES}): to(({0}, {1})[n % 2], own)
say('done')",
        ports[0], ports[1]
    );
    let answer = |mut stream: std::net::TcpStream| {
        stream.read_exact(&mut [0]).unwrap();
        stream.write_all(b"y").unwrap();
    };
    let agent = match ip {
        "::1" => &stand.agent6,
        _ => &stand.agent4,
    };
    let client = Running::start(&stand.cgroup, &script);
    for n in 0..TIMES {
        let stream = accept(agent);
        let flow = stand.fence().flow_of(&stream);
        let flow = flow.unwrap_or_else(|| panic!("{ip}: {n}: nobody's"));
        assert_eq!(flow.destination.port(), ports[n % 2], "{ip}: {n}");
        answer(stream);
    }
    assert_eq!(client.finish(), "done");
    servers.iter().for_each(|one| assert_quiet(&one.listener));

    stand.lift();
    let client = Running::start(&stand.cgroup, &script);
    for n in 0..TIMES {
        answer(accept(&servers[n % 2].listener));
    }
    assert_eq!(client.finish(), "done");
}

#[test]
fn who_flips_between_destinations_reaches_the_agent() {
    flipping("127.0.0.1");
    flipping("::1");
}

/// Connects to an address that another thread writes to all the time, now of this server and now of that one: it lets go of
/// Python's lock while it does. Says how often it connected,
/// and which it asked for.
const CHANGING: &str = "
import ctypes, struct, threading
libc = ctypes.CDLL(None)
def address(port):
    if family(IP) == socket.AF_INET: return struct.pack('=HH4s8x', 2, socket.htons(port), socket.inet_pton(2, IP))
    return struct.pack('=HHI16sI', 10, socket.htons(port), 0, socket.inet_pton(10, IP), 0)
both = b''.join(map(address, PORTS)); size = len(both) // 2
shared = ctypes.create_string_buffer(both[:size], size)
source = os.memfd_create('addresses'); os.write(source, both * 512)
vector = ctypes.create_string_buffer(struct.pack('QQ', ctypes.addressof(shared), size) * 1023)
going = True
def change():
    at = 0
    while going: libc.preadv(source, vector, 1023, ctypes.c_long(at)); at = size - at # Ends with the other one next time.
thread = threading.Thread(target=change); thread.start()
n, connected, asked, end = 0, 0, set(), time.monotonic() + 4
while n < TIMES and time.monotonic() < end:
    with socket.socket(family(IP), socket.SOCK_STREAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)) # Its port is free at once.
        n += 1
        if libc.connect(s.fileno(), shared, size) == 0: connected += 1; asked.add(s.getpeername()[1])
going = False; thread.join()
say(n, connected, asked.issuperset(PORTS))";

/// Takes the connections of the script's until it ends; returns what it says, and `of` each.
fn taken<T>(
    listeners: &[&std::net::TcpListener],
    script: Running,
    mut of: impl FnMut(usize, std::net::TcpStream) -> T,
) -> (String, Vec<T>) {
    let mut all = Vec::new();
    let client = std::thread::spawn(move || script.finish());
    loop {
        let over = client.is_finished();
        let before = all.len();
        for (at, listener) in listeners.iter().enumerate() {
            while let Ok((stream, _)) = listener.accept() {
                all.push(of(at, stream));
            }
        }
        if over && all.len() == before {
            break;
        }
        if all.len() == before {
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
    }
    let said = client.join().unwrap();
    (said, all)
}

/// The address that is steered is the one that the hook saw, whatever is where it came from by then.
#[test]
fn an_address_that_changes_while_it_is_read_leads_to_the_agent() {
    let mut stand = Stand::new();
    let ips = ["127.0.0.1", "::1"];
    let all = ips.map(|ip| [Elsewhere::new(ip), Elsewhere::new(ip)]);
    let script = |ip: &str, servers: &[Elsewhere; 2], times: usize| {
        let ports = servers.each_ref().map(|server| server.address.port());
        format!("IP, PORTS, TIMES = '{ip}', {ports:?}, {times}{CHANGING}")
    };
    let slower = usize::try_from(harness::slower()).unwrap();
    for (ip, servers) in ips.iter().zip(&all) {
        let agent = [stand.agent(ip)];
        let client = Running::start(&stand.cgroup, &script(ip, servers, 10_000 / slower));
        let (said, _) = taken(&agent, client, |_, _| ());
        let said: Vec<&str> = said.split(' ').collect();
        let [tried, connected, "True"] = said[..] else {
            panic!("{ip}: {said:?}")
        };
        assert_eq!(tried, connected, "{ip}: each of them is connected");
        let least = 500 / slower;
        assert!(tried.parse::<usize>().unwrap() >= least, "{ip}: {tried}");
        servers.iter().for_each(|one| assert_quiet(&one.listener));
    }
    stand.lift();
    for (ip, servers) in ips.iter().zip(&all) {
        eventually("it is the fence that steers", || {
            let listeners = servers.each_ref().map(|server| &server.listener);
            let client = Running::start(&stand.cgroup, &script(ip, servers, 200));
            let (_, reached) = taken(&listeners, client, |at, _| at);
            reached.contains(&0) && reached.contains(&1)
        });
    }
}

/// Full maps and rings lose accounts of refusals, never a refusal.
#[test]
fn lost_events_open_nothing() {
    for (ip, far) in [("127.0.0.9", "198.51.100.7"), ("::1", "2001:db8::7")] {
        let mut stand = Stand::new();
        let receiver = std::net::UdpSocket::bind((ip, 0)).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let script = format!(
            "told = set()
with socket.socket(family('{ip}'), socket.SOCK_DGRAM) as s:
    for n in range(12000): told.add(name(lambda: s.sendto(b'x', ('{ip}', {}))))
say(told, tcp('{far}', 80)[1])",
            receiver.local_addr().unwrap().port()
        );
        assert_eq!(stand.run(&script), "{'EPERM'} ok", "{ip}");
        assert!(receiver.recv(&mut [0; 8]).is_err());
        assert_eq!(counted(&stand)["udp"], 12_000, "each is counted");
        let lost = stand.fence().lost_events();
        assert!(
            (1..12_000).contains(&lost),
            "{lost} were not told, and that is known"
        );
        stand.lift();
        eventually("it is the fence that keeps them", || {
            stand.run(&script.replace("12000", "1"));
            receiver.recv(&mut [0; 8]).is_ok()
        });
    }
}
