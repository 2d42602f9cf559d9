//! From the tree as written to the one that is evaluated: every name, function and pattern is known, every loop
//! bounded, and what can take long is metered (see [`super::run`]). Goes on after a fault.
use super::facts::{Fact, Place};
use super::functions::{Entry, FUNCTIONS, Form, Loop, Meaning, Type, operated};
use super::run::{COST, MATCHES, ORDERED, Pattern, Slot, constant};
use super::{Known, Needs, Span, WhenFault, make};
use crate::shape::search_pattern;
use crate::syntax::{nearest, quote};
use cel::common::ast::operators as op;
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedEntryExpr, IdedExpr, ListExpr, LiteralValue, MapEntryExpr, MapExpr, SelectExpr, SourceInfo};
use std::sync::Arc;

/// Comprehensions within each other at most.
const MAX_LOOPS: usize = 2;
/// Levels of the tree at most. Evaluation recurses.
const MAX_DEPTH: usize = 40;
/// Faults reported at most.
const MAX_FAULTS: usize = 20;

const REQUEST: [(&str, Fact, Type); 6] = [
    ("method", Fact::Method, Type::Text),
    ("scheme", Fact::Scheme, Type::Text),
    ("host", Fact::Host, Type::Text),
    ("port", Fact::Port, Type::Int),
    ("path", Fact::Path, Type::Text),
    ("query", Fact::Query, Type::Map),
];
/// Fields of `request` that are more than a value.
const BODIES: [&str; 2] = ["json", "form"];
const HEADERS: &str = "headers";
const SUBJECT: [(&str, Fact, Type); 3] = [
    ("workload", Fact::Workload, Type::Text),
    ("identity", Fact::Identity, Type::Any),
    ("groups", Fact::Groups, Type::List),
];
const ROOTS: [&str; 4] = ["request", "subject", "path", "now"];

/// What a condition is made of.
pub(super) struct Checked {
    pub(super) root: IdedExpr,
    pub(super) slots: Vec<Slot>,
    pub(super) needs: Needs,
}

