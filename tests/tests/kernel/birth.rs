//! Cgroups that are governed from their birth on: between `mkdir` and the first connection nobody has a chance.
use crate::support::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tollgate::kernel::{CgroupPath, Recognition};

/// A path below the cgroup root, where `*` is any name.
fn path(text: &str, workload: &str, rank: u32, slices: bool) -> CgroupPath {
    let names = text.split('/');
    CgroupPath {
        is_own: false,
        names: names
            .map(|name| (name != "*").then(|| name.to_owned()))
            .collect(),
        slices,
        workload: Some(workload.to_owned()),
        rank,
        condition: None,
    }
}

fn by(paths: Vec<CgroupPath>) -> Recognition {
    Recognition {
        paths,
        ..Recognition::default()
    }
}

/// Makes a cgroup, enters it, connects over both families and removes it, again and again.
fn churn(parent: &Cgroup, servers: &[Elsewhere; 2], times: u32) -> String {
    format!(
        "out = set()
own = [line.split('::', 1)[1].strip() for line in open('/proc/self/cgroup') if line.startswith('0::')][0]
for n in range({times}):
    path = '{parent}/job-%d' % n
    os.mkdir(path)
    if os.fork() == 0:
        enter(path)
        say(tcp('127.0.0.1', {v4})[1], tcp('::1', {v6})[1])
        os._exit(0)
    os.wait()
    while name(lambda: os.rmdir(path)) == 'EBUSY': time.sleep(0.001)",
        parent = parent.path().display(),
        v4 = servers[0].address.port(),
        v6 = servers[1].address.port(),
    )
}

#[test]
fn not_one_connection_gets_out_of_a_new_cgroup() {
    let mut stand = Stand::new();
    let parent = Cgroup::new(stand.fence().cgroup_root(), unique());
    let servers = ["127.0.0.1", "::1"].map(Elsewhere::new);
    let jobs = format!("{}/*", parent.name.display());
    let wanted = by(vec![path(&jobs, "jobs", 0, false)]);
    stand.fence().recognise(&wanted).unwrap();

    // With an agent: all of them come to it.
    let script = churn(&parent, &servers, 20);
    let mut client = Running::start_outside(&script);
    for _ in 0..20 {
        for listener in [&stand.agent4, &stand.agent6] {
            let flow = stand.fence().flow_of(&accept(listener)).unwrap();
            assert_eq!(&*flow.workload, "jobs");
        }
        assert_eq!(client.line(), "ok ok");
    }
    client.finish();

    // Without one: none of them gets anywhere.
    drop(stand.fence.take());
    (stand.agent4, stand.agent6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
    let said = python_outside(&script);
    assert_eq!(said.lines().count(), 20);
    assert!(
        said.lines().all(|line| line == "ECONNREFUSED ECONNREFUSED"),
        "{said}"
    );
    for server in &servers {
        assert_quiet(&server.listener);
    }

    // The next agent finds that the cgroups are gone, without having looked.
    stand.fence = Some(open(&stand.options));
    let left = stand.fence().governed();
    assert!(
        left.iter().all(|governed| governed.workload != "jobs"),
        "{left:?}"
    );
    stand.lift();
    assert_eq!(python_outside(&churn(&parent, &servers, 1)), "ok ok");
    servers
        .iter()
        .for_each(|server| drop(accept(&server.listener)));
}

/// Fills the map of governed cgroups with ones that there never were.
const FILL: &str = "
import array, ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, attributes):
    attributes = ctypes.create_string_buffer(attributes, 128)
    found = libc.syscall(321, command, attributes, 128)
    if found < 0: raise OSError(ctypes.get_errno(), 'bpf')
    return found
path = ctypes.create_string_buffer(b'{PIN}')
fd = bpf(7, struct.pack('<Q', ctypes.addressof(path))) # BPF_OBJ_GET
keys = array.array('Q', range(1 << 40, (1 << 40) + 65537))
values = ctypes.create_string_buffer(struct.pack('<IIQ', 1, 0, 0) * len(keys))
say(name(lambda: bpf(26, struct.pack('<QQQQIIQQ', 0, 0, keys.buffer_info()[0], ctypes.addressof(values), len(keys), fd, 0, 0)))) # BPF_MAP_UPDATE_BATCH
";

