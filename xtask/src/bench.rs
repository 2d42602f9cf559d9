//! `cargo xtask bench`: the same load straight at nginx and through Tollgate, in one run.
mod kernel;
mod policy;
mod table;

use crate::{build, setup, sh};
use anyhow::{Context as _, Result, bail};
use std::os::unix::process::CommandExt as _;

/// What to measure, and how.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Seconds per scenario and contender.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Builds without optimisation: shows that the bench works, its numbers mean nothing.
    #[arg(long)]
    dev: bool,
}

/// What else can be measured.
#[derive(clap::Subcommand)]
enum What {
    /// The policy crate by itself: CPU time of deciding and compiling, memory, cedar-policy beside it.
    Policy(policy::Args),
    /// What the fence adds to connect(), send() and a bulk transfer, with it and without it by turns.
    Kernel(kernel::Args),
}

/// Sets up, builds, and becomes the bench.
pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.what {
        Some(What::Policy(args)) => return policy::run(args),
        Some(What::Kernel(args)) => return kernel::run(args),
        None => {}
    }
    if !sh::is_root() {
        bail!("the bench loads eBPF and makes network namespaces: run this as root");
    }
    let mut progress = sh::Progress::new(3);
    progress.step("setup");
    setup::run(setup::Need::Demo)?;
    progress.step("build (optimised: several minutes the first time)");
    build::run(&build::Args {
        release: !args.dev,
        ..build::Args::default()
    })?;
    let mut cargo = sh::command("cargo");
    cargo.args([
        "build",
        "--locked",
        "--package",
        "tollgate-tests",
        "--bin",
        "bench",
    ]);
    cargo.args((!args.dev).then_some("--release"));
    sh::run(cargo)?;
    progress.step("the bench");
    let profile = if args.dev { "debug" } else { "release" };
    let mut bench = sh::command(&format!("target/{profile}/bench"));
    bench.args(["--seconds", &args.seconds.to_string()]);
    // This process becomes the bench, so that a signal reaches it.
    Err(bench.exec()).with_context(|| format!("cannot start target/{profile}/bench"))
}
