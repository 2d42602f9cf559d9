//! What processes recognised by their user had before, however policy, the agent and they themselves go on meanwhile.
use crate::support::*;
use harness::eventually;
use harness::process::Ended;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Long enough for an answer on loopback, on a busy machine too.
const ANSWER: Duration = Duration::from_millis(400);

/// Is connected over both families, and says where it listens.
const MADE: &str = "
import os, socket, sys, threading, time
IPS = '127.0.0.1', '::1'
s = [socket.create_connection(to) for to in zip(IPS, map(int, sys.argv[1:]))]
l = [socket.create_server((ip, 0), family=socket.AF_INET6 if ':' in ip else socket.AF_INET) for ip in IPS]
print(*[x.getsockname()[1] for x in l], flush=True)
def send():
    for x in list(s):
        try: x.send(b'x')
        except OSError: s.remove(x)
";

/// Serves, and sends without end.
pub(crate) const SERVES: &str = "
def serve(l):
    while True: l.accept()[0].sendall(b'hello')
for x in l: threading.Thread(target=serve, args=(x,), daemon=True).start()
while True: send(); time.sleep(0.01)
";

/// Forks and ends, over and over, until none of its connections is left.
const CHAIN: &str = "
for x in l: x.close()
while s:
    if os.fork(): os._exit(0)
    send(); time.sleep(PAUSE)
";

/// A user's process, with what it had before anybody governed it.
pub(crate) struct Theirs {
    process: Ended,
    _output: BufReader<ChildStdout>,
    peers: Vec<TcpStream>,
    listens: Vec<(IpAddr, u16)>,
}

impl Theirs {
    /// Connected to listeners over both families.
    pub(crate) fn new(user: u32, script: &str) -> Self {
        let listeners = ["127.0.0.1:0", "[::1]:0"].map(|at| TcpListener::bind(at).unwrap());
        Self::with(user, script, &listeners)
    }

    fn with(user: u32, script: &str, listeners: &[TcpListener]) -> Self {
        Self::by(Path::new("/usr/bin/python3"), user, script, listeners)
    }

    /// By a copy of Python.
    fn by(python: &Path, user: u32, script: &str, listeners: &[TcpListener]) -> Self {
        let ports = listeners
            .iter()
            .map(|l| l.local_addr().unwrap().port().to_string());
        let mut process = Command::new("setpriv")
            .args(["--reuid", &user.to_string(), "--clear-groups"])
            .arg(python)
            .args(["-ISc", &format!("{MADE}{script}")])
            .args(ports)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .current_dir("/")
            .spawn()
            .unwrap();
        let accepted = listeners.iter().map(|listener| {
            listener.set_nonblocking(true).unwrap();
            let came = eventually(START, || listener.accept().ok());
            let peer = came.expect("it does not connect").0;
            peer.set_nonblocking(false).unwrap();
            peer.set_read_timeout(Some(ANSWER)).unwrap();
            peer
        });
        let peers = accepted.collect();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut said = String::new();
        output.read_line(&mut said).unwrap();
        let ports = said.split_whitespace().map(|port| port.parse().unwrap());
        let ips = ["127.0.0.1", "::1"].map(|ip| ip.parse().unwrap());
        Self {
            process: Ended(process),
            _output: output,
            peers,
            listens: ips.into_iter().zip(ports).collect(),
        }
    }

    /// Does something come over each connection?
    pub(crate) fn sends(&mut self) -> bool {
        let mut peers = self.peers.iter_mut();
        peers.all(|peer| peer.read(&mut [0]).is_ok_and(|read| read == 1))
    }

    /// Does nothing come, after all that was under way?
    fn is_silent(&mut self) -> bool {
        let mut peers = self.peers.iter_mut();
        peers.all(|peer| {
            peer.set_nonblocking(true).unwrap();
            while peer.read(&mut [0; 1 << 12]).is_ok_and(|read| read > 0) {}
            peer.set_nonblocking(false).unwrap();
            peer.read(&mut [0]).map_err(|error| error.kind()) == Err(ErrorKind::WouldBlock)
        })
    }

