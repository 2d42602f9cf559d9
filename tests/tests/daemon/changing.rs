//! Policy and secrets that change under a running agent.
use crate::support::*;
use harness::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::time::Duration;

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

/// What the language can say and this version cannot hold: refused in the same words by all who read a policy.
#[test]
fn a_selector_that_cannot_be_held_is_refused_with_its_place() {
    let mut place = Place::new();
    place.start();
    let hash = place.status()["policy"]["hash"].clone();
    let other = POLICY.replace("by-hand: {}", "by-hand: { match: { user: root } }");
    place.write_policy(&other);
    for verb in ["check", "reload"] {
        let output = place.output(&[verb]);
        assert_eq!(output.status.code(), Some(2), "{verb}");
        let told = text(&output.stderr);
        assert!(
            told.contains("policy.yaml:4:21")
                && told.contains("all that root runs would be governed"),
            "{verb}: {told}"
        );
    }
    assert_eq!(place.status()["policy"]["hash"], hash);
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

/// Vault takes the connection and never answers.
#[test]
fn a_reload_under_way_keeps_nobody_from_stopping_the_agent() {
    let mut place = Place::new();
    let vault = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let token = place.path("vault-token");
    std::fs::write(&token, "token").unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&token, private).unwrap();
    vault.set_nonblocking(true).unwrap();
    place.write_config(&format!(
        "vault: {{ address: \"http://{}\", token_file: {} }}\n",
        vault.local_addr().unwrap(),
        token.display()
    ));
    place.start();
    place.write_policy(&POLICY.replace("file:key", "vault:secret/key#value"));
    let agent = Pid::from_child(place.agent.as_ref().unwrap());
    kill_process(agent, Signal::HUP).unwrap();
    let asked = eventually(Duration::from_secs(5), || vault.accept().ok());
    assert!(asked.is_some(), "Vault is not asked");
    kill_process(agent, Signal::TERM).unwrap();
    // Vault is waited for for five seconds, and what is under way for two when the agent stops.
    let ended = eventually(Duration::from_secs(4), || {
        place.agent.as_mut().unwrap().try_wait().unwrap()
    });
    assert_eq!(ended.expect("it waits for Vault").code(), Some(0));
    drop(asked);
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

/// A log that nobody reads any more (`tollgate agent 2>&1 | head -1`, a journal that restarts) ends nothing.
#[test]
fn nothing_depends_on_who_reads_stderr() {
    let mut place = Place::new();
    place.start();
    drop(place.agent.as_mut().unwrap().stderr.take());
    for _ in 0..3 {
        let output = place.output(&["reload"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    let gone = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let mut run = place.tollgate(&["run", "--workload", "by-hand", "--", "sh", "-c", "exit 7"]);
    assert_eq!(run.stderr(gone()).status().unwrap().code(), Some(7));
    let mut faulty = place.tollgate(&["check"]);
    faulty.arg(place.path("config.yaml")).stderr(gone());
    assert_eq!(faulty.status().unwrap().code(), Some(2));
    let mut status = place.tollgate(&["status"]);
    assert_eq!(status.stdout(gone()).status().unwrap().code(), Some(0));
}

#[test]
fn no_listing_is_cut_without_a_word() {
    let place = Place::new();
    let output = place.output(&["decisions", "--limit", "100000"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("10000"), "{output:?}");
}

/// Cgroups that hooks govern by the names of the outgoing policy, after its last walk, are let go of like those that were walked.
#[test]
fn what_is_made_while_a_policy_goes_is_let_go_of() {
    const AT_ONCE: usize = 10;
    const MOST: usize = 20_000;
    let mut place = Place::new();
    place.start();
    let (done, until) = std::sync::mpsc::channel::<()>();
    let cgroup = place.cgroup.clone();
    let busy = std::thread::spawn(move || {
        for number in 0.. {
            let directory = cgroup.join(format!("n{number}"));
            std::fs::create_dir(directory).unwrap();
            if number % AT_ONCE == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            if number == MOST || until.try_recv().is_ok() {
                return number;
            }
        }
        0
    });
    let job = "  job: { match: { cgroup: \"CGROUP/**\" } }\n";
    let grant = "  - { role: reader, to: { workload: job } }\n";
    place.write_policy(&POLICY.replace(job, "").replace(grant, ""));
    let reload = place.output(&["reload"]);
    let _ = done.send(());
    let made = busy.join().unwrap();
    assert_eq!(reload.status.code(), Some(0), "{}", text(&reload.stderr));
    let free = eventually(Duration::from_secs(20), || {
        (!place.governed()).then_some(())
    });
    let left = place.workloads().len();
    let asked = place.ask();
    for number in 0..=made {
        let _ = std::fs::remove_dir(place.cgroup.join(format!("n{number}")));
    }
    assert!(free.is_some(), "{left} of {made} are governed still");
    assert_ne!(asked, forbidden());
}

#[test]
fn who_is_of_a_policy_before_is_listed_for_what_was_counted() {
    let mut place = Place::new();
    let policy =
        |name: &str| POLICY.replace("workloads:\n", &format!("workloads:\n  {name}: {{}}\n"));
    let listed = |place: &Place| -> Vec<String> {
        let name = |workload: &Value| workload["workload"].as_str().map(str::to_owned);
        place.workloads().iter().filter_map(name).collect()
    };
    place.write_policy(&policy("never"));
    place.start();
    place.ask();
    assert_eq!(listed(&place), ["by-hand", "job", "never"]);
    place.write_policy(&policy("now").replace("job", "task"));
    let reload = place.output(&["reload"]);
    assert_eq!(reload.status.code(), Some(0), "{}", text(&reload.stderr));
    assert_eq!(listed(&place), ["by-hand", "job", "now", "task"]);
}
