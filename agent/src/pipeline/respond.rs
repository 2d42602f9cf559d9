//! The response on its way to the client: stripped, streamed frame by frame, and never shown as whole if it was cut.
use super::account::Tracker;
use super::body::{BodyError, Idle};
use super::change::{AT_ONCE, Change, MASKED};
use super::exchange::{Exchange, Exchanges, Listed};
use super::heard::Heard;
use super::hop;
use super::screen::{Content, Screened};
use super::websocket::{self, Opened, Slot};
use super::worker::Worker;
use crate::audit::Verdict;
use crate::budget::Unit;
use crate::secrets::Masker;
use crate::upstream::Lease;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// A response's body as it goes to the client.
pub(super) enum ResponseBody {
    /// The agent's own words.
    Own(Option<Bytes>),
    /// The upstream's, read whole and changed.
    Whole(Box<Whole>),
    /// The upstream's.
    Relay(Box<Relay>),
}

/// An upstream's body under way. It holds what must last as long as it does: the record, the connection, the listing.
pub(super) struct Relay {
    inner: Incoming,
    /// What is done to it.
    change: Option<Box<Change>>,
    /// What came compressed and was not read yet. It can be a thousand times as much in clear: so it is read piece by piece,
    /// each once the client has taken what came of the last.
    compressed: Bytes,
    /// Trailers that what was held comes before.
    behind: Option<Frame<Bytes>>,
    /// The last of it is on its way.
    done: bool,
    /// Finds the credential in trailers.
    mask: Option<Arc<Masker>>,
    /// What the rule takes out, of trailers too.
    strip: Vec<String>,
    /// Bytes that may pass in all, and those still to come.
    max: Option<(u64, u64)>,
    idle: Idle,
    tracker: Option<Tracker>,
    lease: Option<Lease>,
    exchange: Rc<Exchange>,
    exchanges: Rc<Exchanges>,
    listed: Option<Listed>,
}

/// A body that is all there. What the client does not take yet can still be forbidden.
pub(super) struct Whole {
    /// What is left of it.
    bytes: Bytes,
    tracker: Option<Tracker>,
    exchange: Rc<Exchange>,
    listed: Option<Listed>,
}

/// Makes the client's response.
pub(super) fn respond(
    worker: &Worker,
    screened: Screened<'_>,
    mut tracker: Tracker,
    slot: Option<&Slot>,
) -> Response<ResponseBody> {
    let Screened {
        mut parts,
        content,
        exchange,
        rules,
        upgraded,
        ..
    } = screened;
    strip(&mut parts.headers, rules.strip);
    if let Some(masker) = &rules.mask
        && mask(&mut parts.headers, masker)
    {
        tracker.redacted([MASKED.to_owned()]);
    }
    parts.version = http::Version::default();
    parts.extensions.clear();
    if let (Some((upstream, most)), Some(slot)) = (upgraded, slot) {
        exchange.open_websocket(&mut parts.headers);
        slot.replace(Some(Opened {
            upstream,
            most,
            exchange,
            tracker,
            heard: Heard::of(&rules),
        }));
        return Response::from_parts(parts, websocket::no_body());
    }
    let body = match content {
        // Of an empty body nobody asks for the first byte.
        Content::Whole(bytes) if bytes.is_empty() => {
            tracker.finish();
            ResponseBody::Own(None)
        }
        Content::Whole(bytes) => ResponseBody::Whole(Box::new(Whole {
            bytes,
            tracker: Some(tracker),
            listed: Some(worker.exchanges.list(&exchange)),
            exchange,
        })),
        Content::Stream(inner, lease, change) => {
            let mut relay = Relay {
                change,
                compressed: Bytes::new(),
                behind: None,
                done: false,
                mask: rules.mask,
                strip: rules.strip.to_vec(),
                max: rules.max.map(|max| (max, max)),
                idle: Idle::new(worker.shared.limits.response_idle),
                tracker: Some(tracker),
                lease: Some(lease),
                exchange,
                exchanges: Rc::clone(&worker.exchanges),
                listed: None,
                inner,
            };
            if relay.inner.is_end_stream() {
                relay.change = None;
                relay.end();
            }
            ResponseBody::Relay(Box::new(relay))
        }
    };
    Response::from_parts(parts, body)
}

