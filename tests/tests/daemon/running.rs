//! `tollgate run`, with a running agent and with one of its own.
use crate::support::*;
use harness::eventually;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

#[test]
fn a_private_agent_serves_one_command_and_leaves_nothing() {
    let place = Place::new();
    let (policy, secrets) = (place.path("policy.yaml"), place.path("secrets"));
    let script = format!(
        "echo $SSL_CERT_FILE >&2; id -u; grep NoNewPrivs /proc/self/status; echo \"proxy=$HTTPS_PROXY\"; test -r \"$SSL_CERT_FILE\" || exit 8\n\
         for url in {ELSEWHERE} {ELSEWHERE6}; do curl -sSg -m 5 -o /dev/null -w '%{{http_code}}\\n' $url; done; exit 7"
    );
    let output = place
        .tollgate(&["run", "--workload", "by-hand", "--user", "4242", "--policy"])
        .arg(&policy)
        .arg("--secrets-dir")
        .arg(&secrets)
        .args(["--", "sh", "-c", &script])
        .env("HTTPS_PROXY", "http://127.0.0.1:9")
        .output()
        .unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(7), "{told}");
    assert_eq!(
        text(&output.stdout),
        "4242\nNoNewPrivs:\t1\nproxy=\n403\n403\n",
        "{told}"
    );
    assert!(
        told.contains("by-hand: 0 allowed, 2 denied") && told.contains("unknown_host"),
        "{told}"
    );
    // Its agent's log is gone: what is to be typed asks the policy instead.
    let line = told.lines().last().unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..3], ["tollgate", "explain", "GET"], "{told}");
    // As a shell reads it.
    let typed: Vec<&str> = words.iter().map(|word| word.trim_matches('\'')).collect();
    let again = place.output(&typed[1..]);
    let said = text(&again.stdout);
    assert_eq!(
        again.status.code(),
        Some(1),
        "{line}: {}",
        text(&again.stderr)
    );
    assert!(
        said.contains("DENY") && said.contains("unknown_host"),
        "{said}"
    );
    let name = told
        .lines()
        .find_map(|line| line.strip_prefix("/run/")?.split('/').next())
        .unwrap();
    assert!(!leftovers().contains(&name.to_owned()), "{name}");
}

/// Whoever may send it a signal opens nothing by that: a command of root is one of those.
#[test]
fn a_private_agent_that_is_ended_refuses_and_its_run_cleans_up() {
    for signal in [Signal::KILL, Signal::TERM, Signal::INT] {
        a_private_agent_that_gets(signal);
    }
}

