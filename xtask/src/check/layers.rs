//! Who may know whom: the invariants of `ARCHITECTURE.md`.
use super::Found;
use super::source::{self, Source};
use crate::sh;
use anyhow::{Context as _, Result, anyhow};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What policy must not reach, by any path of normal dependencies: IO, runtimes, TLS, the kernel, us.
const IMPURE: &[&str] = &[
    "async-std",
    "aya",
    "aya-log",
    "aya-obj",
    "h2",
    "hickory-proto",
    "hickory-resolver",
    "hyper",
    "mio",
    "reqwest",
    "rustix",
    "rustls",
    "signal-hook",
    "smol",
    "socket2",
    "tokio",
    "tokio-rustls",
    "tollgate",
    "tollgate-common",
    "tracing-subscriber",
    "ureq",
];

/// What policy's own sources must not name: files, processes, threads, sockets, clocks, async.
const IO: &[&[&str]] = &[
    &["std", ":", ":", "fs"],
    &["std", ":", ":", "env"],
    &["std", ":", ":", "process"],
    &["std", ":", ":", "thread"],
    &["std", ":", ":", "io"],
    &["SystemTime"],
    &["Instant"],
    &["TcpStream"],
    &["UdpSocket"],
    &["async"],
    &["await"],
];

/// Each member says `[lints] workspace = true`.
pub(super) fn lints_inherited() -> Result<Found> {
    let mut faults = Vec::new();
    for manifest in source::tracked()?
        .iter()
        .filter(|path| path.ends_with("Cargo.toml"))
    {
        let text = source::read(manifest)?;
        if text.contains("[package]") && !inherits(&text) {
            faults.push(manifest.clone());
        }
    }
    Ok(Found::of(
        faults,
        "add `[lints]` and `workspace = true` to the manifest",
    ))
}

fn inherits(manifest: &str) -> bool {
    let mut section = "";
    manifest.lines().map(str::trim).any(|line| {
        if line.starts_with('[') {
            section = line;
        }
        section == "[lints]" && line.replace(' ', "") == "workspace=true"
    })
}

/// A parser that recurses deep, and may panic, is given a stack of its own there, and waited for: nothing runs
/// beside the compiler.
const OWN_STACK: (&str, &str) = ("agent/policy/src/when/parse.rs", "std::thread");

/// Policy reaches nothing that does IO, and names none of it.
pub(super) fn policy_is_pure() -> Result<Found> {
    let graph = Graph::of_workspace()?;
    let reached = graph.reachable("tollgate-policy")?;
    let mut faults: Vec<_> = IMPURE
        .iter()
        .filter(|name| reached.contains(**name))
        .map(|name| format!("tollgate-policy depends on {name}"))
        .collect();
    for source in source::below(&["agent/policy/src/"])? {
        faults.extend(
            IO.iter()
                .flat_map(|tokens| source.places_outside_tests(tokens)),
        );
    }
    faults.retain(|fault| !(fault.starts_with(OWN_STACK.0) && fault.ends_with(OWN_STACK.1)));
    Ok(Found::of(
        faults,
        "let the caller do IO and pass what it read; the clock is an argument",
    ))
}

/// The eBPF programs know the ABI and aya's kernel side, nothing else.
pub(super) fn ebpf_is_alone() -> Result<Found> {
    let allowed = ["tollgate-common", "aya-ebpf", "aya-log-ebpf"];
    let graph = Graph::of_workspace()?;
    let mut faults: Vec<_> = graph
        .direct("tollgate-ebpf")?
        .iter()
        .filter(|name| !allowed.contains(&name.as_str()))
        .map(|name| format!("tollgate-ebpf depends on {name}"))
        .collect();
    faults.extend(
        (graph
            .direct("tollgate-common")?
            .iter()
            .filter(|name| *name != "aya"))
        .map(|name| format!("tollgate-common depends on {name}")),
    );
    Ok(Found::of(
        faults,
        "move what is shared with the kernel into common, the rest into the agent",
    ))
}

/// Outside `agent::kernel`, the agent speaks of domain types only.
pub(super) fn kernel_alone_sees_aya() -> Result<Found> {
    let mut faults = Vec::new();
    for source in source::below(&["agent/src/", "tests/src/"])? {
        if !is_kernel(&source) {
            for name in ["aya", "aya_log", "aya_obj", "tollgate_common"] {
                faults.extend(source.places(&[name]));
            }
        }
    }
    Ok(Found::of(
        faults,
        "translate to a domain type in agent/src/kernel",
    ))
}

