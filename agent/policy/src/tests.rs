//! Decisions and faults, from the outside of the crate's modules.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
mod budgets;
mod cases;
mod credentials;
mod decisions;
mod diff;
mod doubts;
mod faults;
mod grants;
mod names;
mod refusing;
mod schema;
mod warnings;
mod websocket;
mod who;

use crate::canonical::{Host, Target};
use crate::syntax::Source;
use crate::{
    Body, Compiled, Decision, Headers, Outcome, Policy, Request, Scheme, Subject, Verdict, compile,
};

/// The example that most tests use.
const POLICY: &str = r#"
version: 1
workloads:
  builder: { match: { unit: builder.service } }
  notebooks: { match: [{ cgroup: "/user.slice/**" }, { unit: jupyter.service }] }
  runner: {}
apis:
  github: { hosts: [api.github.com] }
  openai: { hosts: [api.openai.com] }
  ledger: { hosts: ["*.ledger.corp", main.ledger.corp], port: 8443, tls: { ca: "file:corp-ca.pem" }, addresses: [10.1.0.0/16] }
credentials:
  github-bot: { secret: "file:github-bot", header: { Authorization: "Bearer {secret}" }, to: [github] }
roles:
  triage:
    - api: github
      credential: github-bot
      allow:
        - route: GET /repos/acme/{repo}/issues
          query: { state: [open, closed, all], per_page: 1..100, page: int, labels: [string] }
        - route: GET /repos/acme/{repo}/pulls
          query: { state: [open] }
          extra: strip
        - route: PATCH /repos/acme/{repo}/issues/{number:int}
          body: { fields: { state: [open, closed], labels: [string], priority: [1, null], user: { name: string } }, max: 1KiB }
        - route: GET|HEAD /repos/{owner}/{repo}/**
        - route: OPTIONS /repos/**
        - route: DELETE /repos/acme/{id:uuid}
          query: { confirm: { type: bool, required: true } }
          headers: { allow: [x-reason] }
      deny:
        - route: "* /repos/acme/payroll/**"
      response: { strip: [Set-Cookie] }
  chat:
    - api: openai
      allow: [{ route: POST /v1/chat/completions }]
  own:
    - api: ledger
      credential: client
      allow: [{ route: "* /**" }]
grants:
  - { role: triage, to: { workload: builder } }
  - { role: own, to: { workload: builder }, mode: observe }
  - { role: chat, to: { workload: notebooks }, mode: observe }
"#;

fn source(name: &str, text: &str) -> Source {
    Source {
        name: name.into(),
        text: text.into(),
    }
}

fn compiled(text: &str) -> Compiled {
    compile(&[source("policy.yaml", text)]).unwrap_or_else(|faults| panic!("{faults}"))
}

fn policy() -> Policy {
    compiled(POLICY).policy
}

/// The clock of tests: 2026-06-01.
const NOW: i64 = 1_780_272_000;

/// Header fields in a list.
struct Fields<'a>(&'a [(&'a str, &'a str)]);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        self.0
            .iter()
            .filter(|(field, _)| *field == name)
            .for_each(|(_, value)| visit(value.as_bytes()));
    }
}

/// A request in a test's words; `url` is `https://host[:port]/target`.
struct Call<'a> {
    workload: &'a str,
    method: &'a str,
    url: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: Body<'a>,
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

fn call<'a>(workload: &'a str, method: &'a str, url: &'a str) -> Call<'a> {
    Call {
        workload,
        method,
        url,
        headers: &[],
        body: Body::Absent,
    }
}

impl<'a> Call<'a> {
    fn json(self, body: &'a str) -> Self {
        Self {
            headers: JSON,
            body: Body::Read(body.as_bytes()),
            ..self
        }
    }

    fn on<T>(&self, ask: impl FnOnce(&Subject<'_>, &Request<'_>) -> T) -> T {
        let (scheme, rest) = self.url.split_once("://").unwrap();
        let (authority, target) = rest.split_at(rest.find('/').unwrap());
        let (host, port) = Host::parse_authority(authority).unwrap();
        let target = Target::parse(target).unwrap();
        let scheme = if scheme == "http" {
            Scheme::Http
        } else {
            Scheme::Https
        };
        let request = Request {
            scheme,
            host: &host,
            port: port.unwrap_or(443),
            method: self.method,
            target: &target,
            headers: &Fields(self.headers),
            body: self.body,
            now: NOW,
        };
        ask(
            &Subject {
                workload: self.workload,
                identity: None,
            },
            &request,
        )
    }

    fn decide<'p>(&self, policy: &'p Policy) -> Decision<'p> {
        match self.on(|subject, request| policy.decide(subject, request)) {
            Outcome::Decided(decision) => decision,
            Outcome::NeedsBody { .. } => panic!("the body is asked for"),
        }
    }

    /// The route that allows, or the code of the denial.
    fn outcome(&self, policy: &Policy) -> String {
        let decision = self.decide(policy);
        match decision.verdict {
            Verdict::Allow => decision.rule.unwrap().route.to_string(),
            Verdict::Deny => decision.reason.unwrap().code.to_owned(),
        }
    }
}
