//! Governed processes in network namespaces of their own: served, or refused, and let go of.
use crate::support::*;
use harness::eventually;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::Value;
use std::io::{BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

/// A process of the job in a network namespace of its own.
struct Inside {
    child: Child,
    output: BufReader<ChildStdout>,
}

/// For each URL that it is sent, asks for it until somebody answers, for two seconds at most, and says what came of it.
const ASKING: &str = r#"
echo in
while read url; do
  for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    said=$(curl -s -m 5 -o /dev/null -w '%{http_code}' "$url") && break
    sleep 0.1
  done
  echo "$said"
done
"#;

/// Makes so many network namespaces in which nobody can listen any more, and a governed process in each: a single one asks,
/// of several each has many threads and connects without end.
const NO_PORTS: &str = r#"
import ctypes, os, socket, sys, threading, time
port, cgroup, count, asking = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
def inside():
    assert ctypes.CDLL(None).unshare(0x40000000) == 0
    assert os.system('ip link set lo up') == 0
    with open('/proc/sys/net/ipv4/ip_local_port_range', 'w') as ports: ports.write('40000 40000')
    held = [socket.create_server(('127.0.0.1', p)) for p in (port, 40000)]
    if os.fork() == 0:
        os.close(1)
        while True: time.sleep(60)
    for one in held: one.close()
    with open(cgroup + '/cgroup.procs', 'w') as procs: procs.write(str(os.getpid()))
if count == 1:
    inside()
    os.execvp('sh', ['sh', '-c', asking])
for _ in range(count):
    ready, done = os.pipe()
    if os.fork() == 0:
        inside()
        for _ in range(63): threading.Thread(target=time.sleep, args=(600,)).start()
        os.write(done, b'x'); os.close(1)
        while True:
            with socket.socket() as s: s.connect_ex(('198.51.100.7', 80))
            time.sleep(0.01)
    assert os.read(ready, 1) == b'x'
print('in', flush=True)
time.sleep(600)
"#;

impl Inside {
    /// In so many namespaces that cannot be served.
    fn refused(place: &Place, count: usize) -> Self {
        let (port, count) = (place.port.to_string(), count.to_string());
        let cgroup = place.cgroup.to_str().unwrap();
        let arguments = ["-c", NO_PORTS, &port, cgroup, &count, ASKING];
        let mut python = std::process::Command::new("python3");
        Self::start(python.args(arguments))
    }

    /// `enter`: the program that makes the namespace, and its arguments; `first` is run in it by a shell.
    fn new(place: &Place, enter: &[&str], first: &str) -> Self {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec \"$@\"",
            place.cgroup.display()
        );
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script, "sh"]).args(enter);
        Self::start(shell.args(["sh", "-c", &format!("{first}\n{ASKING}")]))
    }

    fn start(command: &mut std::process::Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut inside = Self { child, output };
        assert_eq!(inside.line(), "in");
        inside
    }

    fn line(&mut self) -> String {
        line(&mut self.output)
    }

    fn asks(&mut self, url: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{url}").unwrap();
        self.line()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // All of it: what it left in the background too.
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

const UNSHARE: [&str; 2] = ["unshare", "--net"];
const ELSEWHERE6: &str = "http://[2001:db8::7]/";

fn namespaces(place: &Place) -> Vec<Value> {
    place.status()["namespaces"].as_array().unwrap().clone()
}

#[test]
fn a_namespace_is_served_while_something_governed_is_in_it() {
    let mut place = Place::new();
    place.start();
    assert!(namespaces(&place).is_empty());
    let mut inside = Inside::new(&place, &UNSHARE, "");
    for url in [ELSEWHERE, ELSEWHERE6] {
        assert_eq!(inside.asks(url), "403", "{url}");
    }
    let served = namespaces(&place);
    assert_eq!(served.len(), 1, "{served:?}");
    assert_eq!(served[0]["port"], place.port);
    assert_eq!(served[0]["ipv6"], true);
    assert_eq!(served[0]["workloads"][0], "job");
    let shown = text(&place.output(&["status"]).stdout);
    assert!(
        shown.contains(&format!("job: port {}", place.port)),
        "{shown}"
    );

    // An agent that is killed leaves the namespace refused; the next one is in it again without being told.
    place.end(Signal::KILL);
    assert_eq!(inside.asks(ELSEWHERE), "000");
    place.start();
    for url in [ELSEWHERE, ELSEWHERE6] {
        assert_eq!(inside.asks(url), "403", "{url}");
    }

    // A cable into the namespace goes with it: nothing of the agent's keeps it alive.
    let cable = format!("tg{}", std::process::id());
    let pid = inside.child.id().to_string();
    let ip = |arguments: &[&str]| {
        let output = std::process::Command::new("ip").args(arguments).output();
        output.unwrap().status.success()
    };
    assert!(ip(&[
        "link", "add", &cable, "type", "veth", "peer", "name", "c1", "netns", &pid
    ]));
    assert!(ip(&["link", "show", &cable]));
    drop(inside);
    let gone = eventually(Duration::from_secs(20), || {
        (!ip(&["link", "show", &cable])).then_some(())
    });
    if gone.is_none() {
        ip(&["link", "del", &cable]);
        panic!("the namespace lives on: {:?}", namespaces(&place));
    }
    assert!(namespaces(&place).is_empty());
    assert_eq!(place.ask(), forbidden(), "the agent's own is what it was");
}

#[test]
fn a_namespace_without_ipv6_is_served_over_ipv4() {
    let mut place = Place::new();
    let without =
        "for i in all default lo; do echo 1 > /proc/sys/net/ipv6/conf/$i/disable_ipv6; done";
    let mut inside = Inside::new(&place, &UNSHARE, without);
    place.start();
    assert_eq!(inside.asks(ELSEWHERE), "403");
    assert_eq!(namespaces(&place)[0]["ipv6"], false);
    assert_eq!(inside.asks(ELSEWHERE6), "000");
}

/// Whoever listens at the agent's port before it does, and lets others of its user listen beside it, over these kinds and families.
fn impostor(place: &Place, over: &str) -> String {
    format!(
        r#"ip link set lo up && python3 -c '
import os, signal, socket
def listen(kind, family):
    s = socket.socket(getattr(socket, "AF_" + family), getattr(socket, "SOCK_" + kind))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("::1" if "6" in family else "127.0.0.1", {0}))
    if kind == "STREAM": s.listen()
    return s
all = [listen(*one.split(", ")) for one in "{over}".split("; ")]
if os.fork() == 0:
    os.close(1)
    signal.pause()
' || exit 1"#,
        place.port
    )
}

