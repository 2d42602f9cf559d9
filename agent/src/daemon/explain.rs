//! Decides a question without sending anything: for `tollgate explain`, in the agent and offline.
use super::admin::wire::{Answer, Explained, Near, Question, RuleRef, Why};
use tollgate_policy::syntax::Location;
use tollgate_policy::tools::call::{Call, CallError};
use tollgate_policy::tools::cases::unknown;
use tollgate_policy::{Body, Explanation, Policy, Reason, Rule, Subject, Verdict};

/// Why a question is no request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No URL, or one that the agent would refuse.
    #[error(transparent)]
    Call(#[from] CallError),
    /// No such workload or identity.
    #[error("{0}")]
    UnknownName(String),
}

/// Decides `question` under `policy`.
///
/// # Errors
/// What is asked is no request that the agent would decide on.
pub fn explain(policy: &Policy, question: &Question) -> Result<Explained, Error> {
    check_names(policy, &question.workload, question.identity.as_deref())?;
    let call = Call {
        headers: question.headers.clone(),
        ..Call::new(&question.method, &question.url)?
    };
    let body = question
        .body
        .as_deref()
        .map_or(Body::Absent, |b| Body::Read(b.as_bytes()));
    let subject = Subject {
        workload: &question.workload,
        identity: question.identity.as_deref(),
    };
    let now = jiff::Timestamp::now().as_second();
    let explanation = policy.explain(&subject, &call.request(body, now));
    Ok(explained(policy, question, explanation))
}

/// Whether the policy has these names; what they were probably meant to be where it has not.
///
/// # Errors
/// It has one of them not.
pub fn check_names(policy: &Policy, workload: &str, identity: Option<&str>) -> Result<(), Error> {
    let workloads = policy.workloads().iter().map(|w| w.name.as_str());
    if !workloads.clone().any(|known| known == workload) {
        return Err(Error::UnknownName(unknown("workload", workload, workloads)));
    }
    let identities = policy.identities().iter().map(|i| i.name.as_str());
    match identity {
        Some(name) if !identities.clone().any(|known| known == name) => {
            Err(Error::UnknownName(unknown("identity", name, identities)))
        }
        _ => Ok(()),
    }
}

fn explained(policy: &Policy, question: &Question, explanation: Explanation<'_>) -> Explained {
    let decision = explanation.decision;
    let plan = &decision.plan;
    let injected = plan.credential.map(|c| c.form.header_names());
    let injected = injected.unwrap_or_default().into_iter();
    let dropped = question
        .headers
        .iter()
        .map(|(n, _)| n.to_ascii_lowercase())
        .filter(|n| !plan.headers.passes(n));
    let redacted = plan.response_redact.map(|redactor| {
        let pointers = redactor.pointers().iter();
        pointers
            .map(|pointer| pointer.as_str().to_owned())
            .collect()
    });
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
        injected: injected.map(str::to_owned).collect(),
        stripped: dropped
            .chain(plan.stripped_query.iter().map(|q| format!("?{q}")))
            .chain(plan.stripped_body.iter().map(|b| format!("body:{b}")))
            .collect(),
        response_stripped: plan.response_strip.to_vec(),
        response_redacted: redacted.unwrap_or_default(),
        response_max: plan.response_max,
        budgets: match decision.verdict {
            Verdict::Allow => counted(policy, question),
            Verdict::Deny => Vec::new(),
        },
        policy_hash: policy.hash().to_owned(),
    }
}

/// Names of the budgets that the request is counted in.
fn counted(policy: &Policy, question: &Question) -> Vec<String> {
    let subject = Subject {
        workload: &question.workload,
        identity: question.identity.as_deref(),
    };
    let fitting = policy.budgets_for(subject);
    fitting.map(|(_, budget)| budget.name.clone()).collect()
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
