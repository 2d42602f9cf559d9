//! An agent with everything its own, and ways to ask about it.
use harness::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, Read, Write};
use std::net::{Ipv6Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A public-looking address that no test ever reaches: the agent answers for it.
pub(crate) const ELSEWHERE: &str = "http://198.51.100.7/";
/// The same over IPv6.
pub(crate) const ELSEWHERE6: &str = "http://[2001:db8::7]/";
/// For what is soon there, also where the machine is emulated.
pub(crate) const START: Duration = Duration::from_secs(60);

pub(crate) const POLICY: &str = r#"version: 1
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
pub(crate) struct Place {
    pub(crate) directory: PathBuf,
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) cgroup: PathBuf,
    pub(crate) agent: Option<Child>,
}

impl Place {
    pub(crate) fn new() -> Self {
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
        // Of both families.
        let free = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn write_policy(&self, text: &str) {
        fs::write(
            self.path("policy.yaml"),
            text.replace("CGROUP", &format!("/{}", self.name)),
        )
        .unwrap();
    }

    pub(crate) fn write_secret(&self, value: Option<&str>) {
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

    pub(crate) fn write_config(&self, more: &str) {
        let (at, port, name) = (self.directory.display(), self.port, &self.name);
        let text = format!(
            "port: {port}\npolicy: [{at}/policy.yaml]\nsecrets_dir: {at}/secrets\nstate_dir: {at}/state\n\
             runtime_dir: {at}/run\npin_dir: /sys/fs/bpf/{name}\ndns_servers: [127.0.0.1]\nworkers: 1\n{more}"
        );
        fs::write(self.path("config.yaml"), text).unwrap();
    }

    /// `tollgate …` for this agent.
    pub(crate) fn tollgate(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(harness::agent::program().unwrap());
        command
            .args(arguments)
            .env("TOLLGATE_CONFIG", self.path("config.yaml"))
            .env("NO_COLOR", "1");
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.tollgate(arguments).output().unwrap()
    }

    /// Starts the agent and waits until `status` answers.
    pub(crate) fn start(&mut self) {
        let command = self.tollgate(&["agent"]);
        self.start_as(command);
    }

    /// The same, another build of it.
    pub(crate) fn start_build(&mut self, program: &Path) {
        let mut command = Command::new(program);
        command
            .arg("agent")
            .env("TOLLGATE_CONFIG", self.path("config.yaml"));
        self.start_as(command);
    }

    /// The same, in a cgroup that is there.
    pub(crate) fn start_in(&mut self, cgroup: &Path) {
        let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", cgroup.display());
        self.start_by(&["sh", "-c", &enter, "sh"]);
    }

    /// The same, by a program that becomes it.
    pub(crate) fn start_by(&mut self, launcher: &[&str]) {
        let agent = self.tollgate(&["agent"]);
        let mut command = Command::new(launcher[0]);
        command.args(&launcher[1..]).arg(agent.get_program());
        command.args(agent.get_args());
        for (name, value) in agent.get_envs() {
            command.env(name, value.unwrap());
        }
        command.stdin(Stdio::null());
        self.start_as(command);
    }

    pub(crate) fn start_as(&mut self, mut command: Command) {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let child = self.agent.insert(command.spawn().unwrap());
        // Nobody reads it meanwhile, and one that is full would hold the agent up.
        let log = child.stderr.as_ref().unwrap();
        rustix::pipe::fcntl_setpipe_size(log, 1 << 20).unwrap();
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
            UnixStream::connect(&socket).ok()
        });
        assert!(up.is_some(), "the agent is not up");
    }

    /// Ends the agent by a signal; its exit code, if it had one.
    pub(crate) fn end(&mut self, signal: Signal) -> Option<i32> {
        let mut child = self.agent.take().unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let ended = eventually(START, || child.try_wait().unwrap());
        if ended.is_none() {
            // Nobody else would.
            let _ = child.kill();
        }
        ended.expect("it does not end").code()
    }

