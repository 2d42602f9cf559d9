//! How the story is told: a title, what is typed, what comes back, what was checked.
use anyhow::{Result, bail};
use std::fmt::Debug;
use std::io::IsTerminal as _;

/// Longest line of output that is shown whole.
const WIDTH: usize = 160;

/// The teller; counts what it has checked.
#[derive(Debug)]
pub(crate) struct Story {
    colour: bool,
    step: u32,
    checks: u32,
}

impl Story {
    pub(crate) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            colour: wanted && std::io::stdout().is_terminal(),
            step: 0,
            checks: 0,
        }
    }

    fn paint(&self, sgr: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{sgr}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// A step begins.
    pub(crate) fn step(&mut self, title: &str) {
        self.step += 1;
        println!(
            "\n{}",
            self.paint("1", &format!("{:>2}. {title}", self.step))
        );
    }

    /// What a person would have to know before.
    pub(crate) fn say(&self, text: &str) {
        println!("    {text}");
    }

    /// What is typed at a shell.
    pub(crate) fn types(&self, command: &str) {
        println!(
            "    {} {}",
            self.paint("36", "$"),
            self.paint("36", command)
        );
    }

    /// What a program that runs already is told.
    pub(crate) fn tells(&self, program: &str, what: &str) {
        println!(
            "    {} {}",
            self.paint("36", &format!("{program} ›")),
            self.paint("36", what)
        );
    }

    /// What came back.
    pub(crate) fn shows(&self, output: &str) {
        for line in output.lines().filter(|line| !line.trim().is_empty()) {
            let mut shown: String = line.chars().take(WIDTH).collect();
            if shown.len() < line.len() {
                shown.push('…');
            }
            println!("      {}", self.paint("2", &shown));
        }
    }

    /// Checks that something is so; the story ends here if it is not.
    pub(crate) fn check(&mut self, what: &str, holds: bool, found: impl Debug) -> Result<()> {
        if !holds {
            println!("    {} {what}", self.paint("31", "✗"));
            bail!(
                "step {}: it should be so that {what}; found {found:#?}",
                self.step
            );
        }
        self.checks += 1;
        println!("    {} {what}", self.paint("32", "✓"));
        Ok(())
    }

    /// Checks that two things are equal.
    pub(crate) fn equal<T: PartialEq + Debug>(
        &mut self,
        what: &str,
        found: T,
        wanted: T,
    ) -> Result<()> {
        self.check(what, found == wanted, (found, "instead of", wanted))
    }

    /// The end.
    pub(crate) fn ends(&self, took: std::time::Duration) {
        let line = format!(
            "{} steps, {} checks, all as told, in {:.0} s.",
            self.step,
            self.checks,
            took.as_secs_f64()
        );
        println!("\n{}", self.paint("1;32", &line));
    }
}
