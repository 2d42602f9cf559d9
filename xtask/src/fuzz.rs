//! `cargo xtask fuzz`: libFuzzer on the policy crate's entries.
//!
//! Coverage comes from the compiler's own flags, so that a stable toolchain does; there is no address
//! sanitizer, since the crate forbids `unsafe`. Corpora, logs and crashes lie under `target/fuzz`.

mod seeds;
mod watch;

use crate::sh;
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::time::Duration;

/// What is fuzzed, with the longest input in bytes.
const TARGETS: &[(&str, u32)] = &[
    ("document", 8 << 10),
    ("compile", 1 << 10),
    ("canonical", 4 << 10),
    ("decide", 4 << 10),
    ("meter", 4 << 10),
];

/// The compiler's flags for libFuzzer's coverage.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";

/// What and how long.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// One of `document`, `compile`, `canonical`, `decide`, `meter`; all of them unless said.
    target: Option<String>,
    /// For each target: `30s`, `10m`, `1h`.
    #[arg(long, default_value = "1m", value_parser = duration)]
    time: Duration,
    /// Targets that run at the same time.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Runs this one input, e.g. a crash that was found, instead of looking for new ones.
    #[arg(long, requires = "target")]
    replay: Option<PathBuf>,
}

/// Where a fuzzing run keeps its things.
fn place(what: &str, target: &str) -> PathBuf {
    sh::root().join("target/fuzz").join(what).join(target)
}

/// Builds the targets and fuzzes; fails if one crashes.
pub(crate) fn run(args: &Args) -> Result<()> {
    let chosen: Vec<_> = TARGETS
        .iter()
        .filter(|(name, _)| args.target.as_deref().is_none_or(|only| only == *name))
        .copied()
        .collect();
    if chosen.is_empty() {
        let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        bail!("there is no such target: one of {}", names.join(", "));
    }
    let mut progress = sh::Progress::new(2);
    progress.step("build with coverage");
    let programs = build()?;
    if let (Some(input), Some((target, _))) = (&args.replay, chosen.first()) {
        progress.step(&format!("replay {target}"));
        let mut program = sh::command(&programs.join(target).to_string_lossy());
        program.arg(std::path::absolute(input)?);
        return sh::run(program);
    }
    let names: Vec<_> = chosen.iter().map(|(name, _)| *name).collect();
    progress.step(&format!("fuzz {}", names.join(", ")));
    for (target, _) in &chosen {
        seeds::gather(target)?;
    }
    watch::run(&programs, &chosen, args.time, usize::from(args.jobs))
}

/// Builds every target; where they lie.
fn build() -> Result<PathBuf> {
    let host = host()?;
    let mut cargo = sh::command("cargo");
    cargo
        .args(["build", "--locked", "--package", "tollgate-policy-fuzz"])
        .args(["--features", "link", "--profile", "fuzz"])
        // Named although it is the host: flags then do not reach build scripts.
        .args(["--target", &host, "--target-dir", "target/fuzz/build"])
        .env("RUSTFLAGS", FLAGS);
    sh::run(cargo)?;
    let below = format!("target/fuzz/build/{host}/fuzz");
    Ok(sh::root().join(below))
}

/// The compiler's own target triple.
fn host() -> Result<String> {
    let mut rustc = sh::command("rustc");
    rustc.arg("-vV");
    let said = String::from_utf8(sh::output(rustc)?.stdout)?;
    let line = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("`rustc -vV` names no host")?.to_owned())
}

/// `30s`, `10m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a time is a number of `s`, `m` or `h`, e.g. `10m`".to_owned();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let number = text.strip_suffix(unit).and_then(|n| n.parse::<u32>().ok());
    let scale = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        _ => return Err(wrong()),
    };
    let seconds = number.ok_or_else(wrong)?.checked_mul(scale);
    let seconds = seconds.filter(|seconds| (1..=7 * 86_400).contains(seconds));
    seconds
        .map(|seconds| Duration::from_secs(seconds.into()))
        .ok_or_else(|| "a time is from one second to a week".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3_600)));
        for wrong in ["", "h", "1", "0s", "1d", "-1s", "9999999h", "1é"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
