//! What the semantics say of bodies.
use crate::flaws::Flaw;
use crate::meaning::{NUMBERS, integer};
use crate::meaning::{PATTERNS, is_uuid, media};
use crate::model::{Body, Literal, Shape};
use crate::naive::Naive;
use crate::request::{Asked, Json, Payload};

const DEFAULT_MAX: usize = 64 << 10;

/// Whether the body says that it is JSON, or a form.
pub(crate) fn media_of(asked: &Asked) -> Result<bool, Vec<&'static str>> {
    let values = |name: &'static str| {
        let sent = asked.headers.iter().filter(move |(sent, _)| sent == name);
        sent.map(|(_, value)| value.as_str())
    };
    let mut faults = Vec::new();
    if values("content-encoding").any(|value| value != "identity") {
        faults.push("body_encoding");
    }
    let types: Vec<&str> = values("content-type").collect();
    let known = match types.as_slice() {
        [one] => media(one),
        _ => None,
    };
    match known {
        Some(json) if faults.is_empty() => Ok(json),
        Some(_) => Err(faults),
        None => {
            faults.push("body_type");
            Err(faults)
        }
    }
}

/// All that is wrong with the body; empty where it is as declared.
pub(crate) fn faults(naive: &Naive<'_>, declared: &Body, asked: &Asked) -> Vec<&'static str> {
    let Some(bytes) = asked.bytes() else {
        return vec!["body_invalid"];
    };
    let json = match media_of(asked) {
        Ok(json) => json,
        Err(faults) => return faults,
    };
    if bytes.len() > declared.max.unwrap_or(DEFAULT_MAX) {
        return vec!["body_too_large"];
    }
    let mut faults = Vec::new();
    match (&asked.payload, json) {
        (Payload::Json(value), true) => {
            if !matches!(value, Json::Object(_)) {
                faults.push("body_invalid");
            }
            strictness(naive, value, 0, &mut faults);
            if !json_fits(naive, &Shape::Object(declared.fields.clone()), value) {
                faults.push("body_field");
            }
        }
        (Payload::Form(pairs), false) => {
            for (index, (name, value)) in pairs.iter().enumerate() {
                let shape = declared.fields.iter().find(|(known, _)| known == name);
                let fits = shape.is_some_and(|(_, shape)| naive.text_fits(shape, value));
                let twice = pairs[..index].iter().any(|(earlier, _)| earlier == name)
                    && !matches!(shape, Some((_, Shape::List(_))));
                if !fits || (twice && !naive.has(Flaw::DuplicatesPass)) {
                    faults.push("body_field");
                }
            }
        }
        // Not what it says it is; the first half of it may be.
        _ => faults.extend(["body_invalid", "body_field"]),
    }
    faults
}

/// What two readers would read differently.
fn strictness(naive: &Naive<'_>, value: &Json, depth: usize, faults: &mut Vec<&'static str>) {
    match value {
        Json::Number(text) => {
            if NUMBERS
                .iter()
                .any(|(known, valid, _)| known == text && !valid)
            {
                faults.push("body_invalid");
            }
        }
        Json::List(items) => {
            if depth >= 64 {
                faults.push("body_invalid");
            }
            items
                .iter()
                .for_each(|item| strictness(naive, item, depth + 1, faults));
        }
        Json::Object(entries) => {
            if depth >= 64 {
                faults.push("body_invalid");
            }
            for (index, (key, item)) in entries.iter().enumerate() {
                let twice = entries[..index].iter().any(|(earlier, _)| earlier == key);
                if twice && !naive.has(Flaw::JsonKeysTwicePass) {
                    faults.push("body_invalid");
                }
                strictness(naive, item, depth + 1, faults);
            }
        }
        Json::Null | Json::Bool(_) | Json::Text(_) => {}
    }
}

fn json_fits(naive: &Naive<'_>, shape: &Shape, value: &Json) -> bool {
    match (shape, value) {
        (Shape::Any, _) => true,
        (Shape::Text, Json::Text(_))
        | (Shape::Number, Json::Number(_))
        | (Shape::Bool, Json::Bool(_)) => true,
        (Shape::Int, Json::Number(text)) => integer(text).is_some(),
        (Shape::Range(..), Json::Number(text)) => naive.text_fits(shape, text),
        (Shape::Uuid, Json::Text(text)) => is_uuid(text),
        (Shape::Pattern(number), Json::Text(text)) => (PATTERNS[*number].means)(text),
        (Shape::OneOf(literals), value) => literals.iter().any(|literal| match (literal, value) {
            (Literal::Text(known), Json::Text(text)) => known == text,
            (Literal::Int(known), Json::Number(text)) => known.to_string() == **text,
            (Literal::Bool(known), Json::Bool(value)) => known == value,
            (Literal::Null, Json::Null) => true,
            _ => false,
        }),
        (Shape::List(item), Json::List(items)) => {
            items.iter().all(|value| json_fits(naive, item, value))
        }
        (Shape::Object(fields), Json::Object(entries)) => {
            entries.iter().all(
                |(key, value)| match fields.iter().find(|(known, _)| known == key) {
                    Some((_, shape)) => json_fits(naive, shape, value),
                    None => naive.has(Flaw::NestedFieldsIgnored),
                },
            )
        }
        _ => false,
    }
}
