//! What a running agent holds, and goes on holding when it is stopped or killed.
use crate::support::*;
use harness::eventually;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn stopped_killed_and_started_again_it_never_opens() {
    let mut place = Place::new();
    place.start();
    assert!(
        eventually(START, || place.governed().then_some(())).is_some(),
        "the job is not governed"
    );
    assert_eq!(place.ask(), forbidden());
    let status = place.output(&["status"]);
    assert_eq!(status.status.code(), Some(0), "{}", text(&status.stdout));
    assert!(
        text(&status.stdout).starts_with("enforcing\n"),
        "{}",
        text(&status.stdout)
    );

    let signals = [
        (Signal::KILL, None),
        (Signal::TERM, Some(0)),
        (Signal::INT, Some(0)),
    ];
    for (asked, (signal, code)) in (1..).zip(signals) {
        // What is decided reaches the disk an instant later: a kill is no test of that instant.
        let written = eventually(START, || {
            (place.on_disk("unknown_host") == asked).then_some(())
        });
        assert!(written.is_some(), "decisions do not reach the disk");
        assert_eq!(place.end(signal), code);
        let before = Instant::now();
        let (exit, status) = place.ask();
        assert_eq!((exit, status.as_str()), (REFUSED.0, "000"), "{signal:?}");
        assert!(before.elapsed() < Duration::from_secs(1), "refused at once");
        let dead = place.output(&["status"]);
        assert_eq!(dead.status.code(), Some(3));
        assert!(
            text(&dead.stdout).contains("fence   stands"),
            "{}",
            text(&dead.stdout)
        );
        place.start();
        assert_eq!(place.ask(), forbidden(), "after {signal:?} and a start");
    }

    let denied = place.output(&[
        "decisions",
        "--denied",
        "--workload",
        "job",
        "--host",
        "198.51.100.7",
        "-o",
        "jsonl",
    ]);
    let lines: Vec<Value> = text(&denied.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let denied = |code: &str| {
        let counted = lines
            .iter()
            .filter(|d| d["reason"]["code"] == code && d["verdict"] == "DENY");
        counted.count()
    };
    assert_eq!(
        denied("unknown_host"),
        4,
        "one for each time the agent was asked: {lines:?}"
    );
    assert_eq!(
        denied("agent_down"),
        3,
        "one for each time there was none, told by the kernel: {lines:?}"
    );
    let id = lines[0]["id"].as_str().unwrap();
    let shown = place.output(&["explain", id, "-o", "json"]);
    assert_eq!(
        serde_json::from_slice::<Value>(&shown.stdout).unwrap()["id"],
        id
    );
}

#[test]
fn a_cgroup_that_appears_is_governed_and_one_that_goes_is_released() {
    let mut place = Place::new();
    fs::remove_dir(&place.cgroup).unwrap();
    place.start();
    assert!(!place.governed());
    fs::create_dir(&place.cgroup).unwrap();
    assert!(eventually(Duration::from_secs(2), || place.governed().then_some(())).is_some());
    assert_eq!(place.ask(), forbidden());
    fs::remove_dir(&place.cgroup).unwrap();
    assert!(eventually(Duration::from_secs(3), || (!place.governed()).then_some(())).is_some());
}

#[test]
fn a_governed_process_may_not_talk_to_the_agent() {
    let mut place = Place::new();
    place.start();
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    let program = harness::agent::program().unwrap();
    let output = place.in_job(
        program.to_str().unwrap(),
        &["run", "--workload", "by-hand", "--", "true"],
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(
        text(&output.stderr).contains("governed process"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_full_disk_refuses_until_there_is_room() {
    let mut place = Place::new();
    let state = place.path("state");
    let options = std::ffi::CString::new("size=1m,mode=0700").unwrap();
    rustix::mount::mount(
        "tollgate-test",
        &state,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        options.as_c_str(),
    )
    .unwrap();
    place.start();
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    assert_eq!(place.ask(), forbidden());

    let filler = state.join("filler");
    let full = fs::write(&filler, vec![0; 2 << 20]);
    assert!(full.is_err(), "the disk is not full");
    // The decision that finds the disk full was taken before it was known to be full.
    let refused = eventually(START, || {
        (place.ask() == (0, "503".to_owned())).then_some(())
    });
    assert!(
        refused.is_some(),
        "requests pass though decisions cannot be written: {:?}",
        place.ask()
    );
    let status = place.output(&["status"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(
        text(&status.stdout).contains("FAILING since"),
        "{}",
        text(&status.stdout)
    );

    fs::remove_file(&filler).unwrap();
    let recovered = eventually(START, || (place.ask() == forbidden()).then_some(()));
    assert!(
        recovered.is_some(),
        "it does not recover: {:?}",
        place.ask()
    );
    assert_eq!(place.output(&["status"]).status.code(), Some(0));
}

/// Only what is in the kernel's hands outlives a process that is killed, and it must be there a few milliseconds after
/// the client has its answer, in the instants of a sync too.
#[test]
fn a_decision_outlives_the_agent_that_is_killed_right_after_the_answer() {
    let mut place = Place::new();
    let mut asked = 0;
    for round in 1..=4_u64 {
        place.start();
        let begun = Instant::now();
        // Up to about when the first record is synced.
        while begun.elapsed() < Duration::from_millis(900 + round * 50) {
            assert_eq!(place.ask(), forbidden());
            asked += 1;
        }
        std::thread::sleep(Duration::from_millis(20));
        place.end(Signal::KILL);
        assert_eq!(place.on_disk("unknown_host"), asked, "round {round}");
    }
}

/// Refusals while the agent does not read them: what it was not told, `status` says, and each is counted.
#[test]
fn events_that_are_lost_are_shown() {
    const TRIES: u64 = 16_000;
    let mut place = Place::new();
    place.start();
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    let lines = || text(&place.output(&["status"]).stdout);
    assert!(lines().contains(" 0 lost; 0 refusals"), "{}", lines());
    let agent = Pid::from_child(place.agent.as_ref().unwrap());
    kill_process(agent, Signal::STOP).unwrap();
    let tries = format!(
        "import socket
told = set()
for n in range({TRIES}):
    try: socket.socket((socket.AF_INET, socket.AF_INET6)[n % 2], socket.SOCK_RAW, 255)
    except PermissionError as e: told.add(e.errno)
print(*told)"
    );
    let tried = place.in_job("python3", &["-c", &tries]);
    kill_process(agent, Signal::CONT).unwrap();
    assert_eq!(text(&tried.stdout), "1\n", "{}", text(&tried.stderr));
    let status = place.status();
    let lost = status["lost_events"].as_u64().unwrap();
    assert!(lost > 0 && lost < TRIES, "{lost}");
    let said = lines();
    assert!(said.contains(&format!(" {lost} lost; ")), "{said}");
    // Each is counted, whether it was told or not.
    let counted = Value::from(place.workloads()).to_string();
    assert!(counted.contains(&format!("\"raw\":{TRIES}")), "{counted}");
}

/// Somebody else's server, and a governed client that asks it.
struct Asked {
    server: TcpListener,
    client: Child,
}

impl Asked {
    fn new(place: &Place, ip: &str) -> Self {
        let server = TcpListener::bind((ip, 0)).unwrap();
        server.set_nonblocking(true).unwrap();
        let url = format!("http://{}/", server.local_addr().unwrap());
        let curl = "exec curl -sSg -m 20 -o /dev/null -w '%{http_code}'";
        let script = format!(
            "echo $$ > {}/cgroup.procs && {curl} {url}",
            place.cgroup.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdout(Stdio::piped());
        let client = command.spawn().unwrap();
        Self { server, client }
    }

    fn is_waiting(&mut self) -> bool {
        self.client.try_wait().unwrap().is_none() && self.server.accept().is_err()
    }
}

/// Stopped, it holds what is asked, and nothing goes past it; when it goes on, so does that.
#[test]
fn a_stopped_agent_holds_and_lets_nothing_past() {
    let mut place = Place::new();
    place.start();
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    let agent = Pid::from_child(place.agent.as_ref().unwrap());
    kill_process(agent, Signal::STOP).unwrap();
    let mut asked = ["127.0.0.9", "::1"].map(|ip| Asked::new(&place, ip));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        assert!(asked.iter_mut().all(Asked::is_waiting), "it is not held");
        std::thread::sleep(Duration::from_millis(20));
    }
    for verb in ["status", "workloads"] {
        let told = place.output(&[verb]);
        let why = text(&told.stderr);
        assert_eq!(told.status.code(), Some(3), "{verb}: {told:?}");
        let remedy = format!("kill -CONT {}", agent.as_raw_nonzero());
        assert!(why.contains(&remedy), "{verb}: {why}");
    }
    kill_process(agent, Signal::CONT).unwrap();
    for Asked { server, client } in asked {
        let said = client.wait_with_output().unwrap();
        assert_eq!(text(&said.stdout), "403");
        assert!(server.accept().is_err(), "somebody got past the agent");
    }
    // It is the fence: without it they are reached.
    place.end(Signal::TERM);
    fs::remove_dir_all(Path::new("/sys/fs/bpf").join(&place.name)).unwrap();
    for ip in ["127.0.0.9", "::1"] {
        let asked = Asked::new(&place, ip);
        let reached = eventually(START, || asked.server.accept().ok());
        assert!(reached.is_some(), "{ip}");
        drop((reached, asked.server));
        asked.client.wait_with_output().unwrap();
    }
}

/// Nobody is taken for a workload by what they say, or for having found the port.
#[test]
fn who_connects_straight_to_the_agent_is_reset_and_on_record() {
    let mut place = Place::new();
    place.start();
    let forwarded = ["127.0.0.1", "::1"].map(|ip| TcpListener::bind((ip, 0)).unwrap());
    for server in &forwarded {
        server.set_nonblocking(true).unwrap();
        let to = server.local_addr().unwrap();
        let (kind, ip) = (if to.is_ipv4() { "TCP4" } else { "TCP6" }, to.ip());
        let said = format!(
            "PROXY {kind} {ip} {ip} 40000 {}\r\nGET / HTTP/1.1\r\nhost: {to}\r\n\r\n",
            to.port()
        );
        // It may be reset as early as that.
        let answer = TcpStream::connect((ip, place.port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(START))?;
            stream.write_all(said.as_bytes())?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).map(|_| answer)
        });
        let reset = answer.expect_err(kind).kind();
        assert!(
            matches!(reset, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{kind}: {reset}"
        );
    }
    let recorded = eventually(START, || (place.on_disk("\"direct\"") == 2).then_some(()));
    assert!(recorded.is_some(), "{}", place.on_disk("\"direct\""));
    assert!(forwarded.iter().all(|server| server.accept().is_err()));
}
