//! A request's head, byte by byte and line by line (RFC 9112 §2.2, §3, §5; RFC 9110 §5).
//!
//! Whatever the input's split, the first byte in order that breaks a rule decides.
use super::TARGET_BYTES;
use super::bytes::{TARGET, TOKEN, VALUE, all, is, misfit};
use super::names::{is_framing_alias, is_plain_authority};
use super::violation::{Kind, Violation, quoted};

/// Longest method and longest field name; real ones have 17 and some 40 bytes.
const METHOD_BYTES: usize = 32;
const NAME_BYTES: usize = 256;
/// `HTTP/1.1` and its CR.
const VERSION_BYTES: usize = 9;
/// Bytes of a path or host kept for the record.
const RECORD_BYTES: usize = 1024;

/// How many bytes a head may have, and how many fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) bytes: usize,
    pub(super) fields: usize,
}

/// How the body after a head is framed (RFC 9112 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// A whole, valid head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) framing: Framing,
    /// It asks for a WebSocket: what follows it may be no request.
    pub(super) websocket: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Method,
    Target,
    Version,
    Fields,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

/// Reads one head. The input is always all of it so far, from its first byte.
#[derive(Debug)]
pub(super) struct Reader {
    part: Part,
    /// Bytes looked at.
    at: usize,
    /// Where the current part, or line, begins.
    from: usize,
    target_from: usize,
    version: Version,
    fields: usize,
    host: Option<String>,
    length: Option<u64>,
    chunked: bool,
    expects: bool,
    websocket: bool,
    /// The method gives a body no meaning (RFC 9110 §9.3.1, §9.3.2, §9.3.8).
    bodiless: bool,
}

type Checked<T> = Result<T, (Kind, String)>;

fn broken<T>(kind: Kind, detail: impl Into<String>) -> Checked<T> {
    Err((kind, detail.into()))
}

impl Reader {
    pub(super) fn new() -> Self {
        Self {
            part: Part::Method,
            at: 0,
            from: 0,
            target_from: 0,
            version: Version::Http11,
            fields: 0,
            host: None,
            length: None,
            chunked: false,
            expects: false,
            websocket: false,
            bodiless: false,
        }
    }

    /// Goes on where it stopped; none while the head is not complete.
    pub(super) fn read(&mut self, input: &[u8], bounds: Bounds) -> Result<Option<Head>, Violation> {
        let within = input.get(..bounds.bytes).unwrap_or(input);
        let outcome = match self.advance(within, bounds) {
            Ok(None) if within.len() >= bounds.bytes => broken(
                Kind::HeadTooLarge,
                format!("the request's head is longer than {} bytes", bounds.bytes),
            ),
            other => other,
        };
        outcome.map_err(|(kind, detail)| self.violation(input, kind, detail))
    }

    /// A violation with what was understood before it.
    pub(super) fn violation(
        &self,
        input: &[u8],
        kind: Kind,
        detail: impl Into<String>,
    ) -> Violation {
        let part = |from: usize, end: usize| {
            let bytes = input.get(from..end)?.split(|byte| *byte == b'?').next()?;
            let bytes = bytes.get(..RECORD_BYTES).unwrap_or(bytes);
            String::from_utf8(bytes.to_vec()).ok()
        };
        let mut violation = Violation::new(kind, detail);
        if self.part != Part::Method {
            violation.method = part(0, self.target_from.saturating_sub(1));
        }
        if matches!(self.part, Part::Version | Part::Fields) {
            let target = input.get(self.target_from..).unwrap_or_default();
            let end = target
                .iter()
                .position(|byte| *byte == b' ')
                .unwrap_or(target.len());
            violation.target = part(self.target_from, self.target_from.saturating_add(end));
        }
        violation.host.clone_from(&self.host);
        violation
    }

