//! Rules that other programs test.
use super::Found;
use crate::sh;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// Lines of a tool's output that are worth repeating.
const SHOWN: usize = 60;

/// Every file is formatted.
pub(super) fn format() -> Result<Found> {
    let mut cargo = sh::command("cargo");
    cargo.args(["fmt", "--all", "--", "--check", "-l"]);
    passes(cargo, "run `cargo fmt --all`")
}

/// No warning from clippy on what runs on the host, tests and the policy's bench included: with what that one alone needs, so
/// that nothing is looked at twice.
pub(super) fn clippy_host() -> Result<Found> {
    clippy(&[
        "--workspace",
        "--exclude=tollgate-ebpf",
        "--exclude=tollgate-policy-fuzz",
    ])
}

/// No warning from clippy on the fuzz targets. By themselves: they make the policy another one.
pub(super) fn clippy_fuzz() -> Result<Found> {
    clippy(&["--package=tollgate-policy-fuzz"])
}

fn clippy(members: &[&str]) -> Result<Found> {
    let mut cargo = sh::command("cargo");
    cargo.args(["clippy", "--quiet", "--locked", "--all-targets"]);
    cargo.args(members).args(["--", "-D", "warnings"]);
    passes(
        cargo,
        "mend it, or allow it where it stands with the reason",
    )
}

/// No warning from clippy on what runs in the kernel.
///
/// `core` for BPF comes with Debian's compiler, so the lints must come from that compiler's clippy:
/// rustup's would not read its metadata.
pub(super) fn clippy_bpf() -> Result<Found> {
    let mut clippy = sh::command("/usr/bin/cargo-clippy");
    clippy
        .args([
            "clippy",
            "--quiet",
            "--locked",
            "--package",
            "tollgate-ebpf",
            "--release",
        ])
        .args([
            "--target",
            "bpfel-unknown-none",
            "--target-dir",
            "target/bpf-clippy",
        ])
        .args(["--", "-D", "warnings"])
        .env("RUSTC", "/usr/bin/rustc")
        // `aya-ebpf` uses `asm_experimental_arch`.
        .env("RUSTC_BOOTSTRAP", "1");
    passes(
        clippy,
        "mend it, or allow it where it stands with the reason",
    )
}

/// No warning from rustdoc, private items included.
pub(super) fn docs() -> Result<Found> {
    let mut cargo = sh::command("cargo");
    cargo.args(["doc", "--quiet", "--locked"]);
    sh::most_members(&mut cargo);
    cargo.args(["--lib", "--no-deps", "--document-private-items"]);
    // Private items are documented here, so that links to them lead somewhere.
    cargo.env(
        "RUSTDOCFLAGS",
        "-D warnings -A rustdoc::private-intra-doc-links",
    );
    passes(cargo, "mend the link or the text")
}

/// Licences, banned versions (floors with their advisories) and sources, as `deny.toml` says.
pub(super) fn deny() -> Result<Found> {
    let mut deny = sh::command("cargo-deny");
    deny.args(["--all-features", "check", "--hide-inclusion-graph"]);
    deny.args(["licenses", "bans", "sources"]);
    passes(
        deny,
        "choose another dependency or version; exceptions need a reason in deny.toml",
    )
}

/// No known vulnerability, where the public database can be had.
pub(super) fn advisories() -> Result<Found> {
    let floors = "version floors in deny.toml hold all the same";
    if let Err(why) = fetch_advisories()? {
        return Ok(Found::Untested(format!(
            "the advisory database cannot be fetched ({why}); {floors}"
        )));
    }
    let mut deny = sh::command("cargo-deny");
    deny.args([
        "--all-features",
        "--offline",
        "check",
        "--hide-inclusion-graph",
        "advisories",
    ]);
    passes(
        deny,
        "update the dependency; exceptions need a reason in deny.toml",
    )
}

/// The inner error is why it could not be fetched.
fn fetch_advisories() -> Result<Result<(), String>> {
    // Bounded: a firewall that swallows packets must not hold up the rest.
    let mut fetch = sh::command("timeout");
    fetch
        .args(["60", "cargo-deny", "fetch", "db"])
        .env("GIT_TERMINAL_PROMPT", "0");
    let output = sh::output(fetch)?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let causes: Vec<_> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    Ok(Err(causes
        .last()
        .map_or("it took over a minute", |line| *line)
        .to_owned()))
}

fn passes(command: Command, mend: &'static str) -> Result<Found> {
    let program = command.get_program().to_owned();
    if sh::find(&program.to_string_lossy()).is_none() && !Path::new(&program).is_file() {
        let fault = format!("{} is not installed", program.to_string_lossy());
        return Ok(Found::Broken {
            faults: vec![fault],
            mend: "run `cargo xtask setup`",
        });
    }
    let shown = sh::shown(&command);
    let output = sh::output(command)?;
    if output.status.success() {
        return Ok(Found::Holds);
    }
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    let mut faults: Vec<_> = said.lines().take(SHOWN).map(str::to_owned).collect();
    if said.lines().count() > SHOWN {
        faults.push("…".to_owned());
    }
    faults.push(format!("all of it: `{shown}`"));
    Ok(Found::Broken { faults, mend })
}
