//! A host with Tollgate installed as its administrator would, a unit that it governs, and nginx.
use harness::eventually;
use serde_json::{Map, Value};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// The governed unit.
pub(crate) const UNIT: &str = "report-builder.service";
/// Where nobody is let, over both families; the agent answers for it.
pub(crate) const DENIED: &str = "http://198.51.100.7/";
/// See [`DENIED`].
pub(crate) const DENIED6: &str = "http://[2001:db8::7]/";

const PROGRAM: &str = "/usr/bin/tollgate";

/// A program that has been running for a while: it asks for each line of one pipe, and answers into another.
const ASKING: &str = "rm -f $1.in $1.out; mkfifo $1.in $1.out
while read target <$1.in; do
    status=$(curl -sS -m 30 -o /dev/null -w '%{http_code}' $target)
    echo $? $status >$1.out
done
";

const CONFIG: &str = "dns_servers: [127.0.0.1]\nlimits: { drain: 100ms }\n";
/// What the service is installed with.
pub(crate) const POLICY: &str = "version: 1
workloads:
  report-builder: { match: { unit: report-builder.service } }
  nightly: { match: { unit: nightly.service } }
  errand: { match: { unit: errand.service } }
apis:
  reports: { tcp: [\"127.0.0.8:8081\"] }
  catalog: { hosts: [catalog.example.test] }
roles:
  reader: [{ api: reports }]
  customer: [{ api: catalog, allow: [{ route: GET /v1/things }] }]
grants:
  - { role: reader, to: { workload: report-builder } }
  - { role: customer, to: { workload: nightly } }
";
const NGINX: &str = "daemon off; master_process off; pid /run/reports.pid; events {}
http { access_log /run/reports.log; server { listen 127.0.0.8:8081; return 200 'a report'; } }
";

pub(crate) struct Host {
    nginx: Child,
    pub(crate) allowed: String,
}

impl Host {
    /// Installs and starts everything. Only on a host that is gone afterwards.
    pub(crate) fn new() -> Self {
        assert!(
            Path::new("/payload/plan").exists(),
            "this test installs a service: run it with `cargo xtask vm`"
        );
        // It is large, and copied slowly where it is emulated: for all tests once.
        if !Path::new(PROGRAM).exists() {
            fs::copy(harness::agent::program().unwrap(), PROGRAM).unwrap();
        }
        let units = Path::new("/etc/systemd/system");
        let unit = harness::repository().join("systemd/tollgate.service");
        fs::copy(unit, units.join("tollgate.service")).unwrap();
        fs::create_dir_all("/etc/tollgate/policy.d").unwrap();
        fs::write("/etc/tollgate/config.yaml", CONFIG).unwrap();
        fs::write("/etc/tollgate/policy.d/policy.yaml", POLICY).unwrap();
        fs::write("/run/reports.conf", NGINX).unwrap();
        fs::write("/run/asking.sh", ASKING).unwrap();
        let _ = fs::remove_file("/run/reports.log");
        let nginx = Command::new("nginx")
            .args(["-c", "/run/reports.conf", "-e", "/run/reports.errors"])
            .spawn()
            .unwrap();
        let host = Self {
            nginx,
            allowed: "http://127.0.0.8:8081/".to_owned(),
        };
        host.systemctl(&["daemon-reload"]);
        host.systemctl(&["reset-failed"]);
        host.systemctl(&["start", "tollgate"]);
        host.start_asking(UNIT);
        let governed = eventually(Duration::from_secs(60), || {
            let listed = host.output("tollgate", &["workloads", "-o", "json"]);
            text(&listed.stdout).contains(UNIT).then_some(())
        });
        assert!(governed.is_some(), "the unit is not governed");
        host
    }

    pub(crate) fn output(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// `systemctl …`, which must succeed.
    pub(crate) fn systemctl(&self, arguments: &[&str]) {
        let output = self.output("systemctl", arguments);
        if !output.status.success() {
            let journal = self.output("journalctl", &["-n", "40", "--no-pager", "-u", "tollgate"]);
            panic!(
                "systemctl {arguments:?}: {}\n{}",
                text(&output.stderr),
                text(&journal.stdout)
            );
        }
    }

    pub(crate) fn show(&self, unit: &str, property: &str) -> String {
        let output = self.output("systemctl", &["show", "--value", "-p", property, unit]);
        text(&output.stdout).trim().to_owned()
    }

    /// Waits until the service is up as another process than `before`.
    pub(crate) fn comes_back(&self, before: &str) {
        let back = eventually(Duration::from_secs(60), || {
            let pid = self.show("tollgate", "MainPID");
            (pid != before && pid != "0" && self.show("tollgate", "ActiveState") == "active")
                .then_some(())
        });
        assert!(back.is_some(), "the service is not back");
    }

    /// Has the governed unit ask for `target`: curl's exit code and the status it got.
    pub(crate) fn report(&self, target: &str) -> String {
        report(UNIT, target)
    }

    /// Starts a unit of this name, which then asks for whatever it is told to.
    pub(crate) fn start_asking(&self, unit: &str) {
        let path = Path::new("/etc/systemd/system").join(unit);
        let text = format!("[Service]\nExecStart=/bin/sh /run/asking.sh /run/{unit}\n");
        fs::write(path, text).unwrap();
        self.systemctl(&["daemon-reload"]);
        self.systemctl(&["stop", unit]);
        // Nobody reads the pipes of one that is gone.
        for end in ["in", "out"] {
            let _ = fs::remove_file(format!("/run/{unit}.{end}"));
        }
        self.systemctl(&["start", unit]);
    }

    /// Starts a unit of this name, which serves over both families as `user`.
    pub(crate) fn start_serving(&self, unit: &str, user: &str, port: u16) {
        let path = Path::new("/etc/systemd/system").join(unit);
        let command = format!("/usr/bin/python3 -IS -m http.server --bind :: {port}");
        let text =
            format!("[Service]\nUser={user}\nWorkingDirectory=/run/systemd\nExecStart={command}\n");
        fs::write(path, text).unwrap();
        self.systemctl(&["daemon-reload"]);
        self.systemctl(&["start", unit]);
    }

    /// Has the agent take up another policy.
    pub(crate) fn reload(&self, policy: &str) {
        fs::write("/etc/tollgate/policy.d/policy.yaml", policy).unwrap();
        let reloaded = self.output("tollgate", &["reload"]);
        assert!(reloaded.status.success(), "{}", text(&reloaded.stderr));
    }

    /// Runs a command as a unit of this name, once, and waits for its end; its exit code.
    pub(crate) fn run_once(&self, unit: &str, command: &str) -> String {
        let path = Path::new("/etc/systemd/system").join(unit);
        let text = format!("[Service]\nType=oneshot\nExecStart={command}\n");
        fs::write(path, text).unwrap();
        self.systemctl(&["daemon-reload"]);
        // Fails where the command does.
        let _ = self.output("systemctl", &["start", unit]);
        self.show(unit, "ExecMainStatus")
    }

    /// When systemd last started a unit's program.
    pub(crate) fn started(&self, unit: &str) -> jiff::Timestamp {
        use rustix::time::{ClockId::Monotonic, clock_gettime};
        // Of the two that it tells, the one with more than seconds.
        let at = self.show(unit, "ExecMainStartTimestampMonotonic");
        assert_ne!(at, "0", "systemd does not know {unit}");
        let at = Duration::from_micros(at.parse().unwrap());
        let now = Duration::try_from(clock_gettime(Monotonic)).unwrap();
        jiff::Timestamp::now() - (now - at)
    }

    /// What the journal says of a unit, as `journalctl -u` with these options prints it.
    pub(crate) fn journal(&self, unit: &str, options: &[&str]) -> String {
        let mut arguments = vec!["--no-pager", "-b", "-u", unit];
        arguments.extend(options);
        text(&self.output("journalctl", &arguments).stdout)
    }

    pub(crate) fn nginx_requests(&self) -> usize {
        let log = fs::read_to_string("/run/reports.log").unwrap_or_default();
        log.lines().count()
    }

    /// Times that the kernel killed something of the service for want of memory, since it was last started.
    pub(crate) fn oom_kills(&self) -> u64 {
        let result = self.show("tollgate", "Result");
        let journal = self.output("journalctl", &["--no-pager", "-b", "-u", "tollgate"]);
        let told = text(&journal.stdout).matches("oom-kill").count() as u64;
        u64::from(result == "oom-kill") + told
    }

    /// Layers by name, as `tollgate status` tells them.
    pub(crate) fn layers(&self) -> Map<String, Value> {
        let output = self.output("tollgate", &["status", "-o", "json"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        let layers = status["layers"].as_array().unwrap();
        layers
            .iter()
            .map(|layer| (layer["name"].as_str().unwrap().to_owned(), layer.clone()))
            .collect()
    }

    pub(crate) fn decisions(&self) -> Vec<Value> {
        let output = self.output("tollgate", &["decisions", "-o", "jsonl", "--limit", "1000"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let said = text(&output.stdout);
        said.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Asks a unit that [`Host::start_asking`] started.
pub(crate) fn report(unit: &str, target: &str) -> String {
    let pipe = |end: &str| format!("/run/{unit}.{end}");
    let made = eventually(Duration::from_secs(60), || {
        Path::new(&pipe("out")).exists().then_some(())
    });
    assert!(made.is_some(), "{unit} does not run");
    fs::write(pipe("in"), format!("{target}\n")).unwrap();
    fs::read_to_string(pipe("out")).unwrap().trim().to_owned()
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.output("systemctl", &["stop", "tollgate", UNIT]);
        let _ = self.nginx.kill();
        let _ = self.nginx.wait();
        for gone in [
            "/sys/fs/bpf/tollgate",
            "/var/lib/tollgate",
            "/run/systemd/system.control/tollgate.service.d",
        ] {
            let _ = fs::remove_dir_all(gone);
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
