//! From the tree as written to the one that is evaluated: every name, function and pattern is known, every loop
//! bounded, and what can take long is metered (see [`super::run`]). Goes on after a fault.
use super::functions::{Type, operated};
use super::run::{COST, Slot};
use super::{Known, Needs, Span, WhenFault, make};
use crate::syntax::{nearest, quote};
use cel::common::ast::operators as op;
use cel::common::ast::{
    CallExpr, EntryExpr, Expr, IdedEntryExpr, IdedExpr, ListExpr, LiteralValue, MapEntryExpr,
    MapExpr, SourceInfo,
};

mod calls;
mod names;
mod span;

/// Levels of the tree at most. Evaluation recurses.
const MAX_DEPTH: usize = 32;
/// Faults reported at most.
const MAX_FAULTS: usize = 20;

/// What a condition is made of.
pub(super) struct Checked {
    pub(super) root: IdedExpr,
    pub(super) slots: Vec<Slot>,
    pub(super) needs: Needs,
}

pub(super) fn check(
    root: &IdedExpr,
    source: &SourceInfo,
    text: &str,
    known: &Known<'_>,
) -> Result<Checked, Vec<WhenFault>> {
    let mut checker = Checker {
        known: *known,
        source,
        text,
        faults: Vec::new(),
        locals: Vec::new(),
        slots: Vec::new(),
        needs: Needs::default(),
        nodes: 0,
        depth: 0,
        named: false,
    };
    let (expr, kind) = checker.check(root);
    if !kind.may_be(&[Type::Bool]) {
        checker
            .fault(
                root,
                format!("a condition is true or false, and this is {}", kind.name()),
            )
            .help("compare it with something, e.g. `request.method == 'GET'`");
    } else if !checker.named && checker.faults.is_empty() {
        checker
            .fault(
                root,
                "the condition says nothing about the request: it always comes to the same",
            )
            .help("leave `when` out, or name what it depends on, e.g. `request.host`");
    }
    if checker.faults.is_empty() {
        return Ok(Checked {
            root: expr,
            slots: checker.slots,
            needs: checker.needs,
        });
    }
    checker.faults.sort_by_key(|fault| fault.at);
    checker.faults.truncate(MAX_FAULTS);
    Err(checker.faults)
}

type Typed = (IdedExpr, Type);

/// Stands for what was faulted, so that the rest can be checked.
fn faulted() -> Typed {
    (make::literal(LiteralValue::Null), Type::Any)
}

struct Checker<'k> {
    known: Known<'k>,
    source: &'k SourceInfo,
    text: &'k str,
    faults: Vec<WhenFault>,
    /// Variables of the comprehensions around, from the outermost.
    locals: Vec<String>,
    slots: Vec<Slot>,
    needs: Needs,
    /// Nodes checked so far.
    nodes: i64,
    depth: usize,
    /// Whether anything of the request was named.
    named: bool,
}

/// A fault just made, to add help to.
struct Remark<'f>(Option<&'f mut WhenFault>);

impl Remark<'_> {
    fn help(self, help: impl Into<String>) {
        if let Some(fault) = self.0 {
            fault.help = Some(help.into());
        }
    }
}

