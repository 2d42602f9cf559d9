//! Requests collected by others, from `shared/corpora` beside the repository.
use super::hyper::{Seen, assert_agreed};
use super::yaml::Yaml;
use crate::gate::fuzz_gate;
use std::path::{Path, PathBuf};

/// The corpora; none, and said so, in a clone that has them not. On CI they must be there.
fn corpora(name: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|dir| dir.join("shared/corpora").join(name))
        .find(|dir| dir.is_dir());
    if found.is_none() {
        let on_ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(
            !on_ci,
            "the corpus {name} must be in shared/corpora beside the repository"
        );
        println!("absent: shared/corpora/{name}");
    }
    found
}

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, suffix));
        } else if path.to_str().unwrap().ends_with(suffix) {
            found.push(path);
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no {suffix} in {}", dir.display());
    found
}

/// Whether hyper's service got a request from it; the gate's properties hold either way.
fn accepted(data: &[u8]) -> Result<(), String> {
    fuzz_gate(data);
    let served = assert_agreed(data);
    let wrong = served.seen.iter().find_map(|seen| match seen {
        Seen::Violation(kind) => Some(*kind),
        Seen::Request {
            body: Err(kind), ..
        } => *kind,
        Seen::Request { .. } => None,
    });
    match wrong.or(served.unclaimed) {
        Some(kind) => Err(kind.code().to_owned()),
        None => Ok(()),
    }
}

/// Reports every case that differs, not the first.
fn assert_none(what: &str, cases: &[String]) {
    assert!(
        cases.is_empty(),
        "{what}: {}\n{}",
        cases.len(),
        cases.join("\n")
    );
}

/// Compliant by RFC 9110 and 9112, and refused here: what the module's documentation names.
const DESYNC_REFUSED: &[(&str, &str)] = &[
    // Codings besides `chunked`: no upstream of an API needs them, and each is a second opinion on where a body ends.
    ("Correct TE OK", "transfer_coding"),
    (
        "Transfer-Encoding: identity and chunked OK",
        "transfer_coding",
    ),
    (
        "Multiple transfer encoding headers in a single request OK",
        "transfer_coding",
    ),
    ("TE with custom parameters OK", "transfer_coding"),
    ("Different Transfer-Encoding headers", "transfer_coding"),
    (
        "Different Transfer-Encoding headers combined",
        "transfer_coding",
    ),
    (
        "Transfer-Encoding with a param: chunked;custom_param",
        "transfer_coding",
    ),
    // All of these values have obs-text; their names are accepted without it (see `rules`), but for underscores.
    (
        "Valid Transfer-Encoding (chunked) + custom header (non-ascii)",
        "field_value",
    ),
    ("Valid custom header with dot in name", "field_value"),
    ("Valid custom header with digits in name", "field_value"),
    (
        "Valid custom header with tchar in name and obs-text",
        "field_name",
    ),
    ("Valid custom header with underscore in name", "field_name"),
    // A fragment and bytes that no URI has (RFC 3986), and no target at all.
    ("Compliant URL", "target_form"),
    ("International in URI", "target_form"),
    ("Empty URI", "target_form"),
];

#[test]
fn desync_guardian() {
    let Some(dir) = corpora("http-desync-guardian") else {
        return;
    };
    let (mut wrong, mut counts) = (Vec::new(), std::collections::BTreeMap::new());
    for file in files(&dir, ".yaml") {
        for case in Yaml::parse(&std::fs::read_to_string(&file).unwrap()).list() {
            let name = case.text_at("name");
            let tier = case.at("expected").unwrap().text_at("tier");
            let verdict = accepted(&desync_request(case));
            *counts
                .entry((tier.to_owned(), verdict.is_ok()))
                .or_insert(0) += 1;
            let expected = match tier {
                "Severe" | "Ambiguous" => verdict.is_err(),
                "Compliant" => match DESYNC_REFUSED.iter().find(|(refused, _)| *refused == name) {
                    Some((_, code)) => verdict.as_ref().is_err_and(|is| is == code),
                    None => verdict.is_ok(),
                },
                _ => true,
            };
            if !expected {
                wrong.push(format!(
                    "(\"{name}\", \"{}\"), // {tier}",
                    verdict.err().unwrap_or_default()
                ));
            }
        }
    }
    println!("{counts:?}");
    assert_none("not as its tier says", &wrong);
    assert!(
        counts[&("Severe".to_owned(), false)] >= 27
            && counts[&("Ambiguous".to_owned(), false)] >= 37,
        "{counts:?}"
    );
}

