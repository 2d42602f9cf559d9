//! What goes upstream: the canonical target, only the headers that are needed, and the real credential.
//! The one place that reveals a secret.
use super::account::Tracker;
use super::authorize::{Authorized, now};
use super::body::RequestBody;
use super::hop;
use super::parse::Parsed;
use super::refuse::Refusal;
use super::screen::ResponseRules;
use super::serve::Peer;
use super::sign::Signing;
use super::websocket;
use crate::secrets::{Injection, Put, Unsigned};
use crate::snapshot::Snapshot;
use crate::upstream::{Destination, Key, Via};
use http::header::{self, HeaderName};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, StatusCode};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tollgate_policy::canonical::Target;
use tollgate_policy::{HeaderRules, Plan, Scheme};

/// A request ready to send.
pub(super) struct Rewritten<'p> {
    /// As it was asked, for decisions on a later policy.
    pub(super) parsed: Parsed,
    pub(super) headers: HeaderMap,
    pub(super) target: PathAndQuery,
    pub(super) body: RequestBody,
    pub(super) key: Key,
    pub(super) response: ResponseRules<'p>,
    /// Where it asks for a WebSocket: bytes of a message at most.
    pub(super) websocket: Option<usize>,
    snapshot: &'p Snapshot,
    via: Via,
    plan_api: Option<&'p tollgate_policy::Api>,
    _made_here: (),
}

impl Rewritten<'_> {
    /// Generation of the snapshot that it was decided by.
    pub(super) fn generation(&self) -> u64 {
        self.snapshot.generation
    }

    /// Whether it goes in clear.
    pub(super) fn in_clear(&self) -> bool {
        self.plan_api.is_some_and(|api| api.scheme == Scheme::Http)
    }

    /// Where it goes, for a new connection.
    pub(super) fn destination(&self, own: &Arc<[SocketAddr]>) -> Destination {
        Destination {
            host: (*self.parsed.host).clone(),
            port: self.parsed.port,
            allowed: self
                .plan_api
                .map(|api| api.addresses.clone())
                .unwrap_or_default(),
            via: self.via.clone(),
            own: Arc::clone(own),
        }
    }
}

/// Strips and injects as the plan says.
pub(super) fn rewrite<'p>(
    peer: &Peer,
    snapshot: &'p Snapshot,
    (authorized, signing): (Authorized<'p>, Option<Signing>),
    tracker: &mut Tracker,
) -> Result<Rewritten<'p>, Refusal> {
    let Authorized {
        mut parsed,
        body,
        edited,
        plan,
        ..
    } = authorized;
    let mut headers = std::mem::take(&mut parsed.headers);
    let trailers = parsed.h2 && headers.get(header::TE).is_some_and(|te| te == "trailers");
    parsed.headers = looked_at(&headers, snapshot);
    let mut stripped = strip(&mut headers, &plan.headers);
    let injection = injection(snapshot, &plan)?;
    let via = snapshot.secrets.via(plan.api).ok_or_else(|| {
        let api = plan.api.map_or("this host", |api| &api.name);
        unavailable(format!("what {api} is verified by cannot be had now"))
    })?;
    let mut response = ResponseRules::of(&plan, injection.map(Injection::masker));
    response.metered = tracker
        .charge()
        .is_some_and(|charge| charge.meter().is_some());
    stripped.extend(response.ask_plainly(&mut headers));
    if edited {
        stripped.extend(drop_digests(&mut headers));
    }
    stripped.extend(plan.stripped_query.iter().map(|name| format!("?{name}")));
    stripped.extend(
        plan.stripped_body
            .iter()
            .map(|place| format!("body:{place}")),
    );
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let websocket = parsed.websocket.as_ref().map(|handshake| {
        handshake.ask(&mut headers);
        // Where a denial is only observed, no rule bounds them.
        plan.websocket.unwrap_or(websocket::MOST)
    });
    let target = target(&parsed, &plan)?;
    // Last: what is signed is what is sent.
    let injected = match injection {
        Some(injection) => inject(&mut headers, injection, (&parsed, &target), signing)?,
        None => Vec::new(),
    };
    let credential = plan
        .credential
        .map(|credential| Arc::from(credential.name.as_str()));
    tracker.rewritten(stripped, injected, credential.clone());
    let key = Key {
        host: Rc::clone(&parsed.host),
        port: parsed.port,
        workload: Arc::clone(&peer.flow.workload),
        identity: parsed.identity.clone(),
        credential,
        generation: snapshot.generation,
    };
    Ok(Rewritten {
        parsed,
        headers,
        target,
        body,
        key,
        response,
        websocket,
        snapshot,
        via,
        plan_api: plan.api,
        _made_here: (),
    })
}

