//! Tollgate's build, test and demo verbs: `cargo xtask --help`.

mod bench;
mod build;
mod check;
mod demo;
mod fuzz;
mod setup;
mod sh;
mod soak;
mod test;
mod vm;

use clap::Parser;
use std::process::ExitCode;

/// Builds, checks, tests and shows Tollgate.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Verb {
    /// Installs what building and testing need: says what first, and is quick when nothing is missing.
    Setup,
    /// Builds the eBPF programs and the agent.
    Build(build::Args),
    /// Format, lints, licences, layering, documentation: one line per rule.
    Check,
    /// Sets up, builds, checks and runs every test.
    Test(test::Args),
    /// Shows unmodified programs being held to their scopes on live traffic.
    Demo(demo::Args),
    /// Load through the agent and beside it, in one run.
    Bench(bench::Args),
    /// Tries at length what `test` tries in short.
    Soak(soak::Args),
    /// Runs the tests, a command or a shell on Debian's own kernel, with systemd, under emulation.
    Vm(vm::Args),
    /// Looks for inputs that break the policy crate, with coverage to guide it.
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    sh::forward_signals();
    let done = match Verb::parse() {
        Verb::Setup => setup::run(setup::Need::Everything),
        Verb::Build(args) => build::run(&args),
        Verb::Check => check::run(),
        Verb::Test(args) => test::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Soak(args) => soak::run(&args),
        Verb::Vm(args) => vm::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("error: {fault:#}");
            sh::exit_code()
        }
    }
}
