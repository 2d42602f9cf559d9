//! Deals tests to the machines that share them: who is done with what it has asks for more, so that all are done at about
//! the same time, whatever each test takes.
use super::answer;
use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Bytes of a line, at most: a terminal takes 4096.
const LINE: usize = 3_000;

/// All tests that nobody has been given yet; those at the end are given first.
pub(super) struct Deck {
    left: Mutex<Vec<Test>>,
}

struct Test {
    program: &'static str,
    name: String,
}

/// Tests of one program.
pub(super) struct Hand {
    pub(super) program: &'static str,
    tests: Vec<String>,
}

impl Deck {
    /// The tests of `programs` whose names contain `filter`, as the programs themselves list them, but those that begin as something that
    /// is `left_out` does, `program test`; `built`: where they are.
    pub(super) fn of(
        built: &[(String, PathBuf)],
        programs: &[&'static str],
        filter: Option<&str>,
        left_out: &[&str],
    ) -> Result<Self> {
        let mut left = Vec::new();
        for program in programs {
            let path = built.iter().find(|(name, _)| name == program);
            let (_, path) = path.with_context(|| format!("{program} is not built"))?;
            let mut list = Command::new(path);
            list.args(["--list", "--format", "terse"]);
            list.args(filter);
            let listed = answer(list)?;
            let names = listed
                .lines()
                .filter_map(|line| line.strip_suffix(": test"))
                .filter(|name| {
                    let named = format!("{program} {name}");
                    !left_out.iter().any(|begin| named.starts_with(begin))
                });
            left.extend(names.map(|name| Test {
                program,
                name: name.to_owned(),
            }));
        }
        if left.is_empty() && filter.is_none() {
            bail!("there are no tests for the machines");
        }
        Ok(Self {
            left: Mutex::new(left),
        })
    }

    /// What one of `machines` gets that asks. The more are left the larger, since each start of a program takes a moment;
    /// in the end one at a time.
    pub(super) fn hand(&self, machines: u32) -> Option<Hand> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let count = left.len() / (4 * machines as usize);
        let Test { program, name } = left.pop()?;
        let mut hand = Hand {
            program,
            tests: vec![name],
        };
        while hand.tests.len() < count {
            let Some(test) = left.pop_if(|test| hand.takes(test)) else {
                break;
            };
            hand.tests.push(test.name);
        }
        Some(hand)
    }

    /// How many nobody asked for.
    pub(super) fn left(&self) -> usize {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.len()
    }
}

impl Hand {
    fn takes(&self, test: &Test) -> bool {
        test.program == self.program && self.line().len() + test.name.len() < LINE
    }

    /// The program and its tests, with spaces between them.
    pub(super) fn line(&self) -> String {
        format!("{} {}", self.program, self.tests.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deck(counts: &[(&'static str, usize)]) -> Deck {
        let tests = counts.iter().flat_map(|&(program, count)| {
            (0..count).map(move |number| Test {
                program,
                name: format!("t{number}"),
            })
        });
        Deck {
            left: Mutex::new(tests.collect()),
        }
    }

    #[test]
    fn each_test_is_dealt_once_and_ever_fewer_at_a_time() {
        let deck = deck(&[("kernel", 120), ("installed", 7)]);
        let hands: Vec<Hand> = std::iter::from_fn(|| deck.hand(3)).collect();
        assert_eq!(hands.first().map(|hand| hand.program), Some("installed"));
        assert_eq!(hands.last().map(Hand::line), Some("kernel t0".to_owned()));
        let sizes = hands.iter().skip(1).map(|hand| hand.tests.len());
        assert!(sizes.clone().is_sorted_by(|a, b| a >= b));
        let mut dealt: Vec<String> = hands
            .iter()
            .flat_map(|hand| {
                hand.tests
                    .iter()
                    .map(|test| format!("{} {test}", hand.program))
            })
            .collect();
        dealt.sort();
        dealt.dedup();
        assert_eq!((dealt.len(), deck.left()), (127, 0));
    }

    #[test]
    fn a_hand_fits_a_line() {
        let deck = deck(&[("kernel", 100_000)]);
        let line = deck.hand(1).map(|hand| hand.line());
        assert!(line.is_some_and(|line| (LINE / 2..LINE).contains(&line.len())));
    }
}
