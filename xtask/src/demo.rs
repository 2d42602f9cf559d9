//! `cargo xtask demo`: everything from a fresh clone to programs held to their scopes.
use crate::{build, setup, sh};
use anyhow::{Context as _, Result, bail};
use std::os::unix::process::CommandExt as _;

/// How to show it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leaves it all running at the end, to play with.
    #[arg(long)]
    keep: bool,
}

/// Sets up, builds, and becomes the demo.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !sh::is_root() {
        bail!(
            "the demo loads eBPF and makes network namespaces: run this as root (`sudo -E env PATH=\"$PATH\" cargo xtask demo`)"
        );
    }
    let mut progress = sh::Progress::new(3);
    progress.step("setup");
    setup::run(setup::Need::Demo)?;
    progress.step("build (a few minutes the first time, seconds later)");
    build::run(&build::Args::default())?;
    let mut cargo = sh::command("cargo");
    cargo.args([
        "build",
        "--locked",
        "--package",
        "tollgate",
        "--package",
        "tollgate-tests",
    ]);
    cargo.args(["--bin", "tollgate", "--bin", "demo"]);
    sh::run(cargo)?;
    progress.step("the demo");
    let mut demo = sh::command("target/debug/demo");
    demo.args(args.keep.then_some("--keep"));
    // This process becomes the demo: a signal reaches it, and the shell waits until it has cleaned up.
    Err(demo.exec()).context("cannot start target/debug/demo")
}
