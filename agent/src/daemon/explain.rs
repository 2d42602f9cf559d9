//! Decides a question without sending anything: for `tollgate explain`, in the agent and offline.
use super::admin::wire::{Answer, Explained, Near, Question, RuleRef, Why};
use tollgate_policy::canonical::{Host, Target};
use tollgate_policy::syntax::Location;
use tollgate_policy::{
    Body, Explanation, Headers, Policy, Reason, Request, Rule, Scheme, Subject, Verdict,
};

/// Why a question is no request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not an absolute URL.
    #[error("{0}: not a URL: write it whole, e.g. https://api.example.com/path")]
    NotAUrl(String),
    /// The agent would answer 400.
    #[error("the agent refuses this with 400: {0}")]
    Ambiguous(String),
    /// No such workload.
    #[error("no workload {name} in the policy: it has {known}")]
    UnknownWorkload {
        /// As asked.
        name: String,
        /// The names there are.
        known: String,
    },
}

/// Headers of a question.
struct Given<'a>(&'a [(String, String)]);

impl Headers for Given<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        for (_, value) in self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)) {
            visit(value.as_bytes());
        }
    }
}

/// An absolute URL in its parts; nothing is decoded here.
struct Url<'a> {
    scheme: Scheme,
    authority: &'a str,
    target: String,
}

impl<'a> Url<'a> {
    fn parse(raw: &'a str) -> Result<Self, Error> {
        let not = || Error::NotAUrl(raw.to_owned());
        let (scheme, rest) = raw.split_once("://").ok_or_else(not)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return Err(not()),
        };
        let rest = rest.split('#').next().unwrap_or(rest);
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Self {
            scheme,
            authority,
            target: format!("{slash}{target}"),
        })
    }
}

/// Decides `question` under `policy`.
///
/// # Errors
/// What is asked is no request that the agent would decide on.
pub fn explain(policy: &Policy, question: &Question) -> Result<Explained, Error> {
    known_workload(policy, &question.workload)?;
    let url = Url::parse(&question.url)?;
    let ambiguous = |a: tollgate_policy::canonical::Ambiguity| Error::Ambiguous(a.to_string());
    let (host, port) = Host::parse_authority(url.authority).map_err(ambiguous)?;
    let target = Target::parse(&url.target).map_err(ambiguous)?;
    let default_port = if url.scheme == Scheme::Https { 443 } else { 80 };
    let request = Request {
        scheme: url.scheme,
        host: &host,
        port: port.unwrap_or(default_port),
        method: &question.method,
        target: &target,
        headers: &Given(&question.headers),
        body: question
            .body
            .as_deref()
            .map_or(Body::Absent, |b| Body::Read(b.as_bytes())),
        now: jiff::Timestamp::now().as_second(),
    };
    let subject = Subject {
        workload: &question.workload,
        identity: question.identity.as_deref(),
    };
    Ok(explained(
        policy,
        question,
        policy.explain(&subject, &request),
    ))
}

fn known_workload(policy: &Policy, name: &str) -> Result<(), Error> {
    if policy.workloads().iter().any(|w| w.name == name) {
        return Ok(());
    }
    let names: Vec<_> = policy.workloads().iter().map(|w| w.name.as_str()).collect();
    let known = if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    };
    Err(Error::UnknownWorkload {
        name: name.to_owned(),
        known,
    })
}

fn explained(policy: &Policy, question: &Question, explanation: Explanation<'_>) -> Explained {
    let decision = explanation.decision;
    let plan = &decision.plan;
    let credential_headers = plan
        .credential
        .map(|c| c.headers.iter().map(|(name, _)| name.clone()).collect());
    let dropped = question
        .headers
        .iter()
        .map(|(n, _)| n.to_ascii_lowercase())
        .filter(|n| !plan.headers.passes(n));
    Explained {
        verdict: match decision.verdict {
            Verdict::Allow => Answer::Allow,
            Verdict::Deny => Answer::Deny,
        },
        mode: decision.mode,
        rule: decision.rule.map(rule_ref),
        reason: decision.reason.as_ref().map(why),
        near: explanation
            .near
            .iter()
            .map(|n| Near {
                rule: rule_ref(n.rule),
                failed: why(&n.failed),
            })
            .collect(),
        api: plan.api.map(|a| a.name.clone()),
        credential: plan.credential.map(|c| c.name.clone()),
        injected: credential_headers.unwrap_or_default(),
        stripped: dropped
            .chain(plan.stripped_query.iter().map(|q| format!("?{q}")))
            .chain(plan.stripped_body.iter().map(|b| format!("body:{b}")))
            .collect(),
        policy_hash: policy.hash().to_owned(),
    }
}

fn rule_ref(rule: &Rule) -> RuleRef {
    RuleRef {
        label: rule.label.to_string(),
        at: place(&rule.at),
    }
}

fn place(at: &Location) -> String {
    format!("{}:{}:{}", at.file, at.line, at.column)
}

fn why(reason: &Reason) -> Why {
    Why {
        code: reason.code.to_owned(),
        detail: reason.detail.clone(),
        hint: reason.hint.clone(),
    }
}
