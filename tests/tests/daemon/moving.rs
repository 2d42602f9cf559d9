//! Executables that come to the path by which they are named, leave it and come back, while the agent runs and while none does:
//! none is free in between.
use crate::support::*;
use harness::eventually;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::Signal;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A server that only what is not governed reaches.
struct Canary(TcpListener);

impl Canary {
    fn new() -> Self {
        let canary = TcpListener::bind("127.0.0.1:0").unwrap();
        canary.set_nonblocking(true).unwrap();
        Self(canary)
    }

    /// Has a program ask it, as the first that it does; the status that it got.
    fn is_asked_by(&self, program: &Path) -> String {
        let url = format!("http://{}/", self.0.local_addr().unwrap());
        let mut command = Command::new(program);
        command.args(["-s", "-m", "1", "-o", "/dev/null", "-w", "%{http_code}"]);
        let output = command.arg(url).stdin(Stdio::null()).output().unwrap();
        text(&output.stdout)
    }

    fn is_reached_by(&self, program: &Path) -> bool {
        self.is_asked_by(program);
        self.0.accept().is_ok()
    }

    /// It is recognised, at once or after a look.
    fn waits_for(&self, program: &Path) {
        let answered = eventually(START, || {
            let answered = self.is_asked_by(program) == "403";
            assert!(self.0.accept().is_err(), "{} is free", program.display());
            answered.then_some(())
        });
        assert!(answered.is_some(), "{} is refused", program.display());
    }
}

/// A copy of curl.
fn copy(to: &Path) -> PathBuf {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::copy("/usr/bin/curl", to).unwrap();
    to.to_owned()
}

/// Runs on, and connects to nothing.
fn waiting(program: &Path) -> Child {
    let mut command = Command::new(program);
    command.args(["-K", "-"]).stdin(Stdio::piped());
    command.spawn().unwrap()
}

fn turn(link: &Path, to: &str) {
    let new = link.with_extension("new");
    symlink(to, &new).unwrap();
    fs::rename(new, link).unwrap();
}

/// The agent looks once a second at what lies at the paths of its policy.
fn after_a_look() {
    std::thread::sleep(harness::at_most(Duration::from_millis(2500)));
}

fn name(place: &Place, path: &Path) {
    let more = format!(
        "workloads:\n  app: {{ match: {{ exe: {} }} }}\n",
        path.display()
    );
    place.write_policy(&POLICY.replace("workloads:\n", &more));
}

/// As a deploy is rolled back.
#[test]
fn what_comes_back_to_its_path_is_governed_from_its_start_on() {
    let mut place = Place::new();
    let program = format!("{}-app", place.name);
    let releases = ["r1", "r2"].map(|release| place.path(release).join(&program));
    releases.iter().for_each(|release| drop(copy(release)));
    let current = place.path("current");
    symlink("r1", &current).unwrap();
    let app = current.join(&program);
    name(&place, &app);
    let canary = Canary::new();
    // What runs is looked at whenever something else comes to the path.
    let mut running: Vec<Child> = releases.iter().map(|release| waiting(release)).collect();
    place.start();
    canary.waits_for(&app);
    turn(&current, "r2");
    after_a_look();
    canary.waits_for(&app);
    turn(&current, "r1");
    assert!(!canary.is_reached_by(&app), "rolled back");
    canary.waits_for(&app);

    // What is above it goes away for a while, as a mount does.
    let away = place.path("away");
    fs::rename(place.path("r1"), &away).unwrap();
    running.push(waiting(&away.join(&program)));
    after_a_look();
    fs::rename(&away, place.path("r1")).unwrap();
    assert!(!canary.is_reached_by(&app), "put back");
    canary.waits_for(&app);

    // Nobody looks.
    place.end(Signal::KILL);
    turn(&current, "r2");
    assert!(!canary.is_reached_by(&app), "rolled on without an agent");
    turn(&current, "r1");
    assert!(!canary.is_reached_by(&app), "rolled back without an agent");
    // The next agent finds what an earlier one has seen there running.
    place.start();
    canary.waits_for(&app);
    after_a_look();
    place.end(Signal::KILL);
    turn(&current, "r2");
    assert!(!canary.is_reached_by(&app), "rolled on after another agent");
    for child in &mut running {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // The control: what never was there reaches it.
    assert!(canary.is_reached_by(Path::new("/usr/bin/curl")));
}

/// Another name of it tells the hooks nothing: they know the file, also while an agent starts or takes up another policy.
#[test]
fn a_file_that_is_known_is_so_by_each_of_its_names_all_the_time() {
    let mut place = Place::new();
    let canary = Canary::new();
    let app = copy(&place.path("app"));
    let other = place.path("other");
    fs::hard_link(&app, &other).unwrap();
    name(&place, &app);
    place.start();
    canary.waits_for(&app);
    canary.waits_for(&other);
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reached = scope.spawn(|| {
            let mut reached = 0;
            while !is_over.load(Ordering::Relaxed) {
                reached += usize::from(canary.is_reached_by(&other));
            }
            reached
        });
        for round in 0..6 {
            match round % 2 {
                0 => place.end(Signal::KILL),
                _ => place.end(Signal::TERM),
            };
            place.start();
            let more = format!(
                "workloads:\n  app: {{ match: {{ exe: {} }} }}\n  round{round}: {{ match: {{ exe: /nowhere/{round} }} }}\n",
                app.display()
            );
            place.write_policy(&POLICY.replace("workloads:\n", &more));
            assert_eq!(place.output(&["reload"]).status.code(), Some(0));
        }
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(reached.join().unwrap(), 0, "it was free");
    });
    canary.waits_for(&other);
}

