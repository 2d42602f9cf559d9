//! The notation of shapes, for query parameters and body fields; the crate's documentation has it.
use super::Reading;
use crate::shape::{Field, Literal, LiteralKind, Shape, integer};
use crate::syntax::{Node, Scalar, Value, nearest, quote};

/// Where a shape stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Query,
    Body,
}

static KEYWORDS: [(&str, Shape); 6] = [
    ("any", Shape::Any),
    ("bool", Shape::Bool),
    ("int", Shape::Int),
    ("number", Shape::Number),
    ("string", Shape::Text),
    ("uuid", Shape::Uuid),
];

/// A query parameter: its shape, and whether it must be there.
pub(super) fn parameter(reading: &mut Reading<'_>, node: &Node) -> Option<(Shape, bool)> {
    if !matches!(node.value, Value::Mapping(_)) {
        return Some((shape(reading, node, Side::Query)?, false));
    }
    let mut fields = reading.decoder.fields(node, "the parameter")?;
    let kind = fields.require(reading.decoder, "type");
    let required = fields.take("required");
    fields.finish(reading.decoder);
    let required = match required {
        Some(node) => reading.decoder.boolean(node)?,
        None => false,
    };
    Some((shape(reading, kind?, Side::Query)?, required))
}

/// A header's one value: like a parameter, and no list.
pub(super) fn header(reading: &mut Reading<'_>, node: &Node) -> Option<Shape> {
    let shape = shape(reading, node, Side::Query)?;
    if matches!(shape, Shape::List(_)) {
        reading
            .decoder
            .error(node.span, "a required header has one value, and not a list");
        return None;
    }
    Some(shape)
}

/// The fields of an object, by name.
pub(super) fn object(reading: &mut Reading<'_>, node: &Node) -> Vec<Field> {
    let entries = reading.decoder.mapping(node).unwrap_or_default();
    let mut fields: Vec<Field> = Vec::with_capacity(entries.len());
    for entry in entries {
        if let Some(shape) = shape(reading, &entry.value, Side::Body) {
            fields.push(Field {
                name: entry.key.text.clone(),
                shape,
            });
        }
    }
    fields.sort_by(|one, other| one.name.cmp(&other.name));
    fields
}

fn shape(reading: &mut Reading<'_>, node: &Node, side: Side) -> Option<Shape> {
    match &node.value {
        Value::Scalar(scalar) if scalar.is_null() => {
            reading
                .decoder
                .expected(node, "a type, a range, a pattern or a list of values");
            None
        }
        Value::Scalar(scalar) => match notation(reading, node, scalar) {
            Ok(Some(shape)) => Some(shape),
            Ok(None) => {
                unknown_type(reading, node, scalar);
                None
            }
            Err(()) => None,
        },
        Value::Sequence(items) => list_or_enum(reading, node, items, side),
        Value::Mapping(_) if side == Side::Body => Some(Shape::Object(object(reading, node))),
        Value::Mapping(_) => {
            reading
                .decoder
                .expected(node, "a type, a range, a pattern or a list of values");
            None
        }
    }
}

/// What a scalar stands for as a type: `None` if it is none, an error if it is a wrong one.
fn notation(reading: &mut Reading<'_>, node: &Node, scalar: &Scalar) -> Result<Option<Shape>, ()> {
    let text = &*scalar.text;
    if let Some((_, shape)) = KEYWORDS.iter().find(|(word, _)| *word == text) {
        return Ok(Some(shape.clone()));
    }
    if let Some(pattern) = text
        .strip_prefix('/')
        .and_then(|rest| rest.strip_suffix('/'))
    {
        return match reading.patterns.get(pattern) {
            Ok(pattern) => Ok(Some(Shape::Pattern(pattern))),
            Err(message) => {
                reading.decoder.error(node.span, message);
                Err(())
            }
        };
    }
    let Some((low, high)) = text.split_once("..") else {
        return Ok(None);
    };
    match (integer(low), integer(high)) {
        (Some(low), Some(high)) if low <= high => Ok(Some(Shape::Range(low, high))),
        (Some(_), Some(_)) => {
            reading.decoder.error(
                node.span,
                "the range is empty: its first number is larger than its last",
            );
            Err(())
        }
        _ => Ok(None),
    }
}

