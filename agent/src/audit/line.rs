//! One record as one line of JSON that no terminal and no line-based tool can be tricked by.
use super::record::Record;
use serde_json::ser::Formatter;
use std::io;

/// Bytes of a line at most. Readers give up on longer ones; the writer shortens.
pub(super) const MAX_LINE: usize = 256 * 1024;
/// Bytes of a string, and entries of a list, left in a record that was too long.
const SHORT_STRING: usize = 2048;
const SHORT_LIST: usize = 64;

/// Appends `record` as one line of JSON, without the newline. Besides what JSON itself demands, DEL,
/// C1 controls, line and paragraph separators and bidirectional overrides are escaped: terminals act
/// on them.
pub fn encode(record: &Record, out: &mut Vec<u8>) {
    let start = out.len();
    let mut serializer = serde_json::Serializer::with_formatter(&mut *out, Inert);
    // Nothing in a record can fail to serialize: no map keys, no floats, and a Vec takes every byte.
    if serde::Serialize::serialize(record, &mut serializer).is_err() {
        out.truncate(start);
        out.extend_from_slice(b"{}");
    }
}

/// Appends a line of the log with its newline; `prev` is the hash of the line before it.
pub(super) fn encode_chained(record: &Record, seq: u64, prev: &[u8; 64], out: &mut Vec<u8>) {
    use io::Write as _;
    let start = out.len();
    // Writing to a Vec does not fail.
    let _ = write!(out, "{{\"seq\":{seq},\"prev\":\"");
    out.extend_from_slice(prev);
    out.extend_from_slice(b"\"");
    let brace = out.len();
    encode(record, out);
    if let Some(byte) = out.get_mut(brace) {
        // `"prev":"…"{"id":…` becomes `"prev":"…","id":…`.
        *byte = b',';
    }
    if out.len() - start > MAX_LINE {
        out.truncate(start);
        return encode_chained(&shortened(record), seq, prev, out);
    }
    out.push(b'\n');
}

/// A copy within bounds: the pipeline bounds what it records, and this holds whatever it forgot.
fn shortened(record: &Record) -> Record {
    let cut = |text: &str| {
        let end = text.floor_char_boundary(SHORT_STRING);
        text.get(..end).unwrap_or_default().to_owned()
    };
    let cut_list = |list: &[String]| list.iter().take(SHORT_LIST).map(|text| cut(text)).collect();
    let cut_arc = |text: &Option<std::sync::Arc<str>>| text.as_deref().map(|text| cut(text).into());
    let mut short = record.clone();
    short.workload = cut_arc(&record.workload);
    short.identity = cut_arc(&record.identity);
    short.rule = cut_arc(&record.rule);
    short.credential = cut_arc(&record.credential);
    short.budget = record.budget.as_deref().map(cut);
    short.stripped = cut_list(&record.stripped);
    short.injected = cut_list(&record.injected);
    if let Some(request) = &mut short.request {
        request.method = cut(&request.method);
        request.scheme = cut(&request.scheme);
        request.host = cut(&request.host);
        request.path = cut(&request.path);
        request.route = cut_arc(&request.route);
        request.query_keys = cut_list(&request.query_keys);
        // 64 keys of 2 KiB with every byte escaped six-fold would be too long again.
        while request.query_keys.iter().map(String::len).sum::<usize>() > SHORT_STRING {
            request.query_keys.pop();
        }
    }
    for list in [&mut short.stripped, &mut short.injected] {
        while list.iter().map(String::len).sum::<usize>() > SHORT_STRING {
            list.pop();
        }
    }
    if let Some(reason) = &mut short.reason {
        reason.code = cut(&reason.code).into();
        reason.detail = cut(&reason.detail);
        reason.hint = cut(&reason.hint);
    }
    if let Some(upstream) = &mut short.upstream {
        upstream.address = cut(&upstream.address);
        upstream.tls = upstream.tls.as_deref().map(cut);
    }
    short.policy = record.policy.as_deref().map(|stamp| {
        let mut stamp = stamp.clone();
        stamp.hash = cut(&stamp.hash);
        std::sync::Arc::new(stamp)
    });
    short.process = record.process.as_deref().map(|process| {
        let mut process = process.clone();
        process.exe = cut(&process.exe);
        process.cgroup = cut(&process.cgroup);
        process.sha256 = process.sha256.as_deref().map(cut);
        process.unit = process.unit.as_deref().map(cut);
        std::sync::Arc::new(process)
    });
    short
}

/// Compact JSON in which no character can move a cursor or reorder text.
struct Inert;

impl Formatter for Inert {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.bytes().all(|byte| byte < 0x7f) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut rest = fragment;
        while let Some((at, character)) = rest.char_indices().find(|(_, c)| is_active(*c)) {
            let (before, from) = rest.split_at(at);
            writer.write_all(before.as_bytes())?;
            write!(writer, "\\u{:04x}", u32::from(character))?;
            rest = from.get(character.len_utf8()..).unwrap_or_default();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Characters outside JSON's own escapes that terminals or editors act on; all below U+10000.
pub(super) fn is_active(character: char) -> bool {
    matches!(
        character,
        '\u{7f}'..='\u{9f}'
            | '\u{200e}' | '\u{200f}' | '\u{061c}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}'
    )
}
