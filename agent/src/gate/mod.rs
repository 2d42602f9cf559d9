//! Keeps from hyper's HTTP/1 server what it would take and must not: between TLS and hyper, [`Gate`] checks every
//! request's head byte by byte, follows the framing to the next head, and passes on well-formed requests only.
//!
//! hyper takes bare LFs, lower-case methods, requests with no `Host` or with two, `Content-Length` beside
//! `Transfer-Encoding`, targets of every form, `CONNECT` as a tunnel, and more. Any of them can mean one thing here and
//! another at the upstream. The gate refuses instead of mending: it never changes, adds or leaves out a byte of a
//! request.
//!
//! On a violation it reads nothing more from the client and feeds hyper one request of its own, whose path is a random
//! name. Requests before it are so answered first, then the service finds the violation by that path, answers and
//! records it, and the connection closes. Within a body, whose head has passed already, reading the body fails instead.
//!
//! ```
//! use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
//! use hyper_util::rt::TokioIo;
//! use tollgate::gate::Gate;
//!
//! # async fn pass(_: Request<Incoming>) -> Result<Response<String>, std::convert::Infallible> { Ok(Response::default()) }
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (stream, mut client) = tokio::io::duplex(4096);
//! # use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! # client.write_all(b"GET / HTTP/1.1\nHost: a.example\n\n").await?;
//! let (head_bytes, head_fields) = (64 * 1024, 100);
//! let gate = Gate::new(stream, head_bytes, head_fields);
//! let handle = gate.handle();
//! let service = service_fn(|request: Request<Incoming>| {
//!     let violation = handle.violation(request.uri().path()); // First of all, of every request.
//!     async move {
//!         match violation {
//!             Some(wrong) => Response::builder().status(wrong.status).body(wrong.detail), // And record it.
//!             None => Ok(pass(request).await.unwrap_or_default()),
//!         }
//!     }
//! });
//! http1::Builder::new()
//!     .max_headers(head_fields) // hyper must refuse nothing that the gate let pass,
//!     .max_buf_size(head_bytes + 8192) // or it is refused without a record.
//!     .serve_connection(TokioIo::new(gate), service)
//!     .await?;
//! if let Some(wrong) = handle.unclaimed() {
//!     println!("record: {}", wrong.code); // The client had left before it could be answered.
//! }
//! # let mut answer = String::new(); client.read_to_string(&mut answer).await?;
//! # assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
//! # Ok(()) }
//! ```
//!
//! Deadlines are the connection's: [`Handle::idle`], [`Handle::in_head`] and [`Handle::in_body`] tell which applies, and
//! [`Handle::expire`] turns a head that takes too long into a violation (408).
//!
//! # What is refused that RFC 9112 lets a server take
//! Empty lines before a request line; obs-text (bytes from 0x80) in values; underscores in field names; absolute-form
//! targets; a body with GET or HEAD; chunk extensions; trailer fields; `Transfer-Encoding` in other than lower case; HTTP/1.0 with `Expect`.
//! Clients that were met send none of these to an API; each has been used to smuggle requests past a proxy.

mod buffer;
mod bytes;
mod closing;
mod door;
mod frame;
pub mod fuzz;
mod handle;
mod head;
mod names;
#[cfg(test)]
mod tests;
mod violation;

pub use door::Door;
pub use fuzz::fuzz_gate;
pub use handle::{Handle, Owed};
pub use violation::{Kind, Violation};

use buffer::Buffer;
use closing::Closing;
use frame::{Framer, Step};
use handle::{Phase, Shared};
use head::Bounds;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Longest request target.
pub const TARGET_BYTES: usize = 16 * 1024;
/// How often a client that sends no more is looked for while it is owed an answer.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// A client's stream from which hyper reads well-formed requests only. See the [module](self).
#[derive(Debug)]
pub struct Gate<IO> {
    io: IO,
    framer: Framer,
    buffer: Buffer,
    source: Source,
    shared: Rc<Shared>,
    closing: Closing,
    /// Whether the client's program still holds its end of the connection.
    present: Present,
    /// The client does not take what is written.
    stalled: bool,
}

