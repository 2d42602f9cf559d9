//! What must hold for every stream of bytes. The fuzz target calls [`fuzz_gate`]; so do the property tests.
use super::{Gate, Violation};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, ReadBuf};

const HEAD_BYTES: usize = 1024;
const HEAD_FIELDS: usize = 16;

/// Feeds `data` to a gate, whole and in pieces.
///
/// # Panics
/// - The outcome depends on how the bytes were split, coming in or going out.
/// - What passed is not the beginning of what came.
/// - What passed does not pass again.
/// - What passed is, to another parser, not the same number of requests, or one with an ambiguous length.
pub fn fuzz_gate(data: &[u8]) {
    let whole = feed(data, usize::MAX, 1 << 16);
    let odd = data.first().map_or(7, |byte| usize::from(*byte) + 1);
    for (read, write) in [(1, 1 << 16), (1, 1), (odd, 3), (usize::MAX, odd)] {
        assert_eq!(
            feed(data, read, write),
            whole,
            "read by {read}, written by {write}"
        );
    }
    assert!(data.starts_with(&whole.passed));
    let again = feed(&whole.passed, usize::MAX, 1 << 16);
    assert_eq!(again.violation, None, "what passed is refused");
    assert_eq!(
        (&again.passed, again.requests),
        (&whole.passed, whole.requests)
    );
    assert_eq!(count(&whole.passed), whole.requests);
}

/// What came of feeding a gate.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fed {
    /// What hyper would have read of the client's.
    pub(super) passed: Vec<u8>,
    pub(super) requests: u64,
    pub(super) violation: Option<Violation>,
}

/// Reads all there is through a gate: at most `read` bytes a time from the client and `write` bytes a time by hyper.
pub(super) fn feed(data: &[u8], read: usize, write: usize) -> Fed {
    let mut gate = Gate::new(Pieces { data, most: read }, HEAD_BYTES, HEAD_FIELDS);
    let handle = gate.handle();
    let mut passed = Vec::new();
    let mut room = vec![0; write];
    let mut context = Context::from_waker(Waker::noop());
    let mut failed = false;
    loop {
        let mut out = ReadBuf::new(&mut room);
        match Pin::new(&mut gate).poll_read(&mut context, &mut out) {
            Poll::Ready(Ok(())) if out.filled().is_empty() => break,
            Poll::Ready(Ok(())) => passed.extend_from_slice(out.filled()),
            Poll::Ready(Err(_)) => failed = true,
            // The client always has something to say or has ended: only a refused one is waited for.
            Poll::Pending => break,
        }
    }
    assert!(gate.buffer.capacity() <= HEAD_BYTES);
    let violation = handle.unclaimed();
    match &violation {
        Some(violation) if violation.kind.in_body() => {
            assert!(failed, "hyper was told of {violation:?} by nothing");
            assert_eq!(handle.body_violation().as_ref(), Some(violation));
        }
        Some(violation) => {
            let path = unsynthesise(&mut passed);
            assert_eq!(handle.violation(&path).as_ref(), Some(violation));
        }
        None => {}
    }
    Fed {
        passed,
        requests: handle.requests(),
        violation,
    }
}

/// Takes the gate's own request off the end and gives its path.
fn unsynthesise(passed: &mut Vec<u8>) -> String {
    let sample = format!(
        "GET /{0} HTTP/1.1\r\nhost: {0}\r\nconnection: close\r\n\r\n",
        "0".repeat(32)
    );
    let own = passed.split_off(passed.len().saturating_sub(sample.len()));
    let path = own.get(4..37).unwrap_or_default();
    String::from_utf8_lossy(path).into_owned()
}

/// Requests in `stream`, by a parser that is not the gate's.
fn count(mut stream: &[u8]) -> u64 {
    let mut requests = 0;
    while !stream.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; HEAD_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(length)) = request.parse(stream) else {
            panic_with("a head that httparse refuses passed", stream)
        };
        requests += 1;
        let values = |name: &str| -> Vec<&[u8]> {
            let same = request
                .headers
                .iter()
                .filter(|field| field.name.eq_ignore_ascii_case(name));
            same.map(|field| field.value).collect()
        };
        let (coding, declared) = (values("transfer-encoding"), values("content-length"));
        assert_eq!(values("host").len(), 1);
        assert!(coding.len() + declared.len() <= 1);
        assert!(
            request
                .path
                .is_some_and(|path| path.starts_with('/') || path == "*")
        );
        stream = stream.get(length..).unwrap_or_default();
        if !coding.is_empty() {
            stream = after_chunks(stream);
        } else if let Some(declared) = declared
            .first()
            .and_then(|value| std::str::from_utf8(value).ok())
        {
            let length: u64 = declared.parse().unwrap_or(u64::MAX);
            stream = usize::try_from(length)
                .ok()
                .and_then(|length| stream.get(length..))
                .unwrap_or_default();
        }
    }
    requests
}

/// What follows a chunked body; nothing where it is not complete.
fn after_chunks(mut stream: &[u8]) -> &[u8] {
    loop {
        let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(stream)
        else {
            return b"";
        };
        // The chunk and its CRLF; the last chunk's is the empty line.
        let past = usize::try_from(size)
            .ok()
            .and_then(|size| line.checked_add(size)?.checked_add(2));
        let Some(rest) = past.and_then(|past| stream.get(past..)) else {
            return b"";
        };
        stream = rest;
        if size == 0 {
            return stream;
        }
    }
}

#[allow(clippy::panic)]
fn panic_with(what: &str, stream: &[u8]) -> ! {
    panic!("{what}: {}", stream.escape_ascii())
}

/// A client that sends at most so many bytes at a time, and then closes.
struct Pieces<'a> {
    data: &'a [u8],
    most: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.data.len().min(self.most).min(out.remaining());
        let (now, later) = self.data.split_at(count);
        out.put_slice(now);
        self.data = later;
        Poll::Ready(Ok(()))
    }
}
