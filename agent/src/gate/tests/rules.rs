//! Every rule, both sides of it.
use crate::gate::fuzz::{feed, fuzz_gate};
use crate::gate::{Kind, TARGET_BYTES};
use proptest::prelude::*;

fn judge(text: &[u8]) -> Result<u64, Kind> {
    fuzz_gate(text);
    let fed = feed(text, usize::MAX, 4096);
    fed.violation
        .map_or(Ok(fed.requests), |violation| Err(violation.kind))
}

/// A head with one more line, or another request line.
fn with(line: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a.example\r\n{line}\r\n\r\n").into_bytes()
}

fn request_line(line: &str) -> Vec<u8> {
    format!("{line}\r\nHost: a.example\r\n\r\n").into_bytes()
}

#[test]
fn request_lines() {
    let long = format!("GET /{} HTTP/1.1", "a".repeat(TARGET_BYTES));
    for (line, expected) in [
        ("GET / HTTP/1.1", Ok(1)),
        ("GET / HTTP/1.0", Ok(1)),
        ("OPTIONS * HTTP/1.1", Ok(1)),
        ("M-SEARCH /a?b=c&d[]=%41|{} HTTP/1.1", Ok(1)),
        ("VERSION-CONTROL //a/../b;c=d HTTP/1.1", Ok(1)),
        ("TRACE / HTTP/1.1", Ok(1)),
        ("get / HTTP/1.1", Err(Kind::Method)),
        ("GeT / HTTP/1.1", Err(Kind::Method)),
        ("-GET / HTTP/1.1", Err(Kind::NotHttp)),
        ("G\"T / HTTP/1.1", Err(Kind::NotHttp)),
        (" GET / HTTP/1.1", Err(Kind::NotHttp)),
        ("\r\nGET / HTTP/1.1", Err(Kind::LineEnd)),
        ("\nGET / HTTP/1.1", Err(Kind::LineEnd)),
        ("GET\t/ HTTP/1.1", Err(Kind::NotHttp)),
        ("GET  / HTTP/1.1", Err(Kind::Target)),
        ("GET /  HTTP/1.1", Err(Kind::Version)),
        ("GET / HTTP/1.1 ", Err(Kind::Version)),
        ("GET /", Err(Kind::Version)),
        ("GET / http/1.1", Err(Kind::Version)),
        ("GET / HTTP/1.2", Err(Kind::Version)),
        ("GET / HTTP/2.0", Err(Kind::Version)),
        ("GET / HTTP/11", Err(Kind::Version)),
        ("GET / ICE/1.0", Err(Kind::Version)),
        ("GET * HTTP/1.1", Err(Kind::Target)),
        ("OPTIONS *a HTTP/1.1", Err(Kind::Target)),
        ("GET http://a.example/ HTTP/1.1", Err(Kind::Target)),
        ("GET a.example:443 HTTP/1.1", Err(Kind::Target)),
        ("GET foo HTTP/1.1", Err(Kind::Target)),
        ("GET ?a=b HTTP/1.1", Err(Kind::Target)),
        ("GET /a#b HTTP/1.1", Err(Kind::Target)),
        ("GET /é HTTP/1.1", Err(Kind::Target)),
        ("GET /\x7f HTTP/1.1", Err(Kind::Target)),
        ("GET /a\0 HTTP/1.1", Err(Kind::Target)),
        ("GET /<a> HTTP/1.1", Err(Kind::Target)),
        ("CONNECT a.example:443 HTTP/1.1", Err(Kind::Connect)),
        ("PRI * HTTP/2.0", Err(Kind::Http2)),
        ("PRI * HTTP/1.1", Err(Kind::Target)),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEF / HTTP/1.1", Ok(1)),
        (
            "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFG / HTTP/1.1",
            Err(Kind::Method),
        ),
        (&long, Err(Kind::HeadTooLarge)),
    ] {
        assert_eq!(judge(&request_line(line)), expected, "{line:?}");
    }
    assert_eq!(
        judge(b"GET / HTTP/1.1\nHost: a\r\n\r\n"),
        Err(Kind::LineEnd)
    );
    assert_eq!(judge(b"\x16\x03\x01\x02\x00\x01"), Err(Kind::NotHttp));
    assert_eq!(judge(b""), Ok(0));
}

