//! The wire form of a policy: what stands in the documents, with its places, before names are resolved.
//!
//! A value that is wrong leaves a fault in the decoder and a gap here; names are kept in any case, so
//! that one fault is not followed by others about a name that is missing.
mod body;
mod budget;
mod credential;
mod fill;
mod grant;
mod identity;
mod opening;
pub(crate) mod payload;
mod place;
mod role;
mod route;
mod rule;
mod secret;
mod selector;
mod shape;

use crate::shape::Pattern;
use crate::syntax::{Decoder, Node, Span, quote};
use std::collections::HashMap;
use std::sync::Arc;

pub(crate) use budget::{Budget, Price};
pub(crate) use credential::Credential;
pub(crate) use fill::Arguments;
pub(crate) use grant::Grant;
pub(crate) use identity::{Group, Identity};
pub(crate) use place::{Api, HostPattern, Workload};
use role::role_ref;
pub(crate) use role::{Entry, RoleRef, Template, instantiate};
pub(crate) use rule::{Headers, Rule};
use secret::secret_ref;

/// A name where it is defined or referred to.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    pub(crate) text: Box<str>,
    pub(crate) span: Span,
}

/// A definition under its name.
#[derive(Debug)]
pub(crate) struct Named<T> {
    pub(crate) name: Name,
    pub(crate) value: T,
}

/// All documents, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Document<'n> {
    pub(crate) workloads: Vec<Named<Workload>>,
    pub(crate) identities: Vec<Named<Identity>>,
    pub(crate) groups: Vec<Named<Group>>,
    pub(crate) apis: Vec<Named<Api>>,
    pub(crate) credentials: Vec<Named<Credential>>,
    pub(crate) roles: Vec<Named<Template<'n>>>,
    pub(crate) grants: Vec<Grant>,
    pub(crate) budgets: Vec<Named<Budget>>,
    /// By model.
    pub(crate) prices: Vec<Named<Price>>,
}

/// What reading a document needs.
pub(crate) struct Reading<'d> {
    pub(crate) decoder: &'d mut Decoder,
    pub(crate) patterns: &'d mut Patterns,
}

/// The one version of the language.
pub(crate) const VERSION: u32 = 1;

/// The regular expressions of a policy, each compiled once, and not more than memory allows.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    known: HashMap<Box<str>, Result<Arc<Pattern>, String>>,
    wrong: usize,
}

impl Patterns {
    const MOST: usize = 1_024;
    /// Patterns that are tried in vain at most: to find one too large takes as long as to build it.
    const MOST_WRONG: usize = 100;

    pub(crate) fn get(&mut self, text: &str) -> Result<Arc<Pattern>, String> {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.wrong >= Self::MOST_WRONG {
            return Err("so many patterns are wrong that this one was not tried".to_owned());
        }
        if self.known.len() >= Self::MOST {
            return Err(format!(
                "the policy has more than {} different patterns",
                Self::MOST
            ));
        }
        let pattern = Pattern::new(text).map(Arc::new);
        self.wrong += usize::from(pattern.is_err());
        self.known.insert(text.into(), pattern.clone());
        pattern
    }
}

impl<'n> Document<'n> {
    /// Reads one document and adds what it defines.
    pub(crate) fn add(&mut self, reading: &mut Reading<'_>, root: &'n Node) {
        let Some(mut fields) = reading.decoder.fields(root, "the policy") else {
            return;
        };
        if let Some(node) = fields.require(reading.decoder, "version") {
            reading.decoder.integer(node, VERSION..=VERSION);
        }
        let workloads = fields.take("workloads");
        let identities = fields.take("identities");
        let groups = fields.take("groups");
        let apis = fields.take("apis");
        let credentials = fields.take("credentials");
        let roles = fields.take("roles");
        let grants = fields.take("grants");
        let budgets = fields.take("budgets");
        let prices = fields.take("prices");
        fields.finish(reading.decoder);
        self.workloads
            .extend(definitions(reading, workloads, place::workload));
        self.identities
            .extend(definitions(reading, identities, identity::identity));
        self.groups
            .extend(definitions(reading, groups, identity::group));
        self.apis.extend(definitions(reading, apis, place::api));
        self.credentials
            .extend(definitions(reading, credentials, credential::credential));
        self.roles.extend(role::templates(reading, roles));
        let grants = grants
            .and_then(|node| reading.decoder.list(node))
            .unwrap_or_default();
        self.grants
            .extend(grants.iter().filter_map(|node| grant::grant(reading, node)));
        self.budgets
            .extend(definitions(reading, budgets, budget::budget));
        self.prices.extend(prices_of(reading, prices));
    }
}

