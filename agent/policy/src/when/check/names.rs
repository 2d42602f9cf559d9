//! Names of a condition: fields of the request, members of the body, variables of loops.
use super::{Checker, Typed, faulted, literal_text, make, metered};
use crate::syntax::quote;
use crate::when::Span;
use crate::when::facts::{Boxed, Fact, Place};
use crate::when::functions::Type;
use crate::when::run::Slot;
use cel::common::ast::operators as op;
use cel::common::ast::{Expr, IdedExpr, LiteralValue, SelectExpr};

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
pub(super) const ROOTS: [&str; 4] = ["request", "subject", "path", "now"];

impl Checker<'_> {
    pub(super) fn is_local(&self, name: &str) -> bool {
        self.locals.iter().any(|local| local == name)
    }

    pub(super) fn name(&mut self, node: &IdedExpr, name: &str) -> Typed {
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

    pub(super) fn unknown_name(&mut self, node: &IdedExpr, name: &str) {
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
    pub(super) fn fact(&mut self, fact: Fact, kind: Type) -> Typed {
        self.named = true;
        let same = |slot: &Slot| matches!(slot, Slot::Fact(known) if *known == fact);
        let number = self.slots.iter().position(same).unwrap_or(self.slots.len());
        if number == self.slots.len() {
            self.slots.push(Slot::Fact(fact));
        }
        (make::ident(&format!("@{number}")), kind)
    }

    pub(super) fn constant(&mut self, value: Boxed<'static>, kind: Type) -> Typed {
        self.slots.push(Slot::Constant(value));
        (make::ident(&format!("@{}", self.slots.len() - 1)), kind)
    }

    /// The name of a root that is not shadowed.
    pub(super) fn root<'n>(&self, node: &'n IdedExpr) -> Option<&'n str> {
        match &node.expr {
            Expr::Ident(name) if !self.is_local(name) => Some(name),
            _ => None,
        }
    }

    /// Whether this is `request.headers`.
    pub(super) fn is_headers(&self, node: &IdedExpr) -> bool {
        chosen(node).is_some_and(|(of, field)| self.root(of) == Some("request") && field == HEADERS)
    }

    /// Where in the body this is, as far as names lead.
    pub(super) fn place(&self, node: &IdedExpr) -> Option<Place> {
        let (of, field) = chosen(node)?;
        if self.root(of) == Some("request") && BODIES.contains(&field) {
            let form = field == "form";
            return Some(Place {
                form,
                path: Vec::new(),
            });
        }
        let mut place = self.place(of)?;
        place.path.push(field.into());
        Some(place)
    }

    pub(super) fn body(&mut self, node: &IdedExpr, place: &Place) {
        self.needs.json |= !place.form;
        self.needs.form |= place.form;
        if !self.known.body {
            self.fault(node, "a deny rule cannot look at the body")
                .help("deny by path, query, header or subject, and put the condition on the body into the allow rule");
        }
    }

    pub(super) fn select(&mut self, node: &IdedExpr, select: &SelectExpr) -> Typed {
        let span = self.field_span(node, &select.field);
        if let Some(found) = self.known_field(node, &select.operand, &select.field, span) {
            return found;
        }
        let (of, _) = self.operand(&select.operand, &[Type::Map], "`.`");
        let key = make::literal(LiteralValue::String(select.field.clone().into()));
        (make::call(op::INDEX, vec![of, key]), Type::Any)
    }

    /// A field of a root, a header or a member of the body; `None` where `of` is something else.
    pub(super) fn known_field(
        &mut self,
        node: &IdedExpr,
        of: &IdedExpr,
        field: &str,
        span: Span,
    ) -> Option<Typed> {
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

    pub(super) fn header_name(&mut self, name: &str, span: Span) -> Box<str> {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) {
            let message = format!("{} is not a header's name", quote(name));
            self.fault_at(span, message);
        }
        name.to_ascii_lowercase().into()
    }

    pub(super) fn has_header(&mut self, name: &IdedExpr) -> Typed {
        let Some(text) = literal_text(name) else {
            self.fault(name, "a header is named by a string, not by a value")
                .help("e.g. `'x-name' in request.headers`");
            return faulted();
        };
        let name = self.header_name(text, self.sign(name));
        self.fact(Fact::HasHeader(name), Type::Bool)
    }

    pub(super) fn index(&mut self, node: &IdedExpr, of: &IdedExpr, index: &IdedExpr) -> Typed {
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
        (
            make::call(op::INDEX, vec![of, metered(index, kind)]),
            Type::Any,
        )
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