/// With a `Host`, which no case has, so that each is judged for what it is about; and with the body it announces.
fn desync_request(case: &Yaml) -> Vec<u8> {
    let mut text = format!(
        "{} {} {}\r\nHost: a.example\r\n",
        case.text_at("method"),
        case.text_at("uri"),
        case.text_at("version")
    );
    let (mut chunked, mut length) = (false, 0);
    for field in case.at("headers").map(Yaml::list).unwrap_or_default() {
        let (name, value) = (field.text_at("name"), field.text_at("value"));
        text += &format!("{name}:{value}\r\n");
        chunked |= name.eq_ignore_ascii_case("transfer-encoding");
        length = value
            .trim()
            .parse()
            .ok()
            .filter(|_| name.eq_ignore_ascii_case("content-length"))
            .unwrap_or(length);
    }
    text += "\r\n";
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(if chunked { b"0\r\n\r\n" } else { b"" });
    bytes.resize(
        bytes.len() + if chunked { 0 } else { length.min(1 << 18) },
        b'x',
    );
    bytes
}

/// Valid to llhttp, and refused here.
const LLHTTP_REFUSED: &[(&str, &str)] = &[
    // Empty lines between requests.
    (
        "connection: CRLF between requests, implicit `keep-alive`",
        "line_end",
    ),
    ("pipelining: Should parse multiple events", "line_end"),
    ("sample: Prefix newline", "line_end"),
    ("sample: Request starting with CRLF", "line_end"),
    // Another protocol after `Upgrade`, which is not made here: its bytes are no request.
    (
        "connection: Multiple tokens with folding and LWS",
        "method_syntax",
    ),
    (
        "connection: Emitting part of body and pausing",
        "method_syntax",
    ),
    ("connection: Upgrade GET request", "method_syntax"),
    ("connection: Upgrade POST request", "method_syntax"),
    // Leading zeros, and a body with GET.
    (
        "content-length: `Content-Length` with zeroes",
        "content_length",
    ),
    (
        "content-length: `Content-Length` with follow-up headers",
        "content_length",
    ),
    (
        "content-length: Funky `Content-Length` with body",
        "unexpected_body",
    ),
    // Tunnels.
    ("method: CONNECT request", "connect"),
    ("method: CONNECT request with CAPS", "connect"),
    ("method: CONNECT with body", "connect"),
    ("uri: Underscore in hostname", "connect"),
    // Targets of other forms, with fragments or with bytes that no URI has.
    ("method: M-SEARCH request", "target_form"),
    ("method: PRI request HTTP2", "target_form"),
    (
        "transfer-encoding: POST with `chunked` as last transfer-encoding",
        "target_form",
    ),
    (
        "transfer-encoding: POST with `chunked` as last transfer-encoding (multiple headers)",
        "target_form",
    ),
    ("uri: Quotes in URI", "target_form"),
    ("uri: Host terminated by a query string", "target_form"),
    (
        "uri: `host:port` terminated by a query string",
        "target_form",
    ),
    ("uri: `host:port` terminated by a space", "target_form"),
    ("uri: Fragment in URI", "target_form"),
    ("uri: `host:port` and basic auth", "target_form"),
    // ICE, RTSP and HTTP/0.9.
    ("method: SOURCE request with ICE", "http_version"),
    ("method: OPTIONS request with RTSP", "http_version"),
    ("method: ANNOUNCE request with RTSP", "http_version"),
    ("sample: No HTTP version", "http_version"),
    // `Host: 0.0.0.0=5000`.
    ("sample: curl GET", "host_field"),
    ("sample: Firefox GET", "host_field"),
    // obs-text.
    ("sample: Extended Characters", "field_value"),
    ("sample: 255 ASCII in header value", "field_value"),
    // Chunk extensions and trailer fields.
    ("pausing: on_chunk_extension_name", "chunk_extension"),
    ("pausing: on_chunk_extension_value", "chunk_extension"),
    ("transfer-encoding: Chunk extensions", "chunk_extension"),
    (
        "transfer-encoding: Chunk extensions quoting",
        "chunk_extension",
    ),
    ("transfer-encoding: Trailing headers", "trailer_fields"),
];

