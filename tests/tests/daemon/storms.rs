//! Two hundred ends and starts of every kind, under load: nothing opens meanwhile, and service is back at once.
use crate::support::*;
use harness::{at_most, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Ends and starts.
const ROUNDS: usize = 200;
/// What each client does at least in the whole of it.
const TRIES: u64 = 2 * ROUNDS as u64;
/// How long the service is left to serve between a start and the next end.
const SERVING: Duration = Duration::from_millis(60);

/// What every client starts with: it goes on until its input closes, then prints one line of JSON.
const PRELUDE: &str = r#"
import collections, errno, json, select, socket, sys, time
def ended(pause): return bool(select.select([sys.stdin], [], [], pause)[0])
def family(ip): return socket.AF_INET6 if ":" in ip else socket.AF_INET
def name(e): return errno.errorcode.get(e.errno, type(e).__name__)
"#;

/// Connects to where nobody may, again and again: what came of it, how long refusals took, and when service was back.
const CONNECTOR: &str = r#"
counts, datagrams, refused, up, was_up = collections.Counter(), collections.Counter(), [], [], False
while not ended(0.004):
    for ip, port in TARGETS:
        with socket.socket(family(ip), socket.SOCK_STREAM) as s:
            s.settimeout(20)
            begun = time.monotonic()
            try:
                s.connect((ip, port)); what = "steered"
            except OSError as e:
                what = name(e)
            now = time.monotonic()
            counts[what] += 1
            if what == "ECONNREFUSED": refused.append((now - begun) * 1000)
            if what == "steered" and not was_up: up.append(now)
            was_up = what == "steered"
            try: s.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            except OSError: pass
        with socket.socket(family(ip), socket.SOCK_DGRAM) as s:
            try: s.sendto(b"x", (ip, port)); datagrams["sent"] += 1
            except OSError as e: datagrams[name(e)] += 1
print(json.dumps({"counts": counts, "datagrams": datagrams, "refused": refused, "up": up}))
"#;

/// Downloads without end from where it may, from an address of its own by which an unsteered byte would show.
const DOWNLOADER: &str = r#"
got = 0
while not ended(0.005):
    with socket.socket() as s:
        s.settimeout(20)
        s.bind(("127.0.0.77", 0))
        try:
            s.connect(TARGET)
            while not ended(0):
                chunk = s.recv(1 << 16)
                if not chunk: break
                got += len(chunk)
        except OSError: pass
print(json.dumps({"got": got}))
"#;

/// Nobody governs this one: a connection that stays and new ones all the time, and not one error.
const BYSTANDER: &str = r#"
kept = [socket.create_connection(target) for target in TARGETS]
rounds = 0
def echo(s):
    s.sendall(b"y" * 4096)
    left = 4096
    while left:
        got = len(s.recv(left))
        assert got, "the connection ended"
        left -= got
while not ended(0.004):
    for s in kept: echo(s)
    for target in TARGETS:
        try:
            with socket.create_connection(target, 20) as s: echo(s)
        except OSError as e:
            sys.exit("nobody's connection %d to %s failed: %r" % (rounds, target, e))
    rounds += 1
print(json.dumps({"rounds": rounds}))
"#;

/// A client while it runs; killed if the test ends first.
struct Client(Child);

impl Client {
    fn start(cgroup: Option<&Path>, script: &str) -> Self {
        let mut command = Command::new("sh");
        let enter = cgroup.map(|path| format!("echo $$ > {}/cgroup.procs && ", path.display()));
        let line = format!("{}exec python3 -c \"$0\"", enter.unwrap_or_default());
        command.args(["-c", &line, &format!("{PRELUDE}{script}")]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Lets it come to its end, and reads what it has to say.
    fn finish(mut self) -> Value {
        drop(self.0.stdin.take());
        let mut said = String::new();
        let mut output = self.0.stdout.take().unwrap();
        output.read_to_string(&mut said).unwrap();
        assert!(self.0.wait().unwrap().success(), "a client failed: {said}");
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Counts whoever gets through to it, over TCP and UDP, on the same port.
struct Canary {
    address: (String, u16),
    hits: Arc<AtomicU64>,
}

impl Canary {
    fn new(ip: &str) -> Self {
        let tcp = TcpListener::bind((ip, 0)).unwrap();
        let port = tcp.local_addr().unwrap().port();
        let udp = UdpSocket::bind((ip, port)).unwrap();
        let hits = Arc::new(AtomicU64::new(0));
        let (streams, datagrams) = (Arc::clone(&hits), Arc::clone(&hits));
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let _ = stream.unwrap();
                streams.fetch_add(1, Ordering::SeqCst);
            }
        });
        std::thread::spawn(move || {
            while udp.recv(&mut [0; 64]).is_ok() {
                datagrams.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self {
            address: (ip.to_owned(), port),
            hits,
        }
    }

    fn hits(&self) -> u64 {
        self.hits.load(Ordering::SeqCst)
    }
}

/// Sends without end to whoever connects; tells the agent's connections from a client's own.
struct Source {
    port: u16,
    served: Arc<AtomicU64>,
    unsteered: Arc<AtomicU64>,
}

impl Source {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.8:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (served, unsteered) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (a, b) = (Arc::clone(&served), Arc::clone(&unsteered));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let own = stream
                    .peer_addr()
                    .is_ok_and(|peer| peer.ip().to_string() == "127.0.0.77");
                if own { &b } else { &a }.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    while stream.write_all(&[b'z'; 1 << 15]).is_ok() {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
            }
        });
        Self {
            port,
            served,
            unsteered,
        }
    }
}

/// Sends back what it gets.
fn echo(ip: &str) -> (String, u16) {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut &stream, &mut &stream);
            });
        }
    });
    (ip.to_owned(), port)
}

