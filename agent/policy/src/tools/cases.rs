//! Cases that a policy must decide as its author expects: `tollgate test`.
//!
//! ```yaml
//! policy: [policy.yaml]            # relative to this file
//! now: 2026-06-01T00:00:00Z        # 2026-01-01 unless said: results do not depend on the day
//! cases:
//!   - name: triage reads issues
//!     workload: report-builder
//!     identity: alice
//!     request: GET https://api.github.com/repos/acme/app/issues?state=open
//!     headers: { accept: application/json }
//!     json: { a: 1 }               # or body: '{"a":1}', or file: body.json
//!     expect: allow                # or deny; or a mapping with more
//!   - workload: report-builder
//!     request: GET https://api.github.com/repos/acme/app/issues?debug=1
//!     expect: { verdict: deny, code: query_extra, mode: enforce }
//! ```
//!
//! An expectation may also name `rule` (its route, its label, or `file:line`), `credential` (a name, or `none`), and
//! `stripped` (all that is taken out: headers, `?parameter`, `body:/pointer`).
use super::call::Call;
use super::coverage::Coverage;
use crate::model::{Body, Decision, Mode, Outcome, Rule, Subject, Verdict};
use crate::policy::Policy;
use crate::syntax::{Faults, Location, Source, nearest, quote};
use std::collections::HashMap;

/// A file of cases.
#[derive(Debug)]
pub struct Suite {
    /// The policy's files, relative to the file of cases; empty where it names none.
    pub policy: Vec<String>,
    /// The time at which all is decided: seconds since 1970 (UTC).
    pub now: i64,
    /// What must hold.
    pub cases: Vec<Case>,
}

/// One call and what must come of it.
#[derive(Debug)]
pub struct Case {
    /// Its name; its request where it has none.
    pub name: String,
    /// Where it stands.
    pub at: Location,
    /// Who asks.
    pub workload: String,
    /// Who was proven.
    pub identity: Option<String>,
    /// What is asked.
    pub call: Call,
    /// With this body.
    pub body: CaseBody,
    /// What must come of it.
    pub expect: Expect,
}

/// The body of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaseBody {
    /// There is none.
    None,
    /// This.
    Text(String),
    /// What this file holds, relative to the file of cases.
    File(String),
}

/// What must come of a case; what is not said may be anything.
#[derive(Debug)]
pub struct Expect {
    /// Allowed or denied.
    pub verdict: Verdict,
    /// The denial's code.
    pub code: Option<String>,
    /// Route, label or `file:line` of the rule that decides.
    pub rule: Option<String>,
    /// Whether the verdict stands.
    pub mode: Option<Mode>,
    /// Everything that is taken out, sorted.
    pub stripped: Option<Vec<String>>,
    /// The credential's name, or `none`.
    pub credential: Option<String>,
}

/// What came of a case.
#[derive(Debug, serde::Serialize)]
pub struct CaseResult {
    /// The case's name.
    pub name: String,
    /// Where it stands.
    pub at: Location,
    /// Whether all is as expected.
    pub passed: bool,
    /// `ALLOW`, `DENY` or `WOULD-DENY`; `ERROR` where it could not be decided.
    pub verdict: &'static str,
    /// The rule that decided, and where it stands.
    pub rule: Option<String>,
    /// Each thing that is not as expected.
    pub drift: Vec<String>,
    /// Why it came so, where it is not as expected.
    pub why: Vec<String>,
}

impl Suite {
    /// Reads a file of cases.
    ///
    /// # Errors
    /// Every fault of the file.
    pub fn read(source: &Source) -> Result<Self, Faults> {
        super::read::suite(source)
    }

    /// The files that hold bodies.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.cases.iter().filter_map(|case| match &case.body {
            CaseBody::File(name) => Some(name.as_str()),
            CaseBody::None | CaseBody::Text(_) => None,
        })
    }

    /// Decides every case, noting which rules decided. `bodies` holds the contents of [`Suite::files`].
    pub fn run(
        &self,
        policy: &Policy,
        bodies: &HashMap<String, Vec<u8>>,
        coverage: &mut Coverage,
    ) -> Vec<CaseResult> {
        let cases = self.cases.iter();
        cases
            .map(|case| case.run(policy, bodies, self.now, coverage))
            .collect()
    }
}

