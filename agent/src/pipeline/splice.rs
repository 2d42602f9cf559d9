//! Connections that are not inspected: decided on once, by address or by the name in the TLS hello, then passed on byte
//! for byte, and counted. The record says how little was seen of them.
use super::account::Tracker;
use super::body::BodyError;
use super::charge;
use super::exchange::Exchange;
use super::refuse::Refusal;
use super::serve::{Peer, reset};
use super::short::overspent;
use super::worker::Worker;
use crate::audit::{self, Coverage, UpstreamRecord};
use crate::kernel::Flow;
use crate::snapshot::Snapshot;
use crate::upstream::{self, Destination, Via};
use http::StatusCode;
use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::Instant;
use tollgate_policy::canonical::Host;
use tollgate_policy::{Connection, Decision, Mode, Scheme, Verdict};

/// Bytes moved at once, in each direction.
const BUFFER: usize = 32 * 1024;

/// What the policy says of a connection without seeing more of it. Made by [`decide`] alone.
pub(super) struct Ruling {
    snapshot: Arc<Snapshot>,
    verdict: audit::Verdict,
    mode: Mode,
    rule: Option<Arc<str>>,
    refusal: Option<Refusal>,
    /// Ranges that the api allows though they are not public.
    allowed: Vec<ipnet::IpNet>,
    took: Duration,
}

/// Decides on a connection by the name in its hello, or else by its address. `None`: it is to be inspected.
///
/// In observe mode a denied connection passes, as a denied request does: the policy names the api, so there is
/// nothing ambiguous about it.
pub(super) fn decide(worker: &Worker, flow: &Flow, name: Option<&Host>) -> Option<Ruling> {
    let snapshot = worker.shared.live.load();
    let started = std::time::Instant::now();
    let decision = connect(&snapshot, flow, name)?;
    let took = started.elapsed();
    let mode = decision.effective_mode(snapshot.mode);
    let verdict = match (decision.verdict, mode) {
        (Verdict::Allow, _) => audit::Verdict::Allow,
        (Verdict::Deny, Mode::Enforce) => audit::Verdict::Deny,
        (Verdict::Deny, Mode::Observe) => audit::Verdict::WouldDeny,
    };
    Some(Ruling {
        verdict,
        mode,
        rule: decision.rule.map(|rule| Arc::clone(&rule.label)),
        allowed: decision
            .plan
            .api
            .map_or_else(Vec::new, |api| api.addresses.clone()),
        refusal: decision.reason.map(Refusal::denied),
        snapshot: Arc::clone(&snapshot),
        took,
    })
}

/// What the policy says now.
pub(super) fn connect<'p>(
    snapshot: &'p Snapshot,
    flow: &Flow,
    name: Option<&Host>,
) -> Option<Decision<'p>> {
    let to = match name {
        Some(name) => Connection::Name(name, flow.destination.port()),
        None => Connection::Address(flow.destination),
    };
    let subject = tollgate_policy::Subject {
        workload: &flow.workload,
        identity: None,
    };
    snapshot
        .policy
        .connect(&subject, to, super::authorize::now())
}

/// Passes a connection on to its end, or resets it, as was ruled. `hello`: what was read of it already.
pub(super) async fn pass(
    worker: &Rc<Worker>,
    (mut client, flow): (TcpStream, Flow),
    name: Option<Host>,
    hello: Vec<u8>,
    ruling: Ruling,
) {
    let peer = Rc::new(Peer {
        flow,
        name: name.map(Rc::new),
        scheme: Scheme::Https,
    });
    let coverage = match &peer.name {
        Some(_) => Coverage::Sni,
        None => Coverage::Tcp,
    };
    let mut tracker = Tracker::uninspected(&worker.shared.sink, &peer, &ruling.snapshot, coverage);
    let why = ruling.refusal.as_ref().map(Refusal::record);
    tracker.ruled(
        ruling.verdict,
        ruling.mode,
        (ruling.rule.clone(), why),
        ruling.took,
    );
    if ruling.verdict == audit::Verdict::Deny {
        tracker.finish();
        return reset(&client);
    }
    let subject = peer.subject(None);
    let counted = charge::connection(&ruling.snapshot, subject, ruling.mode, &mut tracker);
    if let Err(refusal) = counted {
        tracker.failed(refusal.verdict, refusal.code, refusal.detail);
        return reset(&client);
    }
    match splice(worker, &peer, &mut client, hello, &ruling, &mut tracker).await {
        Ok(()) => tracker.finish(),
        Err(end) => {
            reset(&client);
            match end {
                // The record says so by itself.
                End::ClientGone => {}
                End::Failed(refusal) => {
                    tracker.failed(refusal.verdict, refusal.code, refusal.detail)
                }
            }
        }
    }
}

/// Why a connection ended before both sides had closed it.
enum End {
    ClientGone,
    Failed(Refusal),
}

impl End {
    fn limit(code: &'static str, detail: String) -> Self {
        Self::Failed(Refusal {
            verdict: audit::Verdict::Limit,
            ..Refusal::failed(StatusCode::BAD_GATEWAY, code, detail, String::new())
        })
    }

    fn upstream(error: &std::io::Error) -> Self {
        let detail = format!("the upstream broke the connection: {error}");
        Self::Failed(Refusal::failed(
            StatusCode::BAD_GATEWAY,
            "upstream_broken",
            detail,
            String::new(),
        ))
    }