pub(super) fn check(root: &IdedExpr, source: &SourceInfo, text: &str, known: &Known<'_>) -> Result<Checked, Vec<WhenFault>> {
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
            .fault(root, format!("a condition is true or false, and this is {}", kind.name()))
            .help("compare it with something, e.g. `request.method == 'GET'`");
    } else if !checker.named && checker.faults.is_empty() {
        checker
            .fault(root, "the condition says nothing about the request: it always comes to the same")
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
        self.faults.push(WhenFault::new(Span::new(start, end), message));
        Remark(self.faults.last_mut())
    }

    /// The sign that a node was made of.
    fn sign(&self, node: &IdedExpr) -> Span {
        let (start, last) = self.source.offset_for(node.id).unwrap_or_default();
        let whole = |offset: u32| usize::try_from(offset).unwrap_or(usize::MAX);
        Span::new(whole(start), whole(last).saturating_add(1))
    }

    /// All that a node was made of. Its sign is known, and what it consists of.
    fn span(&self, node: &IdedExpr) -> Span {
        let sign = self.sign(node);
        let over = |parts: &[&IdedExpr]| {
            let parts = parts.iter().map(|part| self.span(part));
            parts.fold(sign, Span::over)
        };
        match &node.expr {
            Expr::Select(select) => over(&[&select.operand]).over(self.field_span(node, &select.field)),
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
                let parts: Vec<_> = parts.flat_map(|member| [&member.key, &member.value]).collect();
                self.closed(over(&parts), '}')
            }
            _ => sign,
        }
    }

    /// With the bracket that comes next.
    fn closed(&self, span: Span, bracket: char) -> Span {
        let rest = self.text.get(span.end..).unwrap_or_default();
        let after = rest.trim_start_matches([' ', '\t', '\n', ',']);
        match after.starts_with(bracket) {
            true => Span::new(span.start, span.end + (rest.len() - after.len()) + 1),
            false => span,
        }
    }

    /// The field of a selection, behind its dot.
    fn field_span(&self, node: &IdedExpr, field: &str) -> Span {
        let dot = self.sign(node);
        let rest = self.text.get(dot.end..).unwrap_or_default();
        let start = dot.end + (rest.len() - rest.trim_start().len());
        Span::new(start, start + field.len())
    }

    /// The name of a function, before its bracket.
    fn name_span(&self, node: &IdedExpr, name: &str) -> Span {
        let bracket = self.sign(node);
        let before = self.text.get(..bracket.start).unwrap_or_default();
        let end = before.trim_end().len();
        Span::new(end.saturating_sub(name.len()), end)
    }

    /// An unknown word, with the nearest of those that are known.
    fn unknown<'w>(&mut self, span: Span, word: &str, what: &str, known: impl Iterator<Item = &'w str> + Clone) {
        let mut names: Vec<_> = known.clone().map(|name| format!("`{name}`")).collect();
        names.sort_unstable();
        let list = match names.len() {
            0 => "there is none".to_owned(),
            _ => format!("known: {}", names.join(", ")),
        };
        let near = nearest(word, known).map(|near| format!("did you mean `{near}`? "));
        let message = format!("unknown {what} {}", quote(word));
        self.fault_at(span, message).help(near.unwrap_or_default() + &list);
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
                self.fault(node, "bytes are not part of conditions").help("write a string");
                return faulted();
            }
        };
        (make::literal(literal.clone()), kind)
    }

    /// An operand that is read as a whole, whatever its size.
    fn read(&mut self, node: &IdedExpr) -> Typed {
        let (expr, kind) = self.check(node);
        (metered(expr, kind), kind)
    }

    /// What is copied into a list or map.
    fn kept(&mut self, node: &IdedExpr) -> IdedExpr {
        self.read(node).0
    }

    /// An operand that must be one of `wanted`.
    fn operand(&mut self, node: &IdedExpr, wanted: &[Type], taker: &str) -> Typed {
        let (expr, kind) = self.check(node);
        if !kind.may_be(wanted) {
            let names: Vec<_> = wanted.iter().map(|kind| kind.name()).collect();
            let message = format!("{taker} takes {}, and this is {}", names.join(" or "), kind.name());
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
                let taker = if name == op::LOGICAL_AND { "`&&`" } else { "`||`" };
                let sides = [left, right].map(|side| self.condition(side, taker));
                (make::call(name, sides.into()), Type::Bool)
            }
            (op::CONDITIONAL, [condition, yes, no]) => {
                let condition = self.condition(condition, "`?`");
                let ((yes, yes_type), (no, no_type)) = (self.check(yes), self.check(no));
                let kind = if yes_type == no_type { yes_type } else { Type::Any };
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
                _ => format!("`{}` does not take {left} and {right}", sign(name).unwrap_or(name)),
            };
            self.fault(node, message).help(match name {
                op::IN => "part of a string is found with `text.contains('part')`",
                _ => "both sides are of one type; int(), uint(), double() and string() convert",
            });
        }
        // Of two values that are compared, no more is read than the smaller one has.
        let equality = matches!(name, op::EQUALS | op::NOT_EQUALS);
        let small = |expr: &IdedExpr, kind: Type| kind.is_small() || matches!(expr.expr, Expr::Literal(_));
        let sides = match equality && (small(&left, left_type) || small(&right, right_type)) {
            true => vec![left, right],
            false => vec![metered(left, left_type), metered(right, right_type)],
        };
        (make::call(name, sides), kind.unwrap_or(Type::Any))
    }

    // Names.

    fn is_local(&self, name: &str) -> bool {
        self.locals.iter().any(|local| local == name)
    }

    fn name(&mut self, node: &IdedExpr, name: &str) -> Typed {
        if self.is_local(name) {
            return (make::ident(name), Type::Any);
        }
        let example = match name {
            "now" => return self.fact(Fact::Now, Type::Time),
            "request" => "request.method",
            "subject" => "subject.workload",
            "path" => "path.name",
            _ => {
                self.unknown_name(node, name);
                return faulted();
            }
        };
        self.fault(node, format!("`{name}` alone is not a value"))
            .help(format!("name one of its fields, e.g. `{example}`"));
        faulted()
    }

    fn unknown_name(&mut self, node: &IdedExpr, name: &str) {
        let fields = request_fields();
        let home = if fields.clone().any(|field| field == name) {
            Some("request")
        } else if SUBJECT.iter().any(|(field, ..)| *field == name) {
            Some("subject")
        } else if self.known.parameters.contains(&name) {
            Some("path")
        } else {
            None
        };
        if let Some(home) = home {
            self.fault(node, format!("unknown variable `{name}`"))
                .help(format!("did you mean `{home}.{name}`?"));
            return;
        }
        let locals = self.locals.clone();
        let known = ROOTS.into_iter().chain(locals.iter().map(String::as_str));
        self.unknown(self.sign(node), name, "variable", known);
    }

    /// The name of a slot that holds this.
    fn fact(&mut self, fact: Fact, kind: Type) -> Typed {
        self.named = true;
        let same = |slot: &Slot| matches!(slot, Slot::Fact(known) if *known == fact);
        let number = self.slots.iter().position(same).unwrap_or(self.slots.len());
        if number == self.slots.len() {
            self.slots.push(Slot::Fact(fact));
        }
        (make::ident(&format!("@{number}")), kind)
    }

    fn constant(&mut self, value: super::facts::Boxed<'static>, kind: Type) -> Typed {
        self.slots.push(Slot::Constant(value));
        (make::ident(&format!("@{}", self.slots.len() - 1)), kind)
    }

    /// The name of a root that is not shadowed.
    fn root<'n>(&self, node: &'n IdedExpr) -> Option<&'n str> {
        match &node.expr {
            Expr::Ident(name) if !self.is_local(name) => Some(name),
            _ => None,
        }
    }

    /// Whether this is `request.headers`.
    fn is_headers(&self, node: &IdedExpr) -> bool {
        chosen(node).is_some_and(|(of, field)| self.root(of) == Some("request") && field == HEADERS)
    }

    /// Where in the body this is, as far as names lead.
    fn place(&self, node: &IdedExpr) -> Option<Place> {
        let (of, field) = chosen(node)?;
        if self.root(of) == Some("request") && BODIES.contains(&field) {
            let form = field == "form";
            return Some(Place { form, path: Vec::new() });
        }
        let mut place = self.place(of)?;
        place.path.push(field.into());
        Some(place)
    }

    fn body(&mut self, node: &IdedExpr, place: &Place) {
        self.needs.json |= !place.form;
        self.needs.form |= place.form;
        if !self.known.body {
            self.fault(node, "a deny rule cannot look at the body")
                .help("deny by path, query, header or subject, and put the condition on the body into the allow rule");
        }
    }

    fn select(&mut self, node: &IdedExpr, select: &SelectExpr) -> Typed {
        let span = self.field_span(node, &select.field);
        if let Some(found) = self.known_field(node, &select.operand, &select.field, span) {
            return found;
        }
        let (of, _) = self.operand(&select.operand, &[Type::Map], "`.`");
        let key = make::literal(LiteralValue::String(select.field.clone().into()));
        (make::call(op::INDEX, vec![of, key]), Type::Any)
    }

    /// A field of a root, a header or a member of the body; `None` where `of` is something else.
    fn known_field(&mut self, node: &IdedExpr, of: &IdedExpr, field: &str, span: Span) -> Option<Typed> {
        if let Some(place) = self.place(node) {
            self.body(node, &place);
            return Some(self.fact(Fact::Member(place), Type::Any));
        }
        if self.is_headers(of) {
            let name = self.header_name(field, span);
            return Some(self.fact(Fact::Header(name), Type::Text));
        }
        match self.root(of)? {
            "request" if field == HEADERS => {
                self.fault(node, "`request.headers` alone is not a value")
                    .help("name the header: `request.headers['x-name']`, or `'x-name' in request.headers`");
            }
            "request" => {
                if let Some((_, fact, kind)) = REQUEST.iter().find(|(name, ..)| *name == field) {
                    return Some(self.fact(fact.clone(), *kind));
                }
                self.unknown(span, field, "field of `request`:", request_fields());
            }
            "subject" => {
                if let Some((_, fact, kind)) = SUBJECT.iter().find(|(name, ..)| *name == field) {
                    return Some(self.fact(fact.clone(), *kind));
                }
                let names = SUBJECT.iter().map(|(name, ..)| *name);
                self.unknown(span, field, "field of `subject`:", names);
            }
            "path" => {
                if self.known.parameters.contains(&field) {
                    return Some(self.fact(Fact::Parameter(field.into()), Type::Text));
                }
                let parameters = self.known.parameters;
                self.unknown(span, field, "path parameter", parameters.iter().copied());
            }
            _ => return None,
        }
        Some(faulted())
    }

    fn header_name(&mut self, name: &str, span: Span) -> Box<str> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            let message = format!("{} is not a header's name", quote(name));
            self.fault_at(span, message);
        }
        name.to_ascii_lowercase().into()
    }

    fn has_header(&mut self, name: &IdedExpr) -> Typed {
        let Some(text) = literal_text(name) else {
            self.fault(name, "a header is named by a string, not by a value")
                .help("e.g. `'x-name' in request.headers`");
            return faulted();
        };
        let name = self.header_name(text, self.sign(name));
        self.fact(Fact::HasHeader(name), Type::Bool)
    }

    fn index(&mut self, node: &IdedExpr, of: &IdedExpr, index: &IdedExpr) -> Typed {
        if let Some(text) = literal_text(index) {
            let span = self.sign(index);
            if let Some(found) = self.known_field(node, of, text, span) {
                return found;
            }
        } else if self.is_headers(of) {
            self.fault(index, "a header is named by a string, not by a value")
                .help("e.g. `request.headers['x-name']`");
            return faulted();
        }
        let (of, kind) = self.operand(of, &[Type::List, Type::Map], "`[…]`");
        let wanted: &[Type] = match kind {
            Type::List => &[Type::Int, Type::Uint, Type::Double],
            _ => &[Type::Text, Type::Int, Type::Uint, Type::Double, Type::Bool],
        };
        let (index, kind) = self.operand(index, wanted, "`[…]`");
        (make::call(op::INDEX, vec![of, metered(index, kind)]), Type::Any)
    }

    // Functions.

    fn function(&mut self, node: &IdedExpr, call: &CallExpr) -> Typed {
        let name = call.func_name.as_str();
        let Some(entry) = FUNCTIONS.iter().find(|entry| entry.name == name) else {
            let span = self.name_span(node, name);
            self.unknown(span, name, "function", FUNCTIONS.iter().map(|entry| entry.name));
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

    fn arguments(&mut self, entry: &Entry, nodes: &[&IdedExpr], takes: &[&[Type]]) -> Vec<IdedExpr> {
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
                self.fault(argument, "a duration is a string in the condition, not a value")
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
                self.fault(argument, message).help(format!("e.g. `{}`", entry.usage));
                faulted()
            }
        }
    }

    /// The library takes the part of a time in the zone that it was written in, unless told another.
    fn part(&mut self, entry: &Entry, takes: &[Type], of: &IdedExpr) -> Typed {
        let taker = format!("`{}`", entry.name);
        let (expr, kind) = self.operand(of, takes, &taker);
        if kind == Type::Any {
            self.fault(of, format!("{taker} takes a timestamp, and this may be anything"))
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
            self.fault(pattern, "a pattern is a string in the condition, not a value")
                .help("e.g. `request.path.matches('^/repos/[a-z]+$')`");
            return faulted();
        };
        match search_pattern(written) {
            Ok(regex) => {
                let (pattern, _) = self.constant(Box::new(Pattern(Arc::new(regex))), Type::Any);
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

    fn each(&mut self, kind: Loop, range: &IdedExpr, variable: &IdedExpr, filter: Option<&IdedExpr>, body: &IdedExpr) -> Typed {
        let collects = matches!(kind, Loop::Filter | Loop::Map);
        let ranges: &[Type] = match collects {
            true => &[Type::List],
            false => &[Type::List, Type::Map],
        };
        let taker = if collects { "`map` and `filter`" } else { "a loop" };
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

/// `expr`, its size taken from the meter where it may be large.
fn metered(expr: IdedExpr, kind: Type) -> IdedExpr {
    match &expr.expr {
        Expr::Literal(_) => expr,
        _ if kind.is_small() => expr,
        _ => make::call(COST, vec![expr, make::int(0)]),
    }
}

fn request_fields() -> impl Iterator<Item = &'static str> + Clone {
    let values = REQUEST.iter().map(|(name, ..)| *name);
    values.chain(BODIES).chain([HEADERS])
}

/// What `x.name` and `x['name']` are of.
fn chosen(node: &IdedExpr) -> Option<(&IdedExpr, &str)> {
    match &node.expr {
        Expr::Select(select) => Some((&select.operand, &select.field)),
        Expr::Call(call) if call.func_name == op::INDEX => match call.args.as_slice() {
            [of, index] => Some((of, literal_text(index)?)),
            _ => None,
        },
        _ => None,
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
        op::EQUALS | op::NOT_EQUALS | op::LESS | op::LESS_EQUALS | op::GREATER | op::GREATER_EQUALS
        | op::ADD | op::SUBSTRACT | op::MULTIPLY | op::DIVIDE | op::MODULO => name.trim_matches('_'),
        _ => return None,
    })
}

/// RFC 3339; the library takes more.
fn is_time(text: &str) -> bool {
    let form = "dddd-dd-ddTdd:dd:dd";
    let formed = text.bytes().zip(form.bytes()).all(|(byte, form)| match form {
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