    fn advance(&mut self, input: &[u8], bounds: Bounds) -> Checked<Option<Head>> {
        while self.part != Part::Fields {
            let Some(&byte) = input.get(self.at) else {
                return Ok(None);
            };
            match self.part {
                Part::Method => self.method(input, byte)?,
                Part::Target => {
                    if self.skip_plain(input) {
                        continue;
                    }
                    self.target(input, byte)?;
                }
                _ => self.version(input, byte)?,
            }
            self.at += 1;
        }
        while let Some(found) = input
            .get(self.at..)
            .and_then(|rest| memchr::memchr(b'\n', rest))
        {
            let line = input.get(self.from..self.at + found).unwrap_or_default();
            let Some(line) = line.strip_suffix(b"\r") else {
                return broken(
                    Kind::LineEnd,
                    "a line of the head ends in a bare LF (RFC 9112 §2.2)",
                );
            };
            self.at += found + 1;
            self.from = self.at;
            if line.is_empty() {
                return self.complete().map(|framing| {
                    Some(Head {
                        length: self.at,
                        framing,
                        websocket: self.websocket,
                    })
                });
            }
            self.fields += 1;
            if self.fields > bounds.fields {
                return broken(
                    Kind::TooManyFields,
                    format!("the request has more than {} header fields", bounds.fields),
                );
            }
            self.field(line)?;
        }
        self.at = input.len();
        Ok(None)
    }

    /// `method = token` (RFC 9110 §9.1), here of upper-case letters and inner hyphens: every registered method but `*`.
    fn method(&mut self, input: &[u8], byte: u8) -> Checked<()> {
        let method = input.get(..self.at).unwrap_or_default();
        match byte {
            b'A'..=b'Z' if self.at < METHOD_BYTES => Ok(()),
            b'-' if self.at > 0 && self.at < METHOD_BYTES => Ok(()),
            b' ' if method == b"CONNECT" => {
                self.begin(Part::Target);
                broken(
                    Kind::Connect,
                    "CONNECT asks for a tunnel, and none is made here",
                )
            }
            b' ' if self.at > 0 => {
                self.bodiless = matches!(method, b"GET" | b"HEAD" | b"TRACE");
                self.begin(Part::Target);
                Ok(())
            }
            0x16 if self.at == 0 => broken(
                Kind::NotHttp,
                "a TLS handshake came where an HTTP request was expected",
            ),
            b'\r' | b'\n' if self.at == 0 => broken(
                Kind::LineEnd,
                "an empty line came where a request line was expected (RFC 9112 §2.2)",
            ),
            b'a'..=b'z' if all(TOKEN, method) => broken(
                Kind::Method,
                "the method has a lower-case letter: methods are case-sensitive (RFC 9110 §9.1)",
            ),
            b'A'..=b'Z' | b'-' if self.at > 0 => broken(
                Kind::Method,
                format!("the method is longer than {METHOD_BYTES} bytes"),
            ),
            _ if self.at == 0 => broken(
                Kind::NotHttp,
                format!("not HTTP: the first byte is 0x{byte:02x}, and no method begins with it"),
            ),
            _ => broken(
                Kind::NotHttp,
                format!("not HTTP: byte 0x{byte:02x} in the method"),
            ),
        }
    }

    fn begin(&mut self, part: Part) {
        self.part = part;
        self.from = self.at + 1;
        if part == Part::Target {
            self.target_from = self.from;
        }
    }

    /// Passes over a path's plain bytes at once; false where the next one needs a look.
    fn skip_plain(&mut self, input: &[u8]) -> bool {
        let length = self.at - self.from;
        if length == 0 || input.get(self.from) != Some(&b'/') {
            return false;
        }
        let rest = input.get(self.at..).unwrap_or_default();
        let rest = rest
            .get(..TARGET_BYTES.saturating_sub(length))
            .unwrap_or(rest);
        let plain = misfit(TARGET, rest).unwrap_or(rest.len());
        self.at += plain;
        plain > 0
    }

    /// `origin-form`, or `asterisk-form` for OPTIONS (RFC 9112 §3.2): what follows is decided by one host only.
    fn target(&mut self, input: &[u8], byte: u8) -> Checked<()> {
        let length = self.at - self.from;
        let before = input.get(self.from..self.at).unwrap_or_default();
        match byte {
            b' ' if length == 0 => {
                broken(Kind::Target, "two spaces follow the method (RFC 9112 §3)")
            }
            b' ' => {
                // `PRI *` is judged with its version: it is how HTTP/2 begins.
                let asterisk = matches!(input.get(..self.from), Some(b"OPTIONS " | b"PRI "));
                if before == b"*" && !asterisk {
                    return broken(
                        Kind::Target,
                        "only OPTIONS has the target * (RFC 9112 §3.2.4)",
                    );
                }
                self.begin(Part::Version);
                Ok(())
            }
            b'\r' | b'\n' => broken(
                Kind::Version,
                "the request line has no HTTP version (RFC 9112 §3)",
            ),
            b'/' | b'*' if length == 0 => Ok(()),
            b'!'..=b'~' if length == 0 => broken(
                Kind::Target,
                "the target does not begin with /: only the origin form is served (RFC 9112 §3.2.1)",
            ),
            _ if before == b"*" => broken(
                Kind::Target,
                "the target is neither a path nor * (RFC 9112 §3.2)",
            ),
            _ if length >= TARGET_BYTES => broken(
                Kind::TargetTooLong,
                format!("the target is longer than {TARGET_BYTES} bytes"),
            ),
            b'#' => broken(Kind::Target, "the target has a fragment (RFC 9112 §3.2.1)"),
            _ if is(TARGET, byte) => Ok(()),
            _ => broken(
                Kind::Target,
                format!("byte 0x{byte:02x} in the target must be percent-encoded"),
            ),
        }
    }

