//! Who has run what is not known yet waits for that, whatever it has become since.
use crate::rules::*;
use crate::support::*;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tollgate::kernel::{Openings, Recognition, Runs};

/// It runs something known, or has another process do that and ends: both wait for what was run first, and are what that makes them.
#[test]
fn who_has_run_what_is_not_known_waits_for_that() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let other = copy(folder.path(), "other");
    let by = Recognition {
        cases: vec![
            case("digest", Some(INTERN), Runs::Class(4), None),
            case("digest", Some(INTERN), Runs::Unknown, None),
            case("second", Some(INTERN), Runs::Class(5), None),
        ],
        by_executable: true,
        by_digest: true,
        ..Recognition::default()
    };
    let mut scene = Scene::new(&by);
    let fence = scene.stand.fence();
    fence.know(&state(&other), None).unwrap();
    let becomes = "exec \"$0\" -c \"$1\"";
    let leaves = "\"$0\" -c \"$1\" 0<&3 & exit 0";
    let start = |programs: [&Path; 2], how: &str| {
        let connecting = connecting(&scene);
        let waits = format!("while read x; do {connecting}; echo; done");
        let [first, next] = programs.map(Path::display);
        Running::start_outside(&format!(
            "os.setresuid({INTERN}, {INTERN}, {INTERN}); os.dup2(0, 3)
os.execv('{first}', ['bash', '-c', {how:?}, '{next}', {waits:?}])"
        ))
    };
    let mut count = 0;
    let mut new = || {
        count += 1;
        copy(folder.path(), &format!("any-{count}"))
    };
    for how in [becomes, leaves] {
        for class in [Some(4), None] {
            let any = new();
            let mut running = start([&any, &other], how);
            running.send("\n");
            assert_eq!(running.line(), REFUSED, "{how}");
            fence.know(&state(&any), class).unwrap();
            running.send("\n");
            assert_eq!(running.line(), "ok ok", "{how}");
            let whose = class.map(|_| "digest");
            assert_eq!(scene.who().as_deref(), whose, "{how}");
            running.finish();
        }
    }
    // Of two the first has it, also where the second is known before, and nobody's only if neither is.
    for (classes, whose) in [
        ([Some(4), Some(5)], Some("digest")),
        ([None, Some(5)], Some("second")),
        ([None, None], None),
    ] {
        let both = [new(), new()];
        let mut running = start([&both[0], &both[1]], becomes);
        fence.know(&state(&both[1]), classes[1]).unwrap();
        running.send("\n");
        assert_eq!(running.line(), REFUSED, "{classes:?}");
        fence.know(&state(&both[0]), classes[0]).unwrap();
        running.send("\n");
        assert_eq!(running.line(), "ok ok", "{classes:?}");
        assert_eq!(scene.who().as_deref(), whose, "{classes:?}");
        running.finish();
    }
    // What there is no room to remember is refused. Once nobody waits for what there is, there is room.
    fill(&scene.stand, "WAITING");
    let any = new();
    let mut running = start([&any, &other], becomes);
    running.send("\n");
    assert_eq!(running.line(), REFUSED);
    fence.know(&state(&any), None).unwrap();
    running.send("\n");
    assert_eq!(running.line(), REFUSED, "nobody knows what for");
    running.finish();
    let mut idle = std::collections::HashSet::new();
    (0..2).for_each(|_| fence.forget_waiting(&mut idle));
    let any = new();
    let mut running = start([&any, &other], becomes);
    running.send("\n");
    assert_eq!(running.line(), REFUSED);
    let waits = fence.awaits(running.pid()).unwrap();
    // Who was made by others may not have ended yet.
    let all = fence.waiting().unwrap();
    assert!(all.contains(&(running.pid(), waits)));
    assert_eq!(fence.waited_for(waits)[0].file, state(&any));
    (0..2).for_each(|_| fence.forget_waiting(&mut idle));
    fence.know(&state(&any), Some(4)).unwrap();
    running.send("\n");
    assert_eq!(running.line(), "ok ok");
    assert_eq!(scene.who().as_deref(), Some("digest"));
    running.finish();
    let mut waiting = [becomes, leaves].map(|how| start([&new(), &other], how));
    for running in &mut waiting {
        running.send("\n");
        assert_eq!(running.line(), REFUSED);
    }
    scene.stand.lift();
    for mut running in waiting {
        scene.reaches(|| {
            running.send("\n");
            running.line()
        });
        running.finish();
    }
}