fn targets(addresses: &[&(String, u16)]) -> String {
    let all: Vec<_> = addresses
        .iter()
        .map(|(ip, port)| format!("({ip:?}, {port})"))
        .collect();
    format!("TARGETS = [{}]\n", all.join(", "))
}

/// Seconds of the clock that the clients read.
fn now() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// An agent, the program that it is started from next, and when each start was.
struct Storm {
    place: Place,
    programs: [PathBuf; 2],
    starts: Vec<f64>,
}

impl Storm {
    fn command(&self, launcher: &[&str]) -> Command {
        let program = &self.programs[self.starts.len() / 10 % 2];
        let mut words = launcher.iter().map(|word| (*word).into());
        let mut command = Command::new(words.next().unwrap_or(program.clone().into_os_string()));
        command.args(words);
        if !launcher.is_empty() {
            command.arg(program);
        }
        command
            .arg("agent")
            .env("TOLLGATE_CONFIG", self.place.path("config.yaml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    fn start(&mut self) {
        self.starts.push(now());
        let child = self.command(&[]).spawn().unwrap();
        let child = self.place.agent.insert(child);
        let socket = self.place.directory.join("run/admin.sock");
        let up = eventually(START, || {
            assert!(child.try_wait().unwrap().is_none(), "the agent ended");
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
        assert!(up.is_some(), "the agent is not up");
    }

    /// A start that something keeps from succeeding; if it does not, what came up is killed.
    fn start_in_vain(&mut self, launcher: &[&str]) {
        let mut child = self.command(launcher).spawn().unwrap();
        let ended = eventually(Duration::from_secs(1), || child.try_wait().unwrap());
        if ended.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.place.agent.as_ref().unwrap()), signal).unwrap();
    }

    /// The agent may open no more files: it can accept nothing.
    fn exhaust(&self) {
        let pid = self.place.agent.as_ref().unwrap().id().to_string();
        let status = Command::new("prlimit")
            .args(["--pid", &pid, "--nofile=3:3"])
            .status();
        assert!(status.unwrap().success());
    }

    fn round(&mut self, number: usize) {
        std::thread::sleep(SERVING);
        match number % 10 {
            0..4 => drop(self.place.end(Signal::KILL)),
            4..6 => drop(self.place.end(Signal::TERM)),
            6 => {
                // Held, not open; then it goes on where it was.
                self.signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(100));
                self.signal(Signal::CONT);
                std::thread::sleep(SERVING);
                self.place.end(Signal::TERM);
            }
            7 => {
                self.signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(50));
                self.place.end(Signal::KILL);
            }
            8 => {
                self.exhaust();
                std::thread::sleep(Duration::from_millis(100));
                self.place.end(Signal::KILL);
                self.start_in_vain(&["prlimit", "--nofile=8:8"]);
            }
            _ => {
                self.place.end(Signal::KILL);
                let read_only = "mount -o remount,bind,ro /sys/fs/bpf && exec \"$@\"";
                self.start_in_vain(&["unshare", "--mount", "sh", "-c", read_only, "sh"]);
            }
        }
        self.start();
    }
}

