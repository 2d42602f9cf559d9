//! Two hundred ends and starts of every kind, under load: nothing opens meanwhile, and service is back at once.
use crate::counted::Counted;
use crate::load::*;
use crate::support::*;
use crate::upgrades::another_build;
use harness::{at_most, eventually};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Ends and starts.
const ROUNDS: usize = 200;
/// What each client does at least in the whole of it.
const TRIES: u64 = 2 * ROUNDS as u64;
/// How long the service is left to serve between a start and the next end.
const SERVING: Duration = Duration::from_millis(60);

/// Seconds of the clock that the clients read.
fn now() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// A cgroup with no memory to give: whoever is put into it is killed by the kernel when next it needs some.
struct Scarce {
    path: PathBuf,
    events: PathBuf,
}

impl Scarce {
    fn new(name: &str) -> Self {
        let (root, is_unified) = controlled("memory");
        let (limit, events) = match is_unified {
            true => ("memory.max", "memory.events"),
            false => ("memory.limit_in_bytes", "memory.oom_control"),
        };
        let path = root.join(format!("{name}-scarce"));
        fs::create_dir(&path).unwrap();
        let events = path.join(events);
        let scarce = Self { path, events };
        fs::write(scarce.path.join(limit), "0").unwrap();
        scarce
    }

    fn kills(&self) -> u64 {
        let events = fs::read_to_string(&self.events).unwrap();
        let kills = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        kills.unwrap().parse().unwrap()
    }
}

impl Drop for Scarce {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// An agent, the programs that it is started from in turn, and when each start was.
struct Storm {
    place: Place,
    programs: [PathBuf; 2],
    starts: Vec<f64>,
    scarce: Scarce,
    counted: Counted,
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
            .stdout(Stdio::null());
        command
    }

    fn start(&mut self) {
        self.starts.push(now());
        let said = fs::File::create(self.place.path("said")).unwrap();
        let child = self.command(&[]).stderr(said).spawn().unwrap();
        let child = self.place.agent.insert(child);
        let socket = self.place.directory.join("run/admin.sock");
        let up = eventually(START, || {
            assert!(child.try_wait().unwrap().is_none(), "the agent ended");
            std::os::unix::net::UnixStream::connect(&socket).ok()
        });
        assert!(up.is_some(), "the agent is not up");
    }

    /// A start that something keeps from succeeding, which is what it says.
    fn start_in_vain(&mut self, launcher: &[&str], why: &str) {
        let mut child = self
            .command(launcher)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ended = eventually(START, || child.try_wait().unwrap());
        let _ = child.kill();
        let status = ended.unwrap_or_else(|| panic!("an agent started in spite of: {why}"));
        let mut said = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{why}: {said}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.place.agent.as_ref().unwrap()), signal).unwrap();
    }

    /// The agent may open no more files: it can accept nothing, which it says.
    fn exhaust(&self) {
        let pid = self.place.agent.as_ref().unwrap().id().to_string();
        let status = Command::new("prlimit")
            .args(["--pid", &pid, "--nofile=3:3"])
            .status();
        assert!(status.unwrap().success());
        // One that comes for certain: the clients may all be waiting for something else.
        let _knock = TcpStream::connect(("127.0.0.1", self.place.port)).unwrap();
        let word = "accept error=Too many open files";
        let said = || fs::read_to_string(self.place.path("said")).unwrap();
        let noticed = eventually(START, || said().contains(word).then_some(()));
        let first: String = said().chars().take(4000).collect();
        assert!(noticed.is_some(), "it accepts without a file: {first}");
    }

    /// The agent gets no more memory: the kernel kills it, not we.
    fn starve(&mut self) {
        let mut child = self.place.agent.take().unwrap();
        let before = self.scarce.kills();
        let procs = self.scarce.path.join("cgroup.procs");
        fs::write(procs, child.id().to_string()).unwrap();
        let ended = eventually(START, || child.try_wait().unwrap());
        let _ = child.kill();
        let status = ended.expect("it needs no memory");
        assert_eq!(status.signal(), Some(Signal::KILL.as_raw()), "{status}");
        assert!(self.scarce.kills() > before, "not for want of memory");
    }

    fn round(&mut self, number: usize) {
        std::thread::sleep(SERVING);
        self.counted.go_on(&self.place, "while the agent ran");
        match number % 10 {
            0..3 => drop(self.place.end(Signal::KILL)),
            3 => self.starve(),
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
                self.start_in_vain(&["prlimit", "--nofile=8:8"], "may open 8 files");
            }
            _ => {
                self.place.end(Signal::KILL);
                // A bpffs has no quota and is never full; one that is read-only takes no pin either.
                let read_only = "mount -o remount,bind,ro /sys/fs/bpf && exec \"$@\"";
                let launcher = ["unshare", "--mount", "sh", "-c", read_only, "sh"];
                self.start_in_vain(&launcher, "ead-only");
            }
        }
        self.start();
        self.counted.go_on(&self.place, "before the agent ended");
    }
}

