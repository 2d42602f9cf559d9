//! Roles: what may be asked of an api, and with which credential.
use super::{Name, Reading, header_names, reference, unsupported};
use crate::body::BodySpec;
use crate::policy::{Extra, Parameter, QuerySpec};
use crate::route::{Methods, Template};
use crate::syntax::{Decoder, Fields, Node, Span, quote};

#[derive(Debug)]
pub(crate) struct Role {
    pub(crate) entries: Vec<Entry>,
}

/// What a role says of one api.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) api: Name,
    pub(crate) credential: Option<Name>,
    pub(crate) allow: Vec<Rule>,
    pub(crate) deny: Vec<Rule>,
    pub(crate) response_strip: Vec<Name>,
}

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) route: Box<str>,
    pub(crate) span: Span,
    pub(crate) methods: Methods,
    pub(crate) template: Template,
    pub(crate) query: Option<QuerySpec>,
    pub(crate) body: Option<BodySpec>,
    pub(crate) headers: Vec<Name>,
}

pub(super) fn role(reading: &mut Reading<'_>, node: &Node) -> Role {
    let items = reading.decoder.nonempty_list(node).unwrap_or_default();
    Role {
        entries: items
            .iter()
            .filter_map(|item| entry(reading, item))
            .collect(),
    }
}

fn entry(reading: &mut Reading<'_>, node: &Node) -> Option<Entry> {
    let mut fields = reading.decoder.fields(node, "the role's entry")?;
    let api = fields.require(reading.decoder, "api");
    let credential = fields.take("credential");
    let (allow, deny) = (fields.take("allow"), fields.take("deny"));
    let response = fields.take("response");
    if allow.is_none() && deny.is_none() {
        reading
            .decoder
            .error(fields.span(), "the role's entry needs `allow` or `deny`");
    }
    fields.finish(reading.decoder);
    let allow = allow
        .and_then(|node| reading.decoder.nonempty_list(node))
        .unwrap_or_default();
    let deny = deny
        .and_then(|node| reading.decoder.nonempty_list(node))
        .unwrap_or_default();
    let allow = allow
        .iter()
        .filter_map(|item| allow_rule(reading, item))
        .collect();
    let deny = deny
        .iter()
        .filter_map(|item| deny_rule(reading, item))
        .collect();
    let credential = credential.and_then(|node| reference(reading, node));
    let response_strip = response
        .map(|node| response_strip(reading, node))
        .unwrap_or_default();
    let api = api.and_then(|node| reference(reading, node))?;
    Some(Entry {
        api,
        credential,
        allow,
        deny,
        response_strip,
    })
}

fn response_strip(reading: &mut Reading<'_>, node: &Node) -> Vec<Name> {
    let Some(mut fields) = reading.decoder.fields(node, "`response`") else {
        return Vec::new();
    };
    unsupported(reading, &mut fields, &["redact", "max"]);
    let strip = fields.take("strip");
    fields.finish(reading.decoder);
    strip
        .map(|node| header_names(reading, node))
        .unwrap_or_default()
}

/// Keys of an allow rule that this version does not know how to hold.
const LATER: [&str; 7] = ["when", "strip", "graphql", "grpc", "mcp", "llm", "models"];

fn allow_rule(reading: &mut Reading<'_>, node: &Node) -> Option<Rule> {
    let mut fields = reading.decoder.fields(node, "the rule")?;
    let route = fields.require(reading.decoder, "route");
    let query = fields.take("query");
    let extra = fields.take_entry("extra");
    let body = fields.take("body");
    let headers = fields.take("headers");
    unsupported(reading, &mut fields, &LATER);
    fields.finish(reading.decoder);
    if let (Some(extra), None) = (extra, query) {
        reading
            .decoder
            .error(
                extra.key.span,
                "`extra` says what becomes of parameters that `query` does not declare",
            )
            .help("add `query: {}` to declare that there are none");
    }
    let extras = [("deny", Extra::Deny), ("strip", Extra::Strip)];
    let extra = extra.and_then(|entry| reading.decoder.word(&entry.value, &extras));
    let query = query.and_then(|node| query_spec(reading, node, extra.unwrap_or(Extra::Deny)));
    let body = body.and_then(|node| super::body::body_spec(reading, node));
    let headers = headers
        .map(|node| allowed_headers(reading, node))
        .unwrap_or_default();
    let rule = parse_route(reading, route?)?;
    refuse_tunnels(reading.decoder, &rule);
    Some(Rule {
        query,
        body,
        headers,
        ..rule
    })
}

fn deny_rule(reading: &mut Reading<'_>, node: &Node) -> Option<Rule> {
    let mut fields = reading.decoder.fields(node, "the deny rule")?;
    let route = fields.require(reading.decoder, "route");
    for key in ["query", "extra", "body", "headers"] {
        if let Some(entry) = fields.take_entry(key) {
            reading
                .decoder
                .unsupported(entry.key.span, &format!("`{key}` in a deny rule"));
        }
    }
    unsupported(reading, &mut fields, &LATER);
    fields.finish(reading.decoder);
    parse_route(reading, route?)
}

