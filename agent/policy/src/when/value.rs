//! Values while a condition is evaluated. They borrow from the request and from the condition.
use super::effort::{Effort, Exhausted};
use super::parse::Literal;
use super::tree::Fact;
use crate::syntax::quote;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value as Json;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

/// Levels of two values that are compared at most; strict JSON has fewer.
const MAX_DEPTH: usize = 256;

#[derive(Debug, Clone)]
pub(super) enum Value<'v> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Text<'v>),
    List(List<'v>),
    Map(Map<'v>),
    Time(Timestamp),
    Span(SignedDuration),
}

/// A string that is cheap to clone.
#[derive(Debug, Clone)]
pub(super) enum Text<'v> {
    Borrowed(&'v str),
    Shared(Rc<str>),
}

#[derive(Debug, Clone)]
pub(super) enum List<'v> {
    Json(&'v [Json]),
    Names(&'v [&'v str]),
    Made(Rc<[Value<'v>]>),
}

#[derive(Debug, Clone)]
pub(super) enum Map<'v> {
    Json(&'v serde_json::Map<String, Json>),
    Query(Rc<BTreeMap<Cow<'v, str>, Value<'v>>>),
    /// Without two equal keys.
    Made(Rc<[(Value<'v>, Value<'v>)]>),
}

/// Why a condition could not be evaluated. Names what stands in the condition, never a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble<'v> {
    NoField(&'v str),
    NoKey,
    NoItem,
    NoParameter(&'v str),
    NoHeader(&'v str),
    HeaderTwice(&'v str),
    HeaderText(&'v str),
    NoFact(Fact),
    /// An operator or function met a value it does not take.
    Kind(&'static str),
    NotBool,
    Overflow(&'static str),
    DivisionByZero,
    Conversion(&'static str),
    KeyTwice,
    Depth,
    Effort,
}

impl From<Exhausted> for Trouble<'_> {
    fn from(_: Exhausted) -> Self {
        Self::Effort
    }
}

impl fmt::Display for Trouble<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoField(name) => write!(f, "there is no field {}", quote(name)),
            Self::NoKey => f.write_str("a map lacks the key that is looked up"),
            Self::NoItem => f.write_str("a list is shorter than the index"),
            Self::NoParameter(name) => write!(f, "there is no path parameter {}", quote(name)),
            Self::NoHeader(name) => write!(f, "there is no header {}", quote(name)),
            Self::HeaderTwice(name) => write!(f, "the header {} is there twice", quote(name)),
            Self::HeaderText(name) => write!(f, "the header {} is not UTF-8", quote(name)),
            Self::NoFact(Fact::Json) => f.write_str("there is no JSON body"),
            Self::NoFact(Fact::Form) => f.write_str("there is no form body"),
            Self::NoFact(_) => f.write_str("a part of the request is not known"),
            Self::Kind(what) => write!(f, "`{what}` met a value of a type it does not take"),
            Self::NotBool => f.write_str("a value stands where true or false is needed"),
            Self::Overflow(what) => write!(f, "the result of `{what}` is too large"),
            Self::DivisionByZero => f.write_str("a number is divided by zero"),
            Self::Conversion(what) => write!(f, "`{what}` cannot convert the value"),
            Self::KeyTwice => f.write_str("a map has one key twice"),
            Self::Depth => f.write_str("a value is nested too deeply"),
            Self::Effort => f.write_str("it takes too much work on this request"),
        }
    }
}

pub(super) type Evaluated<'v, T = Value<'v>> = Result<T, Trouble<'v>>;

impl std::ops::Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

impl<'v> From<Cow<'v, str>> for Text<'v> {
    fn from(text: Cow<'v, str>) -> Self {
        match text {
            Cow::Borrowed(text) => Self::Borrowed(text),
            Cow::Owned(text) => Self::Shared(text.into()),
        }
    }
}

impl<'v> Value<'v> {
    pub(super) fn text(text: &'v str) -> Self {
        Self::Text(Text::Borrowed(text))
    }

    pub(super) fn made(text: String) -> Self {
        Self::Text(Text::Shared(text.into()))
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(List::Made(items.into()))
    }

    pub(super) fn literal(literal: &'v Literal) -> Self {
        match literal {
            Literal::Null => Self::Null,
            Literal::Bool(value) => Self::Bool(*value),
            Literal::Int(value) => Self::Int(*value),
            Literal::Uint(value) => Self::Uint(*value),
            Literal::Double(value) => Self::Double(*value),
            Literal::Text(text) => Self::text(text),
            Literal::Time(time) => Self::Time(*time),
            Literal::Span(span) => Self::Span(*span),
        }
    }

    /// A view of JSON; nothing is copied.
    pub(super) fn json(json: &'v Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => {
                if let Some(value) = number.as_i64() {
                    Self::Int(value)
                } else if let Some(value) = number.as_u64() {
                    Self::Uint(value)
                } else {
                    // No number beyond 64 bits gets here; if one did, no comparison with it would hold.
                    Self::Double(number.as_f64().unwrap_or(f64::NAN))
                }
            }
            Json::String(text) => Self::text(text),
            Json::Array(items) => Self::List(List::Json(items)),
            Json::Object(members) => Self::Map(Map::Json(members)),
        }
    }
}

impl<'v> List<'v> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Json(items) => items.len(),
            Self::Names(items) => items.len(),
            Self::Made(items) => items.len(),
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<Value<'v>> {
        match self {
            Self::Json(items) => items.get(index).map(Value::json),
            Self::Names(items) => items.get(index).copied().map(Value::text),
            Self::Made(items) => items.get(index).cloned(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Value<'v>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

impl<'v> Map<'v> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Json(members) => members.len(),
            Self::Query(parameters) => parameters.len(),
            Self::Made(entries) => entries.len(),
        }
    }

    pub(super) fn field(
        &self,
        name: &str,
        effort: &Effort,
    ) -> Result<Option<Value<'v>>, Exhausted> {
        match self {
            Self::Json(members) => Ok(members.get(name).map(Value::json)),
            Self::Query(parameters) => Ok(parameters.get(name).cloned()),
            Self::Made(entries) => {
                for (key, value) in entries.iter() {
                    effort.take(1)?;
                    if matches!(key, Value::Text(key) if **key == *name) {
                        return Ok(Some(value.clone()));
                    }
                }
                Ok(None)
            }
        }
    }

    /// What stands under `key`. An integer is looked up by value, whatever its type.
    pub(super) fn get(&self, key: &Value<'v>, effort: &Effort) -> Evaluated<'v, Option<Value<'v>>> {
        if let Value::Text(name) = key {
            effort.take_text(name.len())?;
            return Ok(self.field(name, effort)?);
        }
        if !matches!(
            key,
            Value::Bool(_) | Value::Int(_) | Value::Uint(_) | Value::Double(_)
        ) {
            return Err(Trouble::Kind("[…]"));
        }
        let Self::Made(entries) = self else {
            return Ok(None);
        };
        for (candidate, value) in entries.iter() {
            effort.take(1)?;
            if equal(candidate, key, effort)? {
                return Ok(Some(value.clone()));
            }
        }
        Ok(None)
    }

    pub(super) fn keys(&self) -> Vec<Value<'v>> {
        match self {
            Self::Json(members) => members.keys().map(|name| Value::text(name)).collect(),
            Self::Query(parameters) => parameters
                .keys()
                .map(|name| Value::Text(name.clone().into()))
                .collect(),
            Self::Made(entries) => entries.iter().map(|(key, _)| key.clone()).collect(),
        }
    }
}

