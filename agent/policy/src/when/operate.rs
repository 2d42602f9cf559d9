//! What operators and functions do with values.
use super::effort::Effort;
use super::functions::{Function, Part};
use super::parse::Operator;
use super::time;
use super::value::{Evaluated, List, Text, Trouble, Value, compare_numbers, equal};
use std::cmp::Ordering;

pub(super) fn binary<'v>(
    operator: Operator,
    left: &Value<'v>,
    right: &Value<'v>,
    effort: &Effort,
) -> Evaluated<'v> {
    let held = match operator {
        Operator::Equal => equal(left, right, effort)?,
        Operator::Unequal => !equal(left, right, effort)?,
        Operator::Less => order(operator, left, right, effort)? == Some(Ordering::Less),
        Operator::Greater => order(operator, left, right, effort)? == Some(Ordering::Greater),
        Operator::AtMost => matches!(
            order(operator, left, right, effort)?,
            Some(Ordering::Less | Ordering::Equal)
        ),
        Operator::AtLeast => matches!(
            order(operator, left, right, effort)?,
            Some(Ordering::Greater | Ordering::Equal)
        ),
        Operator::In => is_in(left, right, effort)?,
        _ => return sum(operator, left, right, effort),
    };
    Ok(Value::Bool(held))
}

/// `None` for what has no order: not-a-number.
fn order<'v>(
    operator: Operator,
    left: &Value<'v>,
    right: &Value<'v>,
    effort: &Effort,
) -> Evaluated<'v, Option<Ordering>> {
    if let Some(order) = compare_numbers(left, right) {
        return Ok(order);
    }
    match (left, right) {
        (Value::Text(left), Value::Text(right)) => {
            effort.take_text(left.len().min(right.len()))?;
            Ok(Some((**left).cmp(&**right)))
        }
        (Value::Bool(left), Value::Bool(right)) => Ok(Some(left.cmp(right))),
        (Value::Time(left), Value::Time(right)) => Ok(Some(left.cmp(right))),
        (Value::Span(left), Value::Span(right)) => Ok(Some(left.cmp(right))),
        _ => Err(Trouble::Kind(operator.sign())),
    }
}

fn is_in<'v>(item: &Value<'v>, range: &Value<'v>, effort: &Effort) -> Evaluated<'v, bool> {
    match range {
        Value::List(list) => {
            for candidate in list.iter() {
                if equal(item, &candidate, effort)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Map(map) => Ok(map.get(item, effort)?.is_some()),
        _ => Err(Trouble::Kind("in")),
    }
}

fn sum<'v>(
    operator: Operator,
    left: &Value<'v>,
    right: &Value<'v>,
    effort: &Effort,
) -> Evaluated<'v> {
    use Operator::{Add, Subtract};
    let sign = operator.sign();
    match (operator, left, right) {
        (_, Value::Int(left), Value::Int(right)) => int(operator, *left, *right).map(Value::Int),
        (_, Value::Uint(left), Value::Uint(right)) => {
            uint(operator, *left, *right).map(Value::Uint)
        }
        (_, Value::Double(left), Value::Double(right)) => {
            double(operator, *left, *right).map(Value::Double)
        }
        (Add, Value::Text(left), Value::Text(right)) => {
            effort.take_text(left.len().saturating_add(right.len()))?;
            Ok(Value::made([&**left, &**right].concat()))
        }
        (Add, Value::List(left), Value::List(right)) => join(left, right, effort),
        (Add, Value::Time(time), Value::Span(span))
        | (Add, Value::Span(span), Value::Time(time)) => time::add(*time, *span)
            .map(Value::Time)
            .ok_or(Trouble::Overflow(sign)),
        (Subtract, Value::Time(time), Value::Span(span)) => span
            .checked_neg()
            .and_then(|span| time::add(*time, span))
            .map(Value::Time)
            .ok_or(Trouble::Overflow(sign)),
        (Subtract, Value::Time(left), Value::Time(right)) => {
            Ok(Value::Span(left.duration_since(*right)))
        }
        (Add, Value::Span(left), Value::Span(right)) => left
            .checked_add(*right)
            .map(Value::Span)
            .ok_or(Trouble::Overflow(sign)),
        (Subtract, Value::Span(left), Value::Span(right)) => left
            .checked_sub(*right)
            .map(Value::Span)
            .ok_or(Trouble::Overflow(sign)),
        _ => Err(Trouble::Kind(sign)),
    }
}

