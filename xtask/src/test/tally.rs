//! What tests print, and what they came to.
use crate::sh;
use anyhow::Result;

/// What the tests came to.
#[derive(Default)]
pub(crate) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
    ignored: u64,
    failures: Vec<String>,
}

/// One test program, as far as it has been read.
pub(crate) struct Reading {
    name: String,
    summed: bool,
    failed: u64,
}

impl Reading {
    /// Of a program with this name.
    pub(crate) fn of(name: String) -> Self {
        Self {
            name,
            summed: false,
            failed: 0,
        }
    }

    /// Its next line.
    pub(crate) fn line(&mut self, line: &str, tally: &mut Tally) {
        // Passing tests say nothing: what is left to read is what matters.
        let dull = line.is_empty() || line.ends_with("... ok") || line.starts_with("running ");
        if !dull {
            println!("        {line}");
        }
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.summed = true;
            tally.passed += count(summary, "passed");
            self.failed += count(summary, "failed");
            tally.ignored += count(summary, "ignored");
        } else if let Some(test) = line
            .strip_prefix("test ")
            .and_then(|l| l.strip_suffix(" ... FAILED"))
        {
            tally.failures.push(format!("{}: {test}", self.name));
        }
    }

    /// Its end.
    pub(crate) fn end(self, succeeded: bool, tally: &mut Tally) {
        tally.failed += self.failed;
        if !self.summed || (!succeeded && self.failed == 0) {
            tally.fail(format!("{}: ended before its summary", self.name));
        }
    }
}

impl Tally {
    /// Counts a failure that is no test's own.
    pub(crate) fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(what);
    }

    /// Takes in what others came to.
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.failures.extend(other.failures);
    }

    /// Prints the summary; its last line is the count.
    pub(crate) fn report(self) -> Result<()> {
        for failure in &self.failures {
            println!("{} {failure}", sh::paint("31", "FAILED"));
        }
        if self.ignored > 0 {
            println!("marked as ignored, not run by themselves: {}", self.ignored);
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed > 0 {
            sh::exit_quietly();
        }
        Ok(())
    }
}

/// The number before `word` in `ok. 3 passed; 0 failed; …`.
pub(super) fn count(summary: &str, word: &str) -> u64 {
    let words: Vec<_> = summary
        .split([' ', ';'])
        .filter(|w| !w.is_empty())
        .collect();
    words
        .windows(2)
        .find_map(|pair| match pair {
            [number, name] if *name == word => number.parse().ok(),
            _ => None,
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_counted() {
        let summary =
            "FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.1s";
        assert_eq!(count(summary, "passed"), 12);
        assert_eq!(count(summary, "failed"), 3);
        assert_eq!(count(summary, "ignored"), 1);
        assert_eq!(count("", "passed"), 0);
    }

    #[test]
    fn a_program_that_ends_without_a_summary_has_failed() {
        let mut tally = Tally::default();
        let mut reading = Reading::of("x".to_owned());
        reading.line("test a ... ok", &mut tally);
        reading.end(true, &mut tally);
        assert_eq!(tally.failed, 1);
        let mut reading = Reading::of("y".to_owned());
        reading.line("test result: ok. 1 passed; 0 failed; 0 ignored", &mut tally);
        reading.end(true, &mut tally);
        assert_eq!((tally.passed, tally.failed), (1, 1));
    }
}
