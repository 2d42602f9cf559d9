//! `cargo xtask test`: set up, build, check, then every test, the quick tiers first.
//!
//! The test programs are run one by one rather than by `cargo test`: that gives the order, the
//! number of threads per tier, and signals that reach them, so that they clean up after themselves.

mod leftovers;
pub(crate) mod tally;

use crate::{build, check, setup, sh, vm};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::path::PathBuf;
use tally::{Reading, Tally, count};

/// Which tests.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this; leaves out the check.
    filter: Option<String>,
    /// Leaves out `cargo xtask check`.
    #[arg(long)]
    no_check: bool,
}

/// Test programs that are run together.
struct Tier {
    name: &'static str,
    /// Threads in one program: tests that load the kernel and measure time want the cores.
    threads: usize,
    /// Package and start of the program's name.
    programs: &'static [(&'static str, &'static str)],
}

const TIERS: &[Tier] = &[
    Tier {
        name: "unit and property",
        threads: 2,
        programs: &[
            ("tollgate-policy", ""),
            ("tollgate-common", ""),
            ("xtask", ""),
        ],
    },
    Tier {
        name: "agent",
        threads: 2,
        programs: &[("tollgate", "")],
    },
    Tier {
        name: "harness",
        threads: 2,
        programs: &[("tollgate-tests", "harness")],
    },
    Tier {
        name: "kernel",
        threads: 1,
        programs: &[("tollgate-tests", "kernel")],
    },
    Tier {
        name: "pipeline",
        threads: 2,
        programs: &[("tollgate-tests", "pipeline"), ("tollgate-tests", "http2")],
    },
    Tier {
        name: "clients",
        threads: 1,
        programs: &[("tollgate-tests", "clients")],
    },
    Tier {
        name: "daemon",
        threads: 1,
        programs: &[("tollgate-tests", "daemon")],
    },
    Tier {
        name: "story",
        threads: 1,
        programs: &[("tollgate-tests", "demo")],
    },
    Tier {
        name: "others",
        threads: 1,
        programs: &[("", "")],
    },
];

/// What the longest of the test programs takes, twice over; as `timeout` has it.
const PATIENCE: &str = "15m";

/// One program of tests.
struct Program {
    package: String,
    name: String,
    directory: PathBuf,
    executable: PathBuf,
}

/// Runs every test; fails if one does.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !sh::is_root() {
        bail!("the kernel tests load eBPF and make network namespaces: run this as root");
    }
    let before = leftovers::Snapshot::take();
    let full = args.filter.is_none() && !args.no_check;
    let mut progress = sh::Progress::new(4 + TIERS.len() + usize::from(full) * 2);
    progress.step("setup");
    setup::run(setup::Need::Everything)?;
    progress.step("build");
    build::run(&build::Args::default())?;
    if full {
        progress.step("check");
        check::run()?;
    }
    progress.step("build the tests");
    let mut programs = compile()?;

    let mut tally = Tally::default();
    for tier in TIERS {
        progress.step(&format!("{} tests", tier.name));
        let (chosen, rest) = programs
            .into_iter()
            .partition(|program| tier.takes(program));
        programs = rest;
        run_tier(tier, chosen, args.filter.as_deref(), &mut tally)?;
    }
    progress.step("tests in a machine with another kernel");
    vm::tests(args.filter.as_deref(), &mut tally)?;
    if full {
        progress.step("tests in the documentation");
        run_doctests(&mut tally)?;
    }
    if let Some(left) = before.left_behind() {
        tally.fail(format!("left behind: {left}"));
    }
    tally.report()
}

impl Tier {
    fn takes(&self, program: &Program) -> bool {
        self.programs.iter().any(|(package, name)| {
            (package.is_empty() || *package == program.package) && program.name.starts_with(name)
        })
    }
}

