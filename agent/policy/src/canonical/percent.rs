//! Percent-encoding (RFC 3986, section 2.1).
use std::borrow::Cow;

/// The value of a percent-escape's two digits.
pub(super) fn escape_value(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    Some(digit(high)? << 4 | digit(low)?)
}

/// RFC 3986's `unreserved`: encoded or not, these mean the same.
pub(super) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986's `sub-delims` and `:` `@`, without `;`.
pub(super) fn is_delimiter(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@'
    )
}

/// Printable ASCII that RFC 3986 does not allow raw and clients send raw all the same.
pub(super) fn is_careless(byte: u8) -> bool {
    matches!(
        byte,
        b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | b'[' | b']'
    )
}

/// Writes an escape in canonical (upper) case.
pub(super) fn push_escape(out: &mut String, byte: u8) {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or('0');
    out.push('%');
    out.push(digit(byte >> 4));
    out.push(digit(byte & 15));
}

/// Decodes the escapes of a canonical path segment or query piece. Text that is not UTF-8 when
/// decoded does not occur there; its undecodable parts would become U+FFFD.
pub fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let decoded = bytes(text).collect::<Vec<u8>>();
    Cow::Owned(match String::from_utf8(decoded) {
        Ok(decoded) => decoded,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

/// The decoded bytes of a text, without allocating. A `%` that begins no escape is itself.
pub(crate) fn bytes(text: &str) -> impl Iterator<Item = u8> + '_ {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        if let [b'%', high, low, tail @ ..] = rest
            && let Some(value) = escape_value(*high, *low)
        {
            rest = tail;
            return Some(value);
        }
        let (first, tail) = rest.split_first()?;
        rest = tail;
        Some(*first)
    })
}
