//! Roles: what may be asked of an api, and with which credential. A role with parameters is a template,
//! read anew for each list of arguments; a role may include others.
use super::fill::{fill, mentioned, weight};
use super::rule::{allow_rules, deny_rule};
use super::{Name, Named, Reading, Rule, check_name, header_names, reference};
use crate::body::Redactor;
use crate::syntax::{Entry as YamlEntry, Node, Span, Value, quote};

/// A role as it is written.
#[derive(Debug)]
pub(crate) struct Template<'n> {
    pub(crate) parameters: Vec<Name>,
    node: &'n Node,
}

impl<'n> Template<'n> {
    /// How much reading it costs.
    pub(crate) fn weight(&self) -> usize {
        weight(self.node)
    }

    /// Calls `visit` with every text that stands in it, keys among them.
    pub(crate) fn each_text(&self, visit: &mut dyn FnMut(&'n str)) {
        fn walk<'n>(node: &'n Node, visit: &mut dyn FnMut(&'n str)) {
            match &node.value {
                Value::Scalar(scalar) => visit(&scalar.text),
                Value::Sequence(items) => items.iter().for_each(|item| walk(item, visit)),
                Value::Mapping(entries) => entries.iter().for_each(|entry| {
                    visit(&entry.key.text);
                    walk(&entry.value, visit);
                }),
            }
        }
        walk(self.node, visit);
    }
}

/// A role, named with its arguments.
#[derive(Debug, Clone)]
pub(crate) struct RoleRef {
    pub(crate) name: Name,
    pub(crate) arguments: Vec<(Box<str>, Box<str>)>,
}

/// A role with its parameters filled in.
#[derive(Debug, Default)]
pub(crate) struct Role {
    pub(crate) includes: Vec<RoleRef>,
    pub(crate) entries: Vec<Entry>,
}

/// What a role says of one api.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) api: Name,
    pub(crate) credential: Option<Name>,
    pub(crate) allow: Vec<Rule>,
    pub(crate) deny: Vec<Rule>,
    /// Where `allow`, `deny`, `credential` or `response` stands, whichever is first: none may for an api that is not inspected.
    pub(crate) inspects: Option<Span>,
    /// Whether there are rules, also wrong ones.
    pub(crate) ruled: bool,
    pub(crate) response: Response,
    pub(crate) span: Span,
}

/// What a role says of an api's responses.
#[derive(Debug, Default)]
pub(crate) struct Response {
    pub(crate) strip: Vec<Name>,
    pub(crate) redact: Option<Redactor>,
    pub(crate) max: Option<u64>,
}

/// Characters of an argument at most.
const MAX_ARGUMENT: usize = 256;
/// Parameters of a role at most.
const MAX_PARAMETERS: usize = 32;

/// The roles of a document, not yet read further than their names.
pub(super) fn templates<'n>(
    reading: &mut Reading<'_>,
    node: Option<&'n Node>,
) -> Vec<Named<Template<'n>>> {
    let entries = node
        .and_then(|node| reading.decoder.mapping(node))
        .unwrap_or_default();
    let mut template = |entry: &'n YamlEntry| {
        let span = entry.key.span;
        let (name, list) = split_call(&entry.key.text);
        check_name(reading, name, span);
        let parameters = parameters(reading, list, &entry.value, span);
        Named {
            name: Name {
                text: name.into(),
                span,
            },
            value: Template {
                parameters,
                node: &entry.value,
            },
        }
    };
    entries.iter().map(&mut template).collect()
}

/// The names in brackets behind a role's name: each once, and used in what the role says.
fn parameters(reading: &mut Reading<'_>, list: Option<&str>, node: &Node, span: Span) -> Vec<Name> {
    let mut parameters: Vec<Name> = Vec::new();
    for text in list.into_iter().flat_map(|list| list.split(',')) {
        let text = text.trim();
        if parameters.len() >= MAX_PARAMETERS {
            let message = format!("more than {MAX_PARAMETERS} parameters");
            reading.decoder.error(span, message);
            break;
        }
        if !is_parameter(text) || parameters.iter().any(|known| &*known.text == text) {
            reading
                .decoder
                .error(span, format!("{} is no parameter's name here", quote(text)))
                .help("write each once, in letters, digits or `_`: `repo-reader(owner, repo)`");
            continue;
        }
        parameters.push(Name {
            text: text.into(),
            span,
        });
    }
    if parameters.is_empty() {
        return parameters;
    }
    let used = mentioned(node);
    for Name { text, span } in &parameters {
        if !used.contains(&**text) {
            // As in `/repos/{repo}/**`, which is every repository.
            reading
                .decoder
                .error(*span, format!("the parameter {} is not used", quote(text)))
                .help(format!(
                    "write `${{{text}}}` where it is meant; `{{{text}}}` in a route is any segment"
                ));
        }
    }
    parameters
}

/// `name(list)` in its two parts.
fn split_call(text: &str) -> (&str, Option<&str>) {
    match text.strip_suffix(')').and_then(|rest| rest.split_once('(')) {
        Some((name, list)) => (name.trim_end(), Some(list)),
        None => (text, None),
    }
}

