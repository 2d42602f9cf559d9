//! Trees of the library. The loops are what its own macros make of them.
use super::functions::Loop;
use cel::common::ast::operators as op;
use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, ListExpr, LiteralValue};

/// What a loop has come to so far; no text can name it.
const RESULT: &str = "@result";

pub(super) fn node(expr: Expr) -> IdedExpr {
    IdedExpr { id: 0, expr }
}

pub(super) fn literal(value: LiteralValue) -> IdedExpr {
    node(Expr::Literal(value))
}

pub(super) fn int(value: i64) -> IdedExpr {
    literal(LiteralValue::Int(value.into()))
}

fn truth(value: bool) -> IdedExpr {
    literal(LiteralValue::Boolean(value.into()))
}

pub(super) fn ident(name: &str) -> IdedExpr {
    node(Expr::Ident(name.to_owned()))
}

pub(super) fn call(name: &str, args: Vec<IdedExpr>) -> IdedExpr {
    called(name, None, args)
}

pub(super) fn called(name: &str, target: Option<IdedExpr>, args: Vec<IdedExpr>) -> IdedExpr {
    node(Expr::Call(CallExpr {
        func_name: name.to_owned(),
        target: target.map(Box::new),
        args,
    }))
}

fn list(items: Vec<IdedExpr>) -> IdedExpr {
    node(Expr::List(ListExpr::new(items)))
}

/// A loop over `range`; `filter` is that of a `map`.
pub(super) fn each(
    kind: Loop,
    range: IdedExpr,
    variable: &str,
    filter: Option<IdedExpr>,
    body: IdedExpr,
) -> IdedExpr {
    let result = || ident(RESULT);
    let go_on = |held| call(op::NOT_STRICTLY_FALSE, vec![held]);
    let append = |item| call(op::ADD, vec![result(), list(vec![item])]);
    let choose = |condition, yes| call(op::CONDITIONAL, vec![condition, yes, result()]);
    let (init, condition, step) = match kind {
        Loop::All => (
            truth(true),
            go_on(result()),
            call(op::LOGICAL_AND, vec![result(), body]),
        ),
        Loop::Exists => (
            truth(false),
            go_on(call(op::LOGICAL_NOT, vec![result()])),
            call(op::LOGICAL_OR, vec![result(), body]),
        ),
        Loop::ExistsOne => {
            let one_more = call(op::ADD, vec![result(), int(1)]);
            (int(0), truth(true), choose(body, one_more))
        }
        Loop::Filter => (
            list(Vec::new()),
            truth(true),
            choose(body, append(ident(variable))),
        ),
        Loop::Map => {
            let step = append(body);
            let step = match filter {
                Some(filter) => choose(filter, step),
                None => step,
            };
            (list(Vec::new()), truth(true), step)
        }
    };
    let end = match kind {
        Loop::ExistsOne => call(op::EQUALS, vec![result(), int(1)]),
        _ => result(),
    };
    node(Expr::Comprehension(Box::new(ComprehensionExpr {
        iter_range: range,
        iter_var: variable.to_owned(),
        iter_var2: None,
        accu_var: RESULT.to_owned(),
        accu_init: init,
        loop_cond: condition,
        loop_step: step,
        result: end,
    })))
}