#[test]
fn fields() {
    let wide = format!("{}: a", "n".repeat(256));
    let wider = format!("{}: a", "n".repeat(257));
    for (line, expected) in [
        ("A: b", Ok(1)),
        ("A:b", Ok(1)),
        ("A:", Ok(1)),
        ("A: \t b \t c \t ", Ok(1)),
        ("!#$%&'*+-.^`|~09azAZ: !\"#~", Ok(1)),
        (&wide, Ok(1)),
        (&wider, Err(Kind::FieldName)),
        (" A: b", Err(Kind::Folding)),
        ("A: b\r\n c", Err(Kind::Folding)),
        ("A: b\r\n\tc: d", Err(Kind::Folding)),
        ("A : b", Err(Kind::FieldName)),
        ("A\t: b", Err(Kind::FieldName)),
        (": b", Err(Kind::FieldName)),
        ("A", Err(Kind::FieldName)),
        ("A_B: c", Err(Kind::FieldName)),
        ("Content_Length: 1", Err(Kind::FieldName)),
        ("Content.Length: 1", Err(Kind::FieldName)),
        ("Transfer--Encoding: chunked", Err(Kind::FieldName)),
        ("TransferEncoding: chunked", Err(Kind::FieldName)),
        ("Transfer-Encoding-2: chunked", Ok(1)),
        ("X-Content-Length: 1", Ok(1)),
        ("A(B: c", Err(Kind::FieldName)),
        ("\x01A: c", Err(Kind::FieldName)),
        ("é: c", Err(Kind::FieldName)),
        ("A: b\0c", Err(Kind::FieldValue)),
        ("A: b\x0bc", Err(Kind::FieldValue)),
        ("A: b\x7f", Err(Kind::FieldValue)),
        ("A: é", Err(Kind::FieldValue)),
        ("A: b\rc", Err(Kind::LineEnd)),
        ("A: b\r", Err(Kind::LineEnd)),
        ("A\rb: c", Err(Kind::LineEnd)),
        ("A: b\nC: d", Err(Kind::LineEnd)),
        ("A: b\n", Err(Kind::LineEnd)),
    ] {
        assert_eq!(judge(&with(line)), expected, "{line:?}");
    }
}

#[test]
fn hosts() {
    for (line, expected) in [
        ("Host: a.example", Ok(1)),
        ("hOST:a.example:8443", Ok(1)),
        ("Host: A.EXAMPLE.", Ok(1)),
        ("Host: my_service:80", Ok(1)),
        ("Host: 192.0.2.1", Ok(1)),
        ("Host: [2001:db8::1]:443", Ok(1)),
        ("Host: [::ffff:192.0.2.1]", Ok(1)),
        ("Accept: a", Err(Kind::Host)),
        ("Host:", Err(Kind::Host)),
        ("Host: a\r\nHost: a", Err(Kind::Host)),
        ("Host: a, b", Err(Kind::Host)),
        ("Host: a b", Err(Kind::Host)),
        ("Host: u@a", Err(Kind::Host)),
        ("Host: a/b", Err(Kind::Host)),
        ("Host: a?b", Err(Kind::Host)),
        ("Host: a%2eb", Err(Kind::Host)),
        ("Host: http://a", Err(Kind::Host)),
        ("Host: a:", Err(Kind::Host)),
        ("Host: a:0443", Err(Kind::Host)),
        ("Host: a:0", Err(Kind::Host)),
        ("Host: a:65536", Err(Kind::Host)),
        ("Host: a:80:80", Err(Kind::Host)),
        ("Host: a:+80", Err(Kind::Host)),
        ("Host: :80", Err(Kind::Host)),
        ("Host: [::1", Err(Kind::Host)),
        ("Host: []", Err(Kind::Host)),
        ("Host: [::1%25lo]", Err(Kind::Host)),
        ("Host: [::1]x", Err(Kind::Host)),
    ] {
        let head = format!("GET / HTTP/1.1\r\n{line}\r\n\r\n");
        assert_eq!(judge(head.as_bytes()), expected, "{line:?}");
    }
    assert_eq!(judge(b"GET / HTTP/1.0\r\n\r\n"), Err(Kind::Host));
}

