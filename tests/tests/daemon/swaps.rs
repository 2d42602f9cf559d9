//! Policies that take each other's place under a connect loop: whose the client is changes, that it is somebody's does not.
use crate::load::*;
use crate::support::*;
use harness::eventually;
use serde_json::Value;
use std::time::Duration;

const RELOADS: usize = 40;
/// Nobody else on the machine is this user, nor another run of this test beside it.
fn user() -> u32 {
    4_300_000 + std::process::id()
}

/// What policies say of workloads, and whose the client is under each: by its cgroup, its user or both.
const WORKLOADS: [(&str, &str); 8] = [
    ("job: { match: { cgroup: 'CGROUP/**' } }", "job"),
    ("task: { match: { cgroup: 'CGROUP/**' } }", "task"),
    ("job: { match: { user: USER } }", "job"),
    (
        "a: { match: { user: USER } }, b: { match: { cgroup: 'CGROUP/**' } }",
        "b",
    ),
    (
        "a: { match: { cgroup: 'CGROUP/**' } }, b: { match: { user: USER }, listen: [8080] }",
        "a",
    ),
    (
        "job: { match: [{ user: USER }, { cgroup: 'CGROUP/**' }], listen: [8080] }",
        "job",
    ),
    (
        "task: { match: [{ cgroup: 'CGROUP/**', user: USER }], listen: [8081, 8082] }",
        "task",
    ),
    (
        "b: { match: { cgroup: CGROUP } }, a: { match: [{ cgroup: 'CGROUP/**' }, { user: USER }], listen: [] }",
        "a",
    ),
];

fn load(place: &Place, workloads: &str) {
    let workloads = workloads.replace("USER", &user().to_string());
    place.write_policy(&format!("version: 1\nworkloads: {{ {workloads} }}\n"));
    let reload = place.output(&["reload"]);
    assert_eq!(reload.status.code(), Some(0), "{}", text(&reload.stderr));
}

/// Workloads that have processes.
fn owners(place: &Place) -> Vec<String> {
    let all = place.workloads();
    let held = |one: &&Value| !one["processes"].as_array().unwrap().is_empty();
    let names = all.iter().filter(held);
    names
        .map(|one| one["workload"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn no_swap_of_policies_lets_out_who_both_of_them_name() {
    let mut place = Place::new();
    place.start();
    load(&place, WORKLOADS[0].0);
    // Also where the queries go: that one was sent says nothing of who has heard it.
    let own = Own::new();
    let canaries = own.canaries();
    let hits = || canaries.each_ref().map(Canary::hits);
    let connector = targets(&[&canaries[0].address, &canaries[1].address]) + CONNECTOR;
    let [first, second] = [0; 2].map(|_| Client::start_as(user(), Some(&place.cgroup), &connector));
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    let mut at = 0;
    for step in 0..RELOADS {
        // From each to the next, then to the one after that, and so on.
        at = (at + 1 + step / WORKLOADS.len()) % WORKLOADS.len();
        let (workloads, whose) = WORKLOADS[at];
        load(&place, workloads);
        let is_so = eventually(START, || (owners(&place) == [whose]).then_some(()));
        assert!(is_so.is_some(), "{:?} under {workloads}", owners(&place));
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(hits(), [0; 4], "under {workloads}, step {step}");
    }
    // One of the two ends before: all that it ever did came to the agent, or was refused where it has to be.
    let told = first.finish();
    for (kind, only) in [
        ("connects", "steered"),
        ("answers", "HTTP/1.1 403"),
        ("datagrams", "EPERM"),
        ("queries", "sent"),
    ] {
        let came = told[kind].as_object().unwrap();
        assert!(
            came.len() == 1 && came[only].as_u64() > Some(100),
            "{kind}: {came:?}"
        );
    }
    assert_eq!(hits(), [0; 4]);

    // Under a policy that names it no more, the same client gets through.
    load(
        &place,
        "other: { match: { cgroup: /tollgate-test-nobody } }",
    );
    let heard = eventually(START, || hits().iter().all(|hits| *hits > 3).then_some(()));
    assert!(heard.is_some(), "the canaries hear nothing");
    second.finish();
}
