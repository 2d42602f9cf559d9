//! Bodies in `application/x-www-form-urlencoded` (WHATWG URL, section 5), read strictly.
use super::check::{Seen, Stripped, find};
use super::edit::Edits;
use super::pointer::{Followed, escape};
use super::{BodyFault, BodySpec, Edited};
use crate::canonical::MAX_PARAMETERS;
use crate::policy::Extra;
use crate::shape::{Field, Shape};
use crate::syntax::quote;
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::ops::Range;

/// Every pair must be declared and of its shape, where fields are declared; only a list may be repeated.
pub(super) fn check(spec: &BodySpec, body: &[u8]) -> Result<Option<Edited>, BodyFault> {
    let mut check = Check {
        spec,
        seen: Seen::default(),
        cut: HashSet::new(),
        stripped: Stripped::default(),
    };
    let mut edits = Edits::default();
    let mut kept_one = false;
    for pair in pairs(body)? {
        let pair = pair?;
        if check.keep(&pair)? {
            kept_one = true;
            continue;
        }
        // Behind one that is kept goes the `&` before it, else the `&` behind it.
        let Range { start, end } = pair.place;
        let more = body.get(end) == Some(&b'&');
        let place = match kept_one {
            true => start.saturating_sub(1)..end,
            false => start..end + usize::from(more),
        };
        edits.replace(body, place, b"");
    }
    if let Some(missing) = check.missing() {
        return Err(BodyFault::Missing(quote(missing)));
    }
    let stripped = check.stripped;
    Ok(edits.finish(body).map(|body| Edited {
        body,
        stripped: stripped.names(),
    }))
}

struct Check<'s> {
    spec: &'s BodySpec,
    seen: Seen,
    /// Names of which one was cut, where only lists may be repeated.
    cut: HashSet<String>,
    stripped: Stripped,
}

impl Check<'_> {
    /// Whether the pair is kept; else it is cut.
    fn keep(&mut self, pair: &Pair) -> Result<bool, BodyFault> {
        let strip = &self.spec.strip;
        // `tags[]` and `user[name]` are `tags` and a part of `user` to many readers.
        let (name, nested) = outer(&pair.name);
        match strip.member(&strip.root(), name) {
            Followed::Hit(pointer) => {
                self.stripped.add(|| pointer.as_str().to_owned());
                return self.cut(pair);
            }
            Followed::On(below) if nested && !below.is_empty() => {
                return Err(invalid(
                    "it has a field with brackets, of which a part is to be cut out",
                ));
            }
            Followed::On(_) => {}
        }
        let Some(fields) = &self.spec.fields else {
            return Ok(true);
        };
        let Some((index, shape)) = find(fields, &pair.name) else {
            if self.spec.extra == Extra::Deny {
                return Err(BodyFault::Undeclared(quote(&pair.name)));
            }
            self.stripped.add(|| {
                let mut pointer = String::from("/");
                escape(&pair.name, &mut pointer);
                pointer
            });
            return self.cut(pair);
        };
        if !shape.accepts_text(&pair.value) {
            return Err(BodyFault::Value {
                field: quote(&pair.name),
                expected: shape.to_string(),
            });
        }
        if !self.seen.insert(index) && !matches!(shape, Shape::List(_)) {
            return Err(BodyFault::Twice(quote(&pair.name)));
        }
        Ok(true)
    }

    fn cut(&mut self, pair: &Pair) -> Result<bool, BodyFault> {
        let declared = self.spec.fields.as_deref();
        let list = declared.and_then(|fields| find(fields, &pair.name));
        let repeatable = matches!(list, Some((_, Shape::List(_)))) || declared.is_none();
        if !repeatable && !self.cut.insert(pair.name.clone()) {
            return Err(BodyFault::Twice(quote(&pair.name)));
        }
        Ok(false)
    }

    fn missing(&self) -> Option<&str> {
        let mut required = self.spec.required.iter();
        let index = required.find(|index| !self.seen.contains(**index))?;
        let field = self.spec.fields.as_deref()?.get(*index)?;
        Some(&field.name)
    }
}

/// A form as an object of strings and lists of strings.
pub(super) fn tree(body: &[u8], fields: Option<&[Field]>) -> Result<Value, BodyFault> {
    let mut members: Map<String, Value> = Map::new();
    for pair in pairs(body)? {
        let Pair { name, value, .. } = pair?;
        let declared = fields.and_then(|fields| find(fields, &name));
        let list = matches!(declared, Some((_, Shape::List(_))));
        let value = Value::String(value);
        match members.get_mut(&name) {
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
            None if list => drop(members.insert(name, Value::Array(vec![value]))),
            None => drop(members.insert(name, value)),
        }
    }
    // Which of `role` and `role[]` counts is the reader's choice.
    let mut names = members.keys().map(|name| outer(name));
    if names.any(|(name, nested)| nested && members.contains_key(name)) {
        return Err(invalid("it has a field both with brackets and without"));
    }
    Ok(Value::Object(members))
}

/// The name that a field has for readers who take brackets for structure, and whether it has such.
fn outer(name: &str) -> (&str, bool) {
    match name.split_once('[') {
        Some((outer, _)) => (outer.trim_start_matches(' '), true),
        None => (name.trim_start_matches(' '), false),
    }
}

/// A field, decoded, and where it stands.
struct Pair {
    name: String,
    value: String,
    place: Range<usize>,
}

/// What stands between `&`, but for what is empty.
fn pairs(body: &[u8]) -> Result<impl Iterator<Item = Result<Pair, BodyFault>>, BodyFault> {
    let text = std::str::from_utf8(body).map_err(|_| invalid("it is not UTF-8"))?;
    let mut start = 0;
    let places = text.split('&').map(move |piece| {
        let place = start..start + piece.len();
        start = place.end + 1;
        (piece, place)
    });
    let pieces = places.filter(|(piece, _)| !piece.is_empty()).enumerate();
    Ok(pieces.map(|(index, (piece, place))| {
        if index >= MAX_PARAMETERS {
            return Err(invalid("it has more than 1000 fields"));
        }
        let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
        Ok(Pair {
            name: decode(name)?,
            value: decode(value)?,
            place,
        })
    }))
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
