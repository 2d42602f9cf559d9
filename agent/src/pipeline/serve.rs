//! One connection from its first byte to its last, and each of its requests through the stages.
use super::account::{self, Tracker};
use super::answer::Form;
use super::attribute::{Attributed, attribute};
use super::authorize::authorize;
use super::forward::forward;
use super::identify::identify;
use super::parse::parse;
use super::refuse::Refusal;
use super::respond::{Owing, ResponseBody, respond};
use super::rewrite::rewrite;
use super::screen::{Screened, screen};
use super::short::overspent;
use super::sign;
use super::spent::Held;
use super::splice;
use super::terminate::{Failure, Terminated, terminate};
use super::websocket::{self, Slot};
use super::worker::{LocalExecutor, Worker};
use crate::audit::Verdict;
use crate::dns;
use crate::gate::{Door, Gate, Handle};
use crate::kernel::Flow;
use crate::kernel::present::Witness;
use crate::snapshot::Snapshot;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::os::fd::AsFd;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tollgate_policy::canonical::Host;
use tollgate_policy::{Scheme, Subject};

/// Who is on the other side of a connection, and what it named.
pub(super) struct Peer {
    pub(super) flow: Flow,
    pub(super) name: Option<Rc<Host>>,
    pub(super) scheme: Scheme,
}

/// Says whether the client's end of a connection is still held.
type Present = Box<dyn Fn() -> bool>;

impl Peer {
    /// Who calls, with what was proven of them.
    pub(super) fn subject<'a>(&'a self, identity: Option<&'a str>) -> Subject<'a> {
        Subject {
            workload: &self.flow.workload,
            identity,
        }
    }

    pub(super) fn scheme_name(&self) -> &'static str {
        match self.scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
        }
    }
}

/// Serves a connection to its end. `over`: more are open than allowed.
pub(super) async fn connection(
    worker: &Rc<Worker>,
    (stream, witness): (TcpStream, Rc<Option<Witness>>),
    over: bool,
) {
    let attributed = match attribute(worker, stream) {
        Ok(attributed) => attributed,
        Err(stream) => {
            let why =
                "no hook steered this connection here: it was made straight to the agent's port";
            ended(worker, None, Verdict::Deny, "direct", why.into());
            return reset(&stream);
        }
    };
    if over {
        let limit = worker.shared.limits.connections;
        let why = format!(
            "more than {limit} connections are open (`limits.connections` in the configuration)"
        );
        ended(
            worker,
            Some(&attributed.flow),
            Verdict::Limit,
            "connections",
            why,
        );
        return reset(&attributed.stream);
    }
    let flow = attributed.flow.clone();
    let held = Held::new(worker, &flow.workload, &attributed.stream);
    let mut spent = tokio::select! {
        () = all_of(worker, attributed, witness) => false,
        () = Held::spent(held.as_ref()) => true,
    };
    let Some(held) = held else { return };
    if !spent {
        spent = tokio::select! {
            () = held.arrived() => false,
            () = Held::spent(Some(&held)) => true,
        };
    }
    if spent {
        let why = "the workload has spent the bytes that its budget gives it: `tollgate usage` shows when there are more";
        ended(worker, Some(&flow), Verdict::Limit, "quota", why.into());
        reset(&held.socket);
    }
}

/// Serves a connection whose owner is known.
async fn all_of(worker: &Rc<Worker>, attributed: Attributed, witness: Rc<Option<Witness>>) {
    // Before anything is read: whoever connects to such an api may wait for it to speak first.
    if let Some(ruling) = splice::decide(worker, &attributed.flow, None) {
        let client = (attributed.stream, attributed.flow);
        return splice::pass(worker, client, None, Vec::new(), ruling).await;
    }
    if attributed.flow.destination.port() == dns::PORT {
        let (mut stream, flow) = (attributed.stream, attributed.flow);
        let mut stop = worker.signals.stop.clone();
        return tokio::select! {
            () = dns::converse(&worker.responder, &mut stream, &flow) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        };
    }
    let socket = &attributed.stream;
    let ends = socket.peer_addr().ok().zip(socket.local_addr().ok());
    let present: Present = match ends {
        Some((client, own)) => Witness::asks(witness, client, own),
        None => Box::new(|| false),
    };
    match terminate(worker, attributed).await {
        Err(failure) => failed(worker, &failure),
        Ok(Terminated::Uninspected {
            stream,
            name,
            hello,
            ruling,
            flow,
        }) => splice::pass(worker, (stream, flow), Some(name), hello, *ruling).await,
        Ok(Terminated::Clear { stream, flow }) => {
            let peer = Rc::new(Peer {
                flow,
                name: None,
                scheme: Scheme::Http,
            });
            http1(worker, stream, peer, present).await;
        }
        Ok(Terminated::Tls {
            stream,
            name,
            h2,
            flow,
        }) => {
            let peer = Rc::new(Peer {
                flow,
                name: name.map(Rc::new),
                scheme: Scheme::Https,
            });
            if h2 {
                http2(worker, *stream, peer).await;
            } else {
                http1(worker, *stream, peer, present).await;
            }
        }
    }
}

