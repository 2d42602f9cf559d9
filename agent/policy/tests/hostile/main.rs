//! Documents made to exhaust time, memory or stack: each is compiled or refused, within bounds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
mod definitions;
mod roles;
mod syntax;

use std::sync::{Mutex, PoisonError};
use tollgate_policy::compile;
use tollgate_policy::syntax::{Faults, Source};

/// Seconds of processor time for one document at most.
const SECONDS: f64 = 2.0;
/// Bytes that compiling may hold at once, besides the document.
const BYTES: u64 = 512 << 20;
/// Stack of a small thread.
const STACK: usize = 2 << 20;
/// Of a document that is as large as may be.
const FULL: usize = (4 << 20) - (64 << 10);

/// Of a line that is as long as may be.
const LONG: usize = (1 << 20) - 100;

/// What compiling a document took.
struct Cost {
    what: String,
    seconds: f64,
    bytes: u64,
    /// The first fault; none where it is a policy.
    fault: Option<String>,
}

/// Processor time of this thread so far.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// One document at a time: two share the memory's bandwidth, and each would cost more.
static ALONE: Mutex<()> = Mutex::new(());

fn cost(what: &str, texts: Vec<String>) -> Cost {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let what = what.to_owned();
    let sources: Vec<Source> = texts
        .into_iter()
        .enumerate()
        .map(|(number, text)| Source {
            name: format!("{number}.yaml"),
            text,
        })
        .collect();
    let measured = move || {
        let mut fault = None;
        let start = processor_seconds();
        let counted = allocation_counter::measure(|| {
            let compiled = compile(&sources);
            fault = compiled.err().map(|faults: Faults| {
                // Printing them is part of refusing.
                let text = faults.to_string();
                assert!(faults.has_errors() && faults.len() <= 500 && text.len() < 1 << 20);
                faults.0[0].message.clone()
            });
        });
        Cost {
            what,
            seconds: processor_seconds() - start,
            bytes: counted.bytes_max,
            fault,
        }
    };
    let thread = std::thread::Builder::new().stack_size(STACK);
    thread.spawn(measured).unwrap().join().unwrap()
}

/// All within bounds; and refused with the fault that is named, if one is.
fn check(cases: Vec<(&str, Vec<String>, Option<&str>)>) {
    let mut wrong = Vec::new();
    for (what, texts, expected) in cases {
        let mut cost = cost(what, texts.clone());
        for _ in 0..2 {
            // What shares the processor slows this down, and nothing makes it faster than it is: the least
            // of three is what it costs.
            if cost.seconds > SECONDS {
                cost.seconds = cost.seconds.min(self::cost(what, texts.clone()).seconds);
            }
        }
        let (seconds, megabytes) = (cost.seconds, cost.bytes >> 20);
        let fault = cost.fault.unwrap_or_default();
        println!(
            "{seconds:>7.2} s {megabytes:>5} MiB  {}: {fault}",
            cost.what
        );
        let named = expected.is_none_or(|expected| match expected {
            "" => fault.is_empty(),
            part => fault.contains(part),
        });
        if cost.seconds > SECONDS || cost.bytes > BYTES || !named {
            wrong.push(format!(
                "{}: {seconds:.2} s, {megabytes} MiB, {fault}",
                cost.what
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

const HEAD: &str = "version: 1\napis: { a: { hosts: [a.com] } }\n";

/// As many of the pieces as fit, numbered.
fn many(before: &str, most: usize, piece: impl Fn(usize) -> String, after: &str) -> String {
    let mut text = before.to_owned();
    for number in 0..most {
        if text.len() > FULL {
            break;
        }
        text += &piece(number);
        // A line may not be as long as a document.
        if number % 100 == 99 && text.ends_with([',', '{']) {
            text += "\n          ";
        }
    }
    text + after
}

const MOST: usize = 10_000_000;
