//! What fuzzing feeds: each entry takes any bytes and asserts what must hold for them. The targets in
//! `fuzz/targets` are one line each; the same entries run over `fuzz/seeds` in the crate's own tests.
//!
//! `cargo xtask fuzz` runs them under libFuzzer. An input that once broke something is kept in
//! `fuzz/seeds`, named after what it broke.

mod canonical;
mod decide;
mod draft;
mod meter;
#[cfg(test)]
mod tests;

pub use canonical::canonical;
pub use decide::decide;
pub use meter::meter;

use crate::compile::{Compiled, compile as compile_sources};
use crate::syntax::{Faults, Source};

/// A document longer than this only slows the search for faults.
const LONGEST: usize = 64 << 10;

/// Any bytes as a document: a policy or faults, never anything else.
pub fn document(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if text.len() <= LONGEST {
        check(&[("fuzz.yaml", &text)]);
    }
}

/// A document made from the bytes, in one file and in two: compiles, or every fault can be shown; the
/// same both ways.
pub fn compile(data: &[u8]) {
    let [one, two] = draft::documents(data);
    let apart = check(&[("one.yaml", &one), ("two.yaml", &two)]);
    let turned = check(&[("two.yaml", &two), ("one.yaml", &one)]);
    assert_eq!(
        apart.is_some(),
        turned.is_some(),
        "the order of files matters"
    );
    if let (Some(apart), Some(turned)) = (apart, turned) {
        assert_eq!(apart.policy.hash(), turned.policy.hash());
        let labels = |compiled: &Compiled| -> Vec<_> {
            let rules = compiled.policy.rules.iter();
            rules.map(|rule| rule.public.label.clone()).collect()
        };
        assert_eq!(
            labels(&apart),
            labels(&turned),
            "the order of files matters"
        );
    }
}

/// Compiles; shows every fault or warning, and checks that each points into its text.
fn check(texts: &[(&str, &str)]) -> Option<Compiled> {
    let source = |(name, text): &(&str, &str)| Source {
        name: (*name).into(),
        text: (*text).into(),
    };
    let sources: Vec<Source> = texts.iter().map(source).collect();
    match compile_sources(&sources) {
        Ok(compiled) => {
            assert!(!compiled.warnings.has_errors());
            check_faults(&compiled.warnings, texts);
            Some(compiled)
        }
        Err(faults) => {
            assert!(faults.has_errors(), "refused without a fault");
            check_faults(&faults, texts);
            None
        }
    }
}

fn check_faults(faults: &Faults, texts: &[(&str, &str)]) {
    assert_eq!(faults.to_string().is_empty(), faults.is_empty());
    for fault in faults {
        assert!(!fault.message.is_empty());
        assert!(fault.width >= 1, "{fault}");
        let of = texts.iter().find(|(name, _)| *name == &*fault.at.file);
        // A carriage return may end a line too.
        let lines = of.map_or(0, |(_, text)| 1 + text.matches(['\n', '\r']).count());
        let line = usize::try_from(fault.at.line).unwrap_or(usize::MAX);
        assert!(
            (1..=lines).contains(&line),
            "{} is not a line of the text: {fault}",
            fault.at
        );
    }
}
