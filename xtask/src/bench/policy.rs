//! `cargo xtask bench policy`: how fast and how large the policy crate is, against its goals.
use super::table::{Figure, Goal, Line, Unit, report};
use crate::sh;
use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// How long to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds per figure.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
}

/// Times by criterion's name of them.
const TIMES: &[(&str, &str, Goal)] = &[
    ("decide, allowed, 10 rules", "allow/10", Goal::None),
    ("decide, allowed, 1000 rules", "allow/1000", Goal::None),
    (
        "decide, allowed, 10000 rules",
        "allow/10000",
        Goal::Below(1e3),
    ),
    (
        "decide, denied by a rule, 10000 rules",
        "deny/10000",
        Goal::None,
    ),
    (
        "decide, no rule has it, 10000 rules",
        "miss/10000",
        Goal::None,
    ),
    (
        "canonical form and decide, 10000 rules",
        "parse_and_allow/10000",
        Goal::None,
    ),
    (
        "decide, 4 KiB body, 20 fields",
        "body/10000",
        Goal::Below(10e3),
    ),
    ("compile, 1000 rules", "compile/1000", Goal::None),
    ("compile, 10000 rules", "compile/10000", Goal::Below(200e6)),
    (
        "1000 rules, the same for cedar-policy",
        "beside/tollgate",
        Goal::None,
    ),
    (
        "cedar-policy, request made beforehand",
        "beside/cedar",
        Goal::None,
    ),
    (
        "1000 rules, from the request's text",
        "beside/tollgate_from_text",
        Goal::None,
    ),
    (
        "cedar-policy, from the request's text",
        "beside/cedar_from_text",
        Goal::None,
    ),
];

/// Builds, measures, prints one table; fails if a goal is missed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let folder = sh::root().join("target/bench");
    let criterion = folder.join("criterion");
    let mut progress = sh::Progress::new(3);
    progress.step("build (optimised: several minutes the first time)");
    sh::run(bench(&["--no-run"]))?;
    progress.step("count allocations");
    let counted = counted()?;
    progress.step("measure CPU time");
    let seconds = args.seconds.to_string();
    let mut timed = bench(&["--bench", "policy", "--", "--noplot"]);
    timed
        .args(["--warm-up-time", "1", "--measurement-time", &seconds])
        .env("CRITERION_HOME", &criterion);
    let log = folder.join("policy.log");
    std::fs::create_dir_all(&folder)?;
    let said = std::fs::File::create(&log)?;
    timed.stdout(said.try_clone()?).stderr(said);
    sh::run(timed).with_context(|| format!("what it said is in {}", log.display()))?;

    report(&lines(&criterion, &counted)?, "policy")
}

fn bench(more: &[&str]) -> std::process::Command {
    let mut cargo = sh::command("cargo");
    cargo
        .args(["bench", "--quiet", "--locked"])
        .args(["--package", "tollgate-policy-bench"])
        .args(more);
    cargo
}

/// What the counting bench says.
fn counted() -> Result<Value> {
    let output = sh::output(bench(&["--bench", "counted"]))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().rev().find(|line| line.starts_with('{'));
    let line = line.ok_or_else(|| {
        let fault = String::from_utf8_lossy(&output.stderr);
        anyhow!("the counting bench failed: {}", fault.trim())
    })?;
    Ok(serde_json::from_str(line)?)
}

fn lines(criterion: &Path, counted: &Value) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (name, id, goal) in TIMES {
        lines.push(Line {
            name,
            figure: estimate(criterion, id)?,
            unit: Unit::Nanoseconds,
            goal: *goal,
        });
    }
    let (few, many) = (
        estimate(criterion, "allow/10")?,
        estimate(criterion, "allow/10000")?,
    );
    lines.push(Line {
        name: "10000 rules compared to 10",
        figure: many.over(few),
        unit: Unit::Times,
        goal: Goal::AtMost(2.0),
    });
    let (ours, theirs) = (
        estimate(criterion, "beside/tollgate")?,
        estimate(criterion, "beside/cedar")?,
    );
    lines.push(Line {
        name: "cedar-policy compared to us",
        figure: theirs.over(ours),
        unit: Unit::Times,
        goal: Goal::None,
    });
    let counts = [
        (
            "allocations, allowed without a body",
            "allow_allocations",
            Unit::Count,
            Goal::AtMost(0.0),
        ),
        (
            "allocations, 4 KiB body",
            "body_allocations",
            Unit::Count,
            Goal::None,
        ),
        (
            "memory per rule, 10000 rules",
            "bytes_per_rule",
            Unit::Bytes,
            Goal::Below(1024.0),
        ),
        (
            "memory while compiling, at most",
            "compile_peak_bytes",
            Unit::Bytes,
            Goal::None,
        ),
    ];
    for (name, key, unit, goal) in counts {
        let value = counted.get(key).and_then(Value::as_f64);
        let value = value.with_context(|| format!("the counting bench says no {key}"))?;
        lines.push(Line {
            name,
            figure: Figure {
                value,
                least: value,
                most: value,
            },
            unit,
            goal,
        });
    }
    Ok(lines)
}

/// Criterion's estimate of a median and its 95 % interval.
fn estimate(criterion: &Path, id: &str) -> Result<Figure> {
    let path: PathBuf = criterion.join(id).join("new/estimates.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("criterion left no {}", path.display()))?;
    let estimates: Value = serde_json::from_str(&text)?;
    let number = |pointer: &str| {
        let found = estimates.pointer(pointer).and_then(Value::as_f64);
        found.with_context(|| format!("{} has no {pointer}", path.display()))
    };
    Ok(Figure {
        value: number("/median/point_estimate")?,
        least: number("/median/confidence_interval/lower_bound")?,
        most: number("/median/confidence_interval/upper_bound")?,
    })
}
