//! To the upstream and back with the head of its response. Takes only what was rewritten, which takes only what was authorized.
use super::account::Tracker;
use super::body::RequestBody;
use super::parse::Parsed;
use super::refuse::Refusal;
use super::rewrite::Rewritten;
use super::screen::ResponseRules;
use super::worker::Worker;
use crate::upstream::{self, Lease, Sender};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header, uri};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

/// A response whose body is still to come.
pub(super) struct Responded<'p> {
    pub(super) parsed: Parsed,
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    pub(super) rules: ResponseRules<'p>,
    pub(super) generation: u64,
    /// The connection as it is now, where a WebSocket was opened, and bytes of a message at most.
    pub(super) upgraded: Option<(OnUpgrade, usize)>,
    _made_here: (),
}

/// Sends the request; waits for the response's head.
pub(super) async fn forward<'p>(
    worker: &Worker,
    mut rewritten: Rewritten<'p>,
    tracker: &mut Tracker,
) -> Result<Responded<'p>, Refusal> {
    if let Some(most) = rewritten.websocket {
        return upgrade(worker, rewritten, most, tracker).await;
    }
    let mut lease = lease(worker, &rewritten, false).await?;
    let mut spare = spare(&rewritten, &lease);
    let mut request = assemble(&mut rewritten, &lease.sender)?;
    let response = loop {
        tracker.sent(&lease.facts);
        let failed = match send(worker, &rewritten, &mut lease.sender, request).await {
            Ok(response) => break response,
            Err(failed) => failed,
        };
        // Once: the second connection is new.
        request = match failed {
            // The idle connection was closed before a byte of this request went out: a new one is safe for any method.
            Failed::Unsent(unsent, _) if lease.reused => *unsent,
            // It was closed while the request was on its way: doing it twice is doing it once.
            Failed::Broken(error) => match spare.take() {
                Some(spare) => spare,
                None => return Err(error.into()),
            },
            Failed::Unsent(_, error) | Failed::Late(error) => return Err(error.into()),
        };
        lease = self::lease(worker, &rewritten, true).await?;
        spare = None;
        request = retarget(request, &rewritten, &lease.sender)?;
    };
    tracker.answered(response.status().as_u16());
    // Upgrades are not asked for, so one that is granted is a fault (RFC 9110, section 15.2.2).
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(upstream::Error::Http {
            host: rewritten.parsed.host.as_str().into(),
            what: "answered 101 though no upgrade was asked for".into(),
        }
        .into());
    }
    Ok(responded(rewritten, response, lease, None))
}

fn responded<'p>(
    rewritten: Rewritten<'p>,
    response: Response<Incoming>,
    lease: Lease,
    upgraded: Option<(OnUpgrade, usize)>,
) -> Responded<'p> {
    let generation = rewritten.generation();
    let Rewritten {
        parsed,
        response: rules,
        ..
    } = rewritten;
    Responded {
        parsed,
        response,
        lease,
        rules,
        generation,
        upgraded,
        _made_here: (),
    }
}

/// Asks for a WebSocket on a connection of its own. Whatever the upstream answers but a faultless 101 is an answer like any
/// other, and opens nothing.
async fn upgrade<'p>(
    worker: &Worker,
    mut rewritten: Rewritten<'p>,
    most: usize,
    tracker: &mut Tracker,
) -> Result<Responded<'p>, Refusal> {
    let destination = rewritten.destination(&worker.shared.own);
    let limit = worker.shared.limits.connect;
    let key = rewritten.key.clone();
    let lease = worker.pool.apart(key, destination, &worker.resolver, limit);
    let mut lease = lease.await?;
    let offered = rewritten.headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offered: Vec<HeaderValue> = offered.iter().cloned().collect();
    let request = assemble(&mut rewritten, &lease.sender)?;
    tracker.sent(&lease.facts);
    let mut response = match send(worker, &rewritten, &mut lease.sender, request).await {
        Ok(response) => response,
        Err(Failed::Unsent(_, error) | Failed::Broken(error) | Failed::Late(error)) => {
            return Err(error.into());
        }
    };
    tracker.answered(response.status().as_u16());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(responded(rewritten, response, lease, None));
    }
    let handshake = rewritten.parsed.websocket.as_ref();
    let verified = handshake.map_or(
        Err("answered 101 though no upgrade was asked for"),
        |asked| asked.verify(response.headers(), &offered),
    );
    if let Err(what) = verified {
        return Err(upstream::Error::Http {
            host: rewritten.parsed.host.as_str().into(),
            what: what.into(),
        }
        .into());
    }
    let upgraded = hyper::upgrade::on(&mut response);
    Ok(responded(
        rewritten,
        response,
        lease,
        Some((upgraded, most)),
    ))
}

