//! The admin socket and the verbs that ask over it.
use crate::support::*;
use harness::eventually;
use harness::process::Ended;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

#[test]
fn decisions_are_followed_as_they_happen() {
    let mut place = Place::new();
    place.start();
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    assert_eq!(place.ask(), forbidden());
    let mut following = place
        .tollgate(&["decisions", "-f", "-o", "jsonl"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    let first = next();
    assert_eq!(place.ask(), forbidden());
    let second = next();
    assert_eq!(
        (&first["verdict"], &second["verdict"]),
        (&"DENY".into(), &"DENY".into())
    );
    assert_ne!(first["id"], second["id"]);
    following.kill().unwrap();
    following.wait().unwrap();
}

#[test]
fn the_ca_is_shown_and_its_key_is_not() {
    let mut place = Place::new();
    place.start();
    let exported = text(&place.output(&["ca", "export"]).stdout);
    assert!(exported.starts_with("-----BEGIN CERTIFICATE-----") && !exported.contains("PRIVATE"));
    assert_eq!(
        exported,
        fs::read_to_string(place.path("run/ca.pem")).unwrap()
    );
    let bundle = fs::read_to_string(place.path("run/ca-bundle.pem")).unwrap();
    assert!(bundle.contains(exported.trim()), "the bundle holds the CA");
    let mode = |name: &str| fs::metadata(place.path(name)).unwrap().permissions().mode() & 0o777;
    let modes = [
        "run/ca.pem",
        "run/ca-bundle.pem",
        "run",
        "run/admin.sock",
        "state",
        "state/ca-key.pem",
    ]
    .map(mode);
    assert_eq!(modes, [0o644, 0o644, 0o755, 0o600, 0o700, 0o600]);
    let script = "eval \"$($0 trust env)\" && echo $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS";
    let program = harness::agent::program().unwrap();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script])
        .arg(program)
        .env("TOLLGATE_CONFIG", place.path("config.yaml"));
    let at = place.path("run");
    let expected = format!("{0}/ca-bundle.pem {0}/ca.pem\n", at.display());
    assert_eq!(text(&shell.output().unwrap().stdout), expected);
}

#[test]
fn the_admin_socket_answers_nonsense_with_a_fault() {
    let mut place = Place::new();
    place.start();
    for nonsense in ["\n", "GET / HTTP/1.1\n", "{\"v\":9}\n"] {
        let mut socket =
            std::os::unix::net::UnixStream::connect(place.path("run/admin.sock")).unwrap();
        socket.write_all(nonsense.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["with"]["kind"], "usage", "{nonsense:?} {answer}");
    }
    assert_eq!(place.output(&["status"]).status.code(), Some(0));
}

/// Who connects ends, and another, who is nobody's, is given its id before the agent looks.
#[test]
fn who_has_the_id_of_who_connected_does_not_speak_for_it() {
    const SCRIPT: &str = "
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
first = os.fork()
if not first:
    s.connect(sys.argv[1])
    os._exit(0)
os.waitpid(first, 0)
other = 0
for _ in range(1000):
    with open('/proc/sys/kernel/ns_last_pid', 'w') as last: last.write(str(first - 1))
    other = os.fork()
    if not other:
        time.sleep(0 if os.getpid() != first else 60)
        os._exit(0)
    if other == first: break
    os.waitpid(other, 0)
print(other == first, flush=True)
input()
s.sendall(sys.argv[2].encode())
print(s.makefile().read(), flush=True)
os.kill(other, 9)
";
    let mut place = Place::new();
    place.start();
    let agent = Pid::from_child(place.agent.as_ref().unwrap());
    kill_process(agent, Signal::STOP).unwrap();
    let version = tollgate::daemon::admin::wire::VERSION;
    let asks = format!("{{\"v\":{version},\"request\":{{\"do\":\"status\"}}}}\n");
    let mut command = Command::new("python3");
    command
        .args(["-c", SCRIPT])
        .arg(place.path("run/admin.sock"));
    command
        .arg(asks)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut asks = Ended(command.spawn().unwrap());
    let mut said = BufReader::new(asks.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    kill_process(agent, Signal::CONT).unwrap();
    assert_eq!(line, "True\n", "another has its id");
    asks.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut told = String::new();
    said.read_to_string(&mut told).unwrap();
    assert!(told.contains("cannot tell who asks"), "{told}");
    assert_eq!(place.output(&["status"]).status.code(), Some(0));
}
