//! What the fence costs: the same work with it and without it, by turns, in CPU time. `cargo xtask bench kernel` shows
//! it against the goals.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

mod work;

use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tollgate::kernel::{Fence, Options};

/// Where nobody listens: a governed connection to it is steered.
const ELSEWHERE: [&str; 2] = ["198.51.100.7:80", "[2001:db8::7]:80"];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|word| word == "--work") {
        return work::run(&arguments[at + 1..]);
    }
    if arguments.iter().any(|word| word == "--bulk") {
        return work::bulk();
    }
    let rounds = arguments
        .iter()
        .position(|word| word == "--rounds")
        .map_or(9, |at| arguments[at + 1].parse().expect("a number"));
    println!("{}", Bench::new().run(rounds, &mut Bulk::start()));
}

/// Listeners that stay, and a fence that comes and goes.
struct Bench {
    /// Of both families.
    ends: [Ends; 2],
    name: String,
}

/// Listeners of one family, and where there is none.
struct Ends {
    agents: TcpListener,
    others: TcpListener,
    elsewhere: SocketAddr,
}

impl Ends {
    fn new(listen: &str, elsewhere: &str) -> Self {
        let listener = || TcpListener::bind(listen).expect("bind");
        Self {
            agents: listener(),
            others: listener(),
            elsewhere: elsewhere.parse().expect("an address"),
        }
    }

    /// Of who is governed.
    fn governed(&self, cgroup: &Path) -> Costs {
        Costs::of(Some(cgroup), &self.agents, self.elsewhere)
    }

    /// Of who is not.
    fn free(&self) -> Costs {
        let own = self.others.local_addr().expect("bound");
        Costs::of(None, &self.others, own)
    }
}

