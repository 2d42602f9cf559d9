//! What the fence says is in force is: each layer is taken away by hand, and no longer claimed.
use crate::support::*;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use tollgate::kernel::Fence;

/// Layers that are a program's, not the agent's sockets.
fn claimed(fence: &Fence) -> BTreeSet<String> {
    let layers = fence.layers().into_iter();
    layers
        .filter(|layer| {
            layer.enforcing && !["listener", "names", "established"].contains(&&*layer.name)
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