    /// Is each connection ended? Not by the process itself. A peer that was not told is when it speaks: there is nobody any more.
    pub(crate) fn is_ended(&mut self) -> bool {
        let mut came = vec![0; 1 << 16];
        self.peers.retain_mut(|peer| {
            peer.set_nonblocking(true).unwrap();
            loop {
                match peer.read(&mut came).map_err(|error| error.kind()) {
                    Ok(0) => panic!("the process has closed it"),
                    Ok(_) => {}
                    Err(ErrorKind::ConnectionReset) => break false,
                    Err(_) => {
                        let _ = peer.write(b"x");
                        break true;
                    }
                }
            }
        });
        self.peers.is_empty()
    }

    pub(crate) fn is_served(&self) -> bool {
        let mut all = self.listens.iter();
        all.all(|(ip, port)| is_served(*ip, *port, ANSWER))
    }

    fn is_held(&self) -> bool {
        let mut all = self.listens.iter();
        !all.any(|(ip, port)| is_served(*ip, *port, ANSWER))
    }
}

fn is_served(ip: IpAddr, port: u16, patience: Duration) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&(ip, port).into(), patience) else {
        return false;
    };
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream.read_exact(&mut [0; 5]).is_ok()
}

pub(crate) fn by_user(place: &Place, workload: &str, user: u32) {
    let one = format!("workloads:\n  {workload}: {{ match: {{ user: {user} }} }}\n");
    place.write_policy(&POLICY.replace("workloads:\n", &one));
}

fn reload(place: &Place) {
    assert_eq!(place.output(&["reload"]).status.code(), Some(0));
}

/// The workloads that have a process.
fn whose(place: &Place, process: u32) -> Vec<String> {
    let all = place.workloads();
    let has = |workload: &&Value| {
        let processes = workload["processes"].as_array().unwrap();
        processes
            .iter()
            .any(|of| of["pid"].as_u64() == Some(process.into()))
    };
    let names = all.iter().filter(has);
    names
        .map(|of| of["workload"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn who_is_governed_under_another_name_is_held_throughout() {
    const USER: u32 = 54_401;
    let mut place = Place::new();
    by_user(&place, "old", USER);
    let before = Theirs::new(USER, SERVES);
    assert!(before.is_served(), "before there is an agent");
    place.start();
    let held = eventually(START, || before.is_held().then_some(()));
    assert!(held.is_some(), "it is not held");
    let made = Theirs::with(USER, SERVES, &[]);
    assert!(made.is_held());
    let listens = [&*before.listens, &made.listens].concat();

    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (ip, port) in listens {
            scope.spawn(move || {
                // A try that is dropped is made again after a second, which is too late to find a gap.
                while !is_over.load(Ordering::Relaxed) {
                    let is_served = is_served(ip, port, ANSWER / 80);
                    assert!(!is_served, "{ip}: it was free");
                }
            });
        }
        by_user(&place, "new", USER);
        let reloaded = place.output(&["reload"]).status.code();
        let ids = [&before, &made].map(|theirs| theirs.process.id());
        let are_new = || ids.iter().all(|id| whose(&place, *id) == ["new"]);
        let new = eventually(START, || are_new().then_some(()));
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(reloaded, Some(0));
        assert!(new.is_some(), "they are not listed under the new name");
    });
    assert!(before.is_held() && made.is_held());
    place.write_policy(POLICY);
    reload(&place);
    let are_free = || before.is_served() && made.is_served();
    let free = eventually(START, || are_free().then_some(()));
    assert!(free.is_some(), "nobody has them, and they are held");
}

#[test]
fn what_a_start_that_failed_did_not_look_at_is_for_the_next() {
    const USER: u32 = 54_402;
    let mut place = Place::new();
    by_user(&place, "user", USER);
    let mut before = Theirs::new(USER, SERVES);
    assert!(before.sends() && before.is_served());
    // Enrolled is first, then it is answered at this socket, and looked at is last.
    fs::create_dir_all(place.path("run/admin.sock/x")).unwrap();
    let (code, said) = place.refused();
    assert!(code != Some(0) && said.contains("admin.sock"), "{said}");
    fs::remove_dir_all(place.path("run/admin.sock")).unwrap();
    place.start();
    assert_eq!(whose(&place, before.process.id()), ["user"]);
    let ended = eventually(START, || before.is_ended().then_some(()));
    assert!(ended.is_some(), "it sends still");
    assert!(before.is_held());
}

/// Its file is never the same for as long as it takes to read it. That matters to who is meant by what he runs, and he is not.
#[test]
fn who_is_meant_whatever_he_runs_is_not_waited_for() {
    const USER: u32 = 54_408;
    let mut place = Place::new();
    let python = place.path("python");
    fs::copy("/usr/bin/python3", &python).unwrap();
    place.start();
    let listeners = ["127.0.0.1:0", "[::1]:0"].map(|at| TcpListener::bind(at).unwrap());
    let mut before = Theirs::by(&python, USER, SERVES, &listeners);
    assert!(before.sends(), "nobody governs it");
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for mode in [0o755, 0o751].into_iter().cycle() {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                fs::set_permissions(&python, fs::Permissions::from_mode(mode)).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let digest = "0".repeat(64);
        let both = format!(
            "workloads:\n  user: {{ match: {{ user: {USER} }} }}\n  zero: {{ match: {{ sha256: \"{digest}\" }} }}\n"
        );
        place.write_policy(&POLICY.replace("workloads:\n", &both));
        reload(&place);
        let ended = eventually(Duration::from_secs(20), || before.is_ended().then_some(()));
        is_over.store(true, Ordering::Relaxed);
        assert!(ended.is_some(), "it sends still");
    });
    assert_eq!(whose(&place, before.process.id()), ["user"]);
}