/// Anybody may make a user namespace and a network in it, and listen there before the agent does: it gets nothing.
#[test]
fn a_namespace_made_without_privilege_is_served_beside_an_impostor() {
    let mut place = Place::new();
    let enter = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "unshare",
        "--user",
        "--map-root-user",
        "--net",
    ];
    let impostor = impostor(&place, "STREAM, INET; STREAM, INET6");
    let mut inside = Inside::new(&place, &enter, &impostor);
    place.start();
    // A connection that the impostor got would get no answer.
    for url in [ELSEWHERE, ELSEWHERE6] {
        assert_eq!(inside.asks(url), "403", "{url}");
    }
    let served = namespaces(&place);
    assert!(served[0]["port"].is_u64(), "{served:?}");
    assert_ne!(served[0]["port"], place.port, "that one is taken there");
}

/// Of the agent's user, one may listen at a port beside it. Then it is at another one, over whichever of them that is.
#[test]
fn an_impostor_of_the_agents_user_shares_no_port_with_it() {
    for over in [
        "STREAM, INET",
        "STREAM, INET6",
        "DGRAM, INET",
        "DGRAM, INET6",
    ] {
        let mut place = Place::new();
        let mut inside = Inside::new(&place, &UNSHARE, &impostor(&place, over));
        place.start();
        for url in [ELSEWHERE, ELSEWHERE6] {
            assert_eq!(inside.asks(url), "403", "{url}");
        }
        let served = namespaces(&place);
        assert!(served[0]["port"].is_u64(), "{served:?}");
        assert_ne!(served[0]["port"], place.port, "taken over {over}");
    }
}

/// Whoever has made many in which the agent cannot listen, and connects there without end.
#[test]
fn a_flood_of_refused_namespaces_keeps_no_other_from_being_looked_at() {
    let mut place = Place::new();
    place.start();
    let mut inside = Inside::new(&place, &UNSHARE, "");
    assert_eq!(inside.asks(ELSEWHERE), "403");
    let served = namespaces(&place)[0]["inode"].clone();
    let flood = Inside::refused(&place, 40);
    let is_there = |all: &[Value]| all.iter().any(|one| one["inode"] == served);
    assert!(is_there(&namespaces(&place)));
    drop(inside);
    let left = eventually(Duration::from_secs(15), || {
        (!is_there(&namespaces(&place))).then_some(())
    });
    assert!(left.is_some(), "{:?}", namespaces(&place));
    // One more of the flood's own workload.
    let mut inside = Inside::new(&place, &UNSHARE, "");
    let asked = eventually(Duration::from_secs(15), || {
        (inside.asks(ELSEWHERE) == "403").then_some(())
    });
    assert!(asked.is_some(), "{:?}", namespaces(&place));
    drop(flood);
}

/// The kernel gives the number of one that is gone to the next that is made.
#[test]
fn a_namespace_is_not_taken_for_one_that_was_refused() {
    let mut place = Place::new();
    place.start();
    let mut refused = Inside::refused(&place, 1);
    let why = eventually(Duration::from_secs(20), || {
        assert_eq!(refused.asks(ELSEWHERE), "000");
        let all = namespaces(&place);
        Some(all.first()?["refused"].as_str()?.to_owned())
    });
    assert!(why.is_some_and(|why| why.contains("cannot listen")));
    drop(refused);
    // The kernel takes it down by and by.
    std::thread::sleep(Duration::from_millis(500));
    let mut inside = Inside::new(&place, &UNSHARE, "");
    assert_eq!(inside.asks(ELSEWHERE), "403", "{:?}", namespaces(&place));
}

/// Who cannot be looked at for want of descriptors has not left.
#[test]
fn no_namespace_is_left_while_descriptors_are_short() {
    let mut place = Place::new();
    place.start();
    let mut inside = Inside::new(&place, &UNSHARE, "");
    assert_eq!(inside.asks(ELSEWHERE), "403");
    let since = || namespaces(&place)[0]["since"].clone();
    let before = since();
    let agent = Pid::from_child(place.agent.as_ref().unwrap());
    let limits = |limit| prlimit(Some(agent), Resource::Nofile, limit).unwrap();
    let few = |usual: Rlimit| Rlimit {
        current: Some(3),
        ..usual
    };
    let usual = limits(few(getrlimit(Resource::Nofile)));
    std::thread::sleep(Duration::from_secs(6));
    limits(usual);
    assert_eq!(since(), before);
    assert_eq!(inside.asks(ELSEWHERE), "403");
}