#[test]
fn lengths_and_codings() {
    for (lines, expected) in [
        ("Content-Length: 0", Ok(1)),
        ("Content-Length: 9223372036854775807", Ok(1)),
        (
            "Content-Length: 9223372036854775808",
            Err(Kind::ContentLength),
        ),
        (
            "Content-Length: 99999999999999999999999",
            Err(Kind::ContentLength),
        ),
        ("Content-Length:", Err(Kind::ContentLength)),
        ("Content-Length: 00", Err(Kind::ContentLength)),
        ("Content-Length: 01", Err(Kind::ContentLength)),
        ("Content-Length: +1", Err(Kind::ContentLength)),
        ("Content-Length: -1", Err(Kind::ContentLength)),
        ("Content-Length: 1, 1", Err(Kind::ContentLength)),
        ("Content-Length: 1 1", Err(Kind::ContentLength)),
        ("Content-Length: 0x1", Err(Kind::ContentLength)),
        ("Content-Length: 1.0", Err(Kind::ContentLength)),
        (
            "Content-Length: 1\r\nContent-Length: 1",
            Err(Kind::ContentLength),
        ),
        (
            "content-LENGTH: 1\r\nCONTENT-length: 2",
            Err(Kind::ContentLength),
        ),
        ("Transfer-Encoding: chunked", Ok(1)),
        ("transfer-ENCODING:\tchunked\t", Ok(1)),
        ("Transfer-Encoding: Chunked", Err(Kind::UnknownCoding)),
        ("Transfer-Encoding: xchunked", Err(Kind::UnknownCoding)),
        ("Transfer-Encoding: chunked;p", Err(Kind::UnknownCoding)),
        ("Transfer-Encoding: gzip, chunked", Err(Kind::UnknownCoding)),
        (
            "Transfer-Encoding: chunked, identity",
            Err(Kind::UnknownCoding),
        ),
        ("Transfer-Encoding: \"chunked\"", Err(Kind::UnknownCoding)),
        ("Transfer-Encoding:", Err(Kind::UnknownCoding)),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            Err(Kind::TransferEncoding),
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 0",
            Err(Kind::TransferEncoding),
        ),
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            Err(Kind::TransferEncoding),
        ),
        ("Expect: 100-continue", Ok(1)),
        ("Expect: 200-maybe", Err(Kind::Expectation)),
        ("Expect: 100-continue, x", Err(Kind::Expectation)),
        ("Expect:", Err(Kind::Expectation)),
        (
            "Expect: 100-continue\r\nExpect: 100-continue",
            Err(Kind::Expectation),
        ),
    ] {
        assert_eq!(judge(&with(lines)), expected, "{lines:?}");
    }
    let old = |line| judge(format!("POST / HTTP/1.0\r\nHost: a\r\n{line}\r\n\r\n").as_bytes());
    assert_eq!(old("Content-Length: 0"), Ok(1));
    assert_eq!(
        old("Transfer-Encoding: chunked"),
        Err(Kind::TransferEncoding)
    );
    assert_eq!(old("Expect: 100-continue"), Err(Kind::Expectation));
}

#[test]
fn bodies_without_a_meaning() {
    let judge = |method: &str, line: &str| {
        judge(format!("{method} / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n").as_bytes())
    };
    for method in ["GET", "HEAD", "TRACE"] {
        assert_eq!(judge(method, "Content-Length: 0"), Ok(1));
        assert_eq!(
            judge(method, "Content-Length: 1"),
            Err(Kind::UnexpectedBody)
        );
        assert_eq!(
            judge(method, "Transfer-Encoding: chunked"),
            Err(Kind::UnexpectedBody)
        );
    }
    for method in ["DELETE", "OPTIONS", "QUERY", "GETS"] {
        assert_eq!(judge(method, "Content-Length: 1"), Ok(1));
    }
}