/// Invalid to llhttp, and accepted here.
const LLHTTP_ACCEPTED: &[&str] = &[
    // What follows a request that ends the connection is never read.
    "connection: No restart when keep-alive is off (1.0)",
    "connection: CRLF between requests, explicit `close`",
    "connection: CRLF between requests, explicit `close` followed by tab",
    // Any token is a method: which of them are allowed is for the policy to say.
    "invalid: HTTP protocol and ANNOUNCE method",
    "invalid: Invalid method",
];

#[test]
fn llhttp() {
    let Some(dir) = corpora("llhttp") else { return };
    let (mut wrong, mut counts) = (Vec::new(), std::collections::BTreeMap::new());
    for file in files(&dir.join("test/request"), ".md") {
        for case in llhttp_cases(&std::fs::read_to_string(&file).unwrap()) {
            let verdict = accepted(&case.request);
            let name = format!(
                "{}: {}",
                file.file_stem().unwrap().to_str().unwrap(),
                case.name
            );
            if !case.strict {
                continue;
            }
            *counts.entry((case.valid, verdict.is_ok())).or_insert(0) += 1;
            let refused = LLHTTP_REFUSED.iter().find(|(refused, _)| *refused == name);
            let expected = match (case.valid, refused) {
                (true, Some((_, code))) => verdict.as_ref().is_err_and(|is| is == code),
                (true, None) => verdict.is_ok(),
                (false, _) => verdict.is_err() != LLHTTP_ACCEPTED.contains(&name.as_str()),
            };
            if !expected {
                wrong.push(format!(
                    "(\"{name}\", \"{}\"), // {}",
                    verdict.err().unwrap_or_default(),
                    case.valid
                ));
            }
        }
    }
    println!("(valid, accepted): {counts:?}");
    assert_none("not as llhttp says", &wrong);
}

struct Case {
    name: String,
    /// Parsed by llhttp with none of its leniencies.
    strict: bool,
    valid: bool,
    request: Vec<u8>,
}

/// The fenced blocks of a file, as llhttp's own test runner reads them.
fn llhttp_cases(text: &str) -> Vec<Case> {
    let (mut cases, mut name, mut kind) = (Vec::new(), String::new(), String::new());
    let mut lines = text.lines();
    let mut request = Vec::new();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix('#') {
            name = title.trim_start_matches('#').trim().to_owned();
        } else if let Some(meta) = line.strip_prefix("<!-- meta=") {
            kind = meta.chars().filter(|c| !c.is_whitespace()).collect();
        } else if line == "```http" {
            request = llhttp_request(&block(&mut lines));
        } else if line == "```log" {
            let log = block(&mut lines);
            // 21 to 23 are pauses and upgrades asked for by the test, no faults of the request.
            let valid = !log.contains("error code=")
                || ["21", "22", "23"]
                    .iter()
                    .any(|code| log.contains(&format!("error code={code} ")));
            cases.push(Case {
                name: name.clone(),
                strict: kind.contains("\"type\":\"request\"") && !kind.contains("skipBody"),
                valid,
                request: std::mem::take(&mut request),
            });
        }
    }
    assert!(!cases.is_empty());
    cases
}

fn block<'a>(lines: &mut impl Iterator<Item = &'a str>) -> String {
    lines
        .take_while(|line| *line != "```")
        .collect::<Vec<_>>()
        .join("\n")
}

