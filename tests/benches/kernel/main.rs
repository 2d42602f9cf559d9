//! What the fence costs: the same work with it and without it, by turns, in CPU time. `cargo xtask bench kernel` shows
//! it against the goals.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs
)]

mod transfer;
mod work;

use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tollgate::kernel::{Fence, Options};
use transfer::Transfer;

/// Where nobody listens: a governed connection to it is steered.
const ELSEWHERE: [&str; 2] = ["198.51.100.7:80", "[2001:db8::7]:80"];
/// Turns of transfers for each round.
const TURNS: usize = 8;

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
    let bench = Bench::new();
    let mut figures = bench.run(rounds, &mut Bulk::start());
    figures.extend(bench.transfers(rounds * TURNS));
    println!("{}", Value::from(figures));
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

/// A figure by its name: its value, and the least and most that it may be.
fn figure(name: &str, [value, least, most]: [f64; 3]) -> Value {
    json!({ "figure": name, "value": value, "least": least, "most": most })
}

/// The one in the middle, and those that a quarter is below and above.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [2, 1, 3].map(|of_four: usize| values[(values.len() - 1) * of_four / 4])
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

    fn run(&self, rounds: usize, bulk: &mut Bulk) -> Vec<Value> {
        // The first warms up.
        let rounds = (0..=rounds).map(|_| self.round(bulk));
        let all: Vec<Round> = rounds.skip(1).collect();
        let names: Vec<&str> = all[0].iter().map(|(name, _)| *name).collect();
        let figures = names.iter().enumerate().map(|(at, name)| {
            let values: Vec<f64> = all.iter().map(|round| round[at].1).collect();
            figure(name, quartiles(values))
        });
        figures.collect()
    }

    /// What nobody's transfers move beside a fence that governs something, and beside programs that do nothing.
    fn transfers(&self, turns: usize) -> Vec<Value> {
        let transfer = Transfer::start();
        let (fence, cgroup) = self.fence(true);
        let root = fence.cgroup_root().to_owned();
        let mut hooks = Hooks::of_fence(&fence, &self.pins());
        let beside_fence = transfer.by_turns(turns, &mut hooks);
        fence.lift().expect("lift");
        drop(hooks);
        let _ = std::fs::remove_dir(cgroup);
        let beside_empty = transfer.by_turns(turns / 2, &mut Hooks::of_nothing(&root));
        let mut figures = beside_fence.figures(["transfer", "transfer6"]);
        figures.extend(beside_empty.figures(["transfer_empty", "transfer_empty6"]));
        figures
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
            let mut hooks = Hooks::of_nothing(&root);
            hooks.attach();
            (four.free(), bulk.cost())
        };
        // Before and after: whatever drifts does so for both.
        let bulk_without = f64::midpoint(bulk_without, bulk_after);
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
            ("bulk_ungoverned", bulk_with / bulk_without),
            ("bulk_empty", bulk_empty / bulk_after),
            ("connect_datagram_itself", without.datagram),
            ("connect_stream_itself", without.connect),
            ("send_itself", without.send),
            ("bulk_without", (1e6 / bulk_without).round()),
            ("bulk_with", (1e6 / bulk_with).round()),
        ]
    }
}

impl Bench {
    fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    /// A fence that governs a cgroup and steers it to the agent's listener.
    fn fence(&self, counts: bool) -> (Fence, PathBuf) {
        let options = Options {
            pin_dir: self.pins(),
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

/// Programs that are attached and detached by turns: a fence's, or some that do nothing, which is what any program costs there. They
/// are detached at first, and end with this.
struct Hooks(Child);

impl Hooks {
    fn of_nothing(root: &Path) -> Self {
        Self::start(&[root])
    }

    fn of_fence(fence: &Fence, pins: &Path) -> Self {
        Self::start(&[fence.cgroup_root(), &pins.join("links")])
    }

    fn start(arguments: &[&Path]) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", include_str!("hooks.py")]);
        command.args(arguments).stdin(Stdio::piped());
        let child = command.stdout(Stdio::piped()).spawn();
        Self(child.expect("start python3"))
    }

    fn attach(&mut self) {
        assert!(self.turn() > 5, "not all hooks are attached");
    }

    fn detach(&mut self) {
        assert_eq!(self.turn(), 0, "there are hooks left");
    }

    /// How many are attached now.
    fn turn(&mut self) -> usize {
        tell(&mut self.0).parse().expect("a number")
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// What a process answers to an empty line.
fn tell(child: &mut Child) -> String {
    let told = child.stdin.as_mut().expect("piped");
    told.write_all(b"\n").expect("write");
    let said = child.stdout.as_mut().expect("piped");
    let mut answer = String::new();
    // One line at a time: nothing is left in this reader.
    BufReader::new(said).read_line(&mut answer).expect("read");
    answer.trim().to_owned()
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

    /// For a kilobyte, now: nanoseconds of CPU.
    fn cost(&mut self) -> f64 {
        tell(&mut self.0).parse().expect("a number")
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
