//! `uniqueItems` in linear time whatever the elements are: the library's own hashes of nested lists can be
//! made to collide.
use jsonschema::paths::Location;
use jsonschema::{Keyword, ValidationError};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::fmt::Write;

struct UniqueItems(bool);

/// Makes the keyword.
pub(super) fn keyword<'a>(
    _: &'a Map<String, Value>,
    value: &'a Value,
    _: Location,
) -> Result<Box<dyn for<'i> Keyword<'i>>, ValidationError<'a>> {
    Ok(Box::new(UniqueItems(value.as_bool().unwrap_or(true))))
}

impl<'i> Keyword<'i> for UniqueItems {
    fn validate(&self, instance: &'i Value) -> Result<(), ValidationError<'i>> {
        match self.is_valid(instance) {
            true => Ok(()),
            false => Err(ValidationError::custom("elements are not unique")),
        }
    }

    fn is_valid(&self, instance: &'i Value) -> bool {
        let Value::Array(elements) = instance else {
            return true;
        };
        let mut seen = HashSet::with_capacity(elements.len());
        !self.0 || elements.iter().all(|element| seen.insert(text(element)))
    }
}

/// A text that two values share if and only if they are equal.
fn text(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Number(number) => match number.as_f64() {
            // `1.0` equals `1`; beyond 2⁵³ a float that is whole still has one exact integer.
            Some(float) if number.is_f64() && float.fract() == 0.0 => {
                let _ = write!(text, "{:.0}", float + 0.0);
            }
            _ => {
                let _ = write!(text, "{number}");
            }
        },
        Value::String(string) => {
            let _ = write!(text, "{string:?}");
        }
        Value::Array(elements) => {
            text.push('[');
            for element in elements {
                write(element, text);
                text.push(',');
            }
            text.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            text.push('{');
            for (name, member) in members {
                let _ = write!(text, "{name:?}:");
                write(member, text);
                text.push(',');
            }
            text.push('}');
        }
        Value::Bool(_) | Value::Null => {
            let _ = write!(text, "{value}");
        }
    }
}
