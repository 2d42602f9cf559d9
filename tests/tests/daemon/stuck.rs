//! Processes of which the kernel says nothing for as long as somebody likes: they are in `execve`, and what they close there is served by
//! whoever does not answer. They hold up nobody but themselves.
use crate::late::Late;
use crate::looks::{MISSED, SERVES, Theirs, Threads, by_user, why};
use crate::outside::{GOVERNED, Outside};
use crate::recognising::{INTERN, digest};
use crate::support::*;
use harness::eventually;
use harness::process::Ended;
use rustix::process::Signal;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Some of one user, and of more.
const STUCK: [u32; 8] = [INTERN, INTERN, INTERN, INTERN, INTERN, INTERN, 5, 0];

/// The kernel says nothing of it, on versions that keep so much back.
fn says_nothing(of: &Child) -> bool {
    let exe = format!("/proc/{}/exe", of.id());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(fs::read_link(exe)));
    told.recv_timeout(Duration::from_millis(500)).is_err()
}

#[test]
fn who_is_stuck_in_execve_holds_up_nobody_else() {
    let (mut place, outside) = (Place::new(), Outside::new());
    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    // They end only once nobody serves the file any more.
    let mut stuck = Vec::<Ended>::new();
    let late = Late::never_closed("flush", place.path("late"));
    let all = STUCK.iter().map(|user| Ended(late.stuck(*user, "pass")));
    stuck.extend(all);
    println!(
        "the kernel says nothing of them: {}",
        says_nothing(&stuck[0])
    );

    let mut bytes = fs::read("/usr/bin/curl").unwrap();
    let copy = |name: &str, bytes: &[u8]| {
        let to = place.path(name);
        fs::write(&to, bytes).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let named = copy("named", &bytes);
    bytes.push(0);
    let content = copy("content", &bytes);
    let policy = |workload: &str| {
        let more = format!(
            "workloads:\n  {workload}: {{ match: [{{ exe: {} }}, {{ user: 54323, sha256: {} }}] }}\n",
            named.display(),
            digest(&content)
        );
        POLICY.replace("workloads:\n", &more)
    };
    place.write_policy(&policy("named"));
    let recognised = |program: &Path| {
        let program = program.display().to_string();
        let is_ours = || outside.asked_by(54_323, &program) == [GOVERNED; 2];
        eventually(START, || is_ours().then_some(())).is_some()
    };
    let begun = Instant::now();
    let took = |what: &str| {
        println!("{what}: {:.1} s", begun.elapsed().as_secs_f64());
        assert!(begun.elapsed() < Duration::from_secs(40), "{what}");
    };
    place.start();
    took("started");
    assert!(recognised(&named) && recognised(&content));
    took("recognised");
    assert!(outside.is_free_for(5, "/usr/bin/curl"));
    place.write_policy(&policy("other"));
    let reloaded = place.output(&["reload"]);
    // It may be said already of whom it is not known what they run.
    assert!(
        matches!(reloaded.status.code(), Some(0 | 1)),
        "{reloaded:?}"
    );
    took("reloaded");
    assert!(place.output(&["status"]).status.code().is_some());
    assert!(recognised(&named) && recognised(&content));

    // One whose refusal is to be told of, with what it runs.
    let port = outside.addresses[0].port();
    let procs = place.cgroup.join("cgroup.procs").display().to_string();
    let before = format!(
        "open('{procs}', 'w').write(str(os.getpid()))\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ntry: s.sendto(b'x', ('127.0.0.1', {port}))\nexcept OSError: pass"
    );
    stuck.push(Ended(late.stuck(0, &before)));
    assert!(recognised(&named));
    took("told of");
    let all = place.workloads();
    assert!(!all.is_empty());
    took("listed");

    place.end(Signal::TERM);
    took("ended");
    place.start();
    assert!(recognised(&named) && recognised(&content));
    took("started again");
}

/// Of each of these the kernel says something just before the agent goes on without.
#[test]
fn who_is_in_execve_again_and_again_holds_up_nobody_else() {
    let mut place = Place::new();
    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    let rule = |digest: &str| {
        let more =
            format!("workloads:\n  content: {{ match: {{ user: 54323, sha256: {digest} }} }}\n");
        POLICY.replace("workloads:\n", &more)
    };
    place.write_policy(&rule(&digest(Path::new("/usr/bin/curl"))));
    place.start();
    let late = Late::never_closed("slow", place.path("late"));
    let _all: Vec<Ended> = (0..60).map(|_| Ended(late.in_execve(INTERN))).collect();
    std::thread::sleep(Duration::from_secs(2));
    let begun = Instant::now();
    for policy in [rule(&digest(Path::new("/bin/true"))), rule(&"0".repeat(64))] {
        place.write_policy(&policy);
        let reloaded = place.output(&["reload"]);
        assert!(
            matches!(reloaded.status.code(), Some(0 | 1)),
            "{reloaded:?}"
        );
        assert!(place.output(&["status"]).status.code().is_some());
    }
    let took = begun.elapsed();
    println!("reloaded twice: {:.1} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(8), "{took:?}");
}

/// One thread is in reserve to ask: held up as well, it is gone on without.
#[test]
fn who_is_stuck_in_execve_holds_up_no_agent_that_can_make_no_thread() {
    const USER: u32 = 54_407;
    let (threads, mut place) = (Threads::new(), Place::new());
    let mut stuck = Vec::<Ended>::new();
    place.start_in(&threads.0);
    let late = Late::never_closed("flush", place.path("late"));
    stuck.push(Ended(late.stuck(USER, "pass")));
    threads.limit("1");
    by_user(&place, "user", USER);
    let begun = Instant::now();
    for _ in 0..3 {
        let reloaded = place.output(&["reload"]);
        assert_eq!(reloaded.status.code(), Some(1), "{reloaded:?}");
        assert_ne!(why(&place), "");
    }
    let took = begun.elapsed();
    println!("three times: {:.1} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(20), "{took:?}");
    threads.limit("max");
    drop(late);
    let enforcing = eventually(START, || why(&place).is_empty().then_some(()));
    assert!(enforcing.is_some(), "{}", why(&place));
}

/// The kernel ends a connection once nobody is in a call on it: those of who stays in one keep no others from being ended, and send
/// nothing.
#[test]
fn who_stays_in_a_call_on_a_connection_keeps_only_that_one() {
    const USER: u32 = 54_409;
    let mut place = Place::new();
    let mut stays = Vec::<Ended>::new();
    let late = Late::never_closed("read", place.path("late"));
    let servers = ["127.0.0.1", "::1"].map(|ip| TcpListener::bind((ip, 0)).unwrap());
    place.start();
    let mut heard = Vec::new();
    for (page, server) in servers.iter().enumerate() {
        let to = server.local_addr().unwrap();
        stays.push(Ended(late.sends(USER, page, to)));
        let (mut stream, _) = server.accept().unwrap();
        stream.set_read_timeout(Some(START)).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        heard.push(stream);
    }
    let mut before = Theirs::new(USER, SERVES);
    assert!(before.sends() && before.is_served(), "nobody governs it");
    by_user(&place, "user", USER);
    let begun = Instant::now();
    let reloaded = place.output(&["reload"]);
    assert_eq!(reloaded.status.code(), Some(1), "{reloaded:?}");
    let said = text(&reloaded.stderr);
    assert!(said.contains(MISSED), "{said}");
    let is_ended = eventually(START, || before.is_ended().then_some(()));
    assert!(is_ended.is_some(), "others are not ended");
    assert_ne!(why(&place), "");
    let took = begun.elapsed();
    println!("reloaded: {:.1} s", took.as_secs_f64());
    assert!(took < Duration::from_secs(20), "{took:?}");
    // The agent is not held up: it ends, and another takes over.
    place.end(Signal::KILL);
    place.start();
    assert_ne!(why(&place), "");
    // Nothing more arrives, also once the call goes on; that the connection is over, its peer is told when it speaks.
    drop(late);
    for mut stream in heard {
        stream.set_nonblocking(true).unwrap();
        let ended = eventually(START, || {
            let came = stream.write(b"x").and_then(|_| stream.read(&mut [0]));
            let came = came.map_err(|e| e.kind());
            (came != Err(ErrorKind::WouldBlock)).then_some(came)
        });
        assert_eq!(ended, Some(Err(ErrorKind::ConnectionReset)));
    }
    let enforcing = eventually(START, || why(&place).is_empty().then_some(()));
    assert!(enforcing.is_some(), "{}", why(&place));
}

/// Asks for a copy of a descriptor of a file that is never closed, as of a socket; then of a socket.
const ASKS: &str = "
import ctypes, os, signal, socket, struct, subprocess, sys
here, there = socket.socketpair()
process = os.fork()
if process == 0:
    here.close()
    os.setresuid(54322, 54322, 54322)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # With its parent, whose output it has open.
    file, own = os.open(sys.argv[2], os.O_RDONLY), socket.socket()
    there.send(struct.pack('=iiI', file, own.fileno(), os.fstat(own.fileno()).st_ino))
    signal.pause()
there.close()
file, own, inode = struct.unpack('=iiI', here.recv(12))
def ask(fd):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    maker = subprocess.Popen([sys.argv[1], 'aside'], stdin=there, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    here.settimeout(10)
    here.send(struct.pack('=IIiI', 1, process, fd, inode))
    code, copies, _, _ = socket.recv_fds(here, 4, 1)
    print(struct.unpack('=i', code)[0], [os.fstat(copy).st_ino == inode for copy in copies], flush=True)
    return here, maker
_, hangs = ask(file)
here, maker = ask(own)
here.close()
maker.wait(10)
try:
    hangs.wait(1)
    print('closed', flush=True)
except subprocess.TimeoutExpired:
    print('hangs', flush=True)
os.kill(process, 9)
os._exit(0)
";

/// Whoever is looked at can have his descriptor be such a file by the time that the agent has it copied: it is closed by a process that
/// nobody waits for.
#[test]
fn what_is_no_socket_any_more_is_closed_by_nobody_who_is_needed() {
    let directory = Place::new();
    let late = Late::never_closed("root", directory.path("late"));
    let program = harness::agent::program().unwrap();
    let mut asks = Command::new("timeout");
    asks.args(["60", "python3", "-c", ASKS]).arg(program);
    let output = asks.arg(late.mount.join("program")).output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "88 []\n0 [True]\nhangs\n",
        "{output:?}"
    );
}
