//! Request targets: path and query.
use super::Ambiguity;
use super::percent::{self, escape_value, is_careless, is_delimiter, is_unreserved, push_escape};
use std::borrow::Cow;

/// Bytes of a target at most.
pub const MAX_TARGET: usize = 64 << 10;
/// Parameters of a query at most.
pub const MAX_PARAMETERS: usize = 1_000;

/// A request target in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'a> {
    /// Path, starting with `/`.
    pub path: Cow<'a, str>,
    /// Query as it is sent, without `?`; `None` where there was no `?`, or nothing behind it.
    pub query: Option<Cow<'a, str>>,
}

impl<'a> Target<'a> {
    /// Parses an origin-form target.
    ///
    /// # Errors
    /// Any other form, and anything two servers could read differently.
    pub fn parse(raw: &'a str) -> Result<Self, Ambiguity> {
        if raw.len() > MAX_TARGET {
            return Err(Ambiguity::new(
                "target_length",
                "the target is longer than 64 KiB",
            ));
        }
        if !raw.starts_with('/') {
            return Err(Ambiguity::new(
                "not_origin_form",
                "the target does not begin with `/`",
            ));
        }
        let (path, query) = match raw.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (raw, None),
        };
        let query = query
            .map(canonical_query)
            .transpose()?
            .filter(|query| !query.is_empty());
        Ok(Self {
            path: canonical_path(path)?,
            query,
        })
    }

    /// A target that is known to be canonical: what [`Target::parse`] returned, taken apart and put together again.
    pub fn canonical(path: &'a str, query: Option<&'a str>) -> Self {
        Self {
            path: Cow::Borrowed(path),
            query: query.map(Cow::Borrowed),
        }
    }

    /// The same target, borrowed from this one.
    pub fn borrowed(&self) -> Target<'_> {
        Target::canonical(&self.path, self.query.as_deref())
    }

    /// The same target, on its own.
    pub fn into_owned(self) -> Target<'static> {
        Target {
            path: Cow::Owned(self.path.into_owned()),
            query: self.query.map(|query| Cow::Owned(query.into_owned())),
        }
    }

    /// The parameters of the query, decoded.
    pub fn pairs(&self) -> Pairs<'_> {
        Pairs {
            rest: self.query.as_deref().unwrap_or(""),
        }
    }
}

impl std::fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.path)?;
        match &self.query {
            Some(query) => write!(f, "?{query}"),
            None => Ok(()),
        }
    }
}

/// One parameter of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair<'q> {
    /// Its decoded name.
    pub name: Cow<'q, str>,
    /// Its decoded value; empty where there is no `=`.
    pub value: Cow<'q, str>,
    /// Both as they stand in the canonical query.
    pub raw: &'q str,
}

/// The parameters of a canonical query, in order.
#[derive(Debug, Clone)]
pub struct Pairs<'q> {
    rest: &'q str,
}

impl<'q> Iterator for Pairs<'q> {
    type Item = Pair<'q>;

    fn next(&mut self) -> Option<Pair<'q>> {
        if self.rest.is_empty() {
            return None;
        }
        let (raw, rest) = self.rest.split_once('&').unwrap_or((self.rest, ""));
        self.rest = rest;
        let (name, value) = raw.split_once('=').unwrap_or((raw, ""));
        Some(Pair {
            name: percent::decode(name),
            value: percent::decode(value),
            raw,
        })
    }
}

/// Where a character stands: what is data in one part is structure in another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Path,
    Name,
    Value,
}

fn canonical_path(raw: &str) -> Result<Cow<'_, str>, Ambiguity> {
    if is_plain_path(raw) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut text = String::with_capacity(raw.len());
    canonical_text(raw, Part::Path, &mut text)?;
    let resolved = resolve_segments(&text)?;
    Ok(if resolved == raw {
        Cow::Borrowed(raw)
    } else {
        Cow::Owned(resolved)
    })
}

