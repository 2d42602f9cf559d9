//! Values taken out of a body that is many small ones: server-sent events, and messages with their length before them. Each
//! piece goes on as soon as it is whole; what cannot be read without doubt ends the stream.
use super::body::BodyError;
use bytes::Bytes;
use std::collections::BTreeSet;
use tollgate_policy::{Pointer, Redacted, Redactor};

/// Bytes of one piece at most.
const PIECE: usize = 1 << 20;
/// What ends the streams of language models in place of JSON.
const DONE: &[u8] = b"[DONE]";
/// Flags of a message (gRPC-Web, Connect): its bytes are compressed.
const COMPRESSED: u8 = 0x01;
/// It holds trailers, as header lines (gRPC-Web).
const TRAILERS: u8 = 0x80;
/// Flag and length.
const PREFIX: usize = 5;

/// How a body is made of pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `text/event-stream` (WHATWG HTML, section 9.2).
    Events,
    /// A flag and four bytes of length before each message, which is JSON.
    Messages,
}

impl Kind {
    /// By media type.
    pub(super) fn of(media: &str) -> Option<Self> {
        let kind = media.split(';').next().unwrap_or_default().trim();
        let kind = kind.to_ascii_lowercase();
        match kind.as_str() {
            "text/event-stream" => Some(Self::Events),
            "application/grpc+json" | "application/grpc-web+json" | "application/connect+json" => {
                Some(Self::Messages)
            }
            _ => None,
        }
    }
}

/// A body under way, made of pieces.
pub(super) struct Framed {
    kind: Kind,
    redactor: Redactor,
    /// The piece that is not whole yet.
    held: Vec<u8>,
    /// Nothing was read yet.
    fresh: bool,
    taken: BTreeSet<String>,
}

impl Framed {
    pub(super) fn new(kind: Kind, redactor: Redactor) -> Self {
        Self {
            kind,
            redactor,
            held: Vec::new(),
            fresh: true,
            taken: BTreeSet::new(),
        }
    }

    /// What was taken out.
    pub(super) fn taken(&self) -> Vec<String> {
        self.taken.iter().cloned().collect()
    }

    /// The pieces that are whole now.
    pub(super) fn feed(&mut self, data: &[u8]) -> Result<Bytes, BodyError> {
        self.held.extend_from_slice(data);
        let mut out = Vec::new();
        let held = std::mem::take(&mut self.held);
        let mut rest = held.as_slice();
        while let Some(length) = self.whole(rest)? {
            let (piece, more) = rest.split_at_checked(length).unwrap_or((rest, &[]));
            match self.kind {
                Kind::Events => self.event(piece, &mut out)?,
                Kind::Messages => self.message(piece, &mut out)?,
            }
            self.fresh = false;
            rest = more;
        }
        if rest.len() > PIECE {
            return Err(unreadable("one piece of it is larger than 1 MiB"));
        }
        self.held = rest.to_vec();
        Ok(out.into())
    }

    /// The body's end. An event that is not whole is none (WHATWG HTML, section 9.2.6); a message that is not is cut.
    pub(super) fn end(&mut self) -> Result<(), BodyError> {
        match self.kind {
            Kind::Messages if !self.held.is_empty() => Err(unreadable("its last message is cut")),
            _ => Ok(()),
        }
    }

    /// How long the first piece is, where it is all there.
    fn whole(&self, bytes: &[u8]) -> Result<Option<usize>, BodyError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        match self.kind {
            Kind::Events => Ok(end_of_event(bytes)),
            Kind::Messages => {
                let Some([_, length @ ..]) = bytes.first_chunk::<PREFIX>() else {
                    return Ok(None);
                };
                let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
                if length > PIECE {
                    return Err(unreadable("one message of it is larger than 1 MiB"));
                }
                Ok((bytes.len() >= PREFIX + length).then_some(PREFIX + length))
            }
        }
    }

    /// An event with its empty line: its data, which are JSON, without what is to be taken out.
    fn event(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), BodyError> {
        let text = match piece.strip_prefix(b"\xef\xbb\xbf") {
            Some(text) if self.fresh => text,
            _ => piece,
        };
        let (mut data, mut others) = (Vec::<&[u8]>::new(), Vec::<&[u8]>::new());
        for line in lines(text) {
            match field(line) {
                (b"data", value) => data.push(value),
                _ => others.push(line),
            }
        }
        let joined = data.join(&b'\n');
        if joined.is_empty() || joined == DONE {
            out.extend_from_slice(piece);
            return Ok(());
        }
        let Some(new) = self.redact(&joined)? else {
            out.extend_from_slice(piece);
            return Ok(());
        };
        for line in others.into_iter().filter(|line| !line.is_empty()) {
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        for line in new.split(|byte| *byte == b'\n') {
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        out.push(b'\n');
        Ok(())
    }

    fn message(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), BodyError> {
        let (flag, body) = match piece {
            [flag, _, _, _, _, body @ ..] => (*flag, body),
            _ => return Err(unreadable("a message of it has no length")),
        };
        if flag & TRAILERS != 0 || body.is_empty() {
            out.extend_from_slice(piece);
            return Ok(());
        }
        if flag & COMPRESSED != 0 {
            return Err(unreadable("a message of it is compressed"));
        }
        let new = self.redact(body)?;
        let body = new.as_deref().unwrap_or(body);
        let length = u32::try_from(body.len()).map_err(|_| unreadable("a message is too large"))?;
        out.push(flag);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(body);
        Ok(())
    }

    /// The new text, where something is taken out of it.
    fn redact(&mut self, text: &[u8]) -> Result<Option<Vec<u8>>, BodyError> {
        match self.redactor.redact(text) {
            Ok(Redacted { body: None, .. }) => Ok(None),
            Ok(Redacted { body, .. }) => {
                let pointers = self.redactor.pointers().iter().map(Pointer::to_string);
                self.taken.extend(pointers);
                Ok(body)
            }
            Err(_) => Err(unreadable("a piece of it is not plain JSON")),
        }
    }
}

fn unreadable(why: &'static str) -> BodyError {
    BodyError::Unreadable(why)
}

/// Lines end with CR, LF or both. The last one, which ends nothing, is no line.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
        let (line, more) = rest.split_at_checked(end)?;
        rest = match more {
            [b'\r', b'\n', more @ ..] | [_, more @ ..] => more,
            [] => more,
        };
        Some(line)
    })
}

