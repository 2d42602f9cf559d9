//! Workloads by user, executable and cgroup, as a policy names them, under the real agent.
use crate::late::Late;
use crate::outside::{GOVERNED, Outside, REACHED, REFUSED};
use crate::support::*;
use harness::eventually;
use harness::process::Ended;
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub(crate) const INTERN: u32 = 54_322;

/// Runs a shell script as a user, in the test's own cgroup: ungoverned but for who it is.
pub(crate) fn as_user(uid: u32, script: &str) -> Output {
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        &uid.to_string(),
        "--clear-groups",
        "sh",
        "-c",
        script,
    ]);
    command
        .stdin(Stdio::null())
        .current_dir("/")
        .output()
        .unwrap()
}

impl Outside {
    /// What comes of it if this user asks by this program.
    pub(crate) fn asked_by(&self, user: u32, program: &str) -> [u32; 2] {
        self.came(&as_user(user, &self.ask(program)))
    }

    /// Nobody's is what this user runs; it may be refused until the agent has looked at what that is.
    pub(crate) fn is_free_for(&self, user: u32, program: &str) -> bool {
        let came = || {
            let came = self.asked_by(user, program);
            assert!(!came.contains(&GOVERNED), "{program} of {user}: {came:?}");
            came
        };
        eventually(START, || (came() == [REACHED; 2]).then_some(())).is_some()
    }
}

pub(crate) fn digest(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    text(&output.stdout).split(' ').next().unwrap().to_owned()
}

pub(crate) fn processes(place: &Place, workload: &str) -> Vec<Value> {
    let all = place.workloads();
    let ours = all.into_iter().find(|w| w["workload"] == workload);
    ours.map_or(Vec::new(), |w| w["processes"].as_array().unwrap().clone())
}

#[test]
fn users_and_executables_are_recognised_as_the_policy_names_them() {
    let (mut place, outside) = (Place::new(), Outside::new());
    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    let [named, content] = ["named", "content"].map(|name| {
        let to = place.path(name);
        fs::copy("/usr/bin/curl", &to).unwrap();
        to
    });
    // Another content than the host's own curl.
    let mut bytes = fs::read(&content).unwrap();
    bytes.push(0);
    fs::write(&content, bytes).unwrap();
    let more = format!(
        "workloads:\n  interns: {{ match: {{ user: {INTERN} }} }}\n  named: {{ match: {{ exe: {} }} }}\n  content: {{ match: {{ user: 54323, sha256: {} }} }}\n",
        named.display(),
        digest(&content),
    );
    place.write_policy(&POLICY.replace("workloads:\n", &more));
    // Runs already, and is enrolled; what it made, too.
    let mut sleeper = Command::new("setpriv")
        .args([
            "--reuid",
            &INTERN.to_string(),
            "--clear-groups",
            "sh",
            "-c",
            "sleep 60 & wait",
        ])
        .spawn()
        .unwrap();
    place.start();

    // What it ran on its way may have to be looked at first.
    let intern = || (outside.asked_by(INTERN, "curl") == [GOVERNED; 2]).then_some(());
    assert!(eventually(START, intern).is_some(), "not recognised");
    assert!(outside.is_free_for(5, "curl"));
    let named = named.display().to_string();
    assert_eq!(outside.asked_by(5, &named), [GOVERNED; 2]);
    let content = content.display().to_string();
    // It may be refused until it was looked at, which the first run asks for.
    let seen = eventually(START, || {
        (outside.asked_by(54_323, &content) == [GOVERNED; 2]).then_some(())
    });
    assert!(seen.is_some(), "the content is not recognised");
    assert!(outside.is_free_for(5, &content));

    // Replaced by an upgrade: recognised again, and not open in between.
    fs::copy("/usr/bin/env", place.path("other")).unwrap();
    fs::copy("/usr/bin/curl", place.path("next")).unwrap();
    fs::rename(place.path("next"), &named).unwrap();
    let first = outside.asked_by(5, &named);
    assert!(!first.contains(&REACHED), "{first:?}");
    let seen = eventually(START, || {
        (outside.asked_by(5, &named) == [GOVERNED; 2]).then_some(())
    });
    assert!(seen.is_some(), "the new file is not recognised");

    let interns = processes(&place, "interns");
    let ours = |p: &&Value| p["pid"].as_u64() == Some(sleeper.id().into());
    let own = interns.iter().find(ours).expect("not enrolled");
    assert_eq!(own["by"], format!("user {INTERN}"));
    assert!(own["since"].as_str().is_some());
    let child = interns.iter().find(|p| p["parent"] == own["pid"]);
    assert!(child.is_some(), "its child is not enrolled: {interns:?}");

    // It is here, in whatever cgroup.
    let idle = |workload: &str| {
        let status = place.status();
        let idle = status["idle_workloads"].as_array().unwrap();
        idle.iter().any(|name| name == workload)
    };
    assert!(!idle("interns") && idle("content"));

    // By which evidence each is.
    for (workload, uid, program, by) in [
        ("named", 5, &named, format!("exe {named}")),
        (
            "content",
            54_323,
            &content,
            format!("user 54323, sha256 {}", digest(Path::new(&content))),
        ),
    ] {
        let mut waits = Command::new("setpriv");
        waits.args(["--reuid", &uid.to_string(), "--clear-groups", program]);
        waits.args(["-K", "-"]).stdin(Stdio::piped());
        let waits = waits.spawn().unwrap();
        let told = eventually(START, || {
            let all = processes(&place, workload);
            let own = all
                .iter()
                .find(|of| of["pid"].as_u64() == Some(waits.id().into()));
            own.map(|of| of["by"].as_str().unwrap().to_owned())
        });
        assert_eq!(told, Some(by));
        waits.wait_with_output().unwrap();
    }

    // Without the workload, its processes are nobody's.
    place.write_policy(POLICY);
    assert_eq!(place.output(&["reload"]).status.code(), Some(0));
    assert!(processes(&place, "interns").is_empty());
    assert!(outside.is_free_for(INTERN, "curl"));
    let _ = Command::new("kill").arg(sleeper.id().to_string()).status();
    let _ = sleeper.kill();
    let _ = sleeper.wait();
}