    fn revoked() -> Self {
        Self::Failed(Refusal {
            verdict: audit::Verdict::Deny,
            ..Refusal::failed(
                StatusCode::FORBIDDEN,
                "revoked",
                BodyError::Revoked.to_string(),
                String::new(),
            )
        })
    }
}

/// Dials and moves bytes until both sides have closed. From before the dialling on, a policy change ends it.
async fn splice(
    worker: &Rc<Worker>,
    peer: &Rc<Peer>,
    client: &mut TcpStream,
    hello: Vec<u8>,
    ruling: &Ruling,
    tracker: &mut Tracker,
) -> Result<(), End> {
    if !worker.shared.sink.healthy() {
        return Err(End::Failed(Refusal::unlogged()));
    }
    let exchange = Exchange::connection(Rc::clone(peer), ruling.snapshot.generation);
    let _listed = worker.exchanges.list(&exchange);
    let revoked = poll_fn(|cx| match exchange.revoked(cx.waker()) {
        true => Poll::Ready(End::revoked()),
        false => Poll::Pending,
    });
    let whole = async {
        let dialed = dial(worker, peer, ruling).await;
        let (mut upstream, address) = dialed.map_err(|error| End::Failed(error.into()))?;
        tracker.connected(&UpstreamRecord {
            address: address.to_string(),
            tls: None,
        });
        let moved = relay(worker, client, &mut upstream, &hello, tracker).await;
        if moved.is_err() {
            reset(&upstream);
        }
        moved
    };
    tokio::select! {
        biased;
        end = revoked => Err(end),
        ended = whole => ended,
    }
}

/// The address that the client asked for, which the policy names; or, by name, one that the agent resolves and that is
/// public or named by the api. Never the agent itself.
async fn dial(
    worker: &Worker,
    peer: &Peer,
    ruling: &Ruling,
) -> Result<(TcpStream, SocketAddr), upstream::Error> {
    let (to, limit) = (peer.flow.destination, worker.shared.limits.connect);
    let Some(name) = &peer.name else {
        return upstream::reach(to, &worker.shared.own, limit).await;
    };
    let destination = Destination {
        host: (**name).clone(),
        port: to.port(),
        allowed: ruling.allowed.clone(),
        // The client's own TLS goes through: the agent makes none.
        via: Via::Clear,
        own: Arc::clone(&worker.shared.own),
    };
    destination.reach(&worker.resolver, limit).await
}

/// Moves bytes both ways; the end of one direction is passed on, and the other goes on.
async fn relay(
    worker: &Worker,
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    hello: &[u8],
    tracker: &Tracker,
) -> Result<(), End> {
    for stream in [&*client, &*upstream] {
        // A peer that is gone without a word is found out.
        let _ = socket2::SockRef::from(stream).set_keepalive(true);
    }
    let last = Cell::new(Instant::now());
    let total = Rc::clone(&tracker.moved);
    let alive = |counted: Result<(), BodyError>| {
        last.set(Instant::now());
        counted.map_err(|spent| Broken::Spent(spent.to_string()))
    };
    let counted = total.up(hello.len());
    counted.map_err(|spent| End::Failed(overspent(&spent.to_string())))?;
    upstream
        .write_all(hello)
        .await
        .map_err(|error| End::upstream(&error))?;
    let (from_client, to_client) = client.split();
    let (from_upstream, to_upstream) = upstream.split();
    let both = async {
        tokio::try_join!(
            async {
                let moved = pump(from_client, to_upstream, |bytes| alive(total.up(bytes))).await;
                moved.map_err(|broken| match broken {
                    Broken::Reading(_) => End::ClientGone,
                    Broken::Writing(error) => End::upstream(&error),
                    Broken::Spent(detail) => End::Failed(overspent(&detail)),
                })
            },
            async {
                let moved = pump(from_upstream, to_client, |bytes| alive(total.down(bytes))).await;
                moved.map_err(|broken| match broken {
                    Broken::Reading(error) => End::upstream(&error),
                    Broken::Writing(_) => End::ClientGone,
                    Broken::Spent(detail) => End::Failed(overspent(&detail)),
                })
            },
        )
    };
    let limit = worker.shared.limits.uninspected_idle;
    tokio::select! {
        both = both => both.map(|_| ()),
        () = silence(&last, limit) => {
            Err(End::limit("idle", format!("no data in either direction for {limit:?}")))
        }
    }
}

/// Which side of a direction broke.
enum Broken {
    Reading(std::io::Error),
    Writing(std::io::Error),
    /// Neither: a budget has not so much left.
    Spent(String),
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    moved: impl Fn(usize) -> Result<(), Broken>,
) -> Result<(), Broken> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await.map_err(Broken::Reading)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return to.shutdown().await.map_err(Broken::Writing);
        };
        moved(read)?;
        to.write_all(bytes).await.map_err(Broken::Writing)?;
    }
}

/// Ends once nothing has moved for `limit`.
async fn silence(last: &Cell<Instant>, limit: Duration) {
    loop {
        let deadline = last.get() + limit;
        if Instant::now() >= deadline {
            return;
        }
        tokio::time::sleep_until(deadline).await;
    }
}
