//! The response on its way to the client: stripped, streamed frame by frame, and never shown as whole if it was cut.
use super::account::Tracker;
use super::body::{BodyError, Idle};
use super::exchange::{Exchange, Exchanges, Listed};
use super::hop;
use super::screen::{Content, Screened};
use super::worker::Worker;
use crate::audit::Verdict;
use crate::upstream::Lease;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// A response's body as it goes to the client.
pub(super) enum ResponseBody {
    /// The agent's own words.
    Own(Option<Bytes>),
    /// The upstream's, read whole and changed.
    Whole(Bytes, Option<Tracker>),
    /// The upstream's.
    Relay(Box<Relay>),
}

/// An upstream's body under way. It holds what must last as long as it does: the record, the connection, the listing.
pub(super) struct Relay {
    inner: Incoming,
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

/// Makes the client's response.
pub(super) fn respond(
    worker: &Worker,
    screened: Screened<'_>,
    tracker: Tracker,
) -> Response<ResponseBody> {
    let Screened {
        mut parts,
        content,
        exchange,
        rules,
        ..
    } = screened;
    strip(&mut parts.headers, rules.strip);
    parts.version = http::Version::default();
    parts.extensions.clear();
    let body = match content {
        Content::Whole(bytes) => whole(bytes, tracker),
        Content::Stream(inner, lease) => {
            let mut relay = Relay {
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
                relay.end();
            }
            ResponseBody::Relay(Box::new(relay))
        }
    };
    Response::from_parts(parts, body)
}

fn whole(bytes: Bytes, mut tracker: Tracker) -> ResponseBody {
    // Of an empty body nobody asks for the first byte.
    if bytes.is_empty() {
        tracker.finish();
        return ResponseBody::Own(None);
    }
    tracker.passed(bytes.len());
    ResponseBody::Whole(bytes, Some(tracker))
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

impl Relay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                self.idle.progress();
                if let Some(trailers) = frame.trailers_mut() {
                    strip(trailers, &self.strip);
                }
                if let Some(data) = frame.data_ref() {
                    let length = data.len();
                    if let Err(max) = self.let_through(length) {
                        let error = BodyError::TooLarge(max);
                        return self.fail(Verdict::Limit, "response_too_large", error);
                    }
                }
                if self.exchange.revoked(cx.waker()) {
                    return self.fail(Verdict::Deny, "revoked", BodyError::Revoked);
                }
                if self.inner.is_end_stream() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.fail(Verdict::Error, "upstream_truncated", error.into())
            }
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
            Poll::Pending => self.wait(cx),
        }
    }

    /// Counts what passes; an error is what passes at most.
    fn let_through(&mut self, bytes: usize) -> Result<(), u64> {
        if let Some((max, left)) = &mut self.max {
            *left = left.checked_sub(bytes as u64).ok_or(*max)?;
        }
        if let Some(tracker) = &mut self.tracker {
            tracker.passed(bytes);
        }
        Ok(())
    }

    /// Nothing is there yet: from now on a policy change or a long silence ends it.
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
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

    /// hyper cuts the client's response without its end, so that the client sees an error and no success.
    fn fail(
        &mut self,
        verdict: Verdict,
        code: &'static str,
        error: BodyError,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.listed = None;
        self.lease = None;
        if let Some(mut tracker) = self.tracker.take() {
            tracker.failed(verdict, code, error.to_string());
        }
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(
                bytes
                    .take()
                    .filter(|b| !b.is_empty())
                    .map(|bytes| Ok(Frame::data(bytes))),
            ),
            Self::Whole(bytes, tracker) => {
                if let Some(tracker) = tracker.take() {
                    tracker.finish();
                }
                let bytes = std::mem::take(bytes);
                Poll::Ready(
                    Some(bytes)
                        .filter(|b| !b.is_empty())
                        .map(|b| Ok(Frame::data(b))),
                )
            }
            Self::Relay(relay) => relay.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Whole(bytes, _) => bytes.is_empty(),
            Self::Relay(relay) => relay.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Whole(bytes, _) => SizeHint::with_exact(bytes.len() as u64),
            Self::Relay(relay) => relay.inner.size_hint(),
        }
    }
}