#[test]
fn chunks() {
    let next = "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n";
    for (body, expected) in [
        ("0\r\n\r\n", Ok(2)),
        ("000\r\n\r\n", Ok(2)),
        ("3\r\nabc\r\n0\r\n\r\n", Ok(2)),
        (
            "00a\r\n0123456789\r\nA\r\n\r\n\0\n345678\r\n0\r\n\r\n",
            Ok(2),
        ),
        ("3;\r\nabc\r\n0\r\n\r\n", Err(Kind::ChunkExtension)),
        ("3;a=b\r\nabc\r\n0\r\n\r\n", Err(Kind::ChunkExtension)),
        ("3\r\nabc\r\n0;a\r\n\r\n", Err(Kind::ChunkExtension)),
        ("3 \r\nabc\r\n0\r\n\r\n", Err(Kind::ChunkSize)),
        (" 3\r\nabc\r\n0\r\n\r\n", Err(Kind::ChunkSize)),
        ("+3\r\nabc\r\n0\r\n\r\n", Err(Kind::ChunkSize)),
        ("0x3\r\nabc\r\n0\r\n\r\n", Err(Kind::ChunkSize)),
        ("g\r\nabc\r\n0\r\n\r\n", Err(Kind::ChunkSize)),
        ("\r\n0\r\n\r\n", Err(Kind::ChunkSize)),
        ("3\nabc\r\n0\r\n\r\n", Err(Kind::ChunkSize)),
        ("3\r\rabc\r\n0\r\n\r\n", Err(Kind::ChunkSize)),
        ("8000000000000000\r\nabc", Err(Kind::ChunkSize)),
        (
            "00000000000000003\r\nabc\r\n0\r\n\r\n",
            Err(Kind::ChunkSize),
        ),
        ("3\r\nab\r\n0\r\n\r\n", Err(Kind::ChunkEnd)),
        ("3\r\nabcd\r\n0\r\n\r\n", Err(Kind::ChunkEnd)),
        ("3\r\nabc\n0\r\n\r\n", Err(Kind::ChunkEnd)),
        ("0\r\nA: b\r\n\r\n", Err(Kind::Trailer)),
        ("0\r\n\n", Err(Kind::Trailer)),
        ("0\r\nGET / HTTP/1.1\r\n", Err(Kind::Trailer)),
    ] {
        let text =
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}{next}");
        assert_eq!(judge(text.as_bytes()), expected, "{body:?}");
        if expected.is_err() {
            let passed = feed(text.as_bytes(), 1, 64).passed;
            assert!(
                !passed.ends_with(b"0\r\n\r\n"),
                "hyper took {body:?} for complete"
            );
        }
    }
    assert_eq!(
        judge(&with("Transfer-Encoding: chunked\r\n\r\nffffffffffff")),
        Ok(1),
        "an end within a body is hyper's to see"
    );
}