/// What it became at once says nothing of it: refused, or recognised, and never free, with the agent and without.
#[test]
fn who_becomes_another_program_at_once_is_what_it_was() {
    let mut place = Place::new();
    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    let canary = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let url = format!("http://{}/", canary.local_addr().unwrap());
    let directory = place.directory.clone();
    let asks =
        format!("curl -sS -m 2 -o /dev/null -w '%{{http_code}} %{{exitcode}}' {url} 2>/dev/null");
    let new = |name: &str, bytes: &[u8]| {
        let to = directory.join(name);
        fs::write(&to, bytes).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to.display().to_string()
    };
    let once = new("once", asks.as_bytes());
    let until = "until test \"$SAID\" = '403 0'; do sleep 0.2; SAID=$(sh $ONCE); done; echo came";
    let until = new("until", until.replace("$ONCE", &once).as_bytes());
    let mut bytes = fs::read("/bin/bash").unwrap();
    bytes.push(0);
    let meant = new("meant", &bytes);
    bytes.push(0);
    let sum = digest(Path::new(&meant));
    let more = format!("workloads:\n  content: {{ match: {{ user: 54323, sha256: {sum} }} }}\n");
    let policy = POLICY.replace("workloads:\n", &more);
    let becomes = |program: &str, script: &str| format!("exec {program} -c 'exec sh {script}'");
    let leaves = |program: &str, script: &str| format!("{program} -c 'sh {script} & exit 0'");
    let is_held = |output: &Output| {
        let said = text(&output.stdout);
        assert!(["403 0", "000 7"].contains(&said.as_str()), "{output:?}");
        assert!(canary.accept().is_err(), "it got out: {output:?}");
    };
    place.write_policy(&policy);
    place.start();
    // All that runs besides is known from here on.
    let free = || {
        as_user(54_323, &format!("sleep 0; bash -c 'sh {once}'"));
        canary.accept().is_ok().then_some(())
    };
    assert!(eventually(START, free).is_some(), "never free");
    while canary.accept().is_ok() {}
    for n in 0..6 {
        let program = new(&format!("alive-{n}"), &bytes[..bytes.len() - 1]);
        let way: &dyn Fn(&str, &str) -> String = if n % 2 == 0 { &becomes } else { &leaves };
        is_held(&as_user(54_323, &way(&program, &once)));
    }
    let program = new("waits", &bytes[..bytes.len() - 1]);
    assert_eq!(
        text(&as_user(54_323, &becomes(&program, &until)).stdout).trim(),
        "came"
    );
    // Another content is nobody's, once it is known.
    let program = new("another", &bytes);
    let script = "until sh $ONCE | grep -q ' 28$'; do sleep 0.2; done; echo free";
    let script = new("free", script.replace("$ONCE", &once).as_bytes());
    assert_eq!(
        text(&as_user(54_323, &becomes(&program, &script)).stdout).trim(),
        "free"
    );
    assert!(canary.accept().is_ok());

    place.end(Signal::KILL);
    while canary.accept().is_ok() {}
    for n in 0..4 {
        let program = new(&format!("dead-{n}"), &bytes[..bytes.len() - 1]);
        let way: &dyn Fn(&str, &str) -> String = if n % 2 == 0 { &becomes } else { &leaves };
        is_held(&as_user(54_323, &way(&program, &once)));
    }
    let program = new("waits-dead", &bytes[..bytes.len() - 1]);
    let script = becomes(&program, &until);
    let waits = std::thread::spawn(move || text(&as_user(54_323, &script).stdout));
    let asleep = eventually(START, || {
        let all = Command::new("pgrep").args(["-f", &until]).output().unwrap();
        (!all.stdout.is_empty()).then_some(())
    });
    assert!(asleep.is_some());
    place.start();
    assert_eq!(waits.join().unwrap().trim(), "came");
}