/// The part of the way from the least to the greatest, 0 to 100.
fn percentile(mut values: Vec<f64>, part: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * part / 100]
}

#[test]
fn two_hundred_restarts_let_nothing_out_and_disturb_nobody_else() {
    let source = Source::new();
    let mut place = Place::new();
    let download = format!(
        "apis:\n  stream: {{ tcp: [\"127.0.0.8:{}\"] }}",
        source.port
    );
    let grant = "roles:\n  watcher: [{ api: stream }]";
    let granted = "grants:\n  - { role: watcher, to: { workload: job } }";
    let policy = POLICY.replace("apis:", &download).replace("roles:", grant);
    place.write_policy(&policy.replace("grants:", granted));
    place.write_config("limits: { drain: 50ms }\n");
    place.start();
    place.end(Signal::KILL);
    let copy = place.path("upgraded");
    std::fs::copy(harness::agent::program().unwrap(), &copy).unwrap();
    let canaries = [Canary::new("127.0.0.9"), Canary::new("::1")];
    let bystanders = [echo("127.0.0.8"), echo("::1")];
    let mut storm = Storm {
        programs: [harness::agent::program().unwrap(), copy],
        place,
        starts: Vec::new(),
    };

    let addresses = targets(&[&canaries[0].address, &canaries[1].address]);
    let connector = format!("{addresses}{CONNECTOR}");
    let downloader = format!("TARGET = ('127.0.0.8', {})\n{DOWNLOADER}", source.port);
    let bystander = format!("{}{BYSTANDER}", targets(&[&bystanders[0], &bystanders[1]]));

    // Where nobody is governed, the same client gets through: the canaries do count.
    let free = Client::start(None, &connector);
    let heard = eventually(START, || {
        canaries.iter().all(|c| c.hits() > 3).then_some(())
    });
    assert!(heard.is_some(), "the canaries hear nothing");
    free.finish();
    let before: Vec<u64> = canaries.iter().map(Canary::hits).collect();

    storm.start();
    let governed = eventually(START, || storm.place.governed().then_some(()));
    assert!(governed.is_some(), "the job is not governed");
    let cgroup = storm.place.cgroup.clone();
    let connector = Client::start(Some(&cgroup), &connector);
    let downloader = Client::start(Some(&cgroup), &downloader);
    let bystander = Client::start(None, &bystander);
    let begun = Instant::now();
    for number in 0..ROUNDS {
        storm.round(number);
    }
    std::thread::sleep(SERVING * 3);
    let took = begun.elapsed();
    let (tried, got, others) = (connector.finish(), downloader.finish(), bystander.finish());

    let after: Vec<u64> = canaries.iter().map(Canary::hits).collect();
    assert_eq!(before, after, "somebody got through unsteered: {tried}");
    assert_eq!(
        source.unsteered.load(Ordering::SeqCst),
        0,
        "an unsteered download"
    );
    let counts = tried["counts"].as_object().unwrap();
    for what in counts.keys() {
        // Reset: accepted for the agent, which ended before the client had looked.
        let known = ["steered", "ECONNREFUSED", "ECONNRESET"].contains(&what.as_str());
        assert!(known, "a connect ended with {what}: {counts:?}");
    }
    assert!(
        counts.get("ECONNRESET").and_then(Value::as_u64) <= Some(ROUNDS as u64),
        "{counts:?}"
    );
    assert_eq!(tried["datagrams"].as_object().unwrap().len(), 1, "{tried}");
    assert!(
        tried["datagrams"]["EPERM"].as_u64() > Some(TRIES),
        "{tried}"
    );
    assert!(
        counts["steered"].as_u64() > Some(TRIES) && counts["ECONNREFUSED"].as_u64() > Some(TRIES),
        "{counts:?}"
    );
    assert!(
        got["got"].as_u64() > Some(ROUNDS as u64 * (1 << 15)),
        "{got}"
    );
    assert!(
        source.served.load(Ordering::SeqCst) > ROUNDS as u64 / 2,
        "downloads"
    );
    assert!(others["rounds"].as_u64() > Some(TRIES), "{others}");

    let numbers = |key: &str| -> Vec<f64> {
        let list = tried[key].as_array().unwrap().iter();
        list.filter_map(Value::as_f64).collect()
    };
    let refused = percentile(numbers("refused"), 99);
    let up = numbers("up");
    let back: Vec<f64> = storm
        .starts
        .iter()
        .skip(1)
        .filter_map(|start| up.iter().find(|at| *at > start).map(|at| at - start))
        .collect();
    let (usual, worst) = (percentile(back.clone(), 50), percentile(back, 95));
    println!(
        "{ROUNDS} restarts in {:.0} s; refused within {refused:.2} ms (99 of 100); back after {usual:.2} s, {worst:.2} s (95 of 100)",
        took.as_secs_f64()
    );
    let milliseconds = at_most(Duration::from_millis(10)).as_secs_f64() * 1000.0;
    assert!(refused < milliseconds, "refusals took {refused} ms");
    let limit = at_most(Duration::from_secs(1)).as_secs_f64();
    assert!(worst < limit, "service was back only after {worst} s");
    let status = storm.place.output(&["status"]);
    assert!(
        text(&status.stdout).starts_with("enforcing\n"),
        "{}",
        text(&status.stdout)
    );
}