/// Only the stage that writes the outgoing request sees a secret's value.
pub(super) fn rewrite_alone_reveals() -> Result<Found> {
    let mut faults = Vec::new();
    for source in source::below(&["agent/", "tests/", "xtask/"])? {
        if source.path != "agent/src/pipeline/rewrite.rs" {
            faults.extend(source.places(&[".", "reveal", "("]));
            faults.extend(source.places(&["Secret", ":", ":", "reveal"]));
        }
    }
    Ok(Found::of(
        faults,
        "pass the `Secret` on; agent/src/pipeline/rewrite.rs reveals it",
    ))
}

/// `unsafe` stays at the border to the kernel.
pub(super) fn unsafe_is_fenced() -> Result<Found> {
    let mut faults = Vec::new();
    for source in source::below(&[""])? {
        // The ABI's types are promised to be plain data by an `unsafe impl`; nothing else there.
        let allowed: &[&[&str]] = match source.path.as_str() {
            path if path.starts_with("ebpf/") || is_kernel(&source) => continue,
            path if path.starts_with("common/") => &[&["unsafe", "impl"]],
            _ => &[],
        };
        let excused: BTreeSet<_> = allowed.iter().flat_map(|t| source.lines_with(t)).collect();
        let lines = source
            .lines_with(&["unsafe"])
            .into_iter()
            .filter(|line| !excused.contains(line));
        faults.extend(lines.map(|line| format!("{}:{line}", source.path)));
    }
    Ok(Found::of(
        faults,
        "use a safe wrapper (rustix, socket2), or move it to agent/src/kernel",
    ))
}

fn is_kernel(source: &Source) -> bool {
    source.path.starts_with("agent/src/kernel/") || source.path == "agent/src/kernel.rs"
}

/// Which package depends on which, by name; development and build dependencies left out.
struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    fn of_workspace() -> Result<Self> {
        let mut cargo = sh::command("cargo");
        cargo.args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--all-features",
        ]);
        let output = sh::output(cargo)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(anyhow!("cargo metadata: {}", said.trim()));
        }
        let metadata = serde_json::from_slice(&output.stdout)?;
        Self::parse(&metadata).context("cargo metadata has another form than expected")
    }

    fn parse(metadata: &Value) -> Option<Self> {
        let mut names = BTreeMap::new();
        for package in metadata.get("packages")?.as_array()? {
            names.insert(package.get("id")?.as_str()?, package.get("name")?.as_str()?);
        }
        let mut edges = BTreeMap::new();
        for node in metadata.get("resolve")?.get("nodes")?.as_array()? {
            let mut targets = BTreeSet::new();
            for dependency in node.get("deps")?.as_array()? {
                let kinds = dependency.get("dep_kinds")?.as_array()?;
                if kinds
                    .iter()
                    .any(|kind| kind.get("kind").is_some_and(Value::is_null))
                {
                    let id = dependency.get("pkg")?.as_str()?;
                    targets.insert((*names.get(id)?).to_owned());
                }
            }
            let name = *names.get(node.get("id")?.as_str()?)?;
            edges
                .entry(name.to_owned())
                .or_insert_with(BTreeSet::new)
                .extend(targets);
        }
        Some(Self(edges))
    }

    fn direct(&self, name: &str) -> Result<&BTreeSet<String>> {
        self.0
            .get(name)
            .with_context(|| format!("there is no package {name}"))
    }

    fn reachable(&self, name: &str) -> Result<BTreeSet<&str>> {
        let mut reached = BTreeSet::new();
        let mut ahead: Vec<&str> = self.direct(name)?.iter().map(String::as_str).collect();
        while let Some(next) = ahead.pop() {
            if reached.insert(next) {
                ahead.extend(self.0.get(next).into_iter().flatten().map(String::as_str));
            }
        }
        Ok(reached)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lints_count_in_their_own_section_only() {
        assert!(inherits("[package]\n[lints]\nworkspace = true\n"));
        assert!(inherits("[lints]\nworkspace=true"));
        assert!(!inherits("[lints.rust]\nworkspace = true"));
        assert!(!inherits(
            "[package]\nworkspace = true\n[lints]\n[dependencies]\n"
        ));
    }

    #[test]
    fn dependencies_are_followed_but_not_those_of_tests() {
        let dep = |to: &str, kind: Value| json!({"pkg": to, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [{"id": "p", "name": "policy"}, {"id": "a", "name": "a"},
                         {"id": "t", "name": "tokio"}, {"id": "x", "name": "proptest"}],
            "resolve": {"nodes": [
                {"id": "p", "deps": [dep("a", Value::Null), dep("x", json!("dev"))]},
                {"id": "a", "deps": [dep("t", Value::Null)]},
                {"id": "t", "deps": []}, {"id": "x", "deps": []}]}});
        let reached = Graph::parse(&metadata).unwrap();
        let reached = reached.reachable("policy").unwrap();
        assert!(reached.contains("tokio"));
        assert!(!reached.contains("proptest"));
    }
}
