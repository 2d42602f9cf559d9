//! The real unit under real systemd, on a host that may be changed: it installs the service, governs a unit, and ends
//! both in every way. `cargo xtask vm` runs it in a machine of its own; it refuses to run elsewhere.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]

mod host;

use harness::{at_most, eventually, everything};
use host::{Host, text};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// curl's exit code where nobody answers.
const REFUSED: &str = "7";

#[test]
fn the_service_starts_sandboxed_and_says_what_is_in_force() {
    let host = Host::new();
    assert_eq!(host.show("tollgate", "ActiveState"), "active");
    assert_eq!(host.show("tollgate", "NRestarts"), "0");
    // As in the test of the unit's file; here of the running service.
    let scored = host.output(
        "systemd-analyze",
        &["security", harness::EXPOSURE, "tollgate"],
    );
    assert!(scored.status.success(), "{}", text(&scored.stdout));
    let status = host.output("tollgate", &["status"]);
    let told = text(&status.stdout);
    assert_eq!(status.status.code(), Some(0), "{told}");
    assert!(told.starts_with("enforcing\n"), "{told}");
    what_this_kernel_lacks_is_stood_in_for(&host);
}

fn what_this_kernel_lacks_is_stood_in_for(host: &Host) {
    let layers = host.layers();
    for name in [
        "connect4",
        "connect6",
        "egress",
        "sock_create",
        "sched_process_fork",
        "socket_create",
        "ptrace_access_check",
        "task_kill",
        "file_receive",
        "socket_sendmsg",
        "bpf",
        "inode_unlink",
        "inode_rename",
        "sb_umount",
    ] {
        assert_eq!(layers[name]["enforcing"], true, "{name}");
    }
    // The second fence stands in for the hooks on Unix sockets where the kernel has none.
    let held = |names: [&str; 2]| {
        let mut layers = names.iter().map(|name| layers.get(*name));
        layers.all(|layer| layer.is_some_and(|layer| layer["enforcing"] == true))
    };
    assert_ne!(
        held(["connect_unix", "sendmsg_unix"]),
        held(["unix_stream_connect", "unix_may_send"])
    );
}

#[test]
fn a_governed_unit_is_held_to_its_policy_by_its_name() {
    let host = Host::new();
    assert_eq!(host.report(&host.allowed), "0 200");
    assert_eq!(host.report(host::DENIED), "0 403");
    assert_eq!(host.report(host::DENIED6), "0 403");
    let decisions = host.decisions();
    for (verdict, count) in [("ALLOW", 1), ("DENY", 2)] {
        let found: Vec<_> = decisions
            .iter()
            .filter(|d| d["verdict"] == verdict)
            .collect();
        assert_eq!(found.len(), count, "{decisions:#?}");
        for decision in found {
            assert_eq!(decision["process"]["unit"], host::UNIT, "{decision}");
            assert_eq!(decision["workload"], "report-builder", "{decision}");
        }
    }
    // The same program as another unit is nobody's business.
    host.start_asking("other.service");
    assert_eq!(host::report("other.service", &host.allowed), "0 200");
    assert_eq!(host.decisions().len(), decisions.len());
    host.systemctl(&["stop", "other.service"]);
    a_governed_unit_does_not_have_others_run_what_it_may_not(&host);
    a_daemon_from_before_its_rule_is_held_and_let_go(&host);
}

