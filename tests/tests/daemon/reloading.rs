//! Conditions on cgroups beside others, while policy changes or the agent does: whom the hooks have by them is nobody else's meanwhile.
use crate::late::Late;
use crate::outside::{GOVERNED, Outside, REACHED, REFUSED};
use crate::recognising::{INTERN, digest, processes};
use crate::support::*;
use harness::eventually;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// A place in which what the policy names next cannot be read for a while.
struct Scene {
    place: Place,
    late: Late,
    /// Runs the program that cannot be read.
    waits: Child,
    /// A program that is known at once, and that somebody runs.
    named: PathBuf,
    runs: Child,
}

impl Scene {
    fn new() -> Self {
        let place = Place::new();
        fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
        let [served, named] = ["served", "named"].map(|name| place.path(name));
        fs::copy("/usr/bin/curl", &served).unwrap();
        fs::copy("/usr/bin/sleep", &named).unwrap();
        let late = Late::serve(place.path("late"), &served);
        let mut waits = Command::new(late.mount.join("program"));
        waits.args(["-K", "-"]).stdin(Stdio::piped());
        Self {
            waits: waits.spawn().unwrap(),
            runs: Command::new(&named).arg("600").spawn().unwrap(),
            place,
            late,
            named,
        }
    }

    /// Has the policy name these, and recognise the job by its own cgroup no more.
    fn write(&self, workloads: &str) {
        let policy = POLICY.replace("job: { match: { cgroup: \"CGROUP/**\" } }", "job: {}");
        let more = format!("workloads:\n{workloads}");
        let policy = policy.replace("workloads:\n", &more);
        self.place
            .write_policy(&policy.replace("INTERN", &INTERN.to_string()));
    }

    /// The same, and what cannot be read.
    fn write_late(&self, workloads: &str) {
        let sum = digest(&self.place.path("served"));
        let late = self.late.mount.join("program");
        let late = late.display();
        self.write(&format!(
            "{workloads}  content: {{ match: {{ exe: {late}, sha256: {sum} }} }}\n"
        ));
    }

    /// A workload of what runs and is known at once: hooks are told its rules, and with them all others, before that is read.
    fn known(&self) -> String {
        format!(
            "  named: {{ match: {{ exe: {} }} }}\n",
            self.named.display()
        )
    }

    /// Until the agent waits for what it cannot read.
    fn is_waiting(&self) {
        let opened = eventually(START, || self.late.is_opened().then_some(()));
        assert!(opened.is_some(), "not looked at");
        std::thread::sleep(Duration::from_millis(500));
    }

    /// The user's process in a cgroup: it does nothing.
    fn sleeper(&self, cgroup: &Path) -> Child {
        let child = in_cgroup(cgroup, "sleep 600").spawn().unwrap();
        let at = format!("/proc/{}/comm", child.id());
        let runs = || fs::read_to_string(&at).is_ok_and(|name| name == "sleep\n");
        assert!(eventually(START, || runs().then_some(())).is_some());
        child
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for child in [&mut self.waits, &mut self.runs] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The user's shell in a cgroup, which becomes a program.
fn in_cgroup(cgroup: &Path, program: &str) -> Command {
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec setpriv --reuid {INTERN} --clear-groups {program}",
        cgroup.display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]).stdin(Stdio::null());
    command
}

fn ask_in(cgroup: &Path, outside: &Outside) -> Output {
    let script = outside.ask("curl").replace('\'', "'\\''");
    in_cgroup(cgroup, &format!("sh -c '{script}'"))
        .output()
        .unwrap()
}

fn end(mut child: Child, cgroup: &Path) {
    let _ = child.kill();
    let _ = child.wait();
    assert!(eventually(START, || fs::remove_dir(cgroup).ok()).is_some());
}

fn is_of(place: &Place, workload: &str, child: &Child) -> bool {
    let all = processes(place, workload);
    all.iter()
        .any(|one| one["pid"].as_u64() == Some(child.id().into()))
}

/// Has `change` bring a policy into force that has the intern's rule still, and one more before it.
fn stays_whose_it_was(change: impl FnOnce(&mut Place) + Send) {
    let mut scene = Scene::new();
    let rule = "  w: { match: { user: INTERN, cgroup: CGROUP/x } }\n";
    scene.write(rule);
    scene.place.start();
    let cgroup = scene.place.cgroup.join("x");
    fs::create_dir(&cgroup).unwrap();
    let first = scene.sleeper(&cgroup);
    let known = eventually(START, || is_of(&scene.place, "w", &first).then_some(()));
    assert!(known.is_some());
    end(first, &cgroup);
    fs::create_dir(&cgroup).unwrap();
    let known = scene.known();
    scene.write_late(&format!(
        "  a: {{ match: {{ user: INTERN, cgroup: CGROUP-q }} }}\n{rule}{known}"
    ));
    let mut place = std::mem::replace(&mut scene.place, Place::new());
    let meanwhile = std::thread::scope(|threads| {
        let changes = threads.spawn(|| change(&mut place));
        scene.is_waiting();
        let meanwhile = scene.sleeper(&cgroup);
        changes.join().unwrap();
        meanwhile
    });
    std::mem::swap(&mut scene.place, &mut place);
    let whose = ["a", "w"].map(|name| is_of(&scene.place, name, &meanwhile));
    end(meanwhile, &cgroup);
    assert_eq!(whose, [false, true], "of a, and of w");
}