/// The part of the way from the least to the greatest, 0 to 100.
fn percentile(mut values: Vec<f64>, part: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * part / 100]
}

#[test]
fn two_hundred_restarts_let_nothing_out_and_disturb_nobody_else() {
    let sources = ["127.0.0.8", "::1"].map(Source::new);
    let mut place = Place::new();
    let [four, six] = [0, 1].map(|at: usize| sources[at].address);
    let download = format!("apis:\n  stream: {{ tcp: [\"{four}\", \"{six}\"] }}");
    let grant = "roles:\n  watcher: [{ api: stream }]";
    let granted = "grants:\n  - { role: watcher, to: { workload: job } }";
    let policy = POLICY.replace("apis:", &download).replace("roles:", grant);
    place.write_policy(&policy.replace("grants:", granted));
    place.write_config("limits: { drain: 50ms }\n");
    place.start();
    place.end(Signal::KILL);
    let copy = place.path("upgraded");
    another_build(&copy);
    // Queries for names go to the same addresses' port 53.
    let own = Own::new();
    let canaries = own.canaries();
    let bystanders = [echo("127.0.0.8"), echo("::1")];
    let mut storm = Storm {
        programs: [harness::agent::program().unwrap(), copy],
        scarce: Scarce::new(&place.name),
        place,
        starts: Vec::new(),
        counted: Counted::default(),
    };

    let connector = targets(&[&canaries[0].address, &canaries[1].address]) + CONNECTOR;
    let bystander = format!("{}{BYSTANDER}", targets(&[&bystanders[0], &bystanders[1]]));

    // Where nobody is governed, the same clients get through: the canaries do count, and the sources tell whose it is.
    Canary::all_hear(&canaries, &connector);
    sources.iter().for_each(Source::tells_whose);

    storm.start();
    let governed = eventually(START, || storm.place.governed().then_some(()));
    assert!(governed.is_some(), "the job is not governed");
    let counted = || -> (Vec<u64>, Vec<u64>) {
        let hits = canaries.iter().map(Canary::hits).collect();
        (hits, sources.iter().map(Source::unsteered).collect())
    };
    let before = counted();
    let cgroup = storm.place.cgroup.clone();
    let connector = Client::start(Some(&cgroup), &connector);
    let downloaders = sources
        .each_ref()
        .map(|source| Client::start(Some(&cgroup), &source.downloader()));
    let bystander = Client::start(None, &bystander);
    let begun = Instant::now();
    for number in 0..ROUNDS {
        storm.round(number);
    }
    // The last start has as long to be back as the others.
    std::thread::sleep(at_most(Duration::from_secs(1)));
    let took = begun.elapsed();
    for what in ["bytes_in", "bytes_out", "connections", "agent_down"] {
        assert!(storm.counted.of(&format!("job {what}")) > TRIES, "{what}");
    }
    let tried = connector.finish();
    let got = downloaders.map(Client::finish);
    let others = bystander.finish();

    assert_eq!(before, counted(), "somebody got through unsteered");
    assert!(storm.scarce.kills() >= ROUNDS as u64 / 10);
    // Reset: accepted for the agent, which ended before the client had looked.
    let connects = of(
        &tried,
        "connects",
        &["steered", "ECONNREFUSED", "ECONNRESET"],
    );
    assert!(connects[0] > TRIES && connects[1] > TRIES, "{connects:?}");
    assert!(connects[2] <= ROUNDS as u64, "{connects:?}");
    // What was not answered had come to an agent that ended: one connection at a time is on its way.
    let answered = "HTTP/1.1 403";
    let answers = of(
        &tried,
        "answers",
        &[answered, "ended", "ECONNRESET", "EPIPE"],
    );
    let unanswered: u64 = answers[1..].iter().sum();
    assert!(answers[0] > TRIES, "{answers:?}");
    assert!(unanswered <= ROUNDS as u64, "{answers:?}");
    let datagrams = of(&tried, "datagrams", &["EPERM"]);
    assert!(datagrams[0] > TRIES, "{datagrams:?}");
    // EPERM: steered to an agent that had ended when the packet was about to leave.
    let queries = of(&tried, "queries", &["sent", "ECONNREFUSED", "EPERM"]);
    assert!(queries[0] > TRIES && queries[1] > TRIES, "{queries:?}");
    assert!(queries[2] <= ROUNDS as u64, "{queries:?}");
    for (source, got) in sources.iter().zip(got) {
        let least = ROUNDS as u64 * (1 << 15);
        assert!(got["got"].as_u64() > Some(least), "{got}");
        assert!(source.served() > ROUNDS as u64 / 2, "downloads");
    }
    assert!(others["rounds"].as_u64() > Some(TRIES), "{others}");
    let back = times_back(&storm, &numbers(&tried, "up"));
    hold_times(&tried, back, took);
    let status = storm.place.output(&["status"]);
    assert!(
        text(&status.stdout).starts_with("enforcing\n"),
        "{}",
        text(&status.stdout)
    );
}