fn join<'v>(left: &List<'v>, right: &List<'v>, effort: &Effort) -> Evaluated<'v> {
    // An element takes more room than a piece of text.
    effort.take(left.len().saturating_add(right.len()).saturating_mul(4))?;
    Ok(Value::list(left.iter().chain(right.iter()).collect()))
}

fn int<'v>(operator: Operator, left: i64, right: i64) -> Evaluated<'v, i64> {
    let result = match operator {
        Operator::Add => left.checked_add(right),
        Operator::Subtract => left.checked_sub(right),
        Operator::Multiply => left.checked_mul(right),
        _ if right == 0 => return Err(Trouble::DivisionByZero),
        Operator::Divide => left.checked_div(right),
        _ => left.checked_rem(right),
    };
    result.ok_or(Trouble::Overflow(operator.sign()))
}

fn uint<'v>(operator: Operator, left: u64, right: u64) -> Evaluated<'v, u64> {
    let result = match operator {
        Operator::Add => left.checked_add(right),
        Operator::Subtract => left.checked_sub(right),
        Operator::Multiply => left.checked_mul(right),
        _ if right == 0 => return Err(Trouble::DivisionByZero),
        Operator::Divide => left.checked_div(right),
        _ => left.checked_rem(right),
    };
    result.ok_or(Trouble::Overflow(operator.sign()))
}

fn double<'v>(operator: Operator, left: f64, right: f64) -> Evaluated<'v, f64> {
    match operator {
        Operator::Add => Ok(left + right),
        Operator::Subtract => Ok(left - right),
        Operator::Multiply => Ok(left * right),
        Operator::Divide => Ok(left / right),
        _ => Err(Trouble::Kind(operator.sign())),
    }
}

pub(super) fn negate<'v>(value: &Value<'v>) -> Evaluated<'v> {
    match value {
        Value::Int(value) => value
            .checked_neg()
            .map(Value::Int)
            .ok_or(Trouble::Overflow("-")),
        Value::Double(value) => Ok(Value::Double(-value)),
        _ => Err(Trouble::Kind("-")),
    }
}

/// `of[index]`.
pub(super) fn index<'v>(of: &Value<'v>, index: &Value<'v>, effort: &Effort) -> Evaluated<'v> {
    match of {
        Value::Map(map) => map.get(index, effort)?.ok_or(Trouble::NoKey),
        Value::List(list) => {
            let place = match index {
                Value::Int(place) => usize::try_from(*place).ok(),
                Value::Uint(place) => usize::try_from(*place).ok(),
                Value::Double(place) => double_to_int(*place)
                    .filter(|whole| {
                        compare_numbers(&Value::Int(*whole), index) == Some(Some(Ordering::Equal))
                    })
                    .and_then(|place| usize::try_from(place).ok()),
                _ => return Err(Trouble::Kind("[…]")),
            };
            place
                .and_then(|place| list.get(place))
                .ok_or(Trouble::NoItem)
        }
        _ => Err(Trouble::Kind("[…]")),
    }
}

pub(super) fn call<'v>(
    function: Function,
    arguments: &[Value<'v>],
    effort: &Effort,
) -> Evaluated<'v> {
    match (function, arguments) {
        (Function::Size, [value]) => size(value, effort),
        (Function::Contains | Function::StartsWith | Function::EndsWith, [text, part]) => {
            let (Value::Text(text), Value::Text(part)) = (text, part) else {
                return Err(Trouble::Kind(match function {
                    Function::Contains => "contains",
                    Function::StartsWith => "startsWith",
                    _ => "endsWith",
                }));
            };
            find(function, text, part, effort)
        }
        (Function::Int, [value]) => to_int(value).map(Value::Int),
        (Function::Uint, [value]) => to_uint(value).map(Value::Uint),
        (Function::Double, [value]) => to_double(value, effort).map(Value::Double),
        (Function::Text, [value]) => to_text(value),
        (Function::Time, [Value::Time(time)]) => Ok(Value::Time(*time)),
        (Function::Time, [Value::Text(text)]) => time::timestamp(text)
            .map(Value::Time)
            .ok_or(Trouble::Conversion("timestamp")),
        (Function::Span, [Value::Span(span)]) => Ok(Value::Span(*span)),
        (Function::Span, [Value::Text(text)]) if text.len() <= 256 => time::duration(text)
            .map(Value::Span)
            .ok_or(Trouble::Conversion("duration")),
        (Function::Span, [Value::Text(_)]) => Err(Trouble::Conversion("duration")),
        (Function::Part(part), [value]) => clock(value, part),
        (Function::Time, _) => Err(Trouble::Kind("timestamp")),
        _ => Err(Trouble::Kind("duration")),
    }
}

