//! What may be sent a second time: a request that its upstream did not take up, or that may be done twice, and the body that
//! went with it.
//!
//! An upstream ends connections when it likes. Over HTTP/2 it says which requests it did nothing of (RFC 9113, sections 6.8 and
//! 8.7): those may be sent again, whatever they ask for. Over HTTP/1.1 it says nothing, so only what may be done twice is
//! (RFC 9110, section 9.2.2), and only where the connection had been idle. A body that streams is kept by reference as it goes, as far as [`KEPT`].
use super::body::{BodyError, Counted, RequestBody};
use super::rewrite::Rewritten;
use crate::upstream::{Lease, Sender};
use bytes::Bytes;
use http::Request;
use http_body::{Body as _, Frame, SizeHint};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Bytes of a streamed body that are kept. Most calls are shorter, and what is longer is not begun anew unseen.
const KEPT: usize = 64 * 1024;

/// The same request once more.
pub(super) struct Spare {
    request: Request<RequestBody>,
    /// Whether doing it twice is doing it once, and it met a connection that may have been given up.
    stale: bool,
}

impl Spare {
    /// Of a request that is about to be sent, where it may have to be sent again.
    pub(super) fn of(rewritten: &mut Rewritten<'_>, lease: &Lease) -> Option<Self> {
        let stale = lease.reused && rewritten.parsed.method.is_idempotent();
        if !stale && matches!(lease.sender, Sender::Http1(_)) {
            return None;
        }
        let body = match &mut rewritten.body {
            RequestBody::Empty => RequestBody::Empty,
            RequestBody::Read(bytes) => RequestBody::Read(bytes.clone()),
            // A rule has read more of it than it may hold.
            RequestBody::Joined(..) | RequestBody::Kept(_) => return None,
            RequestBody::Stream(_) => {
                let taken = std::mem::replace(&mut rewritten.body, RequestBody::Empty);
                let RequestBody::Stream(stream) = taken else {
                    return None;
                };
                let (first, second) = Kept::twice(stream);
                rewritten.body = RequestBody::Kept(first);
                RequestBody::Kept(second)
            }
        };
        let mut request = Request::new(body);
        *request.method_mut() = rewritten.parsed.method.clone();
        *request.headers_mut() = rewritten.headers.clone();
        Some(Self { request, stale })
    }

    /// For an upstream that said that it did nothing of the first one.
    pub(super) fn untaken(self) -> Option<Request<RequestBody>> {
        match self.request.body() {
            RequestBody::Kept(kept) => kept.begin().then_some(self.request),
            _ => Some(self.request),
        }
    }

    /// For a connection that ended without a word.
    pub(super) fn stale(self) -> Option<Request<RequestBody>> {
        self.stale.then(|| self.untaken()).flatten()
    }

    /// The first one was answered.
    pub(super) fn let_go(self) {
        if let RequestBody::Kept(kept) = self.request.body() {
            kept.shared.borrow_mut().let_go();
        }
    }
}

/// One go at a streamed body of which the beginning is kept.
pub(crate) struct Kept {
    shared: Rc<RefCell<Shared>>,
    /// Which go this is: a later one leaves nothing to an earlier one.
    go: u8,
    /// How many of the kept pieces were sent in it.
    at: usize,
}

struct Shared {
    body: Counted,
    go: u8,
    pieces: SmallVec<[Bytes; 4]>,
    bytes: usize,
    /// More was sent than is kept.
    gone: bool,
}

impl Shared {
    fn let_go(&mut self) {
        self.gone = true;
        self.pieces.clear();
    }
}

impl Kept {
    fn twice(body: Counted) -> (Self, Self) {
        let shared = Rc::new(RefCell::new(Shared {
            body,
            go: 1,
            pieces: SmallVec::new(),
            bytes: 0,
            gone: false,
        }));
        let go = |go| Self {
            shared: Rc::clone(&shared),
            go,
            at: 0,
        };
        (go(1), go(2))
    }

    /// Begins this go, where all of what was sent is still there.
    fn begin(&self) -> bool {
        let mut shared = self.shared.borrow_mut();
        shared.go = self.go;
        !shared.gone
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut shared = self.shared.borrow_mut();
        let shared = &mut *shared;
        if shared.go != self.go {
            return Poll::Ready(None);
        }
        if let Some(piece) = shared.pieces.get(self.at) {
            self.at += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        let polled = shared.body.poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
            && !shared.gone
        {
            shared.bytes += data.len();
            if shared.bytes > KEPT {
                shared.let_go();
            } else {
                shared.pieces.push(data.clone());
                self.at += 1;
            }
        }
        polled
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let shared = self.shared.borrow();
        shared.go != self.go
            || (self.at >= shared.pieces.len() && shared.body.inner().is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let shared = self.shared.borrow();
        let again = shared.pieces.iter().skip(self.at).map(Bytes::len);
        let again: usize = again.sum();
        match shared.body.inner().size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest.saturating_add(again as u64)),
            None => SizeHint::default(),
        }
    }
}