/// Tells whether a client that sends no more still waits for answers.
struct Present(Box<dyn Fn() -> bool>);

impl std::fmt::Debug for Present {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Present")
    }
}

/// What hyper reads.
#[derive(Debug)]
enum Source {
    /// The client.
    Client,
    /// What has been judged good, then the request that stands for the violation, then nothing.
    Refusal(Vec<u8>),
    /// What has been judged good, then an error, then the end.
    BadBody(Violation),
    /// Nothing for now: the client sends no more (it closed its half of the connection, or all of it), and a request is
    /// not answered yet. It is asked about at intervals: hyper would drop the answer at once.
    HalfClosed(Option<Pin<Box<Sleep>>>),
    /// The end.
    Ended,
    /// Nothing, and no end either: hyper would take it for the client's leaving and drop the answer.
    Silence,
}

impl<IO> Gate<IO> {
    /// Guards `io`; heads of requests have at most `head_bytes` bytes and `head_fields` fields.
    pub fn new(io: IO, head_bytes: usize, head_fields: usize) -> Self {
        let bounds = Bounds {
            bytes: head_bytes.max(64),
            fields: head_fields,
        };
        Self {
            io,
            framer: Framer::new(bounds),
            buffer: Buffer::new(bounds.bytes),
            source: Source::Client,
            shared: Shared::new(),
            closing: Closing::No,
            present: Present(Box::new(|| false)),
            stalled: false,
        }
    }

    /// Lets a client that closes its sending half have its answers for as long as `present` says that it is there.
    /// Without this, a client that sends no more is taken for gone.
    #[must_use]
    pub fn while_present(self, present: impl Fn() -> bool + 'static) -> Self {
        Self {
            present: Present(Box::new(present)),
            ..self
        }
    }

    /// Asks this gate; for the connection's service and deadlines.
    pub fn handle(&self) -> Handle {
        Handle(Rc::clone(&self.shared))
    }

    /// The client's stream, and what was read of it and not given out.
    pub fn into_parts(self) -> (IO, Vec<u8>) {
        let early = self.buffer.waiting().to_vec();
        (self.io, early)
    }

    fn refuse(&mut self, violation: Violation) {
        self.source = if violation.kind.in_body() {
            self.shared.refuse_body(violation.clone());
            Source::BadBody(violation)
        } else {
            Source::Refusal(self.shared.refuse(violation))
        };
    }

    /// Judges what is buffered, as far as it goes, but not beyond the end of a request. Returns how many bytes of body
    /// may come straight from the client.
    fn judge(&mut self) -> u64 {
        let requests = self.framer.requests();
        loop {
            let waiting = self.buffer.waiting();
            match self.framer.step(waiting) {
                Ok(Step::Pass(count)) => self.buffer.judged(count),
                Ok(Step::Through(count)) if waiting.is_empty() => return count,
                Ok(Step::Through(count)) => {
                    let count = waiting
                        .len()
                        .min(usize::try_from(count).unwrap_or(usize::MAX));
                    self.buffer.judged(count);
                    self.framer.passed(count as u64);
                }
                Ok(Step::More) => return 0,
                Err(violation) => {
                    self.refuse(violation);
                    return 0;
                }
            }
            if !self.framer.in_body()
                && (self.framer.requests() > requests || self.buffer.has_good())
            {
                return 0;
            }
        }
    }

    /// Tells the handle where the stream stands. A head is under way once judging it needs more than came: a whole one
    /// that waits behind the request before it is not late.
    fn note(&self, needs_more: bool) {
        let phase = match self.framer.in_body() {
            true => Phase::Body,
            false if needs_more && !self.buffer.waiting().is_empty() => Phase::Head,
            false => Phase::Idle,
        };
        self.shared.note(phase, self.framer.requests());
    }

    /// The client's stream is over, or broke.
    fn end(&mut self, why: &str) -> bool {
        let violation = self
            .framer
            .unfinished(self.buffer.waiting(), Kind::CutShort, why);
        match violation {
            Some(violation) => self.refuse(violation),
            None if self.framer.in_body() => self.source = Source::Ended,
            None => self.source = Source::HalfClosed(None),
        }
        matches!(self.source, Source::Ended | Source::HalfClosed(_))
    }

