//! Policies and requests that the benches measure with: made by number, so that every run has the same.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a bench that cannot be set up has no other way to say so"
)]
use std::fmt::Write as _;
use tollgate_policy::canonical::{Host, Target};
use tollgate_policy::syntax::Source;
use tollgate_policy::{
    Body, Decision, Headers, Outcome, Policy, Request, Scheme, Subject, compile,
};

/// How large a made policy is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Rules in all, allow and deny.
    pub rules: usize,
    /// A fifth of the rules is on the first, the others share the rest.
    pub apis: usize,
    /// Each has the role on the first api and on a few others.
    pub workloads: usize,
}

/// The sizes that are compared.
pub const SIZES: [Size; 3] = [
    Size {
        rules: 10,
        apis: 1,
        workloads: 1,
    },
    Size {
        rules: 1_000,
        apis: 50,
        workloads: 20,
    },
    Size {
        rules: 10_000,
        apis: 500,
        workloads: 200,
    },
];

/// Roles of a workload, at most.
const ROLES: usize = 6;

/// Bytes of the JSON body that is decided on, about.
const BODY: usize = 4 << 10;

/// Declared fields of that body.
const FIELDS: usize = 20;

/// A call that is decided on, owned.
#[derive(Debug)]
pub struct Call {
    /// Who asks.
    pub workload: String,
    /// Of which host.
    pub host: Host,
    /// How.
    pub method: &'static str,
    /// For what.
    pub target: Target<'static>,
    /// The target as the client wrote it.
    pub raw: String,
}

/// The headers of a JSON request.
#[derive(Debug)]
pub struct Json;

impl Headers for Json {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        if name == "content-type" {
            visit(b"application/json");
        }
    }
}

impl Call {
    /// The call of `workload` on api `api`.
    pub fn new(workload: usize, api: usize, method: &'static str, raw: String) -> Self {
        Self {
            workload: format!("w{workload}"),
            host: Host::parse(&host(api)).expect("a host"),
            method,
            target: Target::parse(&raw).expect("a target").into_owned(),
            raw,
        }
    }

    /// Decides this call.
    pub fn decide<'p>(&self, policy: &'p Policy, body: Body<'_>) -> Decision<'p> {
        self.decide_at(policy, &self.target, body)
    }

    /// Decides this call with another target.
    pub fn decide_at<'p>(
        &self,
        policy: &'p Policy,
        target: &Target<'_>,
        body: Body<'_>,
    ) -> Decision<'p> {
        let request = Request {
            scheme: Scheme::Https,
            host: &self.host,
            port: 443,
            method: self.method,
            target,
            headers: &Json,
            body,
            now: 1_800_000_000,
        };
        let subject = Subject {
            workload: &self.workload,
            identity: None,
        };
        match policy.decide(&subject, &request) {
            Outcome::Decided(decision) => decision,
            Outcome::NeedsBody { .. } => panic!("the body was given"),
        }
    }
}

fn host(api: usize) -> String {
    format!("api{api}.example")
}

impl Size {
    /// Rules on an api.
    fn rules_on(&self, api: usize) -> usize {
        let first = match self.apis {
            1 => self.rules,
            _ => self.rules / 5,
        };
        match api {
            0 => first,
            _ => {
                let rest = self.rules - first;
                rest / (self.apis - 1) + usize::from(api <= rest % (self.apis - 1))
            }
        }
    }

    /// Apis that a workload has a role on: the first, and others spread over all.
    fn apis_of(&self, workload: usize) -> Vec<usize> {
        let others = (1..ROLES).map(|number| (workload * 7 + number * 37) % self.apis);
        let mut apis: Vec<usize> = std::iter::once(0).chain(others).collect();
        apis.sort_unstable();
        apis.dedup();
        apis
    }

    /// The document.
    pub fn document(&self) -> String {
        let mut text = String::from("version: 1\nworkloads:\n");
        for workload in 0..self.workloads {
            line(
                &mut text,
                format_args!("  w{workload}: {{ match: {{ unit: w{workload}.service }} }}"),
            );
        }
        text.push_str("apis:\n");
        for api in 0..self.apis {
            line(
                &mut text,
                format_args!("  a{api}: {{ hosts: [{}] }}", host(api)),
            );
        }
        text.push_str("roles:\n");
        for api in 0..self.apis {
            line(
                &mut text,
                format_args!("  r{api}:\n    - api: a{api}\n      allow:"),
            );
            if api == 0 {
                text.push_str(&body_rule());
            }
            // Beside these one denies, and one on the first api takes a body.
            for number in 0..self.rules_on(api) - 1 - usize::from(api == 0) {
                text.push_str(&rule(number));
            }
            text.push_str("      deny:\n        - route: \"* /v1/{tenant}/payroll/**\"\n");
        }
        text.push_str("grants:\n");
        for workload in 0..self.workloads {
            for api in self.apis_of(workload) {
                line(
                    &mut text,
                    format_args!("  - {{ role: r{api}, to: {{ workload: w{workload} }} }}"),
                );
            }
        }
        text
    }