fn failed(worker: &Worker, failure: &Failure) {
    if failure.code != "closed_early" {
        ended(
            worker,
            Some(&failure.flow),
            failure.verdict,
            failure.code,
            failure.detail.to_string(),
        );
    }
    if let Some(stream) = &failure.reset {
        reset(stream);
    }
}

fn ended(
    worker: &Worker,
    flow: Option<&Flow>,
    verdict: Verdict,
    code: &'static str,
    detail: String,
) {
    let snapshot = worker.shared.live.load();
    account::connection(&worker.shared.sink, flow, &snapshot, verdict, code, detail);
}

/// Closes with a reset, so that the client fails at once and does not take the end for an answer.
pub(super) fn reset(socket: &impl AsFd) {
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

async fn http1<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: &Rc<Worker>,
    io: IO,
    peer: Rc<Peer>,
    present: Present,
) {
    let limits = &worker.shared.limits;
    let gate = Gate::new(io, limits.head_bytes, limits.head_fields).while_present(present);
    let handle = gate.handle();
    let (lent, own) = Door::new(gate);
    let slot = Slot::default();
    let service = {
        let (worker, peer, handle) = (Rc::clone(worker), Rc::clone(&peer), handle.clone());
        let slot = Rc::clone(&slot);
        service_fn(move |request| {
            let owed = handle.owed();
            let served = serve(
                Rc::clone(&worker),
                Rc::clone(&peer),
                Some((handle.clone(), Rc::clone(&slot))),
                request,
            );
            async move {
                let answer = served.await?;
                Ok::<_, Infallible>(answer.map(|body| Owing { body, _owed: owed }))
            }
        })
    };
    // hyper refuses nothing that the gate let pass, or it would be refused without a record.
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_headers(limits.head_fields + 1)
        .max_buf_size(limits.head_bytes + 8192)
        // Into one buffer: head and body of a short answer go in one TLS record. Not `pipeline_flush`, with which that buffer has no
        // bound, and takes all that an upstream sends to a client that does not read.
        .writev(false)
        .serve_connection(TokioIo::new(lent), service);
    let mut connection = Box::pin(connection);
    let mut stop = worker.signals.stop.clone();
    let mut expire = pin!(expire_heads(handle.clone(), limits.head));
    let ended = tokio::select! {
        result = connection.as_mut() => result,
        // Never ends; it lives exactly as long as the connection.
        () = expire.as_mut() => Ok(()),
        _ = stop.wait_for(|stop| *stop) => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    drop(connection);
    let opened = slot.take();
    if let (Ok(()), Some(opened)) = (&ended, opened)
        && let Some(gate) = own.into_gate()
    {
        let (client, early) = gate.into_parts();
        return websocket::run(worker, client, early, opened).await;
    }
    match handle.unclaimed() {
        Some(violation) => {
            let tracker = Tracker::new(&worker.shared.sink, &peer, &worker.shared.live.load_full());
            unanswered(tracker, violation);
        }
        None => conclude(worker, &peer, ended.err()),
    }
}

/// Answers 408 when a request's head has been under way for longer than `limit`.
async fn expire_heads(handle: Handle, limit: Duration) {
    let mut since: Option<(tokio::time::Instant, u64)> = None;
    loop {
        tokio::time::sleep(limit / 3).await;
        let request = handle.requests();
        since = match since {
            _ if !handle.in_head() => None,
            Some((began, same)) if same == request => {
                if began.elapsed() >= limit {
                    handle.expire();
                }
                Some((began, same))
            }
            _ => Some((tokio::time::Instant::now(), request)),
        };
    }
}

async fn http2<IO: AsyncRead + AsyncWrite + Unpin + 'static>(
    worker: &Rc<Worker>,
    io: IO,
    peer: Rc<Peer>,
) {
    let limits = &worker.shared.limits;
    let service = {
        let (worker, peer) = (Rc::clone(worker), Rc::clone(&peer));
        service_fn(move |request| serve(Rc::clone(&worker), Rc::clone(&peer), None, request))
    };
    let connection = hyper::server::conn::http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        // Twice what `parse` lets pass: what h2 refuses by itself leaves no record.
        .max_header_list_size(u32::try_from(limits.head_bytes * 2).unwrap_or(u32::MAX))
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(2 << 20)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(1024)
        .max_send_buf_size(256 * 1024)
        .keep_alive_interval(limits.idle)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = pin!(connection);
    let mut stop = worker.signals.stop.clone();
    tokio::select! {
        result = connection.as_mut() => conclude(worker, &peer, result.err()),
        _ = stop.wait_for(|stop| *stop) => {
            connection.as_mut().graceful_shutdown();
            conclude(worker, &peer, connection.await.err());
        }
    }
}

