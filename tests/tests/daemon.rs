//! The real agent as a process: starting, refusing to start, changing, dying, and what it says of itself. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use harness::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A public-looking address that no test ever reaches: the agent answers for it.
const ELSEWHERE: &str = "http://198.51.100.7/";
const START: Duration = Duration::from_secs(20);

const POLICY: &str = r#"version: 1
workloads:
  job: { match: { cgroup: "CGROUP/**" } }
  by-hand: {}
apis:
  api: { hosts: [api.example.test] }
credentials:
  key: { secret: "file:key", header: { authorization: "Bearer {secret}" }, to: [api] }
roles:
  reader:
    - { api: api, credential: key, allow: [{ route: GET /v1/things }] }
grants:
  - { role: reader, to: { workload: job } }
  - { role: reader, to: { workload: by-hand } }
"#;

/// An agent's directories, port, pins and cgroup, all its own; nothing of it is left when it is dropped.
struct Place {
    directory: PathBuf,
    name: String,
    port: u16,
    cgroup: PathBuf,
    agent: Option<Child>,
}

impl Place {
    fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests need root"
        );
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tollgate-test-{}-{count}", std::process::id());
        let directory = Path::new("/run").join(&name);
        let make = |path: &Path, mode| fs::DirBuilder::new().mode(mode).create(path).unwrap();
        make(&directory, 0o711);
        for below in ["secrets", "state"] {
            make(&directory.join(below), 0o700);
        }
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        let cgroup = cgroup_root().join(&name);
        fs::create_dir(&cgroup).unwrap();
        let place = Self {
            directory,
            name,
            port,
            cgroup,
            agent: None,
        };
        place.write_policy(POLICY);
        place.write_secret(Some("one"));
        place.write_config("");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn write_policy(&self, text: &str) {
        fs::write(
            self.path("policy.yaml"),
            text.replace("CGROUP", &format!("/{}", self.name)),
        )
        .unwrap();
    }

    fn write_secret(&self, value: Option<&str>) {
        let path = self.path("secrets/key");
        match value {
            None => fs::remove_file(path).unwrap(),
            Some(value) => {
                let new = self.path("secrets/new");
                fs::write(&new, value).unwrap();
                fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
                fs::rename(new, path).unwrap();
            }
        }
    }

    fn write_config(&self, more: &str) {
        let (at, port, name) = (self.directory.display(), self.port, &self.name);
        let text = format!(
            "port: {port}\npolicy: [{at}/policy.yaml]\nsecrets_dir: {at}/secrets\nstate_dir: {at}/state\n\
             runtime_dir: {at}/run\npin_dir: /sys/fs/bpf/{name}\ndns_servers: [127.0.0.1]\nworkers: 1\n{more}"
        );
        fs::write(self.path("config.yaml"), text).unwrap();
    }

    /// `tollgate …` for this agent.
    fn tollgate(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(harness::agent::program().unwrap());
        command
            .args(arguments)
            .env("TOLLGATE_CONFIG", self.path("config.yaml"))
            .env("NO_COLOR", "1");
        command.stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.tollgate(arguments).output().unwrap()
    }

    /// Starts the agent and waits until `status` answers.
    fn start(&mut self) {
        let child = self
            .tollgate(&["agent"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let child = self.agent.insert(child);
        let socket = self.directory.join("run/admin.sock");
        let up = eventually(START, || {
            if child.try_wait().unwrap().is_some() {
                let mut told = String::new();
                child
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut told)
                    .unwrap();
                panic!("the agent ended: {told}");
            }
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
        assert!(up.is_some(), "the agent is not up");
    }

    /// Ends the agent by a signal; its exit code, if it had one.
    fn end(&mut self, signal: Signal) -> Option<i32> {
        let mut child = self.agent.take().unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = eventually(START, || child.try_wait().unwrap()).expect("it does not end");
        status.code()
    }

    /// An agent that must not start: its exit code and what it said.
    fn refused(&self) -> (Option<i32>, String) {
        let output = self.output(&["agent"]);
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    fn status(&self) -> Value {
        let output = self.output(&["status", "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    }

    /// A program in the cgroup that the policy's `job` is recognised by.
    fn in_job(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new("sh");
        let script = format!(
            "echo $$ > {}/cgroup.procs && exec \"$@\"",
            self.cgroup.display()
        );
        command
            .args(["-c", &script, "sh", program])
            .args(arguments)
            .env("TOLLGATE_CONFIG", self.path("config.yaml"));
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Asks for [`ELSEWHERE`] from the job: curl's exit code, and the status it got.
    fn ask(&self) -> (i32, String) {
        let output = self.in_job(
            "curl",
            &[
                "-sS",
                "-m",
                "5",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
                ELSEWHERE,
            ],
        );
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap(),
        )
    }

    fn governed(&self) -> bool {
        let output = self.output(&["workloads", "-o", "json"]);
        String::from_utf8_lossy(&output.stdout).contains(&self.name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(child) = &mut self.agent {
            let _ = child.kill();
            let _ = child.wait();
        }
        let pins = Path::new("/sys/fs/bpf").join(&self.name);
        let _ = fs::remove_dir_all(pins);
        let _ = fs::remove_dir(&self.cgroup);
        let _ = rustix::mount::unmount(self.path("state"), rustix::mount::UnmountFlags::DETACH);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .expect("cgroup v2 is not mounted");
    line.split(' ').nth(4).unwrap().into()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const REFUSED: (i32, String) = (7, String::new());

fn forbidden() -> (i32, String) {
    (0, "403".to_owned())
}

#[test]
fn stopped_killed_and_started_again_it_never_opens() {
    let mut place = Place::new();
    place.start();
    assert!(
        eventually(START, || place.governed().then_some(())).is_some(),
        "the job is not governed"
    );
    assert_eq!(place.ask(), forbidden());
    let status = place.output(&["status"]);
    assert_eq!(status.status.code(), Some(0), "{}", text(&status.stdout));
    assert!(
        text(&status.stdout).starts_with("enforcing\n"),
        "{}",
        text(&status.stdout)
    );

    for (signal, code) in [
        (Signal::KILL, None),
        (Signal::TERM, Some(0)),
        (Signal::INT, Some(0)),
    ] {
        assert_eq!(place.end(signal), code);
        let before = Instant::now();
        let (exit, status) = place.ask();
        assert_eq!((exit, status.as_str()), (REFUSED.0, "000"), "{signal:?}");
        assert!(before.elapsed() < Duration::from_secs(1), "refused at once");
        let dead = place.output(&["status"]);
        assert_eq!(dead.status.code(), Some(3));
        assert!(
            text(&dead.stdout).contains("fence   stands"),
            "{}",
            text(&dead.stdout)
        );
        place.start();
        assert_eq!(place.ask(), forbidden(), "after {signal:?} and a start");
    }

    let denied = place.output(&[
        "decisions",
        "--denied",
        "--workload",
        "job",
        "--host",
        "198.51.100.7",
        "-o",
        "jsonl",
    ]);
    let lines: Vec<Value> = text(&denied.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let denied = |code: &str| {
        let counted = lines
            .iter()
            .filter(|d| d["reason"]["code"] == code && d["verdict"] == "DENY");
        counted.count()
    };
    assert_eq!(
        denied("unknown_host"),
        4,
        "one for each time the agent was asked: {lines:?}"
    );
    assert_eq!(
        denied("agent_down"),
        3,
        "one for each time there was none, told by the kernel: {lines:?}"
    );
    let id = lines[0]["id"].as_str().unwrap();
    let shown = place.output(&["explain", id, "-o", "json"]);
    assert_eq!(
        serde_json::from_slice::<Value>(&shown.stdout).unwrap()["id"],
        id
    );
}

#[test]
fn a_cgroup_that_appears_is_governed_and_one_that_goes_is_released() {
    let mut place = Place::new();
    fs::remove_dir(&place.cgroup).unwrap();
    place.start();
    assert!(!place.governed());
    fs::create_dir(&place.cgroup).unwrap();
    assert!(eventually(Duration::from_secs(2), || place.governed().then_some(())).is_some());
    assert_eq!(place.ask(), forbidden());
    fs::remove_dir(&place.cgroup).unwrap();
    assert!(eventually(Duration::from_secs(3), || (!place.governed()).then_some(())).is_some());
}

#[test]
fn a_governed_process_may_not_talk_to_the_agent() {
    let mut place = Place::new();
    place.start();
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    let program = harness::agent::program().unwrap();
    let output = place.in_job(
        program.to_str().unwrap(),
        &["run", "--workload", "by-hand", "--", "true"],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("governed process"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn what_keeps_it_from_starting_is_said_in_a_sentence() {
    let place = Place::new();

    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, place.port)).unwrap();
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains(&place.port.to_string()) && told.contains("ss "),
        "{told}"
    );
    drop(taken);

    let key = place.path("state/ca-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("readable by others") && told.contains("chmod 0600"),
        "{told}"
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    place.write_secret(None);
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("secrets/key"), "{told}");
    place.write_secret(Some("one"));

    place.write_config("prot: 1\n");
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("config.yaml:9:1") && told.contains("did you mean `port`?"),
        "{told}"
    );
    place.write_config("");

    place.write_policy("version: 1\nworklods: {}\n");
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("policy.yaml:2:1") && told.contains("did you mean `workloads`?"),
        "{told}"
    );

    fs::remove_file(place.path("policy.yaml")).unwrap();
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("policy.yaml") && told.contains("--policy"),
        "{told}"
    );
    assert!(
        !Path::new("/sys/fs/bpf").join(&place.name).exists(),
        "a start that failed left pins"
    );
}

#[test]
fn without_root_it_says_so() {
    let place = Place::new();
    let program = place.path("tollgate");
    fs::copy(harness::agent::program().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for (arguments, word) in [
        (&["agent"][..], "needs root"),
        (&["run", "--", "true"], "sudo"),
        (&["status"], ""),
    ] {
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .env("TOLLGATE_CONFIG", place.path("config.yaml"))
            .uid(65534)
            .gid(65534);
        let output = command.output().unwrap();
        let expected = if arguments == ["status"] { 3 } else { 2 };
        assert_eq!(
            output.status.code(),
            Some(expected),
            "{arguments:?} {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stderr).contains(word),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn one_agent_for_one_runtime_directory() {
    let mut place = Place::new();
    place.start();
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    let pid = place.agent.as_ref().unwrap().id().to_string();
    assert!(
        told.contains("another agent") && told.contains(&pid),
        "{told}"
    );
    assert_eq!(
        place.output(&["status"]).status.code(),
        Some(0),
        "the first one is unharmed"
    );
}

#[test]
fn an_invalid_reload_keeps_the_running_policy_and_says_so() {
    let mut place = Place::new();
    place.start();
    let hash = place.status()["policy"]["hash"].clone();
    place.write_policy(&POLICY.replace("apis:", "apsi:"));
    let reload = place.output(&["reload"]);
    assert_eq!(reload.status.code(), Some(2));
    let told = text(&reload.stderr);
    assert!(
        told.contains("policy.yaml:5:1") && told.contains("did you mean `apis`?"),
        "{told}"
    );
    assert!(told.contains("the running policy stays"), "{told}");

    let status = place.output(&["status"]);
    assert_eq!(status.status.code(), Some(1), "unhealthy");
    assert!(
        text(&status.stdout).contains("stale: "),
        "{}",
        text(&status.stdout)
    );
    let status = place.status();
    assert_eq!(status["policy"]["hash"], hash);
    assert_eq!(status["verdict"]["state"], "enforcing");
    let explained = place.output(&[
        "explain",
        "GET",
        "https://api.example.test/v1/things",
        "--workload",
        "job",
    ]);
    assert_eq!(
        explained.status.code(),
        Some(0),
        "{}",
        text(&explained.stdout)
    );

    place.write_policy(&POLICY.replace("/v1/things", "/v2/things"));
    let reload = place.output(&["reload"]);
    assert_eq!(reload.status.code(), Some(0), "{}", text(&reload.stderr));
    assert_ne!(place.status()["policy"]["hash"], hash);
    let explained = place.output(&[
        "explain",
        "GET",
        "https://api.example.test/v1/things",
        "--workload",
        "job",
    ]);
    assert_eq!(
        explained.status.code(),
        Some(1),
        "{}",
        text(&explained.stdout)
    );
    assert_eq!(place.output(&["status"]).status.code(), Some(0));
}

#[test]
fn sighup_reloads() {
    let mut place = Place::new();
    place.start();
    let hash = place.status()["policy"]["hash"].clone();
    place.write_policy(&POLICY.replace("/v1/things", "/v3/things"));
    kill_process(Pid::from_child(place.agent.as_ref().unwrap()), Signal::HUP).unwrap();
    let changed = eventually(Duration::from_secs(5), || {
        (place.status()["policy"]["hash"] != hash).then_some(())
    });
    assert!(changed.is_some());
}

#[test]
fn a_secret_that_goes_away_leaves_the_old_value_and_is_told() {
    let mut place = Place::new();
    place.start();
    let generation = place.status()["policy"]["generation"].as_u64().unwrap();
    let stale = |place: &Place| {
        place.status()["policy"]["secrets_stale"]
            .as_str()
            .map(str::to_owned)
    };
    assert_eq!(stale(&place), None);
    place.write_secret(None);
    let told = eventually(Duration::from_secs(2), || stale(&place)).expect("not told");
    assert!(told.contains("secrets/key"), "{told}");
    place.write_secret(Some("two"));
    let mended = eventually(Duration::from_secs(2), || {
        stale(&place).is_none().then_some(())
    });
    assert!(mended.is_some(), "not taken up again");
    let now = place.status()["policy"]["generation"].as_u64().unwrap();
    assert!(
        now > generation,
        "the new value is in force without a reload"
    );
}

#[test]
fn a_full_disk_refuses_until_there_is_room() {
    let mut place = Place::new();
    let state = place.path("state");
    let options = std::ffi::CString::new("size=1m,mode=0700").unwrap();
    rustix::mount::mount(
        "tollgate-test",
        &state,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        options.as_c_str(),
    )
    .unwrap();
    place.start();
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    assert_eq!(place.ask(), forbidden());

    let filler = state.join("filler");
    let full = fs::write(&filler, vec![0; 2 << 20]);
    assert!(full.is_err(), "the disk is not full");
    // The decision that finds the disk full was taken before it was known to be full.
    let refused = eventually(START, || {
        (place.ask() == (0, "503".to_owned())).then_some(())
    });
    assert!(
        refused.is_some(),
        "requests pass though decisions cannot be written: {:?}",
        place.ask()
    );
    let status = place.output(&["status"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(
        text(&status.stdout).contains("FAILING since"),
        "{}",
        text(&status.stdout)
    );

    fs::remove_file(&filler).unwrap();
    let recovered = eventually(START, || (place.ask() == forbidden()).then_some(()));
    assert!(
        recovered.is_some(),
        "it does not recover: {:?}",
        place.ask()
    );
    assert_eq!(place.output(&["status"]).status.code(), Some(0));
}

#[test]
fn a_private_agent_serves_one_command_and_leaves_nothing() {
    let place = Place::new();
    let (policy, secrets) = (place.path("policy.yaml"), place.path("secrets"));
    let before = leftovers();
    let script = format!(
        "id -u; grep NoNewPrivs /proc/self/status; echo \"proxy=$HTTPS_PROXY\"; test -r \"$SSL_CERT_FILE\" || exit 8\n\
         curl -sS -m 5 -o /dev/null -w '%{{http_code}}\\n' {ELSEWHERE}; exit 7"
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
        "4242\nNoNewPrivs:\t1\nproxy=\n403\n",
        "{told}"
    );
    assert!(
        told.contains("by-hand: 0 allowed, 1 denied") && told.contains("unknown_host"),
        "{told}"
    );
    assert_eq!(leftovers(), before);
}

/// Directories and pins of private agents on this host. Other tests of this file make none.
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

#[test]
fn check_prints_every_fault_with_its_place() {
    let place = Place::new();
    let output = place.output(&["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(
        text(&output.stdout).starts_with("valid: 1 file, 2 workloads"),
        "{}",
        text(&output.stdout)
    );

    let faulty = POLICY
        .replace("apis:", "apsi:")
        .replace("GET /v1", "FETCH\u{1b}[31m /v1");
    place.write_policy(&faulty);
    let output = place.output(&["check"]);
    assert_eq!(output.status.code(), Some(2));
    let told = text(&output.stderr);
    assert!(told.contains("policy.yaml:"), "{told}");
    assert!(
        !told.contains('\u{1b}'),
        "a policy may not command the terminal: {told:?}"
    );

    place.write_policy(
        &POLICY
            .replace("apis:", "apsi:")
            .replace("grants:", "grant:"),
    );
    let told = text(&place.output(&["check"]).stderr);
    assert!(
        told.contains("`apis`?") && told.contains("`grants`?"),
        "both faults at once: {told}"
    );
    let json = place.output(&["check", "-o", "json"]);
    let faults: Vec<Value> = serde_json::from_slice(&json.stdout).unwrap();
    assert!(faults.iter().all(|f| f["at"]["line"].as_u64().is_some()));
}

#[test]
fn the_unit_is_sound() {
    let place = Place::new();
    let unit = fs::read_to_string(harness::repository().join("systemd/tollgate.service")).unwrap();
    let installed = place.path("tollgate.service");
    let program = harness::agent::program().unwrap();
    fs::write(
        &installed,
        unit.replace("/usr/bin/tollgate", program.to_str().unwrap()),
    )
    .unwrap();
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&installed)
        .output();
    let output = output.expect("systemd-analyze is needed: install the Debian package systemd");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        text(&output.stderr)
    );
}
