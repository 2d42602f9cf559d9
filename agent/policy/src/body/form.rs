//! Bodies in `application/x-www-form-urlencoded` (WHATWG URL, section 5), read strictly.
use super::{BodyFault, find};
use crate::canonical::MAX_PARAMETERS;
use crate::shape::{Field, Shape};
use crate::syntax::quote;

/// Every pair must be declared and of its shape; only a list may be repeated.
pub(super) fn check(body: &[u8], fields: &[Field]) -> Result<(), BodyFault> {
    let text = std::str::from_utf8(body).map_err(|_| invalid("it is not UTF-8"))?;
    let mut seen: Vec<String> = Vec::new();
    for (index, piece) in text
        .split('&')
        .filter(|piece| !piece.is_empty())
        .enumerate()
    {
        if index >= MAX_PARAMETERS {
            return Err(invalid("it has more than 1000 fields"));
        }
        let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        let shape = find(fields, &name).ok_or_else(|| BodyFault::Undeclared(quote(&name)))?;
        if !shape.accepts_text(&value) {
            return Err(BodyFault::Value {
                field: quote(&name),
                expected: shape.to_string(),
            });
        }
        if !matches!(shape, Shape::List(_)) {
            if seen.contains(&name) {
                return Err(BodyFault::Twice(quote(&name)));
            }
            seen.push(name);
        }
    }
    Ok(())
}

fn invalid(why: &str) -> BodyFault {
    BodyFault::Invalid(why.to_owned())
}

/// Decodes `+` and percent-escapes; raw controls, blanks, `;` and non-ASCII have more than one meaning.
fn decode(text: &str) -> Result<String, BodyFault> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) => {
                let digits = [*high, *low];
                let digits = std::str::from_utf8(&digits).unwrap_or("");
                let escaped = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                let value = u8::from_str_radix(digits, 16)
                    .ok()
                    .filter(|value| escaped && *value != 0);
                bytes.push(value.ok_or_else(|| invalid("it has an invalid percent-escape"))?);
                rest = after;
            }
            (b'%', _) => return Err(invalid("it has an invalid percent-escape")),
            (b'!'..=b'~', _) if byte != b';' => bytes.push(byte),
            _ => return Err(invalid("it has a character that must be percent-encoded")),
        }
    }
    String::from_utf8(bytes).map_err(|_| invalid("it is not UTF-8"))
}
