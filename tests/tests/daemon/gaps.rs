//! What policy says and the kernel half cannot hold, or cannot hold at once: nothing gets out by that, and `status` says so.
use crate::late::Late;
use crate::recognising::{digest, processes};
use crate::support::*;
use harness::eventually;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Listeners of both families that a workload must never reach.
struct Canaries([TcpListener; 2]);

impl Canaries {
    fn new() -> Self {
        let canaries = ["127.0.0.1:0", "[::1]:0"].map(|at| TcpListener::bind(at).unwrap());
        for canary in &canaries {
            canary.set_nonblocking(true).unwrap();
        }
        Self(canaries)
    }

    fn are_quiet(&self) -> bool {
        self.0.iter().all(|canary| canary.accept().is_err())
    }

    /// Asks both, a second each at most.
    fn ask(&self) -> String {
        let ask = |canary: &TcpListener| {
            let at = canary.local_addr().unwrap();
            format!("curl -sg -m 1 -o /dev/null -w '%{{http_code}} ' http://{at}/; ")
        };
        self.0.iter().map(ask).collect()
    }

    /// The control: who is not governed reaches them.
    fn are_reached_from_outside(&self) -> bool {
        let _ = Command::new("sh").args(["-c", &self.ask()]).output();
        self.0.iter().all(|canary| canary.accept().is_ok())
    }
}

/// Runs a script in a cgroup that is there.
fn within(cgroup: &Path, script: &str) -> Output {
    let script = format!("echo $$ > {}/cgroup.procs && {script}", cgroup.display());
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::null());
    command.output().unwrap()
}

fn curl() -> String {
    format!("curl -sS -m 5 -o /dev/null -w '%{{http_code}}' {ELSEWHERE}")
}

fn is_answered(cgroup: &Path) -> bool {
    text(&within(cgroup, &curl()).stdout) == "403"
}

/// Why it is not enforcing; nothing if it is.
fn why(place: &Place) -> String {
    let verdict = place.status()["verdict"].clone();
    match verdict["state"] == "enforcing" {
        true => String::new(),
        false => verdict.to_string(),
    }
}

pub(crate) fn becomes_enforcing(place: &Place) {
    let enforcing = eventually(START, || why(place).is_empty().then_some(()));
    assert!(enforcing.is_some(), "{}", why(place));
}

fn sleeper(cgroup: &Path) -> Child {
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec sleep 60",
        cgroup.display()
    );
    Command::new("sh").args(["-c", &script]).spawn().unwrap()
}

/// A selector may mean the agent's own cgroup too, as `/system.slice/**` does: everything else there is governed, what is made
/// later and before the agent starts again included, and the agent still is not.
#[test]
fn what_is_beside_the_agent_is_governed() {
    let mut place = Place::new();
    let [own, there, new] = ["own", "there", "new"].map(|name| place.cgroup.join(name));
    for cgroup in [&own, &there] {
        fs::create_dir(cgroup).unwrap();
    }
    let canaries = Canaries::new();
    place.start_in(&own);
    becomes_enforcing(&place);
    assert!(is_answered(&there));
    fs::create_dir(&new).unwrap();
    assert!(is_answered(&new), "made while the agent ran");

    // What shares the agent's own cgroup cannot be told from it by that.
    let mut beside = sleeper(&own);
    let told = eventually(START, || {
        why(&place).contains(&beside.id().to_string()).then_some(())
    });
    assert!(told.is_some(), "{}", why(&place));
    beside.kill().unwrap();
    beside.wait().unwrap();
    becomes_enforcing(&place);

    // As its service is started again.
    place.end(Signal::KILL);
    within(&there, &canaries.ask());
    within(&new, &canaries.ask());
    assert!(canaries.are_quiet(), "without an agent");
    let gone = eventually(START, || fs::remove_dir(&own).ok());
    assert!(gone.is_some(), "the agent's cgroup is in use");
    fs::create_dir(&own).unwrap();
    fs::remove_dir(&new).unwrap();
    fs::create_dir(&new).unwrap();
    within(&new, &canaries.ask());
    assert!(canaries.are_quiet(), "made without an agent");
    place.start_in(&own);
    becomes_enforcing(&place);
    assert!(is_answered(&there) && is_answered(&new));
    assert!(canaries.are_reached_from_outside());
    place.end(Signal::TERM);
    for cgroup in [own, there, new] {
        let _ = eventually(START, || fs::remove_dir(&cgroup).ok());
    }
}

