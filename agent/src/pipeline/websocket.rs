//! WebSockets (RFC 6455): a handshake that both sides mean, and messages that are each decided on.
//!
//! The agent ends the socket on both sides. It puts each message together, within the rule's bound, before a byte of it goes
//! on: what is refused is not sent in part. Pings are answered here and passed on, so that both ends stay awake; pongs end here.
use super::account::Tracker;
use super::body::{BodyError, Idle};
use super::exchange::Exchange;
use super::heard::{Heard, Unheard};
use super::refuse::Refusal;
use super::respond::ResponseBody;
use super::worker::Worker;
use crate::audit::Verdict;
use crate::budget::Unit;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{Sink, SinkExt as _, StreamExt as _};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tollgate_policy as policy;
use tungstenite::error::CapacityError;
use tungstenite::protocol::frame::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, Utf8Bytes};

/// Bytes of a message at most, where no rule bounds it.
pub(super) const MOST: usize = 16 << 20;
/// How long a side that is told of the end has to say so too.
const GOODBYE: Duration = Duration::from_secs(2);

/// What a client asks for a WebSocket with.
#[derive(Debug)]
pub(super) struct Handshake {
    key: HeaderValue,
}

/// The handshake in a request's head; none where it asks for no WebSocket.
pub(super) fn handshake(
    method: &Method,
    version: Version,
    headers: &HeaderMap,
) -> Result<Option<Handshake>, Refusal> {
    if !policy::is_websocket(&super::authorize::HeaderView(headers)) {
        return Ok(None);
    }
    let wrong = |what: &str| {
        let detail = format!("the handshake of a WebSocket {what} (RFC 6455, section 4.1)");
        Refusal::ambiguous("websocket_handshake", detail)
    };
    if *method != Method::GET || version != Version::HTTP_11 {
        return Err(wrong("is not a GET of HTTP/1.1"));
    }
    let one = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    if !one(header::UPGRADE)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
    {
        return Err(wrong("asks for another protocol too"));
    }
    if !lists(headers, "upgrade") {
        return Err(wrong("has no `Connection: Upgrade`"));
    }
    if one(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal {
            status: StatusCode::UPGRADE_REQUIRED,
            ..wrong("does not ask for version 13")
        });
    }
    // Sixteen bytes in base64.
    let key = one(header::SEC_WEBSOCKET_KEY).filter(|key| {
        let text = key.as_bytes().strip_suffix(b"==").unwrap_or_default();
        let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        text.len() == 22 && text.iter().all(digit)
    });
    let key = key.ok_or_else(|| wrong("has not one key of 16 bytes"))?;
    Ok(Some(Handshake { key: key.clone() }))
}

/// Whether `Connection` names `field`.
fn lists(headers: &HeaderMap, field: &str) -> bool {
    super::hop::listed(headers).iter().any(|name| name == field)
}

impl Handshake {
    /// Asks the upstream the same, without extensions: what is compressed could not be looked at.
    pub(super) fn ask(&self, headers: &mut HeaderMap) {
        headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(
            header::SEC_WEBSOCKET_VERSION,
            HeaderValue::from_static("13"),
        );
        headers.insert(header::SEC_WEBSOCKET_KEY, self.key.clone());
    }

    /// Whether the upstream means this handshake (RFC 6455, section 4.1); `offered`: the subprotocols it was asked with.
    pub(super) fn verify(
        &self,
        headers: &HeaderMap,
        offered: &[HeaderValue],
    ) -> Result<(), &'static str> {
        let websocket = headers.get(header::UPGRADE);
        if !websocket.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
            || !lists(headers, "upgrade")
        {
            return Err("answered 101, and not for a WebSocket");
        }
        let accept = tungstenite::handshake::derive_accept_key(self.key.as_bytes());
        if headers
            .get(header::SEC_WEBSOCKET_ACCEPT)
            .is_none_or(|got| *got != accept)
        {
            return Err("answered 101 to another handshake: Sec-WebSocket-Accept is wrong");
        }
        if headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
            return Err("took up a WebSocket extension that was not offered");
        }
        let mut chosen = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
        let known = |chosen: &HeaderValue| {
            let offers = offered.iter().filter_map(|value| value.to_str().ok());
            let mut offers = offers.flat_map(|value| value.split(',').map(str::trim));
            offers.any(|offer| offer.as_bytes() == chosen.as_bytes())
        };
        match (chosen.next(), chosen.next()) {
            (None, _) => Ok(()),
            (Some(chosen), None) if known(chosen) => Ok(()),
            _ => Err("chose a WebSocket subprotocol that was not offered"),
        }
    }

    /// The answer that opens it, from the upstream's headers, of which those of its connection are gone.
    pub(super) fn open(&self, headers: &mut HeaderMap) {
        let accept = tungstenite::handshake::derive_accept_key(self.key.as_bytes());
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::from_str(&accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        headers.remove(header::CONTENT_LENGTH);
    }
}