/// Of a unit that has never been, too.
#[test]
fn the_first_thing_that_a_new_unit_does_is_held() {
    let host = Host::new();
    let more = "workloads:\n  fresh: { match: { unit: fresh.service } }\n";
    host.reload(&host::POLICY.replace("workloads:\n", more));
    let canaries = ["127.0.0.1", "::1"].map(Canary::new);
    let heard = || canaries.each_ref().map(Canary::heard);
    let [four, six] = canaries.each_ref().map(|canary| canary.port);
    let dials = DIALS.replace("FOUR", &four.to_string());
    fs::write("/run/dials.sh", dials.replace("SIX", &six.to_string())).unwrap();
    let program = "/bin/bash /run/dials.sh";

    // What has ended well is forgotten, and with it when it began.
    let directory = Path::new("/etc/systemd/system/fresh.service.d");
    fs::create_dir_all(directory).unwrap();
    fs::write(
        directory.join("stay.conf"),
        "[Service]\nRemainAfterExit=yes\n",
    )
    .unwrap();
    let code = host.run_once("fresh.service", program);
    assert_eq!(code, "0", "{}", host.journal("fresh.service", &[]));
    assert_eq!(heard(), [0, 0], "it got out");
    let decisions = host.decisions();
    let ours = decisions.iter().filter(|one| one["workload"] == "fresh");
    let times: Vec<jiff::Timestamp> = ours
        .map(|one| {
            assert_eq!(one["verdict"], "DENY", "{one}");
            one["time"].as_str().unwrap().parse().unwrap()
        })
        .collect();
    assert_eq!(times.len(), 2, "{decisions:#?}");
    // The first decision, that its program came to be told of, was made of a governed unit.
    let begun = host.started("fresh.service");
    let took = times.iter().min().unwrap().duration_since(begun);
    eprintln!("decided {took:#} after the unit's start");
    let limit = at_most(Duration::from_millis(100));
    assert!(
        took.unsigned_abs() < limit && took.is_positive(),
        "{took:#}"
    );

    host.systemctl(&["stop", "fresh.service"]);
    fs::remove_dir_all(directory).unwrap();

    // As a unit that policy does not name it is heard.
    host.run_once("other.service", program);
    assert_eq!(heard(), [1, 1]);
}

/// Dials first. For bash, which is there sooner than Python: where it is emulated, that takes a second and a half to start.
const DIALS: &str = r#"
held=0
for at in 127.0.0.1/FOUR ::1/SIX; do
    exec 3<>/dev/tcp/$at || continue
    host=${at%/*} port=${at#*/}
    case $host in *:*) host=[$host] ;; esac
    printf 'GET / HTTP/1.1\r\nhost: %s:%s\r\n\r\n' $host $port >&3
    read -r -N 12 said <&3
    echo "$said"
    [ "$said" = "HTTP/1.1 403" ] && held=$((held + 1))
done
[ $held = 2 ]
"#;

/// Counts whoever connects to it.
struct Canary {
    port: u16,
    count: Arc<AtomicUsize>,
}