    /// HTTP/1.1. HTTP/1.0 is served to the few old clients that speak it, with the same rules and no transfer coding.
    fn version(&mut self, input: &[u8], byte: u8) -> Checked<()> {
        let before = input.get(self.from..self.at).unwrap_or_default();
        if byte != b'\n' {
            if before.len() < VERSION_BYTES {
                return Ok(());
            }
            return broken(
                Kind::Version,
                "the request line does not end after the HTTP version (RFC 9112 §3)",
            );
        }
        let preface = input.get(..self.from) == Some(b"PRI * ");
        self.version = match before {
            b"HTTP/1.1\r" | b"HTTP/1.0\r" if preface => {
                return broken(
                    Kind::Target,
                    "only OPTIONS has the target * (RFC 9112 §3.2.4)",
                );
            }
            b"HTTP/1.1\r" => Version::Http11,
            b"HTTP/1.0\r" => Version::Http10,
            b"HTTP/2.0\r" if preface => {
                return broken(
                    Kind::Http2,
                    "the HTTP/2 preface came on a connection for HTTP/1.1: negotiate h2 in TLS (ALPN)",
                );
            }
            [
                b'H',
                b'T',
                b'T',
                b'P',
                b'/',
                b'0'..=b'9',
                b'.',
                b'0'..=b'9',
                b'\r',
            ] => {
                return broken(
                    Kind::Version,
                    "only HTTP/1.1 is served here, and h2 where TLS negotiated it",
                );
            }
            [rest @ .., last] if *last != b'\r' && !rest.contains(&b'\r') => {
                return broken(
                    Kind::LineEnd,
                    "the request line ends in a bare LF (RFC 9112 §2.2)",
                );
            }
            _ => {
                return broken(
                    Kind::Version,
                    "the request line does not end in an HTTP version (RFC 9112 §2.3)",
                );
            }
        };
        self.begin(Part::Fields);
        Ok(())
    }