/// How often each of these outcomes came; there may be no other.
fn of(told: &Value, kind: &str, known: &[&str]) -> Vec<u64> {
    let all = told[kind].as_object().unwrap();
    for what in all.keys() {
        let is_known = known.contains(&what.as_str());
        assert!(is_known, "one of the {kind} ended with {what}: {all:?}");
    }
    let count = |what: &&str| all.get(*what).and_then(Value::as_u64).unwrap_or(0);
    known.iter().map(count).collect()
}

fn numbers(told: &Value, key: &str) -> Vec<f64> {
    let list = told[key].as_array().unwrap().iter();
    list.filter_map(Value::as_f64).collect()
}

/// How long it took from each start until the first bytes of an answer were read.
fn times_back(storm: &Storm, up: &[f64]) -> Vec<f64> {
    let starts = storm.starts.iter().skip(1);
    let back = |start: &f64| up.iter().find(|at| *at > start).map(|at| at - start);
    let back: Vec<f64> = starts.filter_map(back).collect();
    assert_eq!(back.len(), ROUNDS, "service did not come back");
    back
}

fn hold_times(tried: &Value, back: Vec<f64>, took: Duration) {
    let (refused, denied) = (numbers(tried, "refused"), numbers(tried, "denied"));
    let of = |values: &[f64]| [50, 95, 99, 100].map(|part| percentile(values.to_vec(), part));
    let (refused, denied, back) = (of(&refused), of(&denied), of(&back));
    println!(
        "{ROUNDS} restarts in {:.0} s; parts 50, 95, 99 and 100 of 100: connects refused within {refused:.2?} ms, \
         datagrams within {denied:.2?} ms; back after {back:.2?} s",
        took.as_secs_f64()
    );
    // The clock also counts when the client waits for a processor, which on a machine that does other things may be long
    // for one in thousands; but whatever waits for an answer, or for a lost segment to be sent again, takes a second.
    let limits = [10, 500].map(|limit| at_most(Duration::from_millis(limit)));
    let limits = limits.map(|limit| limit.as_secs_f64() * 1000.0);
    for [.., most, worst] in [refused, denied] {
        assert!(most < limits[0], "refusals took {most} ms");
        assert!(worst < limits[1], "one refusal took {worst} ms");
    }
    // What a start takes is work: beside other work on two processors one or two of the 200 have taken a fifth more than a
    // second. So 95 of 100 are held to the second, and the greatest to three.
    let limits = [1, 3].map(|limit| at_most(Duration::from_secs(limit)).as_secs_f64());
    let [_, most, _, worst] = back;
    assert!(most < limits[0], "service was back only after {most} s");
    assert!(worst < limits[1], "service was back once after {worst} s");
}

/// Open connections and new ones see one policy or the other, whole, and none in between.
#[test]
fn a_policy_is_swapped_whole_under_load() {
    let [one, two] = [0; 2].map(|_| Source::new("127.0.0.8"));
    let mut place = Place::new();
    // Each allows one of the two, under the same names.
    let policy = |source: &Source| {
        format!(
            "version: 1\nworkloads: {{ job: {{ match: {{ cgroup: \"CGROUP/**\" }} }} }}\napis: {{ stream: {{ tcp: [\"{}\"] }} }}\n\
             roles: {{ watcher: [{{ api: stream }}] }}\ngrants: [{{ role: watcher, to: {{ workload: job }} }}]\n",
            source.address
        )
    };
    place.write_policy(&policy(&one));
    place.start();
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    let clients =
        [&one, &two].map(|source| Client::start(Some(&place.cgroup), &source.downloader()));
    let served = Source::served;
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
    assert_eq!(one.unsteered() + two.unsteered(), 0);
}