/// What is governed does not take the agent's port while it is down, and an agent that was started there is told from who would.
#[test]
fn an_agent_that_is_governed_itself_says_so() {
    let mut place = Place::new();
    let own = place.cgroup.join("own");
    place.start();
    let whole = format!("\"/{}\"", place.name);
    let is_governed = || text(&place.output(&["workloads", "-o", "json"]).stdout).contains(&whole);
    assert!(eventually(START, || is_governed().then_some(())).is_some());
    place.end(Signal::KILL);
    fs::create_dir(&own).unwrap();
    let mut command = String::from("exec ");
    let agent = place.tollgate(&["agent"]);
    for (name, value) in agent.get_envs() {
        let value = value.unwrap().to_str().unwrap();
        command += &format!("env {}={value} ", name.to_str().unwrap());
    }
    let output = within(
        &own,
        &format!("{command}{} agent", agent.get_program().display()),
    );
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("is governed itself") && said.contains("Slice="),
        "{said}"
    );
    fs::remove_dir(&own).unwrap();
    place.start();
    becomes_enforcing(&place);
}

/// An agent that can open nothing knows no less than before.
#[test]
fn for_want_of_descriptors_nothing_is_let_go() {
    let mut place = Place::new();
    let more =
        "workloads:\n  people: { match: { user: nobody } }\n  named: { match: { exe: CURL } }\n";
    let named = place.path("named");
    fs::copy("/usr/bin/curl", &named).unwrap();
    let more = more.replace("CURL", &named.display().to_string());
    place.write_policy(&POLICY.replace("workloads:\n", &more));
    place.start();
    let there = place.cgroup.join("there");
    fs::create_dir(&there).unwrap();
    assert!(is_answered(&there));
    let canaries = Canaries::new();
    let agent = Pid::from_child(place.agent.as_ref().unwrap());
    let none = Rlimit {
        current: Some(3),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(Some(agent), Resource::Nofile, none).unwrap();
    // It looks once a second.
    std::thread::sleep(Duration::from_secs(3));
    let ask = canaries.ask();
    within(&there, &ask);
    assert!(canaries.are_quiet(), "the cgroup is governed no more");
    let by_user = |ask: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "nobody", "--clear-groups", "sh", "-c", ask]);
        command.stdin(Stdio::null()).output().unwrap()
    };
    by_user(&ask);
    assert!(canaries.are_quiet(), "the user is nobody's");
    let by_exe = ask.replace("curl", &named.display().to_string());
    let _ = Command::new("sh").args(["-c", &by_exe]).output().unwrap();
    assert!(canaries.are_quiet(), "the executable is nobody's");
    assert!(canaries.are_reached_from_outside());

    prlimit(Some(agent), Resource::Nofile, before).unwrap();
    becomes_enforcing(&place);
    assert!(is_answered(&there));
    fs::remove_dir(&there).unwrap();
}

