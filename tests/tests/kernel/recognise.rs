//! Who was governed stays so: leaving the cgroup, forking and becoming another program change nothing.
use crate::support::*;
use std::net::TcpListener;

/// A governed cgroup, one outside it, and a server for each family that only what is not governed reaches.
struct Scene {
    stand: Stand,
    outside: Cgroup,
    servers: [Elsewhere; 2],
}

impl Scene {
    fn new() -> Self {
        let stand = Stand::new();
        let outside = Cgroup::new(stand.fence().cgroup_root(), unique());
        let servers = ["127.0.0.1", "::1"].map(Elsewhere::new);
        Self {
            stand,
            outside,
            servers,
        }
    }

    /// What the scripts here need: to enter and to leave, and to try both families.
    fn script(&self, body: &str) -> String {
        let [v4, v6] = &self.servers;
        format!(
            "INSIDE = {:?}
def inside(): enter(INSIDE)
def outside(): enter({:?})
PORTS = {}, {}
def both(): say(tcp('127.0.0.1', PORTS[0])[1], tcp('::1', PORTS[1])[1])
{body}",
            self.stand.cgroup.path().to_str().unwrap(),
            self.outside.path().to_str().unwrap(),
            v4.address.port(),
            v6.address.port()
        )
    }

    /// Both connections of `body` came to the agent, as the workload's, and none to a server.
    fn governed(&self, body: &str) {
        assert_eq!(python_outside(&self.script(body)), "ok ok", "{body}");
        for listener in [&self.stand.agent4, &self.stand.agent6] {
            let flow = self.stand.fence().flow_of(&accept(listener)).unwrap();
            assert_eq!(&*flow.workload, self.stand.workload(), "{body}");
            assert_eq!(
                flow.process.cgroup,
                format!("/{}", self.outside.name.display())
            );
        }
        for server in &self.servers {
            assert_quiet(&server.listener);
        }
    }

    /// Both connections of `body` came to the servers.
    fn free(&self, body: &str) {
        assert_eq!(python_outside(&self.script(body)), "ok ok", "{body}");
        for server in &self.servers {
            accept(&server.listener);
        }
        for listener in [&self.stand.agent4, &self.stand.agent6] {
            assert_quiet(listener);
        }
    }

    /// Governed while the fence stands, and not without it.
    fn until_lifted(mut self, body: &str) {
        self.governed(body);
        self.stand.lift();
        self.free(body);
    }
}

#[test]
fn leaving_the_cgroup_is_no_way_out() {
    Scene::new().until_lifted("inside(); outside(); both()");
}

#[test]
fn nor_is_forking_twice_in_a_session_of_ones_own() {
    Scene::new().until_lifted(
        "r, w = os.pipe()
inside()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        outside(); both(); os.close(w); os._exit(0)
    os._exit(0)
os.close(w); os.read(r, 1)",
    );
}

#[test]
fn nor_is_becoming_another_program() {
    Scene::new().until_lifted(
        "inside(); outside()
os.execv('/bin/bash', ['bash', '-c', 'for at in 127.0.0.1/%d ::1/%d; do exec 3<>/dev/tcp/$at && echo -n \"ok \"; done' % PORTS])",
    );
}

/// Born there by `clone3(CLONE_INTO_CGROUP)`, which no move tells of.
#[test]
fn a_process_born_in_a_governed_cgroup_may_not_leave_either() {
    Scene::new().until_lifted(
        "import ctypes, struct
directory = os.open(INSIDE, os.O_RDONLY | os.O_DIRECTORY)
arguments = ctypes.create_string_buffer(struct.pack('11Q', 1 << 33, 0, 0, 0, 17, 0, 0, 0, 0, 0, directory))
sys.stdout.flush()
pid = ctypes.CDLL(None).syscall(435, arguments, 88)
assert pid >= 0
if pid == 0:
    outside(); both(); os._exit(0)
os.waitpid(pid, 0)",
    );
}

/// What makes a thread after it left, makes one that is governed too.
#[test]
fn threads_are_of_their_process() {
    Scene::new().until_lifted(
        "import threading
inside(); outside()
t = threading.Thread(target=both); t.start(); t.join()",
    );
}

/// One process's threads may be in different cgroups, if those are threaded and below one domain.
fn in_a_domain_of_threads(body: &str) {
    let mut scene = Scene::new();
    let domain = Cgroup::new(scene.stand.fence().cgroup_root(), unique());
    let inside = domain.child("inside");
    scene.outside = domain.child("outside");
    for cgroup in [&inside, &scene.outside] {
        std::fs::write(cgroup.path().join("cgroup.type"), "threaded").unwrap();
    }
    let workload = scene.stand.workload();
    scene.stand.fence().govern(&inside.name, workload).unwrap();
    let body = format!(
        "import threading
INSIDE, OUTSIDE = {:?}, {:?}
def alone(path):
    with open(path + '/cgroup.threads', 'w') as f: f.write(str(threading.get_native_id()))
def here(path): return [line for line in open(path + '/cgroup') if line.startswith('0:')]
def in_thread(*calls):
    t = threading.Thread(target=lambda: [call() for call in calls]); t.start(); t.join()
def parted(): assert here('/proc/self') != here('/proc/thread-self')
{body}",
        inside.path(),
        scene.outside.path()
    );
    scene.until_lifted(&body);
}

