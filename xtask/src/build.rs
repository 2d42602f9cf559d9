//! `cargo xtask build`: the eBPF programs and the agent.
use crate::sh;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// How to build.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Optimise the agent.
    #[arg(long)]
    pub(crate) release: bool,
    /// Build the eBPF programs only.
    #[arg(long)]
    pub(crate) ebpf_only: bool,
}

/// What the agent embeds, and what it is made of.
const OBJECT: &str = "target/bpf/tollgate.o";
const SOURCES: [&str; 4] = [
    "ebpf/src",
    "ebpf/Cargo.toml",
    "common/src",
    "common/Cargo.toml",
];
const TARGET: &str = "bpfel-unknown-none";

/// Where `core` for BPF comes from.
enum Toolchain {
    /// A compiler that has it compiled, e.g. Debian's `rustc-web` with `libstd-rust-web-dev-bpf`.
    Packaged(PathBuf),
    /// rustup's nightly, which compiles it from `rust-src`.
    Nightly,
}

/// Builds.
pub(crate) fn run(args: &Args) -> Result<()> {
    programs()?;
    if args.ebpf_only {
        return Ok(());
    }
    let mut cargo = sh::command("cargo");
    cargo.args(["build", "--locked", "--package", "tollgate"]);
    if args.release {
        cargo.arg("--release");
    }
    sh::run(cargo)
}

/// Builds the object that the agent embeds.
pub(crate) fn programs() -> Result<()> {
    let toolchain = toolchain()?;
    let mut cargo = cargo(&toolchain);
    let built = "target/bpf/build";
    cargo.args(["build", "--quiet", "--locked", "--release"]);
    cargo.args(["--package", "tollgate-ebpf"]);
    cargo.args(["--target", TARGET, "--target-dir", built]);
    sh::run(cargo).context("the eBPF programs do not build")?;
    let made = sh::root().join(built).join(TARGET).join("release/tollgate");
    publish(&made, &sh::root().join(OBJECT))
}

/// Cargo, set up to compile for BPF.
fn cargo(toolchain: &Toolchain) -> Command {
    let mut cargo = match toolchain {
        Toolchain::Packaged(rustc) => {
            let mut cargo = sh::command("cargo");
            // `aya-ebpf` needs the one unstable feature `asm_experimental_arch`.
            cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
        Toolchain::Nightly => {
            let mut cargo = sh::command("rustup");
            cargo.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
            cargo.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
            cargo
        }
    };
    // Another wrapper or compiler of the caller's is not one for BPF. v3 of the instruction set has
    // the atomic operations.
    // The linker would have memory cleared by a function, a byte at a time: slow in the hooks, and slow to verify.
    let flags = "-C linker=bpf-linker -C debuginfo=2 -C link-arg=--btf -C link-arg=--disable-expand-memcpy-in-order -C target-cpu=v3";
    cargo.env("RUSTFLAGS", flags);
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "CARGO"] {
        cargo.env_remove(name);
    }
    cargo
}

/// Finds what compiles and links for BPF, or says which parts are missing and how to get them.
fn toolchain() -> Result<Toolchain> {
    let linker = sh::find("bpf-linker").is_some();
    let toolchain = packaged().map(Toolchain::Packaged).or_else(nightly);
    match toolchain {
        Some(toolchain) if linker => Ok(toolchain),
        found => bail!(missing(found.is_some(), linker)),
    }
}

fn missing(core: bool, linker: bool) -> String {
    let mut text = String::from("cannot build the eBPF programs:");
    if !core {
        text.push_str(
            "\n  - no `core` library for bpfel-unknown-none. Either Debian's packages `rustc-web` \
             and `libstd-rust-web-dev-bpf`, or `rustup toolchain install nightly --component rust-src`",
        );
    }
    if !linker {
        text.push_str(
            "\n  - no `bpf-linker` on the path: `cargo install bpf-linker`, against the LLVM of the \
             compiler above",
        );
    }
    text.push_str("\n`cargo xtask setup` installs what is missing");
    text
}

/// A compiler that has `core` for BPF: the system's, or the one on the path.
fn packaged() -> Option<PathBuf> {
    let candidates = [Some(PathBuf::from("/usr/bin/rustc")), sh::find("rustc")];
    candidates
        .into_iter()
        .flatten()
        .find(|rustc| rustc.is_file() && has_core(rustc))
}

fn has_core(rustc: &Path) -> bool {
    let mut command = Command::new(rustc);
    command.args(["--print", "target-libdir", "--target", TARGET]);
    let Some(directory) = answer(command) else {
        return false;
    };
    let Ok(entries) = Path::new(&directory).read_dir() else {
        return false;
    };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn nightly() -> Option<Toolchain> {
    sh::find("rustup")?;
    let mut command = sh::command("rustup");
    command.args(["run", "nightly", "rustc", "--print", "sysroot"]);
    let sysroot = PathBuf::from(answer(command)?);
    let core = sysroot.join("lib/rustlib/src/rust/library/core");
    core.is_dir().then_some(Toolchain::Nightly)
}

/// The first line that a command prints, if it succeeds.
fn answer(command: Command) -> Option<String> {
    let output = sh::output(command).ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?.trim().to_owned();
    output.status.success().then_some(line)
}

/// Puts the object where the agent's build looks. One that is the same and no older than its sources
/// stays, so that the agent is not built again.
fn publish(made: &Path, object: &Path) -> Result<()> {
    let bytes = std::fs::read(made).with_context(|| format!("cannot read {}", made.display()))?;
    let is_same = std::fs::read(object).is_ok_and(|old| old == bytes);
    let sources = SOURCES
        .iter()
        .filter_map(|path| newest(&sh::root().join(path)));
    if is_same && sources.max() <= newest(object) {
        return Ok(());
    }
    // Beside it and then over it: a build that is interrupted leaves no half of an object.
    let fresh = object.with_extension("new");
    std::fs::write(&fresh, bytes)
        .and_then(|()| std::fs::rename(&fresh, object))
        .with_context(|| format!("cannot write {}", object.display()))
}

/// When the newest file at or below `path` changed.
fn newest(path: &Path) -> Option<SystemTime> {
    if path.is_dir() {
        let entries = path.read_dir().ok()?;
        return entries.flatten().filter_map(|e| newest(&e.path())).max();
    }
    path.metadata().ok()?.modified().ok()
}