/// Costs of one round, by name.
type Round = Vec<(&'static str, f64)>;

impl Bench {
    fn new() -> Self {
        let name = format!("tollgate-bench-{}", std::process::id());
        let [four, six] = ELSEWHERE;
        Self {
            ends: [Ends::new("127.0.0.1:0", four), Ends::new("[::1]:0", six)],
            name,
        }
    }

    fn run(&self, rounds: usize, bulk: &mut Bulk) -> Value {
        // The first warms up.
        let rounds = (0..=rounds).map(|_| self.round(bulk));
        let all: Vec<Round> = rounds.skip(1).collect();
        let names: Vec<&str> = all[0].iter().map(|(name, _)| *name).collect();
        let figures = names.iter().enumerate().map(|(at, name)| {
            let mut values: Vec<f64> = all.iter().map(|round| round[at].1).collect();
            values.sort_by(f64::total_cmp);
            let part = |of_four: usize| values[(values.len() - 1) * of_four / 4];
            json!({ "figure": name, "value": part(2), "least": part(1), "most": part(3) })
        });
        figures.collect()
    }

    fn round(&self, bulk: &mut Bulk) -> Round {
        let [four, six] = &self.ends;
        let (without, without6) = (four.free(), six.free());
        let bulk_without = bulk.cost();
        let (fence, cgroup) = self.fence(true);
        let root = fence.cgroup_root().to_owned();
        let (with, with6) = (four.free(), six.free());
        let bulk_with = bulk.cost();
        let (governed, governed6) = (four.governed(&cgroup), six.governed(&cgroup));
        fence.lift().expect("lift");
        let bulk_after = bulk.cost();
        let uncounted = {
            let (fence, cgroup) = self.fence(false);
            let costs = four.governed(&cgroup);
            fence.lift().expect("lift");
            costs
        };
        let (empty, bulk_empty) = {
            let _programs = Empty::attach(&root);
            (four.free(), bulk.cost())
        };
        // Before and after: whatever drifts does so for both.
        let middle = |at: usize| f64::midpoint(bulk_without[at], bulk_after[at]);
        let bulk_without = [middle(0), middle(1), middle(2)];
        // The last process of it may not have been reaped yet.
        let _ = harness::eventually(std::time::Duration::from_secs(5), || {
            std::fs::remove_dir(&cgroup).ok()
        });
        let more = |name, with: f64, without: f64| (name, with - without);
        vec![
            more(
                "connect_datagram_ungoverned",
                with.datagram,
                without.datagram,
            ),
            more("connect_stream_ungoverned", with.connect, without.connect),
            more("connect_stream_governed", governed.connect, without.connect),
            more(
                "connect_datagram_ungoverned6",
                with6.datagram,
                without6.datagram,
            ),
            more(
                "connect_stream_ungoverned6",
                with6.connect,
                without6.connect,
            ),
            more(
                "connect_stream_governed6",
                governed6.connect,
                without6.connect,
            ),
            more("send_governed6", governed6.send, without6.send),
            more("connect_datagram_empty", empty.datagram, without.datagram),
            more("connect_stream_empty", empty.connect, without.connect),
            more("socket_governed", governed.socket, without.socket),
            more("close_governed", governed.close, without.close),
            more("send_ungoverned", with.send, without.send),
            more("send_governed", governed.send, without.send),
            more("send_accounting", governed.send, uncounted.send),
            more("send_empty", empty.send, without.send),
            ("bulk_ungoverned", bulk_with[0] / bulk_without[0]),
            ("bulk_empty", bulk_empty[0] / bulk_after[0]),
            ("stream_ungoverned", bulk_with[1] / bulk_without[1]),
            ("stream_empty", bulk_empty[1] / bulk_after[1]),
            ("stream_ungoverned6", bulk_with[2] / bulk_without[2]),
            ("stream_empty6", bulk_empty[2] / bulk_after[2]),
            ("connect_datagram_itself", without.datagram),
            ("connect_stream_itself", without.connect),
            ("send_itself", without.send),
            ("bulk_without", (1e6 / bulk_without[0]).round()),
            ("bulk_with", (1e6 / bulk_with[0]).round()),
            ("stream_without", (1e6 / bulk_without[1]).round()),
            ("stream_with", (1e6 / bulk_with[1]).round()),
        ]
    }
}

impl Bench {
    /// A fence that governs a cgroup and steers it to the agent's listener.
    fn fence(&self, counts: bool) -> (Fence, PathBuf) {
        let options = Options {
            pin_dir: Path::new("/sys/fs/bpf").join(&self.name),
            cgroup_root: None,
            counts,
        };
        let fence = Fence::open(&options).expect("the fence stands (as root)");
        let cgroup = fence.cgroup_root().join(&self.name);
        std::fs::create_dir_all(&cgroup).expect("make a cgroup");
        fence
            .govern(Path::new(&self.name), "bench")
            .expect("govern");
        let agents = self.ends.each_ref().map(|ends| &ends.agents);
        let [four, six] = agents.map(|agent| agent.local_addr().expect("bound").port());
        fence.admit(&agents, four, Some(six)).expect("admit");
        (fence, cgroup)
    }
}

/// Programs that do nothing, at the hooks that a connection passes: what any program costs there.
struct Empty(Child);

impl Empty {
    fn attach(root: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-c", include_str!("empty.py")])
            .arg(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start python3");
        let mut told = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut told).expect("read");
        assert_eq!(told, "attached\n", "the empty programs are not attached");
        Self(child)
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// The process that makes bulk transfers.
struct Bulk(Child);

impl Bulk {
    fn start() -> Self {
        let own = std::env::current_exe().expect("this program");
        let mut command = Command::new(own);
        command.arg("--bulk").stdin(Stdio::piped());
        Self(command.stdout(Stdio::piped()).spawn().expect("start"))
    }

    /// For a kilobyte, now: nanoseconds of CPU, and those that it takes over IPv4 and IPv6.
    fn cost(&mut self) -> [f64; 3] {
        let told = self.0.stdin.as_mut().expect("piped");
        told.write_all(b"\n").expect("write");
        let mut cost = String::new();
        let said = self.0.stdout.as_mut().expect("piped");
        // One line at a time: nothing is left in this reader.
        BufReader::new(said).read_line(&mut cost).expect("read");
        serde_json::from_str(&cost).expect("three numbers")
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Nanoseconds of CPU for each call.
struct Costs {
    datagram: f64,
    socket: f64,
    connect: f64,
    close: f64,
    send: f64,
}

impl Costs {
    /// In a process of its own: who was governed once stays so.
    fn of(cgroup: Option<&Path>, listener: &TcpListener, target: SocketAddr) -> Self {
        let own = std::env::current_exe().expect("this program");
        let mut command = match cgroup {
            None => Command::new(&own),
            Some(cgroup) => {
                let mut shell = Command::new("sh");
                let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", cgroup.display());
                shell.args(["-c", &enter, "sh"]).arg(&own);
                shell
            }
        };
        let listener = OwnedFd::from(listener.try_clone().expect("clone"));
        command
            .args(["--work", &target.to_string()])
            .stdin(listener);
        let output = command.stderr(Stdio::inherit()).output().expect("start");
        assert!(output.status.success(), "the work failed");
        let costs: [f64; 5] = serde_json::from_slice(&output.stdout).expect("five costs");
        let [datagram, socket, connect, close, send] = costs;
        Self {
            datagram,
            socket,
            connect,
            close,
            send,
        }
    }
}
