//! What the agent gives up before it holds anything: that others read its memory, and that it leaves it behind.
use crate::support::*;
use harness::eventually;
use harness::process::Ended;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Root without the capability that reads every process's memory, and with all others: of a process that has no more
/// than these, only what that process has given up keeps it.
const LAUNCHER: [&str; 5] = [
    "prlimit",
    "--core=unlimited",
    "setpriv",
    "--inh-caps=-sys_ptrace",
    "--bounding-set=-sys_ptrace",
];

/// What becomes of opening the memory of a process, governed.
fn opened(place: &Place, pid: u32) -> String {
    let open = format!(
        "
try:
    open('/proc/{pid}/mem', 'rb')
    print('opened')
except PermissionError: print('refused')"
    );
    let arguments = [&LAUNCHER[1..], &["python3", "-c", &open]].concat();
    let output = place.in_job(LAUNCHER[0], &arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

/// Soft and hard limit of the size of a core dump.
fn core(pid: u32) -> Vec<String> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let mut lines = limits.lines();
    let line = lines.find_map(|line| line.strip_prefix("Max core file size"));
    let words = line.unwrap().split_whitespace().take(2);
    words.map(str::to_owned).collect()
}

#[test]
fn governed_root_does_not_read_the_agents_memory_and_it_leaves_none_behind() {
    let mut place = Place::new();
    let mut beside = Command::new(LAUNCHER[0]);
    beside.args(&LAUNCHER[1..]).args(["sleep", "1h"]);
    let beside = Ended(beside.spawn().unwrap());
    place.start_by(&LAUNCHER);
    let agent = place.agent.as_ref().unwrap().id();
    assert_eq!(opened(&place, agent), "refused");
    assert_eq!(core(agent), ["0"; 2]);
    // Where BPF LSM programs run, they keep it from the other one too, which is not the workload's.
    let status = place.status();
    let mut layers = status["layers"].as_array().unwrap().iter();
    let second = layers.find(|layer| layer["name"] == "ptrace_access_check");
    let other = match second.unwrap()["enforcing"] == true {
        true => "refused",
        false => "opened",
    };
    assert_eq!(opened(&place, beside.id()), other);
    assert_eq!(core(beside.id()), ["unlimited"; 2]);
}

/// Whoever starts the agent anew is not to wait for it.
#[test]
fn who_reads_a_file_for_the_agent_ends_with_it() {
    let place = Place::new();
    let path = place.path("long");
    // Long enough to be met while it is read.
    fs::File::create(&path).unwrap().set_len(2 << 30).unwrap();
    let file = fs::metadata(&path).unwrap();
    let device = rustix::fs::major(file.dev()) << 20 | rustix::fs::minor(file.dev());
    let program = harness::agent::program().unwrap();
    let script = format!(
        "{} content {} {device} {} {} {} $$ & echo $!; wait",
        program.display(),
        path.display(),
        file.ino(),
        file.ctime(),
        file.ctime_nsec()
    );
    let mut agent = Command::new("sh")
        .args(["-c", &script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(agent.stdout.take().unwrap()).lines();
    let reader: i32 = said.next().unwrap().unwrap().parse().unwrap();
    let reads = || {
        let files = fs::read_dir(format!("/proc/{reader}/fd")).ok()?;
        let mut files = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        files.any(|file| file == path).then_some(())
    };
    let met = eventually(START, reads).is_some();
    let reader = Pid::from_raw(reader).unwrap();
    // Not to be done before.
    let stopped = kill_process(reader, Signal::STOP);
    agent.kill().unwrap();
    agent.wait().unwrap();
    // Who adopted it may never ask how it ended.
    let status = format!("/proc/{}/status", reader.as_raw_nonzero());
    let gone = || {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let is_gone = status.is_empty() || status.contains("State:\tZ");
        is_gone.then_some(())
    };
    let ended = eventually(Duration::from_secs(10), gone).is_some();
    let _ = kill_process(reader, Signal::KILL);
    assert!(met && stopped.is_ok(), "it did not read: {stopped:?}");
    assert!(ended, "it is there still");
}
