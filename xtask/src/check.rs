//! `cargo xtask check`: every rule that a machine can hold, one line each.

mod layers;
mod source;
mod style;
mod tools;

use crate::{build, setup, sh};
use anyhow::{Result, bail};

/// A rule's name and the test of it.
struct Rule {
    name: &'static str,
    holds: fn() -> Result<Found>,
}

/// What testing a rule found.
enum Found {
    /// It holds.
    Holds,
    /// It could not be tested here; why.
    Untested(String),
    /// It does not: each fault, and what to do.
    Broken {
        faults: Vec<String>,
        mend: &'static str,
    },
}

impl Found {
    /// Broken if there are faults.
    fn of(faults: Vec<String>, mend: &'static str) -> Self {
        if faults.is_empty() {
            Self::Holds
        } else {
            Self::Broken { faults, mend }
        }
    }
}

/// Quick rules first: most faults show within a second.
const RULES: &[Rule] = &[
    Rule {
        name: "every member inherits the lints",
        holds: layers::lints_inherited,
    },
    Rule {
        name: "policy is pure",
        holds: layers::policy_is_pure,
    },
    Rule {
        name: "ebpf depends on common only",
        holds: layers::ebpf_is_alone,
    },
    Rule {
        name: "only agent::kernel knows aya and the ABI",
        holds: layers::kernel_alone_sees_aya,
    },
    Rule {
        name: "only rewrite reveals a secret",
        holds: layers::rewrite_alone_reveals,
    },
    Rule {
        name: "unsafe only where the kernel is met",
        holds: layers::unsafe_is_fenced,
    },
    Rule {
        name: "nothing unfinished",
        holds: style::nothing_unfinished,
    },
    Rule {
        name: "a file is one room",
        holds: style::files_are_short,
    },
    Rule {
        name: "no place or registry is named",
        holds: style::names_no_place,
    },
    Rule {
        name: "rustfmt",
        holds: tools::format,
    },
    Rule {
        name: "licences, bans, sources",
        holds: tools::deny,
    },
    Rule {
        name: "advisories",
        holds: tools::advisories,
    },
    Rule {
        name: "clippy, host",
        holds: tools::clippy_host,
    },
    Rule {
        name: "clippy, fuzz targets",
        holds: tools::clippy_fuzz,
    },
    Rule {
        name: "clippy, BPF",
        holds: tools::clippy_bpf,
    },
    Rule {
        name: "documentation",
        holds: tools::docs,
    },
];

/// Tests every rule and fails if one does not hold.
pub(crate) fn run() -> Result<()> {
    setup::run(setup::Need::Everything)?;
    // The agent embeds them: without them neither lints nor documentation can be had.
    build::run(&build::Args {
        ebpf_only: true,
        ..build::Args::default()
    })?;
    let (mut broken, mut untested) = (0, 0);
    for rule in RULES {
        let began = std::time::Instant::now();
        let found = (rule.holds)()?;
        let took = sh::seconds(began.elapsed());
        match found {
            Found::Holds => println!("{} {} ({took})", sh::paint("32", "ok       "), rule.name),
            Found::Untested(why) => {
                untested += 1;
                println!("{} {}: {why}", sh::paint("33", "UNTESTED "), rule.name);
            }
            Found::Broken { faults, mend } => {
                broken += 1;
                println!("{} {}: {mend}", sh::paint("31", "FAILED   "), rule.name);
                for fault in faults {
                    println!("          {fault}");
                }
            }
        }
    }
    if broken > 0 {
        bail!("{broken} of {} rules do not hold", RULES.len());
    }
    println!(
        "check: {} rules hold, {untested} could not be tested",
        RULES.len() - untested
    );
    Ok(())
}
