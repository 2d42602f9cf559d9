//! Request bodies: what a rule declares, and whether a body is that.
//!
//! A body is only ever looked at: what was decided on is byte for byte what is sent.
mod form;
mod json;

use crate::model::Headers;
use crate::shape::{Field, LiteralKind, Shape, integer};
use crate::syntax::quote;
use json::{JsonError, Kind, Reader};

/// What a rule says of the body.
#[derive(Debug)]
pub(crate) struct BodySpec {
    pub(crate) fields: Vec<Field>,
    /// Bytes at most.
    pub(crate) max: usize,
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Media {
    Json,
    Form,
}

/// Why a body is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BodyFault {
    Absent,
    Type,
    Encoding,
    TooLarge(usize),
    Invalid(String),
    Undeclared(String),
    Value { field: String, expected: String },
    Twice(String),
}

impl From<JsonError> for BodyFault {
    fn from(error: JsonError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl BodySpec {
    /// Checks what can be known before the body is read.
    pub(crate) fn media(&self, headers: &dyn Headers) -> Result<Media, BodyFault> {
        let mut encoded = false;
        headers.each("content-encoding", &mut |value| {
            encoded |= !value.trim_ascii().eq_ignore_ascii_case(b"identity");
        });
        if encoded {
            return Err(BodyFault::Encoding);
        }
        let (mut count, mut media) = (0, None);
        headers.each("content-type", &mut |value| {
            count += 1;
            media = parse_media(value);
        });
        media.filter(|_| count == 1).ok_or(BodyFault::Type)
    }

    /// Checks a body that was read whole, or one byte further than `max`.
    pub(crate) fn check(&self, media: Media, body: &[u8]) -> Result<(), BodyFault> {
        if body.len() > self.max {
            return Err(BodyFault::TooLarge(self.max));
        }
        match media {
            Media::Json => {
                let mut reader = Reader::new(body)?;
                if reader.kind()? != Kind::Object {
                    return Err(BodyFault::Invalid("it is not a JSON object".into()));
                }
                check_object(&mut reader, &self.fields, &mut Vec::new())?;
                Ok(reader.end()?)
            }
            Media::Form => form::check(body, &self.fields),
        }
    }
}

/// The two media types whose fields are known here, with no parameter but UTF-8.
fn parse_media(value: &[u8]) -> Option<Media> {
    let text = std::str::from_utf8(value).ok()?.to_ascii_lowercase();
    let (essence, parameter) = match text.split_once(';') {
        Some((essence, parameter)) => (essence, Some(parameter.trim())),
        None => (text.as_str(), None),
    };
    if parameter.is_some_and(|text| !matches!(text, "charset=utf-8" | "charset=\"utf-8\"")) {
        return None;
    }
    match essence.trim() {
        "application/json" => Some(Media::Json),
        "application/x-www-form-urlencoded" => Some(Media::Form),
        _ => None,
    }
}

fn find<'f>(fields: &'f [Field], name: &str) -> Option<&'f Shape> {
    let index = fields
        .binary_search_by(|field| (*field.name).cmp(name))
        .ok()?;
    fields.get(index).map(|field| &field.shape)
}

/// The keys that led to where the reader stands.
type Path = Vec<String>;

fn check_object(
    reader: &mut Reader<'_>,
    fields: &[Field],
    path: &mut Path,
) -> Result<(), BodyFault> {
    reader.object(|reader, key| {
        path.push(key.to_owned());
        let shape = find(fields, key).ok_or_else(|| BodyFault::Undeclared(name_of(path)))?;
        check_value(reader, shape, path)?;
        path.pop();
        Ok(())
    })
}

fn name_of(path: &[String]) -> String {
    quote(&path.join("."))
}

fn check_value(reader: &mut Reader<'_>, shape: &Shape, path: &mut Path) -> Result<(), BodyFault> {
    let kind = reader.kind()?;
    let fits = match (shape, kind) {
        (Shape::Any, _) => reader.skip().map(|()| true)?,
        (Shape::Object(fields), Kind::Object) => {
            check_object(reader, fields, path)?;
            true
        }
        (Shape::List(item), Kind::Array) => {
            reader.array(|reader| check_value(reader, item, path))?;
            true
        }
        (_, Kind::Object | Kind::Array) => false,
        (_, Kind::Text) => accepts_string(shape, &reader.string()?),
        (_, Kind::Number | Kind::Bool | Kind::Null) => accepts_word(shape, kind, reader.word()?),
    };
    if fits {
        return Ok(());
    }
    Err(BodyFault::Value {
        field: name_of(path),
        expected: shape.to_string(),
    })
}

fn accepts_string(shape: &Shape, text: &str) -> bool {
    match shape {
        Shape::Text | Shape::Pattern(_) | Shape::Uuid => shape.accepts_text(text),
        Shape::OneOf(literals) => literals
            .iter()
            .any(|literal| literal.kind == LiteralKind::Text && &*literal.text == text),
        _ => false,
    }
}

fn accepts_word(shape: &Shape, kind: Kind, word: &str) -> bool {
    match (shape, kind) {
        (Shape::Number, Kind::Number) | (Shape::Bool, Kind::Bool) => true,
        // `1.0` and `1e0` are integers to some readers and not to others.
        (Shape::Int, Kind::Number) => integer(word).is_some(),
        (Shape::Range(low, high), Kind::Number) => {
            integer(word).is_some_and(|value| (*low..=*high).contains(&value))
        }
        (Shape::OneOf(literals), _) => literals.iter().any(|literal| {
            let kinds = (literal.kind, kind);
            let same = matches!(
                kinds,
                (LiteralKind::Int, Kind::Number)
                    | (LiteralKind::Bool, Kind::Bool)
                    | (LiteralKind::Null, Kind::Null)
            );
            same && &*literal.text == word
        }),
        _ => false,
    }
}