impl Canary {
    fn new(ip: &str) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let canary = Self {
            port: listener.local_addr().unwrap().port(),
            count: Arc::default(),
        };
        let count = Arc::clone(&canary.count);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                // Read, so that its end is no reset.
                let _ = stream.read(&mut [0; 256]);
            }
        });
        canary
    }

    fn heard(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

/// Whose program logs no more than the code finds the rule that was missing beside it, in the unit's own log.
#[test]
fn a_refused_units_own_log_says_which_rule_was_missing() {
    const NIGHTLY: &str = "nightly.service";
    let host = Host::new();
    let call = "/usr/bin/curl -fsSk --resolve catalog.example.test:443:198.51.100.7 \
                https://catalog.example.test/v1/customers?since=january";
    assert_eq!(host.run_once(NIGHTLY, call), "22");
    let own = "curl: (22) The requested URL returned error: 403";
    let told = "GET catalog.example.test/v1/customers (403) by curl[";
    let why = "no rule of workload `nightly` on api `catalog` has this path";
    let shown = eventually(at_most(Duration::from_secs(5)), || {
        let said = host.journal(NIGHTLY, &["-o", "short"]);
        said.contains(why).then_some(said)
    });
    let said = shown.unwrap_or_else(|| panic!("{}", host.journal(NIGHTLY, &["-o", "json"])));
    for part in [own, told, "tollgate[", "(no_route; tollgate explain "] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let status = text(&host.output("systemctl", &["status", NIGHTLY]).stdout);
    assert!(status.contains(own) && status.contains(why), "{status}");

    let entries = host.journal(NIGHTLY, &["-o", "json", "SYSLOG_IDENTIFIER=tollgate"]);
    let [entry] = <[&str; 1]>::try_from(entries.lines().collect::<Vec<_>>()).unwrap();
    assert!(!entry.contains("january"), "{entry}");
    let entry: serde_json::Value = serde_json::from_str(entry).unwrap();
    for (name, value) in [
        ("PRIORITY", "4"),
        ("_SYSTEMD_UNIT", "tollgate.service"),
        ("OBJECT_SYSTEMD_UNIT", NIGHTLY),
        ("TOLLGATE_WORKLOAD", "nightly"),
        ("TOLLGATE_REASON", "no_route"),
    ] {
        assert_eq!(entry[name], value, "{entry}");
    }
    let id = entry["TOLLGATE_DECISION"].as_str().unwrap();
    let explained = host.output("tollgate", &["explain", id]);
    let code = explained.status.code();
    assert_eq!(code, Some(0), "{}", text(&explained.stderr));
    assert!(text(&explained.stdout).contains("no_route"));

    // Again within the minute: it is counted, and not told once more.
    assert_eq!(host.run_once(NIGHTLY, call), "22");
    assert_eq!(host.decisions().len(), 2);
    let entries = host.journal(NIGHTLY, &["-o", "json", "SYSLOG_IDENTIFIER=tollgate"]);
    assert_eq!(entries.lines().count(), 1, "{entries}");
    let status = host.output("tollgate", &["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["audit"]["untold"], 0);
}

/// A unit that may speak to the system's manager, or to its bus, has whatever it likes run outside of the fence.
fn a_governed_unit_does_not_have_others_run_what_it_may_not(host: &Host) {
    let call = format!(
        "/usr/bin/systemd-run --quiet --wait --collect /usr/bin/curl -sS -m 20 -o /dev/null {}",
        host.allowed
    );
    let bus = "/usr/bin/busctl --system call org.freedesktop.DBus / org.freedesktop.DBus GetId";
    for asks in [&*call, bus] {
        assert_ne!(host.run_once("errand.service", asks), "0", "{asks}");
    }
    let before = host.nginx_requests();
    assert_eq!(before, 2, "the report's, and nobody's");
    let refused = host.decisions();
    let told = |program: &str| {
        refused.iter().any(|one| {
            let name = one["request"]["host"].as_str().unwrap_or_default();
            let by = one["process"]["exe"].as_str().unwrap_or_default();
            one["workload"] == "errand"
                && one["reason"]["code"] == "unix"
                && name.starts_with("/run/")
                && by.ends_with(program)
        })
    };
    assert!(told("systemd-run") && told("busctl"), "{refused:#?}");
    // Nobody's unit does.
    for asks in [&*call, bus] {
        assert_eq!(host.run_once("other.service", asks), "0", "{asks}");
    }
    assert_eq!(host.nginx_requests(), before + 1);
}

#[test]
fn stopped_killed_and_restarted_it_never_opens() {
    let host = Host::new();
    assert_eq!(host.report(&host.allowed), "0 200");

    host.systemctl(&["stop", "tollgate"]);
    let refused = format!("{REFUSED} 000");
    for target in [host.allowed.as_str(), host::DENIED, host::DENIED6] {
        assert_eq!(host.report(target), refused);
    }
    assert_eq!(host.nginx_requests(), 1, "only what was allowed before");
    host.systemctl(&["start", "tollgate"]);
    assert_eq!(host.report(&host.allowed), "0 200");

    let before = host.show("tollgate", "MainPID");
    host.systemctl(&["kill", "--signal=KILL", "tollgate"]);
    let begun = Instant::now();
    host.comes_back(&before);
    let limit = at_most(Duration::from_secs(2));
    assert!(begun.elapsed() < limit, "back after {:?}", begun.elapsed());
    assert_eq!(host.show("tollgate", "NRestarts"), "1");
    assert_eq!(host.report(&host.allowed), "0 200");

    let before = host.show("tollgate", "MainPID");
    host.systemctl(&["restart", "tollgate"]);
    assert_ne!(host.show("tollgate", "MainPID"), before);
    assert_eq!(host.report(host::DENIED), "0 403");
}

/// A selector may mean the service's own cgroup as well: what is beside it is governed, and it is not, also when it is reloaded and
/// started again.
#[test]
fn what_is_beside_the_service_is_governed() {
    const BESIDE: &str = "beside.service";
    let host = Host::new();
    let drop_ins = ["tollgate.service", BESIDE].map(|unit| {
        let directory = Path::new("/etc/systemd/system").join(format!("{unit}.d"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(
            directory.join("slice.conf"),
            "[Service]\nSlice=held.slice\n",
        )
        .unwrap();
        directory
    });
    host.systemctl(&["daemon-reload"]);
    host.systemctl(&["restart", "tollgate"]);
    let more = "workloads:\n  beside: { match: { cgroup: \"/held.slice/**\" } }\n";
    host.reload(&host::POLICY.replace("workloads:\n", more));
    let are_held = || {
        for target in [host::DENIED, host::DENIED6] {
            assert_eq!(host::report(BESIDE, target), "0 403");
        }
        let status = host.output("tollgate", &["status"]);
        assert!(status.status.success(), "{}", text(&status.stdout));
    };
    host.start_asking(BESIDE);
    are_held();
    host.systemctl(&["reload", "tollgate"]);
    are_held();
    host.systemctl(&["restart", "tollgate"]);
    are_held();
    host.start_asking(BESIDE);
    are_held();
    host.systemctl(&["stop", BESIDE]);
    for directory in drop_ins {
        fs::remove_dir_all(directory).unwrap();
    }
    host.systemctl(&["daemon-reload"]);
}

/// The service has a `/tmp` of its own: who runs a file of the host's that is called as policy says is refused, and it is said why.
#[test]
fn an_executable_in_tmp_is_not_taken_for_nobodys() {
    const TOOL: &str = "/tmp/tollgate-test-tool";
    let host = Host::new();
    let more = format!("workloads:\n  tool: {{ match: {{ exe: {TOOL} }} }}\n");
    host.reload(&host::POLICY.replace("workloads:\n", &more));
    fs::copy("/usr/bin/curl", TOOL).unwrap();
    for target in [host::DENIED, host::DENIED6] {
        let output = host.output(TOOL, &["-sS", "-m", "5", target]);
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    }
    fs::remove_file(TOOL).unwrap();
    let status = text(&host.output("tollgate", &["status"]).stdout);
    assert!(status.contains("PrivateTmp=no"), "{status}");
}

/// The host starts anew with a policy that is wrong: who was governed is refused, and where the agent cannot start, so is the unit.
#[test]
fn a_unit_that_requires_the_service_never_runs_without_it() {
    let host = Host::new();
    let drop_in = Path::new("/etc/systemd/system").join(format!("{}.d", host::UNIT));
    fs::create_dir_all(&drop_in).unwrap();
    let unit = "[Unit]\nRequires=tollgate.service\nAfter=tollgate.service\n";
    fs::write(drop_in.join("requires.conf"), unit).unwrap();
    host.systemctl(&["daemon-reload"]);
    let reboot = || {
        host.systemctl(&["stop", "tollgate"]);
        assert_ne!(host.show(host::UNIT, "ActiveState"), "active");
        fs::remove_dir_all("/sys/fs/bpf/tollgate").unwrap();
    };
    reboot();
    let policy = Path::new("/etc/tollgate/policy.d/policy.yaml");
    fs::write(policy, host::POLICY.replace("apis:", "apsi:")).unwrap();
    host.start_asking(host::UNIT);
    assert_eq!(host.show("tollgate", "ActiveState"), "active");
    assert_eq!(host.report(host::DENIED), "0 403");
    assert_ne!(host.report(&host.allowed), "0 200");
    assert_eq!(host.nginx_requests(), 0);

    reboot();
    fs::remove_file("/var/lib/tollgate/policy-in-force.json").unwrap();
    let started = host.output("systemctl", &["start", host::UNIT]);
    assert!(!started.status.success(), "{}", text(&started.stdout));
    assert_ne!(host.show(host::UNIT, "ActiveState"), "active");
    // It is tried again, and comes up as soon as it can.
    fs::write(policy, host::POLICY).unwrap();
    host.comes_back("0");
    host.start_asking(host::UNIT);
    assert_eq!(host.report(&host.allowed), "0 200");
    fs::remove_dir_all(&drop_in).unwrap();
    host.systemctl(&["daemon-reload"]);
}

/// Again and again out of memory: what it governs is refused, and nothing of it gets out.
#[test]
fn an_agent_that_runs_out_of_memory_leaves_nothing_open() {
    let host = Host::new();
    assert_eq!(host.report(&host.allowed), "0 200");
    let before = host.show("tollgate", "MainPID");
    host.systemctl(&[
        "set-property",
        "--runtime",
        "tollgate",
        "MemoryMax=1M",
        "MemorySwapMax=0",
    ]);
    let killed = eventually(at_most(Duration::from_secs(5)), || {
        (host.oom_kills() > 0).then_some(())
    });
    assert!(killed.is_some(), "the kernel killed nobody");
    for target in [host.allowed.as_str(), host::DENIED, host::DENIED6] {
        assert_eq!(host.report(target), format!("{REFUSED} 000"));
    }
    assert_eq!(host.nginx_requests(), 1);
    host.systemctl(&[
        "set-property",
        "--runtime",
        "tollgate",
        "MemoryMax=infinity",
    ]);
    host.comes_back(&before);
    assert_eq!(host.report(&host.allowed), "0 200");
}

/// A daemon runs before a rule on its user does. The agent in its sandbox may say whose the listener is, and let it go again.
fn a_daemon_from_before_its_rule_is_held_and_let_go(host: &Host) {
    let served = |ip: &str| {
        let url = format!("http://{ip}:8099/");
        let answer = host.output("curl", &["-sSg", "-m", "3", "-o", "/dev/null", &url]);
        answer.status.success()
    };
    let both = |are: bool| ["127.0.0.1", "[::1]"].iter().all(|ip| served(ip) == are);
    let patience = Duration::from_secs(60);
    host.start_serving("earlier.service", "games", 8099);
    assert!(eventually(patience, || both(true).then_some(())).is_some());
    host.reload(&format!(
        "{}\n",
        host::POLICY.replace(
            "  nightly:",
            "  earlier: { match: { user: games } }\n  nightly:"
        )
    ));
    let held = eventually(patience, || both(false).then_some(()));
    assert!(
        held.is_some(),
        "{}",
        host.journal("tollgate", &["-n", "20"])
    );
    let said = host.journal("tollgate", &["-b"]);
    assert!(!said.contains("are not refused"), "{said}");
    host.reload(host::POLICY);
    let free = eventually(patience, || both(true).then_some(()));
    assert!(free.is_some(), "policy has let go of it");
    host.systemctl(&["stop", "earlier.service"]);
}

/// With the agent, and while it is down; also the unit that was governed until then, which shows that there was something to lose.
#[test]
fn a_host_on_which_nobody_is_governed_loses_nothing() {
    let host = Host::new();
    let cgroup = format!("/sys/fs/cgroup/system.slice/{}/cgroup.procs", host::UNIT);
    let enter = format!("echo $$ > {cgroup} && exec \"$@\"");
    let lost = |seconds: &str, as_unit: bool| {
        let run = |program: &str, of: &[&str]| {
            let entering = ["-c", &enter, "sh", program];
            Ok(match as_unit {
                true => host.output("sh", &[&entering, of].concat()),
                false => host.output(program, of),
            })
        };
        everything::lost(seconds, run).unwrap()
    };
    // Unix sockets are held by one of two layers, by which of them is shown elsewhere.
    let mut held = lost("1", true);
    held.retain(|what, _| !what.starts_with("SOCK"));
    assert_eq!(held.len(), 13, "{held:?}");

    host.reload("version: 1\nworkloads: {}\n");
    let status = || text(&host.output("tollgate", &["status", "-o", "json"]).stdout);
    let free = eventually(Duration::from_secs(60), || {
        let status: serde_json::Value = serde_json::from_str(&status()).unwrap();
        (status["governed"] == 0).then_some(())
    });
    assert!(free.is_some(), "{}", status());
    assert_eq!(lost("30", true), BTreeMap::new(), "with the agent");
    host.systemctl(&["stop", "tollgate"]);
    assert_eq!(lost("30", false), BTreeMap::new(), "without the agent");
    assert_eq!(host.report(&host.allowed), "0 200");
}

/// What a unit did before it was governed does not go on, and lifting the fence by hand is seen.
#[test]
fn without_the_fence_the_unit_is_free_and_status_says_so() {
    let host = Host::new();
    assert_eq!(host.report(host::DENIED), "0 403");
    host.systemctl(&["stop", "tollgate"]);
    fs::remove_dir_all("/sys/fs/bpf/tollgate").unwrap();
    assert_eq!(
        host.report(&host.allowed),
        "0 200",
        "the effect is the fence's"
    );
    let status = host.output("tollgate", &["status"]);
    assert_eq!(status.status.code(), Some(3), "{}", text(&status.stdout));
    assert!(
        !text(&status.stdout).contains("fence   stands"),
        "{}",
        text(&status.stdout)
    );
}