/// Headers of the upstream's connection, what would lead clients around the agent, and what the rule says.
fn strip(headers: &mut HeaderMap, named: &[String]) {
    const ALWAYS: [HeaderName; 7] = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::PROXY_AUTHENTICATE,
        // Would move clients to QUIC, which is refused (RFC 7838).
        header::ALT_SVC,
        HeaderName::from_static("keep-alive"),
    ];
    for name in hop::listed(headers).iter().chain(&ALWAYS) {
        headers.remove(name);
    }
    for name in named {
        headers.remove(name.as_str());
    }
}

/// A body that the gate knows to be on its way.
pub(super) struct Owing {
    pub(super) body: ResponseBody,
    /// Answered once it is dropped.
    pub(super) _owed: crate::gate::Owed,
}

impl Body for Owing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Overwrites echoes of the credential; whether there were any.
fn mask(headers: &mut HeaderMap, masker: &Masker) -> bool {
    let mut found = false;
    for value in headers.values_mut() {
        let masked = masker.mask(value.as_bytes());
        if let Some(Ok(masked)) = masked.map(|bytes| HeaderValue::from_bytes(&bytes)) {
            *value = masked;
            found = true;
        }
    }
    found
}

type Polled = Poll<Option<Result<Frame<Bytes>, BodyError>>>;

impl Whole {
    /// Bytes that go at a time: between them, what forbids the rest is heard.
    const PART: usize = 64 * 1024;

    fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        if self.exchange.revoked(cx.waker()) {
            self.listed = None;
            self.bytes.clear();
            return fail(
                &mut self.tracker,
                Verdict::Deny,
                "revoked",
                BodyError::Revoked,
            );
        }
        let part = self.bytes.split_to(self.bytes.len().min(Self::PART));
        let counted = self.tracker.as_mut();
        if let Some(Err(spent)) = counted.map(|tracker| tracker.let_through(part.len())) {
            self.listed = None;
            self.bytes.clear();
            return fail(&mut self.tracker, Verdict::Limit, Unit::Bytes.code(), spent);
        }
        if self.bytes.is_empty() {
            self.listed = None;
            if let Some(tracker) = self.tracker.take() {
                tracker.finish();
            }
        }
        Poll::Ready(Some(Ok(Frame::data(part))))
    }
}

/// hyper cuts the client's response without its end, so that the client sees an error and no success.
fn fail(
    tracker: &mut Option<Tracker>,
    verdict: Verdict,
    code: &'static str,
    error: BodyError,
) -> Polled {
    let overspent = tracker
        .as_ref()
        .and_then(|tracker| tracker.moved.overspent());
    let (verdict, code, error) = match overspent {
        // Whatever broke: a budget cut the request's body.
        Some((detail, false)) => (Verdict::Limit, Unit::Bytes.code(), BodyError::Spent(detail)),
        _ => (verdict, code, error),
    };
    if let Some(mut tracker) = tracker.take() {
        tracker.failed(verdict, code, error.to_string());
    }
    Poll::Ready(Some(Err(error)))
}