fn a_private_agent_that_gets(signal: Signal) {
    let place = Place::new();
    let canaries = ["127.0.0.1:0", "[::1]:0"].map(|at| std::net::TcpListener::bind(at).unwrap());
    let [first, second] = canaries.each_ref().map(|canary| {
        canary.set_nonblocking(true).unwrap();
        canary.local_addr().unwrap()
    });
    let script = format!(
        "echo runs; read line; curl -sS -m 5 http://{first}/; echo $?; exec curl -sSg -m 5 http://{second}/"
    );
    let mut run = place
        .tollgate(&["run", "--workload", "by-hand", "--policy"])
        .arg(place.path("policy.yaml"))
        .arg("--secrets-dir")
        .arg(place.path("secrets"))
        .args(["--", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Not before the command itself runs: until then the agent is asked for more.
    let mut said = [0; 5];
    run.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"runs\n");
    let children = format!("/proc/{0}/task/{0}/children", run.id());
    let agent = fs::read_to_string(children)
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .to_owned();
    let line = fs::read_to_string(format!("/proc/{agent}/cmdline")).unwrap();
    let own: Vec<&str> = line.split('\0').collect();
    assert_eq!(own[1], "agent");
    let directory = PathBuf::from(own[3]);
    kill_process(Pid::from_raw(agent.parse().unwrap()).unwrap(), signal).unwrap();
    // Its launcher does not look at it before the command ends.
    let ended = eventually(START, || {
        let stat = fs::read_to_string(format!("/proc/{agent}/stat")).unwrap();
        // Its other threads hold its listeners until they have ended too.
        let threads = fs::read_dir(format!("/proc/{agent}/task")).unwrap().count();
        (threads == 1 && stat.contains(") Z ")).then_some(())
    });
    assert!(ended.is_some(), "the agent goes on after {signal:?}");
    run.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = run.wait_with_output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(text(&output.stdout), format!("{}\n", REFUSED.0), "{told}");
    assert_eq!(output.status.code(), Some(REFUSED.0), "{signal:?}: {told}");
    assert!(told.contains("the agent is gone"), "{signal:?}: {told}");
    for (canary, at) in canaries.iter().zip([first, second]) {
        assert!(canary.accept().is_err(), "{signal:?}: {at} was reached");
        // It hears whoever is not governed.
        let _caller = std::net::TcpStream::connect(at).unwrap();
        assert!(canary.accept().is_ok());
    }
    assert!(!directory.exists(), "{}", directory.display());
    let pins = Path::new("/sys/fs/bpf").join(directory.file_name().unwrap());
    assert!(!pins.exists(), "{}", pins.display());
}

/// The agent's fence stays for who is left of a run, however deep in cgroups of its own it hides: root may make those in a user namespace.
#[test]
fn who_hides_below_any_path_keeps_a_private_agents_fence_up() {
    let place = Place::new();
    let canary = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let at = canary.local_addr().unwrap();
    // The agent holds it open for as long as it lives.
    let stderr = fs::File::create(place.path("told")).unwrap();
    let status = place
        .tollgate(&["run", "--workload", "by-hand", "--policy"])
        .arg(place.path("policy.yaml"))
        .arg("--secrets-dir")
        .arg(place.path("secrets"))
        .args(["--", "python3", "-c", HIDES])
        .arg(&place.directory)
        .arg(at.port().to_string())
        .stderr(stderr)
        .status()
        .unwrap();
    let told = fs::read_to_string(place.path("told")).unwrap();
    assert!(status.success(), "{told}");
    let hidden = fs::read_to_string(place.path("hidden")).unwrap();
    // What of its path leads to where its processes are listed.
    let cgroup = fs::read_to_string(format!("/proc/{hidden}/cgroup")).unwrap();
    let cgroup = cgroup.trim().rsplit("0::").next().unwrap().to_owned();
    let procs = format!("{}{cgroup}/cgroup.procs", cgroup_root().display());
    assert!(cgroup.len() < 4096 && procs.len() > 4096, "{}", procs.len());
    assert!(
        told.contains("processes of the command still run"),
        "{told}"
    );
    let agent = told.split("its agent (pid ").nth(1).unwrap();
    let agent = format!("/proc/{}", agent.split(')').next().unwrap());
    let line = fs::read_to_string(format!("{agent}/cmdline")).unwrap();
    let directory = PathBuf::from(line.split('\0').nth(3).unwrap());
    let pins = Path::new("/sys/fs/bpf").join(directory.file_name().unwrap());
    // Long enough for several of the agent's looks.
    std::thread::sleep(std::time::Duration::from_secs(1));
    fs::write(place.path("go"), "").unwrap();
    let came = eventually(START, || fs::read_to_string(place.path("came")).ok());
    // Who is governed reaches the agent, whatever it asks for.
    assert!(canary.accept().is_err(), "it is free: {came:?}");
    assert!(pins.exists() && Path::new(&agent).exists());
    // Once it has ended all goes, its cgroups too.
    kill_process(
        Pid::from_raw(hidden.parse().unwrap()).unwrap(),
        Signal::KILL,
    )
    .unwrap();
    let run: PathBuf = Path::new(&cgroup).iter().skip(1).take(2).collect();
    let is_gone = || {
        let left = [&directory, &pins, &cgroup_root().join(&run)];
        (!left.iter().any(|path| path.exists())).then_some(())
    };
    assert!(eventually(START, is_gone).is_some(), "something is left");
}

/// Leaves a process in a cgroup whose path is almost as long as the kernel tells any.
const HIDES: &str = r#"
import ctypes, os, socket, sys, tempfile, time
libc = ctypes.CDLL(None, use_errno=True)
at, port = sys.argv[1], int(sys.argv[2])
assert libc.unshare(0x10000000 | 0x20000 | 0x02000000) == 0
own = tempfile.mkdtemp(dir=at)
assert libc.mount(b"none", own.encode(), b"cgroup2", 0, None) == 0
os.chdir(own)
# As the host has it: /tollgate/run- and 32 digits.
left = 4090 - 46
while left > 1:
    name = "d" * min(240, left - 1)
    os.mkdir(name)
    os.chdir(name)
    left -= len(name) + 1
def hide():
    os.setsid()
    if os.fork():
        os._exit(0)
    for descriptor in range(3):
        os.close(descriptor)
    with open("cgroup.procs", "w") as procs:
        procs.write("0")
    with open(at + "/hiding", "w") as file:
        file.write(str(os.getpid()))
    os.rename(at + "/hiding", at + "/hidden")
    while not os.path.exists(at + "/go"):
        time.sleep(0.05)
    try:
        socket.create_connection(("127.0.0.1", port), 5)
        came = "reached"
    except OSError as e:
        came = str(e)
    with open(at + "/coming", "w") as file:
        file.write(came)
    os.rename(at + "/coming", at + "/came")
    time.sleep(600)
if os.fork() == 0:
    hide()
os.wait()
while not os.path.exists(at + "/hidden"):
    time.sleep(0.01)
"#;

/// However the command ends, and whatever else was refused: what was refused is told, on stderr alone, and the command
/// that is printed shows it afterwards.
#[test]
fn what_was_refused_is_told_however_the_command_ends() {
    let mut place = Place::new();
    place.start();
    let once = format!("curl -fsS -m 5 {ELSEWHERE}once");
    let often = format!("curl -s -m 60 -o /dev/null '{ELSEWHERE6}again?n=[1-3000]'");
    for (end, code) in [
        ("exit 3", 3),
        ("kill -KILL $$", 137),
        ("echo waits; exec sleep 60", 130),
    ] {
        let script = format!("{once}; {often}; {end}");
        let mut run = place
            .tollgate(&["run", "--workload", "by-hand", "--", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = String::new();
        let mut lines = BufReader::new(run.stdout.take().unwrap());
        lines.read_line(&mut out).unwrap();
        if out == "waits\n" {
            // As Ctrl-C does, where there is no terminal.
            kill_process(Pid::from_raw(run.id().cast_signed()).unwrap(), Signal::INT).unwrap();
        }
        let output = run.wait_with_output().unwrap();
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{end}: {told}");
        assert!(["", "waits\n"].contains(&out.as_str()), "{out}");
        for wanted in [
            "\ntollgate: by-hand: 0 allowed, 3001 denied\n",
            "GET http://198.51.100.7/once 403 by curl(",
            "GET http://[2001:db8::7]/again 403 by curl(",
            ", the last of 3000\n",
            "(unknown_host)\n",
        ] {
            assert!(told.contains(wanted), "{end}: {wanted}: {told}");
        }
        let commands: Vec<&str> = told
            .lines()
            .filter_map(|line| line.strip_prefix("    tollgate explain "))
            .collect();
        assert_eq!(commands.len(), 2, "{told}");
        for id in commands {
            let shown = place.output(&["explain", id]);
            assert_eq!(shown.status.code(), Some(0), "{}", text(&shown.stderr));
            assert!(text(&shown.stdout).contains("unknown_host"));
        }
    }
    let output = place.output(&[
        "run",
        "--workload",
        "by-hand",
        "--user",
        "4242",
        "--",
        "true",
    ]);
    assert_eq!(text(&output.stderr), "");
}

/// Directories and pins of private agents on this host.
fn leftovers() -> Vec<String> {
    let mut names: Vec<String> = ["/run", "/sys/fs/bpf"]
        .iter()
        .flat_map(|directory| fs::read_dir(directory).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("tollgate-run-"))
        .collect();
    names.sort();
    names
}

#[test]
fn a_command_that_cannot_run_has_the_shells_codes() {
    let mut place = Place::new();
    place.start();
    for (command, code) in [
        ("tollgate-no-such-command", 127),
        ("/etc/passwd", 126),
        ("false", 1),
    ] {
        let output = place.output(&["run", "--workload", "by-hand", "--", command]);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    }
    let output = place.output(&["run", "--", "true"]);
    assert_eq!(
        output.status.code(),
        Some(2),
        "two workloads to choose from"
    );
    assert!(
        text(&output.stderr).contains("--workload: by-hand, job"),
        "{}",
        text(&output.stderr)
    );
    let output = place.output(&[
        "run",
        "--workload",
        "by-hand",
        "--",
        "sh",
        "-c",
        "kill -TERM $$",
    ]);
    assert_eq!(output.status.code(), Some(143));
    let socket = "import socket; socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)";
    let output = place.output(&[
        "run",
        "--workload",
        "by-hand",
        "--",
        "python3",
        "-c",
        socket,
    ]);
    assert!(
        text(&output.stderr).contains("Address family not supported"),
        "{}",
        text(&output.stderr)
    );
}
