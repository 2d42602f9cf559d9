//! What the fence says is in force is: each layer is taken away by hand, and no longer claimed.
use crate::support::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use tollgate::kernel::{self, Fence, Left};

/// Layers that are a program's, not what the agent or a map has.
fn claimed(fence: &Fence) -> BTreeSet<String> {
    let layers = fence.layers().into_iter();
    layers
        .filter(|layer| {
            let others = ["listener", "names", "room", "established"];
            layer.enforcing && !others.contains(&&*layer.name)
        })
        .map(|layer| layer.name)
        .collect()
}

/// Takes layers away one by one; each is missed from then on, and nothing else is.
fn each_is_missed(how: &str, take: impl Fn(&Path)) {
    let stand = Stand::new();
    let fence = stand.fence();
    let mut left = claimed(fence);
    let attached: BTreeSet<String> = std::fs::read_dir(stand.options.pin_dir.join("links"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(left, attached, "claimed, and attached");
    assert!(left.len() > 15, "{left:?}");
    for name in attached {
        let pin = stand.options.pin_dir.join("links").join(&name);
        take(&pin);
        left.remove(&name);
        eventually(&format!("{name} is missed, and only it, {how}"), || {
            claimed(fence) == left
        });
        let layer = crate::refuse::layer(fence, &name);
        assert!(!layer.leaves_open.is_empty(), "{name}");
        let why = layer.why.unwrap();
        assert!(why.contains("restart the agent"), "{name}: {why}");
    }
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn none_is_claimed_whose_pin_is_gone() {
    each_is_missed("its pin gone", |pin| std::fs::remove_file(pin).unwrap());
}

#[test]
fn none_is_claimed_that_is_detached_or_held_by_another_program() {
    each_is_missed("detached", |pin| {
        // A tracepoint's link cannot be detached by force: another one is put in its place.
        let pinned = ["link", "detach", "pinned"];
        let output = Command::new("bpftool").args(pinned).arg(pin).output();
        if !output.unwrap().status.success() {
            std::fs::remove_file(pin).unwrap();
            repin(&pin.with_file_name("connect4"), pin);
        }
    });
}

/// Pins the link that is pinned at `from` at `to` too.
fn repin(from: &Path, to: &Path) {
    let shown = Command::new("bpftool")
        .args(["-j", "link", "show", "pinned"])
        .arg(from)
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let id = shown["id"].to_string();
    let pinned = Command::new("bpftool")
        .args(["link", "pin", "id", &id])
        .arg(to)
        .status();
    assert!(pinned.unwrap().success());
}

/// What `status` says where no agent runs is asked of the kernel too.
#[test]
fn without_an_agent_nothing_is_claimed_that_is_not_there() {
    let mut stand = Stand::new();
    let pins = stand.options.pin_dir.clone();
    drop(stand.fence.take());
    assert!(matches!(kernel::left(&pins), Left::Whole));
    let detached = pins.join("links/egress");
    let mut detach = Command::new("bpftool");
    detach.args(["link", "detach", "pinned"]).arg(&detached);
    assert!(detach.status().unwrap().success());
    assert!(detached.exists(), "its pin stays");
    std::fs::remove_file(pins.join("links/connect6")).unwrap();
    let held_by_another = pins.join("links/sched_process_fork");
    std::fs::remove_file(&held_by_another).unwrap();
    repin(&pins.join("links/connect4"), &held_by_another);
    match kernel::left(&pins) {
        Left::Without(missing) => {
            assert_eq!(missing, ["sched_process_fork", "connect6", "egress"]);
        }
        other => panic!("{other:?}"),
    }
    stand.fence = Some(open(&stand.options));
    drop(stand.fence.take());
    assert!(matches!(kernel::left(&pins), Left::Whole), "put back");
    stand.fence = Some(open(&stand.options));
    stand.lift();
    assert!(matches!(kernel::left(&pins), Left::Nothing));
    // Files of these names are no links.
    let files = tempfile::tempdir().unwrap();
    let links = files.path().join("links");
    std::fs::create_dir(&links).unwrap();
    for hook in ["connect4", "connect6", "egress", "sendmsg4", "sendmsg6"] {
        std::fs::write(links.join(hook), "").unwrap();
    }
    assert!(matches!(kernel::left(files.path()), Left::Nothing));
}

/// `doctor` tells as many layers as this kernel takes, each in force or with why it is not.
#[test]
fn doctor_tells_which_layers_this_kernel_takes() {
    let doctor = Command::new(harness::agent::program().unwrap())
        .args(["doctor", "-o", "json"])
        .output()
        .unwrap();
    let findings: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let hooks = findings.as_array().unwrap().iter();
    let hooks = hooks.filter(|finding| finding["check"] == "hooks");
    let told: Vec<(&str, &str)> = hooks
        .map(|finding| {
            let state = finding["state"].as_str().unwrap();
            (state, finding["found"].as_str().unwrap())
        })
        .collect();
    let stand = Stand::new();
    let layers = stand.fence().layers();
    let in_force = layers.iter().filter(|layer| layer.enforcing);
    let in_force: BTreeSet<&str> = in_force.map(|layer| &*layer.name).collect();
    let (state, found) = told[0];
    assert_eq!(state, "good", "{found}");
    let found = found.strip_prefix("this kernel takes: ").unwrap();
    let found: BTreeSet<&str> = found.split(", ").chain(["listener", "names"]).collect();
    assert_eq!(found, in_force);
    for layer in layers.iter().filter(|layer| !layer.enforcing) {
        let why = layer.why.as_deref().unwrap();
        let mut notes = told[1..].iter();
        assert!(
            notes.any(|(state, found)| *state == "note"
                && found.contains(&layer.name)
                && found.ends_with(why)),
            "{}: {told:?}",
            layer.name
        );
    }
}
