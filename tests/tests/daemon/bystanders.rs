//! A host where the agent runs and governs nobody loses nothing by it.
use crate::load::*;
use crate::support::*;
use harness::{eventually, everything};
use rustix::process::Signal;
use std::process::Command;

fn all_is_well(when: &str) {
    let run = |program: &str, of: &[&str]| Command::new(program).args(of).output();
    let lost = everything::lost("10", run).unwrap();
    assert!(lost.is_empty(), "{when}: {lost:?}");
}

#[test]
fn where_nobody_is_governed_nobody_loses_anything() {
    let mut place = Place::new();
    place.write_policy("version: 1\nworkloads: {}\n");
    let echoes = ["127.0.0.8", "::1"].map(echo);
    let bystander = targets(&[&echoes[0], &echoes[1]]) + BYSTANDER;
    let bystander = Client::start(None, &bystander);
    all_is_well("before there is an agent");
    place.start();
    for _ in 0..3 {
        all_is_well("with an agent");
    }
    place.end(Signal::KILL);
    all_is_well("without the agent");
    place.start();
    all_is_well("with the next agent");

    let status = place.status();
    assert_eq!(status["verdict"]["state"], "enforcing", "{status}");
    let none = [
        "governed",
        "lost_events",
        "unrecorded_refusals",
        "connections",
    ];
    for what in none {
        assert_eq!(status[what], 0, "{what}: {status}");
    }
    for what in ["accounts", "flows", "workloads"] {
        let told = place.asked(what);
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains("\"end\""), "{told}");
    }
    let decisions = place.output(&["decisions", "-o", "jsonl"]);
    assert_eq!(text(&decisions.stdout), "", "{decisions:?}");

    // Who is governed loses all of it, and it is counted. Unix sockets and those of packets not on every kernel.
    place.write_policy(POLICY);
    assert_eq!(place.output(&["reload"]).status.code(), Some(0));
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    let mut lost = everything::lost("1", |program, of| Ok(place.in_job(program, of))).unwrap();
    lost.retain(|what, _| !what.starts_with("SOCK") && what != "packets");
    assert_eq!(lost.len(), 12, "{lost:?}");
    assert!(place.asked("accounts").lines().count() > 1);
    all_is_well("beside somebody who is governed");
    assert!(bystander.finish()["rounds"].as_u64() > Some(100));
}