/// Open connections and new ones see one policy or the other, whole, and none in between.
#[test]
fn a_policy_is_swapped_whole_under_load() {
    let (one, two) = (Source::new(), Source::new());
    let mut place = Place::new();
    // Each allows one of the two, under the same names.
    let policy = |source: &Source| {
        format!(
            "version: 1\nworkloads: {{ job: {{ match: {{ cgroup: \"CGROUP/**\" }} }} }}\napis: {{ stream: {{ tcp: [\"127.0.0.8:{}\"] }} }}\n\
             roles: {{ watcher: [{{ api: stream }}] }}\ngrants: [{{ role: watcher, to: {{ workload: job }} }}]\n",
            source.port
        )
    };
    place.write_policy(&policy(&one));
    place.start();
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    let script = |source: &Source| format!("TARGET = ('127.0.0.8', {})\n{DOWNLOADER}", source.port);
    let clients = [&one, &two].map(|source| Client::start(Some(&place.cgroup), &script(source)));
    let served = |source: &Source| source.served.load(Ordering::SeqCst);
    for round in 1..=20 {
        let (now, other) = if round % 2 == 0 {
            (&one, &two)
        } else {
            (&two, &one)
        };
        let before = served(now);
        place.write_policy(&policy(now));
        assert_eq!(place.output(&["reload"]).status.code(), Some(0));
        // What was decided before the swap may still be on its way to its server.
        std::thread::sleep(Duration::from_millis(20));
        let shut = served(other);
        let came = eventually(START, || (served(now) > before).then_some(()));
        assert!(
            came.is_some(),
            "what the new policy allows does not pass in round {round}"
        );
        assert_eq!(
            served(other),
            shut,
            "what the new policy denies passed in round {round}"
        );
    }
    for client in clients {
        assert!(client.finish()["got"].as_u64() > Some(0));
    }
    assert_eq!(
        one.unsteered.load(Ordering::SeqCst) + two.unsteered.load(Ordering::SeqCst),
        0
    );
}