/// Who runs what a filesystem keeps from being read is refused; the agent goes on, and looks at what others run.
#[test]
fn a_filesystem_that_never_answers_holds_up_nobody_else() {
    let (mut place, outside) = (Place::new(), Outside::new());
    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    let mut bytes = fs::read("/usr/bin/curl").unwrap();
    bytes.push(0);
    let [first, second] = ["first", "second"].map(|name| {
        let to = place.path(name);
        fs::write(&to, &bytes).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    });
    let policy = |workload: &str| {
        let sum = digest(&first);
        let more =
            format!("workloads:\n  {workload}: {{ match: {{ user: 54323, sha256: {sum} }} }}\n");
        POLICY.replace("workloads:\n", &more)
    };
    place.write_policy(&policy("content"));
    place.start();
    let recognised = |program: &Path| {
        let program = program.display().to_string();
        let is_ours = || outside.asked_by(54_323, &program) == [GOVERNED; 2];
        eventually(START, || is_ours().then_some(())).is_some()
    };
    assert!(recognised(&first));

    let late = Late::serve(place.path("late"), &first);
    let program = late.mount.join("program").display().to_string();
    let refused = || assert_eq!(outside.asked_by(54_323, &program), [REFUSED; 2]);
    // Who has ended before the agent looks has nothing opened.
    let opened = eventually(START, || {
        refused();
        late.is_opened().then_some(())
    });
    assert!(opened.is_some(), "not looked at");
    refused();
    // Whom no rule can mean runs it.
    assert_eq!(outside.asked_by(5, &program), [REACHED; 2]);

    let begun = Instant::now();
    assert!(processes(&place, "content").is_empty());
    assert!(recognised(&second), "not looked at");
    place.write_policy(&policy("renamed"));
    assert_eq!(place.output(&["reload"]).status.code(), Some(0));
    assert!(recognised(&first));
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    // The next agent finds it running. It waits, for a while, and then for nobody.
    let mut waits = Command::new("setpriv");
    waits.args(["--reuid", "54323", "--clear-groups", &program, "-K", "-"]);
    let mut waits = waits.stdin(Stdio::piped()).spawn().unwrap();
    place.end(Signal::KILL);
    place.start();
    assert!(recognised(&second));
    waits.kill().unwrap();
    waits.wait().unwrap();
}