/// It goes on in its other threads: `/proc` says of its first one that it is a zombie, and runs nothing.
#[test]
fn who_has_ended_its_first_thread_is_recognised_all_the_same() {
    const USER: u32 = 54_403;
    const IN_ANOTHER_THREAD: &str = "
import ctypes
def go_on():
    while True: send(); time.sleep(0.01)
threading.Thread(target=go_on).start()
ctypes.CDLL(None).syscall(60, 0)
";
    let mut place = Place::new();
    place.start();
    let mut before = Theirs::new(USER, IN_ANOTHER_THREAD);
    let status = format!("/proc/{}/status", before.process.id());
    let is_zombie = || fs::read_to_string(&status).unwrap().contains("State:\tZ");
    assert!(eventually(START, || is_zombie().then_some(())).is_some());
    assert!(before.sends(), "before a rule");
    by_user(&place, "user", USER);
    reload(&place);
    let ended = eventually(START, || before.is_ended().then_some(()));
    assert!(ended.is_some(), "it sends still");
    assert_eq!(whose(&place, before.process.id()), ["user"]);
}

/// What went through while hooks were away, and no agent ran, is looked at by the next one.
#[test]
fn what_a_fence_with_holes_let_through_is_ended() {
    const USER: u32 = 54_404;
    let mut place = Place::new();
    by_user(&place, "user", USER);
    place.start();
    let links = PathBuf::from("/sys/fs/bpf").join(&place.name).join("links");
    place.end(Signal::KILL);
    for hook in ["sock_create", "connect4", "connect6"] {
        fs::remove_file(links.join(hook)).unwrap();
    }
    // The kernel takes its time to let go of them.
    let canary = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = canary.local_addr().unwrap().port().to_string();
    let connects = |user: u32| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &user.to_string(), "--clear-groups", "bash", "-c"]);
        command.arg(format!("exec 3<>/dev/tcp/127.0.0.1/{port}"));
        let output = command.current_dir("/").output().unwrap();
        output.status.success().then_some(())
    };
    assert!(eventually(START, || connects(USER)).is_some(), "held");
    let mut theirs = Theirs::new(USER, SERVES);
    assert!(theirs.sends(), "what is away holds nobody");
    place.start();
    let ended = eventually(START, || theirs.is_ended().then_some(()));
    assert!(ended.is_some(), "it sends still");
}

