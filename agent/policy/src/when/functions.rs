//! The functions a condition may call, and what is known of types before there are values.
use cel::common::ast::operators as op;

/// What is known of a value's type before there is a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Null,
    Bool,
    Int,
    Uint,
    Double,
    Text,
    List,
    Map,
    Time,
    Span,
    /// Not known.
    Any,
}

impl Type {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "true or false",
            Self::Int => "an integer",
            Self::Uint => "an unsigned integer",
            Self::Double => "a number with a fraction",
            Self::Text => "a string",
            Self::List => "a list",
            Self::Map => "a map",
            Self::Time => "a timestamp",
            Self::Span => "a duration",
            Self::Any => "anything",
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Self::Int | Self::Uint | Self::Double)
    }

    /// Whether a value of this type could be one of `wanted`.
    pub(super) fn may_be(self, wanted: &[Self]) -> bool {
        self == Self::Any || wanted.contains(&self)
    }

    /// Whether values of this type are all as small as a number.
    pub(super) fn is_small(self) -> bool {
        !matches!(self, Self::Text | Self::List | Self::Map | Self::Any)
    }
}

/// What an operator makes of two types; `None` where it takes no such values.
pub(super) fn operated(operator: &str, left: Type, right: Type) -> Option<Type> {
    let compared = |kind: Type| !matches!(kind, Type::Null | Type::List | Type::Map);
    let known = left != Type::Any && right != Type::Any;
    let alike = !known || left == right || (left.is_number() && right.is_number());
    match operator {
        op::EQUALS | op::NOT_EQUALS => alike.then_some(Type::Bool),
        op::IN => right.may_be(&[Type::List, Type::Map]).then_some(Type::Bool),
        op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS => {
            (alike && compared(left) && compared(right)).then_some(Type::Bool)
        }
        _ if known => sum(operator, left, right),
        _ => (summed(operator, left) && summed(operator, right)).then_some(Type::Any),
    }
}

/// Whether any arithmetic with `operator` takes a value of this type.
fn summed(operator: &str, kind: Type) -> bool {
    match kind {
        Type::Any | Type::Int | Type::Uint => true,
        Type::Double => operator != op::MODULO,
        Type::Text | Type::List => operator == op::ADD,
        Type::Time | Type::Span => matches!(operator, op::ADD | op::SUBSTRACT),
        Type::Null | Type::Bool | Type::Map => false,
    }
}

fn sum(operator: &str, left: Type, right: Type) -> Option<Type> {
    match (operator, left, right) {
        (op::ADD, Type::Time, Type::Span) | (op::ADD, Type::Span, Type::Time) => Some(Type::Time),
        (op::SUBSTRACT, Type::Time, Type::Span) => Some(Type::Time),
        (op::SUBSTRACT, Type::Time, Type::Time) => Some(Type::Span),
        (op::ADD, Type::Time, Type::Time) => None,
        _ if left == right && summed(operator, left) => Some(left),
        _ => None,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loop {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}

/// What a name before `(` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Of CEL's library: arguments, the target included, and the type of what comes out.
    Function(&'static [&'static [Type]], Type),
    /// `timestamp` and `duration`.
    Moment(Type),
    /// A part of a time or duration.
    Part(&'static [Type]),
    Matches,
    Has,
    Each(Loop),
}

/// Whether a function stands behind its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Method,
    Plain,
    Either,
}

/// A function as one looks it up.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) form: Form,
    pub(super) meaning: Meaning,
    /// How it is written.
    pub(super) usage: &'static str,
}

const fn entry(name: &'static str, usage: &'static str, form: Form, meaning: Meaning) -> Entry {
    Entry {
        name,
        form,
        meaning,
        usage,
    }
}

const TEXTS: Meaning = Meaning::Function(&[&[Type::Text], &[Type::Text]], Type::Bool);
const SIZE: Meaning = Meaning::Function(&[&[Type::Text, Type::List, Type::Map]], Type::Int);
const INT: Meaning = Meaning::Function(
    &[&[Type::Int, Type::Uint, Type::Double, Type::Text, Type::Time]],
    Type::Int,
);
const NUMBERS: &[&[Type]] = &[&[Type::Int, Type::Uint, Type::Double, Type::Text]];
const UINT: Meaning = Meaning::Function(NUMBERS, Type::Uint);
const DOUBLE: Meaning = Meaning::Function(NUMBERS, Type::Double);
const STRING: Meaning = Meaning::Function(
    &[&[Type::Int, Type::Uint, Type::Bool, Type::Text]],
    Type::Text,
);
const DATE: Meaning = Meaning::Part(&[Type::Time]);
const CLOCK: Meaning = Meaning::Part(&[Type::Time, Type::Span]);

#[rustfmt::skip]
pub(super) const FUNCTIONS: &[Entry] = &[
    entry("has", "has(request.json.field)", Form::Plain, Meaning::Has),
    entry("matches", "text.matches('^pattern$')", Form::Either, Meaning::Matches),
    entry("size", "size(list)", Form::Either, SIZE),
    entry("all", "list.all(item, condition)", Form::Method, Meaning::Each(Loop::All)),
    entry("exists", "list.exists(item, condition)", Form::Method, Meaning::Each(Loop::Exists)),
    entry("exists_one", "list.exists_one(item, condition)", Form::Method, Meaning::Each(Loop::ExistsOne)),
    entry("filter", "list.filter(item, condition)", Form::Method, Meaning::Each(Loop::Filter)),
    entry("map", "list.map(item, value)", Form::Method, Meaning::Each(Loop::Map)),
    entry("contains", "text.contains('part')", Form::Method, TEXTS),
    entry("startsWith", "text.startsWith('start')", Form::Method, TEXTS),
    entry("endsWith", "text.endsWith('end')", Form::Method, TEXTS),
    entry("int", "int(value)", Form::Plain, INT),
    entry("uint", "uint(value)", Form::Plain, UINT),
    entry("double", "double(value)", Form::Plain, DOUBLE),
    entry("string", "string(value)", Form::Plain, STRING),
    entry("timestamp", "timestamp('2026-01-31T08:00:00Z')", Form::Plain, Meaning::Moment(Type::Time)),
    entry("duration", "duration('1h30m')", Form::Plain, Meaning::Moment(Type::Span)),
    entry("getFullYear", "now.getFullYear()", Form::Method, DATE),
    entry("getMonth", "now.getMonth(), 0 to 11", Form::Method, DATE),
    entry("getDate", "now.getDate(), 1 to 31", Form::Method, DATE),
    entry("getDayOfMonth", "now.getDayOfMonth(), 0 to 30", Form::Method, DATE),
    entry("getDayOfWeek", "now.getDayOfWeek(), 0 is Sunday", Form::Method, DATE),
    entry("getDayOfYear", "now.getDayOfYear(), 0 to 365", Form::Method, DATE),
    entry("getHours", "now.getHours(), UTC", Form::Method, CLOCK),
    entry("getMinutes", "now.getMinutes()", Form::Method, CLOCK),
    entry("getSeconds", "now.getSeconds()", Form::Method, CLOCK),
    entry("getMilliseconds", "now.getMilliseconds()", Form::Method, CLOCK),
];
