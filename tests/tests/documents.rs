//! What the documents say is so: the README's policies compile and decide as it tells.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use harness::repository;
use tollgate_policy::canonical::{Host, Target};
use tollgate_policy::syntax::Source;
use tollgate_policy::{Body, Headers, Outcome, Request, Scheme, Subject, Verdict, compile};

struct NoHeaders;

impl Headers for NoHeaders {
    fn each(&self, _: &str, _: &mut dyn FnMut(&[u8])) {}
}

/// The YAML blocks of the README, in order.
fn blocks() -> Vec<String> {
    let text = std::fs::read_to_string(repository().join("README.md")).unwrap();
    text.split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

fn source(text: &str) -> Source {
    Source {
        name: "README.md".into(),
        text: text.to_owned(),
    }
}

fn verdict(policy: &tollgate_policy::Policy, method: &str, target: &str) -> Verdict {
    let host = Host::parse("api.github.com").unwrap();
    let target = Target::parse(target).unwrap();
    let request = Request {
        scheme: Scheme::Https,
        host: &host,
        port: 443,
        method,
        target: &target,
        headers: &NoHeaders,
        body: Body::Absent,
        now: 0,
    };
    let subject = Subject {
        workload: "triage",
        identity: None,
    };
    match policy.decide(&subject, &request) {
        Outcome::Decided(decision) => decision.verdict,
        Outcome::NeedsBody { .. } => panic!("no rule reads a body"),
    }
}

#[test]
fn the_first_policy_decides_as_the_readme_says() {
    let compiled = compile(&[source(&blocks()[0])]).unwrap();
    assert!(compiled.warnings.0.is_empty(), "{}", compiled.warnings);
    let policy = compiled.policy;
    let issues = "/repos/rust-lang/rust/issues?state=open";
    assert_eq!(verdict(&policy, "GET", issues), Verdict::Allow);
    assert_eq!(verdict(&policy, "GET", "/user"), Verdict::Deny);
    assert_eq!(
        verdict(&policy, "DELETE", "/repos/rust-lang/rust"),
        Verdict::Deny
    );
    assert_eq!(
        verdict(&policy, "GET", &format!("{issues}&debug=1")),
        Verdict::Deny
    );
}

/// Who follows it has the binary where the unit starts it.
#[test]
fn the_readme_installs_what_the_unit_starts() {
    let read = |name| std::fs::read_to_string(repository().join(name)).unwrap();
    let (readme, unit) = (read("README.md"), read("systemd/tollgate.service"));
    let mut lines = unit.lines();
    let started = lines
        .find_map(|line| line.strip_prefix("ExecStart="))
        .unwrap();
    let directory = started.split_once("tollgate").unwrap().0;
    let install = format!("sudo install target/release/tollgate {directory}\n");
    assert!(readme.contains(&install), "{install}");
}

#[test]
fn the_credential_fits_the_first_policy() {
    let blocks = blocks();
    let first = blocks[0].replace(
        "- api: github\n",
        "- api: github\n      credential: github-bot\n",
    );
    assert_ne!(first, blocks[0]);
    let policy = compile(&[source(&format!("{first}\n{}", blocks[1]))])
        .unwrap()
        .policy;
    assert_eq!(policy.credentials()[0].name, "github-bot");
}

#[test]
fn the_workloads_of_the_service_compile() {
    let blocks = blocks();
    let merged = blocks[0].replace("workloads:\n", &blocks[2]);
    let policy = compile(&[source(&merged)]).unwrap().policy;
    assert_eq!(policy.workloads().len(), 3);
}

/// Sources and their texts, below the directories that have tests and rules.
fn sources() -> String {
    let mut all = String::new();
    let mut directories: Vec<_> = ["agent", "tests", "xtask"]
        .map(|directory| repository().join(directory))
        .into();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => directories.push(path),
                Some(rust) if rust == "rs" => all += &std::fs::read_to_string(path).unwrap(),
                _ => {}
            }
        }
    }
    all
}

/// Each says at its end, in brackets, which test or rule it is checked by, and that is there.
#[test]
fn invariants_are_checked_by_what_they_name() {
    let text = std::fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    let sources = sources();
    let invariants: Vec<&str> = text.split("**Invariant:**").skip(1).collect();
    assert!(invariants.len() > 15);
    for invariant in invariants {
        let ends = ["\n\n", "\n- "].map(|end| invariant.find(end).unwrap_or(invariant.len()));
        let said = invariant[..ends[0].min(ends[1])].trim();
        let checks = said
            .strip_suffix(".)")
            .and_then(|said| said.rsplit_once('('));
        let (_, checks) = checks.unwrap_or_else(|| panic!("checked by what? {said}"));
        let names: Vec<&str> = checks.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "checked by what? {said}");
        for name in names {
            let there = ["fn", "struct"].map(|kind| format!("{kind} {name}"));
            assert!(
                there.iter().any(|one| sources.contains(one)),
                "{name}: {said}"
            );
        }
    }
}
