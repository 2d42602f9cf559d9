//! From a tree as written to one whose every name, function and pattern is known. Goes on after a fault.
use super::functions::{Entry, FUNCTIONS, Form, Function, Meaning, Type, operated};
use super::parse::{Call, Literal, Node, NodeKind, Operator, Word};
use super::tree::{Each, EachKind, Expr, Fact};
use super::{Known, Needs, Span, WhenFault, time};
use crate::shape::search_pattern;
use crate::syntax::{nearest, quote};

/// Comprehensions within each other at most.
const MAX_LOOPS: usize = 2;
/// Faults reported at most.
const MAX_FAULTS: usize = 20;

const REQUEST: [(&str, Fact, Type); 8] = [
    ("method", Fact::Method, Type::Text),
    ("scheme", Fact::Scheme, Type::Text),
    ("host", Fact::Host, Type::Text),
    ("port", Fact::Port, Type::Int),
    ("path", Fact::Path, Type::Text),
    ("query", Fact::Query, Type::Map),
    ("json", Fact::Json, Type::Any),
    ("form", Fact::Form, Type::Any),
];
/// A field of `request` that is not a value: its own fields are.
const HEADERS: &str = "headers";
const SUBJECT: [(&str, Fact, Type); 3] = [
    ("workload", Fact::Workload, Type::Text),
    ("identity", Fact::Identity, Type::Any),
    ("groups", Fact::Groups, Type::List),
];
const ROOTS: [&str; 4] = ["request", "subject", "path", "now"];

pub(super) fn check(root: &Node, known: &Known<'_>) -> Result<(Expr, Needs), Vec<WhenFault>> {
    let mut checker = Checker {
        known: *known,
        faults: Vec::new(),
        locals: Vec::new(),
        needs: Needs::default(),
        named: false,
    };
    let (expr, kind) = checker.check(root);
    if !kind.may_be(&[Type::Bool]) {
        checker
            .fault(
                root.span,
                format!("a condition is true or false, and this is {}", kind.name()),
            )
            .help("compare it with something, e.g. `request.method == 'GET'`");
    } else if !checker.named && checker.faults.is_empty() {
        checker
            .fault(
                root.span,
                "the condition says nothing about the request: it always comes to the same",
            )
            .help("leave `when` out, or name what it depends on, e.g. `request.host`");
    }
    if checker.faults.is_empty() {
        return Ok((expr, checker.needs));
    }
    checker.faults.sort_by_key(|fault| fault.at);
    checker.faults.truncate(MAX_FAULTS);
    Err(checker.faults)
}

type Checked = (Expr, Type);

/// Stands for what was faulted, so that the rest can be checked.
const FAULTED: Checked = (Expr::Literal(Literal::Null), Type::Any);