#[test]
fn a_thread_that_leaves_alone_is_still_of_its_process() {
    in_a_domain_of_threads("inside(); in_thread(lambda: alone(OUTSIDE), parted, both)");
}

#[test]
fn the_first_thread_that_leaves_alone_is_too() {
    in_a_domain_of_threads(
        "inside()
staying, done = threading.Event(), threading.Event()
t = threading.Thread(target=lambda: (staying.set(), done.wait(), parted())); t.start(); staying.wait()
alone(OUTSIDE); both(); done.set(); t.join()",
    );
}

/// It was there for a moment, and the one that connects never.
#[test]
fn a_thread_that_enters_alone_brings_its_process() {
    in_a_domain_of_threads("outside(); in_thread(lambda: alone(INSIDE), parted); both()");
}

#[test]
fn what_ran_before_is_enrolled_with_its_tree() {
    let mut scene = Scene::new();
    let late = Cgroup::new(scene.stand.fence().cgroup_root(), unique());
    // A tree of four: the youngest left, before anybody governed the cgroup.
    let body = scene.script(
        "r, w = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        outside(); say('there'); sys.stdin.readline(); both(); os.close(w); os._exit(0)
    os.wait(); os._exit(0)
os.close(w); os.read(r, 1); os.wait()",
    );
    let mut tree = Running::start(&late, &body);
    assert_eq!(tree.line(), "there");
    let enrolled = scene.stand.fence().govern(&late.name, "late").unwrap();
    assert_eq!(enrolled.newly.len(), 3, "{enrolled:?}");
    let listed = scene.stand.fence().governed_processes().unwrap();
    let ours: Vec<_> = listed.iter().filter(|p| p.workload == "late").collect();
    assert_eq!(ours.len(), 3, "{listed:?}");
    assert_eq!(ours.iter().filter(|p| p.inherited).count(), 1, "{ours:?}");
    assert_eq!(
        scene.stand.fence().workload_of(tree.pid()).as_deref(),
        Some("late")
    );
    tree.send("\n");
    assert_eq!(tree.line(), "ok ok");
    for listener in [&scene.stand.agent4, &scene.stand.agent6] {
        let flow = scene.stand.fence().flow_of(&accept(listener)).unwrap();
        assert_eq!(&*flow.workload, "late");
    }
    tree.finish();
    assert_eq!(scene.stand.fence().workload_of(std::process::id()), None);

    // The same tree without a fence.
    scene.stand.lift();
    let mut tree = Running::start(&late, &body);
    assert_eq!(tree.line(), "there");
    tree.send("\n");
    assert_eq!(tree.line(), "ok ok");
    scene
        .servers
        .iter()
        .for_each(|server| drop(accept(&server.listener)));
    tree.finish();
}

/// Goes on in children of its children, each of which ends once it has the next, outside of the cgroup; whoever lost its
/// parent is its child, as in a container. It and the last ones try both families when it is told.
const RESTLESS: &str = "
import ctypes, mmap, signal
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0 # PR_SET_CHILD_SUBREAPER
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
told = mmap.mmap(-1, 4096)
for _ in range(3):
    if os.fork() == 0:
        outside()
        while not told[0]:
            if os.fork(): os._exit(0)
            told[8] = (told[8] + 1) % 256
        both(); os._exit(0)
while told[8] < 50: time.sleep(0.001)
say('there'); sys.stdin.readline(); told[0] = 1
name(os.wait); both()";

/// However it forks while it is enrolled, all that is left of it is governed.
#[test]
fn a_tree_that_forks_all_the_time_is_enrolled_with_all_of_it() {
    let mut scene = Scene::new();
    let body = scene.script(RESTLESS);
    let late = Cgroup::new(scene.stand.fence().cgroup_root(), unique());
    for round in 0..6 {
        let by_cgroup = round % 2 == 0;
        let fence = scene.stand.fence();
        let mut tree = match by_cgroup {
            true => Running::start(&late, &body),
            false => Running::start_outside(&body),
        };
        assert_eq!(tree.line(), "there");
        let newly = match by_cgroup {
            true => fence.govern(&late.name, "late").unwrap().newly,
            false => fence.enrol(tree.pid(), "late", 3).unwrap(),
        };
        assert!(newly.contains(&tree.pid()), "{newly:?}");
        tree.send("\n");
        assert_eq!(tree.finish(), ["ok ok"; 4].join("\n"));
        for server in &scene.servers {
            let free = std::iter::from_fn(|| server.listener.accept().ok()).count();
            assert_eq!(free, 0, "{round}: of {newly:?}");
        }
        for listener in [&scene.stand.agent4, &scene.stand.agent6] {
            for _ in 0..4 {
                let flow = fence.flow_of(&accept(listener)).unwrap();
                assert_eq!(&*flow.workload, "late");
            }
        }
        if by_cgroup {
            fence.release(late.id()).unwrap();
        }
    }
    scene.stand.lift();
    for server in &scene.servers {
        reaches(server, || python_outside(&body));
    }
}