/// Whether a path is canonical as it stands, told without allocating. Says no where it is not sure.
fn is_plain_path(raw: &str) -> bool {
    let allowed = |byte: u8| byte == b'/' || is_unreserved(byte) || is_delimiter(byte);
    if !raw.bytes().all(allowed) {
        return false;
    }
    let mut segments = raw.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        if matches!(segment, "." | "..") || (segment.is_empty() && !last) {
            return false;
        }
    }
    true
}

/// Merges `//` and resolves dot segments (RFC 3986, section 5.2.4).
fn resolve_segments(path: &str) -> Result<String, Ambiguity> {
    let mut kept: Vec<&str> = Vec::new();
    let mut after_empty = false;
    let mut open_end = false;
    for segment in path.split('/').skip(1) {
        open_end = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            // Some servers merge `//` first, some let `..` remove the empty segment.
            ".." if after_empty => {
                return Err(Ambiguity::new(
                    "dots_after_slashes",
                    "`..` follows `//` in the path",
                ));
            }
            ".." => {
                if kept.pop().is_none() {
                    return Err(Ambiguity::new("beyond_root", "`..` leads above the root"));
                }
            }
            other => kept.push(other),
        }
        // `.` between `//` and `..` changes nothing about the doubt.
        after_empty = segment.is_empty() || (after_empty && segment == ".");
    }
    let mut resolved = String::with_capacity(path.len());
    for segment in &kept {
        resolved.push('/');
        resolved.push_str(segment);
    }
    if open_end {
        resolved.push('/');
    }
    Ok(resolved)
}

fn canonical_query(raw: &str) -> Result<Cow<'_, str>, Ambiguity> {
    let pieces = || raw.split('&').filter(|piece| !piece.is_empty());
    if pieces().nth(MAX_PARAMETERS).is_some() {
        return Err(Ambiguity::new(
            "too_many_parameters",
            "the query has more than 1000 parameters",
        ));
    }
    if is_plain_query(raw) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut text = String::with_capacity(raw.len());
    for piece in pieces() {
        let (name, value) = match piece.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (piece, None),
        };
        if name.is_empty() {
            return Err(Ambiguity::new(
                "empty_parameter",
                "a parameter of the query has no name",
            ));
        }
        if !text.is_empty() {
            text.push('&');
        }
        canonical_text(name, Part::Name, &mut text)?;
        if let Some(value) = value {
            text.push('=');
            canonical_text(value, Part::Value, &mut text)?;
        }
    }
    Ok(if text == raw {
        Cow::Borrowed(raw)
    } else {
        Cow::Owned(text)
    })
}

/// As [`is_plain_path`], for a query.
fn is_plain_query(raw: &str) -> bool {
    let allowed = |byte: u8| {
        byte == b'/' || byte == b'?' || is_unreserved(byte) || (is_delimiter(byte) && byte != b'+')
    };
    raw.bytes().all(allowed)
        && (raw.is_empty()
            || raw
                .split('&')
                .all(|piece| !piece.is_empty() && !piece.starts_with('=')))
}

/// Brings the characters of one part into canonical form, and refuses those that have no one meaning.
fn canonical_text(raw: &str, part: Part, out: &mut String) -> Result<(), Ambiguity> {
    let start = out.len();
    let mut rest = raw.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let (value, tail) = take_escape(tail)?;
            check_escaped(value, part)?;
            rest = tail;
            if is_unreserved(value) {
                out.push(char::from(value))
            } else {
                push_escape(out, value)
            }
            continue;
        }
        match byte {
            b'+' if part != Part::Path => out.push_str("%20"),
            b'/' => out.push('/'),
            b'?' if part != Part::Path => out.push('?'),
            _ if is_unreserved(byte) || is_delimiter(byte) => out.push(char::from(byte)),
            _ if is_careless(byte) => push_escape(out, byte),
            _ => return Err(bad_raw(byte)),
        }
    }
    let written = out.get(start..).unwrap_or("");
    check_twice(written, part)?;
    check_decoded(written, part)
}

