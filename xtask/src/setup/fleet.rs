//! The clients that are held to their scopes in `tests/tests/clients`, at exact versions, of what they need too: a test
//! that passes today must not fail tomorrow for a client's new release. `tests/clients/fleet` lists them.
use crate::sh;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// Prints otherwise in each of its versions, so the machine's own only installs this one.
const NPM: &str = "npm@10.9.9";
const PIP: &str = "pip==26.3";

/// Where the lists are.
fn lists() -> PathBuf {
    sh::root().join("tests/clients/fleet")
}

/// Notes in `directory` which list it was made from; written last, so that a broken installation is made again.
fn note(directory: &Path, list: &str) -> Result<()> {
    std::fs::write(directory.join("made-from"), list).context("cannot note what was installed")
}

fn made_from(directory: &Path, list: Result<String>) -> bool {
    list.is_ok_and(|list| {
        std::fs::read_to_string(directory.join("made-from")).is_ok_and(|noted| noted == list)
    })
}

fn python() -> PathBuf {
    sh::tools().join("fleet")
}

fn python_list() -> Result<String> {
    let listed = std::fs::read_to_string(lists().join("python.txt"))?;
    Ok(format!("{PIP}\n{listed}"))
}

pub(super) fn python_is_there() -> bool {
    made_from(&python(), python_list())
        && std::fs::read_link(python().join("bin/python3"))
            .is_ok_and(|to| to == Path::new(super::extra::PYTHON))
}

pub(super) fn install_python() -> Result<()> {
    let mut venv = sh::command(super::extra::PYTHON);
    venv.args(["-m", "venv", "--clear"]).arg(python());
    sh::run(venv)?;
    let mut pip = sh::command(&python().join("bin/python3").to_string_lossy());
    pip.args(["-m", "pip", "install", "--quiet", PIP]);
    pip.arg("--disable-pip-version-check");
    pip.arg("-r").arg(lists().join("python.txt"));
    sh::run(pip)?;
    note(&python(), &python_list()?)
}

fn node() -> PathBuf {
    sh::tools().join("node")
}

fn node_list() -> Result<String> {
    let locked = std::fs::read_to_string(lists().join("package-lock.json"))?;
    Ok(format!("{NPM}\n{locked}"))
}

pub(super) fn node_is_there() -> bool {
    made_from(&node(), node_list())
}

pub(super) fn install_node() -> Result<()> {
    let node = node();
    std::fs::create_dir_all(node.join("npm"))?;
    for list in ["package.json", "package-lock.json"] {
        std::fs::copy(lists().join(list), node.join(list))?;
    }
    npm(&node, &["ci"])?;
    std::fs::write(node.join("npm/package.json"), "{\"private\": true}\n")?;
    npm(&node.join("npm"), &["install", "--no-save", NPM])?;
    note(&node, &node_list()?)
}

/// No package's own scripts: what is tested needs none.
fn npm(directory: &Path, arguments: &[&str]) -> Result<()> {
    let mut npm = sh::command("npm");
    npm.current_dir(directory).args(arguments).args([
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    ]);
    sh::run(npm)
}