/// Records how a connection broke, unless the client just went away or was idle.
fn conclude(worker: &Worker, peer: &Peer, error: Option<hyper::Error>) {
    let Some(error) = error else { return };
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(inner) = cause {
        if inner.is::<std::io::Error>() || inner.is::<super::body::BodyError>() {
            return;
        }
        cause = inner.source();
    }
    if error.is_timeout()
        || error.is_incomplete_message()
        || error.is_closed()
        || error.is_canceled()
    {
        return;
    }
    ended(
        worker,
        Some(&peer.flow),
        Verdict::Error,
        "client_http",
        format!("the client broke the protocol: {error}"),
    );
}

/// One request: every way out of here leaves exactly one record, through the tracker.
async fn serve(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    http1: Option<(Handle, Slot)>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    let (gate, slot) = http1.unzip();
    let snapshot = worker.shared.live.load_full();
    let mut tracker = Tracker::new(&worker.shared.sink, &peer, &snapshot);
    if let Some(violation) = gate
        .as_ref()
        .and_then(|gate| gate.violation(request.uri().path()))
    {
        let refusal = violated(&mut tracker, violation);
        return Ok(refuse(tracker, &refusal, Form::Problem));
    }
    tracker.raw(request.method().as_str(), request.uri().path());
    let form = Form::of(request.headers());
    match stages(&worker, &peer, &snapshot, request, &mut tracker).await {
        Ok(screened) => {
            if let (Some(gate), Some(_)) = (&gate, &screened.upgraded) {
                gate.switch();
            }
            Ok(respond(&worker, screened, tracker, slot.as_ref()))
        }
        Err(refusal) => {
            // Whatever failed: if the body broke the framing, that is why.
            let refusal = match gate.and_then(|gate| gate.body_violation()) {
                Some(violation) => gate_refusal(violation),
                None => refusal,
            };
            // Or else, if a budget cut it.
            let refusal = match tracker.moved.overspent() {
                Some((detail, false)) => overspent(&detail),
                _ => refusal,
            };
            Ok(refuse(tracker, &refusal, form))
        }
    }
}

async fn stages<'p>(
    worker: &Worker,
    peer: &Rc<Peer>,
    snapshot: &'p Snapshot,
    request: Request<Incoming>,
    tracker: &mut Tracker,
) -> Result<Screened<'p>, Refusal> {
    let (parsed, body) = parse(peer, &worker.shared.limits, request)?;
    tracker.asked(&parsed);
    let identified = identify(worker, snapshot, parsed, tracker)?;
    let mut authorized = authorize(worker, peer, snapshot, (identified, body), tracker).await?;
    let signing = sign::prepare(worker, &mut authorized).await?;
    let rewritten = rewrite(peer, snapshot, (authorized, signing), tracker)?;
    let responded = forward(worker, rewritten, tracker).await?;
    screen(worker, peer, responded, tracker).await
}

fn refuse(mut tracker: Tracker, refusal: &Refusal, form: Form) -> Response<ResponseBody> {
    let response = refusal.response(tracker.id(), form);
    tracker.refused(refusal, response.status().as_u16());
    tracker.passed(response.body().len());
    tracker.finish();
    response.map(|body| ResponseBody::Own(Some(body)))
}

/// A violation that nobody was there to be told of: the client had left.
fn unanswered(mut tracker: Tracker, violation: crate::gate::Violation) {
    let refusal = violated(&mut tracker, violation);
    tracker.failed(refusal.verdict, refusal.code, refusal.detail);
}

/// What the gate kept from hyper.
fn violated(tracker: &mut Tracker, violation: crate::gate::Violation) -> Refusal {
    tracker.raw(
        violation.method.as_deref().unwrap_or_default(),
        violation.target.as_deref().unwrap_or_default(),
    );
    gate_refusal(violation)
}

fn gate_refusal(violation: crate::gate::Violation) -> Refusal {
    let status =
        http::StatusCode::from_u16(violation.status).unwrap_or(http::StatusCode::BAD_REQUEST);
    Refusal {
        status,
        ..Refusal::ambiguous(violation.code, violation.detail)
    }
}
