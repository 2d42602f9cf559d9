//! Budgets: held by the kernel, shown by `usage`, told to whoever runs into them, and kept.
use crate::support::*;
use harness::{at_most, eventually};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

fn limited(limit: &str) -> String {
    format!(
        "{POLICY}budgets:\n  small: {{ for: {{ workload: job }}, limits: {{ bytes: {limit} }} }}\n"
    )
}

fn usage(place: &Place) -> Vec<Value> {
    let output = place.output(&["usage", "-o", "json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn spent(place: &Place) -> u64 {
    usage(place)[0]["spent"].as_u64().unwrap()
}

/// A day's budget begins anew at midnight, UTC; what is spent before is not to be looked for after.
fn not_at_midnight() {
    let left = 86_400 - jiff::Timestamp::now().as_second().rem_euclid(86_400);
    if left < 60 {
        std::thread::sleep(Duration::from_secs(left.unsigned_abs() + 1));
    }
}

#[test]
fn what_is_spent_is_shown_and_refused_and_kept() {
    not_at_midnight();
    let mut place = Place::new();
    place.write_policy(&limited("1MiB/day"));
    place.start();
    assert_eq!(spent(&place), 0);
    assert_eq!(place.ask(), forbidden());
    let first = spent(&place);
    assert!(first > 300, "{first}");
    let shown = text(&place.output(&["usage"]).stdout);
    for word in ["BUDGET", "small", "job", "1.0 MiB/day"] {
        assert!(shown.contains(word), "{word} in {shown}");
    }

    // Neither an end without a word nor an orderly one forgets anything.
    for signal in [Signal::KILL, Signal::TERM] {
        place.end(signal);
        place.start();
        assert_eq!(spent(&place), first);
    }
    // The host is rebooted, which takes the maps with it: what was written down counts.
    place.end(Signal::TERM);
    fs::remove_dir_all(format!("/sys/fs/bpf/{}", place.name)).unwrap();
    place.start();
    assert_eq!(spent(&place), first);

    // Less than was spent: refused at once, and told so. More: it goes on.
    place.write_policy(&limited("300/day"));
    assert!(place.output(&["reload"]).status.success());
    assert_eq!(usage(&place)[0]["left"], 0);
    let (code, said) = place.ask();
    assert_eq!((code, &*said), (7, "000"));
    let told = eventually(Duration::from_secs(5), || {
        (place.on_disk("\"quota\"") > 0).then_some(())
    });
    assert!(told.is_some(), "no record of the refusal");
    place.write_policy(&limited("1MiB/day"));
    assert!(place.output(&["reload"]).status.success());
    assert_eq!(place.ask(), forbidden());
    let before = spent(&place);
    place.write_policy(POLICY);
    assert!(place.output(&["reload"]).status.success());
    assert!(usage(&place).is_empty());
    // Taken out and put in again it is the same one.
    place.write_policy(&limited("1MiB/day"));
    assert!(place.output(&["reload"]).status.success());
    assert_eq!(spent(&place), before);
}

/// The host goes down without a word, and takes the maps with it: what was counted since the last writing is lost, which
/// was five seconds before at most.
#[test]
fn a_host_that_goes_down_forgets_the_last_seconds_and_no_more() {
    not_at_midnight();
    let mut place = Place::new();
    place.write_policy(&limited("1MiB/day"));
    place.start();
    assert_eq!(place.ask(), forbidden());
    let before = spent(&place);
    assert!(before > 300, "{before}");
    std::thread::sleep(at_most(Duration::from_secs(6)));
    assert_eq!(place.ask(), forbidden());
    let last = spent(&place);
    assert!(last > before, "{last}");
    place.end(Signal::KILL);
    fs::remove_dir_all(format!("/sys/fs/bpf/{}", place.name)).unwrap();
    place.start();
    let kept = spent(&place);
    assert!((before..=last).contains(&kept), "{before} {kept} {last}");
}

/// Bytes sent, and received.
const TRANSFER: usize = 1_000_000;

/// A server that takes what comes and then gives as much back.
fn mirror(ip: &str) -> SocketAddr {
    let listener = std::net::TcpListener::bind((ip, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut body = vec![0; TRANSFER];
            if (&stream).read_exact(&mut body).is_ok() {
                let _ = (&stream).write_all(&body);
            }
        }
    });
    at
}

/// In the middle of a transfer the client is told at once, instead of waiting for what never comes.
#[test]
fn a_transfer_that_runs_into_the_limit_is_reset() {
    for ip in ["127.0.0.1", "::1"] {
        is_reset_at_the_limit(mirror(ip));
    }
}

fn is_reset_at_the_limit(server: SocketAddr) {
    let mut place = Place::new();
    let (ip, port) = (server.ip(), server.port());
    let policy = |limit: &str| {
        let roles = format!(
            "roles:\n  echo: [{{ api: mirror }}]\napis:\n  mirror: {{ tcp: [\"{server}\"] }}"
        );
        let grants = "grants:\n  - { role: echo, to: { workload: job } }";
        let budgets = format!(
            "budgets:\n  small: {{ for: {{ workload: job }}, limits: {{ bytes: {limit} }} }}"
        );
        format!(
            "version: 1\nworkloads:\n  job: {{ match: {{ cgroup: \"CGROUP/**\" }} }}\n{roles}\n{grants}\n{budgets}\n"
        )
    };
    place.write_policy(&policy("1GiB/day"));
    place.start();
    let transfer = format!(
        "
import socket, time
begin = time.monotonic()
s = socket.create_connection(('{ip}', {port})); s.settimeout(20)
n = 0
try:
    s.sendall(bytes({TRANSFER}))
    while True:
        d = s.recv(65536)
        if not d: break
        n += len(d)
    print('whole', n)
except OSError as e: print(type(e).__name__, n > 300000, time.monotonic() - begin < 15)
"
    );
    let transfers = |limit: &str| {
        place.write_policy(&policy(limit));
        assert!(place.output(&["reload"]).status.success());
        let output = place.in_job("python3", &["-c", &transfer]);
        text(&output.stdout).trim().to_owned()
    };
    assert_eq!(transfers("1GiB/day"), "whole 1000000", "{ip}");
    // What was spent by then is a little more than 2 MB: enough for half of what goes, or for half of what comes back.
    let sending = transfers("2400KiB/day");
    assert!(
        [
            "ConnectionResetError False True",
            "BrokenPipeError False True"
        ]
        .contains(&&*sending),
        "{sending}"
    );
    assert_eq!(transfers("4MiB/day"), "ConnectionResetError True True");
    let told = eventually(Duration::from_secs(5), || {
        (place.on_disk("\"LIMIT\"") >= 2).then_some(())
    });
    assert!(told.is_some(), "the resets are not on record");
    assert_eq!(transfers("1GiB/day"), "whole 1000000");
}

/// What was spent cannot be known: until the window ends there is nothing left, and `status` says why.
#[test]
fn a_ledger_that_cannot_be_read_is_told_and_counts_as_spent() {
    not_at_midnight();
    let mut place = Place::new();
    let budgets = "budgets:\n  few: { for: { workload: job }, limits: { requests: 5/day } }\n";
    place.write_policy(&format!("{POLICY}{budgets}"));
    place.start();
    let unread = |place: &Place| {
        let status = place.status();
        let modes = status["fail_modes"].as_array().unwrap();
        let mut modes = modes.iter();
        let of_ledger = |mode: &&Value| mode["when"].as_str().unwrap().contains("cannot be read");
        modes.find(of_ledger).unwrap()["now"].as_bool().unwrap()
    };
    let files = ["run/budgets.ledger", "state/budgets.ledger"].map(|file| place.path(file));
    assert_eq!((spent(&place), unread(&place)), (0, false));
    place.end(Signal::TERM);
    fs::write(&files[0], "no ledger").unwrap();
    place.start();
    assert_eq!((spent(&place), unread(&place)), (5, true));
    place.end(Signal::TERM);
    // A reboot, which takes what is in memory, finds the copy.
    fs::remove_file(&files[0]).unwrap();
    place.start();
    assert_eq!((spent(&place), unread(&place)), (5, false));
    place.end(Signal::TERM);
    for file in &files {
        fs::remove_file(file).unwrap();
    }
    place.start();
    assert_eq!((spent(&place), unread(&place)), (0, false));
}

/// The same of bytes, which the kernel counts: it is asked what it knows, and after a reboot knows nothing.
#[test]
fn bytes_of_which_nothing_can_be_read_count_as_spent() {
    not_at_midnight();
    let mut place = Place::new();
    place.write_policy(&limited("1MiB/day"));
    place.start();
    assert_eq!(place.ask(), forbidden());
    let first = spent(&place);
    for (rebooted, expected) in [(false, first), (true, 1 << 20)] {
        place.end(Signal::TERM);
        fs::write(place.path("state/usage.json"), "[{").unwrap();
        if rebooted {
            fs::remove_dir_all(format!("/sys/fs/bpf/{}", place.name)).unwrap();
        }
        place.start();
        assert_eq!(spent(&place), expected);
    }
    let (code, said) = place.ask();
    assert_eq!((code, &*said), (7, "000"));
    assert_eq!(place.output(&["status"]).status.code(), Some(1));
}
