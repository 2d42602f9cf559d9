//! Every way out that is known, tried by a governed process towards somebody who listens to everything; and tried
//! again by one that is not governed, so that each is known to work.
use crate::refuse::{counted, has_udp_lite, layer};
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
    let output = python(include_str!("ways.py"), &arguments)
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
const BESIDE: [(&str, &str, bool); 11] = [
    ("inherited-connected4", "socket_sendmsg", true),
    ("inherited-connected6", "socket_sendmsg", true),
    ("inherited-and-asked-with4", "socket_sendmsg", true),
    ("inherited-and-asked-with6", "socket_sendmsg", true),
    ("packet4", "socket_create", true),
    ("passed-connected4", "file_receive", true),
    ("passed-connected6", "file_receive", true),
    ("taken-by-pidfd4", "ptrace_access_check", false),
    ("taken-by-pidfd6", "ptrace_access_check", false),
    ("taken-by-pidfd-connected4", "ptrace_access_check", true),
    ("taken-by-pidfd-connected6", "ptrace_access_check", true),
];

/// Ways whose socket cannot even be made.
const NO_SOCKET: [&str; 9] = [
    "mptcp4",
    "mptcp6",
    "udp-lite4",
    "udp-lite6",
    "raw4",
    "raw6",
    "icmp4",
    "icmp6",
    "raw-udp4",
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

/// Full maps and rings lose accounts of refusals, never a refusal.
#[test]
fn lost_events_open_nothing() {
    let stand = Stand::new();
    let receiver = std::net::UdpSocket::bind("127.0.0.9:0").unwrap();
    receiver.set_nonblocking(true).unwrap();
    let script = format!(
        "told = set()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    for n in range(12000): told.add(name(lambda: s.sendto(b'x', ('127.0.0.9', {}))))
say(told, tcp('198.51.100.7', 80)[1])",
        receiver.local_addr().unwrap().port()
    );
    assert_eq!(stand.run(&script), "{'EPERM'} ok");
    assert!(receiver.recv(&mut [0; 8]).is_err());
    assert_eq!(counted(&stand)["udp"], 12_000, "each is counted");
    let lost = stand.fence().lost_events();
    assert!(
        (1..12_000).contains(&lost),
        "{lost} were not told, and that is known"
    );
}
