//! The fence outlives the agent: a next one finds everything and takes over in place.
use crate::refuse::events;
use crate::support::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use tollgate::kernel::{Error, Event, Fence};

/// Link name → (link id, program id), as bpftool tells it.
fn links(pin_dir: &Path) -> BTreeMap<String, (u64, u64)> {
    std::fs::read_dir(pin_dir.join("links"))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let output = Command::new("bpftool")
                .args(["-j", "link", "show", "pinned"])
                .arg(&path)
                .output()
                .unwrap();
            let link: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let number = |key: &str| link[key].as_u64().unwrap();
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                (number("id"), number("prog_id")),
            )
        })
        .collect()
}

#[test]
fn a_next_agent_takes_over_in_place() {
    let mut stand = Stand::new();
    let before = links(&stand.options.pin_dir);
    assert!(
        before.len() > 10 && before.contains_key("connect4"),
        "{before:?}"
    );
    assert!(
        matches!(Fence::open(&stand.options), Err(Error::InUse { .. })),
        "one agent at a time"
    );

    // The agent dies: its descriptors close, its listeners too.
    drop(stand.fence.take());
    (stand.agent4, stand.agent6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
    let servers = servers();
    let both = |stand: &Stand| servers.each_ref().map(|(_, connect)| stand.run(connect));
    let refused = ["ECONNREFUSED"; 2];
    assert_eq!(both(&stand), refused, "still enforcing with no agent");

    // The next one finds what is governed, and the refusals in between; nothing is entered again.
    stand.fence = Some(open(&stand.options));
    let after = links(&stand.options.pin_dir);
    for (name, (link, program)) in &before {
        let (link_now, program_now) = after[name];
        let traced = ["sched_", "cgroup_", "tcp_"];
        let traced = traced.iter().any(|start| name.starts_with(start));
        let mut second = crate::lsm::LAYERS.iter().chain(&crate::lsm::UNIX_LAYERS);
        let replaced = traced || second.any(|layer| layer == name);
        assert_eq!(
            *link == link_now,
            !replaced,
            "{name}: the same link, but for tracepoints and security hooks"
        );
        assert_ne!(*program, program_now, "{name}: another program");
    }
    assert_eq!(both(&stand), refused, "until listeners are admitted");
    let governed = stand.fence().governed();
    assert_eq!(governed.len(), 1);
    assert_eq!(governed[0].cgroup_id, stand.cgroup.id());
    assert_eq!(
        governed[0].cgroup.as_deref(),
        Some(&*format!("/{}", stand.workload()))
    );
    assert_eq!(governed[0].workload, stand.workload());
    let missed = events(stand.fence(), |events| events.len() >= 4);
    for event in &missed {
        let Event::Refused(refusal) = event else {
            panic!("{event:?}")
        };
        assert_eq!(
            (refusal.reason, &*refusal.workload),
            ("agent_down", stand.workload())
        );
    }
    stand.admit();
    stand.fence().forget_namespaces().unwrap();
    assert_eq!(both(&stand), ["ok"; 2]);
    for (listener, (server, _)) in [&stand.agent4, &stand.agent6].into_iter().zip(&servers) {
        let flow = stand.fence().flow_of(&stand.accept(listener)).unwrap();
        assert_eq!(&*flow.workload, stand.workload());
        assert_quiet(&server.listener);
    }
    assert_eq!(
        stand.fence().accounts()[0].refusals["agent_down"],
        4,
        "counters go on"
    );
    stand.lift();
    for (server, connect) in &servers {
        reaches(server, || stand.run(connect));
    }
}

/// Link name → size of its program as the kernel holds it, which tells programs apart that do different things.
fn sizes(pin_dir: &Path) -> BTreeMap<String, u64> {
    let size = |id: u64| {
        let output = Command::new("bpftool")
            .args(["-j", "prog", "show", "id", &id.to_string()])
            .output()
            .unwrap();
        let program: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        program["bytes_xlated"].as_u64().unwrap()
    };
    let programs = links(pin_dir).into_iter();
    programs
        .map(|(name, (_, program))| (name, size(program)))
        .collect()
}

/// A client connects all the time, over both families, while agents come and go that load other programs than the one
/// before (an upgrade): no connection ever gets out.
#[test]
fn no_connection_gets_out_during_handovers() {
    let mut stand = Stand::new();
    let servers = servers();
    let [v4, v6] = [0, 1].map(|n: usize| servers[n].0.address.port());
    let mut client = Running::start(
        &stand.cgroup,
        &format!(
            "import select
say('go'); came = {{}}
while not select.select([sys.stdin], [], [], 0)[0]:
    for to in ('127.0.0.1', {v4}), ('::1', {v6}):
        s, what = tcp(*to); s.close()
        came[to[0], what] = came.get((to[0], what), 0) + 1
say(*(f'{{ip}}={{what}}={{count}}' for (ip, what), count in came.items()))"
        ),
    );
    assert_eq!(client.line(), "go");
    let mut before = sizes(&stand.options.pin_dir);
    let listeners = || (listen("127.0.0.1:0"), listen("[::1]:0"));
    // Each takes long where the machine is emulated.
    let rounds = if harness::slower() > 1 { 2 } else { 6 };
    for round in 0..rounds {
        drop(stand.fence.take());
        // The agent before ends first, or serves until the next one does.
        let is_down = round < rounds / 2;
        if is_down {
            (stand.agent4, stand.agent6) = listeners();
        }
        // Whether traffic is counted is decided when the programs are loaded.
        stand.options.counts = round % 2 == 1;
        stand.fence = Some(open(&stand.options));
        let now = sizes(&stand.options.pin_dir);
        assert!(now.keys().eq(before.keys()), "{before:?}, then {now:?}");
        assert_ne!(now, before, "the same programs as before");
        before = now;
        if !is_down {
            (stand.agent4, stand.agent6) = listeners();
        }
        stand.admit();
        for listener in [&stand.agent4, &stand.agent6] {
            let accepted = stand.accept(listener);
            assert!(stand.fence().flow_of(&accepted).is_some());
        }
    }
    let came = client.finish();
    let came: BTreeMap<&str, u64> = came
        .split(' ')
        .map(|one| one.rsplit_once('=').unwrap())
        .map(|(what, count)| (what, count.parse().unwrap()))
        .collect();
    // Nor is it anything else than an error where it is none of these: a listener may go, or be full, just then.
    let known = ["127.0.0.1", "::1"].map(|ip| ["ok", "ECONNREFUSED"].map(|w| format!("{ip}={w}")));
    for what in known.as_flattened() {
        assert!(came.get(&**what) > Some(&10), "{what}: {came:?}");
    }
    for (server, _) in &servers {
        assert_quiet(&server.listener);
    }
    // Nobody governs it any more: the same client gets there.
    stand.lift();
    for (server, script) in &servers {
        assert_eq!(stand.run(script), "ok");
        accept(&server.listener);
    }
}

#[test]
fn workload_ids_survive_and_are_never_reused() {
    let mut stand = Stand::new();
    let (first, second) = (stand.cgroup.child("first"), stand.cgroup.child("second"));
    stand.fence().govern(&first.name, "first").unwrap();
    stand.fence().release(first.id()).unwrap();
    drop(stand.fence.take());
    stand.fence = Some(open(&stand.options));
    stand.fence().govern(&second.name, "second").unwrap();
    let mut names: Vec<String> = stand
        .fence()
        .accounts()
        .into_iter()
        .map(|a| a.workload)
        .collect();
    names.sort();
    let mut expected = ["first", "second", stand.workload()];
    expected.sort_unstable();
    assert_eq!(names, expected);
    stand.admit();
    for ip in ["198.51.100.7", "2001:db8::7"] {
        python(&second, &format!("tcp('{ip}', 80)"));
        let flow = stand.fence().flow_of(&stand.accept(stand.agent(ip)));
        assert_eq!(&*flow.unwrap().workload, "second");
    }
}

#[test]
fn pins_of_another_version_are_refused_and_keep_enforcing() {
    let mut stand = Stand::new();
    drop(stand.fence.take());
    // The agent is gone, and its listeners are.
    (stand.agent4, stand.agent6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
    let settings = stand.options.pin_dir.join("maps/SETTINGS");
    let abi = |value: &str| {
        let bytes = [value, "0", "0", "0"];
        let mut command = Command::new("bpftool");
        command
            .args(["map", "update", "pinned"])
            .arg(&settings)
            .args(["key", "0", "0", "0", "0", "value"]);
        assert!(command.args(bytes).status().unwrap().success());
    };
    let mut lookup = Command::new("bpftool");
    lookup
        .args(["-j", "map", "lookup", "pinned"])
        .arg(&settings);
    let output = lookup.args(["key", "0", "0", "0", "0"]).output().unwrap();
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let own = found["value"][0].as_str().unwrap();
    abi("99");
    let error = Fence::open(&stand.options).unwrap_err();
    assert!(matches!(error, Error::Incompatible { .. }), "{error}");
    assert!(error.to_string().contains("ABI 99"), "{error}");
    let servers = servers();
    for (_, script) in &servers {
        assert_eq!(stand.run(script), "ECONNREFUSED");
    }
    abi(own);
    stand.fence = Some(open(&stand.options));
    stand.lift();
    for (_, script) in &servers {
        assert_eq!(stand.run(script), "ok");
    }
}

#[test]
fn lift_leaves_nothing() {
    let mut stand = Stand::new();
    let programs: Vec<u64> = links(&stand.options.pin_dir)
        .values()
        .map(|(_, program)| *program)
        .collect();
    let layers = stand.fence().layers();
    for name in [
        "connect4",
        "connect6",
        "sendmsg4",
        "sendmsg6",
        "sock_create",
        "tcp_destroy_sock",
        "listener",
    ] {
        let layer = layers.iter().find(|layer| layer.name == name).unwrap();
        assert!(layer.enforcing, "{layer:?}");
    }
    let pin = stand.options.pin_dir.join("links/connect4");
    std::fs::remove_file(&pin).unwrap();
    let layers = stand.fence().layers();
    let connect4 = layers
        .iter()
        .find(|layer| layer.name == "connect4")
        .unwrap();
    assert!(
        !connect4.enforcing,
        "asked of the kernel, not remembered: {connect4:?}"
    );

    stand.lift();
    assert!(!stand.options.pin_dir.exists());
    let attached = || {
        let output = Command::new("bpftool")
            .args(["-j", "prog", "list"])
            .output()
            .unwrap();
        let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        all.as_array()
            .unwrap()
            .iter()
            .filter_map(|program| program["id"].as_u64())
            .collect::<Vec<_>>()
    };
    eventually("the programs are gone", || {
        !attached().iter().any(|id| programs.contains(id))
    });
}

/// Whom a hook was not shown has the mark of who had its id before: where that was an agent, nothing would govern it.
#[test]
fn only_the_agent_itself_is_exempt() {
    let mut stand = Stand::new();
    let servers = servers();
    let [connect4, connect6] = servers.each_ref().map(|(_, connect)| connect);
    let body = format!("say('up')\nwhile sys.stdin.readline(): {connect4}; {connect6}");
    let mut client = Running::start(&stand.cgroup, &body);
    assert_eq!(client.line(), "up");
    let pid = client.pid();
    let exempt = |stand: &Stand| {
        let pin = stand.options.pin_dir.join("maps/PROCESSES");
        let mark = [0xff, 0xff, 0, 0, 0, 0, 0, 0].map(|byte: u8| byte.to_string());
        let key = pid.to_le_bytes().map(|byte| byte.to_string());
        let mut update = Command::new("bpftool");
        update.args(["map", "update", "pinned"]).arg(&pin);
        update.arg("key").args(key).arg("value").args(mark);
        assert!(update.status().unwrap().success());
    };
    // While an agent runs, and by the next one.
    let ways: [fn(&mut Stand); 2] = [
        |stand| assert!(stand.fence().mend().is_empty()),
        |stand| {
            drop(stand.fence.take());
            stand.fence = Some(open(&stand.options));
        },
    ];
    for way in ways {
        exempt(&stand);
        way(&mut stand);
        stand.listen();
        client.send("\n");
        for (listener, (server, _)) in [&stand.agent4, &stand.agent6].into_iter().zip(&servers) {
            assert_eq!(client.line(), "ok");
            drop(accept(listener));
            assert_quiet(&server.listener);
        }
    }
    // It is no more once it has gone.
    drop(stand.fence.take());
    let own = std::process::id()
        .to_le_bytes()
        .map(|byte| byte.to_string());
    let pin = stand.options.pin_dir.join("maps/PROCESSES");
    let mut look = Command::new("bpftool");
    look.args(["-j", "map", "lookup", "pinned"])
        .arg(&pin)
        .arg("key")
        .args(own);
    let found = String::from_utf8(look.output().unwrap().stdout).unwrap();
    assert!(!found.contains("0xff"), "{found}");
    stand.fence = Some(open(&stand.options));
    stand.lift();
    for (server, _) in &servers {
        reaches(server, || {
            client.send("\n");
            [client.line(), client.line()].join(" ")
        });
    }
    client.finish();
}
