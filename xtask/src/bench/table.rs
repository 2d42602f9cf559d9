//! Figures beside their goals, in one table.
use crate::sh;
use anyhow::{Result, bail};
use serde_json::{Value, json};
use std::path::Path;

/// What a figure is held against.
#[derive(Clone, Copy)]
pub(super) enum Goal {
    /// Less than this.
    Below(f64),
    /// At most this.
    AtMost(f64),
    /// Shown for comparison only.
    None,
}

/// What a figure counts.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    Nanoseconds,
    Times,
    Bytes,
    Count,
}

/// A figure, with the least and most that it may be but for noise.
#[derive(Clone, Copy)]
pub(super) struct Figure {
    pub(super) value: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// One line of the table.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) figure: Figure,
    pub(super) unit: Unit,
    pub(super) goal: Goal,
}

/// What becomes of a goal.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Met,
    WithinNoise,
    Missed,
    NoGoal,
}

impl Figure {
    /// One divided by another.
    pub(super) fn over(self, other: Self) -> Self {
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
    let names = lines.iter().map(|line| line.name.len());
    let width = names.max().unwrap_or_default();
    println!(
        "{:<width$} {:>12} {:>13}  result",
        "figure", "measured", "goal"
    );
    for line in lines {
        let result = line.result();
        let colour = match result {
            Verdict::Met | Verdict::NoGoal => "32",
            Verdict::WithinNoise => "33",
            Verdict::Missed => "31",
        };
        println!(
            "{:<width$} {:>12} {:>13}  {}",
            line.name,
            line.unit.show(line.figure.value),
            line.goal(),
            sh::paint(colour, result.word())
        );
    }
}

/// Writes the figures to `target/bench/NAME.json`, prints them, and fails if a goal is missed.
pub(super) fn report(lines: &[Line], name: &str) -> Result<()> {
    let report = sh::root().join("target/bench").join(format!("{name}.json"));
    let told: Vec<_> = lines.iter().map(Line::json).collect();
    std::fs::write(&report, serde_json::to_string_pretty(&told)? + "\n")?;
    print(lines);
    println!("also in {}", shown(&report));
    let missed = lines.iter().filter(|line| line.result() == Verdict::Missed);
    match missed.count() {
        0 => Ok(()),
        1 => bail!("a goal is missed"),
        missed => bail!("{missed} goals are missed"),
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