    /// The compiled policy.
    pub fn policy(&self) -> Policy {
        compiled(self.document())
    }

    /// Calls of all workloads in turn, each on one of its apis, made from `call` with the number of
    /// plain allow rules there.
    fn calls(&self, call: impl Fn(usize, usize) -> (&'static str, String)) -> Vec<Call> {
        let made = |number: usize| {
            let workload = number * 13 % self.workloads;
            let apis = self.apis_of(workload);
            let api = *apis.get(number % apis.len()).expect("an api");
            let rules = self.rules_on(api) - 1 - usize::from(api == 0);
            let (method, raw) = call(number, number * 31 % rules);
            Call::new(workload, api, method, raw)
        };
        (0..512).map(made).collect()
    }

    /// Calls that rules all over the policy allow.
    pub fn hits(&self) -> Vec<Call> {
        self.calls(hit)
    }

    /// Calls that no rule has.
    pub fn misses(&self) -> Vec<Call> {
        self.calls(|number, rule| ("GET", format!("/v1/t{number}/none/res{rule}/of/these")))
    }

    /// Calls that a rule denies.
    pub fn denials(&self) -> Vec<Call> {
        self.calls(|number, _| ("GET", format!("/v1/t{number}/payroll/2026/{number}")))
    }
}

/// A policy of a document without faults.
pub fn compiled(text: String) -> Policy {
    let source = Source {
        name: "made.yaml".into(),
        text,
    };
    match compile(&[source]) {
        Ok(compiled) => compiled.policy,
        Err(faults) => panic!("{faults}"),
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes all");
}

/// The rule of this number: every second has a template, every third declares its query.
fn rule(number: usize) -> String {
    let route = match number % 4 {
        0 => format!("GET /v1/groups/all/res{number}/list"),
        1 => format!("GET /v1/{{tenant}}/res{number}/{{id:int}}/parts/{{part}}"),
        2 => format!("POST /v1/groups/res{number}"),
        _ => format!("GET|HEAD /v1/{{tenant}}/res{number}/**"),
    };
    let query = match number % 3 {
        0 => "          query: { state: [open, closed, all], page: 1..1000, q: string }\n",
        _ => "",
    };
    format!("        - route: {route}\n{query}")
}

/// A call that [`rule`] takes.
fn hit(number: usize, rule: usize) -> (&'static str, String) {
    let query = match rule % 3 {
        0 => "?state=open&page=7",
        _ => "",
    };
    let (method, path) = match rule % 4 {
        0 => ("GET", format!("/v1/groups/all/res{rule}/list")),
        1 => ("GET", format!("/v1/t{number}/res{rule}/{number}/parts/p1")),
        2 => ("POST", format!("/v1/groups/res{rule}")),
        _ => ("HEAD", format!("/v1/t{number}/res{rule}/a/b/c")),
    };
    (method, format!("{path}{query}"))
}

/// The rule that looks at bodies.
fn body_rule() -> String {
    let shape = |number: usize| match number % 5 {
        0 => "string",
        1 => "int",
        2 => "[open, closed]",
        3 => "[string]",
        _ => "{ id: uuid, on: bool }",
    };
    let fields: Vec<String> = (0..FIELDS)
        .map(|number| format!("field{number}: {}", shape(number)))
        .collect();
    format!(
        "        - route: POST /v1/documents\n          body: {{ fields: {{ {} }}, max: 16KiB }}\n",
        fields.join(", ")
    )
}

/// The call whose body is looked at.
pub fn body_call() -> Call {
    Call::new(0, 0, "POST", "/v1/documents".to_owned())
}

/// A body of 4 KiB that the rule takes.
pub fn body() -> String {
    let value = |number: usize, text: usize| match number % 5 {
        0 => format!("\"{}\"", "text and more ".repeat(text / 14)),
        1 => format!("{}", number * 1_000_003),
        2 => "\"closed\"".to_owned(),
        3 => format!("[\"one\", \"two\", \"{}\"]", "x".repeat(text)),
        _ => "{\"id\": \"123e4567-e89b-12d3-a456-426614174000\", \"on\": true}".to_owned(),
    };
    let made = |text: usize| {
        let members: Vec<String> = (0..FIELDS)
            .map(|number| format!("\"field{number}\": {}", value(number, text)))
            .collect();
        format!("{{{}}}", members.join(", "))
    };
    let longest = (0..).map(made).take_while(|body| body.len() <= BODY);
    longest.last().expect("a body")
}
