//! A host that starts anew while policy or secrets are at fault: nothing that was governed is free.
use crate::counted::Counted;
use crate::support::*;
use harness::eventually;
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

impl Place {
    /// Ends the agent and loses what the kernel had, as where the host starts anew.
    fn reboot(&mut self) {
        self.end(Signal::TERM);
        self.lose_pins();
    }

    fn lose_pins(&self) {
        fs::remove_dir_all(Path::new("/sys/fs/bpf").join(&self.name)).unwrap();
        assert_ne!(self.ask(), forbidden(), "the fence is to be gone");
    }

    /// Asks for the one thing that the policy allows, of an upstream that nobody can reach.
    fn ask_for_things(&self) -> String {
        let arguments = [
            "-sk",
            "-m",
            "30",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "--resolve",
            "api.example.test:443:198.51.100.7",
            "https://api.example.test/v1/things",
        ];
        text(&self.in_job("curl", &arguments).stdout)
    }

    fn explained(&self) -> (Option<i32>, String) {
        let url = "https://api.example.test/v1/things";
        let output = self.output(&["explain", "GET", url, "--workload", "job"]);
        (output.status.code(), text(&output.stdout))
    }
}

#[test]
fn a_policy_at_fault_when_the_host_starts_leaves_nobody_free() {
    let mut place = Place::new();
    place.start();
    assert_eq!(place.ask(), forbidden());
    // Refused by the running agent, and there at the next start.
    place.write_policy(&POLICY.replace("apis:", "apsi:"));
    assert_eq!(place.output(&["reload"]).status.code(), Some(2));
    place.reboot();

    place.start();
    assert_eq!(place.ask(), forbidden());
    assert_eq!(place.ask_for_things(), "403");
    let on_record = eventually(Duration::from_secs(5), || {
        (place.on_disk("policy_fault") >= 2).then_some(())
    });
    assert!(on_record.is_some(), "the record does not say why");
    let (code, told) = place.explained();
    assert!(
        code == Some(1) && told.contains("policy.yaml:5:1"),
        "{told}"
    );
    let status = place.output(&["status"]);
    let told = text(&status.stdout);
    assert_eq!(status.status.code(), Some(1), "{told}");
    for part in ["REFUSING ALL: ", "policy.yaml:5:1", "tollgate reload"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let status = place.status();
    assert_eq!(status["verdict"]["state"], "refusing");
    assert!(place.governed());
    let kept = fs::metadata(place.path("state/policy-in-force.json")).unwrap();
    assert_eq!(kept.permissions().mode() & 0o777, 0o600);

    let reload = place.output(&["reload"]);
    assert_eq!(reload.status.code(), Some(2));
    assert!(text(&reload.stderr).contains("stays refused"), "{reload:?}");
    place.write_policy(POLICY);
    let reload = place.output(&["reload"]);
    assert_eq!(reload.status.code(), Some(0), "{}", text(&reload.stderr));
    assert_eq!(place.explained().0, Some(0));
    assert_eq!(place.output(&["status"]).status.code(), Some(0));
    assert_eq!(place.status()["verdict"]["state"], "enforcing");
}

/// As the service manager's restarts did: nobody has to come by.
#[test]
fn a_policy_that_is_mended_is_taken_up_without_a_word() {
    let mut place = Place::new();
    place.start();
    place.end(Signal::TERM);
    place.lose_pins();
    fs::rename(place.path("policy.yaml"), place.path("away")).unwrap();
    place.start();
    assert_eq!(place.status()["verdict"]["state"], "refusing");
    assert_eq!(place.ask(), forbidden());
    fs::rename(place.path("away"), place.path("policy.yaml")).unwrap();
    let mended = eventually(Duration::from_secs(20), || {
        (place.status()["verdict"]["state"] == "enforcing").then_some(())
    });
    assert!(mended.is_some(), "{:#}", place.status());
    assert_eq!(place.explained().0, Some(0));
}

#[test]
fn secrets_that_are_not_there_when_the_host_starts_are_missed_by_who_needs_them_alone() {
    let mut place = Place::new();
    place.start();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let vault = closed.local_addr().unwrap();
    drop(closed);
    let token = place.path("vault-token");
    fs::write(&token, "token").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    let token = token.display();
    place.write_config(&format!(
        "vault: {{ address: \"http://{vault}\", token_file: {token} }}\n"
    ));
    let stale = |place: &Place| {
        let status = place.status();
        let stale = status["policy"]["secrets_stale"].as_str();
        stale.map(str::to_owned)
    };
    for (policy, told) in [
        (
            POLICY.replace("file:key", "vault:secret/key#value"),
            "vault:secret/key#value",
        ),
        (POLICY.to_owned(), "secrets/key"),
    ] {
        let _ = fs::remove_file(place.path("secrets/key"));
        place.reboot();
        place.write_policy(&policy);
        place.start();
        assert_eq!(place.ask(), forbidden());
        let why = stale(&place).expect("not told");
        assert!(why.contains(told) && why.lines().count() == 1, "{why}");
        assert_eq!(place.output(&["status"]).status.code(), Some(1));
        assert_eq!(place.status()["verdict"]["state"], "enforcing");
        assert_eq!(place.explained().0, Some(0));
        assert_eq!(place.ask_for_things(), "503");
        let on_record = eventually(Duration::from_secs(5), || {
            (place.on_disk("secret_unavailable") > 0).then_some(())
        });
        assert!(on_record.is_some(), "{told}: the record does not say why");
        // A reload needs no more than that has been there.
        let reload = place.output(&["reload"]);
        assert_eq!(reload.status.code(), Some(0), "{}", text(&reload.stderr));
    }
    place.write_secret(Some("two"));
    let mended = eventually(Duration::from_secs(3), || {
        stale(&place).is_none().then_some(())
    });
    assert!(mended.is_some(), "not taken up");
    assert_ne!(place.ask_for_things(), "503");
    // It is there now: what goes away leaves its value, as ever.
    place.write_secret(None);
    let told = eventually(Duration::from_secs(3), || stale(&place));
    assert!(told.is_some(), "not told");
    assert_ne!(place.ask_for_things(), "503");
}

#[test]
fn a_policy_that_cannot_be_kept_is_in_force_and_told() {
    let mut place = Place::new();
    // Whatever keeps a file from being written.
    fs::create_dir(place.path("state/policy-in-force.json")).unwrap();
    place.start();
    assert_eq!(place.ask(), forbidden());
    let is_told = |place: &Place| {
        let status = place.status();
        let modes = status["fail_modes"].as_array().unwrap().iter();
        let mut modes = modes.filter(|mode| mode["now"] == true);
        modes.any(|mode| mode["when"].as_str().unwrap().contains("cannot be kept"))
    };
    assert!(is_told(&place), "{:#}", place.status());
    assert_eq!(place.output(&["status"]).status.code(), Some(1));
    fs::remove_dir(place.path("state/policy-in-force.json")).unwrap();
    let kept = eventually(Duration::from_secs(20), || (!is_told(&place)).then_some(()));
    assert!(kept.is_some(), "{:#}", place.status());
    assert!(place.path("state/policy-in-force.json").is_file());
}

impl Place {
    fn pinned(&self, map: &str) -> PathBuf {
        Path::new("/sys/fs/bpf")
            .join(&self.name)
            .join("maps")
            .join(map)
    }

    /// Makes what is pinned that of another version.
    fn be_of_another_version(&self) {
        let map = self.pinned("SETTINGS").display().to_string();
        let arguments = [
            "map", "update", "pinned", &map, "key", "0", "0", "0", "0", "value", "255", "0", "0",
            "0",
        ];
        let done = Command::new("bpftool").args(arguments).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
}

#[test]
fn what_is_counted_goes_on_when_the_host_starts_anew() {
    let mut place = Place::new();
    place.start();
    let mut counted = Counted::default();
    counted.go_on(&place, "at first");
    for starts in 1..=3 {
        assert_eq!(place.ask(), forbidden());
        counted.go_on(&place, "while the agent ran");
        assert_eq!(counted.of("job connections"), starts);
        assert!(counted.of("job bytes_out") > 0);
        place.reboot();
        place.start();
        counted.go_on(&place, "before the host started anew");
        assert_eq!(counted.of("job connections"), starts);
        // Another agent over the same fence counts nothing twice.
        place.end(Signal::KILL);
        place.start();
        counted.go_on(&place, "before the agent was killed");
        assert_eq!(counted.of("job connections"), starts);
    }
}

/// What it refused before somebody removed it counts too, though no agent of its version was there.
#[test]
fn what_the_fence_of_another_version_has_counted_goes_on() {
    let mut place = Place::new();
    place.start();
    assert_eq!(place.ask(), forbidden());
    let mut counted = Counted::default();
    counted.go_on(&place, "at first");
    let before = counted.of("job agent_down");
    place.end(Signal::KILL);
    for _ in 0..3 {
        assert_ne!(place.ask(), forbidden(), "nobody is there to answer");
    }
    place.be_of_another_version();
    let (code, told) = place.refused();
    assert!(
        code != Some(0) && told.contains("made by another version"),
        "{told}"
    );
    place.lose_pins();
    place.start();
    counted.go_on(&place, "before the fence was another's");
    let refused = counted.of("job agent_down") - before;
    assert!(refused >= 3, "{refused}");
    assert_eq!(counted.of("job connections"), 1);
    // Where that cannot be read, what was written goes on.
    place.end(Signal::TERM);
    place.be_of_another_version();
    fs::remove_file(place.pinned("ACCOUNTS")).unwrap();
    let (_, told) = place.refused();
    assert!(told.contains("ACCOUNTS"), "{told}");
    place.lose_pins();
    place.start();
    counted.go_on(&place, "before a map was lost");
}
