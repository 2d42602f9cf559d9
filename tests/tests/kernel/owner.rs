//! Whose a connection is was recorded as it was made. What its process becomes, and who has that one's id next, change nothing.
use crate::support::*;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tollgate::kernel::Flow;

/// Field 22 of `stat`, counted from behind the name: hundredths of a second.
pub fn start_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let behind = stat.rsplit(')').next().unwrap();
    behind.split_whitespace().nth(19).unwrap().parse().unwrap()
}

/// What tells one process, running one program, from another: its id, its start, its executable's device and inode.
type Who = (u32, u64, u64, u64);

fn who(pid: u32) -> Who {
    let exe = std::fs::metadata(format!("/proc/{pid}/exe")).unwrap();
    (pid, start_ticks(pid), exe.dev(), exe.ino())
}

fn recorded(flow: &Flow) -> Who {
    let of = &flow.process;
    (of.pid, of.start / 10_000_000, of.exe_dev, of.exe_inode)
}

/// Connects by a ring: within the call that asks for it, by a worker of the kernel's, and by the kernel's own thread that looks for
/// what is asked. Says of each what came of it and which thread it had made for that.
fn by_rings(ip: &str, port: u16) -> String {
    const RING: &str = include_str!("ways/ring.py");
    format!(
        "{RING}
def threads():
    all = [open(f'/proc/self/task/{{task}}/comm').read() for task in os.listdir('/proc/self/task')]
    return [comm[:7] for comm in all if comm.startswith('iou-')]
to = ctypes.create_string_buffer(sockaddr(family('{ip}'), '{ip}', {port}))
kept = []
for setup, flags in (0, 0), (0, ASYNC), (SQPOLL, 0):
    s, ring = socket.socket(family('{ip}'), socket.SOCK_STREAM), Ring(setup)
    kept += [s, ring]
    r = name(lambda: ring.do(CONNECT, s.fileno(), ctypes.addressof(to), 0, len(to) - 1, flags=flags))
    say(r, *threads()); sys.stdin.readline()"
    )
}

/// What each of [`by_rings`] says. The worker stays for a while.
const BY_RINGS: [&[&str]; 3] = [
    &["ok"],
    &["ok iou-wrk"],
    &["ok iou-wrk iou-sqp", "ok iou-sqp iou-wrk", "ok iou-sqp"],
];

fn is_made_by_rings(stand: &Stand, server: &Elsewhere, mut each: impl FnMut(u32)) {
    let (ip, port) = (server.address.ip().to_string(), server.address.port());
    let mut client = Running::start(&stand.cgroup, &by_rings(&ip, port));
    for said in BY_RINGS {
        let line = client.line();
        assert!(said.contains(&line.as_str()), "{ip}: {line}");
        each(client.pid());
        client.send("\n");
    }
    client.finish();
}

#[test]
fn who_connects_by_a_ring_is_the_owner_whichever_thread_does_it() {
    let mut stand = Stand::new();
    let servers = ["127.0.0.1", "::1"].map(Elsewhere::new);
    for server in &servers {
        let listener = stand.agent(&server.address.ip().to_string());
        is_made_by_rings(&stand, server, |pid| {
            let flow = stand.fence().flow_of(&stand.accept(listener));
            let flow = flow.expect("steered");
            assert_eq!(recorded(&flow), who(pid));
            assert_eq!(&*flow.workload, stand.workload());
            assert_eq!(flow.destination, server.address);
        });
        assert_quiet(&server.listener);
    }
    stand.lift();
    for server in &servers {
        eventually("it is the fence that steers", || {
            let mut reached = 0;
            is_made_by_rings(&stand, server, |_| {
                reached += usize::from(server.listener.accept().is_ok());
            });
            reached == 3
        });
    }
}

/// Another program, as far as the kernel can tell: a copy of what this process runs.
fn another(folder: &tempfile::TempDir, pid: u32) -> PathBuf {
    let to = folder.path().join("another");
    std::fs::copy(format!("/proc/{pid}/exe"), &to).unwrap();
    to
}

/// Connects, and once more as another program, to which it hands the connection.
fn becoming(ip: &str, port: u16) -> String {
    format!(
        "if 'KEPT' in os.environ:
    kept = socket.socket(fileno=int(os.environ['KEPT'])); kept.sendall(b'kept')
    again, r = tcp('{ip}', {port}); say(r); sys.stdin.read(); sys.exit()
s, r = tcp('{ip}', {port}); say(r)
s.set_inheritable(True); os.environ['KEPT'] = str(s.fileno())
os.execv(sys.stdin.readline().strip(), sys.orig_argv)"
    )
}

fn said(stream: &mut std::net::TcpStream) -> String {
    let mut text = [0; 4];
    std::io::Read::read_exact(stream, &mut text).unwrap();
    String::from_utf8(text.to_vec()).unwrap()
}

