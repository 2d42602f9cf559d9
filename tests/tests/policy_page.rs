//! `docs/policy.md` says what is so: its policies compile without a warning, its calls are decided as listed, its
//! commands print what is shown.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use harness::{agent, repository};
use std::process::Command;
use tollgate_policy::canonical::{Host, Target};
use tollgate_policy::syntax::Source;
use tollgate_policy::{Body, Headers, Outcome, Policy, Request, Scheme, Subject, Verdict, compile};

/// 2026-06-01.
const NOW: i64 = 1_780_272_000;

/// One fenced block and the line it begins at.
#[derive(Debug)]
struct Block {
    kind: String,
    line: usize,
    text: String,
}

fn blocks() -> Vec<Block> {
    let page = std::fs::read_to_string(repository().join("docs/policy.md")).unwrap();
    let (mut blocks, mut open): (Vec<Block>, Option<Block>) = (Vec::new(), None);
    for (number, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(kind), None) => {
                open = Some(Block {
                    kind: kind.to_owned(),
                    line: number + 1,
                    text: String::new(),
                });
            }
            (Some(_), Some(block)) => blocks.push(block),
            (None, Some(mut block)) => {
                block.text.push_str(line);
                block.text.push('\n');
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "the page ends in an open block");
    blocks
}

/// Puts rules, or the entries of a role, into a whole policy.
fn whole(block: &Block) -> Option<String> {
    let indented = |by: usize| {
        let pad = " ".repeat(by);
        let lines = block.text.lines().map(|line| format!("{pad}{line}\n"));
        lines.collect::<String>()
    };
    let head = "version: 1\nworkloads: { w: {} }\napis: { api: { hosts: [api.example.com] } }\n\
                grants: [{ role: r, to: { workload: w } }]\nroles:\n  r:\n";
    match block.kind.as_str() {
        "yaml" => Some(block.text.clone()),
        "yaml rules" => Some(format!(
            "{head}    - api: api\n      allow:\n{}",
            indented(8)
        )),
        "yaml entry" => Some(format!("{head}{}", indented(4))),
        _ => None,
    }
}

fn compiled(block: &Block, text: &str) -> Policy {
    let source = Source {
        name: format!("docs/policy.md, line {}", block.line),
        text: text.to_owned(),
    };
    let compiled = compile(&[source]).unwrap_or_else(|faults| panic!("{faults}"));
    assert!(compiled.warnings.0.is_empty(), "{}", compiled.warnings);
    compiled.policy
}

/// `EXPECTED METHOD TARGET [NAME: VALUE] BODY`; header and body may be missing.
struct Call<'a> {
    expected: &'a str,
    method: &'a str,
    target: &'a str,
    header: Option<(&'a str, &'a str)>,
    body: Option<&'a str>,
}

impl<'a> Call<'a> {
    fn parse(line: &'a str) -> Self {
        let (expected, rest) = line.split_once(' ').unwrap();
        let (method, rest) = rest.trim_start().split_once(' ').unwrap();
        let (target, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let (header, body) = match rest.strip_prefix('[').filter(|_| rest.contains(": ")) {
            Some(inner) if !inner.starts_with('{') => {
                let (header, body) = inner.split_once(']').unwrap();
                (header.split_once(": "), body.trim_start())
            }
            _ => (None, rest),
        };
        Self {
            expected,
            method,
            target,
            header,
            body: Some(body).filter(|body| !body.is_empty()),
        }
    }

    fn outcome(&self, policy: &Policy) -> String {
        let host = Host::parse(&policy.apis()[0].hosts[0]).unwrap();
        let target = Target::parse(self.target).unwrap();
        let request = Request {
            scheme: Scheme::Https,
            host: &host,
            port: 443,
            method: self.method,
            target: &target,
            headers: self,
            body: self
                .body
                .map_or(Body::Absent, |body| Body::Read(body.as_bytes())),
            now: NOW,
        };
        let subject = Subject {
            workload: &policy.workloads()[0].name,
            identity: None,
        };
        match policy.decide(&subject, &request) {
            Outcome::NeedsBody { .. } => panic!("the body is there"),
            Outcome::Decided(decision) => match decision.verdict {
                Verdict::Allow => "allow".to_owned(),
                Verdict::Deny => decision.reason.unwrap().code.to_owned(),
            },
        }
    }
}

impl Headers for Call<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        if let Some((header, value)) = self.header.filter(|(header, _)| *header == name) {
            let _ = header;
            visit(value.as_bytes());
        } else if name == "content-type" && self.body.is_some() {
            visit(b"application/json");
        }
    }
}

#[test]
fn the_policies_decide_as_the_page_says() {
    let (mut policies, mut calls) = (0, 0);
    let mut current: Option<Policy> = None;
    for block in blocks() {
        if let Some(text) = whole(&block) {
            current = Some(compiled(&block, &text));
            policies += 1;
        } else if block.kind == "calls" {
            let policy = current.as_ref().expect("calls stand behind a policy");
            for (number, line) in block.text.lines().enumerate() {
                let call = Call::parse(line);
                let place = block.line + number + 1;
                assert_eq!(call.outcome(policy), call.expected, "line {place}: {line}");
                calls += 1;
            }
        }
    }
    assert!(
        policies >= 10 && calls >= 50,
        "{policies} policies, {calls} calls"
    );
}

/// The fragments that define things compile together, with a role and grant for them.
#[test]
fn the_fragments_are_one_policy() {
    let mut text = String::from("version: 1\n");
    let fragments = blocks()
        .into_iter()
        .filter(|block| block.kind == "yaml fragment");
    for block in fragments {
        text.push_str(&block.text);
    }
    let source = Source {
        name: "the fragments of docs/policy.md".to_owned(),
        text,
    };
    compile(&[source]).unwrap_or_else(|faults| panic!("{faults}"));
}

/// Commands run in a directory with the latest policy and cases of the page, and print what is shown.
#[test]
fn the_commands_print_what_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let program = agent::program().unwrap();
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let mut commands = 0;
    for block in blocks() {
        let file = match block.kind.as_str() {
            "yaml" => "policy.yaml",
            "yaml cases" => "cases.yaml",
            "yaml old" => "old.yaml",
            _ => "",
        };
        if !file.is_empty() {
            std::fs::write(directory.path().join(file), &block.text).unwrap();
        }
        let Some(command) = block
            .text
            .strip_prefix("$ ")
            .filter(|_| block.kind == "console")
        else {
            continue;
        };
        let (line, shown) = command.split_once('\n').unwrap();
        let output = Command::new("sh")
            .args(["-c", line])
            .current_dir(directory.path())
            .env("PATH", &path)
            .env("NO_COLOR", "1")
            .env("COLUMNS", "120")
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let complained = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            format!("{printed}{complained}"),
            shown,
            "docs/policy.md, line {}: {line}",
            block.line
        );
        commands += 1;
    }
    assert!(commands >= 5, "{commands} commands");
}
