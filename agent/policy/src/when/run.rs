//! Evaluation by the library, metered.
//!
//! The library counts nothing itself. But what can take long in it is little: the loops, and what reads, copies
//! or compares texts, lists and maps. [`check`](super::check) puts a call of [`COST`] around each such operand,
//! which takes from the thread's meter what the operand holds, before the library goes through it; around the
//! range of a loop one that takes, for each element, the size of what the loop evaluates. An empty meter is an
//! error of that call and of all later ones, and of the whole, whatever `||` made of it.
use super::facts::{Boxed, Fact, no_field};
use super::{Facts, When};
use crate::syntax::quote;
use cel::common::ast::IdedExpr;
use cel::common::types::{
    CelBool, CelInt, CelList, CelMap, CelString, DYN_TYPE, INT_TYPE, MAP_TYPE, Type,
};
use cel::common::value::{CowVal, StaticVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env, ExecutionError, Value};
use regex::Regex;
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

/// Steps of one evaluation at most. The worst ones take less than 50 ms; a loop with a comparison goes through
/// some 20 000 elements, an `in` through 100 000.
pub(super) const MAX_STEPS: u64 = 1 << 18;
/// Bytes of text that are read or copied in a step.
const STEP_BYTES: usize = 64;
/// Steps for a byte that a pattern reads, for each KiB of its program; and the bytes that looking costs already.
const PATTERN_STEPS: u64 = 4;
const PATTERN_LOOK: u64 = 16;

/// `@cost(value, weight)`: the value. No text can name what starts with `@`.
pub(super) const COST: &str = "@cost";
/// As [`COST`], and refuses maps, which have no order.
pub(super) const ORDERED: &str = "@ordered";
/// `@matches(text, pattern)`.
pub(super) const MATCHES: &str = "@matches";
const UNORDERED: &str = "a map has no order";

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(0) };
}

/// The steps that are left to the evaluation on this thread.
pub(super) struct Meter;

impl Meter {
    fn start() -> Self {
        LEFT.set(MAX_STEPS);
        Self
    }

    /// Takes steps. Once it failed it goes on failing.
    pub(super) fn take(&self, steps: u64) -> bool {
        let left = LEFT.get().saturating_sub(steps);
        LEFT.set(left);
        left > 0
    }

    pub(super) fn exhaust(&self) {
        LEFT.set(0);
    }

    /// Takes what a value holds.
    fn take_value(&self, value: &dyn Val) -> bool {
        if let Some(text) = value.downcast_ref::<CelString<'_>>() {
            return self.take_text(text.inner());
        }
        if let Some(list) = value.downcast_ref::<CelList<'_>>() {
            return self.take(1) && list.inner().iter().all(|item| self.take_value(&**item));
        }
        if let Some(map) = value.downcast_ref::<CelMap<'_>>() {
            return self.take(1)
                && map.inner().iter().all(|(key, value)| {
                    // A map is looked into by hashes, and made of two allocations a member.
                    let key = match key {
                        cel::common::types::CelMapKey::String(text) => text.inner().len(),
                        _ => 0,
                    };
                    self.take(2 + steps(key)) && self.take_value(&**value)
                });
        }
        self.take(1)
    }

    fn take_text(&self, text: &str) -> bool {
        self.take(1 + steps(text.len()))
    }
}

fn steps(bytes: usize) -> u64 {
    u64::try_from(bytes / STEP_BYTES).unwrap_or(u64::MAX)
}

/// CEL's library, and ours. Of the first a condition reaches what [`super::functions`] lists.
static LIBRARY: LazyLock<Option<Arc<Env>>> = LazyLock::new(|| {
    let mut env = Env::default().with_optional_support(false).with_stdlib();
    let dynamic = || vec![DYN_TYPE, INT_TYPE];
    env.add_overload(COST, COST, dynamic(), |args| cost(args, false))
        .ok()?;
    env.add_overload(ORDERED, ORDERED, dynamic(), |args| cost(args, true))
        .ok()?;
    env.add_overload(MATCHES, MATCHES, vec![DYN_TYPE, DYN_TYPE], matches)
        .ok()?;
    Some(Arc::new(env))
});