/// Nobody runs it when the policy changes, and it lies at no path that is named: the hooks know it by what was in it.
#[test]
fn what_is_known_by_its_content_is_so_after_another_policy_too() {
    let mut place = Place::new();
    let canary = Canary::new();
    let app = copy(&place.path("app"));
    let mut bytes = fs::read(&app).unwrap();
    bytes.push(0);
    fs::write(&app, bytes).unwrap();
    let sum = Command::new("sha256sum").arg(&app).output().unwrap();
    let sum = text(&sum.stdout).split(' ').next().unwrap().to_owned();
    let named = |place: &Place, more: &str| {
        let all = format!("workloads:\n  app: {{ match: {{ sha256: {sum} }} }}\n{more}");
        place.write_policy(&POLICY.replace("workloads:\n", &all));
    };
    named(&place, "");
    place.start();
    canary.waits_for(&app);
    for more in [
        "  a: { match: { exe: /nowhere/a } }\n",
        "  b: { match: { exe: /nowhere/b } }\n",
    ] {
        named(&place, more);
        assert_eq!(place.output(&["reload"]).status.code(), Some(0));
        // Also once who runs is asked for no more.
        for _ in 0..3 {
            assert!(!canary.is_reached_by(&app), "it is free");
            after_a_look();
        }
        canary.waits_for(&app);
    }
}

/// Rules mean it of a user who is not there, and nobody else.
#[test]
fn what_is_meant_of_an_absent_user_alone_is_free() {
    let mut place = Place::new();
    let canary = Canary::new();
    let [app, other] = ["app", "other"].map(|name| copy(&place.path(name)));
    let all = format!(
        "workloads:\n  a: {{ match: {{ user: nobody-is-called-so, exe: {} }} }}\n  b: {{ match: {{ exe: {} }} }}\n",
        app.display(),
        other.display()
    );
    place.write_policy(&POLICY.replace("workloads:\n", &all));
    place.start();
    canary.waits_for(&other);
    let reached = eventually(START, || canary.is_reached_by(&app).then_some(()));
    assert!(reached.is_some(), "it is refused");
}

/// As what a distribution's link leads to is upgraded.
#[test]
fn another_name_of_what_lies_at_a_path_is_not_open_when_that_is_replaced() {
    let mut place = Place::new();
    let canary = Canary::new();
    let named = [place.path("link"), place.path("mounted")];
    let files = ["1", "2"].map(|file| copy(&place.path(&format!("{}-app-{file}", place.name))));
    symlink(&files[0], &named[0]).unwrap();
    fs::write(&named[1], "").unwrap();
    let next = place.path("next");
    let replace = |file: &Path| fs::rename(copy(&next), file).unwrap();
    let mount = || mount_bind(&files[1], &named[1]).unwrap();
    let umount = || unmount(&named[1], UnmountFlags::DETACH).unwrap();
    mount();
    let more = format!(
        "workloads:\n  linked: {{ match: {{ exe: {} }} }}\n  mounted: {{ match: {{ exe: {} }} }}\n",
        named[0].display(),
        named[1].display()
    );
    place.write_policy(&POLICY.replace("workloads:\n", &more));
    place.start();
    named.iter().for_each(|path| canary.waits_for(path));
    for state in ["with an agent", "without one"] {
        if state == "without one" {
            after_a_look();
            place.end(Signal::KILL);
        }
        replace(&files[0]);
        assert!(!canary.is_reached_by(&named[0]), "linked, {state}");
        umount();
        replace(&files[1]);
        mount();
        assert!(!canary.is_reached_by(&named[1]), "mounted, {state}");
    }
    umount();
    assert!(canary.is_reached_by(Path::new("/usr/bin/curl")));
}
