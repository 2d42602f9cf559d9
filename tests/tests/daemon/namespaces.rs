//! Governed processes in network namespaces of their own: served, or refused, and let go of.
use crate::support::*;
use harness::eventually;
use rustix::process::Signal;
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

impl Inside {
    /// `enter`: the program that makes the namespace, and its arguments; `first` is run in it by a shell.
    fn new(place: &Place, enter: &[&str], first: &str) -> Self {
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec \"$@\"",
            place.cgroup.display()
        );
        let mut child = std::process::Command::new("sh")
            .args(["-c", &script, "sh"])
            .args(enter)
            .args(["sh", "-c", &format!("{first}\n{ASKING}")])
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
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
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
    let impostor = format!(
        r#"ip link set lo up && python3 -c '
import os, signal, socket
def listen(family, ip):
    s = socket.socket(family, socket.SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind((ip, {0})); s.listen()
    return s
both = listen(socket.AF_INET, "127.0.0.1"), listen(socket.AF_INET6, "::1")
if os.fork() == 0:
    os.close(1)
    signal.pause()
' || exit 1"#,
        place.port
    );
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