/// A WebSocket whose upstream side is open.
pub(super) struct Opened {
    pub(super) upstream: OnUpgrade,
    /// Bytes of a message at most.
    pub(super) most: usize,
    pub(super) exchange: Rc<Exchange>,
    pub(super) tracker: Tracker,
    /// What the rule says of what comes.
    pub(super) heard: Heard,
}

/// Where a request leaves what it opened for its connection.
pub(super) type Slot = Rc<RefCell<Option<Opened>>>;

/// The body of the answer that opens one: none.
pub(super) fn no_body() -> ResponseBody {
    ResponseBody::Own(None)
}

/// How it ended.
enum End {
    /// A side closed it, and said so.
    Closed(Option<CloseFrame>, Side),
    /// A side broke off.
    Gone(Side, String),
    /// It is not to go on.
    Refused {
        verdict: Verdict,
        code: &'static str,
        detail: String,
        close: CloseCode,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Upstream,
}

type Ended = ControlFlow<End>;

/// Moves messages both ways until an end comes. `early`: what the client sent already.
pub(super) async fn run<IO: AsyncRead + AsyncWrite + Unpin>(
    worker: &Rc<Worker>,
    client: IO,
    early: Vec<u8>,
    opened: Opened,
) {
    let Opened {
        upstream,
        most,
        exchange,
        mut tracker,
        mut heard,
    } = opened;
    let upstream = match upstream.await {
        Ok(upstream) => TokioIo::new(upstream),
        Err(error) => return tracker.failed(Verdict::Error, "upstream_reset", error.to_string()),
    };
    let config = WebSocketConfig::default()
        .max_message_size(Some(most))
        .max_frame_size(Some(most));
    let client =
        WebSocketStream::from_partially_read(client, early, Role::Server, Some(config)).await;
    let upstream = WebSocketStream::from_raw_socket(upstream, Role::Client, Some(config)).await;
    let (mut to_client, mut from_client) = client.split();
    let (mut to_upstream, mut from_upstream) = upstream.split();
    let mut taken = BTreeSet::new();
    let mut observed = None;
    let end = {
        let _listed = worker.exchanges.list(&exchange);
        let moved = (Rc::clone(&tracker.moved), Rc::clone(&tracker.moved));
        let up = async {
            loop {
                let message = from_client.next().await;
                let notes = (&*moved.0, &mut observed);
                let step = pass_up(worker, &exchange, message, &mut to_upstream, notes).await;
                if let ControlFlow::Break(end) = step {
                    return end;
                }
            }
        };
        let down = async {
            loop {
                let message = from_upstream.next().await;
                let step = pass_down(message, &mut heard, &mut to_client, (&moved.1, &mut taken));
                let step = step.await;
                if let ControlFlow::Break(end) = step {
                    return end;
                }
            }
        };
        tokio::select! {
            biased;
            end = watch(worker, &exchange, &tracker) => end,
            end = up => end,
            end = down => end,
        }
    };
    tracker.redacted(taken);
    if let Some(reason) = observed {
        tracker.observed(&reason);
    }
    conclude(
        end,
        (to_client, from_client),
        (to_upstream, from_upstream),
        tracker,
    )
    .await;
}

/// Ends it when the policy says so, the agent stops, or nothing moves for long.
async fn watch(worker: &Worker, exchange: &Exchange, tracker: &Tracker) -> End {
    let limit = worker.shared.limits.uninspected_idle;
    let total = || {
        tracker
            .moved
            .up
            .get()
            .wrapping_add(tracker.moved.down.get())
    };
    let mut idle = Idle::new(limit);
    let mut seen = total();
    let quiet = poll_fn(|cx| {
        if exchange.revoked(cx.waker()) {
            return Poll::Ready(End::Refused {
                verdict: Verdict::Deny,
                code: "revoked",
                detail: BodyError::Revoked.to_string(),
                close: CloseCode::Policy,
            });
        }
        if total() != seen {
            seen = total();
            idle.progress();
        }
        idle.poll(cx).map(|()| End::Refused {
            verdict: Verdict::Error,
            code: "idle",
            detail: BodyError::Idle(limit).to_string(),
            close: CloseCode::Away,
        })
    });
    let mut stop = worker.signals.stop.clone();
    tokio::select! {
        end = quiet => end,
        _ = stop.wait_for(|stop| *stop) => End::Refused {
            verdict: Verdict::Error,
            code: "stopping",
            detail: "the agent stops".into(),
            close: CloseCode::Away,
        },
    }
}

type Received = Option<Result<Message, Error>>;

/// One message of the client.
async fn pass_up(
    worker: &Worker,
    exchange: &Exchange,
    message: Received,
    upstream: &mut (impl Sink<Message, Error = Error> + Unpin),
    (moved, observed): (&super::body::Moved, &mut Option<policy::Reason>),
) -> Ended {
    let message = match sort(message, Side::Client) {
        ControlFlow::Continue(Some(message)) => message,
        ControlFlow::Continue(None) => return Ended::Continue(()),
        ControlFlow::Break(end) => return Ended::Break(end),
    };
    if let Err(spent) = moved.up(message.len()) {
        return Ended::Break(overspent(&spent));
    }
    let message = match decide(worker, exchange, message, observed) {
        Ok(message) => message,
        Err(end) => return Ended::Break(end),
    };
    match upstream.send(message).await {
        Ok(()) => Ended::Continue(()),
        Err(error) => Ended::Break(End::Gone(Side::Upstream, error.to_string())),
    }
}

/// The message as it may be sent. A ping says nothing. `observed`: why the first one was not to pass, where that is only observed.
fn decide(
    worker: &Worker,
    exchange: &Exchange,
    message: Message,
    observed: &mut Option<policy::Reason>,
) -> Result<Message, End> {
    let snapshot = worker.shared.live.load();
    let asked = match &message {
        Message::Text(text) => policy::Message::Text(text.as_str()),
        Message::Binary(bytes) => policy::Message::Binary(bytes),
        _ => return Ok(message),
    };
    let refused = |code, detail| End::Refused {
        verdict: Verdict::Deny,
        code,
        detail,
        close: CloseCode::Policy,
    };
    let Some(decision) = exchange.message(asked, &snapshot) else {
        return Err(refused(
            "undecided",
            "the policy came to no decision".into(),
        ));
    };
    let enforced = decision.effective_mode(snapshot.mode) != policy::Mode::Observe;
    match decision.reason {
        Some(reason) if enforced => Err(refused(reason.code, reason.detail)),
        Some(reason) => {
            observed.get_or_insert(reason);
            Ok(message)
        }
        None => match decision.plan.body {
            None => Ok(message),
            Some(edited) => Utf8Bytes::try_from(edited)
                .map(Message::Text)
                .map_err(|_| refused("undecided", "what is left of a message is no text".into())),
        },
    }
}

/// One message of the upstream.
async fn pass_down(
    message: Received,
    heard: &mut Heard,
    client: &mut (impl Sink<Message, Error = Error> + Unpin),
    (moved, taken): (&super::body::Moved, &mut BTreeSet<String>),
) -> Ended {
    let message = match sort(message, Side::Upstream) {
        ControlFlow::Continue(Some(message)) => message,
        ControlFlow::Continue(None) => return Ended::Continue(()),
        ControlFlow::Break(end) => return Ended::Break(end),
    };
    let message = match heard.screen(message) {
        Ok((message, names)) => {
            taken.extend(names);
            message
        }
        Err(why) => return Ended::Break(unheard(why)),
    };
    if let Err(spent) = moved.down(message.len()) {
        return Ended::Break(overspent(&spent));
    }
    match client.send(message).await {
        Ok(()) => Ended::Continue(()),
        Err(error) => Ended::Break(End::Gone(Side::Client, error.to_string())),
    }
}

/// A budget has not so many bytes left.
fn overspent(spent: &BodyError) -> End {
    End::Refused {
        verdict: Verdict::Limit,
        code: Unit::Bytes.code(),
        detail: spent.to_string(),
        close: CloseCode::Policy,
    }
}

fn unheard(why: Unheard) -> End {
    let (verdict, code, detail, close) = match why {
        Unheard::TooMuch(max) => (
            Verdict::Limit,
            "response_too_large",
            BodyError::TooLarge(max).to_string(),
            CloseCode::Size,
        ),
        Unheard::Unreadable(why) => (
            Verdict::Error,
            "response_unreadable",
            format!("values have to be taken out of a message, and {why}"),
            CloseCode::Error,
        ),
    };
    End::Refused {
        verdict,
        code,
        detail,
        close,
    }
}

/// What is to be passed on, if anything.
fn sort(message: Received, from: Side) -> ControlFlow<End, Option<Message>> {
    let who = match from {
        Side::Client => "the client",
        Side::Upstream => "the upstream",
    };
    match message {
        Some(Ok(Message::Pong(_) | Message::Frame(_))) => ControlFlow::Continue(None),
        Some(Ok(Message::Close(frame))) => ControlFlow::Break(End::Closed(frame, from)),
        Some(Ok(message)) => ControlFlow::Continue(Some(message)),
        Some(Err(Error::Capacity(CapacityError::MessageTooLong { max_size, .. }))) => {
            ControlFlow::Break(End::Refused {
                verdict: match from {
                    Side::Client => Verdict::Deny,
                    Side::Upstream => Verdict::Limit,
                },
                code: "message_too_large",
                detail: format!(
                    "a message of {who} has more than the {max_size} bytes that the rule lets through"
                ),
                close: match from {
                    Side::Client => CloseCode::Policy,
                    Side::Upstream => CloseCode::Size,
                },
            })
        }
        Some(Err(error @ (Error::Protocol(_) | Error::Utf8(_) | Error::Capacity(_))))
            if !broke_off(&error) =>
        {
            ControlFlow::Break(End::Refused {
                verdict: match from {
                    Side::Client => Verdict::Deny,
                    Side::Upstream => Verdict::Error,
                },
                code: "websocket_protocol",
                detail: format!("{who} broke the protocol: {error}"),
                close: match from {
                    Side::Client => CloseCode::Protocol,
                    Side::Upstream => CloseCode::Error,
                },
            })
        }
        Some(Err(error)) => ControlFlow::Break(End::Gone(from, error.to_string())),
        None => ControlFlow::Break(End::Gone(from, "it ended without a word".into())),
    }
}

/// Whether it is not what came, but that no more came.
fn broke_off(error: &Error) -> bool {
    use tungstenite::error::ProtocolError::ResetWithoutClosingHandshake;
    matches!(error, Error::Protocol(ResetWithoutClosingHandshake))
}

type Halves<IO> = (
    SplitSink<WebSocketStream<IO>, Message>,
    SplitStream<WebSocketStream<IO>>,
);

/// Tells both sides, waits a moment for each to say goodbye, and completes the record.
async fn conclude<IO: AsyncRead + AsyncWrite + Unpin>(
    end: End,
    (mut to_client, from_client): Halves<IO>,
    (mut to_upstream, from_upstream): Halves<TokioIo<Upgraded>>,
    mut tracker: Tracker,
) {
    let frame = |code, reason: &str| {
        Some(CloseFrame {
            code,
            reason: reason.to_owned().into(),
        })
    };
    let (for_client, for_upstream) = match end {
        End::Closed(said, Side::Client) => {
            tracker.finish();
            (None, Some(said))
        }
        End::Closed(said, Side::Upstream) => {
            tracker.finish();
            (Some(said), None)
        }
        // The record says so by itself.
        End::Gone(Side::Client, _) => {
            drop(tracker);
            (None, Some(frame(CloseCode::Away, "")))
        }
        End::Gone(Side::Upstream, why) => {
            let why = format!("the upstream broke the connection: {why}");
            tracker.failed(Verdict::Error, "upstream_reset", why);
            (Some(frame(CloseCode::Error, "upstream_reset")), None)
        }
        End::Refused {
            verdict,
            code,
            detail,
            close,
        } => {
            tracker.failed(verdict, code, detail);
            let ours = frame(close, code);
            (Some(ours), Some(frame(CloseCode::Away, "")))
        }
    };
    let client = goodbye(&mut to_client, from_client, for_client);
    let upstream = goodbye(&mut to_upstream, from_upstream, for_upstream);
    tokio::join!(client, upstream);
}

/// Says that this is the end, and throws away what still comes until the other side has said so too.
async fn goodbye<IO: AsyncRead + AsyncWrite + Unpin>(
    to: &mut SplitSink<WebSocketStream<IO>, Message>,
    mut from: SplitStream<WebSocketStream<IO>>,
    say: Option<Option<CloseFrame>>,
) {
    let all = async {
        let said = match say {
            Some(frame) => to.send(Message::Close(frame)).await,
            // It was the other side that closed: the answer to that is on its way.
            None => to.flush().await,
        };
        if said.is_ok() {
            // An error is the end too: what is wrong was told already.
            while let Some(Ok(_)) = from.next().await {}
        }
    };
    let _ = tokio::time::timeout(GOODBYE, all).await;
}