impl Checker<'_> {
    // Faults.

    fn fault(&mut self, node: &IdedExpr, message: impl Into<String>) -> Remark<'_> {
        self.fault_at(self.span(node), message)
    }

    fn fault_at(&mut self, span: Span, message: impl Into<String>) -> Remark<'_> {
        // The library counts bytes; this holds whatever it counts.
        let start = self.text.floor_char_boundary(span.start);
        let end = self.text.ceil_char_boundary(span.end.max(start));
        self.faults
            .push(WhenFault::new(Span::new(start, end), message));
        Remark(self.faults.last_mut())
    }

    /// An unknown word, with the nearest of those that are known.
    fn unknown<'w>(
        &mut self,
        span: Span,
        word: &str,
        what: &str,
        known: impl Iterator<Item = &'w str> + Clone,
    ) {
        let mut names: Vec<_> = known.clone().map(|name| format!("`{name}`")).collect();
        names.sort_unstable();
        let list = match names.len() {
            0 => "there is none".to_owned(),
            _ => format!("known: {}", names.join(", ")),
        };
        let near = nearest(word, known).map(|near| format!("did you mean `{near}`? "));
        let message = format!("unknown {what} {}", quote(word));
        self.fault_at(span, message)
            .help(near.unwrap_or_default() + &list);
    }

    // Expressions.

    fn check(&mut self, node: &IdedExpr) -> Typed {
        self.nodes += 1;
        if self.depth >= MAX_DEPTH {
            let message = format!("the condition is nested more than {MAX_DEPTH} deep");
            if self.faults.iter().all(|fault| fault.message != message) {
                self.fault_at(self.sign(node), message);
            }
            return faulted();
        }
        self.depth += 1;
        let checked = match &node.expr {
            Expr::Literal(literal) => self.literal(node, literal),
            Expr::Ident(name) => self.name(node, name),
            Expr::Select(select) => self.select(node, select),
            Expr::Call(call) => self.call(node, call),
            Expr::List(list) => {
                let items = list.elements.iter().map(|item| self.kept(item)).collect();
                (make::node(Expr::List(ListExpr::new(items))), Type::List)
            }
            Expr::Map(map) => self.map(map),
            Expr::Struct(_) => {
                self.fault_at(self.sign(node), "messages are not part of conditions");
                faulted()
            }
            Expr::Comprehension(_) | Expr::Unspecified => {
                self.fault_at(self.sign(node), "the condition cannot be read here");
                faulted()
            }
        };
        self.depth -= 1;
        checked
    }

    fn literal(&mut self, node: &IdedExpr, literal: &LiteralValue) -> Typed {
        let kind = match literal {
            LiteralValue::Null => Type::Null,
            LiteralValue::Boolean(_) => Type::Bool,
            LiteralValue::Int(_) => Type::Int,
            LiteralValue::UInt(_) => Type::Uint,
            LiteralValue::Double(_) => Type::Double,
            LiteralValue::String(_) => Type::Text,
            LiteralValue::Bytes(_) => {
                self.fault(node, "bytes are not part of conditions")
                    .help("write a string");
                return faulted();
            }
        };
        (make::literal(literal.clone()), kind)
    }

    /// What is copied into a list or map.
    fn kept(&mut self, node: &IdedExpr) -> IdedExpr {
        let (expr, kind) = self.check(node);
        charged(expr, kind, 2)
    }

    /// An operand that must be one of `wanted`.
    fn operand(&mut self, node: &IdedExpr, wanted: &[Type], taker: &str) -> Typed {
        let (expr, kind) = self.check(node);
        if !kind.may_be(wanted) {
            let names: Vec<_> = wanted.iter().map(|kind| kind.name()).collect();
            let message = format!(
                "{taker} takes {}, and this is {}",
                names.join(" or "),
                kind.name()
            );
            self.fault(node, message);
        }
        (expr, kind)
    }

    fn condition(&mut self, node: &IdedExpr, taker: &str) -> IdedExpr {
        self.operand(node, &[Type::Bool], taker).0
    }

    fn map(&mut self, map: &MapExpr) -> Typed {
        const KEYS: [Type; 4] = [Type::Text, Type::Int, Type::Uint, Type::Bool];
        let mut entries = Vec::with_capacity(map.entries.len());
        for entry in map.entries.iter().filter_map(member) {
            let (key, kind) = self.operand(&entry.key, &KEYS, "a map's key");
            let entry = MapEntryExpr {
                key: metered(key, kind),
                value: self.kept(&entry.value),
                optional: false,
            };
            entries.push(IdedEntryExpr {
                id: 0,
                expr: EntryExpr::MapEntry(entry),
            });
        }
        (make::node(Expr::Map(MapExpr { entries })), Type::Map)
    }

    /// An operator or a function.
    fn call(&mut self, node: &IdedExpr, call: &CallExpr) -> Typed {
        match (call.func_name.as_str(), call.args.as_slice()) {
            (op::LOGICAL_NOT, [operand]) => {
                let operand = self.condition(operand, "`!`");
                (make::call(op::LOGICAL_NOT, vec![operand]), Type::Bool)
            }
            (op::NEGATE, [operand]) => {
                let (expr, kind) = self.operand(operand, &[Type::Int, Type::Double], "`-`");
                (make::call(op::NEGATE, vec![expr]), kind)
            }
            (name @ (op::LOGICAL_AND | op::LOGICAL_OR), [left, right]) => {
                let taker = if name == op::LOGICAL_AND {
                    "`&&`"
                } else {
                    "`||`"
                };
                let sides = [left, right].map(|side| self.condition(side, taker));
                (make::call(name, sides.into()), Type::Bool)
            }
            (op::CONDITIONAL, [condition, yes, no]) => {
                let condition = self.condition(condition, "`?`");
                let ((yes, yes_type), (no, no_type)) = (self.check(yes), self.check(no));
                let kind = if yes_type == no_type {
                    yes_type
                } else {
                    Type::Any
                };
                (make::call(op::CONDITIONAL, vec![condition, yes, no]), kind)
            }
            (op::INDEX, [of, index]) => self.index(node, of, index),
            (name, [left, right]) if sign(name).is_some() && call.target.is_none() => {
                self.binary(node, name, left, right)
            }
            _ => self.function(node, call),
        }
    }

    fn binary(&mut self, node: &IdedExpr, name: &str, left: &IdedExpr, right: &IdedExpr) -> Typed {
        if name == op::IN && self.is_headers(right) {
            return self.has_header(left);
        }
        let (left, left_type) = self.check(left);
        let (right, right_type) = self.check(right);
        let kind = operated(name, left_type, right_type);
        if kind.is_none() {
            let (left, right) = (left_type.name(), right_type.name());
            let message = match name {
                op::EQUALS | op::NOT_EQUALS => format!("{left} and {right} are never equal"),
                op::IN => format!("`in` looks into a list or a map, and this is {right}"),
                _ => format!(
                    "`{}` does not take {left} and {right}",
                    sign(name).unwrap_or(name)
                ),
            };
            self.fault(node, message).help(match name {
                op::IN => "part of a string is found with `text.contains('part')`",
                _ => "both sides are of one type; int(), uint(), double() and string() convert",
            });
        }
        // Of two values that are compared, no more is read than the smaller one has.
        let equality = matches!(name, op::EQUALS | op::NOT_EQUALS);
        let small =
            |expr: &IdedExpr, kind: Type| kind.is_small() || matches!(expr.expr, Expr::Literal(_));
        let sides = match equality && (small(&left, left_type) || small(&right, right_type)) {
            true => vec![left, right],
            false => vec![metered(left, left_type), metered(right, right_type)],
        };
        (make::call(name, sides), kind.unwrap_or(Type::Any))
    }
}

