//! What is defined under which name, and references to it.
use crate::document::{Document, Name, Named};
use crate::syntax::{Decoder, Span, nearest, quote};
use std::collections::HashMap;

/// The names of one kind of thing, with their numbers in order of name.
#[derive(Debug)]
pub(super) struct Table {
    kind: &'static str,
    by_name: HashMap<Box<str>, (usize, Span)>,
}

/// All that can be referred to.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) workloads: Table,
    pub(super) identities: Table,
    pub(super) groups: Table,
    pub(super) apis: Table,
    pub(super) credentials: Table,
    pub(super) roles: Table,
}

impl Names {
    pub(super) fn collect(decoder: &mut Decoder, document: &Document<'_>) -> Self {
        // Nothing refers to a budget or a price, but each is defined once too.
        Table::collect(decoder, "budget", &document.budgets);
        Table::collect(decoder, "the price of", &document.prices);
        Self {
            workloads: Table::collect(decoder, "workload", &document.workloads),
            identities: Table::collect(decoder, "identity", &document.identities),
            groups: Table::collect(decoder, "group", &document.groups),
            apis: Table::collect(decoder, "api", &document.apis),
            credentials: Table::collect(decoder, "credential", &document.credentials),
            roles: Table::collect(decoder, "role", &document.roles),
        }
    }
}

impl Table {
    /// Things are given in order of their names; a name twice is a fault that names both places.
    fn collect<T>(decoder: &mut Decoder, kind: &'static str, things: &[Named<T>]) -> Self {
        let mut by_name: HashMap<Box<str>, (usize, Span)> = HashMap::with_capacity(things.len());
        for (number, thing) in things.iter().enumerate() {
            let Name { text, span } = &thing.name;
            if let Some((_, first)) = by_name.get(text) {
                let (first, second) = (*first.min(span), *first.max(span));
                let place = decoder.location(first);
                decoder
                    .error(second, format!("{kind} {} is defined twice", quote(text)))
                    .help(format!(
                        "first defined at {place}; keep one of them, or rename one"
                    ));
                continue;
            }
            by_name.insert(text.clone(), (number, *span));
        }
        Self { kind, by_name }
    }

    /// The number of what `name` refers to; a fault with the nearest name where there is nothing.
    pub(super) fn resolve(&self, decoder: &mut Decoder, name: &Name) -> Option<usize> {
        if let Some((number, _)) = self.by_name.get(&name.text) {
            return Some(*number);
        }
        let help = (!decoder.is_full()).then(|| self.help(&name.text));
        decoder
            .error(
                name.span,
                format!("there is no {} {}", self.kind, quote(&name.text)),
            )
            .help(help.unwrap_or_default());
        None
    }

    fn help(&self, name: &str) -> String {
        match nearest(name, self.by_name.keys().map(|known| &**known)) {
            Some(near) => format!("did you mean `{near}`?"),
            None if self.kind == "identity" => "define it under `identities:`".to_owned(),
            None => format!("define it under `{}s:`", self.kind),
        }
    }

    /// The number of what is defined first under `name`.
    pub(super) fn number(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).map(|(number, _)| *number)
    }

    pub(super) fn span(&self, name: &str) -> Option<Span> {
        self.by_name.get(name).map(|(_, span)| *span)
    }
}