#[test]
fn becoming_another_program_changes_no_owner() {
    let mut stand = Stand::new();
    let servers = ["127.0.0.1", "::1"].map(Elsewhere::new);
    let folder = tempfile::tempdir().unwrap();
    let connected_twice = |stand: &Stand, server: &Elsewhere| {
        let script = becoming(&server.address.ip().to_string(), server.address.port());
        let mut client = Running::start(&stand.cgroup, &script);
        assert_eq!(client.line(), "ok");
        let first = who(client.pid());
        let program = another(&folder, client.pid());
        client.send(&format!("{}\n", program.display()));
        assert_eq!(client.line(), "ok");
        let second = who(client.pid());
        // The same process, and another program.
        assert_eq!((first.0, first.1), (second.0, second.1));
        assert_ne!((first.2, first.3), (second.2, second.3));
        (client, [first, second], program)
    };
    for server in &servers {
        let (client, [first, second], program) = connected_twice(&stand, server);
        // The kernel is asked only now.
        let listener = stand.agent(&server.address.ip().to_string());
        let mut kept = stand.accept(listener);
        assert_eq!(said(&mut kept), "kept");
        let flow = stand.fence().flow_of(&kept).expect("steered");
        assert_eq!(recorded(&flow), first);
        assert_ne!(Path::new(&flow.process.exe), program);
        let again = stand.accept(listener);
        let flow = stand.fence().flow_of(&again).expect("steered");
        assert_eq!(
            recorded(&flow),
            second,
            "whoever runs now is seen where it connects"
        );
        assert_eq!(Path::new(&flow.process.exe), program);
        client.finish();
        assert_quiet(&server.listener);
    }
    stand.lift();
    for server in &servers {
        eventually("it is the fence that steers", || {
            connected_twice(&stand, server).0.finish();
            std::iter::from_fn(|| server.listener.accept().ok()).count() == 2
        });
    }
}

/// Has a process connect that ends; its child has the connection then.
fn leaving(ip: &str, port: u16) -> String {
    format!(
        "if os.fork() == 0:
    s, r = tcp('{ip}', {port}); say(r, os.getpid()); os.read(0, 1)
    if os.fork() == 0:
        os.read(0, 1); s.sendall(b'kept'); os.read(0, 1)
    os._exit(0)
os.wait(); say('over')"
    )
}

/// Connects as the process of this id, and as this program.
fn succeeding(pid: u32, program: &Path, ip: &str, port: u16) -> String {
    format!(
        "if 'NEXT' in os.environ:
    s, r = tcp('{ip}', {port}); say(r, os.getpid()); sys.stdin.read(); sys.exit()
import ctypes, struct
wanted = ctypes.c_int({pid})
# struct clone_args: exit_signal fifth, then set_tid and how many they are.
arguments = ctypes.create_string_buffer(struct.pack('10Q', 0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(wanted), 1))
pid = ctypes.CDLL(None).syscall(435, arguments, 80)
if pid == 0:
    os.environ['NEXT'] = ''; os.execv({program:?}, sys.orig_argv)
assert pid == {pid}, pid
os.waitpid(pid, 0)"
    )
}

/// Whoever connected is gone, and its id is that of a process that nobody governs, or of another workload's.
fn stays_of_who_is_gone(stand: &Stand, server: &Elsewhere, other: Option<&Cgroup>) {
    let (ip, port) = (server.address.ip().to_string(), server.address.port());
    let folder = tempfile::tempdir().unwrap();
    let mut client = Running::start(&stand.cgroup, &leaving(&ip, port));
    let line = client.line();
    let pid: u32 = line.strip_prefix("ok ").unwrap().parse().unwrap();
    let first = who(pid);
    let program = another(&folder, pid);
    client.send(".");
    assert_eq!(client.line(), "over");
    let next = succeeding(pid, &program, &ip, port);
    let mut next = match other {
        Some(cgroup) => Running::start(cgroup, &next),
        None => Running::start_outside(&next),
    };
    assert_eq!(next.line(), format!("ok {pid}"));
    let second = who(pid);
    assert_ne!(first, second);
    client.send(".");
    // The kernel is asked only now.
    let mut kept = stand.accept(stand.agent(&ip));
    assert_eq!(said(&mut kept), "kept");
    let flow = stand.fence().flow_of(&kept).expect("steered");
    assert_eq!(recorded(&flow), first);
    assert_ne!(Path::new(&flow.process.exe), program);
    assert_eq!(&*flow.workload, stand.workload());
    assert_eq!(flow.process.cgroup, format!("/{}", stand.workload()));
    match other {
        Some(cgroup) => {
            let flow = stand.fence().flow_of(&stand.accept(stand.agent(&ip)));
            let flow = flow.expect("steered");
            assert_eq!(recorded(&flow), second);
            assert_eq!(flow.process.cgroup, format!("/{}", cgroup.name.display()));
            assert_eq!(&*flow.workload, "another");
            assert_quiet(&server.listener);
        }
        None => drop(accept(&server.listener)),
    }
    next.finish();
    client.finish();
}

#[test]
fn who_has_a_process_id_next_is_not_taken_for_the_owner() {
    let mut stand = Stand::new();
    let other = Cgroup::new(stand.fence().cgroup_root(), unique());
    stand.fence().govern(&other.name, "another").unwrap();
    let servers = ["127.0.0.1", "::1"].map(Elsewhere::new);
    for server in &servers {
        stays_of_who_is_gone(&stand, server, None);
        stays_of_who_is_gone(&stand, server, Some(&other));
    }
    stand.lift();
    for server in &servers {
        let script = leaving(&server.address.ip().to_string(), server.address.port());
        eventually("it is the fence that steers", || {
            let mut client = Running::start(&stand.cgroup, &script);
            assert!(client.line().starts_with("ok "));
            client.send("..");
            assert_eq!(client.line(), "over");
            server.listener.accept().is_ok()
        });
    }
}