    /// Ends the agent, and says what it had to say.
    pub(crate) fn read_log(&mut self) -> String {
        let mut log = self.agent.as_mut().unwrap().stderr.take().unwrap();
        self.end(Signal::KILL);
        let mut told = Vec::new();
        log.read_to_end(&mut told).unwrap();
        text(&told)
    }

    /// An agent that must not start: its exit code and what it said.
    pub(crate) fn refused(&self) -> (Option<i32>, String) {
        let output = self.output(&["agent"]);
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.output(&["status", "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    }

    /// What is governed, as the agent lists it.
    pub(crate) fn workloads(&self) -> Vec<Value> {
        let output = self.output(&["workloads", "-o", "json"]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
    }

    /// The workload of a container's processes, and by what they are recognised.
    pub(crate) fn recognised(&self, container: &str) -> Option<(String, String)> {
        let all = self.workloads();
        let processes = all
            .iter()
            .flat_map(|workload| workload["processes"].as_array().unwrap());
        let is_in = |pid: &Value| {
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup"));
            cgroups.is_ok_and(|text| text.contains(container))
        };
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        let mut found = processes.filter(|process| is_in(&process["pid"]));
        found
            .next()
            .map(|process| (word(&process["workload"]), word(&process["by"])))
    }

    /// What the agent answers to a question without parameters, asked without a program's start in between.
    pub(crate) fn asked(&self, question: &str) -> String {
        let mut asked = UnixStream::connect(self.path("run/admin.sock")).unwrap();
        let version = tollgate::daemon::admin::wire::VERSION;
        let question = format!("{{\"v\":{version},\"request\":{{\"do\":\"{question}\"}}}}\n");
        asked.write_all(question.as_bytes()).unwrap();
        asked.set_read_timeout(Some(START)).unwrap();
        let mut told = String::new();
        asked.read_to_string(&mut told).unwrap();
        told
    }

    /// A program in the cgroup that the policy's `job` is recognised by.
    pub(crate) fn in_job(&self, program: &str, arguments: &[&str]) -> Output {
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
    pub(crate) fn ask(&self) -> (i32, String) {
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

    /// Decisions in the log's files that hold this word.
    pub(crate) fn on_disk(&self, word: &str) -> usize {
        let segments = fs::read_dir(self.path("state/decisions")).unwrap();
        let texts = segments.filter_map(|segment| fs::read_to_string(segment.unwrap().path()).ok());
        texts
            .map(|text| text.lines().filter(|line| line.contains(word)).count())
            .sum()
    }

    pub(crate) fn governed(&self) -> bool {
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
        // Some tests mount something there.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter(|point| Path::new(point).starts_with(&self.directory)) {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub(crate) fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .expect("cgroup v2 is not mounted");
    line.split(' ').nth(4).unwrap().into()
}

/// Where cgroups with this controller are made, and whether that is cgroup v2: where that has it not, v1 does.
pub(crate) fn controlled(controller: &str) -> (PathBuf, bool) {
    let unified = cgroup_root();
    let controllers = fs::read_to_string(unified.join("cgroup.controllers")).unwrap();
    if controllers.split_whitespace().any(|one| one == controller) {
        let control = unified.join("cgroup.subtree_control");
        fs::write(control, format!("+{controller}")).unwrap();
        return (unified, true);
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let has_it = |line: &&str| {
        let (_, kind) = line.split_once(" - ").unwrap();
        kind.starts_with("cgroup ") && kind.ends_with(controller)
    };
    let line = mounts.lines().find(has_it);
    let line = line.unwrap_or_else(|| panic!("no cgroup hierarchy has {controller}"));
    (line.split(' ').nth(4).unwrap().into(), false)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) const REFUSED: (i32, String) = (7, String::new());

pub(crate) fn forbidden() -> (i32, String) {
    (0, "403".to_owned())
}

/// The next line that a process says.
pub(crate) fn line(output: &mut impl BufRead) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim().to_owned()
}