fn size<'v>(value: &Value<'v>, effort: &Effort) -> Evaluated<'v> {
    let size = match value {
        Value::Text(text) => {
            effort.take_text(text.len())?;
            text.chars().count()
        }
        Value::List(list) => list.len(),
        Value::Map(map) => map.len(),
        _ => return Err(Trouble::Kind("size")),
    };
    i64::try_from(size)
        .map(Value::Int)
        .map_err(|_| Trouble::Overflow("size"))
}

fn find<'v>(
    function: Function,
    text: &Text<'v>,
    part: &Text<'v>,
    effort: &Effort,
) -> Evaluated<'v> {
    Ok(Value::Bool(match function {
        Function::Contains => {
            effort.take_text(text.len().saturating_add(part.len()))?;
            text.contains(&**part)
        }
        Function::StartsWith => {
            effort.take_text(part.len())?;
            text.starts_with(&**part)
        }
        _ => {
            effort.take_text(part.len())?;
            text.ends_with(&**part)
        }
    }))
}

fn clock<'v>(value: &Value<'v>, part: Part) -> Evaluated<'v> {
    match value {
        Value::Time(time) => Ok(Value::Int(time::part(*time, part))),
        Value::Span(span) => time::span_part(*span, part)
            .map(Value::Int)
            .ok_or(Trouble::Kind("get…")),
        _ => Err(Trouble::Kind("get…")),
    }
}

/// Towards zero; `None` where no 64-bit integer is near.
fn double_to_int(value: f64) -> Option<i64> {
    let bound = 9_223_372_036_854_775_808.0;
    (value > -bound && value < bound).then_some(value as i64)
}

fn to_int<'v>(value: &Value<'v>) -> Evaluated<'v, i64> {
    let converted = match value {
        Value::Int(value) => Some(*value),
        Value::Uint(value) => i64::try_from(*value).ok(),
        Value::Double(value) => double_to_int(*value),
        Value::Text(text) if is_digits(text) => text.parse().ok(),
        Value::Text(_) => None,
        Value::Time(time) => Some(time.as_second()),
        _ => return Err(Trouble::Kind("int")),
    };
    converted.ok_or(Trouble::Conversion("int"))
}

fn to_uint<'v>(value: &Value<'v>) -> Evaluated<'v, u64> {
    let converted = match value {
        Value::Int(value) => u64::try_from(*value).ok(),
        Value::Uint(value) => Some(*value),
        Value::Double(value) => {
            let fits = *value >= 0.0 && *value < 18_446_744_073_709_551_616.0;
            fits.then_some(*value as u64)
        }
        Value::Text(text) if is_digits(text) => text.parse().ok(),
        Value::Text(_) => None,
        _ => return Err(Trouble::Kind("uint")),
    };
    converted.ok_or(Trouble::Conversion("uint"))
}

fn to_double<'v>(value: &Value<'v>, effort: &Effort) -> Evaluated<'v, f64> {
    let converted = match value {
        Value::Int(value) => Some(*value as f64),
        Value::Uint(value) => Some(*value as f64),
        Value::Double(value) => Some(*value),
        Value::Text(text) => {
            effort.take_text(text.len())?;
            text.parse()
                .ok()
                .filter(|_| crate::shape::is_json_number(text))
        }
        _ => return Err(Trouble::Kind("double")),
    };
    converted.ok_or(Trouble::Conversion("double"))
}

/// Digits with a sign at most; no number of 64 bits is longer.
fn is_digits(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.len() <= 20 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

fn to_text<'v>(value: &Value<'v>) -> Evaluated<'v> {
    match value {
        Value::Text(_) => Ok(value.clone()),
        Value::Int(value) => Ok(Value::made(value.to_string())),
        Value::Uint(value) => Ok(Value::made(value.to_string())),
        Value::Bool(value) => Ok(Value::text(if *value { "true" } else { "false" })),
        _ => Err(Trouble::Kind("string")),
    }
}