/// Whether two values are equal. Numbers are by value; values of two types are not.
pub(super) fn equal<'v>(
    left: &Value<'v>,
    right: &Value<'v>,
    effort: &Effort,
) -> Evaluated<'v, bool> {
    equal_at(left, right, effort, 0)
}

fn equal_at<'v>(
    left: &Value<'v>,
    right: &Value<'v>,
    effort: &Effort,
    depth: usize,
) -> Evaluated<'v, bool> {
    effort.take(1)?;
    if depth > MAX_DEPTH {
        return Err(Trouble::Depth);
    }
    match (left, right) {
        (Value::Null, Value::Null) => Ok(true),
        (Value::Bool(left), Value::Bool(right)) => Ok(left == right),
        (Value::Text(left), Value::Text(right)) => {
            if left.len() != right.len() {
                return Ok(false);
            }
            effort.take_text(left.len())?;
            Ok(**left == **right)
        }
        (Value::Time(left), Value::Time(right)) => Ok(left == right),
        (Value::Span(left), Value::Span(right)) => Ok(left == right),
        (Value::List(left), Value::List(right)) => {
            if left.len() != right.len() {
                return Ok(false);
            }
            for (left, right) in left.iter().zip(right.iter()) {
                if !equal_at(&left, &right, effort, depth + 1)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Value::Map(left), Value::Map(right)) => equal_maps(left, right, effort, depth + 1),
        _ => Ok(compare_numbers(left, right) == Some(Some(Ordering::Equal))),
    }
}

fn equal_maps<'v>(
    left: &Map<'v>,
    right: &Map<'v>,
    effort: &Effort,
    depth: usize,
) -> Evaluated<'v, bool> {
    if left.len() != right.len() {
        return Ok(false);
    }
    effort.take(left.len())?;
    for key in left.keys() {
        let (Some(left), Some(right)) = (left.get(&key, effort)?, right.get(&key, effort)?) else {
            return Ok(false);
        };
        if !equal_at(&left, &right, effort, depth)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `None` where one is no number; `Some(None)` where one is not a number in the other sense.
pub(super) fn compare_numbers(left: &Value<'_>, right: &Value<'_>) -> Option<Option<Ordering>> {
    use Value::{Double, Int, Uint};
    Some(match (left, right) {
        (Double(left), Double(right)) => left.partial_cmp(right),
        (Double(left), _) => compare_whole(whole(right)?, *left).map(Ordering::reverse),
        (_, Double(right)) => compare_whole(whole(left)?, *right),
        (Int(_) | Uint(_), Int(_) | Uint(_)) => Some(whole(left)?.cmp(&whole(right)?)),
        _ => return None,
    })
}

fn whole(value: &Value<'_>) -> Option<i128> {
    match value {
        Value::Int(value) => Some(i128::from(*value)),
        Value::Uint(value) => Some(i128::from(*value)),
        _ => None,
    }
}

/// Exact, where a cast to `f64` would take 2^53 and 2^53+1 for equal.
fn compare_whole(left: i128, right: f64) -> Option<Ordering> {
    if right.is_nan() {
        return None;
    }
    // Beyond 2^64 no integer can be; the cast of what is left is exact but for the fraction.
    if right.abs() > 18_446_744_073_709_551_616.0 {
        return Some(if right > 0.0 {
            Ordering::Less
        } else {
            Ordering::Greater
        });
    }
    let floor = right.floor();
    let order = left.cmp(&(floor as i128));
    Some(match order {
        Ordering::Equal if right > floor => Ordering::Less,
        other => other,
    })
}