/// `name: value`, of which one blank is no part.
fn field(line: &[u8]) -> (&[u8], &[u8]) {
    let colon = line
        .iter()
        .position(|byte| *byte == b':')
        .unwrap_or(line.len());
    let (name, value) = line.split_at_checked(colon).unwrap_or((line, &[]));
    let value = value.strip_prefix(b":").unwrap_or(value);
    (name, value.strip_prefix(b" ").unwrap_or(value))
}

/// Where the first event ends: behind its empty line. A CR at the very end may be half of a line's end.
fn end_of_event(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut empty) = (0, true);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'\r' | b'\n' => {
                if *byte == b'\r' {
                    match bytes.get(at) {
                        Some(b'\n') => at += 1,
                        Some(_) => {}
                        None => return None,
                    }
                }
                if empty {
                    return Some(at);
                }
                empty = true;
            }
            _ => empty = false,
        }
    }
    None
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn framed(kind: Kind) -> Framed {
        let pointers = ["/email", "/items/*/token"].map(|text| Pointer::parse(text).unwrap());
        Framed::new(kind, Redactor::new(&pointers).unwrap())
    }

    fn through(kind: Kind, body: &[u8], size: usize) -> Result<Vec<u8>, BodyError> {
        let mut framed = framed(kind);
        let mut out = Vec::new();
        for part in body.chunks(size) {
            out.extend_from_slice(&framed.feed(part)?);
        }
        framed.end()?;
        Ok(out)
    }

    #[test]
    fn events_lose_values_and_keep_their_framing() {
        let stream = ": hello\n\nevent: user\nid: 7\ndata: {\"email\":\"ann@acme.example\",\ndata:  \"n\":1}\n\n\
                      data: {\"n\": 2}\r\n\r\nretry: 10\r\rdata\n\ndata: [DONE]\n\n";
        let clean = ": hello\n\nevent: user\nid: 7\ndata: {\"email\":\"[redacted]\",\ndata:  \"n\":1}\n\n\
                     data: {\"n\": 2}\r\n\r\nretry: 10\r\rdata\n\ndata: [DONE]\n\n";
        for size in 1..=stream.len() {
            let out = through(Kind::Events, stream.as_bytes(), size).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), clean, "{size}");
        }
        // One goes on as soon as it is whole, and what never is does not.
        let mut framed = framed(Kind::Events);
        assert_eq!(framed.feed(b"data: 1\n").unwrap(), "");
        assert_eq!(
            framed.feed(b"\ndata: {\"email\":\"ann").unwrap(),
            "data: 1\n\n"
        );
        assert!(framed.end().is_ok());
    }

    #[test]
    fn events_that_are_no_json_end_the_stream() {
        for event in [
            "data: ann@acme.example\n\n",
            "data: {\"email\":\"ann\"\n\n",
            "data: {\"email\":1,\"em\\u0061il\":2}\n\n",
            "data: [DONE] ann\n\n",
        ] {
            assert!(
                through(Kind::Events, event.as_bytes(), 1000).is_err(),
                "{event}"
            );
        }
        let long = format!("data: \"{}", "x".repeat(PIECE));
        assert!(through(Kind::Events, long.as_bytes(), 4096).is_err());
    }

    #[test]
    fn messages_lose_values_and_keep_their_framing() {
        let message = |flag: u8, body: &str| {
            let length = u32::try_from(body.len()).unwrap().to_be_bytes();
            [&[flag][..], &length, body.as_bytes()].concat()
        };
        let trailers = message(TRAILERS, "grpc-status: 0\r\n");
        let body = [
            message(0, r#"{"email":"ann@acme.example","n":1}"#),
            message(0, ""),
            message(2, "{}"),
            trailers.clone(),
        ]
        .concat();
        let clean = [
            message(0, r#"{"email":"[redacted]","n":1}"#),
            message(0, ""),
            message(2, "{}"),
            trailers,
        ]
        .concat();
        for size in 1..=body.len() {
            assert_eq!(
                through(Kind::Messages, &body, size).unwrap(),
                clean,
                "{size}"
            );
        }
        for wrong in [
            message(1, "{}"),
            message(0, "ann"),
            vec![0, 255, 255, 255, 255],
            message(0, "{}")[..6].to_vec(),
        ] {
            assert!(through(Kind::Messages, &wrong, 1000).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn kinds_are_known_by_media_type() {
        assert_eq!(
            Kind::of("Text/Event-Stream; charset=utf-8"),
            Some(Kind::Events)
        );
        assert_eq!(Kind::of("application/grpc-web+json"), Some(Kind::Messages));
        for other in [
            "application/json",
            "application/grpc-web-text",
            "application/grpc",
            "",
        ] {
            assert_eq!(Kind::of(other), None, "{other}");
        }
    }
}
