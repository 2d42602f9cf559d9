//! The URL and IDNA data of the web platform tests. What is taken here means what it means there.
use super::*;
use crate::corpora::corpus;
use serde_json::Value;

/// Rows of a JSON file of test data; none where the corpora are absent.
fn rows(name: &str) -> Vec<Value> {
    let Some(path) = corpus(name) else {
        return Vec::new();
    };
    let text = std::fs::read_to_string(path).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    // Comments are strings.
    rows.into_iter().filter(Value::is_object).collect()
}

/// A URL of the data as a client would send it: without the white space that its parser drops, and
/// without the fragment.
fn sent(url: &str) -> String {
    let url = url.trim_matches(|character: char| character <= ' ');
    let url = url.split('#').next().unwrap_or("");
    url.replace(['\t', '\n', '\r'], "")
}

/// Authority and target of an absolute http(s) URL, both as written; nothing of one that only a
/// lenient parser takes for absolute.
fn parts(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    if !scheme.eq_ignore_ascii_case("https") && !scheme.eq_ignore_ascii_case("http") {
        return None;
    }
    Some(rest.split_at(rest.find(['/', '?', '\\']).unwrap_or(rest.len())))
}

fn text<'r>(row: &'r Value, key: &str) -> &'r str {
    row[key].as_str().unwrap_or("")
}

#[test]
fn hosts_are_the_expected_or_refused() {
    let (mut same, mut refused) = (0, 0);
    for row in rows("whatwg-url/url/tests/urltestdata.json") {
        let url = sent(text(&row, "input"));
        let Some((authority, _)) = parts(&url) else {
            continue;
        };
        let Ok((host, port)) = Host::parse_authority(authority) else {
            refused += 1;
            continue;
        };
        assert_ne!(row["failure"], true, "{authority:?} is taken");
        let expected = text(&row, "hostname");
        let expected = expected.strip_suffix('.').unwrap_or(expected);
        assert_eq!(host.as_str(), expected, "{authority:?}");
        // There the scheme's own port is left out.
        let default = if text(&row, "protocol") == "http:" {
            80
        } else {
            443
        };
        let shown = port.filter(|port| *port != default);
        let shown = shown.map_or(String::new(), |port| port.to_string());
        assert_eq!(shown, text(&row, "port"), "{authority:?}");
        same += 1;
    }
    enough(same, 100, refused, 80);
}

fn enough(same: usize, least_same: usize, refused: usize, least_refused: usize) {
    // Nothing at all: the corpora are absent, which `corpus` has said.
    let good = same > least_same && refused > least_refused || same + refused == 0;
    assert!(good, "{same} the same, {refused} refused");
}

/// What a path means to a server: its segments, decoded, with `//` merged.
fn meaning(path: &str) -> Vec<Vec<u8>> {
    let mut segments: Vec<Vec<u8>> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| percent::bytes(segment).collect())
        .collect();
    if path.ends_with('/') {
        segments.push(Vec::new());
    }
    segments
}

/// What a query means to a server: names and values of a form.
fn form(query: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let decoded = |text: &str| percent::bytes(&text.replace('+', "%20")).collect();
    query
        .split('&')
        .filter(|piece| !piece.is_empty())
        .map(|piece| piece.split_once('=').unwrap_or((piece, "")))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect()
}

/// Every http(s) row, as written and as the standard serialises it: refused, or taken for what the
/// standard's result means. Delimiters may stay escaped (`'` and `%27`): rules compare decoded text.
#[test]
fn targets_are_the_expected_or_refused() {
    let (mut same, mut refused) = (0, 0);
    for row in rows("whatwg-url/url/tests/urltestdata.json") {
        if !matches!(text(&row, "protocol"), "http:" | "https:") {
            continue;
        }
        let expected = format!("{}{}", text(&row, "pathname"), text(&row, "search"));
        let url = sent(text(&row, "input"));
        let raw = match parts(&url) {
            Some((_, target)) if target.starts_with('/') => target,
            Some((_, "")) => "/",
            // No path before the query, or only a lenient parser sees a path here; relative ones
            // have only been resolved by whoever sends them.
            _ => &expected,
        };
        for raw in [raw, &expected] {
            let Ok(target) = Target::parse(raw) else {
                refused += 1;
                continue;
            };
            let query = expected.split_once('?').map_or("", |(_, query)| query);
            assert_eq!(
                meaning(&target.path),
                meaning(text(&row, "pathname")),
                "{raw:?}"
            );
            let ours = target.query.as_deref().unwrap_or("");
            assert_eq!(form(ours), form(query), "{raw:?}");
            same += 1;
        }
    }
    enough(same, 300, refused, 40);
}