/// What models cost. Their names are not ours: they have `/`, `:` and a `*` in them.
fn prices_of(reading: &mut Reading<'_>, node: Option<&Node>) -> Vec<Named<Price>> {
    let entries = node
        .and_then(|node| reading.decoder.mapping(node))
        .unwrap_or_default();
    let mut read = |entry: &crate::syntax::Entry| Named {
        value: budget::price(reading, (&entry.key.text, entry.key.span), &entry.value),
        name: Name {
            text: entry.key.text.clone(),
            span: entry.key.span,
        },
    };
    entries.iter().map(&mut read).collect()
}

/// The entries of a mapping of names to definitions.
fn definitions<T>(
    reading: &mut Reading<'_>,
    node: Option<&Node>,
    read: fn(&mut Reading<'_>, &Node) -> T,
) -> Vec<Named<T>> {
    let entries = node
        .and_then(|node| reading.decoder.mapping(node))
        .unwrap_or_default();
    let mut read_entry = |entry: &crate::syntax::Entry| {
        check_name(reading, &entry.key.text, entry.key.span);
        let name = Name {
            text: entry.key.text.clone(),
            span: entry.key.span,
        };
        Named {
            name,
            value: read(reading, &entry.value),
        }
    };
    entries.iter().map(&mut read_entry).collect()
}

/// Names are `[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}`. Whether this is one.
fn check_name(reading: &mut Reading<'_>, text: &str, span: Span) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let good = text.len() <= 63
        && text.bytes().all(allowed)
        && text.starts_with(|first: char| first.is_ascii_alphanumeric());
    if good {
        return true;
    }
    reading
        .decoder
        .error(span, format!("{} is not a name", quote(text)))
        .help(
            "a name is 1 to 63 letters, digits, `.`, `_` or `-`, and begins with a letter or digit",
        );
    false
}

/// A reference to something defined elsewhere.
fn reference(reading: &mut Reading<'_>, node: &Node) -> Option<Name> {
    let text = reading.decoder.string(node)?;
    check_name(reading, text, node.span);
    Some(Name {
        text: text.into(),
        span: node.span,
    })
}

/// Headers in one list at most: more than a request may have.
const MAX_HEADERS: usize = 128;

/// Whether a list of headers is so long that it is not read; that is a fault.
fn too_many_headers(reading: &mut Reading<'_>, node: &Node, count: usize) -> bool {
    if count > MAX_HEADERS {
        reading
            .decoder
            .error(node.span, format!("more than {MAX_HEADERS} headers"));
    }
    count > MAX_HEADERS
}

/// Lower-case header names from a list.
fn header_names(reading: &mut Reading<'_>, node: &Node) -> Vec<Name> {
    let items = reading.decoder.nonempty_list(node).unwrap_or_default();
    if too_many_headers(reading, node, items.len()) {
        return Vec::new();
    }
    items
        .iter()
        .filter_map(|item| {
            let text = reading.decoder.string(item)?;
            header_name(reading, text, item.span)
        })
        .collect()
}

fn header_name(reading: &mut Reading<'_>, text: &str, span: Span) -> Option<Name> {
    let text = text.to_ascii_lowercase();
    if !crate::headers::is_lower_token(&text) {
        reading
            .decoder
            .error(span, format!("{} is not a header's name", quote(&text)));
        return None;
    }
    Some(Name {
        text: text.into(),
        span,
    })
}