/// What is made and entered at once is governed, also by nobody's hand while the agent is dead.
#[test]
fn a_new_cgroup_is_governed_from_its_birth_on() {
    let (mut place, outside) = (Place::new(), Outside::new());
    place.write_policy(&POLICY.replace("CGROUP/**", "CGROUP/*"));
    place.start();
    let made = |place: &Place, name: &str| {
        let cgroup = place.cgroup.join(name);
        let script = format!(
            "mkdir {0} && echo $$ > {0}/cgroup.procs && {{ {1}; }}",
            cgroup.display(),
            outside.ask("curl")
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::null());
        let came = outside.came(&command.output().unwrap());
        let _ = fs::remove_dir(&cgroup);
        came
    };
    let first = eventually(START, || {
        (made(&place, "first") == [GOVERNED; 2]).then_some(())
    });
    assert!(first.is_some(), "not governed");
    for n in 0..10 {
        assert_eq!(made(&place, &format!("alive-{n}")), [GOVERNED; 2]);
    }
    place.end(Signal::KILL);
    for n in 0..10 {
        assert_eq!(made(&place, &format!("dead-{n}")), [REFUSED; 2]);
    }
}

/// A new cgroup, and a new unit's, is listed within 100 ms, and what is in it from the first moment gets nowhere else.
#[test]
fn new_cgroups_and_units_are_picked_up_within_a_tenth_of_a_second() {
    let mut place = Place::new();
    let slice = cgroup_root().join(format!("{}.slice", place.name));
    // Systemd puts `_` before the name of its cgroup: it could be one of the kernel's files.
    let unit = format!("memory.{}.service", place.name);
    let more = format!("workloads:\n  unit: {{ match: {{ unit: {unit} }} }}\n");
    place.write_policy(
        &POLICY
            .replace("CGROUP/**", "CGROUP/*")
            .replace("workloads:\n", &more),
    );
    place.start();
    let canaries = ["127.0.0.1:0", "[::1]:0"].map(|at| std::net::TcpListener::bind(at).unwrap());
    let quiet = || canaries.iter().all(|canary| canary.accept().is_err());
    let to = canaries.each_ref().map(|canary| {
        canary.set_nonblocking(true).unwrap();
        format!("http://{}/", canary.local_addr().unwrap())
    });
    fs::create_dir(&slice).unwrap();
    let mut took = Vec::new();
    for n in 0..10 {
        let cgroup = match n % 2 {
            0 => place.cgroup.join(format!("new-{n}")),
            _ => slice.join(format!("_{unit}")),
        };
        // It is there before the cgroup is, and enters as soon as that can be.
        let script = format!(
            "until echo $$ > {}/cgroup.procs; do :; done 2>/dev/null
            for url in {}; do curl -sg -m 5 -o /dev/null -w '%{{http_code}} ' $url; done",
            cgroup.display(),
            to.join(" ")
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::null());
        let client = command.stdout(Stdio::piped()).spawn().unwrap();
        let name = cgroup
            .strip_prefix(cgroup_root())
            .unwrap()
            .display()
            .to_string();
        let begun = Instant::now();
        fs::create_dir(&cgroup).unwrap();
        let seen = eventually(START, || {
            place.asked("workloads").contains(&name).then_some(())
        });
        assert!(seen.is_some(), "{name} is not listed");
        took.push(begun.elapsed());
        // Refused, where its network namespace is not known yet.
        let said = text(&client.wait_with_output().unwrap().stdout);
        let said: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(said.len(), to.len(), "{said:?}");
        assert!(
            said.iter().all(|code| ["403", "000"].contains(code)),
            "{said:?}"
        );
        assert!(quiet(), "it got out");
        fs::remove_dir(&cgroup).unwrap();
    }
    fs::remove_dir(&slice).unwrap();
    // Not in it: the canaries hear.
    for (url, canary) in to.iter().zip(&canaries) {
        let free = Command::new("curl").args(["-sg", "-m", "1", url]).output();
        assert!(
            free.is_ok() && canary.accept().is_ok(),
            "nobody reaches {url}"
        );
    }
    took.sort_unstable();
    eprintln!("listed after {took:?}");
    let limit = harness::at_most(Duration::from_millis(100));
    assert!(took.len() == 10 && took[9] < limit, "{took:?}");
}

/// A process that becomes a workload's when it is told to, and stays.
struct Told(Ended);

impl Told {
    /// `becomes`: what a shell does then.
    fn new(becomes: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("read told; {becomes}")]);
        Self(Ended(command.stdin(Stdio::piped()).spawn().unwrap()))
    }

    fn go(&mut self) {
        let input = self.0.stdin.as_mut().unwrap();
        std::io::Write::write_all(input, b"\n").unwrap();
    }
}