    /// Whether the end of the client's stream has to be kept from hyper.
    fn holds_end(&mut self, context: &mut Context<'_>) -> bool {
        let Source::HalfClosed(timer) = &mut self.source else {
            return false;
        };
        let answered = !self.shared.owes(self.framer.requests()) && !self.stalled;
        if answered {
            return false;
        }
        self.shared.waits(context);
        loop {
            let due = match timer {
                Some(timer) => timer.as_mut().poll(context).is_ready(),
                None => true,
            };
            if !due {
                return true;
            }
            if !(self.present.0)() {
                return false;
            }
            *timer = Some(Box::pin(tokio::time::sleep(ASK_EVERY)));
        }
    }
}

impl<IO: AsyncRead + Unpin> Gate<IO> {
    /// Reads from the client what must be judged before it passes.
    fn fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shared.take_expired() {
            let why = "the rest did not come in time";
            if let Some(violation) =
                self.framer
                    .unfinished(self.buffer.waiting(), Kind::TimedOut, why)
            {
                self.refuse(violation);
                return Poll::Ready(Ok(()));
            }
        }
        self.shared.waits(context);
        match ready!(self.buffer.poll_fill(Pin::new(&mut self.io), context)) {
            Ok(0) => {
                self.end("the client closed the connection");
            }
            Ok(_) => {}
            Err(error) => {
                let between = !self.framer.in_body();
                let ended = self.end(&format!("the connection broke ({})", error.kind()));
                // Without a word of goodbye (TLS close_notify), but between requests: nothing is cut short.
                if ended && !(between && error.kind() == io::ErrorKind::UnexpectedEof) {
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Body of known length from the client into hyper's buffer.
    fn pass_through(
        &mut self,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
        left: u64,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        match usize::try_from(left)
            .ok()
            .filter(|left| *left < out.remaining())
        {
            None => ready!(Pin::new(&mut self.io).poll_read(context, out))?,
            Some(left) => {
                // The last bytes of a body: what follows them must not get past.
                let mut last = ReadBuf::new(out.initialize_unfilled_to(left));
                ready!(Pin::new(&mut self.io).poll_read(context, &mut last))?;
                let count = last.filled().len();
                out.advance(count);
            }
        }
        let count = out.filled().len().saturating_sub(before);
        if count == 0 {
            self.source = Source::Ended;
        }
        self.framer.passed(count as u64);
        self.note(false);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gate<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let gate = self.get_mut();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if gate.buffer.release(out) {
                gate.note(false);
                return Poll::Ready(Ok(()));
            }
            match &mut gate.source {
                Source::Client => {}
                Source::Refusal(bytes) => {
                    let count = bytes.len().min(out.remaining());
                    out.put_slice(bytes.drain(..count).as_slice());
                    if bytes.is_empty() {
                        gate.source = Source::Silence;
                    }
                    return Poll::Ready(Ok(()));
                }
                Source::BadBody(violation) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, violation.clone());
                    gate.source = Source::Ended;
                    return Poll::Ready(Err(error));
                }
                Source::HalfClosed(_) => {
                    if gate.holds_end(context) {
                        return Poll::Pending;
                    }
                    gate.source = Source::Ended;
                }
                Source::Ended => return Poll::Ready(Ok(())),
                Source::Silence => return Poll::Pending,
            }
            if gate.framer.may_switch() && gate.shared.undecided() {
                gate.shared.waits(context);
                return Poll::Pending;
            }
            let left = gate.judge();
            gate.note(!gate.buffer.has_good());
            if gate.buffer.has_good() || !matches!(gate.source, Source::Client) {
                continue;
            }
            if left > 0 {
                return gate.pass_through(context, out, left);
            }
            ready!(gate.fill(context))?;
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Gate<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.stalled = written.is_pending();
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(context, bytes);
        self.stalled = written.is_pending();
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    /// Where the client may be sending still, waits for its end after telling it ours, up to half a minute.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let gate = &mut *self;
        let lingers = gate.framer.in_body() || gate.shared.is_refused();
        gate.closing.poll(&mut gate.io, lingers, context)
    }
}