/// Newlines are CRLF, `\` before one joins lines, and escapes are bytes. A `Host` is added where there is none, so that
/// each case is judged for what it is about.
fn llhttp_request(text: &str) -> Vec<u8> {
    let joined = text.replace("\\\n", "");
    let lines: Vec<_> = joined.split('\n').collect();
    let mut with_hosts = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        with_hosts.push(*line);
        let head = lines[index..].iter().take_while(|line| !line.is_empty());
        let has_host = head
            .map(|line| line.to_ascii_lowercase())
            .any(|line| line.contains("host:"));
        if !has_host && (line.ends_with(" HTTP/1.1") || line.ends_with(" HTTP/1.0")) {
            with_hosts.push("Host: a.example");
        }
    }
    let text = with_hosts.join("\r\n");
    let mut bytes = Vec::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend_from_slice(before.as_bytes());
        let (byte, length) = match after.as_bytes().first() {
            Some(b'r') => (b'\r', 1),
            Some(b'n') => (b'\n', 1),
            Some(b't') => (b'\t', 1),
            Some(b'f') => (0x0c, 1),
            Some(b'x') => (u8::from_str_radix(&after[1..3], 16).unwrap(), 3),
            _ => (b'\\', 0),
        };
        bytes.push(byte);
        rest = &after[length..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

#[test]
fn core_rule_set() {
    let Some(dir) = corpora("crs") else { return };
    let (mut wrong, mut total, mut refused) = (Vec::new(), 0, 0);
    for file in files(&dir, ".yaml") {
        let text = std::fs::read_to_string(&file).unwrap();
        for test in Yaml::parse(&text)
            .at("tests")
            .map(Yaml::list)
            .unwrap_or_default()
        {
            for stage in test.at("stages").unwrap().list() {
                let (input, output) = (stage.at("input").unwrap(), stage.at("output"));
                let verdict = accepted(&crs_request(input));
                total += 1;
                refused += usize::from(verdict.is_err());
                let status = output
                    .map(|output| output.text_at("status"))
                    .unwrap_or_default();
                let error = output
                    .map(|output| output.text_at("expect_error"))
                    .unwrap_or_default();
                let name = format!(
                    "{} {}",
                    file.file_stem().unwrap().to_str().unwrap(),
                    test.text_at("test_id")
                );
                // What a plain web server answers 400 to is refused here too.
                if (status == "400" || error == "true") && verdict.is_ok() {
                    wrong.push(name);
                }
            }
        }
    }
    println!("{refused} of {total} refused");
    assert_none("not refused", &wrong);
    assert!(total > 300 && refused > 50, "{refused} of {total}");
}

fn crs_request(input: &Yaml) -> Vec<u8> {
    let encoded = input.text_at("encoded_request");
    if !encoded.is_empty() {
        return base64(encoded);
    }
    let or = |key: &str, default: &str| match input.at(key) {
        Some(Yaml::Text(text)) => text.clone(),
        _ => default.to_owned(),
    };
    let mut text = format!(
        "{} {} {}\r\n",
        or("method", "GET"),
        or("uri", "/"),
        or("version", "HTTP/1.1")
    );
    let data = input.text_at("data");
    let mut framed = false;
    for (name, value) in input.at("headers").map(Yaml::map).unwrap_or_default() {
        let Yaml::Text(value) = value else { continue };
        framed |= name.eq_ignore_ascii_case("content-length")
            || name.eq_ignore_ascii_case("transfer-encoding");
        text += &format!("{name}: {value}\r\n");
    }
    // As go-ftw does, unless told not to.
    if !data.is_empty() && !framed && input.text_at("autocomplete_headers") != "false" {
        text += &format!("Content-Length: {}\r\n", data.len());
    }
    (text + "\r\n" + data).into_bytes()
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut held, mut bits) = (Vec::new(), 0_u32, 0);
    for digit in text
        .bytes()
        .filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte))
    {
        held = held << 6 | u32::try_from(digit).unwrap();
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    bytes
}