fn cost<'b, 'v>(
    mut args: Vec<CowVal<'b, 'v>>,
    ordered: bool,
) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let weight = args.pop();
    let (Some(value), Some(weight)) = (args.pop(), weight) else {
        return Err(ExecutionError::MissingArgumentOrTarget);
    };
    let weight = weight
        .downcast_ref::<CelInt>()
        .map_or(0, |weight| *weight.inner());
    let weight = u64::try_from(weight).unwrap_or(u64::MAX);
    if ordered && value.get_type() == &MAP_TYPE {
        return Err(ExecutionError::InternalError(UNORDERED.to_owned()));
    }
    let length = match weight {
        0 => 0,
        _ => value.as_sizer().map_or(0, |sizer| *sizer.size().inner()),
    };
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    if Meter.take(length.saturating_mul(weight)) && Meter.take_value(&*value) {
        Ok(value)
    } else {
        Err(exhausted())
    }
}

fn matches<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [text, pattern] = args.as_slice() else {
        return Err(ExecutionError::MissingArgumentOrTarget);
    };
    let kind = || {
        let found = text.get_type().name().to_owned();
        ExecutionError::no_such_overload("matches", vec![found])
    };
    let text = text
        .downcast_ref::<CelString<'_>>()
        .ok_or_else(kind)?
        .inner();
    let pattern = pattern.downcast_ref::<Pattern>().ok_or_else(kind)?;
    let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
    if !Meter.take(
        bytes
            .saturating_add(PATTERN_LOOK)
            .saturating_mul(pattern.steps),
    ) {
        return Err(exhausted());
    }
    Ok(CowVal::owned(CelBool::from(pattern.regex.is_match(text))))
}

fn exhausted() -> ExecutionError {
    ExecutionError::InternalError(String::new())
}

/// A compiled pattern, where the library would compile it for each text.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    regex: Arc<Regex>,
    /// For a byte.
    steps: u64,
}

impl Pattern {
    /// `size` is that of its program, in KiB.
    pub(super) fn new(regex: Regex, size: u32) -> Self {
        Self {
            regex: Arc::new(regex),
            steps: u64::from(size) * PATTERN_STEPS,
        }
    }
}

static PATTERN: Type = Type::new_unspecified_type("@pattern");

impl Val for Pattern {
    fn get_type(&self) -> &Type {
        &PATTERN
    }

    fn cel_type() -> &'static Type {
        &PATTERN
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v> {
        Box::new(self.clone())
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl StaticVal for Pattern {}

/// What a name that starts with `@` stands for.
#[derive(Debug)]
pub(super) enum Slot {
    Fact(Fact),
    /// A pattern, a time or a duration.
    Constant(Boxed<'static>),
}

impl Slot {
    /// The header that it looks at.
    pub(super) fn header(&self) -> Option<&str> {
        match self {
            Self::Fact(Fact::Header(name) | Fact::HasHeader(name)) => Some(name),
            Self::Fact(_) | Self::Constant(_) => None,
        }
    }

    fn value<'v>(&'v self, facts: &Facts<'v>, meter: &Meter) -> Result<CowVal<'v, 'v>, String> {
        match self {
            Self::Fact(fact) => fact.value(facts, meter).map(CowVal::Owned),
            Self::Constant(value) => Ok(CowVal::Borrowed(&**value)),
        }
    }
}

/// The values of the slots.
struct Values<'v>(Vec<Result<CowVal<'v, 'v>, String>>);

impl VariableResolver for Values<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        match self.0.get(number(name)?)? {
            Ok(CowVal::Borrowed(value)) => Some(CowVal::Borrowed(*value)),
            Ok(CowVal::Owned(value)) => Some(CowVal::Borrowed(&**value)),
            Err(_) => None,
        }
    }
}