/// More ports than the kernel half has room for: said at once, and until policy has fewer.
#[test]
fn what_the_kernel_half_has_no_room_for_is_said() {
    let mut place = Place::new();
    place.start();
    becomes_enforcing(&place);
    let ports: Vec<String> = (1..=64).map(|port| (20_000 + port).to_string()).collect();
    let one = |n: usize| {
        format!(
            "  w{n}: {{ match: {{ cgroup: /w{n} }}, listen: [{}] }}\n",
            ports.join(", ")
        )
    };
    let many: String = (0..300).map(one).collect();
    place.write_policy(&POLICY.replace("workloads:\n", &format!("workloads:\n{many}")));
    let output = place.output(&["reload"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        said.contains("not in force") && said.contains("`listen`"),
        "{said}"
    );
    assert!(why(&place).contains("LISTEN"), "{}", why(&place));
    place.write_policy(POLICY);
    let output = place.output(&["reload"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    becomes_enforcing(&place);
}

/// Ten thousand workloads, half of them by cgroup and half by user, are taken up like two: at a reload and at a start.
#[test]
fn ten_thousand_workloads_are_a_policy_like_any_other() {
    let (mut place, canaries) = (Place::new(), Canaries::new());
    let name = place.name.clone();
    let one = |n: u32| match n % 2 {
        0 => format!("  w{n}: {{ match: {{ cgroup: /{name}-{n} }}, listen: [20001] }}\n"),
        _ => format!("  w{n}: {{ match: {{ user: {} }} }}\n", 1_000_000 + n),
    };
    let many: String = (0..10_000).map(one).collect();
    let more = POLICY.replace("workloads:\n", &format!("workloads:\n{many}"));
    place.start();
    place.write_policy(&more);
    let begun = Instant::now();
    let output = place.output(&["reload"]);
    let took = begun.elapsed();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    eprintln!("10 000 workloads taken up in {took:?}");
    let limit = harness::at_most(Duration::from_secs(5));
    assert!(took < limit, "{took:?}");
    becomes_enforcing(&place);

    let of_last = cgroup_root().join(format!("{name}-9998"));
    fs::create_dir(&of_last).unwrap();
    let asks = canaries.ask();
    let by_cgroup = || text(&within(&of_last, &asks).stdout);
    let by_user = |user: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--clear-groups", "sh", "-c", &asks]);
        text(&command.stdin(Stdio::null()).output().unwrap().stdout)
    };
    let are_governed = || {
        assert_eq!(by_cgroup(), "403 403 ");
        assert_eq!(by_user("1009999"), "403 403 ");
        assert!(canaries.are_quiet());
    };
    are_governed();
    let decided = text(&place.output(&["decisions", "-o", "json"]).stdout);
    for workload in ["\"w9998\"", "\"w9999\""] {
        assert!(decided.contains(workload), "nothing of {workload}");
    }
    // As many of other names are too many beside these, whose numbers records have.
    place.write_policy(&more.replace("  w", "  other"));
    let output = place.output(&["reload"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("too many workloads"), "{said}");
    assert!(
        why(&place).contains("too many workloads"),
        "{}",
        why(&place)
    );
    for asks in [by_cgroup(), by_user("1009999")] {
        assert!(canaries.are_quiet(), "{asks}");
    }
    place.write_policy(&more);
    let output = place.output(&["reload"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    becomes_enforcing(&place);
    are_governed();

    place.end(Signal::TERM);
    let begun = Instant::now();
    place.start();
    becomes_enforcing(&place);
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    are_governed();
    // Nobody's user.
    by_user("1010000");
    assert!(canaries.0.iter().all(|canary| canary.accept().is_ok()));
    fs::remove_dir(&of_last).unwrap();
}

/// Of a policy that is too much the hooks take a part; the one before is told again, though it was told before that.
#[test]
fn a_policy_that_was_told_before_one_that_was_told_in_part_is_told_again() {
    let (mut place, canaries) = (Place::new(), Canaries::new());
    let name = place.name.clone();
    let one = |of: &str, n: u32| format!("  {of}{n}: {{ match: {{ cgroup: /{name}-{n} }} }}\n");
    let by_user = |n: u32| format!("  user{n}: {{ match: {{ user: {} }} }}\n", 1_000_000 + n);
    let with = |more: String| POLICY.replace("workloads:\n", &format!("workloads:\n{more}"));
    let good = with((0..5_000).map(|n| one("own", n)).collect());
    let others = (0..5_000).map(|n| one("other", n));
    let too_much = with(others.chain((0..10_000).map(by_user)).collect());
    place.start();
    for (policy, code) in [(&good, 0), (&too_much, 1), (&good, 0)] {
        place.write_policy(policy);
        let output = place.output(&["reload"]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
    becomes_enforcing(&place);
    place.end(Signal::TERM);
    let new = cgroup_root().join(format!("{name}-7"));
    fs::create_dir(&new).unwrap();
    let asked = text(&within(&new, &canaries.ask()).stdout);
    assert!(canaries.are_quiet(), "{asked}");
    fs::remove_dir(&new).unwrap();
    place.start();
    let decided = text(&place.output(&["decisions", "-o", "json"]).stdout);
    assert!(decided.contains("\"own7\""), "{decided}");
    assert!(!decided.contains("\"other7\""), "{decided}");
}

/// Selectors by which nobody is recognised are no fault, since who is meant may come: they are said for as long as they are so.
#[test]
fn selectors_that_recognise_nobody_are_said() {
    let mut place = Place::new();
    let program = place.path("program");
    let policy = |user: &str| {
        let more = format!(
            "workloads:\n  people: {{ match: {{ user: {user} }} }}\n  named: {{ match: {{ exe: {} }} }}\n",
            program.display()
        );
        POLICY.replace("workloads:\n", &more)
    };
    place.write_policy(&policy("nobody-there"));
    place.start();
    becomes_enforcing(&place);
    let unresolved = |place: &Place| place.status()["unresolved"].to_string();
    let both = |said: &str| {
        said.contains("user nobody-there of workload people")
            && said.contains(&format!("exe {} of workload named", program.display()))
    };
    assert!(both(&unresolved(&place)), "{}", unresolved(&place));
    let shown = text(&place.output(&["status"]).stdout);
    assert!(both(&shown) && shown.contains("  selector "), "{shown}");
    let output = place.output(&["reload"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = text(&output.stderr);
    assert!(both(&said) && said.contains("warning"), "{said}");

    fs::copy("/usr/bin/curl", &program).unwrap();
    place.write_policy(&policy("nobody"));
    let output = place.output(&["reload"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(unresolved(&place), "[]");
    fs::remove_file(&program).unwrap();
    let told = eventually(START, || {
        unresolved(&place).contains("no file lies").then_some(())
    });
    assert!(told.is_some(), "{}", unresolved(&place));
    becomes_enforcing(&place);
}

/// Who does not connect any more has nobody ask what it runs but the agent.
#[test]
fn what_cannot_be_read_at_first_is_asked_for_until_it_can() {
    let mut place = Place::new();
    let served = place.path("served");
    fs::copy("/usr/bin/curl", &served).unwrap();
    // More than there are walks that ask for everybody.
    let late = Late::serve_after(12, place.path("late"), &served);
    let program = late.mount.join("program");
    let more = format!(
        "workloads:\n  late: {{ match: {{ exe: {}, sha256: {} }} }}\n",
        program.display(),
        digest(&served)
    );
    place.write_policy(&POLICY.replace("workloads:\n", &more));
    let mut runs = Command::new(&program);
    let mut runs = runs
        .args(["-K", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    place.start();
    let is_governed = || !processes(&place, "late").is_empty();
    let governed = eventually(START, || is_governed().then_some(()));
    runs.kill().unwrap();
    runs.wait().unwrap();
    assert!(governed.is_some());
}

/// What it had connected before goes on: nobody says that it is held.
#[test]
fn who_runs_what_cannot_be_read_is_told_of() {
    let mut place = Place::new();
    let served = place.path("served");
    fs::copy("/usr/bin/curl", &served).unwrap();
    let late = Late::serve(place.path("late"), &served);
    place.start();
    becomes_enforcing(&place);
    let mut runs = Command::new(late.mount.join("program"));
    runs.args(["-K", "-"]).stdin(Stdio::piped());
    let mut runs = runs.spawn().unwrap();
    let more = format!(
        "workloads:\n  late: {{ match: {{ sha256: {} }} }}\n",
        digest(&served)
    );
    place.write_policy(&POLICY.replace("workloads:\n", &more));
    assert_eq!(place.output(&["reload"]).status.code(), Some(0));
    let process = format!("process {}", runs.id());
    let told = eventually(START, || why(&place).contains(&process).then_some(()));
    runs.kill().unwrap();
    runs.wait().unwrap();
    assert!(told.is_some(), "{}", why(&place));
    becomes_enforcing(&place);
}
