//! `cargo xtask soak`: what takes too long for `test`.
use crate::{build, setup, sh};
use anyhow::{Context as _, Result, bail};
use std::os::unix::process::CommandExt as _;

/// What to try at length.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

/// What there is.
#[derive(clap::Subcommand)]
enum What {
    /// Bodies of many GiB through the agent, up and down, over each pair of protocols: whether all arrives as sent, and the
    /// most memory that the agent took.
    Bodies {
        /// GiB of each body.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1024))]
        gib: u64,
    },
}

/// Sets up, builds, and becomes the soak.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !sh::is_root() {
        bail!("the soak loads eBPF and makes network namespaces: run this as root");
    }
    match args.what {
        What::Bodies { gib } => bodies(gib),
    }
}

fn bodies(gib: u64) -> Result<()> {
    let mut progress = sh::Progress::new(3);
    progress.step("setup");
    setup::run(setup::Need::Demo)?;
    progress.step("build (optimised: several minutes the first time)");
    build::run(&build::Args {
        release: true,
        ..build::Args::default()
    })?;
    let mut cargo = sh::command("cargo");
    cargo.args(["build", "--locked", "--release"]);
    cargo.args(["--package", "tollgate-tests", "--bin", "soak"]);
    sh::run(cargo)?;
    progress.step("the soak");
    let mut soak = sh::command("target/release/soak");
    soak.args(["bodies", &(gib << 30).to_string()]);
    // This process becomes the soak, so that a signal reaches it.
    Err(soak.exec()).context("cannot start target/release/soak")
}
