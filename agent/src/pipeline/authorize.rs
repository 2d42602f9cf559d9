//! The decision. [`Authorized`] is made here alone: what has none is not forwarded.
use super::account::Tracker;
use super::body::{BodyError, Counted, RequestBody};
use super::charge::{Asked, charge};
use super::identify::Identified;
use super::parse::Parsed;
use super::refuse::Refusal;
use super::serve::Peer;
use super::short::overspent;
use super::worker::Worker;
use crate::audit;
use crate::snapshot::Snapshot;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use std::time::Instant;
use tollgate_policy::{Body, Decision, Headers, Mode, Outcome, Plan, Request, Scheme, Verdict};

/// A request that may be forwarded, and how.
pub(super) struct Authorized<'p> {
    pub(super) parsed: Parsed,
    pub(super) body: RequestBody,
    /// The body is not what the client sent.
    pub(super) edited: bool,
    pub(super) plan: Plan<'p>,
    _made_here: (),
}

/// hyper's headers, as the policy asks for them.
pub(super) struct HeaderView<'a>(pub(super) &'a HeaderMap);

impl Headers for HeaderView<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        for value in self.0.get_all(name) {
            visit(value.as_bytes());
        }
    }
}

/// What is known of the body so far.
pub(super) enum Held {
    Nothing,
    Waiting(Incoming),
    Read(Bytes, Option<Counted>),
}

/// Decides, reading as much of the body as a rule asks for and no more.
pub(super) async fn authorize<'p>(
    worker: &Worker,
    peer: &Peer,
    snapshot: &'p Snapshot,
    (identified, body): (Identified, Incoming),
    tracker: &mut Tracker,
) -> Result<Authorized<'p>, Refusal> {
    let Identified { parsed, .. } = identified;
    if !worker.shared.sink.healthy() {
        return Err(Refusal::unlogged());
    }
    let mut held = if body.is_end_stream() {
        Held::Nothing
    } else {
        Held::Waiting(body)
    };
    let mut took = std::time::Duration::ZERO;
    let decision = loop {
        let asked = Instant::now();
        let outcome = decide(peer, snapshot, &parsed, &held);
        took += asked.elapsed();
        match (outcome, held) {
            (Outcome::Decided(decision), rest) => {
                held = rest;
                break decision;
            }
            (Outcome::NeedsBody { max }, Held::Waiting(body)) => {
                let counted = Counted::new(
                    body,
                    std::rc::Rc::clone(&tracker.moved),
                    worker.shared.limits.body_idle,
                );
                let (read, rest) = counted.read(max).await.map_err(unreadable)?;
                held = Held::Read(read, rest);
            }
            // A rule that asks again for what it has: a fault of the policy crate, and a refusal.
            (Outcome::NeedsBody { .. }, _) => {
                return Err(undecided());
            }
        }
    };
    let mut decision = settle(peer, snapshot, decision, tracker, took)?;
    let asked = Asked {
        snapshot,
        subject: peer.subject(parsed.identity.as_deref()),
        parsed: &parsed,
    };
    let held = charge(worker, &asked, &decision, held, tracker).await?;
    let edited = decision.plan.body.is_some();
    let body = match held {
        // What was edited goes instead of what was read, never both: there is no rest that could follow.
        Held::Read(_, None) if edited => {
            RequestBody::Read(decision.plan.body.take().map(Bytes::from))
        }
        _ if edited => return Err(undecided()),
        Held::Nothing => RequestBody::Empty,
        Held::Read(bytes, None) => RequestBody::Read(Some(bytes)),
        Held::Read(head, Some(rest)) => RequestBody::Joined(Some(head), rest),
        Held::Waiting(body) => RequestBody::Stream(Counted::new(
            body,
            std::rc::Rc::clone(&tracker.moved),
            worker.shared.limits.body_idle,
        )),
    };
    Ok(Authorized {
        parsed,
        edited,
        body,
        plan: decision.plan,
        _made_here: (),
    })
}

/// Seconds since 1970 (UTC), from the clock that costs least to read.
pub(crate) fn now() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse).tv_sec
}

fn decide<'p>(peer: &Peer, snapshot: &'p Snapshot, parsed: &Parsed, held: &Held) -> Outcome<'p> {
    let target = parsed.target();
    snapshot.policy.decide(
        &peer.subject(parsed.identity.as_deref()),
        &Request {
            scheme: peer.scheme,
            host: &parsed.host,
            port: parsed.port,
            method: parsed.method.as_str(),
            target: &target,
            headers: &HeaderView(&parsed.headers),
            body: match held {
                Held::Nothing => Body::Absent,
                Held::Waiting(body) => Body::Unread(body.size_hint().exact()),
                Held::Read(bytes, _) => Body::Read(bytes),
            },
            now: now(),
        },
    )
}

/// Whether the decision stands: observed denials pass, but never in clear, since a credential could follow.
fn settle<'p>(
    peer: &Peer,
    snapshot: &Snapshot,
    decision: Decision<'p>,
    tracker: &mut Tracker,
    took: std::time::Duration,
) -> Result<Decision<'p>, Refusal> {
    let mode = decision.effective_mode(snapshot.mode);
    let stands = mode == Mode::Enforce || peer.scheme == Scheme::Http;
    let verdict = match (decision.verdict, stands) {
        (Verdict::Allow, _) => audit::Verdict::Allow,
        (Verdict::Deny, true) => audit::Verdict::Deny,
        (Verdict::Deny, false) => audit::Verdict::WouldDeny,
    };
    tracker.decided(decision.rule, verdict, mode, decision.reason.as_ref(), took);
    match decision.reason {
        Some(reason) if verdict == audit::Verdict::Deny => Err(Refusal::denied(reason)),
        reason => Ok(Decision { reason, ..decision }),
    }
}

fn undecided() -> Refusal {
    Refusal::failed(
        StatusCode::INTERNAL_SERVER_ERROR,
        "undecided",
        "the policy came to no decision".into(),
        "report this".into(),
    )
}

pub(super) fn unreadable(error: BodyError) -> Refusal {
    if let BodyError::Spent(detail) = &error {
        return overspent(detail);
    }
    Refusal::failed(
        StatusCode::BAD_REQUEST,
        "client_body",
        format!("the request's body could not be read: {error}"),
        "send the whole body".into(),
    )
}