fn number(name: &str) -> Option<usize> {
    name.strip_prefix('@')?.parse().ok()
}

/// The value of an expression that names nothing.
pub(super) fn constant(expr: &IdedExpr) -> Option<Boxed<'static>> {
    let context = Context::with_env(Arc::clone(LIBRARY.as_ref()?));
    let value = Value::resolve_val(expr, &context).ok()?;
    Some(value.into_owned())
}

/// Unix seconds as a time.
pub(super) fn time<'v>(seconds: i64) -> Option<Boxed<'v>> {
    let seconds = vec![CowVal::owned(CelInt::from(seconds))];
    let made = LIBRARY.as_ref()?.find_overload("timestamp", &seconds)?;
    Some(made(seconds).ok()?.into_owned())
}

pub(super) fn holds(when: &When, facts: &Facts<'_>) -> Result<bool, String> {
    let run = AssertUnwindSafe(|| evaluate(when, facts));
    catch_unwind(run).unwrap_or_else(|_| Err("it cannot be evaluated".to_owned()))
}

fn evaluate(when: &When, facts: &Facts<'_>) -> Result<bool, String> {
    let library = LIBRARY.as_ref().ok_or("it cannot be evaluated")?;
    let meter = Meter::start();
    let slots = when.slots.iter();
    let values = Values(slots.map(|slot| slot.value(facts, &meter)).collect());
    let mut context = Context::with_env(Arc::clone(library));
    context.set_variable_resolver(&values);
    let found = Value::resolve_val(&when.root, &context);
    if LEFT.get() == 0 {
        return Err("it takes too much work on this request".to_owned());
    }
    match found {
        Ok(value) => match value.downcast_ref::<CelBool>() {
            Some(held) => Ok(*held.inner()),
            None => Err(NOT_BOOL.to_owned()),
        },
        Err(error) => Err(said(&error, when, &values)),
    }
}

const NOT_BOOL: &str = "a value stands where true or false is needed";

/// An error without the values that the library puts into it.
fn said(error: &ExecutionError, when: &When, values: &Values<'_>) -> String {
    use ExecutionError as E;
    match error {
        E::UndeclaredReference(name) => {
            let slot = number(name).and_then(|number| values.0.get(number));
            match slot {
                Some(Err(why)) => why.clone(),
                _ => "a part of the request is not known".to_owned(),
            }
        }
        // Only a name that stands in the condition is no value.
        E::NoSuchKey(name) if is_written(&when.text, name) => no_field(name),
        E::NoSuchKey(_) => "a map lacks the key that is looked up".to_owned(),
        E::IndexOutOfBounds(_) => "a list is shorter than the index".to_owned(),
        E::UnexpectedType { want, .. } if want == "bool" => NOT_BOOL.to_owned(),
        E::NoSuchOverload(overload) => match overload.function() {
            "_&&_" | "_||_" | "!_" => NOT_BOOL.to_owned(),
            function => format!(
                "{} met a value of a type it does not take",
                operator(function)
            ),
        },
        E::DivisionByZero(_) | E::RemainderByZero(_) => "a number is divided by zero".to_owned(),
        E::Overflow(..) => "the result of an operator is too large".to_owned(),
        E::FunctionError { function, .. } => {
            format!("{} cannot convert the value", operator(function))
        }
        E::DuplicateKey(_) => "a map has one key twice".to_owned(),
        E::InternalError(why) if why == UNORDERED => {
            "`map` and `filter` go through lists, not maps".to_owned()
        }
        _ => "an operator met a value of a type it does not take".to_owned(),
    }
}

fn is_written(text: &str, name: &str) -> bool {
    let forms = [
        format!(".{name}"),
        format!("'{name}'"),
        format!("\"{name}\""),
    ];
    forms.iter().any(|form| text.contains(form.as_str()))
}

/// `_+_` as `+`.
fn operator(name: &str) -> String {
    let bare = name.trim_matches(['_', '@']);
    quote(if bare.is_empty() { name } else { bare }).to_string()
}