/// Who waits to be known serves nobody either: bound, or at whatever port `listen` chooses.
#[test]
fn nobody_connects_to_who_waits() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut scene = Scene::new(&by_digest());
    let fence = scene.stand.fence();
    let serves = "import socket, sys
def start(ip, is_bound):
    s = socket.socket(socket.AF_INET6 if ':' in ip else socket.AF_INET)
    if is_bound: s.bind((ip, 0))
    s.listen(); return s
all = [start(ip, is_bound) for ip in ('127.0.0.1', '::1') for is_bound in (True, False)]
print(*(s.getsockname()[1] for s in all), flush=True); sys.stdin.read()";
    let start = |program: &Path| {
        let mut server = Running::start_outside(&format!(
            "os.setresuid({INTERN}, {INTERN}, {INTERN})
os.execve('{}', ['python3', '-ISc', {serves:?}], {{'PYTHONHOME': '/usr'}})",
            program.display()
        ));
        let ports: Vec<u16> = server
            .line()
            .split(' ')
            .map(|port| port.parse().unwrap())
            .collect();
        let at = ["127.0.0.1", "127.0.0.1", "::1", "::1"];
        let at: Vec<(&str, u16)> = at.into_iter().zip(ports).collect();
        (server, at)
    };
    let opens = |(ip, port): &(&str, u16)| crate::listen::dial(ip, *port).is_some();
    for class in [None, Some(4)] {
        let any = folder.path().join(format!("any-{class:?}"));
        std::fs::copy("/usr/bin/python3", &any).unwrap();
        let (server, at) = start(&any);
        assert!(!at.iter().any(opens), "it serves before it is known");
        fence.know(&state(&any), class).unwrap();
        let is_free = class.is_none();
        assert!(at.iter().all(|one| opens(one) == is_free), "{class:?}");
        let openings = Openings {
            workload: "digest".to_owned(),
            listen: at.iter().map(|(_, port)| *port).collect(),
            unix: Vec::new(),
        };
        fence.permit(&[openings]).unwrap();
        assert!(at.iter().all(opens), "{class:?}");
        fence.permit(&[]).unwrap();
        assert!(at.iter().all(|one| opens(one) == is_free), "{class:?}");
        if is_free {
            // Also when nothing is remembered of it.
            let mut idle = std::collections::HashSet::new();
            fence.waits_no_more(server.pid(), fence.awaits(server.pid()).unwrap());
            (0..2).for_each(|_| fence.forget_waiting(&mut idle));
            assert!(at.iter().all(opens));
        }
        server.finish();
    }
    let any = folder.path().join("any");
    std::fs::copy("/usr/bin/python3", &any).unwrap();
    let (server, at) = start(&any);
    assert!(!at.iter().any(opens), "it serves before it is known");
    scene.stand.lift();
    eventually("nobody waits", || at.iter().all(opens));
    server.finish();
}

