//! `cargo xtask bench kernel`: what the fence costs who is governed and who is not, against its goals.
use super::table::{Figure, Goal, Line, Unit, report};
use crate::{build, setup, sh};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// How long to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Rounds, each without and with the fence.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

/// Figures by the name that the bench has for them.
const FIGURES: &[(&str, &str, Unit, Goal)] = &[
    (
        "added to connect(), nobody's, datagram socket",
        "connect_datagram_ungoverned",
        Unit::Nanoseconds,
        Goal::Below(300.0),
    ),
    (
        "added to connect(), nobody's, with its handshake",
        "connect_stream_ungoverned",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "added to connect(), governed, with its handshake",
        "connect_stream_governed",
        Unit::Nanoseconds,
        Goal::Below(2e3),
    ),
    (
        "connect(), nobody's, datagram socket, IPv6",
        "connect_datagram_ungoverned6",
        Unit::Nanoseconds,
        Goal::Below(300.0),
    ),
    (
        "connect(), nobody's, with its handshake, IPv6",
        "connect_stream_ungoverned6",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "connect(), governed, with its handshake, IPv6",
        "connect_stream_governed6",
        Unit::Nanoseconds,
        Goal::Below(2e3),
    ),
    (
        "send(), governed, by all there is, IPv6",
        "send_governed6",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "the same of programs that do nothing, datagram",
        "connect_datagram_empty",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "the same of programs that do nothing, handshake",
        "connect_stream_empty",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "added to send() by accounting",
        "send_accounting",
        Unit::Nanoseconds,
        Goal::Below(50.0),
    ),
    (
        "added to send(), governed, by all there is",
        "send_governed",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "added to send(), nobody's",
        "send_ungoverned",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "bulk transfer, nobody's, CPU time compared to without",
        "bulk_ungoverned",
        Unit::Times,
        Goal::AtMost(1.01),
    ),
    (
        "the same from nginx to curl, time for MB",
        "transfer",
        Unit::Times,
        Goal::AtMost(1.01),
    ),
    (
        "the same from nginx to curl, time for MB, IPv6",
        "transfer6",
        Unit::Times,
        Goal::AtMost(1.01),
    ),
    (
        "the same of programs that do nothing, send()",
        "send_empty",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "the same of programs that do nothing, bulk",
        "bulk_empty",
        Unit::Times,
        Goal::None,
    ),
    (
        "the same of programs that do nothing, time for MB",
        "transfer_empty",
        Unit::Times,
        Goal::None,
    ),
    (
        "the same of programs that do nothing, time for MB, IPv6",
        "transfer_empty6",
        Unit::Times,
        Goal::None,
    ),
    (
        "added to socket(), governed",
        "socket_governed",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "added to close(), governed",
        "close_governed",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "connect() itself, datagram socket",
        "connect_datagram_itself",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "connect() itself, with its handshake",
        "connect_stream_itself",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "send() itself",
        "send_itself",
        Unit::Nanoseconds,
        Goal::None,
    ),
    (
        "bulk transfer without, MB for a second of CPU",
        "bulk_without",
        Unit::Count,
        Goal::None,
    ),
    (
        "bulk transfer with, MB for a second of CPU",
        "bulk_with",
        Unit::Count,
        Goal::None,
    ),
    (
        "bulk transfer from nginx to curl without, MB/s",
        "transfer_without",
        Unit::Count,
        Goal::None,
    ),
    (
        "bulk transfer from nginx to curl with, MB/s",
        "transfer_with",
        Unit::Count,
        Goal::None,
    ),
];

/// Builds, measures, prints one table; fails if a goal is missed.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !sh::is_root() {
        bail!("the bench loads eBPF: run this as root");
    }
    alone()?;
    let mut progress = sh::Progress::new(3);
    progress.step("setup");
    setup::run(setup::Need::Build)?;
    progress.step("build");
    build::run(&build::Args::default())?;
    progress.step("measure");
    std::fs::create_dir_all(sh::root().join("target/bench"))?;
    let mut bench = sh::command("cargo");
    // What is measured is the kernel's: the bench itself need not be optimised.
    bench
        .args(["bench", "--quiet", "--locked", "--profile", "dev"])
        .args(["--package", "tollgate-tests", "--bench", "kernel", "--"])
        .args(["--rounds", &args.rounds.to_string()]);
    let output = sh::output(bench)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().rev().find(|line| line.starts_with('['));
    let Some(line) = line else {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    };
    report(&lines(&serde_json::from_str(line)?)?, "kernel")
}

/// Beside another fence the figures would be wrong: "without" would be with that one, and each hook's own cost paid by it.
fn alone() -> Result<()> {
    let Ok(pins) = std::fs::read_dir("/sys/fs/bpf") else {
        return Ok(());
    };
    let is_fence = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with("tollgate");
    match pins.flatten().find(|pin| is_fence(&pin.file_name())) {
        None => Ok(()),
        Some(pin) => bail!(
            "a fence stands already, and the figures would not be of one alone: stop its agent, or remove {} if that has ended",
            pin.path().display()
        ),
    }
}

fn lines(told: &Value) -> Result<Vec<Line>> {
    let told = told.as_array().context("the bench tells no list")?;
    let figure = |id: &str| {
        let found = told
            .iter()
            .find(|figure| figure.get("figure").is_some_and(|name| name == id));
        let number = |key: &str| found?.get(key)?.as_f64();
        Some(Figure {
            value: number("value")?,
            least: number("least")?,
            most: number("most")?,
        })
    };
    let line = |(name, id, unit, goal): &(&'static str, &str, Unit, Goal)| {
        Ok(Line {
            name,
            figure: figure(id).with_context(|| format!("the bench tells no {id}"))?,
            unit: *unit,
            goal: *goal,
        })
    };
    FIGURES.iter().map(line).collect()
}
