//! What the fence says is in force is: each layer is taken away by hand, and no longer claimed.
use crate::looks::enrol;
use crate::support::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use tollgate::kernel::{self, Error, Fence, Left, Mended, Open};

/// Layers that are a program's, not what the agent or a map has.
fn claimed(fence: &Fence) -> BTreeSet<String> {
    let layers = fence.layers().into_iter();
    layers
        .filter(|layer| {
            let others = ["maps", "listener", "names", "room", "established"];
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

/// As the kernel counted: it looks at what is written in another way many times over, and at each start of the agent.
#[test]
fn the_verifier_is_done_with_each_program_soon() {
    const MOST: u64 = 60_000;
    let _stand = Stand::new();
    let field = |text: &str, name: &str| {
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name))?;
        value.trim().parse::<u64>().ok()
    };
    let open = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    let counts: BTreeMap<u64, u64> = open
        .filter_map(|entry| std::fs::read_to_string(entry.unwrap().path()).ok())
        .filter_map(|text| Some((field(&text, "prog_id:")?, field(&text, "verified_insns:")?)))
        .collect();
    assert!(counts.len() > 15, "{counts:?}");
    let long: Vec<_> = counts.iter().filter(|(_, count)| **count > MOST).collect();
    assert!(
        long.is_empty(),
        "programs by id, and instructions: {long:?}"
    );
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

/// Map name → id of what is pinned there, as bpftool tells it.
fn maps(pin_dir: &Path) -> BTreeMap<String, u64> {
    let entries = std::fs::read_dir(pin_dir.join("maps")).unwrap();
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let mut show = Command::new("bpftool");
            show.args(["-j", "map", "show", "pinned"]).arg(&path);
            let shown = show.output().unwrap().stdout;
            let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
            let name = path.file_name().unwrap().to_str().unwrap();
            (name.to_owned(), shown["id"].as_u64().unwrap())
        })
        .collect()
}

/// Pins the map of this id in the place of another.
fn pin_map(id: u64, to: &Path) {
    std::fs::remove_file(to).unwrap();
    let mut pin = Command::new("bpftool");
    pin.args(["map", "pin", "id", &id.to_string()]).arg(to);
    assert!(pin.status().unwrap().success());
}

#[test]
fn a_map_that_is_not_pinned_is_told_and_pinned_again() {
    let stand = Stand::new();
    let pins = &stand.options.pin_dir;
    let before = maps(pins);
    assert!(before.len() > 30, "{before:?}");
    let layer = || crate::refuse::layer(stand.fence(), "maps");
    assert!(layer().enforcing && layer().needed, "{:?}", layer());
    assert!(stand.fence().mend().is_empty());
    let is_told_and_mended = |what: &str| {
        let told = layer();
        assert!(!told.enforcing, "{what}: {told:?}");
        let why = told.why.unwrap();
        assert!(why.contains(what), "{what}: {why}");
        let mended = stand.fence().mend();
        let [
            Mended {
                layer: "maps",
                result: Some(Ok(())),
                was_open: false,
                ..
            },
        ] = &mended[..]
        else {
            panic!("{what}: {mended:?}")
        };
        assert!(layer().enforcing, "{what}: {:?}", layer());
    };
    for name in before.keys() {
        std::fs::remove_file(pins.join("maps").join(name)).unwrap();
        is_told_and_mended(name);
    }
    pin_map(before["SPENT"], &pins.join("maps/QUOTAS"));
    is_told_and_mended("another object is pinned in the place of QUOTAS");
    std::fs::remove_dir_all(pins.join("maps")).unwrap();
    is_told_and_mended("the pin of ACCOUNTS is gone");
    assert_eq!(maps(pins), before);
}