#[test]
fn punycode_is_itself_or_refused() {
    let (mut same, mut refused) = (0, 0);
    for row in rows("whatwg-url/idna/tests/punycode_tests.json") {
        let a_label = format!("xn--{}", text(&row, "encoded").to_ascii_lowercase());
        let Ok(host) = Host::parse(&a_label) else {
            refused += 1;
            continue;
        };
        assert_eq!(host.as_str(), a_label);
        if let Ok(unicode) = Host::parse(text(&row, "decoded")) {
            assert_eq!(unicode.as_str(), a_label, "{row}");
            same += 1;
        }
    }
    enough(same, 5, refused, 3);
    for row in rows("whatwg-url/idna/tests/bad_punycode_tests.json") {
        for written in [text(&row, "decoded"), text(&row, "encoded")] {
            let host = Host::parse(&format!("xn--{written}"));
            assert!(host.is_err(), "{row} gave {host:?}");
        }
    }
}

#[test]
fn punycode_that_is_not_valid_is_refused() {
    let Some(path) = corpus("whatwg-url/idna/tests/IdnaTestV2.txt") else {
        return;
    };
    let text = std::fs::read_to_string(path).unwrap();
    let (mut taken, mut newer) = (0, 0);
    for line in text
        .lines()
        .map(|line| line.split('#').next().unwrap_or("").trim())
    {
        // source; toUnicode; toUnicodeStatus; toAsciiN; toAsciiNStatus; …
        let columns: Vec<&str> = line.split(';').map(str::trim).collect();
        let [source, unicode, status, ascii, ascii_status, ..] = columns[..] else {
            continue;
        };
        let Some(source) = unescape(source) else {
            continue;
        };
        let Ok(host) = Host::parse(&source) else {
            continue;
        };
        let or = |value: &str, absent: &str| {
            if value.is_empty() {
                absent.to_owned()
            } else {
                value.to_owned()
            }
        };
        let status = or(ascii_status, status);
        // A4_2 is the empty root label of a trailing dot, which is taken off here.
        let rooted = source.ends_with('.') && status == "[A4_2]";
        // V2 is a plain label with hyphens third and fourth: real hosts have such.
        let hyphened = |label: &str| label.is_ascii() && label.get(2..4) == Some("--");
        let plain = status == "[V2]"
            && source
                .split('.')
                .any(|label| hyphened(label) && !label.starts_with("xn--"));
        // V7 is a code point that was unassigned when the test data were made.
        if status == "[V7]" && host.as_str().contains("xn--") {
            newer += 1;
            continue;
        }
        assert!(
            rooted || plain || matches!(&*status, "" | "[]"),
            "{source:?} is taken, {status}"
        );
        let unicode = unescape(&or(unicode, &source)).unwrap();
        let expected = unescape(&or(ascii, &unicode)).unwrap();
        assert_eq!(
            host.as_str(),
            expected.strip_suffix('.').unwrap_or(&expected),
            "{source:?}"
        );
        taken += 1;
    }
    assert!(
        taken > 100 && newer * 10 < taken,
        "{taken} taken, {newer} newer"
    );
}

/// `\uXXXX` and `\x{XXXX}` as the Unicode test files write them; `None` for lone surrogates.
fn unescape(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    if text == "\"\"" {
        return Some(out);
    }
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let (digits, tail) = match &rest[at + 1..] {
            braced if braced.starts_with("x{") => braced[2..].split_once('}')?,
            plain => (&plain[1..5], &plain[5..]),
        };
        out.push(char::from_u32(u32::from_str_radix(digits, 16).ok()?)?);
        rest = tail;
    }
    out.push_str(rest);
    Some(out)
}
