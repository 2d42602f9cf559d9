//! Bodies on their way through: counted, bounded in idle time, never held longer than a rule needs.
use super::again::Kept;
use crate::budget::Line;
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use smallvec::SmallVec;
use std::cell::{Cell, OnceCell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;
use tollgate_policy::syntax::quote;

/// What can go wrong with a body under way.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The other side failed or broke off.
    #[error(transparent)]
    Broken(#[from] hyper::Error),
    /// Nothing came for too long.
    #[error("no data for {0:?}")]
    Idle(Duration),
    /// A policy change, or the end of a grant, forbids the rest.
    #[error("the policy no longer allows it: it was changed, or a grant has expired")]
    Revoked,
    /// What is compressed cannot be read.
    #[error("the response is compressed, and cannot be read")]
    Inflate,
    /// Values have to be taken out of it, and that cannot be done without doubt.
    #[error("values have to be taken out of the response, and {0}")]
    Unreadable(&'static str),
    /// More than the rule takes.
    #[error("the response has more than the {0} bytes that the rule lets through")]
    TooLarge(u64),
    /// More than a budget has left.
    #[error("{0}")]
    Spent(String),
}

/// A request's body as it goes upstream.
pub(crate) enum RequestBody {
    /// None.
    Empty,
    /// Read whole for a rule: sent byte for byte as it was decided on.
    Read(Option<Bytes>),
    /// Passed on as it comes.
    Stream(Counted),
    /// Passed on as it comes, and kept as far as it may have to be sent again.
    Kept(Kept),
    /// Longer than a rule wanted to see, and allowed by another that need not see it: what was read, then the rest.
    Joined(Option<Bytes>, Counted),
}

/// Bytes that have passed.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// From the client.
    pub(super) up: Cell<u64>,
    /// To the client.
    pub(super) down: Cell<u64>,
    /// Budgets that they are counted in.
    gauge: OnceCell<Box<Gauge>>,
}

impl Moved {
    /// From here on all that moves is counted in these budgets too.
    pub(super) fn gauge(&self, gauge: Gauge) {
        // Once for a request.
        let _ = self.gauge.set(Box::new(gauge));
    }

    /// So many bytes more from the client.
    pub(super) fn up(&self, bytes: usize) -> Result<(), BodyError> {
        add(&self.up, bytes);
        self.count(bytes)
    }

    /// So many bytes more to the client.
    pub(super) fn down(&self, bytes: usize) -> Result<(), BodyError> {
        add(&self.down, bytes);
        self.count(bytes)
    }

    fn count(&self, bytes: usize) -> Result<(), BodyError> {
        match self.gauge.get() {
            None => Ok(()),
            Some(gauge) => match gauge.count(bytes as u64) {
                Err(spent) if !gauge.soft => Err(BodyError::Spent(spent)),
                _ => Ok(()),
            },
        }
    }

    /// Which budget was spent up, and whether that is only observed.
    pub(super) fn overspent(&self) -> Option<(String, bool)> {
        let gauge = self.gauge.get()?;
        let over = gauge.over.borrow().clone()?;
        Some((over, gauge.soft))
    }
}

/// Budgets of bytes that a transfer is counted in.
#[derive(Debug)]
pub(super) struct Gauge {
    lines: SmallVec<[Line; 2]>,
    /// What is over a limit is only observed.
    soft: bool,
    /// What was over first, for a person.
    over: RefCell<Option<String>>,
}

impl Gauge {
    pub(super) fn new(lines: SmallVec<[Line; 2]>, soft: bool) -> Self {
        Self {
            lines,
            soft,
            over: RefCell::default(),
        }
    }

    /// Counts `bytes` in all of them; an error is which one has not so many left.
    pub(super) fn count(&self, bytes: u64) -> Result<(), String> {
        let now = u64::try_from(super::now()).unwrap_or(0);
        let mut short = None;
        for line in &self.lines {
            let limit = line.quota.amount;
            let held = (!self.soft).then_some(limit);
            let counted = line.account.spend(bytes, held, now);
            let (_, spent) = line.account.state(now);
            if (counted.is_err() || spent > limit) && short.is_none() {
                short = Some(format!(
                    "budget {} gives {}/{}, and this transfer takes more than was left",
                    quote(&line.account.budget),
                    line.account.unit.show(limit),
                    line.quota.window.as_str()
                ));
            }
        }
        let Some(short) = short else { return Ok(()) };
        self.over.borrow_mut().get_or_insert_with(|| short.clone());
        Err(short)
    }
}

/// Counts `bytes` more.
pub(super) fn add(total: &Cell<u64>, bytes: usize) {
    total.set(total.get().saturating_add(bytes as u64));
}

/// A streamed body that is counted and may not stand still for long.
pub(crate) struct Counted {
    inner: Incoming,
    count: Rc<Moved>,
    idle: Idle,
}

impl Counted {
    pub(super) fn new(inner: Incoming, count: Rc<Moved>, limit: Duration) -> Self {
        Self {
            inner,
            count,
            idle: Idle::new(limit),
        }
    }

    /// Reads until the end, or until more than `max` bytes are there; then the rest comes back, too.
    pub(super) async fn read(mut self, max: usize) -> Result<(Bytes, Option<Self>), BodyError> {
        let mut head = BytesMut::new();
        while let Some(frame) = std::future::poll_fn(|cx| self.poll_frame(cx)).await {
            if let Ok(data) = frame?.into_data() {
                head.extend_from_slice(&data);
                if head.len() > max {
                    return Ok((head.freeze(), Some(self)));
                }
            }
        }
        Ok((head.freeze(), None))
    }

    pub(super) fn inner(&self) -> &Incoming {
        &self.inner
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            // Trailers end a body, and go no further: they could carry the fields that are stripped from the head.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => Poll::Ready(None),
            Poll::Ready(frame) => {
                self.idle.progress();
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                    && let Err(spent) = self.count.up(data.len())
                {
                    return Poll::Ready(Some(Err(spent)));
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::from)))
            }
            Poll::Pending => {
                ready!(self.idle.poll(cx));
                Poll::Ready(Some(Err(BodyError::Idle(self.idle.limit))))
            }
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Read(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(body) => body.poll_frame(cx),
            Self::Kept(body) => body.poll_frame(cx),
            Self::Joined(head, rest) => match head.take() {
                Some(head) => Poll::Ready(Some(Ok(Frame::data(head)))),
                None => rest.poll_frame(cx),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Read(bytes) => bytes.is_none(),
            Self::Stream(body) => body.inner.is_end_stream(),
            Self::Kept(body) => body.is_end_stream(),
            Self::Joined(head, rest) => head.is_none() && rest.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Read(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(body) => body.inner.size_hint(),
            Self::Kept(body) => body.size_hint(),
            Self::Joined(head, rest) => {
                let held = head.as_ref().map_or(0, |head| head.len() as u64);
                match rest.inner.size_hint().exact() {
                    Some(more) => SizeHint::with_exact(held.saturating_add(more)),
                    None => SizeHint::default(),
                }
            }
        }
    }
}

/// A deadline that moves with progress, and costs a timer only while waiting.
pub(super) struct Idle {
    pub(super) limit: Duration,
    last: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    pub(super) fn new(limit: Duration) -> Self {
        Self {
            limit,
            last: None,
            sleep: None,
        }
    }

    /// Something came.
    pub(super) fn progress(&mut self) {
        self.last = None;
    }

    /// Ready once nothing has come for `limit`. Call only while waiting.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = *self.last.get_or_insert_with(Instant::now) + self.limit;
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        while sleep.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            // It was set for an earlier wait; progress came since.
            sleep.as_mut().reset(deadline.into());
        }
        Poll::Pending
    }
}