/// The one who is looked at has ended by then; in the end, none of those whom they made has anything from before.
fn what_a_chain_of_forks_has_is_ended(user: u32, pause: &str) {
    let mut place = Place::new();
    place.start();
    let mut chain = Theirs::new(user, &CHAIN.replace("PAUSE", pause));
    assert!(chain.sends() && chain.sends(), "nobody governs it");
    by_user(&place, "user", user);
    let reloaded = place.output(&["reload"]);
    // Where that look did not find one of them alive it says so.
    let told = String::from_utf8_lossy(&reloaded.stderr).contains("faster than they can be");
    assert!(told || reloaded.status.success(), "{reloaded:?}");
    let ended = eventually(START, || chain.is_ended().then_some(()));
    assert!(ended.is_some(), "one of them sends still");
    let enforces = eventually(START, || why(&place).is_empty().then_some(()));
    assert!(enforces.is_some(), "{}", why(&place));
}

#[test]
fn what_forks_without_a_pause_has_is_ended() {
    what_a_chain_of_forks_has_is_ended(54_403, "0");
}

#[test]
fn what_forks_slowly_has_is_ended() {
    what_a_chain_of_forks_has_is_ended(54_404, "0.02");
}

/// A cgroup that an agent is started in, and that may let it have no more threads.
pub(crate) struct Threads(pub(crate) PathBuf);

