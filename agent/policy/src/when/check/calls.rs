//! Functions of a condition, and its loops.
use super::names::ROOTS;
use super::{Checker, Typed, faulted, literal_text, make, metered};
use crate::shape::search_pattern;
use crate::syntax::quote;
use crate::when::facts::Fact;
use crate::when::functions::{Entry, FUNCTIONS, Form, Loop, Meaning, Type};
use crate::when::run::{COST, MATCHES, ORDERED, Pattern, constant};
use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, SelectExpr};

/// Comprehensions within each other at most.
const MAX_LOOPS: usize = 2;

impl Checker<'_> {
    pub(super) fn function(&mut self, node: &IdedExpr, call: &CallExpr) -> Typed {
        let name = call.func_name.as_str();
        let Some(entry) = FUNCTIONS.iter().find(|entry| entry.name == name) else {
            let span = self.name_span(node, name);
            self.unknown(
                span,
                name,
                "function",
                FUNCTIONS.iter().map(|entry| entry.name),
            );
            return faulted();
        };
        let target = call.target.as_deref();
        let arguments: Vec<&IdedExpr> = target.into_iter().chain(&call.args).collect();
        let formed = match entry.form {
            Form::Method => target.is_some(),
            Form::Plain => target.is_none(),
            Form::Either => true,
        };
        let checked = match (formed, entry.meaning, arguments.as_slice()) {
            (true, Meaning::Function(takes, gives), found) if found.len() == takes.len() => {
                let mut parts = self.arguments(entry, found, takes);
                // The library has what stands behind a target there only.
                let target = (entry.form == Form::Method).then(|| parts.remove(0));
                Some((make::called(name, target, parts), gives))
            }
            (true, Meaning::Moment(kind), [argument]) => Some(self.moment(entry, kind, argument)),
            (true, Meaning::Part(takes), [of]) => Some(self.part(entry, takes, of)),
            (true, Meaning::Matches, [text, pattern]) => Some(self.matches(text, pattern)),
            (true, Meaning::Has, [field]) => Some(self.has(field)),
            (true, Meaning::Each(kind), [range, variable, body]) => {
                Some(self.each(kind, range, variable, None, body))
            }
            (true, Meaning::Each(Loop::Map), [range, variable, filter, body]) => {
                Some(self.each(Loop::Map, range, variable, Some(filter), body))
            }
            _ => None,
        };
        checked.unwrap_or_else(|| {
            self.fault(node, format!("`{}` is not called like this", entry.name))
                .help(format!("e.g. `{}`", entry.usage));
            faulted()
        })
    }

    fn arguments(
        &mut self,
        entry: &Entry,
        nodes: &[&IdedExpr],
        takes: &[&[Type]],
    ) -> Vec<IdedExpr> {
        let taker = format!("`{}`", entry.name);
        let mut checked = Vec::with_capacity(nodes.len());
        for (node, wanted) in nodes.iter().zip(takes) {
            let (expr, kind) = self.operand(node, wanted, &taker);
            checked.push(metered(expr, kind));
        }
        checked
    }

    /// `timestamp('…')` and `duration('…')` are read now, not at each request.
    fn moment(&mut self, entry: &Entry, kind: Type, argument: &IdedExpr) -> Typed {
        let Some(text) = literal_text(argument) else {
            if kind == Type::Span {
                self.fault(
                    argument,
                    "a duration is a string in the condition, not a value",
                )
                .help(format!("e.g. `{}`", entry.usage));
                return faulted();
            }
            let arguments = self.arguments(entry, &[argument], &[&[Type::Text, Type::Time]]);
            return (make::call(entry.name, arguments), kind);
        };
        let argument_expr = make::literal(LiteralValue::String(text.to_owned().into()));
        let value = constant(&make::call(entry.name, vec![argument_expr]));
        let formed = match kind {
            Type::Span => is_duration(text),
            _ => is_time(text),
        };
        match value {
            Some(value) if formed => self.constant(value, kind),
            _ => {
                let message = format!("{} is not {}", quote(text), kind.name());
                self.fault(argument, message)
                    .help(format!("e.g. `{}`", entry.usage));
                faulted()
            }
        }
    }

    /// The library takes the part of a time in the zone that it was written in, unless told another.
    fn part(&mut self, entry: &Entry, takes: &[Type], of: &IdedExpr) -> Typed {
        let taker = format!("`{}`", entry.name);
        let (expr, kind) = self.operand(of, takes, &taker);
        if kind == Type::Any {
            self.fault(
                of,
                format!("{taker} takes a timestamp, and this may be anything"),
            )
            .help("convert it with `timestamp(…)`");
        }
        let zone = make::literal(LiteralValue::String("+00:00".into()));
        let zone = (kind == Type::Time).then_some(zone);
        let zones = zone.into_iter().collect();
        (make::called(entry.name, Some(expr), zones), Type::Int)
    }

    fn matches(&mut self, text: &IdedExpr, pattern: &IdedExpr) -> Typed {
        let (text, _) = self.operand(text, &[Type::Text], "`matches`");
        let Some(written) = literal_text(pattern) else {
            self.fault(
                pattern,
                "a pattern is a string in the condition, not a value",
            )
            .help("e.g. `request.path.matches('^/repos/[a-z]+$')`");
            return faulted();
        };
        match search_pattern(written) {
            Ok((regex, size)) => {
                let pattern = Pattern::new(regex, size);
                let (pattern, _) = self.constant(Box::new(pattern), Type::Any);
                (make::call(MATCHES, vec![text, pattern]), Type::Bool)
            }
            Err(message) => {
                self.fault(pattern, message);
                faulted()
            }
        }
    }

    fn has(&mut self, field: &IdedExpr) -> Typed {
        let Expr::Select(select) = &field.expr else {
            self.fault(field, "`has` takes a field")
                .help("e.g. `has(request.json.field)`, or `'the-name' in request.json`");
            return faulted();
        };
        let of = &*select.operand;
        if let Some(place) = self.place(field) {
            self.body(field, &place);
            return self.fact(Fact::HasMember(place), Type::Bool);
        }
        if self.is_headers(of) {
            let name = self.header_name(&select.field, self.field_span(field, &select.field));
            return self.fact(Fact::HasHeader(name), Type::Bool);
        }
        let faults = self.faults.len();
        let span = self.field_span(field, &select.field);
        if self.root(of) == Some("subject") && select.field == "identity" {
            return self.fact(Fact::HasIdentity, Type::Bool);
        }
        if self.known_field(field, of, &select.field, span).is_some() {
            if self.faults.len() == faults {
                self.fault(field, "this is always there");
            }
            return faulted();
        }
        let (operand, _) = self.operand(of, &[Type::Map], "`has`");
        let test = SelectExpr {
            operand: Box::new(operand),
            field: select.field.clone(),
            test: true,
        };
        (make::node(Expr::Select(test)), Type::Bool)
    }

    fn each(
        &mut self,
        kind: Loop,
        range: &IdedExpr,
        variable: &IdedExpr,
        filter: Option<&IdedExpr>,
        body: &IdedExpr,
    ) -> Typed {
        let collects = matches!(kind, Loop::Filter | Loop::Map);
        let ranges: &[Type] = match collects {
            true => &[Type::List],
            false => &[Type::List, Type::Map],
        };
        let taker = if collects {
            "`map` and `filter`"
        } else {
            "a loop"
        };
        let (range, _) = self.operand(range, ranges, taker);
        let Expr::Ident(name) = &variable.expr else {
            self.fault(variable, "the name of a variable stands here")
                .help("e.g. `request.json.labels.all(label, label != 'secret')`");
            return faulted();
        };
        if ROOTS.contains(&name.as_str()) || self.is_local(name) || name.starts_with('.') {
            let message = format!("{} has a meaning already", quote(name));
            self.fault(variable, message).help("take another name");
        }
        if self.locals.len() >= MAX_LOOPS {
            let message = format!("loops stand within each other at most {MAX_LOOPS} deep");
            self.fault(variable, message);
            return faulted();
        }
        let before = self.nodes;
        self.locals.push(name.clone());
        let filter = filter.map(|filter| self.condition(filter, "`map` with a filter"));
        let body = match kind {
            Loop::Map => self.kept(body),
            _ => self.condition(body, "this loop"),
        };
        self.locals.pop();
        // A loop's own work for an element is that of some nodes.
        let weight = 4 + self.nodes - before;
        let charge = if collects { ORDERED } else { COST };
        let range = make::call(charge, vec![range, make::int(weight)]);
        let gives = if collects { Type::List } else { Type::Bool };
        (make::each(kind, range, name, filter, body), gives)
    }
}

/// RFC 3339; the library takes more.
fn is_time(text: &str) -> bool {
    let form = "dddd-dd-ddTdd:dd:dd";
    let formed = text
        .bytes()
        .zip(form.bytes())
        .all(|(byte, form)| match form {
            b'd' => byte.is_ascii_digit(),
            other => byte.eq_ignore_ascii_case(&other),
        });
    // The second 60 would be taken for another one.
    formed && text.len() > form.len() && text.get(17..19) != Some("60")
}

/// `1h30m`, `-1.5s`; the library does not look at what it cannot read behind a duration.
fn is_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix('-').unwrap_or(text);
    if rest == "0" {
        return true;
    }
    while !rest.is_empty() {
        let number = rest.trim_start_matches(|sign: char| sign.is_ascii_digit() || sign == '.');
        let units = ["ns", "us", "ms", "s", "m", "h"];
        let unit = units.iter().find_map(|unit| number.strip_prefix(unit));
        match unit {
            Some(after) if rest.starts_with(|first: char| first.is_ascii_digit()) => rest = after,
            _ => return false,
        }
    }
    !text.is_empty() && text != "-"
}