fn is_parameter(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// `name`, `name(repo: acme/app)`, or `name(repo=acme/app)`, which YAML takes without quotes.
pub(super) fn role_ref(reading: &mut Reading<'_>, node: &Node) -> Option<RoleRef> {
    let text = reading.decoder.string(node)?;
    let (name, list) = split_call(text);
    if !check_name(reading, name, node.span) {
        return None;
    }
    let mut arguments: Vec<(Box<str>, Box<str>)> = Vec::new();
    for text in list.into_iter().flat_map(|list| list.split(',')) {
        if arguments.len() >= MAX_PARAMETERS {
            let message = format!("a role has at most {MAX_PARAMETERS} arguments");
            reading.decoder.error(node.span, message);
            return None;
        }
        let Some((parameter, value)) = text.split_once([':', '=']) else {
            reading
                .decoder
                .error(
                    node.span,
                    format!("{} is no argument of a role", quote(text)),
                )
                .help("write `role(name: value)`, in quotes, or `role(name=value)`");
            return None;
        };
        let (parameter, value) = (parameter.trim(), value.trim());
        if !is_argument(value) {
            reading
                .decoder
                .error(node.span, format!("{} is no argument of a role", quote(value)))
                .help("an argument is 1 to 256 letters, digits or `._~/@:+=-`: it fills a place and widens nothing");
            return None;
        }
        arguments.push((parameter.into(), value.into()));
    }
    arguments.sort();
    Some(RoleRef {
        name: Name {
            text: name.into(),
            span: node.span,
        },
        arguments,
    })
}

/// Nothing that is a wildcard, a quote or a bracket where it is filled in. An argument of the including
/// role, `${name}`, is filled in before this is asked.
fn is_argument(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_ARGUMENT
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._~/@:+=-".contains(&byte))
}

impl std::fmt::Display for RoleRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name.text)?;
        for (index, (parameter, value)) in self.arguments.iter().enumerate() {
            f.write_str(if index == 0 { "(" } else { ", " })?;
            write!(f, "{parameter}: {value}")?;
        }
        f.write_str(if self.arguments.is_empty() { "" } else { ")" })
    }
}

/// Reads a role with these arguments filled in.
pub(crate) fn instantiate(
    reading: &mut Reading<'_>,
    template: &Template<'_>,
    arguments: &[(Box<str>, Box<str>)],
) -> Role {
    let filled = fill(reading.decoder, template.node, arguments);
    let items = reading.decoder.nonempty_list(&filled).unwrap_or_default();
    let mut role = Role::default();
    for item in items {
        match include(reading, item) {
            Some(included) => role.includes.extend(included),
            None => role.entries.extend(entry(reading, item)),
        }
    }
    role
}

/// `None` where the item is no `include`; an empty answer where it is a wrong one.
fn include(reading: &mut Reading<'_>, node: &Node) -> Option<Option<RoleRef>> {
    let Value::Mapping(entries) = &node.value else {
        return None;
    };
    entries.iter().find(|entry| &*entry.key.text == "include")?;
    let mut fields = reading.decoder.fields(node, "the inclusion")?;
    let role = fields.take("include");
    fields.finish(reading.decoder);
    Some(role.and_then(|node| role_ref(reading, node)))
}

fn entry(reading: &mut Reading<'_>, node: &Node) -> Option<Entry> {
    let mut fields = reading.decoder.fields(node, "the role's entry")?;
    let api = fields.require(reading.decoder, "api");
    let credential = fields.take_entry("credential");
    let (allow, deny) = (fields.take_entry("allow"), fields.take_entry("deny"));
    let response = fields.take_entry("response");
    let span = fields.span();
    fields.finish(reading.decoder);
    let inspects = [credential, allow, deny, response]
        .into_iter()
        .flatten()
        .map(|entry| entry.key.span)
        .min();
    let rules = [allow, deny].map(|entry| {
        entry
            .and_then(|entry| reading.decoder.nonempty_list(&entry.value))
            .unwrap_or_default()
    });
    let [allows, denies] = rules;
    let allowed = allows
        .iter()
        .flat_map(|item| allow_rules(reading, item))
        .collect();
    let denied = denies
        .iter()
        .filter_map(|item| deny_rule(reading, item))
        .collect();
    let credential = credential.and_then(|entry| reference(reading, &entry.value));
    let response = response
        .map(|entry| response_rules(reading, &entry.value))
        .unwrap_or_default();
    let api = api.and_then(|node| reference(reading, node))?;
    Some(Entry {
        api,
        credential,
        allow: allowed,
        deny: denied,
        inspects,
        ruled: allow.is_some() || deny.is_some(),
        response,
        span,
    })
}

fn response_rules(reading: &mut Reading<'_>, node: &Node) -> Response {
    let Some(mut fields) = reading.decoder.fields(node, "`response`") else {
        return Response::default();
    };
    let [strip, redact, max] = ["strip", "redact", "max"].map(|key| fields.take(key));
    fields.finish(reading.decoder);
    Response {
        strip: strip
            .map(|node| header_names(reading, node))
            .unwrap_or_default(),
        redact: redact.and_then(|node| super::body::redactor(reading.decoder, node)),
        max: max.and_then(|node| reading.decoder.byte_size(node)),
    }
}
