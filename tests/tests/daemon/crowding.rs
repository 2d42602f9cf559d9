//! Users who have the agent read much: nobody else waits for that.
use crate::outside::{GOVERNED, Outside};
use crate::recognising::digest;
use crate::support::*;
use harness::process::Ended;
use harness::{at_most, eventually};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CROWD: u32 = 54_341;
const ANOTHER: u32 = 54_342;
/// Files that take seconds each to be read, and nothing on the disk.
const FILES: usize = 60;
const LENGTH: u64 = (2 << 30) - 1;

/// Programs of one user's of which each asks for what nobody answers, again and again.
fn crowd(directory: &Path, outside: &Outside) -> Vec<Ended> {
    let asks = format!(
        "while :; do : > /dev/tcp/127.0.0.1/{}; sleep 1; done",
        outside.addresses[0].port()
    );
    let run = |n: usize| {
        let program = directory.join(n.to_string());
        fs::copy("/bin/bash", &program).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&program).unwrap();
        file.set_len(LENGTH - n as u64).unwrap();
        drop(file);
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &CROWD.to_string(), "--clear-groups"]);
        command.arg(&program).args(["-c", &asks]);
        command.stdin(Stdio::null()).stderr(Stdio::null());
        Ended(command.spawn().unwrap())
    };
    (0..FILES).map(run).collect()
}

/// What another one runs is recognised as if they were not there.
#[test]
fn one_users_many_large_files_hold_up_nobody_else() {
    let (mut place, outside) = (Place::new(), Outside::new());
    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    let content = place.path("content");
    let mut bytes = fs::read("/usr/bin/curl").unwrap();
    bytes.push(0);
    fs::write(&content, bytes).unwrap();
    fs::set_permissions(&content, fs::Permissions::from_mode(0o755)).unwrap();
    let more = format!(
        "workloads:\n  content: {{ match: {{ sha256: {} }} }}\n",
        digest(&content)
    );
    place.write_policy(&POLICY.replace("workloads:\n", &more));
    place.start();
    let own = place.path("own");
    fs::create_dir(&own).unwrap();
    let crowd = crowd(&own, &outside);
    // Until they have been asked for.
    std::thread::sleep(Duration::from_secs(3));
    let begun = Instant::now();
    let ask = outside.ask(&content.display().to_string());
    let recognised = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &ANOTHER.to_string(), "--clear-groups"]);
        command.args(["sh", "-c", &ask]).stdin(Stdio::null());
        let said = text(&command.output().unwrap().stdout);
        let came = said.matches(&format!(" 0 {GOVERNED}")).count();
        (came == 2).then_some(())
    };
    let seen = eventually(START, recognised);
    let took = begun.elapsed();
    eprintln!("recognised after {took:?}");
    drop(crowd);
    assert!(seen.is_some(), "not recognised");
    assert!(took < at_most(Duration::from_secs(8)), "{took:?}");
}