/// The hooks need no agent for it, nor does the next one have to be told.
#[test]
fn recognition_goes_on_while_there_is_no_agent() {
    let mut scene = Scene::new();
    let body = scene.script(
        "inside(); say('in'); sys.stdin.readline()
if os.fork() == 0:
    outside(); both(); sys.stdin.readline(); both(); os._exit(0)
os.wait()",
    );
    let mut client = Running::start_outside(&body);
    assert_eq!(client.line(), "in");
    drop(scene.stand.fence.take());
    let closed = listen("127.0.0.1:0");
    (scene.stand.agent4, scene.stand.agent6) = (closed, listen("[::1]:0"));
    client.send("\n");
    assert_eq!(client.line(), "ECONNREFUSED ECONNREFUSED");
    scene.stand.fence = Some(open(&scene.stand.options));
    scene.stand.admit();
    client.send("\n");
    assert_eq!(client.line(), "ok ok");
    let accepted: Vec<&TcpListener> = vec![&scene.stand.agent4, &scene.stand.agent6];
    for listener in accepted {
        assert!(scene.stand.fence().flow_of(&accept(listener)).is_some());
    }
    client.finish();
    for server in &scene.servers {
        assert_quiet(&server.listener);
    }
    scene.stand.lift();
    for server in &scene.servers {
        reaches(server, || python_outside(&body));
    }
}

/// An id is another process's once its own has ended: the next one with it is not taken for the governed one.
#[test]
fn a_reused_process_id_is_another_process() {
    let scene = Scene::new();
    let pid: u32 = python_outside(&scene.script(
        "pid = os.fork()
if pid == 0:
    inside(); os._exit(0)
os.waitpid(pid, 0); say(pid)",
    ))
    .parse()
    .unwrap();
    scene.free(&format!(
        "import ctypes, struct
wanted = ctypes.c_int({pid})
arguments = ctypes.create_string_buffer(struct.pack('11Q', 0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(wanted), 1, 0))
sys.stdout.flush()
pid = ctypes.CDLL(None).syscall(435, arguments, 80)
if pid == 0:
    assert os.getpid() == {pid}
    both(); os._exit(0)
assert pid == {pid}, pid
os.waitpid(pid, 0)"
    ));
}

/// There is a place for each id that a kernel can give, so also for the last one.
#[test]
fn the_last_process_id_there_can_be_is_governed() {
    const LAST: u32 = (4 << 20) - 1;
    let _all = Setting::to("/proc/sys/kernel/pid_max", "4194304");
    let mut scene = Scene::new();
    let body = scene.script(&format!(
        "import ctypes, struct
wanted = ctypes.c_int({LAST})
arguments = ctypes.create_string_buffer(struct.pack('10Q', 0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(wanted), 1))
pid = ctypes.CDLL(None).syscall(435, arguments, 80)
if pid == 0:
    inside(); outside(); both(); sys.stdin.readline(); os._exit(0)
assert pid == {LAST}, pid
os.waitpid(pid, 0)"
    ));
    let mut client = Running::start_outside(&body);
    assert_eq!(client.line(), "ok ok");
    let fence = scene.stand.fence();
    for listener in [&scene.stand.agent4, &scene.stand.agent6] {
        let flow = fence.flow_of(&accept(listener)).unwrap();
        assert_eq!(&*flow.workload, scene.stand.workload());
        assert_eq!(flow.process.pid, LAST);
    }
    assert_eq!(
        fence.workload_of(LAST).as_deref(),
        Some(scene.stand.workload())
    );
    client.finish();
    for server in &scene.servers {
        assert_quiet(&server.listener);
    }
    scene.stand.lift();
    for server in &scene.servers {
        reaches(server, || python_outside(&body));
    }
}

/// What is refused inside is refused to who has left, with sockets that were made after and before.
#[test]
fn who_left_may_send_no_datagrams_and_make_no_raw_sockets() {
    let mut scene = Scene::new();
    let body = "inside(); outside()
def udp(ip, call):
    u = socket.socket(family(ip), socket.SOCK_DGRAM)
    return name(lambda: call(u, ip))
def connected(u, ip):
    u.connect((ip, 9)); u.send(b'x')
for ip in ('127.0.0.1', '::1'):
    say(udp(ip, lambda u, ip: u.sendto(b'x', (ip, 9))), udp(ip, connected),
        name(lambda: socket.socket(family(ip), socket.SOCK_RAW, socket.IPPROTO_TCP)))";
    assert_eq!(
        python_outside(&scene.script(body)),
        "EPERM EPERM EPERM\nEPERM EPERM EPERM"
    );
    scene.stand.lift();
    assert_eq!(python_outside(&scene.script(body)), "ok ok ok\nok ok ok");
}
