//! `cargo xtask build`: the eBPF programs and the agent.
use crate::sh;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of the eBPF programs; the other byte order is not built.
const TARGET: &str = "bpfel-unknown-none";
/// Where `agent/build.rs` takes the object from.
const OBJECT: &str = "target/bpf/tollgate.o";
/// Debian's compiler: the one that a `core` for BPF is packaged for.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// How to build.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Optimised, as it is installed.
    #[arg(long)]
    pub(crate) release: bool,
}

/// Builds both; quick when nothing changed.
pub(crate) fn run(args: &Args) -> Result<()> {
    programs()?;
    let mut cargo = sh::command("cargo");
    cargo.args(["build", "--locked", "--package", "tollgate"]);
    cargo.args(args.release.then_some("--release"));
    sh::run(cargo)
}

/// Builds the eBPF programs into `target/bpf/tollgate.o`.
pub(crate) fn programs() -> Result<()> {
    if sh::find("bpf-linker").is_none() {
        bail!("bpf-linker is missing: run `cargo xtask setup`");
    }
    let mut cargo = compiler()?;
    cargo
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--package",
            "tollgate-ebpf",
        ])
        .args(["--target", TARGET, "--target-dir", "target/bpf-build"])
        .env(
            "RUSTFLAGS",
            "-C linker=bpf-linker -C debuginfo=2 -C link-arg=--btf",
        )
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    sh::run(cargo)?;
    let built = sh::root()
        .join("target/bpf-build")
        .join(TARGET)
        .join("release/tollgate");
    install(&built, &sh::root().join(OBJECT))
}

/// Cargo, with a compiler that has `core` for BPF: Debian's, else rustup's nightly with its sources.
fn compiler() -> Result<Command> {
    let debian_core = Path::new("/usr/lib/rustlib").join(TARGET);
    if Path::new(DEBIAN_RUSTC).is_file() && debian_core.is_dir() {
        let mut cargo = sh::command("cargo");
        // `aya-ebpf` uses `asm_experimental_arch`.
        cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
        return Ok(cargo);
    }
    if nightly_sources().is_some_and(|sources| sources.is_dir()) {
        let mut cargo = sh::command("rustup");
        cargo.args(["run", "nightly", "cargo", "-Z", "build-std=core"]);
        // What runs us is another toolchain's cargo.
        cargo
            .env_remove("RUSTC")
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN");
        return Ok(cargo);
    }
    bail!(
        "no compiler has `core` for {TARGET}: on Debian run `cargo xtask setup` (it installs \
         rustc-web and libstd-rust-web-dev-bpf); elsewhere run `rustup toolchain install nightly \
         --component rust-src`"
    )
}

/// Where nightly's `core` would be.
fn nightly_sources() -> Option<PathBuf> {
    let mut rustup = sh::command("rustup");
    rustup
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN");
    let output = sh::output(rustup)
        .ok()
        .filter(|output| output.status.success())?;
    let sysroot = String::from_utf8(output.stdout).ok()?;
    Some(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core"))
}

/// Puts the object in place. An unchanged one only gets a new date, so that it counts as newer than its sources.
fn install(built: &Path, object: &Path) -> Result<()> {
    let new = std::fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    if std::fs::read(object).is_ok_and(|old| old == new) {
        let built_at = built.metadata()?.modified()?;
        if object.metadata()?.modified()? < built_at {
            std::fs::File::options()
                .append(true)
                .open(object)?
                .set_modified(built_at)?;
        }
        return Ok(());
    }
    let directory = object.parent().context("the object has no directory")?;
    std::fs::create_dir_all(directory)?;
    // Renamed into place: a build that runs at the same time sees the old one or the new one.
    let partial = object.with_extension("new");
    std::fs::write(&partial, new)?;
    std::fs::rename(&partial, object)
        .with_context(|| format!("cannot put {} in place", object.display()))
}