/// `METHOD /path`, `GET|HEAD /path`, `* /path`.
fn parse_route(reading: &mut Reading<'_>, node: &Node) -> Option<Rule> {
    let text = reading.decoder.string(node)?;
    let help = "write `METHOD /path`, e.g. `GET /repos/{owner}/{repo}` or `GET|HEAD /v1/**`";
    if text.len() > 4_096 {
        reading
            .decoder
            .error(node.span, "the route is longer than 4096 bytes");
        return None;
    }
    let Some((methods, path)) = text.split_once(' ') else {
        reading
            .decoder
            .error(node.span, "the route needs a method and a path")
            .help(help);
        return None;
    };
    let patterns = &mut *reading.patterns;
    let template = Template::parse(path.trim_start(), &mut |text| patterns.get(text));
    let template = match template {
        Ok(template) => Some(template),
        Err((message, suggestion)) => {
            let remark = reading.decoder.error(node.span, message);
            if let Some(suggestion) = suggestion {
                remark.help(suggestion);
            }
            None
        }
    };
    let methods = parse_methods(reading, node.span, methods);
    Some(Rule {
        route: text.into(),
        span: node.span,
        methods: methods?,
        template: template?,
        query: None,
        body: None,
        headers: Vec::new(),
    })
}

fn parse_methods(reading: &mut Reading<'_>, span: Span, text: &str) -> Option<Methods> {
    if text == "*" {
        return Some(Methods::Any);
    }
    if text == "read-only" {
        reading
            .decoder
            .unsupported(span, "`read-only`")
            .help("write `GET|HEAD`");
        return None;
    }
    let mut methods = smallvec::SmallVec::new();
    for method in text.split('|') {
        let allowed =
            |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        let named = method.starts_with(|first: char| first.is_ascii_uppercase());
        if !named || method.len() > 32 || !method.bytes().all(allowed) {
            let upper = method.to_ascii_uppercase();
            let remark = reading
                .decoder
                .error(span, format!("{} is not a method", quote(method)));
            if upper != method && upper.bytes().all(allowed) {
                remark.help(format!(
                    "methods are compared exactly: write {}",
                    quote(&upper)
                ));
            } else {
                remark.help("write `GET`, `GET|HEAD`, or `*` for all");
            }
            return None;
        }
        let method: Box<str> = method.into();
        if methods.contains(&method) {
            reading.decoder.error(
                span,
                format!("{} stands twice in the route", quote(&method)),
            );
            return None;
        }
        methods.push(method);
    }
    Some(Methods::These(methods))
}

/// CONNECT makes a tunnel that nobody looks into, TRACE returns the request with its credential.
fn refuse_tunnels(decoder: &mut Decoder, rule: &Rule) {
    let Methods::These(methods) = &rule.methods else {
        return;
    };
    for method in methods {
        if matches!(&**method, "CONNECT" | "TRACE") {
            decoder.error(rule.span, format!("{} cannot be allowed", quote(method)));
        }
    }
}

fn query_spec(reading: &mut Reading<'_>, node: &Node, extra: Extra) -> Option<QuerySpec> {
    let entries = reading.decoder.mapping(node)?;
    let mut parameters: Vec<Parameter> = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = entry.key.text.clone();
        if name.is_empty() || name.chars().any(char::is_control) {
            reading
                .decoder
                .error(entry.key.span, "this cannot be a parameter's name");
        }
        if let Some((shape, required)) = super::shape::parameter(reading, &entry.value) {
            parameters.push(Parameter {
                name,
                shape,
                required,
            });
        }
    }
    parameters.sort_by(|one, other| one.name.cmp(&other.name));
    Some(QuerySpec { parameters, extra })
}

fn allowed_headers(reading: &mut Reading<'_>, node: &Node) -> Vec<Name> {
    let Some(mut fields): Option<Fields<'_>> = reading.decoder.fields(node, "`headers`") else {
        return Vec::new();
    };
    unsupported(reading, &mut fields, &["require", "strip"]);
    let allow = fields.take("allow");
    fields.finish(reading.decoder);
    let names = allow
        .map(|node| header_names(reading, node))
        .unwrap_or_default();
    for name in &names {
        if crate::headers::never_passes(&name.text) {
            let message = format!("the header {} never passes", quote(&name.text));
            reading.decoder.error(name.span, message);
        } else if crate::headers::is_credential_header(&name.text) {
            reading
                .decoder
                .error(
                    name.span,
                    format!(
                        "the header {} is a slot for a credential",
                        quote(&name.text)
                    ),
                )
                .help("let the client's own credentials pass with `credential: client`");
        }
    }
    names
}
