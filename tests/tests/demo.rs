//! The story of `cargo xtask demo` holds, and leaves nothing behind however it ends.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use harness::client::Running;
use rustix::process::Signal;
use std::process::{Command, Stdio};
use std::time::Duration;

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.env("NO_COLOR", "1");
    command
}

/// Directories of worlds that this process made.
fn standing(pid: u32) -> Vec<std::path::PathBuf> {
    let prefix = format!("tollgate-world-{pid}-");
    let entries = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let ours = entries.filter(|e| e.file_name().to_string_lossy().starts_with(&prefix));
    ours.map(|entry| entry.path()).collect()
}

#[test]
fn every_step_of_the_story_is_as_told() {
    let output = demo().stdin(Stdio::null()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let fault = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{fault}");
    assert!(told.contains("all as told"), "{told}");
    assert!(
        !told.contains('\x1b'),
        "no colour where there is no terminal"
    );
}

#[test]
fn kept_it_runs_until_a_signal_and_then_leaves_nothing() {
    let mut command = demo();
    command.arg("--keep");
    let mut demo = Running::start(command).unwrap();
    let found = std::iter::from_fn(|| demo.line(Duration::from_secs(60)).ok())
        .find(|line| line == "Ctrl-C ends it.");
    assert!(found.is_some(), "{}", demo.complaint());
    assert_eq!(standing(demo.pid()).len(), 1);
    demo.signal(Signal::INT).unwrap();
    let status = demo.wait(Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(standing(demo.pid()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn in_the_middle_a_signal_ends_it_without_a_word_and_leaves_nothing() {
    let mut demo = Running::start(demo()).unwrap();
    let found = std::iter::from_fn(|| demo.line(Duration::from_secs(60)).ok())
        .find(|line| line.contains("Under Tollgate the same call passes"));
    assert!(found.is_some(), "{}", demo.complaint());
    demo.signal(Signal::TERM).unwrap();
    let status = demo.wait(Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(143));
    assert_eq!(demo.complaint(), "no complaint");
    assert_eq!(standing(demo.pid()), Vec::<std::path::PathBuf>::new());
}
