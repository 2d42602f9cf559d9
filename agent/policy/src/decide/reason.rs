//! Denials in words: what was missing and what to do next. Names may appear, values never.
use super::{Ask, Failure, Lack};
use crate::body::BodyFault;
use crate::canonical::Host;
use crate::model::{Api, Reason, Request, Scheme, Subject};
use crate::policy::{Policy, RuleData};
use crate::syntax::quote;

fn reason(code: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Reason {
    Reason {
        code,
        detail: detail.into(),
        hint: hint.into(),
    }
}

/// `policy.yaml:31`.
fn place(rule: &RuleData) -> String {
    format!("{}:{}", rule.public.at.file, rule.public.at.line)
}

pub(super) fn unknown_host(policy: &Policy, request: &Request<'_>) -> Reason {
    let host = quote(request.host.as_str());
    let elsewhere = policy
        .hosts
        .find(request.host)
        .find_map(|(port, api)| policy.apis.get(api).map(|api| (port, quote(&api.name))));
    match elsewhere {
        Some((port, api)) => reason(
            "unknown_host",
            format!("no api of the policy has {host} on port {}", request.port),
            format!(
                "api {api} has this host on port {port}: use that port, or add an api for {}",
                request.port
            ),
        ),
        None => reason(
            "unknown_host",
            format!("no api of the policy has the host {host}"),
            "add it to the `hosts` of an api, or leave the host alone",
        ),
    }
}

pub(super) fn no_grant(subject: &Subject<'_>, api: Option<&Api>, known: bool) -> Reason {
    let workload = quote(subject.workload);
    let api = quote(api.map_or("", |api| &api.name));
    if known {
        let detail = format!("no grant gives workload {workload} a role on api {api}");
        return reason(
            "no_grant",
            detail,
            format!("grant it a role with an entry for {api} under `grants:`"),
        );
    }
    let hint = format!(
        "add a line to `grants:` with `to: {{ workload: {} }}`",
        subject.workload.escape_default()
    );
    reason(
        "no_grant",
        format!("workload {workload} has no grants"),
        hint,
    )
}

/// `api` has the name, and is granted but for its end.
pub(super) fn unnamed(workload: &str, host: &Host, api: Option<(&Api, bool)>) -> Reason {
    let (host, workload) = (quote(host.as_str()), quote(workload));
    let (detail, hint) = match api {
        None => (
            format!("no api of the policy has the host {host}"),
            format!(
                "to let {workload} look it up, add it to the `hosts` of an api that {workload} has a role on"
            ),
        ),
        Some((api, false)) => (
            format!(
                "no grant gives workload {workload} a role on api {}, which has the host {host}",
                quote(&api.name)
            ),
            "grant it a role with an entry for that api under `grants:`".to_owned(),
        ),
        Some((api, true)) => (
            format!(
                "workload {workload} may do nothing on api {}, which has the host {host}",
                quote(&api.name)
            ),
            "renew the grant if its `until` has passed, or add an `allow:` to the role".to_owned(),
        ),
    };
    reason("dns_name", detail, hint)
}

/// `what` would be allowed if the grant held.
pub(super) fn of_lack(lack: Lack, subject: &Subject<'_>, what: &str) -> Reason {
    let workload = quote(subject.workload);
    match (lack, subject.identity) {
        (Lack::Time, _) => reason(
            "expired",
            format!("what gave workload {workload} {what} has expired"),
            "renew the grant: its `until` has passed",
        ),
        (Lack::Proof, None) => reason(
            "identity_required",
            format!("{what} is granted to identities, and none was proven"),
            "call with the token of an identity that has the grant",
        ),
        (_, identity) => reason(
            "identity",
            format!(
                "{what} is granted to other identities than {}",
                quote(identity.unwrap_or(""))
            ),
            "add the identity to the grant's `to:`, or to a group there",
        ),
    }
}

pub(super) fn uninspected(api: &Api) -> Reason {
    reason(
        "uninspected",
        format!(
            "api {} is not inspected, and this request would have to be",
            quote(&api.name)
        ),
        "connect with TLS and the api's own name, or give the api `hosts`",
    )
}

pub(super) fn too_much_work() -> Reason {
    reason(
        "work",
        "to hold the patterns of the rules against this request takes too much work",
        "send less, or use smaller patterns: in most, `[a-z0-9]` does what `\\w` does",
    )
}

pub(super) fn denied_by_rule(rule: &RuleData) -> Reason {
    let detail = format!("{} forbids it", rule.public.label);
    reason(
        "denied_by_rule",
        detail,
        format!(
            "see {}; a deny rule wins over every allow rule",
            place(rule)
        ),
    )
}

pub(super) fn no_route(subject: &Subject<'_>, api: &Api, request: &Request<'_>) -> Reason {
    let detail = format!(
        "no rule of workload {} on api {} has this path (method {})",
        quote(subject.workload),
        quote(&api.name),
        quote(request.method)
    );
    reason(
        "no_route",
        detail,
        "`tollgate explain` with this request shows the nearest rules",
    )
}

pub(super) fn cleartext(api: &Api) -> Reason {
    if api.scheme == Scheme::Http {
        let detail = format!(
            "api {} is reached in clear, and the request came through TLS",
            quote(&api.name)
        );
        return reason("cleartext", detail, "use `http://`");
    }
    let detail = format!("the request to api {} came without TLS", quote(&api.name));
    reason("cleartext", detail, "use `https://`")
}

pub(super) fn body_unread() -> Reason {
    reason(
        "body_invalid",
        "a rule must see the body",
        "give the body too",
    )
}

/// Why a rule did not take the request.
pub(super) fn of_failure(rule: &RuleData, failure: &Failure<'_>, ask: &Ask<'_>) -> Reason {
    let (route, at) = (&rule.public.route, place(rule));
    let request = ask.request;
    match failure {
        Failure::Route => reason(
            "no_route",
            format!("the path is not that of {route}"),
            format!("the rule stands at {at}"),
        ),
        Failure::Method => reason(
            "method",
            format!(
                "{route} has this path, and not the method {}",
                quote(request.method)
            ),
            format!("add the method to the `route` at {at}, or use one that it has"),
        ),
        Failure::QueryExtra(name) => reason(
            "query_extra",
            format!("parameter {} is not declared by {route}", quote(name)),
            format!("add it under `query:` at {at}, or drop it from the request"),
        ),
        Failure::QueryValue { name, expected } => reason(
            "query_value",
            format!("parameter {} of {route} must be {expected}", quote(name)),
            format!("send a declared value, or widen it under `query:` at {at}"),
        ),
        Failure::QueryDuplicate(name) => reason(
            "query_duplicate",
            format!(
                "parameter {} of {route} is sent more than once",
                quote(name)
            ),
            format!("send it once, or declare it as a list under `query:` at {at}"),
        ),
        Failure::QueryMissing(name) => reason(
            "query_missing",
            format!("parameter {} is required by {route}", quote(name)),
            format!("send it, or drop `required` under `query:` at {at}"),
        ),
        Failure::HeaderMissing(name) => reason(
            "header_missing",
            format!("header {} is required by {route}", quote(name)),
            format!("send it, or drop it under `headers: require:` at {at}"),
        ),
        Failure::HeaderValue { name, expected } => reason(
            "header_value",
            format!("header {} of {route} must be {expected}, once", quote(name)),
            format!("send a declared value, or widen it under `headers: require:` at {at}"),
        ),
        Failure::GrpcType => reason(
            "grpc_type",
            format!("{route} takes gRPC: one `Content-Type: application/grpc`"),
            format!("call it with a gRPC client, or give `route` instead of `grpc` at {at}"),
        ),
        Failure::WebSocket if rule.websocket.is_some() => reason(
            "websocket",
            format!("{route} opens a WebSocket, and the request asks for none"),
            format!("use a WebSocket client, or take `websocket` out of the rule at {at}"),
        ),
        Failure::WebSocket => reason(
            "websocket",
            format!("{route} opens no WebSocket"),
            format!("add a rule with this route and `websocket: true` beside the one at {at}"),
        ),
        Failure::Message(fault) => of_message(rule, fault),
        Failure::MessageCondition(text, trouble) => {
            let why = trouble.as_ref().map(|trouble| format!(": {trouble}"));
            reason(
                "message_condition",
                format!(
                    "a message on {route} does not hold its condition{}",
                    why.unwrap_or_default()
                ),
                format!("it is {}, under `websocket:` at {at}", quote(text)),
            )
        }
        Failure::Body(fault) => of_body(rule, fault),
        Failure::Payload(fault) => reason(
            fault.code,
            format!("{route}: {}", fault.detail),
            format!("{} (the rule stands at {at})", fault.hint),
        ),
        Failure::Condition(text, None) => reason(
            "condition",
            format!("the condition of {route} does not hold"),
            format!("it is {}, at {at}", quote(text)),
        ),
        Failure::Condition(text, Some(trouble)) => reason(
            "condition",
            format!("the condition of {route} cannot be evaluated: {trouble}"),
            format!("it is {}, at {at}", quote(text)),
        ),
        Failure::Guard(lack) => of_lack(*lack, ask.subject, route),
    }
}

/// In the words of a body, of a message on a WebSocket.
fn of_message(rule: &RuleData, fault: &BodyFault) -> Reason {
    let (route, at) = (&rule.public.route, place(rule));
    let told = of_body(rule, fault);
    let code = match told.code {
        "body_type" => {
            return reason(
                "message_type",
                format!("a message on {route} is no text"),
                format!("send text, or write `binary: true` under `websocket:` at {at}"),
            );
        }
        "body_too_large" => "message_too_large",
        "body_field" => "message_field",
        "body_schema" => "message_schema",
        _ => "message_invalid",
    };
    let detail = match told.detail.strip_prefix("the body ") {
        Some(rest) => format!("a message {rest}"),
        None => format!("a message: {}", told.detail),
    };
    let hint = told.hint.replace("`body:", "`websocket:");
    reason(code, detail, hint)
}

fn of_body(rule: &RuleData, fault: &BodyFault) -> Reason {
    let (route, at) = (&rule.public.route, place(rule));
    match fault {
        BodyFault::Absent => reason(
            "body_invalid",
            format!("{route} expects a body, and there is none"),
            format!("send one, or drop `body:` at {at}"),
        ),
        BodyFault::Type => reason(
            "body_type",
            format!("{route} takes one `Content-Type`: JSON or a form, in UTF-8"),
            "send `application/json` or `application/x-www-form-urlencoded`",
        ),
        BodyFault::Encoding => reason(
            "body_encoding",
            format!("the body of {route} must not be compressed"),
            "send it without `Content-Encoding`",
        ),
        BodyFault::TooLarge(max) => reason(
            "body_too_large",
            format!("the body is larger than the {max} bytes that {route} takes"),
            format!("send less, or raise `max` under `body:` at {at}"),
        ),
        BodyFault::Invalid(why) => reason(
            "body_invalid",
            format!("the body cannot be read without doubt: {why}"),
            "send it so that every reader reads the same",
        ),
        BodyFault::Undeclared(name) => reason(
            "body_field",
            format!("field {name} is not declared by {route}"),
            format!("add it under `body: fields:` at {at}, or drop it from the request"),
        ),
        BodyFault::Value { field, expected } => reason(
            "body_field",
            format!("field {field} of {route} must be {expected}"),
            format!("send a declared value, or widen it under `body: fields:` at {at}"),
        ),
        BodyFault::Missing(name) => reason(
            "body_field",
            format!("field {name} is required by {route}"),
            format!("send it, or drop it from `body: required:` at {at}"),
        ),
        BodyFault::Schema { pointer, keyword } => reason(
            "body_schema",
            format!(
                "the body of {route} is not of its schema: {} fails {}",
                if pointer.is_empty() {
                    "the whole".to_owned()
                } else {
                    quote(pointer)
                },
                quote(keyword)
            ),
            format!("send what the schema says, or widen `body: schema:` at {at}"),
        ),
        BodyFault::Twice(name) => reason(
            "body_field",
            format!("field {name} of {route} is sent more than once"),
            format!("send it once, or declare it as a list under `body: fields:` at {at}"),
        ),
    }
}