fn take_escape(rest: &[u8]) -> Result<(u8, &[u8]), Ambiguity> {
    if let [high, low, tail @ ..] = rest
        && let Some(value) = escape_value(*high, *low)
    {
        return Ok((value, tail));
    }
    Err(Ambiguity::new(
        "bad_percent",
        "a `%` is not followed by two hexadecimal digits",
    ))
}

fn bad_raw(byte: u8) -> Ambiguity {
    match byte {
        b'#' => Ambiguity::new("fragment", "the target has a fragment"),
        b'\\' => Ambiguity::new("backslash", "the target has a backslash"),
        b';' => Ambiguity::new("semicolon", "the target has a `;`"),
        0..=0x20 | 0x7f => Ambiguity::new("control", "the target has a control character or space"),
        _ => Ambiguity::new(
            "not_ascii",
            "the target has a character that must be percent-encoded",
        ),
    }
}

/// What may not stand even in encoded form.
fn check_escaped(value: u8, part: Part) -> Result<(), Ambiguity> {
    match (value, part) {
        (b'/', Part::Path) => Err(Ambiguity::new(
            "encoded_slash",
            "the path has an encoded slash (`%2F`)",
        )),
        (b'\\', Part::Path) => Err(Ambiguity::new(
            "backslash",
            "the path has an encoded backslash (`%5C`)",
        )),
        (b';', Part::Path) => Err(Ambiguity::new(
            "semicolon",
            "the path has an encoded semicolon (`%3B`)",
        )),
        (b'\t' | b'\n' | b'\r', Part::Value) => Ok(()),
        (0..=0x1f | 0x7f, _) => Err(Ambiguity::new(
            "control",
            "the target has an encoded control character",
        )),
        _ => Ok(()),
    }
}

/// A path or name that could be decoded a second time. Looked for in what is written, since decoding
/// the digits of `%25%32%66` makes one.
fn check_twice(written: &str, part: Part) -> Result<(), Ambiguity> {
    let twice = |window: &[u8]| matches!(window, [b'%', b'2', b'5', high, low] if escape_value(*high, *low).is_some());
    if part != Part::Value && written.as_bytes().windows(5).any(twice) {
        return Err(Ambiguity::new(
            "double_encoding",
            "the target is percent-encoded twice",
        ));
    }
    Ok(())
}

/// The decoded text must be UTF-8 and hold no second way to write what is structure.
fn check_decoded(text: &str, part: Part) -> Result<(), Ambiguity> {
    // An escape of 0x80 or more begins with a digit from 8 to F; without one all is ASCII.
    let wide = |window: &[u8]| matches!(window, [b'%', b'8'..=b'9' | b'A'..=b'F', _]);
    if !text.as_bytes().windows(3).any(wide) {
        return Ok(());
    }
    let decoded = String::from_utf8(percent::bytes(text).collect())
        .map_err(|_| Ambiguity::new("not_utf8", "the target is not UTF-8 when decoded"))?;
    if decoded.chars().any(char::is_control) && part != Part::Value {
        return Err(Ambiguity::new(
            "control",
            "the target has an encoded control character",
        ));
    }
    // A value is data: what it looks like misleads nobody.
    if part != Part::Value && decoded.chars().any(is_look_alike) {
        return Err(Ambiguity::new(
            "look_alike",
            "the target has a look-alike of a delimiter",
        ));
    }
    Ok(())
}

/// Characters that some servers fold to `.`, `/`, `\`, `%`, `;` or a line end.
fn is_look_alike(character: char) -> bool {
    matches!(
        character,
        '\u{2024}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{2044}'
            | '\u{2215}'
            | '\u{2216}'
            | '\u{29f5}'
            | '\u{29f8}'
            | '\u{fe52}'
            | '\u{fe54}'
            | '\u{fe68}'
            | '\u{fe6a}'
            | '\u{ff05}'
            | '\u{ff0e}'
            | '\u{ff0f}'
            | '\u{ff1b}'
            | '\u{ff3c}'
    )
}
