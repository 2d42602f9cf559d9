//! Where a part of a condition stands. The library knows the sign of each node; the rest is around it.
use super::{Checker, member};
use crate::when::Span;
use cel::common::ast::operators as op;
use cel::common::ast::{Expr, IdedExpr};

impl Checker<'_> {
    /// The sign that a node was made of.
    pub(super) fn sign(&self, node: &IdedExpr) -> Span {
        let (start, last) = self.source.offset_for(node.id).unwrap_or_default();
        let whole = |offset: u32| usize::try_from(offset).unwrap_or(usize::MAX);
        Span::new(whole(start), whole(last).saturating_add(1))
    }

    /// All that a node was made of. Its sign is known, and what it consists of.
    pub(super) fn span(&self, node: &IdedExpr) -> Span {
        let sign = self.sign(node);
        let over = |parts: &[&IdedExpr]| {
            let parts = parts.iter().map(|part| self.span(part));
            parts.fold(sign, Span::over)
        };
        match &node.expr {
            Expr::Select(select) => {
                over(&[&select.operand]).over(self.field_span(node, &select.field))
            }
            Expr::Call(call) => {
                let mut parts: Vec<_> = call.args.iter().collect();
                parts.extend(call.target.as_deref());
                let all = over(&parts);
                if self.text.get(sign.start..sign.end) == Some("(") {
                    self.closed(all.over(self.name_span(node, &call.func_name)), ')')
                } else if call.func_name == op::INDEX {
                    self.closed(all, ']')
                } else {
                    all
                }
            }
            Expr::List(list) => self.closed(over(&list.elements.iter().collect::<Vec<_>>()), ']'),
            Expr::Map(map) => {
                let parts = map.entries.iter().filter_map(member);
                let parts: Vec<_> = parts
                    .flat_map(|member| [&member.key, &member.value])
                    .collect();
                self.closed(over(&parts), '}')
            }
            _ => sign,
        }
    }

    /// With the bracket that comes next.
    pub(super) fn closed(&self, span: Span, bracket: char) -> Span {
        let rest = self.text.get(span.end..).unwrap_or_default();
        let after = rest.trim_start_matches([' ', '\t', '\n', ',']);
        match after.starts_with(bracket) {
            true => Span::new(span.start, span.end + (rest.len() - after.len()) + 1),
            false => span,
        }
    }

    /// The field of a selection, behind its dot.
    pub(super) fn field_span(&self, node: &IdedExpr, field: &str) -> Span {
        let dot = self.sign(node);
        let rest = self.text.get(dot.end..).unwrap_or_default();
        let start = dot.end + (rest.len() - rest.trim_start().len());
        Span::new(start, start + field.len())
    }

    /// The name of a function, before its bracket.
    pub(super) fn name_span(&self, node: &IdedExpr, name: &str) -> Span {
        let bracket = self.sign(node);
        let before = self.text.get(..bracket.start).unwrap_or_default();
        let end = before.trim_end().len();
        Span::new(end.saturating_sub(name.len()), end)
    }
}