/// What cannot be entered is refused, whether there is an agent or not; and let in as soon as there is room.
#[test]
fn a_cgroup_that_there_is_no_room_for_is_refused() {
    let mut stand = Stand::new();
    let parent = Cgroup::new(stand.fence().cgroup_root(), unique());
    let servers = ["127.0.0.1", "::1"].map(Elsewhere::new);
    let jobs = format!("{}/*", parent.name.display());
    let wanted = by(vec![path(&jobs, "jobs", 0, false)]);
    stand.fence().recognise(&wanted).unwrap();
    let tried = format!(
        "say(tcp('127.0.0.1', {v4})[1], tcp('::1', {v6})[1])",
        v4 = servers[0].address.port(),
        v6 = servers[1].address.port(),
    );
    let before = Cgroup::new(&parent.root, parent.name.join("before"));
    let pin = stand.options.pin_dir.join("maps/GOVERNED");
    let fill = FILL.replace("{PIN}", pin.to_str().unwrap());
    assert_eq!(python_outside(&fill), "E2BIG");

    let beyond = Cgroup::new(&parent.root, parent.name.join("beyond"));
    assert_eq!(workload_of(&stand, &beyond), None);
    assert_eq!(python(&beyond, &tried), "ECONNREFUSED ECONNREFUSED");
    assert_eq!(python_outside(&tried), "ok ok", "nobody else is");
    assert_eq!(stand.fence().beyond().count(), 1);
    let room = |stand: &Stand| {
        let layers = stand.fence().layers();
        let mut layers = layers.into_iter();
        layers.find(|layer| layer.name == "room").unwrap()
    };
    assert!(!room(&stand).enforcing);
    // The agent finds no room for it either, and others are not let in for that it has looked.
    let seen = stand.fence().beyond();
    stand.fence().govern(&beyond.name, "jobs").unwrap_err();
    stand.fence().let_in(&seen);
    assert_eq!(python(&beyond, &tried), "ECONNREFUSED ECONNREFUSED");
    for server in &servers {
        accept(&server.listener);
        assert_quiet(&server.listener);
    }

    // One goes, and the agent looks again.
    drop(before);
    let seen = stand.fence().beyond();
    stand.fence().govern(&beyond.name, "jobs").unwrap();
    stand.fence().let_in(&seen);
    assert!(room(&stand).enforcing);
    let client = Running::start(&beyond, &tried);
    for listener in [&stand.agent4, &stand.agent6] {
        let flow = stand.fence().flow_of(&accept(listener)).unwrap();
        assert_eq!(&*flow.workload, "jobs");
    }
    assert_eq!(client.finish(), "ok ok");
    stand.lift();
    assert_eq!(python(&beyond, &tried), "ok ok");
}

/// The workload of a new cgroup, if it has one.
fn workload_of(stand: &Stand, cgroup: &Cgroup) -> Option<String> {
    let mut all = stand.fence().governed().into_iter();
    all.find(|governed| governed.cgroup_id == cgroup.id())
        .map(|governed| governed.workload)
}

/// Whoever connects from there is the workload's over both families, and nobody's without the fence.
fn is_held_until_lifted(mut stand: Stand, cgroup: &Cgroup, workload: &str) {
    let servers = servers();
    for (server, script) in &servers {
        assert_eq!(python(cgroup, script), "ok");
        let agent = stand.agent(&server.address.ip().to_string());
        let flow = stand.fence().flow_of(&accept(agent)).unwrap();
        assert_eq!(&*flow.workload, workload);
        assert_quiet(&server.listener);
    }
    stand.lift();
    for (server, script) in &servers {
        reaches(server, || python(cgroup, script));
    }
}