/// Is the process listed, for people, under this workload, since then and by that?
fn is_shown(place: &Place, pid: u32, own: &Value) -> bool {
    let shown = text(&place.output(&["workloads", "--processes"]).stdout);
    let name = format!("({pid})");
    let line = shown.lines().find(|line| line.contains(&name));
    let line = line.unwrap_or_else(|| panic!("{pid} is not among {shown}"));
    let since: jiff::Timestamp = own["since"].as_str().unwrap().parse().unwrap();
    // To the second, and what time it was is told from how long ago it was.
    let about = [-20, 0, 20].map(|off| {
        let at = since + jiff::SignedDuration::from_millis(off);
        let at = at.to_zoned_datetime(jiff::tz::TimeZone::system());
        at.strftime("%H:%M:%S").to_string()
    });
    let [workload, by] = ["workload", "by"].map(|key| own[key].as_str().unwrap());
    let parent = own["parent"].to_string();
    line.starts_with(workload)
        && line.split_whitespace().any(|word| word == parent)
        && line.trim_end().ends_with(by)
        && about.iter().any(|time| line.contains(time))
}

#[test]
fn each_process_is_listed_since_when_and_by_what_it_is_governed() {
    let mut place = Place::new();
    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    let (slice, unit) = (
        format!("{}.slice", place.name),
        format!("{}.service", place.name),
    );
    let named = place.path("named");
    fs::copy("/usr/bin/sleep", &named).unwrap();
    let more = format!(
        "workloads:\n  unit: {{ match: {{ unit: {unit} }} }}\n  interns: {{ match: {{ user: {INTERN} }} }}\n  named: {{ match: {{ exe: {} }} }}\n",
        named.display()
    );
    let policy = POLICY.replace("CGROUP/**", "CGROUP/*");
    place.write_policy(&policy.replace("workloads:\n", &more));
    place.start();
    let cgroups = [format!("/{}/new", place.name), format!("/{slice}/{unit}")];
    let directories = cgroups
        .each_ref()
        .map(|path| cgroup_root().join(path.trim_start_matches('/')));
    for directory in &directories {
        fs::create_dir_all(directory).unwrap();
    }
    let enters = directories.each_ref().map(|directory| {
        format!(
            "echo $$ > {}/cgroup.procs; exec sleep 60",
            directory.display()
        )
    });
    let all = [
        ("job", enters[0].clone(), format!("cgroup {}", cgroups[0])),
        ("unit", enters[1].clone(), format!("cgroup {}", cgroups[1])),
        (
            "interns",
            format!("exec setpriv --reuid {INTERN} --clear-groups sleep 60"),
            format!("user {INTERN}"),
        ),
        (
            "named",
            format!("exec {} 60", named.display()),
            format!("exe {}", named.display()),
        ),
    ];
    let mut told = all.each_ref().map(|(_, becomes, _)| Told::new(becomes));
    for ((workload, _, by), one) in all.iter().zip(&mut told) {
        // Longer than a second, which is what is counted in: neither the start of the process, nor that of the agent or of another.
        std::thread::sleep(Duration::from_millis(1_500));
        let pid = one.0.id();
        let is_ours = |of: &Value| of["pid"].as_u64() == Some(pid.into());
        assert!(!processes(&place, workload).iter().any(is_ours));
        let before = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(1);
        one.go();
        let own = eventually(START, || {
            processes(&place, workload).into_iter().find(is_ours)
        });
        let own = own.unwrap_or_else(|| panic!("{workload} has no process"));
        let after = jiff::Timestamp::now();
        let since: jiff::Timestamp = own["since"].as_str().unwrap().parse().unwrap();
        assert!(
            before <= since && since <= after,
            "{workload}: {before} {since} {after}"
        );
        assert_eq!(own["by"], *by);
        assert!(is_shown(&place, pid, &own), "{own}");
    }
    drop(told);
    for directory in [&directories[0], &directories[1], &cgroup_root().join(slice)] {
        let gone = eventually(START, || fs::remove_dir(directory).ok());
        assert!(gone.is_some(), "{}", directory.display());
    }
}