/// Builds every test program of the host and lists them in the order of their names.
fn compile() -> Result<Vec<Program>> {
    let mut cargo = sh::command("cargo");
    cargo.args(["test", "--no-run", "--locked"]);
    sh::most_members(&mut cargo);
    cargo.arg("--message-format=json-render-diagnostics");
    let mut programs = Vec::new();
    let built = sh::lines(cargo, |line| programs.extend(program(line)))?;
    if !built {
        bail!("the tests do not build");
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

/// The test program that a line of cargo's output tells of.
fn program(line: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(line).ok()?;
    if !message.get("profile")?.get("test")?.as_bool()? {
        return None;
    }
    let directory = PathBuf::from(message.get("manifest_path")?.as_str()?)
        .parent()?
        .to_owned();
    Some(Program {
        package: package_name(message.get("package_id")?.as_str()?).to_owned(),
        name: message.get("target")?.get("name")?.as_str()?.to_owned(),
        executable: PathBuf::from(message.get("executable")?.as_str()?),
        directory,
    })
}

/// `path+file:///x/agent#tollgate@0.1.0` and `path+file:///x/xtask#0.1.0` → the package's name.
fn package_name(id: &str) -> &str {
    let (path, rest) = id.rsplit_once('#').unwrap_or(("", id));
    match rest.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next().unwrap_or(path),
    }
}

fn run_tier(
    tier: &Tier,
    programs: Vec<Program>,
    filter: Option<&str>,
    tally: &mut Tally,
) -> Result<()> {
    let before = tally.passed + tally.failed;
    for program in programs {
        println!("      {} · {}", program.package, program.name);
        // A test that waits for ever ends the run, which then names it. In a mount namespace of its own: a BPF file system that a
        // test mounts goes with it.
        let mut command = sh::command("timeout");
        command.args(["--kill-after=30", PATIENCE, "unshare", "--mount", "--"]);
        command.arg(&program.executable);
        command
            .current_dir(&program.directory)
            .env("CARGO_MANIFEST_DIR", &program.directory)
            .arg(format!("--test-threads={}", tier.threads));
        command.args(filter);
        run_program(&program, command, tally)?;
    }
    let wanted = filter.is_none() && tier.name != "others";
    if wanted && tally.passed + tally.failed == before {
        tally.fail(format!("the {} tier has no tests", tier.name));
    }
    Ok(())
}

fn run_program(program: &Program, command: std::process::Command, tally: &mut Tally) -> Result<()> {
    let name = format!("{} {}", program.package, program.name);
    let mut reading = Reading::of(name.clone());
    let succeeded = sh::lines(command, |line| reading.line(line, tally)).with_context(|| name)?;
    reading.end(succeeded, tally);
    Ok(())
}

fn run_doctests(tally: &mut Tally) -> Result<()> {
    let mut cargo = sh::command("cargo");
    cargo.args(["test", "--doc", "--quiet", "--locked"]);
    sh::most_members(&mut cargo);
    cargo.args(["--exclude", "xtask"]);
    let succeeded = sh::lines(cargo, |line| {
        if let Some(summary) = line.strip_prefix("test result: ") {
            tally.passed += count(summary, "passed");
            tally.failed += count(summary, "failed");
        }
    })?;
    if !succeeded && tally.failed == 0 {
        tally.fail("the tests in the documentation do not build".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_named_in_both_forms_of_id() {
        assert_eq!(
            package_name("path+file:///x/agent#tollgate@0.1.0"),
            "tollgate"
        );
        assert_eq!(package_name("path+file:///x/xtask#0.1.0"), "xtask");
    }

    #[test]
    fn every_program_finds_its_tier() {
        let tier = |package: &str, name: &str| {
            let program = Program {
                package: package.to_owned(),
                name: name.to_owned(),
                directory: PathBuf::new(),
                executable: PathBuf::new(),
            };
            TIERS
                .iter()
                .find(|tier| tier.takes(&program))
                .map(|tier| tier.name)
        };
        assert_eq!(
            tier("tollgate-policy", "anything"),
            Some("unit and property")
        );
        assert_eq!(tier("tollgate", "tollgate"), Some("agent"));
        assert_eq!(tier("tollgate-tests", "kernel_steer"), Some("kernel"));
        assert_eq!(tier("tollgate-tests", "new"), Some("others"));
    }
}