impl Case {
    fn run(
        &self,
        policy: &Policy,
        bodies: &HashMap<String, Vec<u8>>,
        now: i64,
        coverage: &mut Coverage,
    ) -> CaseResult {
        let unknown = self.unknown_name(policy);
        let body = match &self.body {
            CaseBody::None => Some(Body::Absent),
            CaseBody::Text(text) => Some(Body::Read(text.as_bytes())),
            CaseBody::File(name) => bodies.get(name).map(|body| Body::Read(body)),
        };
        let (Some(body), None) = (body, &unknown) else {
            let problem = unknown.unwrap_or_else(|| "its file was not read".to_owned());
            return self.result("ERROR", None, vec![problem], Vec::new());
        };
        let request = self.call.request(body, now);
        let subject = Subject {
            workload: &self.workload,
            identity: self.identity.as_deref(),
        };
        let Outcome::Decided(decision) = policy.decide(&subject, &request) else {
            let problem = "a rule must see the body".to_owned();
            return self.result("ERROR", None, vec![problem], Vec::new());
        };
        if let Some(rule) = decision.rule {
            coverage.hit(&rule.at);
        }
        let drift = self.drift(&decision);
        let mut why = Vec::new();
        if !drift.is_empty() {
            if let Some(reason) = &decision.reason {
                why.push(format!("{}: {}", reason.code, reason.detail));
                why.push(reason.hint.clone());
                let near = policy.explain(&subject, &request).near;
                why.extend(near.iter().take(3).map(|near| {
                    let (label, at) = (&near.rule.label, place(near.rule));
                    format!("near: {label} ({at}): {}", near.failed.detail)
                }));
            } else if let Some(rule) = decision.rule {
                why.push(format!("allowed by {} ({})", rule.label, place(rule)));
            }
        }
        let verdict = match (decision.verdict, decision.mode) {
            (Verdict::Allow, _) => "ALLOW",
            (Verdict::Deny, Mode::Enforce) => "DENY",
            (Verdict::Deny, Mode::Observe) => "WOULD-DENY",
        };
        self.result(verdict, decision.rule, drift, why)
    }

    fn result(
        &self,
        verdict: &'static str,
        rule: Option<&Rule>,
        drift: Vec<String>,
        why: Vec<String>,
    ) -> CaseResult {
        CaseResult {
            name: self.name.clone(),
            at: self.at.clone(),
            passed: drift.is_empty(),
            verdict,
            rule: rule.map(|rule| format!("{} ({})", rule.label, place(rule))),
            drift,
            why,
        }
    }

    /// A name that the policy does not have is a mistake, not a denial.
    fn unknown_name(&self, policy: &Policy) -> Option<String> {
        let workloads = || policy.workloads().iter().map(|known| known.name.as_str());
        let identities = || policy.identities().iter().map(|known| known.name.as_str());
        if !workloads().any(|known| known == self.workload) {
            return Some(unknown("workload", &self.workload, workloads()));
        }
        let identity = self.identity.as_deref()?;
        (!identities().any(|known| known == identity))
            .then(|| unknown("identity", identity, identities()))
    }

    /// Each thing that came otherwise than expected.
    fn drift(&self, decision: &Decision<'_>) -> Vec<String> {
        let (expect, mut drift) = (&self.expect, Vec::new());
        let mut differ = |what: &str, expected: &str, came: &str| {
            drift.push(format!("{what}: expected {expected}, came {came}"));
        };
        if decision.verdict != expect.verdict {
            let word = |verdict| match verdict {
                Verdict::Allow => "allow",
                Verdict::Deny => "deny",
            };
            differ("verdict", word(expect.verdict), word(decision.verdict));
        }
        let code = decision
            .reason
            .as_ref()
            .map_or("none", |reason| reason.code);
        if let Some(expected) = expect.code.as_deref().filter(|expected| *expected != code) {
            differ("code", expected, code);
        }
        if let Some(expected) = &expect.rule {
            let is = |rule: &Rule| {
                let at = format!("{}:{}", rule.at.file, rule.at.line);
                [&*rule.route, &*rule.label, &at].contains(&expected.as_str())
            };
            if !decision.rule.is_some_and(is) {
                let came = decision
                    .rule
                    .map(|rule| format!("{} ({})", rule.label, place(rule)));
                differ("rule", expected, came.as_deref().unwrap_or("none"));
            }
        }
        if let Some(expected) = expect.mode.filter(|expected| *expected != decision.mode) {
            let word = |mode| match mode {
                Mode::Enforce => "enforce",
                Mode::Observe => "observe",
            };
            differ("mode", word(expected), word(decision.mode));
        }
        let credential = decision.plan.credential.map_or("none", |known| &known.name);
        if let Some(expected) = expect.credential.as_deref()
            && expected != credential
        {
            differ("credential", expected, credential);
        }
        if let Some(expected) = &expect.stripped {
            let came = self.stripped(decision);
            if *expected != came {
                let list = |names: &[String]| format!("[{}]", names.join(", "));
                differ("stripped", &list(expected), &list(&came));
            }
        }
        drift
    }

    /// Headers, `?parameters` and parts of the body that would be taken out, sorted.
    fn stripped(&self, decision: &Decision<'_>) -> Vec<String> {
        let plan = &decision.plan;
        let headers = self.call.headers.iter();
        let headers = headers.map(|(name, _)| name.to_ascii_lowercase());
        let mut names: Vec<String> = headers.filter(|name| !plan.headers.passes(name)).collect();
        names.extend(plan.stripped_query.iter().map(|name| format!("?{name}")));
        names.extend(plan.stripped_body.iter().map(|name| format!("body:{name}")));
        names.sort_unstable();
        names.dedup();
        names
    }
}

fn place(rule: &Rule) -> String {
    format!("{}:{}", rule.at.file, rule.at.line)
}

/// What to say of a name that the policy does not have.
pub fn unknown<'k>(kind: &str, name: &str, known: impl Iterator<Item = &'k str> + Clone) -> String {
    let there_is_no = format!("there is no {kind} {} in the policy", quote(name));
    match nearest(name, known.clone()) {
        Some(near) => format!("{there_is_no}: did you mean `{near}`?"),
        None if known.clone().next().is_none() => format!("{there_is_no}: it has none"),
        None => format!("{there_is_no}: it has {}", crate::meaning::listed(known)),
    }
}