#[test]
fn paths_are_matched_name_by_name() {
    let stand = Stand::new();
    let root = stand.fence().cgroup_root().to_owned();
    let top = Cgroup::new(&root, format!("{}.slice", unique()));
    let name = top.name.to_str().unwrap().to_owned();
    let paths = vec![
        path(&format!("{name}/fixed"), "fixed", 3, false),
        path(&format!("{name}/*/leaf"), "leaf", 2, false),
        path(&format!("{name}/*/*"), "any", 4, false),
        path(&format!("*/{name}.service"), "unit", 1, true),
        path(&format!("*/*/{name}.service"), "unit", 1, true),
    ];
    stand.fence().recognise(&by(paths.clone())).unwrap();
    let new = |below: &str| Cgroup::new(&root, format!("{name}/{below}"));
    let check = |cgroup: &Cgroup, expected: Option<&str>| {
        let found = workload_of(&stand, cgroup);
        assert_eq!(found.as_deref(), expected, "{}", cgroup.name.display());
    };
    let (fixed, other) = (new("fixed"), new("other"));
    check(&fixed, Some("fixed"));
    check(&other, None);
    check(&new("other/leaf"), Some("leaf"));
    check(&new("other/twig"), Some("any"));
    // Inside one of another workload, one of its own; inside one of the same, none is needed.
    let inner = new("fixed/leaf");
    check(&inner, Some("leaf"));
    check(&new("fixed/leaf/deeper"), None);
    // A unit is one below slices only: anybody can have a directory of its name elsewhere.
    check(&new(&format!("{name}.service")), Some("unit"));
    let slice = new("a.slice");
    check(&new(&format!("a.slice/{name}.service")), Some("unit"));
    check(&new(&format!("other/{name}.service")), Some("any"));
    drop(slice);

    // What no longer is in the policy is no longer looked for, what still is, is.
    stand.fence().recognise(&by(paths[..1].to_vec())).unwrap();
    drop((inner, fixed));
    check(&new("fixed"), Some("fixed"));
    check(&new("other/again"), None);
    // Nobody looks at it, until somebody does again.
    std::fs::remove_file(stand.options.pin_dir.join("links/cgroup_mkdir")).unwrap();
    eventually("it is not seen", || {
        workload_of(&stand, &new("fixed")).is_none()
    });
    stand.fence().mend();
    let fixed = new("fixed");
    check(&fixed, Some("fixed"));
    is_held_until_lifted(stand, &fixed, "fixed");
}

/// Ten thousand names: all are told from each other, and being made takes no longer.
#[test]
fn many_paths_are_as_good_as_one() {
    let stand = Stand::new();
    let top = Cgroup::new(stand.fence().cgroup_root(), unique());
    let name = top.name.to_str().unwrap();
    let paths = (0..10_000).map(|n| path(&format!("{name}/w{n}"), &format!("w{n}"), n, false));
    let begun = Instant::now();
    stand.fence().recognise(&by(paths.collect())).unwrap();
    eprintln!("10 000 paths told in {:?}", begun.elapsed());
    for n in [0, 4_321, 9_999] {
        let made = top.child(&format!("w{n}"));
        assert_eq!(workload_of(&stand, &made), Some(format!("w{n}")));
    }
    assert_eq!(workload_of(&stand, &top.child("w10000")), None);
    is_held_until_lifted(stand, &top.child("w5000"), "w5000");
}

/// A container's cgroup is refused until somebody knows whose it is.
/// The hooks have a cgroup before it can be opened. Whoever looks in between must not take it for one that is gone, and let go of it.
#[test]
fn a_cgroup_that_is_being_made_is_not_taken_for_gone() {
    let stand = Stand::new();
    let fence = stand.fence();
    let top = Cgroup::new(fence.cgroup_root(), unique());
    let wanted = Recognition {
        by_container: true,
        ..Recognition::default()
    };
    fence.recognise(&wanted).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let governed = fence.governed().into_iter();
                for one in governed.filter(|one| one.is_gone) {
                    fence.release(one.cgroup_id).unwrap();
                }
            }
        });
        // Few at a time, of which it is soon looked at the newest; to remove one takes longer than to make many.
        let until = Instant::now() + Duration::from_secs(10);
        let (mut made, mut free) = (0, 0);
        while Instant::now() < until {
            let name = |n| format!("docker-{:064x}.scope", made + n);
            let some: Vec<Cgroup> = (0..10).map(|n| top.child(&name(n))).collect();
            let held: Vec<u64> = fence.governed().iter().map(|one| one.cgroup_id).collect();
            free += some.iter().filter(|one| !held.contains(&one.id())).count();
            made += some.len();
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(made > 40, "{made}");
        assert_eq!(free, 0, "of {made}");
    });
}