impl Threads {
    pub(crate) fn new() -> Self {
        let name = format!("tollgate-test-{}-threads", std::process::id());
        let path = controlled("pids").0.join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn limit(&self, most: &str) {
        fs::write(self.0.join("pids.max"), most).unwrap();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Why it is not enforcing; nothing if it is.
pub(crate) fn why(place: &Place) -> String {
    let status = place.output(&["status", "-o", "json"]);
    let told: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
    let verdict = &told["verdict"];
    let is_enforcing = verdict["state"] == "enforcing";
    // A reload for which descriptors are short leaves the policy before in force, which is no success either.
    // Nor are other things that take one.
    let mut modes = told["fail_modes"].as_array().into_iter().flatten();
    let is_failing = modes.any(|mode| mode["now"] == true);
    let is_sound = is_enforcing && !is_failing && told["policy"]["stale"].is_null();
    assert_eq!(status.status.code() == Some(0), is_sound, "{status:?}");
    match is_enforcing {
        true => String::new(),
        false => verdict.to_string(),
    }
}

pub(crate) const MISSED: &str = "not all of them could be looked at";

/// What looks did not get to while something was short is dealt with when it is not, by nobody's hand.
fn what_was_missed_is_ended(place: &mut Place, before: &mut Theirs) {
    let enforcing = eventually(START, || why(place).is_empty().then_some(()));
    assert!(enforcing.is_some(), "{}", why(place));
    let ended = eventually(START, || before.is_ended().then_some(()));
    if ended.is_none() {
        let sockets = Command::new("ss").args(["-tanpoieH"]).output().unwrap();
        let decided = place.output(&["decisions"]);
        let log = text(&decided.stdout) + &place.read_log();
        panic!(
            "what was missed is not ended: {:?} of {}\n{}\n{log}",
            before.peers,
            before.process.id(),
            text(&sockets.stdout)
        );
    }
    assert!(before.is_held());
}

#[test]
fn a_look_for_which_no_thread_can_be_made_is_told_and_made_again() {
    const USER: u32 = 54_405;
    let threads = Threads::new();
    let mut place = Place::new();
    place.start_in(&threads.0);
    let mut before = Theirs::new(USER, SERVES);
    assert!(before.sends() && before.is_served(), "nobody governs it");
    assert_eq!(why(&place), "");
    threads.limit("1");
    by_user(&place, "user", USER);
    let reload = place.output(&["reload"]);
    assert_eq!(reload.status.code(), Some(1), "{reload:?}");
    assert!(text(&reload.stderr).contains(MISSED), "{reload:?}");
    // It looks once a second, each time in vain; whose the sockets are takes no thread, so that nothing leaves them.
    for _ in 0..4 {
        let why = why(&place);
        assert!(why.contains(MISSED), "{why}");
        assert!(why.contains("Resource temporarily unavailable"), "{why}");
        assert_eq!(whose(&place, before.process.id()), ["user"]);
        assert!(before.is_silent() && before.is_held(), "it is free");
    }
    threads.limit("max");
    what_was_missed_is_ended(&mut place, &mut before);
}

/// Leaves the agent so many descriptors to open; `None`: as many as there may be.
fn leave(place: &Place, few: Option<usize>) {
    let agent = place.agent.as_ref().unwrap();
    let open = || -> Vec<String> {
        let open = fs::read_dir(format!("/proc/{}/fd", agent.id())).unwrap();
        let names = open.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    };
    let limit = |few| {
        std::thread::sleep(Duration::from_millis(5));
        let open = open();
        let is_free = |number: &u64| !open.contains(&number.to_string());
        (0..).filter(is_free).nth(few)
    };
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        // What is open for a moment only does not count.
        current: few.map_or(maximum, |few| (0..20).filter_map(|_| limit(few)).min()),
        maximum,
    };
    prlimit(Some(Pid::from_child(agent)), Resource::Nofile, limit).unwrap();
}

#[test]
fn a_look_for_which_descriptors_are_short_is_told_and_made_again() {
    const USER: u32 = 54_406;
    let mut place = Place::new();
    place.start();
    let mut before = Theirs::new(USER, SERVES);
    assert!(before.sends() && before.is_served(), "nobody governs it");
    assert_eq!(why(&place), "");
    by_user(&place, "user", USER);
    // Enough for who asks and for the policy's file. Secrets, looked at meanwhile, may take one of them.
    leave(&place, Some(2));
    let told = eventually(START, || {
        place.output(&["reload"]);
        why(&place).contains(MISSED).then_some(())
    });
    assert!(told.is_some(), "{}", why(&place));
    // More of a look comes about with each that there is, and not all.
    for few in [2, 3] {
        leave(&place, Some(few));
        let mut told = 0;
        for _ in 0..10 {
            std::thread::sleep(ANSWER / 2);
            let why = why(&place);
            assert!(!why.is_empty(), "enforcing with {few} descriptors");
            told += u32::from(why.contains(MISSED) && why.contains("Too many open files"));
        }
        assert!(told > 0, "not told with {few}: {}", why(&place));
    }
    leave(&place, None);
    what_was_missed_is_ended(&mut place, &mut before);
}

/// Who waits while the agent cannot list who there is waits for the same as before, and is free once that is known.
#[test]
fn who_waits_is_remembered_while_descriptors_are_short() {
    const USER: u32 = 54_408;
    let mut place = Place::new();
    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    let more = format!(
        "workloads:\n  content: {{ match: {{ user: {USER}, sha256: {} }} }}\n",
        "a".repeat(64)
    );
    place.write_policy(&POLICY.replace("workloads:\n", &more));
    place.start();
    let canary = TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let is_heard = || canary.accept().is_ok().then_some(());
    let program = place.path("program");
    fs::copy("/bin/bash", &program).unwrap();
    let asks = format!(
        "while :; do curl -s -m 1 http://{}/; sleep 0.1; done",
        canary.local_addr().unwrap()
    );
    let runs = |by: &str, becomes: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--clear-groups"]);
        command.args([by, "-c", becomes, "sh", &asks]);
        command.stdin(Stdio::null()).current_dir("/");
        command.spawn().unwrap()
    };
    // All but the program is known from here on.
    let mut other = runs("bash", "exec sh -c \"$1\"");
    let is_free = eventually(START, is_heard);
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(is_free.is_some(), "never free");
    std::thread::sleep(ANSWER);
    while is_heard().is_some() {}

    leave(&place, Some(0));
    let mut waits = runs(&program.display().to_string(), "exec sh -c \"$1\"");
    // Longer than some looks take.
    std::thread::sleep(Duration::from_secs(5));
    let is_early = is_heard();
    leave(&place, None);
    let is_free = eventually(START / 2, is_heard);
    waits.kill().unwrap();
    waits.wait().unwrap();
    assert!(is_early.is_none(), "it did not wait");
    assert!(is_free.is_some(), "it waits for ever");
}