#[test]
fn who_comes_while_a_policy_is_taken_up_is_nobody_elses() {
    stays_whose_it_was(|place| {
        assert_eq!(place.output(&["reload"]).status.code(), Some(0));
    });
}

#[test]
fn who_comes_while_an_agent_takes_over_is_nobody_elses() {
    stays_whose_it_was(|place| {
        place.end(Signal::KILL);
        place.start();
    });
}

/// What the hooks say of it by the outgoing policy is not taken for what the next one says.
#[test]
fn a_cgroup_that_is_made_while_a_policy_is_taken_up_is_nobody_elses() {
    let (mut scene, outside) = (Scene::new(), Outside::new());
    scene.write("  w: { match: { user: INTERN, cgroup: CGROUP/* } }\n");
    scene.place.start();
    scene.write_late("  a: { match: { user: INTERN, cgroup: CGROUP-q } }\n");
    let mut reload = scene
        .place
        .tollgate(&["reload"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    scene.is_waiting();
    let cgroup = scene.place.cgroup.join("new");
    fs::create_dir(&cgroup).unwrap();
    assert_eq!(
        outside.came(&ask_in(&cgroup, &outside)),
        [GOVERNED; 2],
        "w is not in force"
    );
    assert!(reload.wait().unwrap().success());
    let mut came = Vec::new();
    let free = eventually(Duration::from_secs(10), || {
        came = outside.came(&ask_in(&cgroup, &outside)).to_vec();
        (came == [REACHED; 2]).then_some(())
    });
    fs::remove_dir(&cgroup).unwrap();
    assert!(free.is_some(), "{came:?}");
}

/// Two policies that share no condition, and have more of them together than there are bits.
#[test]
fn as_many_conditions_may_be_exchanged_as_a_policy_can_have() {
    let (mut scene, outside) = (Scene::new(), Outside::new());
    let cgroup = scene.place.cgroup.join("x");
    fs::create_dir(&cgroup).unwrap();
    let many = |of: &str, last: &str| {
        let each = (0..63).map(|n| {
            format!("  {of}{n:02}: {{ match: {{ user: INTERN, cgroup: CGROUP-{of}/{n} }} }}\n")
        });
        let each: String = each.collect();
        format!("{each}  {of}99: {{ match: {{ user: INTERN, cgroup: {last} }} }}\n")
    };
    let is_of = |scene: &Scene, workload: &str| {
        let child = scene.sleeper(&cgroup);
        let is_it = is_of(&scene.place, workload, &child);
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        let _ = { child }.wait();
        is_it
    };
    scene.write(&many("a", "CGROUP/x"));
    scene.place.start();
    assert!(is_of(&scene, "a99"));
    for (of, last) in [("b", "CGROUP/*"), ("c", "CGROUP/x"), ("d", "CGROUP/*")] {
        scene.write(&many(of, last));
        if of == "c" {
            scene.place.end(Signal::KILL);
            scene.place.start();
        } else {
            let reload = scene.place.output(&["reload"]);
            assert_eq!(reload.status.code(), Some(0), "{reload:?}");
        }
        assert!(is_of(&scene, &format!("{of}99")), "{of}");
        // Nobody else is refused.
        let free = Command::new("sh")
            .args(["-c", &outside.ask("curl")])
            .output();
        assert_eq!(outside.came(&free.unwrap()), [REACHED; 2]);
    }
    scene.write("");
    let reload = scene.place.output(&["reload"]);
    assert_eq!(reload.status.code(), Some(0), "{reload:?}");
    let came = outside.came(&ask_in(&cgroup, &outside));
    fs::remove_dir(&cgroup).unwrap();
    assert!(
        !came.contains(&GOVERNED) && !came.contains(&REFUSED),
        "{came:?}"
    );
}

/// As long as the hooks go by an earlier policy's rules, they have what those ask for.
#[test]
fn rules_that_stay_in_force_keep_their_cgroups() {
    let (mut scene, outside) = (Scene::new(), Outside::new());
    let cgroup = scene.place.cgroup.join("x");
    fs::create_dir(&cgroup).unwrap();
    let came = || outside.came(&ask_in(&cgroup, &outside));
    scene.write("  w: { match: { user: INTERN, cgroup: CGROUP/x } }\n");
    scene.place.start();
    assert_eq!(came(), [GOVERNED; 2]);
    scene.place.end(Signal::KILL);
    // Nothing is told by a policy of users before those can be read.
    scene.write("  a: { match: { user: INTERN, cgroup: CGROUP-q } }\n");
    let socket = scene.place.path("unread");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    let hides = format!(
        "mount --bind {} /etc/passwd && exec \"$@\"",
        socket.display()
    );
    let launcher = ["unshare", "--mount", "sh", "-c", &hides, "sh"];
    scene.place.start_by(&launcher);
    assert!(scene.place.status().to_string().contains("/etc/passwd"));
    let kept = came();
    scene.place.end(Signal::KILL);
    scene.place.start();
    let free = eventually(START, || (came() == [REACHED; 2]).then_some(()));
    fs::remove_dir(&cgroup).unwrap();
    assert!(!kept.contains(&REACHED), "{kept:?}");
    assert!(free.is_some());
}
