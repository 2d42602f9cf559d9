//! What a client can do wrong on the wire, and what it is answered.

/// Which rule was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The first bytes are no request line.
    NotHttp,
    /// The HTTP/2 preface on a connection that speaks HTTP/1.1.
    Http2,
    /// The connection ended within a head.
    CutShort,
    /// The head was not complete in time.
    TimedOut,
    /// A method that is no plain token.
    Method,
    /// `CONNECT`: no tunnel is made here.
    Connect,
    /// A target in another form than `/path?query`.
    Target,
    /// A target beyond [`super::TARGET_BYTES`].
    TargetTooLong,
    /// Neither HTTP/1.1 nor HTTP/1.0.
    Version,
    /// A line that does not end in CRLF, or a CR within one.
    LineEnd,
    /// A field line without a valid name.
    FieldName,
    /// A byte that a field value may not hold.
    FieldValue,
    /// A field folded over lines.
    Folding,
    /// More bytes of head than allowed.
    HeadTooLarge,
    /// More fields than allowed.
    TooManyFields,
    /// Not exactly one plain `Host`.
    Host,
    /// Not at most one canonical `Content-Length`.
    ContentLength,
    /// `Transfer-Encoding` twice, with `Content-Length`, or in HTTP/1.0.
    TransferEncoding,
    /// A transfer coding that is not `chunked`.
    UnknownCoding,
    /// A body with a method that gives it no meaning.
    UnexpectedBody,
    /// An expectation that is not `100-continue`.
    Expectation,
    /// A chunk's size that is no hexadecimal number on a line of its own.
    ChunkSize,
    /// A chunk with extensions.
    ChunkExtension,
    /// A chunk that is longer or shorter than its size.
    ChunkEnd,
    /// Fields after the last chunk.
    Trailer,
}

impl Kind {
    /// The status of the answer.
    pub fn status(self) -> u16 {
        match self {
            Self::Connect => 405,
            Self::TimedOut => 408,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::HeadTooLarge | Self::TooManyFields => 431,
            Self::UnknownCoding => 501,
            Self::Version | Self::Http2 => 505,
            _ => 400,
        }
    }

    /// Stable code for records and problem documents.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotHttp => "not_http",
            Self::Http2 => "http2_not_negotiated",
            Self::CutShort => "head_cut_short",
            Self::TimedOut => "head_timeout",
            Self::Method => "method_syntax",
            Self::Connect => "connect",
            Self::Target => "target_form",
            Self::TargetTooLong => "target_too_long",
            Self::Version => "http_version",
            Self::LineEnd => "line_end",
            Self::FieldName => "field_name",
            Self::FieldValue => "field_value",
            Self::Folding => "field_folding",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyFields => "too_many_fields",
            Self::Host => "host_field",
            Self::ContentLength => "content_length",
            Self::TransferEncoding => "transfer_encoding",
            Self::UnknownCoding => "transfer_coding",
            Self::UnexpectedBody => "unexpected_body",
            Self::Expectation => "expectation",
            Self::ChunkSize => "chunk_size",
            Self::ChunkExtension => "chunk_extension",
            Self::ChunkEnd => "chunk_end",
            Self::Trailer => "trailer_fields",
        }
    }

    /// Whether it is found in a body, whose head has passed already.
    pub fn in_body(self) -> bool {
        matches!(
            self,
            Self::ChunkSize | Self::ChunkExtension | Self::ChunkEnd | Self::Trailer
        )
    }
}

/// A broken rule and where it was broken. Holds no field value and no query: they may be secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Violation {
    /// Which rule.
    pub kind: Kind,
    /// Status of the answer.
    pub status: u16,
    /// Stable code.
    pub code: &'static str,
    /// What is wrong, for a person; at most 80 bytes of the input, escaped.
    pub detail: String,
    /// The method, where one was read.
    pub method: Option<String>,
    /// The target's path without its query, where one was read; at most 1 KiB.
    pub target: Option<String>,
    /// The host, where one was read.
    pub host: Option<String>,
}

impl Violation {
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            status: kind.status(),
            code: kind.code(),
            detail: detail.into(),
            method: None,
            target: None,
            host: None,
        }
    }
}

/// At most 80 bytes of input as printable ASCII.
pub(super) fn quoted(input: &[u8]) -> String {
    let (head, more) = match input.get(..20) {
        Some(head) if input.len() > 20 => (head, "…"),
        _ => (input, ""),
    };
    // Each byte becomes at most `\xNN`.
    format!("«{}{more}»", head.escape_ascii())
}