#[test]
fn bodies_are_not_looked_into_and_their_ends_are_found() {
    let body = "GET / HTTP/1.1\n\n\0";
    let text = format!(
        "PUT /1 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}DELETE /2 HTTP/1.1\r\nHost: a\r\n\r\nPUT /3 HTTP/1.1\nHost: a\r\n\r\n",
        body.len()
    );
    let fed = feed(text.as_bytes(), usize::MAX, 1 << 16);
    fuzz_gate(text.as_bytes());
    let violation = fed.violation.unwrap();
    assert_eq!((fed.requests, violation.kind), (2, Kind::LineEnd));
    assert_eq!(
        (violation.method.as_deref(), violation.target.as_deref()),
        (Some("PUT"), Some("/3"))
    );
    assert!(
        fed.passed
            .ends_with(b"DELETE /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    );
}

#[test]
fn sizes_and_counts_at_their_bounds() {
    let head = |size: usize| {
        let rest = "GET / HTTP/1.1\r\nHost: a\r\nA: \r\n\r\n".len();
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n",
            "b".repeat(size - rest)
        )
    };
    assert_eq!(judge(head(1024).as_bytes()), Ok(1));
    assert_eq!(judge(head(1025).as_bytes()), Err(Kind::HeadTooLarge));
    assert_eq!(judge(head(5000).as_bytes()), Err(Kind::HeadTooLarge));
    assert_eq!(judge("A".repeat(5000).as_bytes()), Err(Kind::Method));
    let fields = |count: usize| {
        format!(
            "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
            "A: b\r\n".repeat(count - 1)
        )
    };
    assert_eq!(judge(fields(16).as_bytes()), Ok(1));
    assert_eq!(judge(fields(17).as_bytes()), Err(Kind::TooManyFields));
}

#[test]
fn a_head_that_ends_early_is_said_to() {
    let whole =
        b"GET /a?token=secret HTTP/1.1\r\nHost: a.example\r\nAuthorization: Bearer secret\r\n\r\n";
    for length in 1..whole.len() {
        let violation = feed(&whole[..length], 5, 64).violation.unwrap();
        assert_eq!(violation.kind, Kind::CutShort);
        assert!(
            violation.detail.contains(&format!("at {length} bytes")),
            "{violation:?}"
        );
        assert!(
            !format!("{violation:?}").contains("secret"),
            "{violation:?}"
        );
    }
}

#[test]
fn a_violation_says_whose_it_is_and_no_secrets() {
    let text = "DELETE /repos/a?key=secret HTTP/1.1\r\nHost: api.example:8443\r\nCookie: secret=secret\r\nAuthorization: Bearer\0secret\r\n\r\n";
    let violation = feed(text.as_bytes(), usize::MAX, 64).violation.unwrap();
    assert_eq!(violation.method.as_deref(), Some("DELETE"));
    assert_eq!(violation.target.as_deref(), Some("/repos/a"));
    assert_eq!(violation.host.as_deref(), Some("api.example:8443"));
    assert_eq!((violation.status, violation.code), (400, "field_value"));
    assert!(
        !format!("{violation:?}").contains("secret"),
        "{violation:?}"
    );
    let name = format!("{}(: x", "\x1b\u{202e}".repeat(60));
    let violation = feed(&with(&name), usize::MAX, 64).violation.unwrap();
    assert!(
        violation.detail.is_ascii() || violation.detail.contains('…'),
        "{}",
        violation.detail
    );
    assert!(
        !violation
            .detail
            .chars()
            .any(|c| c.is_control() || c == '\u{202e}'),
        "{}",
        violation.detail
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz_gate(&data);
    }

    /// Requests put together from parts of which most are good.
    #[test]
    fn any_requests(parts in proptest::collection::vec(request(), 1..4)) {
        fuzz_gate(parts.concat().as_bytes());
    }
}

pub(super) fn request() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        3 => Just("GET / HTTP/1.1\r\n".to_owned()),
        6 => Just("POST /a?b HTTP/1.1\r\n".to_owned()),
        1 => "[A-Z]{1,3} /[!-~]{0,4} HTTP/1\\.[019]\r?\n",
    ];
    let field = prop_oneof![
        4 => Just("Accept: */*\r\n".to_owned()),
        3 => Just("Content-Length: 5\r\n".to_owned()),
        3 => Just("Transfer-Encoding: chunked\r\n".to_owned()),
        1 => "[!-~]{0,5}:[ -~]{0,5}\r?\n",
        1 => "(Host|Content-Length|Transfer-Encoding|Expect)[ \t]?: ?[ -~]{0,3}\r\n",
    ];
    let body = prop_oneof![
        4 => Just(String::new()),
        4 => Just("hello".to_owned()),
        4 => Just("5\r\nhello\r\n0\r\n\r\n".to_owned()),
        1 => "[0-9a-f]{1,2}\r\n[a-z]{0,9}\r\n0\r\n(A: b\r\n)?\r?\n",
    ];
    let fields = proptest::collection::vec(field, 0..3);
    (line, fields, body)
        .prop_map(|(line, fields, body)| format!("{line}Host: a\r\n{}\r\n{body}", fields.concat()))
}
