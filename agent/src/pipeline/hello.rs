//! The first message of a TLS client, kept as it is read: a connection that is not to be ended here goes on with the very
//! same bytes.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A TLS record of type handshake (RFC 8446, section 5.1).
pub(super) const HANDSHAKE_RECORD: u8 = 0x16;
/// The handshake message that a client begins with.
const CLIENT_HELLO: u8 = 1;
/// Extensions that hide the name the client means behind another one: ECH (RFC 9849), and its draft, ESNI.
const HIDES_NAME: [u16; 2] = [0xfe0d, 0xffce];

/// A client's stream, of which everything that is read is kept. rustls bounds what it reads for a ClientHello (64 KiB).
pub(super) struct Kept {
    pub(super) stream: TcpStream,
    pub(super) bytes: Vec<u8>,
}

impl Kept {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            bytes: Vec::with_capacity(1024),
        }
    }
}

impl AsyncRead for Kept {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        this.bytes
            .extend_from_slice(buffer.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

/// For the alert that ends a handshake which cannot be understood.
impl AsyncWrite for Kept {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Whether a ClientHello could mean another name than the one in clear. What cannot be read could.
pub(super) fn hides_name(records: &[u8]) -> bool {
    let found = message(records).and_then(|message| has_extension(&message, &HIDES_NAME));
    found.unwrap_or(true)
}

/// The ClientHello's content, from as many records as it came in.
fn message(mut records: &[u8]) -> Option<Vec<u8>> {
    let mut joined = Vec::new();
    loop {
        let mut reader = Reader(records);
        let (kind, _version, length) = (reader.u8()?, reader.u16()?, reader.u16()?);
        if kind != HANDSHAKE_RECORD {
            return None;
        }
        joined.extend_from_slice(reader.take(usize::from(length))?);
        records = reader.0;
        let mut reader = Reader(&joined);
        if joined.len() < 4 {
            continue;
        }
        if reader.u8()? != CLIENT_HELLO {
            return None;
        }
        let length = usize::from(reader.u8()?) << 16 | usize::from(reader.u16()?);
        if let Some(content) = reader.take(length) {
            return Some(content.to_vec());
        }
    }
}

/// RFC 8446, section 4.1.2.
fn has_extension(hello: &[u8], wanted: &[u16]) -> Option<bool> {
    let mut reader = Reader(hello);
    let _version_and_random = reader.take(2 + 32)?;
    let session = reader.u8()?;
    reader.take(session.into())?;
    let suites = reader.u16()?;
    reader.take(suites.into())?;
    let compressions = reader.u8()?;
    reader.take(compressions.into())?;
    let length = reader.u16()?;
    let mut extensions = Reader(reader.take(length.into())?);
    while !extensions.0.is_empty() {
        let (kind, length) = (extensions.u16()?, extensions.u16()?);
        extensions.take(length.into())?;
        if wanted.contains(&kind) {
            return Some(true);
        }
    }
    Some(false)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let mut all = Vec::new();
        for (kind, content) in extensions {
            all.extend(kind.to_be_bytes());
            all.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
            all.extend(*content);
        }
        let mut content = vec![3, 3];
        content.extend([7; 32]);
        content.extend([2, 1, 1, 0, 2, 0x13, 1, 1, 0]);
        content.extend(u16::try_from(all.len()).unwrap().to_be_bytes());
        content.extend(all);
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        [&[1], &length[1..], &content].concat()
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        let record = |part: &[u8]| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[HANDSHAKE_RECORD, 3, 1], &length[..], part].concat()
        };
        message.chunks(size).flat_map(record).collect()
    }

    #[test]
    fn a_hidden_name_is_seen_however_the_message_is_cut() {
        let (plain, hidden) = (
            hello(&[(0, b"name"), (16, b"")]),
            hello(&[(0, b"name"), (0xfe0d, b"\0secret")]),
        );
        for size in [1, 3, 50, 10_000] {
            assert!(!hides_name(&records(&plain, size)), "{size}");
            assert!(hides_name(&records(&hidden, size)), "{size}");
        }
        assert!(hides_name(&records(&hello(&[(0xffce, b"")]), 100)));
    }

    #[test]
    fn what_cannot_be_read_could_hide_one() {
        let whole = records(&hello(&[(0, b"name")]), 100);
        for end in 0..whole.len() {
            assert!(hides_name(&whole[..end]), "{end}");
        }
        assert!(hides_name(&records(&[2, 0, 0, 0], 100)));
        assert!(hides_name(b"\x17\x03\x01\x00\x01x"));
    }
}
