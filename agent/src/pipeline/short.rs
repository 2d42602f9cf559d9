//! What a client is told when a budget has not enough left: how much there is, until when, and what to do.
use super::refuse::Refusal;
use crate::audit::Verdict;
use crate::budget::{Line, Short, Unit};
use http::StatusCode;
use tollgate_policy::meter::Call;
use tollgate_policy::syntax::quote;
use tollgate_policy::{Budget, Price};

fn limit(status: StatusCode, code: &'static str, detail: String, hint: String) -> Refusal {
    Refusal {
        verdict: Verdict::Limit,
        ..Refusal::failed(status, code, detail, hint)
    }
}

/// What is left, until when, what was asked for, and what to do.
pub(super) fn exhausted(
    budget: &Budget,
    line: &Line,
    call: Option<((&Call, u64), u64)>,
    short: Short,
    now: u64,
) -> Refusal {
    let (account, quota) = (&line.account, line.quota);
    let unit = account.unit;
    let until = i64::try_from(short.until).ok();
    let until = until.and_then(|until| jiff::Timestamp::from_second(until).ok());
    let until = until.map_or_else(String::new, |until| until.to_string());
    let mut detail = format!(
        "budget {} has {} left of {}/{}, until {until}",
        quote(&budget.name),
        unit.show(short.left),
        unit.show(quota.amount),
        quota.window.as_str(),
    );
    if let Some(((call, tokens), amount)) = call {
        let output = tokens.saturating_sub(call.bytes);
        detail.push_str(&format!(
            ", and this call may take {} (up to {} tokens sent, {output} answered)",
            unit.show(amount),
            call.bytes
        ));
    }
    let (status, code) = match unit {
        Unit::Requests => (StatusCode::TOO_MANY_REQUESTS, unit.code()),
        _ => (StatusCode::FORBIDDEN, unit.code()),
    };
    let ask = match (unit, call.is_some() && short.left > 0) {
        (Unit::Tokens | Unit::Usd, true) => "ask for less (`max_tokens`), wait",
        _ => "wait",
    };
    let hint = format!(
        "{ask}, or raise `{}` of the budget at {}:{}",
        unit.as_str(),
        budget.at.file,
        budget.at.line
    );
    Refusal {
        retry_after: (unit == Unit::Requests).then(|| short.until.saturating_sub(now).max(1)),
        ..limit(status, code, detail, hint)
    }
}

/// A budget without accounts: a fault of the agent's, and no reason to let it pass uncounted.
pub(super) fn unknown() -> Refusal {
    Refusal::failed(
        StatusCode::INTERNAL_SERVER_ERROR,
        "undecided",
        "a budget fits this request, and there is no account to count it in".into(),
        "report this".into(),
    )
}

/// A transfer took all that was left of a budget of bytes.
pub(super) fn overspent(detail: &str) -> Refusal {
    limit(
        StatusCode::FORBIDDEN,
        Unit::Bytes.code(),
        detail.to_owned(),
        "wait, or raise `bytes` of the budget: `tollgate usage` shows when there is more".into(),
    )
}

/// Bodies that are held take all the room there is.
pub(super) fn full() -> Refusal {
    Refusal {
        verdict: Verdict::Limit,
        ..Refusal::failed(
            StatusCode::SERVICE_UNAVAILABLE,
            "held_bytes",
            "a budget has to know what the request may take, and too many bodies are held already to hold this one as well".into(),
            "try again, or raise `limits.held_bytes` in the configuration".into(),
        )
    }
}

/// What a call takes cannot be told.
pub(super) fn unmetered(budget: &Budget, why: &str) -> Refusal {
    limit(
        StatusCode::FORBIDDEN,
        "budget_unmetered",
        format!(
            "budget {} counts calls to models, and what this one takes cannot be told: {why}",
            quote(&budget.name)
        ),
        "call in a way that is counted, or take `tokens` and `usd` out of the budget".into(),
    )
}

/// What a call costs cannot be told.
pub(super) fn unpriced(budget: &Budget, call: &Call, price: Option<&Price>) -> Refusal {
    let (why, hint) = match (&call.model, price) {
            (Some(model), None) => (
                format!("the model {} has no price", quote(model)),
                "write what it costs under `prices:` of the policy, for example `NAME: { input: 0.15, output: 0.60 }` for a million tokens".to_owned(),
            ),
            _ => (
                "it cannot be told which one model is to answer".to_owned(),
                "send plain JSON that names one model with a price under `prices:`, and no others to fall back to".to_owned(),
            ),
        };
    let detail = format!(
        "budget {} limits what calls to models cost, and {why}",
        quote(&budget.name)
    );
    limit(StatusCode::FORBIDDEN, "budget_price", detail, hint)
}