fn entries(stand: &Stand) -> usize {
    let pin = stand.options.pin_dir.join("maps/GOVERNED");
    let mut dump = std::process::Command::new("bpftool");
    dump.args(["-j", "map", "dump", "pinned"]).arg(&pin);
    let all: serde_json::Value = serde_json::from_slice(&dump.output().unwrap().stdout).unwrap();
    all.as_array().unwrap().len()
}

/// Whoever makes and removes cgroups all the time would fill the map.
#[test]
fn what_a_cgroup_fulfils_is_forgotten_with_it() {
    let stand = Stand::new();
    let fence = stand.fence();
    let top = Cgroup::new(fence.cgroup_root(), unique());
    let (at, path) = (top.path(), top.path().join("short"));
    let below = at.strip_prefix(fence.cgroup_root()).unwrap();
    let name = below.join("short");
    let (is_over, before) = (AtomicBool::new(false), entries(&stand));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                std::fs::create_dir(&path).unwrap();
                std::fs::remove_dir(&path).unwrap();
            }
        });
        // Others write as well.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let _ = fence.know_no_more(&[]);
                let _ = fence.count_governed();
                fence.forget_waiting(&mut std::collections::HashSet::new());
            }
        });
        let until = Instant::now() + Duration::from_secs(8);
        let mut told = 0;
        while Instant::now() < until {
            told += u32::from(fence.fulfils(&name, 1).is_ok());
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(told > 40, "{told}");
    });
    assert_eq!(entries(&stand), before);
    // What is left of others, by an earlier agent too, makes room after a while.
    fill(&stand, "GOVERNED");
    let own = top.child("own");
    let name = below.join("own");
    assert!(fence.fulfils(&name, 1).is_err());
    fence.forget_gone();
    assert!(fence.fulfils(&name, 1).is_err());
    std::thread::sleep(Duration::from_secs(11));
    fence.forget_gone();
    fence.fulfils(&name, 1).unwrap();
    assert_eq!(entries(&stand), before + 1);
    drop(own);
}

#[test]
fn a_new_container_waits_until_it_is_known() {
    let mut stand = Stand::new();
    let top = Cgroup::new(stand.fence().cgroup_root(), unique());
    let wanted = Recognition {
        by_container: true,
        ..Recognition::default()
    };
    stand.fence().recognise(&wanted).unwrap();
    let id = "0123456789abcdef".repeat(4);
    let servers = ["127.0.0.1", "::1"].map(Elsewhere::new);
    let both = format!(
        "say(tcp('127.0.0.1', {})[1], tcp('::1', {})[1])",
        servers[0].address.port(),
        servers[1].address.port()
    );
    let plain = top.child(&format!("docker-{}.scope", &id[..63]));
    assert_eq!(python(&plain, &both), "ok ok", "no container's id");
    let container = top.child(&format!("docker-{id}.scope"));
    assert_eq!(python(&container, &both), "ECONNREFUSED ECONNREFUSED");
    servers
        .iter()
        .for_each(|server| drop(accept(&server.listener)));
    servers
        .iter()
        .for_each(|server| assert_quiet(&server.listener));
    let account = stand.fence().accounts();
    let unsettled = account
        .iter()
        .find(|account| account.workload == "unsettled");
    assert_eq!(
        unsettled.map(|account| account.refusals["unsettled"]),
        Some(2)
    );
    stand.fence().govern(&container.name, "known").unwrap();
    assert_eq!(python(&container, &both), "ok ok");
    for listener in [&stand.agent4, &stand.agent6] {
        let flow = stand.fence().flow_of(&accept(listener)).unwrap();
        assert_eq!(&*flow.workload, "known");
    }
    stand.fence().release(container.id()).unwrap();
    assert_eq!(
        python(&container, &both),
        "ok ok",
        "somebody's whom nobody governs"
    );
    servers
        .iter()
        .for_each(|server| drop(accept(&server.listener)));
    let unknown = top.child(&format!("docker-{}.scope", id.replace('0', "f")));
    assert_eq!(python(&unknown, &both), "ECONNREFUSED ECONNREFUSED");
    stand.lift();
    for server in &servers {
        reaches(server, || python(&unknown, &both));
    }
}
