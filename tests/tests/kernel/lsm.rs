//! The second fence. Where the kernel runs no BPF LSM programs, what is tested is that the fence says so.
use crate::refuse::counted;
use crate::support::*;
use std::net::TcpListener;

/// Layers of BPF LSM programs.
pub const LAYERS: [&str; 4] = [
    "socket_create",
    "ptrace_access_check",
    "task_kill",
    "file_receive",
];

/// What the script prints in the governed cgroup, then with the hook's program gone, and how often it was refused for
/// `reason` before. `None`: this kernel has no second fence, and the fence says so of all of it.
fn with_and_without(layer: &str, reason: &str, script: &str) -> Option<[String; 2]> {
    let stand = Stand::new();
    let found = crate::refuse::layer(stand.fence(), layer);
    if !found.enforcing {
        assert_all_missing(&stand);
        return None;
    }
    let with = stand.run(script);
    assert!(counted(&stand)[reason] > 0, "{reason}: {with}");
    let told = crate::refuse::refusals(stand.fence(), 1).remove(0);
    assert_eq!(told.reason, reason, "{told:?}");
    std::fs::remove_file(stand.options.pin_dir.join("links").join(layer)).unwrap();
    Some([with, stand.run(script)])
}

/// None of it is there, and the fence says so and what that leaves open.
fn assert_all_missing(stand: &Stand) {
    for name in LAYERS {
        let layer = crate::refuse::layer(stand.fence(), name);
        assert!(!layer.enforcing && !layer.needed, "{layer:?}");
        assert!(layer.why.unwrap().contains("security modules"), "{name}");
        assert!(!layer.leaves_open.is_empty(), "{name}");
    }
}

#[test]
fn other_families_are_not_made() {
    let script = "
def make(family, kind, protocol=0): return name(lambda: socket.socket(family, kind, protocol).close())
say(make(17, socket.SOCK_RAW, 0x300), make(17, socket.SOCK_DGRAM, 0x300))
say(make(socket.AF_UNIX, socket.SOCK_STREAM), make(socket.AF_NETLINK, socket.SOCK_RAW), make(socket.AF_INET, socket.SOCK_STREAM), make(socket.AF_INET6, socket.SOCK_DGRAM))";
    if let Some([with, without]) = with_and_without("socket_create", "family", script) {
        assert_eq!(with, "EPERM EPERM\nok ok ok ok");
        assert_eq!(without, "ok ok\nok ok ok ok");
    }
    assert!(python_outside(script).starts_with("ok ok\n"));
}

#[test]
fn nobody_looks_into_a_process_that_is_not_the_workloads() {
    let outside = Running::start_outside("say('here'); sys.stdin.readline()");
    let script = format!(
        "import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    r = libc.syscall(number, *[ctypes.c_long(word) for word in words])
    if r < 0: raise OSError(ctypes.get_errno(), '')
    return r
def take(process):
    pidfd = call(434, process, 0)
    os.close(call(438, pidfd, 0, 0))
def trace(process):
    call(101, 16, process, 0, 0)
    os.waitpid(process, 0x40000000)
    call(101, 17, process, 0, 0)
child = os.fork()
if child == 0:
    time.sleep(60); os._exit(0)
say(name(lambda: take({0})), name(lambda: trace({0})), name(lambda: take(child)), name(lambda: trace(child)))
os.kill(child, 9); os.wait()",
        outside.pid()
    );
    if let Some([with, without]) = with_and_without("ptrace_access_check", "trace", &script) {
        assert_eq!(with, "EPERM EPERM ok ok");
        assert_eq!(without, "ok ok ok ok");
    }
}

#[test]
fn nobody_signals_the_agent() {
    // Ignored by whoever does not wait for it.
    let script = format!(
        "def signal(number): return name(lambda: os.kill({}, number))
say(signal(0), signal(23), name(lambda: os.kill(os.getpid(), 23)))",
        std::process::id()
    );
    if let Some([with, without]) = with_and_without("task_kill", "signal", &script) {
        assert_eq!(with, "ok EPERM ok");
        assert_eq!(without, "ok ok ok");
    }
}

/// A socket that is passed: connected by somebody who is not governed, connected by nobody, and a file.
fn passed(ip: &str) {
    let server = TcpListener::bind((ip, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let script = |cgroup: &str| {
        format!(
            "here, there = socket.socketpair()
def receive(s):
    data, fds, flags, _ = socket.recv_fds(s, 1, 1)
    return len(fds)
if os.fork() == 0:
    connected = socket.create_connection(('{ip}', {port}))
    for one in [connected, socket.socket(), open('/dev/null'), connected]:
        socket.send_fds(there, [b'x'], [one.fileno()])
        there.recv(1)
    os._exit(0)
enter('{cgroup}')
for _ in range(4):
    say(receive(here)); here.send(b'y')
os.wait()"
        )
    };
    let stand = Stand::new();
    let path = stand.cgroup.path();
    let script = script(path.to_str().unwrap());
    if !crate::refuse::layer(stand.fence(), "file_receive").enforcing {
        // Then they are received, which is what is left open.
        assert_all_missing(&stand);
        assert_eq!(python_outside(&script), "1\n1\n1\n1", "{ip}");
        return;
    }
    assert_eq!(python_outside(&script), "0\n1\n1\n0", "{ip}");
    assert_eq!(counted(&stand)["passed"], 2);
    std::fs::remove_file(stand.options.pin_dir.join("links/file_receive")).unwrap();
    assert_eq!(python_outside(&script), "1\n1\n1\n1", "{ip}");
}

#[test]
fn connected_sockets_of_others_are_not_received() {
    passed("127.0.0.1");
    passed("::1");
}