/// The directories go with the pins, and the lock on the instance with its own.
#[test]
fn a_fence_whose_directory_is_removed_is_put_back_whole() {
    let stand = Stand::new();
    let pins = stand.options.pin_dir.clone();
    let before = maps(&pins);
    let servers = servers();
    let in_force = || {
        let layers = stand.fence().layers().into_iter();
        layers
            .filter(|layer| layer.enforcing)
            .map(|layer| layer.name)
            .collect::<Vec<_>>()
    };
    let whole = in_force();
    for gone in [pins.join("links"), pins.join("attached"), pins.clone()] {
        std::fs::remove_dir_all(&gone).unwrap();
        for mended in stand.fence().mend() {
            assert!(matches!(mended.result, Some(Ok(()))), "{mended:?}");
        }
        assert_eq!(in_force(), whole, "{gone:?}");
        assert_eq!(maps(&pins), before, "the same maps");
        assert!(stand.fence().mend().is_empty());
        for (server, connect) in &servers {
            assert_eq!(stand.run(connect), "ok");
            assert_quiet(&server.listener);
        }
        let another = Fence::open(&stand.options);
        assert!(matches!(another, Err(Error::InUse { .. })), "{gone:?}");
    }
}

/// An agent dies, and maps are unpinned before the next one starts.
#[test]
fn the_next_agent_finds_the_maps_of_what_is_in_force() {
    let mut stand = Stand::new();
    let pins = stand.options.pin_dir.clone();
    let before = maps(&pins);
    drop(stand.fence.take());
    // The agent is gone, and its listeners are.
    (stand.agent4, stand.agent6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
    let servers = servers();
    let refused = |stand: &Stand| {
        for (server, connect) in &servers {
            assert_eq!(stand.run(connect), "ECONNREFUSED");
            assert_quiet(&server.listener);
        }
    };
    refused(&stand);
    for name in ["GOVERNED", "PROCESSES", "SCOPE", "ACCOUNTS", "REFUSALS"] {
        std::fs::remove_file(pins.join("maps").join(name)).unwrap();
    }
    // Others in their places.
    pin_map(before["GOVERNED"], &pins.join("maps/KEPT"));
    pin_map(before["SPENT"], &pins.join("maps/QUOTAS"));
    stand.fence = Some(open(&stand.options));
    assert_eq!(maps(&pins), before, "the same maps");
    assert!(crate::refuse::layer(stand.fence(), "maps").enforcing);
    assert_eq!(stand.fence().governed().len(), 1);
    assert_eq!(stand.account().refusals["agent_down"], 2, "counters go on");
    refused(&stand);
    stand.admit();
    for (_, connect) in &servers {
        assert_eq!(stand.run(connect), "ok");
    }
}

/// Nothing holds these any more: no program uses the one, and nothing that uses the other is pinned.
#[test]
fn no_agent_begins_without_what_is_lost() {
    let mut stand = Stand::new();
    let pins = stand.options.pin_dir.clone();
    drop(stand.fence.take());
    (stand.agent4, stand.agent6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
    let is_refused = |lost: &str| {
        let error = Fence::open(&stand.options).unwrap_err();
        let told = error.to_string();
        assert!(
            matches!(error, Error::MapLost { map, .. } if map == lost),
            "{told}"
        );
        assert!(
            told.contains("stop the governed workloads") && told.contains("start again"),
            "{told}"
        );
        assert!(
            !pins.join("maps").join(lost).exists(),
            "{lost} is made anew"
        );
    };
    std::fs::remove_file(pins.join("maps/WORKLOADS")).unwrap();
    is_refused("WORKLOADS");
    for (_, connect) in &servers() {
        assert_eq!(stand.run(connect), "ECONNREFUSED", "still in force");
    }
    std::fs::remove_dir_all(&pins).unwrap();
    drop(open(&stand.options));
    for link in std::fs::read_dir(pins.join("links")).unwrap() {
        let link = link.unwrap();
        if link.file_name() != "getpeername4" {
            std::fs::remove_file(link.path()).unwrap();
        }
    }
    std::fs::remove_file(pins.join("maps/ACCOUNTS")).unwrap();
    is_refused("ACCOUNTS");
    std::fs::remove_dir_all(&pins).unwrap();
    stand.fence = Some(open(&stand.options));
    assert!(crate::refuse::layer(stand.fence(), "maps").enforcing);
}

/// An agent may end between the two, and the next one finds every hook attached.
#[test]
fn that_hooks_were_away_is_not_forgotten_until_it_was_looked_at() {
    let mut stand = Stand::new();
    assert!(!stand.fence().was_open() && !stand.fence().is_unseen());
    let pins = stand.options.pin_dir.clone();
    std::fs::remove_file(pins.join("links/sched_process_fork")).unwrap();
    assert_eq!(stand.fence().mend().len(), 1);
    assert!(stand.fence().is_unseen());
    let told = || match kernel::left(&pins) {
        Left::Stands(hooks) => (hooks.missing.is_empty(), hooks.unseen, hooks.is_whole()),
        other => panic!("{other:?}"),
    };
    for _ in 0..2 {
        drop(stand.fence.take());
        assert_eq!(told(), (true, true, false));
        stand.fence = Some(open(&stand.options));
        assert!(stand.fence().was_open() && stand.fence().is_unseen());
    }
    stand.fence().seen().unwrap();
    assert!(!stand.fence().is_unseen());
    drop(stand.fence.take());
    assert_eq!(told(), (true, false, true));
    // A start puts hooks back as well, and may end before it is looked.
    std::fs::remove_file(pins.join("links/sched_process_exec")).unwrap();
    for _ in 0..2 {
        stand.fence = Some(open(&stand.options));
        assert!(stand.fence().was_open());
        drop(stand.fence.take());
    }
    stand.fence = Some(open(&stand.options));
    stand.fence().seen().unwrap();
    drop(stand.fence.take());
    // Who is governed is in maps that nothing used for a while.
    std::fs::remove_dir_all(pins.join("links")).unwrap();
    stand.fence = Some(open(&stand.options));
    assert!(stand.fence().was_open());
    stand.fence().seen().unwrap();
    drop(stand.fence.take());
    stand.fence = Some(open(&stand.options));
    assert!(!stand.fence().was_open());
    stand.lift();
    assert!(!pins.exists());
}

/// What `status` says where no agent runs is asked of the kernel too.
#[test]
fn without_an_agent_nothing_is_claimed_that_is_not_there() {
    let mut stand = Stand::new();
    let pins = stand.options.pin_dir.clone();
    drop(stand.fence.take());
    let names = |hooks: &[Open]| hooks.iter().map(|hook| hook.name).collect::<Vec<_>>();
    let told = || match kernel::left(&pins) {
        Left::Stands(hooks) => Some((names(&hooks.missing), names(&hooks.without))),
        Left::Nothing => None,
        Left::Unknown(error) => panic!("{error}"),
    };
    let whole = Some((Vec::new(), Vec::new()));
    assert_eq!(told(), whole);
    let detached = pins.join("links/egress");
    let mut detach = Command::new("bpftool");
    detach.args(["link", "detach", "pinned"]).arg(&detached);
    assert!(detach.status().unwrap().success());
    assert!(detached.exists(), "its pin stays");
    std::fs::remove_file(pins.join("links/connect6")).unwrap();
    // One of another kind, and one of the same kind with another program.
    for (held_by_another, by) in [
        ("sched_process_fork", "connect4"),
        ("sched_process_exec", "cgroup_mkdir"),
    ] {
        let pin = pins.join("links").join(held_by_another);
        std::fs::remove_file(&pin).unwrap();
        repin(&pin.with_file_name(by), &pin);
    }
    let (missing, without) = told().unwrap();
    assert_eq!(
        missing,
        [
            "sched_process_fork",
            "sched_process_exec",
            "connect6",
            "egress"
        ]
    );
    assert!(without.is_empty(), "{without:?}");
    stand.fence = Some(open(&stand.options));
    drop(stand.fence.take());
    assert_eq!(told(), whole, "put back");
    // Each one that is taken away is missed, also of those that not every kernel has.
    let links = pins.join("links");
    let mut gone = BTreeSet::new();
    let links = std::fs::read_dir(&links).unwrap().map(Result::unwrap);
    for link in links {
        std::fs::remove_file(link.path()).unwrap();
        gone.insert(link.file_name().into_string().unwrap());
        let Some((missing, without)) = told() else {
            break;
        };
        let named = missing.into_iter().chain(without).map(str::to_owned);
        assert_eq!(named.collect::<BTreeSet<_>>(), gone);
    }
    assert!(gone.len() > 20, "{gone:?}");
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
    let told: Vec<[&str; 3]> = hooks
        .map(|finding| {
            ["state", "found", "mend"].map(|key| finding[key].as_str().unwrap_or_default())
        })
        .collect();
    let stand = Stand::new();
    let layers = stand.fence().layers();
    let in_force = layers.iter().filter(|layer| layer.enforcing);
    let in_force: BTreeSet<&str> = in_force.map(|layer| &*layer.name).collect();
    let [state, found, _] = told[0];
    assert_eq!(state, "good", "{found}");
    let found = found.strip_prefix("this kernel takes: ").unwrap();
    let found: BTreeSet<&str> = found.split(", ").chain(["listener", "names"]).collect();
    assert_eq!(found, in_force);
    for layer in layers.iter().filter(|layer| !layer.enforcing) {
        let why = layer.why.as_deref().unwrap();
        let mut notes = told[1..].iter();
        let note = notes.find(|[state, found, _]| {
            *state == "note" && found.contains(&layer.name) && found.ends_with(why)
        });
        let [.., mend] = note.unwrap_or_else(|| panic!("{}: {told:?}", layer.name));
        let open = &layer.leaves_open;
        assert!(
            open.starts_with("nothing passes") || mend.contains(open),
            "{}: {mend}",
            layer.name
        );
    }
}

/// Of who has never been in a governed cgroup, no cgroup tells whom it made meanwhile.
#[test]
fn who_is_made_while_the_hook_is_away_is_enrolled() {
    let stand = Stand::new();
    let fence = stand.fence();
    let mut parent = Running::start_outside(
        "for line in sys.stdin:
    c = os.fork()
    if c == 0: break
    say(c)
sys.stdin.read()",
    );
    enrol(fence, &parent, "late");
    let hook = "sched_process_fork";
    std::fs::remove_file(stand.options.pin_dir.join("links").join(hook)).unwrap();
    let mut child = 0;
    eventually("a child is not seen", || {
        parent.send("\n");
        child = parent.line().parse().unwrap();
        fence.workload_of(child).is_none()
    });
    let mended: Vec<_> = fence.mend().iter().map(|one| one.layer).collect();
    assert_eq!(mended, [hook]);
    fence.govern(&stand.cgroup.name, stand.workload()).unwrap();
    assert_eq!(fence.workload_of(child), None);
    assert_eq!(fence.enrol_descendants().unwrap(), [child]);
    assert_eq!(fence.workload_of(child).as_deref(), Some("late"));
    assert!(fence.unseen().unwrap().contains(&child), "to be looked at");
    parent.finish();
}

/// A miss cannot be brought about on a kernel that keeps tracepoints from being preempted.
#[test]
fn the_kernel_says_how_often_each_tracepoint_was_skipped() {
    let stand = Stand::new();
    let skipped = stand.fence().skipped();
    let hooks: Vec<&str> = skipped.keys().copied().collect();
    let of_cgroups = ["cgroup_attach_task", "cgroup_mkdir", "cgroup_rmdir"];
    let of_processes = ["sched_process_exec", "sched_process_fork"];
    assert_eq!(hooks, [&of_cgroups[..], &of_processes[..]].concat());
}