/// `expr`, its size taken from the meter where it may be large.
fn metered(expr: IdedExpr, kind: Type) -> IdedExpr {
    charged(expr, kind, 0)
}

/// As [`metered`], and so many steps more for each element.
fn charged(expr: IdedExpr, kind: Type, weight: i64) -> IdedExpr {
    match &expr.expr {
        Expr::Literal(_) => expr,
        _ if kind.is_small() => expr,
        _ => make::call(COST, vec![expr, make::int(weight)]),
    }
}

fn member(entry: &IdedEntryExpr) -> Option<&MapEntryExpr> {
    match &entry.expr {
        EntryExpr::MapEntry(entry) => Some(entry),
        EntryExpr::StructField(_) => None,
    }
}

fn literal_text(node: &IdedExpr) -> Option<&str> {
    match &node.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// How an operator of two operands is written.
fn sign(name: &str) -> Option<&str> {
    Some(match name {
        op::IN => "in",
        op::EQUALS
        | op::NOT_EQUALS
        | op::LESS
        | op::LESS_EQUALS
        | op::GREATER
        | op::GREATER_EQUALS
        | op::ADD
        | op::SUBSTRACT
        | op::MULTIPLY
        | op::DIVIDE
        | op::MODULO => name.trim_matches('_'),
        _ => return None,
    })
}
