//! To the upstream and back with the head of its response. Takes only what was rewritten, which takes only what was authorized.
use super::account::Tracker;
use super::again::Spare;
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
    let mut spare = Spare::of(&mut rewritten, &lease);
    let mut request = assemble(&mut rewritten, &lease.sender)?;
    let mut first = true;
    let response = loop {
        tracker.sent(&lease.facts);
        let failed = match send(worker, &rewritten, &mut lease.sender, request).await {
            Ok(response) => break response,
            Err(failed) => failed,
        };
        if let Failed::Unsent(..) | Failed::Untaken(_) = failed {
            tracker.unsent();
        }
        let (again, error) = match failed {
            Failed::Unsent(unsent, error) => (Some(*unsent), error),
            Failed::Untaken(error) => (spare.take().and_then(Spare::untaken), error),
            Failed::Broken(error) => (spare.take().and_then(Spare::stale), error),
            Failed::Late(error) => (None, error),
        };
        // Once: the second connection is new.
        request = match again {
            Some(again) if std::mem::take(&mut first) => again,
            _ => return Err(error.into()),
        };
        // Of many requests that lose an HTTP/2 connection, one makes the next, and the others share it.
        let fresh = !worker.pool.retire(&lease);
        lease = self::lease(worker, &rewritten, fresh).await?;
        request = retarget(request, &rewritten, &lease.sender)?;
    };
    if let Some(spare) = spare {
        spare.let_go();
    }
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
        Err(Failed::Unsent(_, error) | Failed::Untaken(error)) => {
            tracker.unsent();
            return Err(error.into());
        }
        Err(Failed::Broken(error) | Failed::Late(error)) => return Err(error.into()),
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
    /// The upstream says that it did nothing of it.
    Untaken(upstream::Error),
    /// The connection ended, or what came is no response.
    Broken(upstream::Error),
    /// The upstream took too long.
    Late(upstream::Error),
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
                None if is_untaken(failed.error()) => Failed::Untaken(error),
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

/// Whether the upstream has said that it did nothing of the request: by resetting its stream with that word, or by leaving with
/// a last stream before it (RFC 9113, section 8.7). `h2` ends only the streams behind that one with what the upstream said.
fn is_untaken(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let source = source.and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        error.is_remote() && (error.is_go_away() || refused)
    })
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
    let usual = if rewritten.in_clear() { 80 } else { 443 };
    let authority = rewritten.parsed.authority(usual);
    let unsendable = || Refusal::ambiguous("host", "the host cannot be sent");
    let mut parts = uri::Parts::default();
    parts.path_and_query = Some(rewritten.target.clone());
    if matches!(sender, Sender::Http2(_)) {
        parts.authority = Some(authority.parse().map_err(|_| unsendable())?);
        parts.scheme = Some(uri::Scheme::HTTPS);
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
    } else {
        let value = HeaderValue::from_str(&authority);
        *request.version_mut() = Version::HTTP_11;
        request
            .headers_mut()
            .insert(header::HOST, value.map_err(|_| unsendable())?);
        request.headers_mut().remove(header::TE);
    }
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| unsendable())?;
    Ok(request)
}