fn unknown_type(reading: &mut Reading<'_>, node: &Node, scalar: &Scalar) {
    let words = KEYWORDS.iter().map(|(word, _)| *word);
    let near = nearest(&scalar.text, words.clone()).map(|near| format!("did you mean `{near}`? "));
    let list = words
        .map(|word| format!("`{word}`"))
        .collect::<Vec<_>>()
        .join(", ");
    reading
        .decoder
        .error(node.span, format!("unknown type {}", quote(&scalar.text)))
        .help(format!(
            "{}types: {list}, `1..100`, `/pattern/`; for the exact value write [{}]",
            near.unwrap_or_default(),
            quote(&scalar.text).trim_matches('`')
        ));
}

/// `[string]` is a list; `[open, closed]` are values.
fn list_or_enum(
    reading: &mut Reading<'_>,
    node: &Node,
    items: &[Node],
    side: Side,
) -> Option<Shape> {
    if let [item] = items {
        let listed = match &item.value {
            Value::Scalar(scalar) if scalar.plain && !scalar.is_null() => {
                notation(reading, item, scalar).ok()?
            }
            Value::Scalar(_) => None,
            Value::Sequence(_) if !is_enum(item) => {
                reading
                    .decoder
                    .error(item.span, "a list of lists is not supported");
                return None;
            }
            Value::Sequence(_) => Some(shape(reading, item, side)?),
            Value::Mapping(_) => Some(shape(reading, item, side)?),
        };
        if let Some(item) = listed {
            return Some(Shape::List(Box::new(item)));
        }
    }
    if items.is_empty() {
        reading
            .decoder
            .error(node.span, "no value is allowed by an empty list");
        return None;
    }
    let mut literals: Vec<Literal> = Vec::with_capacity(items.len());
    for item in items {
        let literal = literal(reading, item, side)?;
        // Few enough to be looked through for each request; more are a table, not a rule.
        if literals.len() >= 1_000 {
            reading.decoder.error(node.span, "more than 1000 values");
            return None;
        }
        if literals.contains(&literal) {
            reading.decoder.error(
                item.span,
                format!("{} stands twice in the list", quote(&literal.text)),
            );
            return None;
        }
        literals.push(literal);
    }
    Some(Shape::OneOf(literals))
}

/// Whether a list holds values, and not one type.
fn is_enum(node: &Node) -> bool {
    let Value::Sequence(items) = &node.value else {
        return false;
    };
    let scalar = |item: &Node| matches!(item.value, Value::Scalar(_));
    match items.as_slice() {
        [item] => match &item.value {
            Value::Scalar(scalar) => {
                let word = KEYWORDS.iter().any(|(word, _)| *word == &*scalar.text);
                !(scalar.plain
                    && (word || scalar.text.contains("..") || scalar.text.starts_with('/')))
            }
            _ => false,
        },
        items => items.iter().all(scalar),
    }
}

fn literal(reading: &mut Reading<'_>, node: &Node, side: Side) -> Option<Literal> {
    let Value::Scalar(scalar) = &node.value else {
        reading.decoder.expected(node, "a value");
        return None;
    };
    let text = &*scalar.text;
    let kind = match (scalar.kind(), side) {
        ("a string", _) => LiteralKind::Text,
        ("nothing", Side::Body) if text == "null" => LiteralKind::Null,
        ("nothing", _) => {
            reading.decoder.expected(node, "a value");
            return None;
        }
        (_, Side::Query) => LiteralKind::Text,
        ("a boolean", Side::Body) if matches!(text, "true" | "false") => LiteralKind::Bool,
        ("an integer", Side::Body) if integer(text).is_some() => LiteralKind::Int,
        _ => {
            let message = format!(
                "{} is not a value that is written one way only",
                quote(text)
            );
            reading
                .decoder
                .error(node.span, message)
                .help("quote it if it is meant as text");
            return None;
        }
    };
    let word = KEYWORDS.iter().any(|(word, _)| *word == text);
    if word && scalar.plain {
        reading
            .decoder
            .error(node.span, format!("`{text}` is a type and stands among values"))
            .help("quote it if it is meant as a value; for a list of a type write it alone in brackets");
        return None;
    }
    Some(Literal {
        text: text.into(),
        kind,
    })
}