/// Kept for deciding again when the policy changes: what rules look at, and what tells a body's kind.
fn looked_at(headers: &HeaderMap, snapshot: &Snapshot) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in [header::CONTENT_TYPE, header::UPGRADE] {
        if let Some(value) = headers.get(&name) {
            kept.insert(name, value.clone());
        }
    }
    for name in snapshot.policy.headers_read() {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            continue;
        };
        kept.remove(&name);
        for value in headers.get_all(&name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// Headers of one connection only (RFC 9110, section 7.6.1), and those that hyper writes itself.
fn hop_by_hop(name: &HeaderName) -> bool {
    const FRAMING: [HeaderName; 8] = [
        header::CONNECTION,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::HOST,
        header::CONTENT_LENGTH,
        header::EXPECT,
    ];
    FRAMING.contains(name)
        || matches!(
            name.as_str(),
            "keep-alive" | "proxy-connection" | "http2-settings"
        )
}

/// Removes what may not pass; returns the names worth recording.
fn strip(headers: &mut HeaderMap, rules: &HeaderRules<'_>) -> Vec<String> {
    let mut gone = hop::listed(headers);
    gone.extend(
        headers
            .keys()
            .filter(|name| hop_by_hop(name) || !rules.passes(name.as_str()))
            .cloned(),
    );
    let mut recorded = Vec::new();
    for name in gone {
        if headers.remove(&name).is_some() && !hop_by_hop(&name) {
            recorded.push(name.as_str().to_owned());
        }
    }
    recorded
}

/// Digests of a body that is no longer sent (RFC 9530, RFC 3230, RFC 1864); returns the names there were.
fn drop_digests(headers: &mut HeaderMap) -> Vec<String> {
    let there = hop::DIGESTS
        .iter()
        .filter(|name| headers.remove(**name).is_some());
    there.map(|name| (*name).to_owned()).collect()
}

/// What the plan puts in.
fn injection<'p>(
    snapshot: &'p Snapshot,
    plan: &Plan<'_>,
) -> Result<Option<&'p Injection>, Refusal> {
    let Some(credential) = plan.credential else {
        return Ok(None);
    };
    let injection = snapshot.secrets.injection(credential).ok_or_else(|| {
        unavailable(format!(
            "the credential {} has no value now",
            credential.name
        ))
    })?;
    Ok(Some(injection))
}

fn unavailable(detail: String) -> Refusal {
    Refusal::failed(
        StatusCode::SERVICE_UNAVAILABLE,
        "secret_unavailable",
        detail,
        "`tollgate status` shows which secret could not be read".into(),
    )
}

fn inject(
    headers: &mut HeaderMap,
    injection: &Injection,
    (parsed, target): (&Parsed, &PathAndQuery),
    signing: Option<Signing>,
) -> Result<Vec<String>, Refusal> {
    match (injection.reveal(), signing) {
        (Put::Headers(put), _) => {
            for (name, value) in put {
                headers.insert(name.clone(), value.clone());
            }
            Ok(put.iter().map(|(name, _)| name.to_string()).collect())
        }
        (Put::Signature(signer), Some(Signing { scope, payload, .. })) => {
            let unsigned = Unsigned {
                method: parsed.method.as_str(),
                authority: &parsed.authority(443),
                target: Target::canonical(target.path(), target.query()),
                scope: &scope,
                payload,
                now: now(),
            };
            let signed = signer.sign(headers, &unsigned);
            signed.map_err(|_| unsigned_yet("its parts cannot stand in headers"))
        }
        (Put::Signature(_), None) => Err(unsigned_yet("nothing was prepared for that")),
    }
}

/// A fault of the agent's: what cannot be signed is refused before.
fn unsigned_yet(why: &str) -> Refusal {
    Refusal::failed(
        StatusCode::INTERNAL_SERVER_ERROR,
        "unsigned",
        format!("the request could not be signed: {why}"),
        "report this".into(),
    )
}

/// The canonical target is what was decided on, so it is what is sent.
fn target(parsed: &Parsed, plan: &Plan<'_>) -> Result<PathAndQuery, Refusal> {
    if plan.query.is_none()
        && let Some(raw) = parsed.raw_if_canonical()
    {
        return Ok(raw.clone());
    }
    let target = parsed.target();
    let query = match &plan.query {
        Some(query) => query.as_deref(),
        None => target.query.as_deref(),
    };
    let text = match query {
        Some(query) => format!("{}?{query}", target.path),
        None => target.path.into_owned(),
    };
    PathAndQuery::try_from(text)
        .map_err(|_| Refusal::ambiguous("target", "the request target cannot be sent"))
}
