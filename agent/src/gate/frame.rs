//! Where one request ends and the next begins (RFC 9112 §6, §7.1).
use super::head::{Bounds, Framing, Reader};
use super::violation::{Kind, Violation};

/// Digits of a chunk's size. Leading zeros are unambiguous and some clients pad with them.
const SIZE_DIGITS: usize = 16;

/// What can be said of the bytes that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// So many of them are good; at least one.
    Pass(usize),
    /// The next so many are body, whatever they are; at least one.
    Through(u64),
    /// More are needed to tell.
    More,
}

/// Follows one client's stream.
#[derive(Debug)]
pub(super) struct Framer {
    bounds: Bounds,
    state: State,
    requests: u64,
    /// The last head that passed asks for a WebSocket.
    websocket: bool,
}

#[derive(Debug)]
enum State {
    Head(Reader),
    /// So many bytes of body left.
    Length(u64),
    /// A chunk's size line comes.
    Size,
    /// So many bytes of a chunk left.
    Data(u64),
    /// The CRLF after a chunk comes.
    DataEnd,
}

impl Framer {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            state: State::Head(Reader::new()),
            requests: 0,
            websocket: false,
        }
    }

    /// Heads that passed.
    pub(super) fn requests(&self) -> u64 {
        self.requests
    }

    /// Whether a WebSocket was asked for, and the request has no more to come.
    pub(super) fn may_switch(&self) -> bool {
        self.websocket && !self.in_body()
    }

    /// Whether what comes next belongs to a request that began.
    pub(super) fn in_body(&self) -> bool {
        !matches!(self.state, State::Head(_))
    }

    /// Judges `input`, which begins where the last `Pass` or `Through` ended and, after `More`, repeats what it had.
    pub(super) fn step(&mut self, input: &[u8]) -> Result<Step, Violation> {
        match &mut self.state {
            State::Head(reader) => {
                let Some(head) = reader.read(input, self.bounds)? else {
                    return Ok(Step::More);
                };
                self.requests += 1;
                self.websocket = head.websocket;
                self.state = match head.framing {
                    Framing::Length(0) => State::Head(Reader::new()),
                    Framing::Length(length) => State::Length(length),
                    Framing::Chunked => State::Size,
                };
                Ok(Step::Pass(head.length))
            }
            State::Length(left) | State::Data(left) => Ok(Step::Through(*left)),
            State::Size => self.size(input),
            State::DataEnd => match input {
                [b'\r', b'\n', ..] => {
                    self.state = State::Size;
                    Ok(Step::Pass(2))
                }
                [] | [b'\r'] => Ok(Step::More),
                _ => Err(Violation::new(
                    Kind::ChunkEnd,
                    "a chunk is not followed by CRLF: it is not as long as its size says (RFC 9112 §7.1)",
                )),
            },
        }
    }

    /// So many bytes of a `Through` have been passed.
    pub(super) fn passed(&mut self, count: u64) {
        self.state = match self.state {
            State::Length(left) if left > count => State::Length(left - count),
            State::Data(left) if left > count => State::Data(left - count),
            State::Length(_) => State::Head(Reader::new()),
            State::Data(_) => State::DataEnd,
            State::Head(_) | State::Size | State::DataEnd => return,
        };
    }

    /// `chunk-size CRLF`; with the last chunk also the empty line after it, so that no body is complete before its end
    /// is known to be good.
    fn size(&mut self, input: &[u8]) -> Result<Step, Violation> {
        let digits = input
            .iter()
            .take(SIZE_DIGITS + 1)
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let mut after = input.iter().skip(digits).copied();
        match (after.next(), after.next()) {
            _ if digits > SIZE_DIGITS => Err(bad_size("is longer than 16 digits")),
            (None, _) => Ok(Step::More),
            (Some(b';'), _) => Err(Violation::new(
                Kind::ChunkExtension,
                "chunk extensions are not served (RFC 9112 §7.1.1)",
            )),
            _ if digits == 0 => Err(bad_size("is not a hexadecimal number")),
            (Some(b'\r'), None) => Ok(Step::More),
            (Some(b'\r'), Some(b'\n')) => self.chunk(input, digits),
            _ => Err(bad_size("is not followed by CRLF")),
        }
    }

    fn chunk(&mut self, input: &[u8], digits: usize) -> Result<Step, Violation> {
        let text = input
            .get(..digits)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let size = text.and_then(|text| u64::from_str_radix(text, 16).ok());
        let Some(size) = size.filter(|size| i64::try_from(*size).is_ok()) else {
            return Err(bad_size("is not below 2^63"));
        };
        if size > 0 {
            self.state = State::Data(size);
            return Ok(Step::Pass(digits + 2));
        }
        match input.get(digits + 2..) {
            Some([b'\r', b'\n', ..]) => {
                self.state = State::Head(Reader::new());
                Ok(Step::Pass(digits + 4))
            }
            None | Some([] | [b'\r']) => Ok(Step::More),
            Some(_) => Err(Violation::new(
                Kind::Trailer,
                "trailer fields after the last chunk are not served (RFC 9112 §7.1.2)",
            )),
        }
    }

    /// The stream ends, or the time for the head does, with `input` still to judge: a violation if that is part of a
    /// head.
    pub(super) fn unfinished(&self, input: &[u8], kind: Kind, why: &str) -> Option<Violation> {
        match &self.state {
            State::Head(reader) if !input.is_empty() => {
                let detail = format!(
                    "the request's head was cut short at {} bytes: {why}",
                    input.len()
                );
                Some(reader.violation(input, kind, detail))
            }
            _ => None,
        }
    }
}

fn bad_size(why: &str) -> Violation {
    Violation::new(
        Kind::ChunkSize,
        format!("the size of a chunk {why} (RFC 9112 §7.1)"),
    )
}