struct Checker<'k> {
    known: Known<'k>,
    faults: Vec<WhenFault>,
    /// Variables of the comprehensions around, from the outermost.
    locals: Vec<Box<str>>,
    needs: Needs,
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
    fn fault(&mut self, span: Span, message: impl Into<String>) -> Remark<'_> {
        self.faults.push(WhenFault::new(span, message));
        Remark(self.faults.last_mut())
    }

    /// An unknown word, with the nearest of those that are known.
    fn unknown<'w>(
        &mut self,
        word: &Word,
        what: &str,
        known: impl Iterator<Item = &'w str> + Clone,
    ) {
        let mut names = known
            .clone()
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>();
        names.sort_unstable();
        let list = match names.len() {
            0 => "there is none".to_owned(),
            _ => format!("known: {}", names.join(", ")),
        };
        let near = nearest(&word.text, known).map(|near| format!("did you mean `{near}`? "));
        let message = format!("unknown {what} {}", quote(&word.text));
        self.fault(word.span, message)
            .help(near.unwrap_or_default() + &list);
    }

    fn check(&mut self, node: &Node) -> Checked {
        match &node.kind {
            NodeKind::Literal(literal) => (Expr::Literal(literal.clone()), literal_type(literal)),
            NodeKind::Name(name) => self.name(name, node.span),
            NodeKind::Select(of, field) => self.select(of, field),
            NodeKind::Index(of, index) => self.index(of, index),
            NodeKind::Call(call) => self.call(call, node.span),
            NodeKind::List(items) => (Expr::List(self.all(items)), Type::List),
            NodeKind::Map(entries) => (Expr::Map(self.entries(entries)), Type::Map),
            NodeKind::Not(operand) => {
                let expr = self.condition(operand, "`!`");
                (Expr::Not(Box::new(expr)), Type::Bool)
            }
            NodeKind::Negate(operand) => self.negate(operand),
            NodeKind::Binary(operator, left, right) => {
                self.binary(*operator, left, right, node.span)
            }
            NodeKind::And(terms) => (Expr::And(self.conditions(terms, "`&&`")), Type::Bool),
            NodeKind::Or(terms) => (Expr::Or(self.conditions(terms, "`||`")), Type::Bool),
            NodeKind::Choose(parts) => self.choose(parts),
        }
    }

    fn all(&mut self, nodes: &[Node]) -> Vec<Expr> {
        nodes.iter().map(|node| self.check(node).0).collect()
    }

    /// An operand that must be one of `wanted`.
    fn operand(&mut self, node: &Node, wanted: &[Type], taker: &str) -> Expr {
        let (expr, kind) = self.check(node);
        if !kind.may_be(wanted) {
            let names: Vec<_> = wanted.iter().map(|kind| kind.name()).collect();
            let message = format!(
                "{taker} takes {}, and this is {}",
                names.join(" or "),
                kind.name()
            );
            self.fault(node.span, message);
        }
        expr
    }

    fn condition(&mut self, node: &Node, taker: &str) -> Expr {
        self.operand(node, &[Type::Bool], taker)
    }

    fn conditions(&mut self, nodes: &[Node], taker: &str) -> Vec<Expr> {
        nodes
            .iter()
            .map(|node| self.condition(node, taker))
            .collect()
    }

    fn entries(&mut self, entries: &[(Node, Node)]) -> Vec<(Expr, Expr)> {
        const KEYS: [Type; 4] = [Type::Text, Type::Int, Type::Uint, Type::Bool];
        entries
            .iter()
            .map(|(key, value)| {
                let key = self.operand(key, &KEYS, "a map's key");
                (key, self.check(value).0)
            })
            .collect()
    }

    fn negate(&mut self, operand: &Node) -> Checked {
        let (expr, kind) = self.check(operand);
        if !kind.may_be(&[Type::Int, Type::Double]) {
            let message = format!("`-` takes a number, and this is {}", kind.name());
            self.fault(operand.span, message);
        }
        (Expr::Negate(Box::new(expr)), kind)
    }

    fn binary(&mut self, operator: Operator, left: &Node, right: &Node, span: Span) -> Checked {
        if let (Operator::In, Some(())) = (operator, self.headers(right)) {
            return self.has_header(left);
        }
        let (left, left_type) = self.check(left);
        let (right, right_type) = self.check(right);
        let kind = operated(operator, left_type, right_type);
        if kind.is_none() {
            let (left, right) = (left_type.name(), right_type.name());
            match operator {
                Operator::Equal | Operator::Unequal => {
                    self.fault(span, format!("{left} and {right} are never equal"))
                }
                Operator::In => self.fault(
                    span,
                    format!("`in` looks into a list or a map, and this is {right}"),
                ),
                _ => self.fault(
                    span,
                    format!("`{}` does not take {left} and {right}", operator.sign()),
                ),
            }
            .help(match operator {
                Operator::In => "part of a string is found with `text.contains('part')`",
                _ => "both sides are of one type; int(), uint(), double() and string() convert",
            });
        }
        let expr = Expr::Binary(operator, Box::new(left), Box::new(right));
        (expr, kind.unwrap_or(Type::Any))
    }

    fn choose(&mut self, parts: &[Node; 3]) -> Checked {
        let [condition, yes, no] = parts;
        let condition = self.condition(condition, "`?`");
        let (yes, yes_type) = self.check(yes);
        let (no, no_type) = self.check(no);
        let kind = if yes_type == no_type {
            yes_type
        } else {
            Type::Any
        };
        (Expr::Choose(Box::new([condition, yes, no])), kind)
    }

    // Names.

    fn local(&self, name: &str) -> Option<usize> {
        self.locals.iter().rposition(|local| &**local == name)
    }

    fn name(&mut self, name: &str, span: Span) -> Checked {
        if let Some(slot) = self.local(name) {
            return (Expr::Local(slot), Type::Any);
        }
        match name {
            "now" => self.fact(Fact::Now, Type::Time, span),
            "request" | "subject" | "path" => {
                let example = match name {
                    "request" => "request.method",
                    "subject" => "subject.workload",
                    _ => "path.name",
                };
                self.fault(span, format!("`{name}` alone is not a value"))
                    .help(format!("name one of its fields, e.g. `{example}`"));
                FAULTED
            }
            _ => {
                self.unknown_name(name, span);
                FAULTED
            }
        }
    }

    fn unknown_name(&mut self, name: &str, span: Span) {
        let home = if name == HEADERS || REQUEST.iter().any(|(field, ..)| *field == name) {
            Some("request")
        } else if SUBJECT.iter().any(|(field, ..)| *field == name) {
            Some("subject")
        } else if self.known.parameters.contains(&name) {
            Some("path")
        } else {
            None
        };
        if let Some(home) = home {
            self.fault(span, format!("unknown variable `{name}`"))
                .help(format!("did you mean `{home}.{name}`?"));
            return;
        }
        let locals = self.locals.clone();
        let known = ROOTS.into_iter().chain(locals.iter().map(|local| &**local));
        let word = Word {
            text: name.into(),
            span,
        };
        self.unknown(&word, "variable", known);
    }

    fn fact(&mut self, fact: Fact, kind: Type, span: Span) -> Checked {
        self.named = true;
        self.needs.json |= fact == Fact::Json;
        self.needs.form |= fact == Fact::Form;
        if matches!(fact, Fact::Json | Fact::Form) && !self.known.body {
            self.fault(span, "a deny rule cannot look at the body")
                .help("deny by path, query, header or subject, and put the condition on the body into the allow rule");
        }
        (Expr::Fact(fact), kind)
    }

    /// The name of a root that is not shadowed.
    fn root<'n>(&self, node: &'n Node) -> Option<&'n str> {
        match &node.kind {
            NodeKind::Name(name) if self.local(name).is_none() => Some(name),
            _ => None,
        }
    }

    /// Whether this is `request.headers`.
    fn headers(&self, node: &Node) -> Option<()> {
        let (of, field) = match &node.kind {
            NodeKind::Select(of, field) => (of, &*field.text),
            NodeKind::Index(of, index) => (of, literal_text(index)?),
            _ => return None,
        };
        (self.root(of) == Some("request") && field == HEADERS).then_some(())
    }

    fn select(&mut self, of: &Node, field: &Word) -> Checked {
        let span = of.span.to(field.span);
        if let Some(found) = self.field_of_root(of, field, span) {
            return found;
        }
        let of = self.operand(of, &[Type::Map], "`.`");
        (Expr::Field(Box::new(of), field.text.clone()), Type::Any)
    }

    /// A field of a root, or a header; `None` where `of` is something else.
    fn field_of_root(&mut self, of: &Node, field: &Word, span: Span) -> Option<Checked> {
        if self.headers(of).is_some() {
            let name = self.header_name(&field.text, field.span);
            self.named = true;
            return Some((Expr::Header(name), Type::Text));
        }
        match self.root(of)? {
            "request" => {
                let found = REQUEST.iter().find(|(name, ..)| *name == &*field.text);
                if let Some((_, fact, kind)) = found {
                    return Some(self.fact(*fact, *kind, span));
                }
                if &*field.text == HEADERS {
                    self.fault(span, "`request.headers` alone is not a value")
                        .help("name the header: `request.headers['x-name']`, or `'x-name' in request.headers`");
                    return Some(FAULTED);
                }
                let names = REQUEST.iter().map(|(name, ..)| *name).chain([HEADERS]);
                self.unknown(field, "field of `request`:", names);
            }
            "subject" => {
                let found = SUBJECT.iter().find(|(name, ..)| *name == &*field.text);
                if let Some((_, fact, kind)) = found {
                    return Some(self.fact(*fact, *kind, span));
                }
                self.unknown(
                    field,
                    "field of `subject`:",
                    SUBJECT.iter().map(|(name, ..)| *name),
                );
            }
            "path" => {
                if self.known.parameters.contains(&&*field.text) {
                    self.named = true;
                    return Some((Expr::Parameter(field.text.clone()), Type::Text));
                }
                let parameters = self.known.parameters;
                self.unknown(field, "path parameter", parameters.iter().copied());
            }
            _ => return None,
        }
        Some(FAULTED)
    }

    fn header_name(&mut self, name: &str, span: Span) -> Box<str> {
        let valid = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        if !valid {
            let message = format!("{} is not a header's name", quote(name));
            self.fault(span, message);
        }
        let name: Box<str> = name.to_ascii_lowercase().into();
        self.needs.headers.push(name.clone());
        name
    }

    fn has_header(&mut self, name: &Node) -> Checked {
        let Some(text) = literal_text(name) else {
            self.fault(name.span, "a header is named by a string, not by a value")
                .help("e.g. `'x-name' in request.headers`");
            return FAULTED;
        };
        self.named = true;
        (
            Expr::HasHeader(self.header_name(text, name.span)),
            Type::Bool,
        )
    }

    fn index(&mut self, of: &Node, index: &Node) -> Checked {
        if let Some(text) = literal_text(index) {
            let field = Word {
                text: text.into(),
                span: index.span,
            };
            let span = of.span.to(index.span);
            if let Some(found) = self.field_of_root(of, &field, span) {
                return found;
            }
        } else if self.headers(of).is_some() {
            self.fault(index.span, "a header is named by a string, not by a value")
                .help("e.g. `request.headers['x-name']`");
            return FAULTED;
        }
        let (of_expr, kind) = self.check(of);
        if !kind.may_be(&[Type::List, Type::Map]) {
            let message = format!(
                "`[…]` looks into a list or a map, and this is {}",
                kind.name()
            );
            self.fault(of.span, message);
        }
        let wanted: &[Type] = match kind {
            Type::List => &[Type::Int, Type::Uint, Type::Double],
            _ => &[Type::Text, Type::Int, Type::Uint, Type::Double, Type::Bool],
        };
        let index = self.operand(index, wanted, "`[…]`");
        (Expr::Index(Box::new(of_expr), Box::new(index)), Type::Any)
    }

    // Functions.

    fn call(&mut self, call: &Call, span: Span) -> Checked {
        let Some(entry) = FUNCTIONS
            .iter()
            .find(|entry| entry.name == &*call.name.text)
        else {
            self.unknown(
                &call.name,
                "function",
                FUNCTIONS.iter().map(|entry| entry.name),
            );
            return FAULTED;
        };
        let arguments: Vec<&Node> = call
            .target
            .as_deref()
            .into_iter()
            .chain(&call.arguments)
            .collect();
        let formed = match entry.form {
            Form::Method => call.target.is_some(),
            Form::Plain => call.target.is_none(),
            Form::Either => true,
        };
        let checked = match (formed, entry.meaning, arguments.as_slice()) {
            (true, Meaning::Function(function, takes, gives), found)
                if found.len() == takes.len() =>
            {
                Some(self.function(entry, function, found, takes, gives))
            }
            (true, Meaning::Matches, [text, pattern]) => Some(self.matches(text, pattern)),
            (true, Meaning::Has, [field]) => Some(self.has(field)),
            (true, Meaning::Each(kind), [range, variable, body]) => {
                Some(self.each(kind, range, variable, None, body))
            }
            (true, Meaning::Each(EachKind::Map), [range, variable, filter, body]) => {
                Some(self.each(EachKind::Map, range, variable, Some(filter), body))
            }
            _ => None,
        };
        checked.unwrap_or_else(|| {
            self.fault(span, format!("`{}` is not called like this", entry.name))
                .help(format!("e.g. `{}`", entry.usage));
            FAULTED
        })
    }

    fn function(
        &mut self,
        entry: &Entry,
        function: Function,
        arguments: &[&Node],
        takes: &[&[Type]],
        gives: Type,
    ) -> Checked {
        let taker = format!("`{}`", entry.name);
        let exprs = arguments
            .iter()
            .zip(takes)
            .map(|(node, wanted)| self.operand(node, wanted, &taker))
            .collect();
        if let [argument] = arguments
            && let Some(text) = literal_text(argument)
            && matches!(function, Function::Time | Function::Span)
        {
            return self.literal_time(function, text, argument.span, entry.usage);
        }
        (Expr::Call(function, exprs), gives)
    }

    /// `timestamp('…')` and `duration('…')` are read now, not at each request.
    fn literal_time(&mut self, function: Function, text: &str, span: Span, usage: &str) -> Checked {
        let literal = match function {
            Function::Time => time::timestamp(text).map(Literal::Time),
            _ => time::duration(text).map(Literal::Span),
        };
        match literal {
            Some(literal) => {
                let kind = literal_type(&literal);
                (Expr::Literal(literal), kind)
            }
            None => {
                let what = match function {
                    Function::Time => "time",
                    _ => "duration",
                };
                self.fault(span, format!("{} is not a {what}", quote(text)))
                    .help(format!("e.g. `{usage}`"));
                FAULTED
            }
        }
    }

    fn matches(&mut self, text: &Node, pattern: &Node) -> Checked {
        let text = self.operand(text, &[Type::Text], "`matches`");
        let Some(written) = literal_text(pattern) else {
            self.fault(
                pattern.span,
                "a pattern is a string in the condition, not a value",
            )
            .help("e.g. `request.path.matches('^/repos/[a-z]+$')`");
            return FAULTED;
        };
        match search_pattern(written) {
            Ok(regex) => (Expr::Matches(Box::new(text), Box::new(regex)), Type::Bool),
            Err(message) => {
                self.fault(pattern.span, message);
                FAULTED
            }
        }
    }

    fn has(&mut self, field: &Node) -> Checked {
        let NodeKind::Select(of, name) = &field.kind else {
            self.fault(field.span, "`has` takes a field")
                .help("e.g. `has(request.json.field)`, or `'the-name' in request.json`");
            return FAULTED;
        };
        if self.headers(of).is_some() {
            self.named = true;
            let name = self.header_name(&name.text, name.span);
            return (Expr::HasHeader(name), Type::Bool);
        }
        let span = of.span.to(name.span);
        let expr = match self.field_of_root(of, name, span) {
            Some((Expr::Fact(fact @ (Fact::Json | Fact::Form | Fact::Identity)), _)) => {
                Expr::HasFact(fact)
            }
            Some((Expr::Literal(_), _)) => return FAULTED,
            Some(_) => {
                self.fault(span, "this is always there");
                return FAULTED;
            }
            None => {
                let of = self.operand(of, &[Type::Map], "`has`");
                Expr::HasField(Box::new(of), name.text.clone())
            }
        };
        (expr, Type::Bool)
    }

    fn each(
        &mut self,
        kind: EachKind,
        range: &Node,
        variable: &Node,
        filter: Option<&Node>,
        body: &Node,
    ) -> Checked {
        let range = self.operand(range, &[Type::List, Type::Map], "a loop");
        let NodeKind::Name(name) = &variable.kind else {
            self.fault(variable.span, "the name of a variable stands here")
                .help("e.g. `request.json.labels.all(label, label != 'secret')`");
            return FAULTED;
        };
        if ROOTS.contains(&&**name) || self.local(name).is_some() {
            let message = format!("{} has a meaning already", quote(name));
            self.fault(variable.span, message).help("take another name");
        }
        if self.locals.len() >= MAX_LOOPS {
            self.fault(
                variable.span,
                format!("loops stand within each other at most {MAX_LOOPS} deep"),
            );
            return FAULTED;
        }
        self.locals.push(name.clone());
        let filter = filter.map(|filter| self.condition(filter, "`map` with a filter"));
        let body = match kind {
            EachKind::Map => self.check(body).0,
            _ => self.condition(body, "this loop"),
        };
        self.locals.pop();
        let gives = match kind {
            EachKind::Filter | EachKind::Map => Type::List,
            _ => Type::Bool,
        };
        let each = Each {
            kind,
            range,
            filter,
            body,
        };
        (Expr::Each(Box::new(each)), gives)
    }
}

fn literal_text(node: &Node) -> Option<&str> {
    match &node.kind {
        NodeKind::Literal(Literal::Text(text)) => Some(text),
        _ => None,
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::Text(_) => Type::Text,
        Literal::Time(_) => Type::Time,
        Literal::Span(_) => Type::Span,
    }
}
