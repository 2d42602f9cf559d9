//! `cargo xtask bench policy`: how fast and how large the policy crate is, against its goals.
use crate::sh;
use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// How long to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seconds per figure.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
}

/// What a figure is held against.
#[derive(Clone, Copy)]
enum Goal {
    /// Less than this.
    Below(f64),
    /// At most this.
    AtMost(f64),
    /// Shown for comparison only.
    None,
}

/// What a figure counts.
#[derive(Clone, Copy)]
enum Unit {
    Nanoseconds,
    Times,
    Bytes,
    Count,
}

/// A figure, with the least and most that it may be but for noise.
#[derive(Clone, Copy)]
struct Figure {
    value: f64,
    least: f64,
    most: f64,
}

/// One line of the table.
struct Line {
    name: &'static str,
    figure: Figure,
    unit: Unit,
    goal: Goal,
}

/// What becomes of a goal.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Met,
    WithinNoise,
    Missed,
    NoGoal,
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

    let lines = lines(&criterion, &counted)?;
    let report = folder.join("policy.json");
    let told: Vec<_> = lines.iter().map(Line::json).collect();
    std::fs::write(&report, serde_json::to_string_pretty(&told)? + "\n")?;
    print(&lines);
    println!("also in {}", shown(&report));
    let missed = lines.iter().filter(|line| line.result() == Verdict::Missed);
    match missed.count() {
        0 => Ok(()),
        missed => bail!("{missed} goals are missed"),
    }
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

impl Figure {
    fn over(self, other: Self) -> Self {
        Self {
            value: self.value / other.value,
            least: self.least / other.most,
            most: self.most / other.least,
        }
    }
}

impl Line {
    fn result(&self) -> Verdict {
        let holds = |value: f64| match self.goal {
            Goal::Below(goal) => value < goal,
            Goal::AtMost(goal) => value <= goal,
            Goal::None => true,
        };
        match self.goal {
            Goal::None => Verdict::NoGoal,
            _ if holds(self.figure.value) => Verdict::Met,
            _ if holds(self.figure.least) => Verdict::WithinNoise,
            _ => Verdict::Missed,
        }
    }

    fn goal(&self) -> String {
        match self.goal {
            Goal::Below(goal) => format!("< {}", self.unit.show(goal)),
            Goal::AtMost(goal) => format!("<= {}", self.unit.show(goal)),
            Goal::None => String::new(),
        }
    }

    fn json(&self) -> Value {
        let (goal, inclusive) = match self.goal {
            Goal::Below(goal) => (Some(goal), Some(false)),
            Goal::AtMost(goal) => (Some(goal), Some(true)),
            Goal::None => (None, None),
        };
        let unit = match self.unit {
            Unit::Nanoseconds => "ns",
            Unit::Times => "times",
            Unit::Bytes => "bytes",
            Unit::Count => "count",
        };
        json!({
            "figure": self.name, "value": self.figure.value, "least": self.figure.least,
            "most": self.figure.most, "unit": unit, "goal": goal, "goal_itself_is_met": inclusive,
            "result": self.result().word(),
        })
    }
}

impl Verdict {
    fn word(&self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::WithinNoise => "within noise",
            Self::Missed => "MISSED",
            Self::NoGoal => "",
        }
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        let scaled = |value: f64, units: &[(f64, &str)]| {
            let (scale, unit) = units
                .iter()
                .find(|(scale, _)| value >= *scale)
                .or(units.last())
                .copied()
                .unwrap_or((1.0, ""));
            let value = value / scale;
            let digits = if value < 100.0 && scale > 1.0 { 2 } else { 0 };
            format!("{value:.digits$} {unit}")
        };
        match self {
            Self::Nanoseconds => scaled(value, &[(1e6, "ms"), (1e3, "us"), (1.0, "ns")]),
            Self::Bytes => scaled(value, &[(1_048_576.0, "MiB"), (1.0, "B")]),
            Self::Times => format!("{value:.2} times"),
            Self::Count => format!("{value}"),
        }
    }
}

fn print(lines: &[Line]) {
    println!("{:<40} {:>12} {:>12}  result", "figure", "measured", "goal");
    for line in lines {
        let result = line.result();
        let colour = match result {
            Verdict::Met | Verdict::NoGoal => "32",
            Verdict::WithinNoise => "33",
            Verdict::Missed => "31",
        };
        println!(
            "{:<40} {:>12} {:>12}  {}",
            line.name,
            line.unit.show(line.figure.value),
            line.goal(),
            sh::paint(colour, result.word())
        );
    }
}

fn shown(path: &Path) -> String {
    let below = path.strip_prefix(sh::root()).unwrap_or(path);
    below.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(value: f64, least: f64, goal: Goal) -> Line {
        Line {
            name: "x",
            figure: Figure {
                value,
                least,
                most: value,
            },
            unit: Unit::Nanoseconds,
            goal,
        }
    }

    #[test]
    fn goals_are_missed_only_beyond_noise() {
        let result = |value, least, goal| line(value, least, goal).result();
        assert_eq!(result(9.0, 8.0, Goal::Below(10.0)), Verdict::Met);
        assert_eq!(result(10.0, 9.0, Goal::Below(10.0)), Verdict::WithinNoise);
        assert_eq!(result(12.0, 11.0, Goal::Below(10.0)), Verdict::Missed);
        assert_eq!(result(10.0, 10.0, Goal::AtMost(10.0)), Verdict::Met);
        assert_eq!(result(1.0, 1.0, Goal::AtMost(0.0)), Verdict::Missed);
        assert_eq!(result(1.0, 1.0, Goal::None), Verdict::NoGoal);
    }

    #[test]
    fn figures_are_shown_in_their_unit() {
        assert_eq!(Unit::Nanoseconds.show(1_500.0), "1.50 us");
        assert_eq!(Unit::Nanoseconds.show(200e6), "200 ms");
        assert_eq!(Unit::Nanoseconds.show(312.4), "312 ns");
        assert_eq!(Unit::Bytes.show(1_024.0), "1024 B");
    }
}