impl Relay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        loop {
            if let Some(trailers) = self.behind.take() {
                self.end();
                return Poll::Ready(Some(Ok(trailers)));
            }
            if self.done {
                return Poll::Ready(None);
            }
            let frame = match self.next(cx) {
                Poll::Ready(Some(Ok(frame))) => Some(frame),
                Poll::Ready(Some(Err(error))) => {
                    return self.fail(Verdict::Error, "upstream_truncated", error.into());
                }
                Poll::Ready(None) => None,
                Poll::Pending => return self.wait(cx),
            };
            self.idle.progress();
            let data = match self.take(frame) {
                Ok(data) => data,
                Err(error) => return self.fail(Verdict::Error, "response_unreadable", error),
            };
            if let Err((code, error)) = self.let_through(data.len()) {
                return self.fail(Verdict::Limit, code, error);
            }
            if self.exchange.revoked(cx.waker()) {
                return self.fail(Verdict::Deny, "revoked", BodyError::Revoked);
            }
            if self.done && self.behind.is_none() {
                self.end();
            }
            if !data.is_empty() || (self.change.is_none() && !self.done) {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    /// What came, as much as is read at once.
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.compressed.is_empty() {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
            let inflates = self.change.as_ref().is_some_and(|it| it.inflate.is_some());
            match frame {
                Some(Ok(frame)) if inflates => match frame.into_data() {
                    Ok(data) => self.compressed = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return Poll::Ready(other),
            }
        }
        let piece = self.compressed.len().min(AT_ONCE);
        Poll::Ready(Some(Ok(Frame::data(self.compressed.split_to(piece)))))
    }

    /// The data that may go on of what came; `None` is the end, and so are trailers, which are kept for after it.
    fn take(&mut self, frame: Option<Frame<Bytes>>) -> Result<Bytes, BodyError> {
        let data = match frame.map(Frame::into_data) {
            Some(Ok(data)) => {
                self.done = self.compressed.is_empty() && self.inner.is_end_stream();
                data
            }
            Some(Err(mut trailers)) => {
                if let Some(trailers) = trailers.trailers_mut() {
                    strip(trailers, &self.strip);
                    let masker = self.mask.as_deref();
                    if masker.is_some_and(|masker| mask(trailers, masker)) {
                        self.note([MASKED.to_owned()]);
                    }
                }
                self.behind = Some(trailers);
                self.done = true;
                Bytes::new()
            }
            None => {
                self.done = true;
                Bytes::new()
            }
        };
        let Some(change) = &mut self.change else {
            if let Some(charge) = self.tracker.as_mut().and_then(Tracker::charge) {
                charge.heard(&data);
            }
            return Ok(data);
        };
        let mut changed = change.feed(data)?;
        if self.done {
            let rest = change.end()?;
            if !rest.is_empty() {
                changed = [changed, rest].concat().into();
            }
            let taken = change.taken();
            self.note(taken);
        }
        self.hear();
        Ok(changed)
    }

    /// Reads what came in clear for what it took.
    fn hear(&mut self) {
        let heard = self
            .change
            .as_mut()
            .and_then(|change| change.heard.as_mut());
        let charge = self.tracker.as_mut().and_then(Tracker::charge);
        if let (Some(heard), Some(charge)) = (heard, charge) {
            heard.drain(..).for_each(|data| charge.heard(&data));
        }
    }

    fn note(&mut self, taken: impl IntoIterator<Item = String>) {
        if let Some(tracker) = &mut self.tracker {
            tracker.redacted(taken);
        }
    }

    /// Counts what passes; an error is why it does not.
    fn let_through(&mut self, bytes: usize) -> Result<(), (&'static str, BodyError)> {
        if let Some((max, left)) = &mut self.max {
            let less = left.checked_sub(bytes as u64);
            *left = less.ok_or(("response_too_large", BodyError::TooLarge(*max)))?;
        }
        let tracker = self.tracker.as_mut();
        let counted = tracker.map_or(Ok(()), |tracker| tracker.let_through(bytes));
        counted.map_err(|spent| (Unit::Bytes.code(), spent))
    }

    /// Nothing is there yet: from now on a policy change or a long silence ends it.
    fn wait(&mut self, cx: &mut Context<'_>) -> Polled {
        if self.listed.is_none() {
            self.listed = Some(self.exchanges.list(&self.exchange));
        }
        if self.exchange.revoked(cx.waker()) {
            return self.fail(Verdict::Deny, "revoked", BodyError::Revoked);
        }
        match self.idle.poll(cx) {
            Poll::Ready(()) => {
                let limit = self.idle.limit;
                self.fail(Verdict::Error, "upstream_idle", BodyError::Idle(limit))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// The last byte came: the connection may serve the next request.
    fn end(&mut self) {
        self.listed = None;
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
        if let Some(tracker) = self.tracker.take() {
            tracker.finish();
        }
    }

    fn fail(&mut self, verdict: Verdict, code: &'static str, error: BodyError) -> Polled {
        self.listed = None;
        self.lease = None;
        fail(&mut self.tracker, verdict, code, error)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(
                bytes
                    .take()
                    .filter(|b| !b.is_empty())
                    .map(|bytes| Ok(Frame::data(bytes))),
            ),
            Self::Whole(whole) => whole.poll(cx),
            Self::Relay(relay) => relay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Whole(whole) => whole.bytes.is_empty(),
            Self::Relay(relay) if relay.change.is_some() => relay.done && relay.behind.is_none(),
            Self::Relay(relay) => relay.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Whole(whole) => SizeHint::with_exact(whole.bytes.len() as u64),
            // What is taken out of it changes how long it is; stars do not.
            Self::Relay(relay) if relay.change.as_ref().is_some_and(|change| change.resizes()) => {
                SizeHint::default()
            }
            Self::Relay(relay) => relay.inner.size_hint(),
        }
    }
}