    /// `field-name ":" OWS field-value OWS` (RFC 9112 §5), of visible ASCII, blanks and tabs only.
    fn field(&mut self, line: &[u8]) -> Checked<()> {
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return broken(
                Kind::Folding,
                "a header field is folded over lines (RFC 9112 §5.2)",
            );
        }
        let Some(colon) = memchr::memchr(b':', line) else {
            return broken(
                Kind::FieldName,
                "a line of the head has no colon (RFC 9112 §5)",
            );
        };
        let (name, rest) = line.split_at(colon);
        check_name(name)?;
        let value = rest.get(1..).unwrap_or_default();
        if let Some(byte) = misfit(VALUE, value).and_then(|at| value.get(at)) {
            let kind = if *byte == b'\r' {
                Kind::LineEnd
            } else {
                Kind::FieldValue
            };
            return broken(
                kind,
                format!("byte 0x{byte:02x} in the value of {}", quoted(name)),
            );
        }
        let value = value.trim_ascii();
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value),
            6 if name.eq_ignore_ascii_case(b"expect") => self.expect(value),
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.websocket |= value.eq_ignore_ascii_case(b"websocket");
                Ok(())
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value),
            _ => Ok(()),
        }
    }

    /// Exactly one, never empty (RFC 9112 §3.2, RFC 9110 §7.2).
    fn host(&mut self, value: &[u8]) -> Checked<()> {
        if self.host.is_some() {
            return broken(
                Kind::Host,
                "the request has more than one Host (RFC 9112 §3.2)",
            );
        }
        if !is_plain_authority(value) {
            return broken(
                Kind::Host,
                "the value of Host is not a plain host name or address with an optional port",
            );
        }
        let recorded = value.get(..RECORD_BYTES).unwrap_or(value);
        self.host = Some(String::from_utf8_lossy(recorded).into_owned());
        Ok(())
    }

    /// One canonical decimal number (RFC 9110 §8.6): what two servers could read differently is no length.
    fn content_length(&mut self, value: &[u8]) -> Checked<()> {
        if self.length.is_some() {
            return broken(
                Kind::ContentLength,
                "the request has more than one Content-Length (RFC 9110 §8.6)",
            );
        }
        let canonical =
            value.iter().all(u8::is_ascii_digit) && (value == b"0" || value.first() != Some(&b'0'));
        let number = std::str::from_utf8(value)
            .ok()
            .filter(|_| canonical)
            .and_then(|text| text.parse::<i64>().ok());
        let Some(number) = number.and_then(|number| u64::try_from(number).ok()) else {
            return broken(
                Kind::ContentLength,
                "the value of Content-Length is not a plain decimal number below 2^63",
            );
        };
        self.length = Some(number);
        Ok(())
    }

    /// `chunked`, so spelled, once (RFC 9112 §6.1, §7.1).
    fn transfer_encoding(&mut self, value: &[u8]) -> Checked<()> {
        if self.chunked {
            return broken(
                Kind::TransferEncoding,
                "the request has more than one Transfer-Encoding",
            );
        }
        if value != b"chunked" {
            return broken(
                Kind::UnknownCoding,
                "the only transfer coding served is `chunked`, alone and in lower case (RFC 9112 §6.1)",
            );
        }
        self.chunked = true;
        Ok(())
    }

    /// RFC 9110 §10.1.1.
    fn expect(&mut self, value: &[u8]) -> Checked<()> {
        if self.expects
            || self.version == Version::Http10
            || !value.eq_ignore_ascii_case(b"100-continue")
        {
            return broken(
                Kind::Expectation,
                "the only expectation met is `100-continue`, once, in HTTP/1.1 (RFC 9110 §10.1.1)",
            );
        }
        self.expects = true;
        Ok(())
    }

    /// What holds for the head as a whole.
    fn complete(&self) -> Checked<Framing> {
        if self.host.is_none() {
            return broken(Kind::Host, "the request has no Host (RFC 9112 §3.2)");
        }
        if self.bodiless && (self.chunked || self.length.is_some_and(|length| length > 0)) {
            return broken(
                Kind::UnexpectedBody,
                "a GET, HEAD or TRACE has no body: some servers take one for the next request (RFC 9110 §9.3.1)",
            );
        }
        match (self.chunked, self.length) {
            (true, Some(_)) => broken(
                Kind::TransferEncoding,
                "the request has both Transfer-Encoding and Content-Length (RFC 9112 §6.3)",
            ),
            (true, None) if self.version == Version::Http10 => broken(
                Kind::TransferEncoding,
                "HTTP/1.0 has no Transfer-Encoding (RFC 9112 §6.1)",
            ),
            (true, None) => Ok(Framing::Chunked),
            (false, length) => Ok(Framing::Length(length.unwrap_or(0))),
        }
    }
}

/// A token without underscores: servers that hand fields on as variables take `a_b` for `a-b`.
fn check_name(name: &[u8]) -> Checked<()> {
    if name.len() > NAME_BYTES {
        return broken(
            Kind::FieldName,
            format!("the name of a header field is longer than {NAME_BYTES} bytes"),
        );
    }
    if name.last().is_none_or(|byte| matches!(byte, b' ' | b'\t')) {
        return broken(
            Kind::FieldName,
            "a header field has no name, or blanks before its colon (RFC 9112 §5.1)",
        );
    }
    if name.contains(&b'\r') {
        return broken(
            Kind::LineEnd,
            "a bare CR within a line of the head (RFC 9112 §2.2)",
        );
    }
    if !all(TOKEN, name) {
        return broken(
            Kind::FieldName,
            format!(
                "{} is not the name of a header field (RFC 9110 §5.1)",
                quoted(name)
            ),
        );
    }
    if is_framing_alias(name) {
        return broken(
            Kind::FieldName,
            format!(
                "{} is spelled much like a field that frames the body",
                quoted(name)
            ),
        );
    }
    if name.contains(&b'_') {
        return broken(
            Kind::FieldName,
            format!(
                "{}: underscores in names of header fields are not served, some servers take them for hyphens",
                quoted(name)
            ),
        );
    }
    Ok(())
}