/// While there are no rules nobody is refused, but who becomes another program meanwhile is asked by what it has run once they are back.
#[test]
fn who_waits_does_so_still_when_the_rules_come_back() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let [any, other] = ["any", "other"].map(|name| copy(folder.path(), name));
    let mut scene = Scene::new(&by_digest());
    let fence = scene.stand.fence();
    fence.know(&state(&other), None).unwrap();
    let connects = format!("while read x; do {}; echo; done", connecting(&scene));
    let becomes = "echo there; read x; exec \"$0\" -c \"$1\"";
    let mut running = Running::start_outside(&format!(
        "os.setresuid({INTERN}, {INTERN}, {INTERN})
os.execv('{}', ['bash', '-c', {becomes:?}, '{}', {connects:?}])",
        any.display(),
        other.display()
    ));
    assert_eq!(running.line(), "there");
    fence.recognise(&Recognition::default()).unwrap();
    running.send("\n\n");
    assert_eq!(running.line(), "ok ok");
    assert_eq!(scene.who(), None);
    fence.recognise(&by_digest()).unwrap();
    running.send("\n");
    assert_eq!(running.line(), REFUSED);
    fence.know(&state(&any), Some(4)).unwrap();
    running.send("\n");
    assert_eq!(running.line(), "ok ok");
    assert_eq!(scene.who().as_deref(), Some("digest"));
    scene.stand.lift();
    scene.reaches(|| {
        running.send("\n");
        running.line()
    });
}

/// Listens with a socket over either family, and with one that was made while it waited and is bound later; then leaves them to a child.
const LEAVES: &str = "import os, socket, sys
def new(ip): return socket.socket(socket.AF_INET6 if ':' in ip else socket.AF_INET)
def port(s): s.listen(); return s.getsockname()[1]
four, six, late = new('127.0.0.1'), new('::1'), new('127.0.0.1')
four.bind(('127.0.0.1', 0)); six.bind(('::1', 0))
print(port(four), port(six), flush=True)
sys.stdin.readline(); late.bind(('127.0.0.1', 0)); print(port(late), flush=True)
sys.stdin.readline()
if os.fork(): os._exit(0)
sys.stdin.read()";

/// Its maker may have ended since, and another process have the id.
#[test]
fn a_listener_that_was_settled_as_nobodys_is_not_its_makers_next() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let any = folder.path().join("any");
    std::fs::copy("/usr/bin/python3", &any).unwrap();
    let scene = Scene::new(&by_digest());
    let fence = scene.stand.fence();
    let mut server = Running::start_outside(&format!(
        "pid = os.fork()
if pid == 0:
    os.setresuid({INTERN}, {INTERN}, {INTERN})
    os.execve('{}', ['python3', '-ISc', {LEAVES:?}], {{'PYTHONHOME': '/usr'}})
say(pid); os.waitpid(pid, 0); say('ended')",
        any.display()
    ));
    let maker: u32 = server.line().parse().unwrap();
    let ports = |line: String| -> Vec<u16> {
        let ports = line.split(' ').map(|port| port.parse().unwrap());
        ports.collect()
    };
    let first = ports(server.line());
    let opens = |ip: &str, port: u16| crate::listen::dial(ip, port).is_some();
    assert!(
        !opens("127.0.0.1", first[0]),
        "it serves before it is known"
    );
    fence.know(&state(&any), None).unwrap();
    fence.waits_no_more(maker, fence.awaits(maker).unwrap());
    let mut idle = std::collections::HashSet::new();
    for _ in 0..2 {
        fence.forget_waiting(&mut idle);
    }
    assert!(opens("127.0.0.1", first[0]) && opens("::1", first[1]));
    server.send("\n");
    let late = ports(server.line())[0];
    server.send("\n");
    assert_eq!(server.line(), "ended");
    let mut next = Running::start(
        &scene.stand.cgroup,
        &format!(
            "import ctypes, struct
wanted = ctypes.c_int({maker})
arguments = ctypes.create_string_buffer(struct.pack('11Q', 0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(wanted), 1, 0))
pid = ctypes.CDLL(None).syscall(435, arguments, 80)
if pid == 0:
    say('there'); sys.stdin.read(); os._exit(0)
assert pid == {maker}, pid
os.waitpid(pid, 0)"
        ),
    );
    assert_eq!(next.line(), "there");
    let opened = [
        opens("127.0.0.1", first[0]),
        opens("::1", first[1]),
        opens("127.0.0.1", late),
    ];
    assert_eq!(opened, [true; 3]);
    next.finish();
    server.finish();
}
