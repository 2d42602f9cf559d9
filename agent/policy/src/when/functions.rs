//! The functions a condition may call.
use super::parse::Operator;
use super::tree::EachKind;

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
}

/// What an operator makes of two types; `None` where it takes no such values.
pub(super) fn operated(operator: Operator, left: Type, right: Type) -> Option<Type> {
    use Operator as O;
    use Type as T;
    if left == T::Any || right == T::Any {
        let other = if left == T::Any { right } else { left };
        return match operator {
            O::Equal | O::Unequal => Some(T::Bool),
            O::In => right.may_be(&[T::List, T::Map]).then_some(T::Bool),
            O::Less | O::AtMost | O::Greater | O::AtLeast => is_ordered(other).then_some(T::Bool),
            _ => is_summed(operator, other).then_some(T::Any),
        };
    }
    match operator {
        O::Equal | O::Unequal => {
            (left == right || (left.is_number() && right.is_number())).then_some(T::Bool)
        }
        O::In => right.may_be(&[T::List, T::Map]).then_some(T::Bool),
        O::Less | O::AtMost | O::Greater | O::AtLeast => {
            let alike = left == right || (left.is_number() && right.is_number());
            (alike && is_ordered(left)).then_some(T::Bool)
        }
        _ => sum(operator, left, right),
    }
}

fn is_ordered(kind: Type) -> bool {
    !matches!(kind, Type::Null | Type::List | Type::Map)
}

/// Whether any arithmetic with `operator` takes a value of this type.
fn is_summed(operator: Operator, kind: Type) -> bool {
    match kind {
        Type::Any | Type::Int | Type::Uint => true,
        Type::Double => operator != Operator::Remainder,
        Type::Text | Type::List => operator == Operator::Add,
        Type::Time | Type::Span => matches!(operator, Operator::Add | Operator::Subtract),
        Type::Null | Type::Bool | Type::Map => false,
    }
}

fn sum(operator: Operator, left: Type, right: Type) -> Option<Type> {
    use Operator::{Add, Subtract};
    match (operator, left, right) {
        (Add, Type::Time, Type::Span) | (Add, Type::Span, Type::Time) => Some(Type::Time),
        (Subtract, Type::Time, Type::Span) => Some(Type::Time),
        (Subtract, Type::Time, Type::Time) => Some(Type::Span),
        (Add, Type::Time, Type::Time) => None,
        _ if left == right && is_summed(operator, left) => Some(left),
        _ => None,
    }
}

/// A function of values. Those of a target take it first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    Int,
    Uint,
    Double,
    Text,
    Time,
    Span,
    Part(Part),
}

/// A part of a time, in UTC, or of a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    FullYear,
    Month,
    Date,
    DayOfMonth,
    DayOfWeek,
    DayOfYear,
    Hours,
    Minutes,
    Seconds,
    Milliseconds,
}

/// What a name before `(` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Arguments, the target included, and the type of what comes out.
    Function(Function, &'static [&'static [Type]], Type),
    Matches,
    Has,
    Each(EachKind),
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

const TEXT: &[Type] = &[Type::Text];
const CLOCK: &[Type] = &[Type::Time, Type::Span];
const CONVERTED: &[Type] = &[Type::Int, Type::Uint, Type::Double, Type::Text];

const fn part(name: &'static str, usage: &'static str, part: Part) -> Entry {
    let takes: &[&[Type]] = match part {
        Part::Hours | Part::Minutes | Part::Seconds | Part::Milliseconds => &[CLOCK],
        _ => &[&[Type::Time]],
    };
    Entry {
        name,
        form: Form::Method,
        meaning: Meaning::Function(Function::Part(part), takes, Type::Int),
        usage,
    }
}

const fn text(name: &'static str, usage: &'static str, function: Function) -> Entry {
    Entry {
        name,
        form: Form::Method,
        meaning: Meaning::Function(function, &[TEXT, TEXT], Type::Bool),
        usage,
    }
}

const fn convert(
    name: &'static str,
    usage: &'static str,
    function: Function,
    takes: &'static [&'static [Type]],
    gives: Type,
) -> Entry {
    Entry {
        name,
        form: Form::Plain,
        meaning: Meaning::Function(function, takes, gives),
        usage,
    }
}

const fn each(name: &'static str, usage: &'static str, kind: EachKind) -> Entry {
    Entry {
        name,
        form: Form::Method,
        meaning: Meaning::Each(kind),
        usage,
    }
}

pub(super) const FUNCTIONS: &[Entry] = &[
    Entry {
        name: "has",
        form: Form::Plain,
        meaning: Meaning::Has,
        usage: "has(request.json.field)",
    },
    Entry {
        name: "matches",
        form: Form::Either,
        meaning: Meaning::Matches,
        usage: "text.matches('^pattern$')",
    },
    Entry {
        name: "size",
        form: Form::Either,
        meaning: Meaning::Function(
            Function::Size,
            &[&[Type::Text, Type::List, Type::Map]],
            Type::Int,
        ),
        usage: "size(list)",
    },
    each("all", "list.all(item, condition)", EachKind::All),
    each("exists", "list.exists(item, condition)", EachKind::Exists),
    each(
        "exists_one",
        "list.exists_one(item, condition)",
        EachKind::ExistsOne,
    ),
    each("filter", "list.filter(item, condition)", EachKind::Filter),
    each("map", "list.map(item, value)", EachKind::Map),
    text("contains", "text.contains('part')", Function::Contains),
    text(
        "startsWith",
        "text.startsWith('start')",
        Function::StartsWith,
    ),
    text("endsWith", "text.endsWith('end')", Function::EndsWith),
    convert(
        "int",
        "int(value)",
        Function::Int,
        &[&[Type::Int, Type::Uint, Type::Double, Type::Text, Type::Time]],
        Type::Int,
    ),
    convert(
        "uint",
        "uint(value)",
        Function::Uint,
        &[CONVERTED],
        Type::Uint,
    ),
    convert(
        "double",
        "double(value)",
        Function::Double,
        &[CONVERTED],
        Type::Double,
    ),
    convert(
        "string",
        "string(value)",
        Function::Text,
        &[&[Type::Int, Type::Uint, Type::Bool, Type::Text]],
        Type::Text,
    ),
    convert(
        "timestamp",
        "timestamp('2026-01-31T08:00:00Z')",
        Function::Time,
        &[&[Type::Text, Type::Time]],
        Type::Time,
    ),
    convert(
        "duration",
        "duration('1h30m')",
        Function::Span,
        &[&[Type::Text, Type::Span]],
        Type::Span,
    ),
    part("getFullYear", "now.getFullYear()", Part::FullYear),
    part("getMonth", "now.getMonth(), 0 to 11", Part::Month),
    part("getDate", "now.getDate(), 1 to 31", Part::Date),
    part(
        "getDayOfMonth",
        "now.getDayOfMonth(), 0 to 30",
        Part::DayOfMonth,
    ),
    part(
        "getDayOfWeek",
        "now.getDayOfWeek(), 0 is Sunday",
        Part::DayOfWeek,
    ),
    part(
        "getDayOfYear",
        "now.getDayOfYear(), 0 to 365",
        Part::DayOfYear,
    ),
    part("getHours", "now.getHours(), UTC", Part::Hours),
    part("getMinutes", "now.getMinutes()", Part::Minutes),
    part("getSeconds", "now.getSeconds()", Part::Seconds),
    part(
        "getMilliseconds",
        "now.getMilliseconds()",
        Part::Milliseconds,
    ),
];