async fn lease(worker: &Worker, rewritten: &Rewritten<'_>, fresh: bool) -> Result<Lease, Refusal> {
    let limit = worker.shared.limits.connect;
    let destination = || rewritten.destination(&worker.shared.own);
    let lease = worker.pool.lease(
        rewritten.key.clone(),
        destination,
        &worker.resolver,
        limit,
        fresh,
    );
    Ok(lease.await?)
}

/// Why there is no response.
enum Failed {
    /// Nothing of the request went out; here it is.
    Unsent(Box<Request<RequestBody>>, upstream::Error),
    /// The connection ended, or what came is no response.
    Broken(upstream::Error),
    /// The upstream took too long.
    Late(upstream::Error),
}

/// The same request again, where it may be sent twice (RFC 9110, section 9.2.2) and may have to be: an upstream closes
/// idle connections when it likes, and only the failure of a request on one tells.
fn spare(rewritten: &Rewritten<'_>, lease: &Lease) -> Option<Request<RequestBody>> {
    let empty = matches!(rewritten.body, RequestBody::Empty);
    if !(lease.reused && empty && rewritten.parsed.method.is_idempotent()) {
        return None;
    }
    let mut spare = Request::new(RequestBody::Empty);
    *spare.method_mut() = rewritten.parsed.method.clone();
    *spare.headers_mut() = rewritten.headers.clone();
    Some(spare)
}

async fn send(
    worker: &Worker,
    rewritten: &Rewritten<'_>,
    sender: &mut Sender,
    request: Request<RequestBody>,
) -> Result<Response<Incoming>, Failed> {
    let limit = worker.shared.limits.response_head;
    let host = || rewritten.parsed.host.as_str().to_owned();
    let sent = async {
        match sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender) => sender.try_send_request(request).await,
        }
    };
    match tokio::time::timeout(limit, sent).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(mut failed)) => {
            let unsent = failed.take_message().map(Box::new);
            let error = trouble(host(), failed.error());
            Err(match unsent {
                Some(unsent) => Failed::Unsent(unsent, error),
                None => Failed::Broken(error),
            })
        }
        Err(_) => Err(Failed::Late(upstream::Error::Timeout {
            host: host(),
            what: "answer",
            after: limit,
        })),
    }
}

/// Whether the upstream broke off, or said what is no answer.
fn trouble(host: String, error: &hyper::Error) -> upstream::Error {
    let what = describe(error);
    let source = std::error::Error::source(error);
    let reset = source.and_then(|source| source.downcast_ref::<h2::Error>());
    let broke = source.is_some_and(|source| source.is::<std::io::Error>())
        || error.is_incomplete_message()
        || error.is_closed()
        || error.is_canceled()
        || reset.is_some_and(|error| error.is_reset() || error.is_go_away() || error.is_io());
    match broke {
        true => upstream::Error::Reset { host, what },
        false => upstream::Error::Http { host, what },
    }
}

/// hyper's error and what is behind it.
fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn assemble(
    rewritten: &mut Rewritten<'_>,
    sender: &Sender,
) -> Result<Request<RequestBody>, Refusal> {
    let mut request = Request::new(std::mem::replace(&mut rewritten.body, RequestBody::Empty));
    *request.method_mut() = rewritten.parsed.method.clone();
    *request.headers_mut() = std::mem::take(&mut rewritten.headers);
    retarget(request, rewritten, sender)
}

/// The target in the form of the protocol: origin-form and Host, or `:authority` (RFC 9112, 3.2.1; RFC 9113, 8.3.1).
fn retarget(
    mut request: Request<RequestBody>,
    rewritten: &Rewritten<'_>,
    sender: &Sender,
) -> Result<Request<RequestBody>, Refusal> {
    let (host, port) = (rewritten.parsed.host.as_str(), rewritten.parsed.port);
    let usual = port == if rewritten.in_clear() { 80 } else { 443 };
    let unsendable = || Refusal::ambiguous("host", "the host cannot be sent");
    let mut parts = uri::Parts::default();
    parts.path_and_query = Some(rewritten.target.clone());
    if matches!(sender, Sender::Http2(_)) {
        let authority = if usual {
            host.parse()
        } else {
            format!("{host}:{port}").parse()
        };
        parts.authority = Some(authority.map_err(|_| unsendable())?);
        parts.scheme = Some(uri::Scheme::HTTPS);
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
    } else {
        let value = if usual {
            HeaderValue::from_str(host)
        } else {
            HeaderValue::from_maybe_shared(format!("{host}:{port}"))
        };
        *request.version_mut() = Version::HTTP_11;
        request
            .headers_mut()
            .insert(header::HOST, value.map_err(|_| unsendable())?);
        request.headers_mut().remove(header::TE);
    }
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| unsendable())?;
    Ok(request)
}
