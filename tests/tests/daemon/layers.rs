//! `tollgate status` when somebody takes the kernel half away under a running agent.
use crate::established::Talker;
use crate::gaps::becomes_enforcing;
use crate::support::*;
use harness::{at_most, eventually};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names of the layers for which `is` holds.
fn layers(status: &serde_json::Value, is: impl Fn(&serde_json::Value) -> bool) -> BTreeSet<String> {
    let all = status["layers"].as_array().unwrap().iter();
    let those = all.filter(|layer| is(layer));
    those
        .map(|layer| layer["name"].as_str().unwrap().to_owned())
        .collect()
}

fn links(place: &Place) -> PathBuf {
    Path::new("/sys/fs/bpf").join(&place.name).join("links")
}

/// What `doctor` finds of the fence that stands, whatever this kernel would take.
fn finding(place: &Place) -> serde_json::Value {
    let output = place.output(&["doctor", "-o", "json"]);
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut findings = findings.as_array().unwrap().iter();
    let fence = findings.find(|finding| finding["check"] == "fence");
    fence.unwrap().clone()
}

/// What it says of that.
fn diagnosis(place: &Place) -> String {
    finding(place)["found"].as_str().unwrap().to_owned()
}

#[test]
fn status_says_enforcing_only_while_every_layer_that_holds_is_there() {
    let mut place = Place::new();
    // So seldom that nothing is put back meanwhile.
    place.write_config("fence_check: 1h\n");
    place.start();
    let links = links(&place);
    let status = place.status();
    assert_eq!(status["verdict"]["state"], "enforcing", "{status}");
    let pinned = |name: &String| links.join(name).exists();
    let (needed, others) = (
        layers(&status, |layer| layer["needed"] == true),
        layers(&status, |layer| layer["needed"] == false),
    );
    // Those that only count, tell or tidy up: it goes on to hold.
    let others: Vec<&String> = others.iter().filter(|name| pinned(name)).collect();
    for name in &others {
        fs::remove_file(links.join(name)).unwrap();
        let status = place.status();
        let off = layers(&status, |layer| layer["enforcing"] == false);
        assert!(off.contains(*name), "{name} is still claimed: {status}");
        assert_eq!(status["verdict"]["state"], "enforcing", "{name}: {status}");
    }
    assert!(needed.len() >= 10, "{needed:?}");
    let whole = diagnosis(&place);
    assert!(whole.starts_with("stands: "), "{whole}");
    for name in others {
        assert!(whole.contains(name), "{name}: {whole}");
    }
    for (count, name) in needed.iter().enumerate() {
        let pin = match &**name {
            "maps" => links.with_file_name("maps").join("GOVERNED"),
            name => links.join(name),
        };
        fs::remove_file(pin).unwrap();
        let output = place.output(&["status", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(status["verdict"]["state"], "not_enforcing", "{name}");
        assert_ne!(output.status.code(), Some(0), "{name}");
        let why = status["verdict"]["why"].as_array().unwrap();
        assert_eq!(why.len(), count + 1, "{name}: {why:?}");
        let said = format!("{name} is not in force");
        assert!(
            why.iter()
                .any(|why| why.as_str().unwrap().starts_with(&said)
                    && why.as_str().unwrap().contains("leaves open")),
            "{name}: {why:?}"
        );
        if name == "connect4" {
            let part = diagnosis(&place);
            let said = part.starts_with("INCOMPLETE") && part.contains("connect4");
            assert!(said, "{part}");
        }
    }
    let none = diagnosis(&place);
    assert!(none.starts_with("none "), "{none}");
    let told = text(&place.output(&["status"]).stdout);
    assert!(told.starts_with("NOT ENFORCING"), "{told}");
}

/// Without an agent too: which hooks are in force, and of each other what it leaves open.
#[test]
fn without_an_agent_each_hook_is_in_force_or_said_with_what_it_leaves_open() {
    let mut place = Place::new();
    place.start();
    let status = place.status();
    let leaves_open = |name: &str| {
        let mut layers = status["layers"].as_array().unwrap().iter();
        layers.find(|layer| layer["name"] == name).unwrap()["leaves_open"].clone()
    };
    let attached = layers(&status, |layer| {
        let name = layer["name"].as_str().unwrap();
        layer["enforcing"] == true && links(&place).join(name).exists()
    });
    place.end(Signal::KILL);
    // One that keeps something in, and one that only counts.
    let gone = ["connect4", "tcp_destroy_sock"];
    for name in gone {
        fs::remove_file(links(&place).join(name)).unwrap();
    }
    let output = place.output(&["status", "-o", "json"]);
    assert_eq!(output.status.code(), Some(3));
    let dead: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = finding(&place);
    for told in [&dead, &found] {
        let list = |key: &str| {
            told[key]
                .as_array()
                .unwrap_or_else(|| panic!("{key}: {told}"))
        };
        let in_force = list("in_force").iter().map(|name| name.as_str().unwrap());
        let mut all: BTreeSet<&str> = in_force.collect();
        assert!(!gone.iter().any(|name| all.contains(name)), "{told}");
        all.extend(gone);
        assert!(all.iter().copied().eq(&attached), "{told}");
        for (key, name) in ["missing", "without"].into_iter().zip(gone) {
            let open = serde_json::json!([{ "name": name, "leaves_open": leaves_open(name) }]);
            assert_eq!(told[key], open, "{told}");
        }
        // Of what this kernel has not, the agent said the same.
        for hook in list("beyond") {
            let name = hook["name"].as_str().unwrap();
            assert_eq!(hook["leaves_open"], leaves_open(name), "{told}");
            assert!(!attached.contains(name), "{told}");
        }
    }
    assert_eq!(dead["fence"], false, "{dead}");
    let open = |name: &str| format!("{name}: {}", leaves_open(name).as_str().unwrap());
    let told = text(&place.output(&["status"]).stdout);
    assert!(told.contains("INCOMPLETE"), "{told}");
    for name in gone {
        assert!(
            told.contains(&format!("missing    {}", open(name))),
            "{told}"
        );
    }
    let in_force = told.lines().find(|line| line.contains("in force  "));
    let in_force = in_force.unwrap().split_whitespace();
    assert!(in_force.clone().any(|word| word == "connect6"), "{told}");
    assert!(!in_force.clone().any(|word| word == "connect4"), "{told}");
    let mend = found["mend"].as_str().unwrap();
    assert!(mend.contains(&open("connect4")), "{found}");
    let table = text(&place.output(&["doctor"]).stdout);
    assert!(table.contains(&open("connect4")), "{table}");
    place.start();
    // What the hooks that were away did not see is looked for first.
    becomes_enforcing(&place);
    let whole = finding(&place);
    assert!(whole["mend"].is_null(), "{whole}");
    assert_eq!(whole["missing"], serde_json::json!([]));
}

/// As often as the agent looks where nothing else is configured.
#[test]
fn a_hook_that_is_taken_away_is_named_until_it_is_back_which_takes_two_seconds_at_most() {
    let mut place = Place::new();
    place.start();
    let mut named = 0;
    for hook in ["connect4", "egress", "sched_process_fork"] {
        let link = links(&place).join(hook);
        fs::remove_file(&link).unwrap();
        let taken = Instant::now();
        loop {
            let asked = taken.elapsed();
            let status = place.status();
            let state = &status["verdict"]["state"];
            if !link.exists() {
                // Nobody had put it back when that was answered.
                assert_eq!(state, "not_enforcing", "{hook}: {status}");
                let off = layers(&status, |layer| layer["enforcing"] == false);
                assert!(off.contains(hook), "{status}");
                named += 1;
            } else if state == "enforcing" && status["put_back"][hook] == 1 {
                break;
            }
            assert!(asked < at_most(Duration::from_secs(2)), "{hook}: {status}");
        }
    }
    assert!(
        named > 0,
        "it was put back each time before anybody could ask"
    );
}

#[test]
fn what_is_taken_away_is_put_back_and_what_passed_meanwhile_is_ended() {
    let mut place = Place::new();
    place.write_config("fence_check: 3s\n");
    place.start();
    assert_eq!(place.ask(), forbidden());
    let links = links(&place);
    let all: Vec<_> = fs::read_dir(&links).unwrap().collect();
    assert!(all.len() >= 10, "{all:?}");
    for link in &all {
        fs::remove_file(link.as_ref().unwrap().path()).unwrap();
    }
    // Nothing holds it: it gets out, over IPv4 and IPv6.
    let mut talker = Talker::new(&place);
    assert_eq!(talker.says(), [Ok(()); 2]);
    let back = eventually(START, || {
        let status = place.status();
        let enforcing = status["verdict"]["state"] == "enforcing";
        (enforcing && status["put_back"]["connect4"] == 1).then_some(status)
    });
    let status = back.expect("it is put back");
    let put_back = status["put_back"].as_object().unwrap();
    assert_eq!(put_back.len(), all.len(), "{put_back:?}");
    assert_eq!(talker.says(), [Err(ErrorKind::ConnectionReset); 2]);
    assert_eq!(place.ask(), forbidden());
    let told = text(&place.output(&["status"]).stdout);
    assert!(told.starts_with("enforcing"), "{told}");
    assert!(
        told.contains(" connect4 (1) ") && told.contains("another hand took them away"),
        "{told}"
    );
}

/// An agent may end after it has put hooks back, and before it has looked for what passed meanwhile.
#[test]
fn what_an_agent_had_still_to_look_for_the_next_one_does() {
    let mut place = Place::new();
    // So seldom that it is done at the start alone.
    place.write_config("fence_check: 1h\n");
    place.start();
    becomes_enforcing(&place);
    let unseen = links(&place).with_file_name("unseen");
    fs::create_dir(&unseen).unwrap();
    let why = place.status()["verdict"].to_string();
    assert!(
        why.contains("not_enforcing") && why.contains("hooks were away"),
        "{why}"
    );
    place.end(Signal::KILL);
    assert!(unseen.exists());
    place.start();
    becomes_enforcing(&place);
    assert!(!unseen.exists());
}

/// The hooks went on by it, so what is open stays so.
#[test]
fn a_map_that_is_unpinned_is_pinned_again_and_nothing_is_ended() {
    let mut place = Place::new();
    place.start();
    assert_eq!(place.ask(), forbidden());
    let maps = links(&place).with_file_name("maps");
    for name in ["GOVERNED", "WORKLOADS"] {
        fs::remove_file(maps.join(name)).unwrap();
    }
    let back = eventually(START, || {
        let status = place.status();
        let times = status["put_back"]["maps"].as_u64();
        // What is put back while a status is put together is in its count, and not yet in its layers.
        let enforcing = status["verdict"]["state"] == "enforcing";
        (enforcing && times.is_some_and(|times| times > 0)).then_some(())
    });
    assert!(back.is_some(), "it is put back: {}", place.status());
    assert!(maps.join("GOVERNED").exists() && maps.join("WORKLOADS").exists());
    let told = text(&place.output(&["status"]).stdout);
    assert!(
        told.contains(" maps (") && told.contains("another hand took them away"),
        "{told}"
    );
    assert_eq!(place.ask(), forbidden());
}

/// One that is ended by Ctrl-C leaves what it has attached: every packet of the host would pass through that for ever.
#[test]
fn a_doctor_removes_what_one_before_it_left() {
    let place = Place::new();
    let pins = |pid: &str| Path::new("/sys/fs/bpf").join(format!("tollgate-doctor-{pid}"));
    // No process can have this number, and this test's own goes on.
    let gone = pins("4294967295");
    let there = pins(&std::process::id().to_string());
    for left in [&gone, &there] {
        fs::create_dir_all(left.join("links")).unwrap();
    }
    let code = place.output(&["doctor"]).status.code();
    let (swept, kept) = (!gone.exists(), there.exists());
    for left in [&gone, &there] {
        let _ = fs::remove_dir_all(left);
    }
    assert!(code.is_some() && swept && kept, "{swept} {kept}");
}

/// What could not be asked is not known to be gone, and nobody is said to have taken it.
#[test]
fn a_hook_that_cannot_be_asked_after_is_not_said_to_be_gone() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let mut place = Place::new();
    place.start();
    let agent = Pid::from_child(place.agent.as_ref().unwrap());
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.as_raw_nonzero())).unwrap();
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let maximum = files
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .ok();
    let limit = |current| {
        prlimit(Some(agent), Resource::Nofile, Rlimit { current, maximum }).unwrap();
    };
    limit(Some(3));
    std::thread::sleep(Duration::from_secs(4));
    limit(maximum);
    let up = eventually(Duration::from_secs(10), || {
        let output = place.output(&["status", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        status["put_back"].is_object().then_some(())
    });
    assert!(up.is_some(), "it does not answer again");
    assert_eq!(place.status()["put_back"].as_object().unwrap().len(), 0);
    let mut said = place.agent.as_mut().unwrap().stderr.take().unwrap();
    place.end(Signal::TERM);
    let mut told = String::new();
    std::io::Read::read_to_string(&mut said, &mut told).unwrap();
    assert!(
        told.contains("it is not known whether egress is in force"),
        "{told}"
    );
    assert!(!told.contains("cannot be put back"), "{told}");
}
