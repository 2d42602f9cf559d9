//! A JSON tree against a shape, with the meaning that the body's own reader has.
use crate::shape::{Field, Literal, LiteralKind, Shape};
use crate::syntax::quote;
use serde_json::{Map, Number, Value};

/// What is wrong with a value, and where: the keys that lead there, quoted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ShapeFault {
    Undeclared(String),
    Value { field: String, expected: String },
}

/// Every member must be declared and of its shape; none must be there.
pub(super) fn check_object(
    object: &Map<String, Value>,
    fields: &[Field],
) -> Result<(), ShapeFault> {
    check_members(object, fields, &mut Vec::new())
}

fn check_members<'v>(
    object: &'v Map<String, Value>,
    fields: &[Field],
    path: &mut Vec<&'v str>,
) -> Result<(), ShapeFault> {
    for (key, value) in object {
        path.push(key);
        let index = fields.binary_search_by(|field| (*field.name).cmp(key));
        let field = index.ok().and_then(|index| fields.get(index));
        let field = field.ok_or_else(|| ShapeFault::Undeclared(quote(&path.join("."))))?;
        check(value, &field.shape, path)?;
        path.pop();
    }
    Ok(())
}

fn check<'v>(value: &'v Value, shape: &Shape, path: &mut Vec<&'v str>) -> Result<(), ShapeFault> {
    let fits = match (shape, value) {
        (Shape::Any, _) => true,
        (Shape::Object(fields), Value::Object(object)) => {
            return check_members(object, fields, path);
        }
        (Shape::List(item), Value::Array(items)) => {
            return items.iter().try_for_each(|value| check(value, item, path));
        }
        (Shape::OneOf(literals), _) => literals.iter().any(|literal| is_literal(literal, value)),
        (Shape::Text | Shape::Pattern(_) | Shape::Uuid, Value::String(text)) => {
            shape.accepts_text(text)
        }
        (Shape::Number, Value::Number(_)) | (Shape::Bool, Value::Bool(_)) => true,
        (Shape::Int, Value::Number(number)) => integer(number).is_some(),
        (Shape::Range(low, high), Value::Number(number)) => {
            integer(number).is_some_and(|value| (*low..=*high).contains(&value))
        }
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(ShapeFault::Value {
        field: quote(&path.join(".")),
        expected: shape.to_string(),
    })
}

/// `1.0` and `1e0` are integers to some readers and not to others, so they are none here.
fn integer(number: &Number) -> Option<i64> {
    number.as_i64()
}

fn is_literal(literal: &Literal, value: &Value) -> bool {
    match (literal.kind, value) {
        (LiteralKind::Text, Value::String(text)) => **text == *literal.text,
        (LiteralKind::Int, Value::Number(number)) => {
            integer(number).is_some_and(|value| literal.text.parse() == Ok(value))
        }
        (LiteralKind::Bool, Value::Bool(value)) => {
            &*literal.text == if *value { "true" } else { "false" }
        }
        (LiteralKind::Null, Value::Null) => true,
        _ => false,
    }
}
