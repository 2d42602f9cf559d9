//! Rules of a role: what a request must be like.
use super::route::{self, Route, refuse_tunnels};
use super::{Name, Reading, header_name, header_names, unsupported};
use crate::body::BodySpec;
use crate::canonical::MAX_PARAMETERS;
use crate::policy::{Extra, Parameter, QuerySpec};
use crate::route::{Methods, Template};
use crate::shape::Shape;
use crate::syntax::{Decoder, Node, Span, quote};

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) route: Box<str>,
    pub(crate) span: Span,
    pub(crate) methods: Methods,
    pub(crate) template: Template,
    pub(crate) query: Option<QuerySpec>,
    pub(crate) headers: Headers,
    pub(crate) body: Option<BodySpec>,
}

/// What a rule says of headers.
#[derive(Debug, Default)]
pub(crate) struct Headers {
    pub(crate) allow: Vec<Name>,
    pub(crate) require: Vec<(Name, Shape)>,
    pub(crate) strip: Vec<Name>,
}

/// Keys of an allow rule that this version does not know how to hold.
const LATER: [&str; 5] = ["when", "graphql", "grpc", "mcp", "llm"];

pub(super) fn allow_rules(reading: &mut Reading<'_>, node: &Node) -> Option<Rule> {
    let mut fields = reading.decoder.fields(node, "the rule")?;
    let route = fields.require(reading.decoder, "route");
    let (query, extra) = (fields.take("query"), fields.take_entry("extra"));
    let (headers, body) = (fields.take("headers"), fields.take("body"));
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
    let headers = headers
        .map(|node| header_rules(reading, node))
        .unwrap_or_default();
    let body = body.and_then(|node| body_spec(reading, node));
    let route = route::parse(reading, route?)?;
    refuse_tunnels(reading.decoder, &route);
    Some(Rule {
        query,
        headers,
        body,
        ..bare(route)
    })
}

pub(super) fn deny_rules(reading: &mut Reading<'_>, node: &Node) -> Option<Rule> {
    let mut fields = reading.decoder.fields(node, "the deny rule")?;
    let route = fields.require(reading.decoder, "route");
    for key in ["query", "extra", "body", "headers"] {
        if let Some(entry) = fields.take_entry(key) {
            reading
                .decoder
                .unsupported(entry.key.span, &format!("`{key}` in a deny rule"))
                .help("a deny rule is a route, and a condition under `when`");
        }
    }
    unsupported(reading, &mut fields, &LATER);
    fields.finish(reading.decoder);
    Some(bare(route::parse(reading, route?)?))
}

/// A rule that says nothing but its route.
fn bare(route: Route) -> Rule {
    Rule {
        route: route.text,
        span: route.span,
        methods: route.methods,
        template: route.template,
        query: None,
        headers: Headers::default(),
        body: None,
    }
}

/// Bytes of a body that is looked at, unless said.
const DEFAULT_BODY: usize = 64 << 10;
/// Bytes of a body that can be looked at.
const MAX_BODY: u64 = 16 << 20;

fn query_spec(reading: &mut Reading<'_>, node: &Node, extra: Extra) -> Option<QuerySpec> {
    let entries = reading.decoder.mapping(node)?;
    if entries.len() > MAX_PARAMETERS {
        let message = format!("more than {MAX_PARAMETERS} parameters, which no request has");
        reading.decoder.error(node.span, message);
        return None;
    }
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

fn body_spec(reading: &mut Reading<'_>, node: &Node) -> Option<BodySpec> {
    let mut fields = reading.decoder.fields(node, "`body`")?;
    let refused = unsupported(reading, &mut fields, &["schema", "strip"]);
    let declared = match refused {
        true => fields.take("fields"),
        false => fields.require(reading.decoder, "fields"),
    };
    let max = fields.take("max");
    fields.finish(reading.decoder);
    let max = match max {
        Some(node) => body_max(reading, node)?,
        None => DEFAULT_BODY,
    };
    let fields: Vec<crate::shape::Field> = super::shape::object(reading, declared?);
    Some(BodySpec { fields, max })
}

fn body_max(reading: &mut Reading<'_>, node: &Node) -> Option<usize> {
    let size = reading.decoder.byte_size(node)?;
    if size == 0 || size > MAX_BODY {
        reading.decoder.error(
            node.span,
            "a body that is looked at has between 1 byte and 16MiB",
        );
        return None;
    }
    usize::try_from(size).ok()
}

fn header_rules(reading: &mut Reading<'_>, node: &Node) -> Headers {
    let Some(mut fields) = reading.decoder.fields(node, "`headers`") else {
        return Headers::default();
    };
    let [allow, strip] = ["allow", "strip"].map(|key| fields.take(key));
    let require = fields.take("require");
    fields.finish(reading.decoder);
    let mut names = |node: Option<&Node>| {
        node.map(|node| header_names(reading, node))
            .unwrap_or_default()
    };
    let (allow, strip) = (names(allow), names(strip));
    let require = require
        .map(|node| required_headers(reading, node))
        .unwrap_or_default();
    let required = || require.iter().map(|(name, _)| name);
    for name in allow.iter().chain(required()) {
        check_passes(reading.decoder, name);
        if let Some(dropped) = strip.iter().find(|dropped| dropped.text == name.text) {
            let message = format!(
                "the header {} both passes and is stripped",
                quote(&name.text)
            );
            reading.decoder.error(dropped.span, message);
        }
    }
    Headers {
        allow,
        require,
        strip,
    }
}

/// Names with what their one value must be.
fn required_headers(reading: &mut Reading<'_>, node: &Node) -> Vec<(Name, Shape)> {
    let entries = reading.decoder.mapping(node).unwrap_or_default();
    if super::too_many_headers(reading, node, entries.len()) {
        return Vec::new();
    }
    let mut headers: Vec<(Name, Shape)> = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = header_name(reading, &entry.key.text, entry.key.span);
        let shape = super::shape::header(reading, &entry.value);
        let (Some(name), Some(shape)) = (name, shape) else {
            continue;
        };
        if headers.iter().any(|(known, _)| known.text == name.text) {
            let message = format!("the header {} is required twice", quote(&name.text));
            reading.decoder.error(name.span, message);
            continue;
        }
        headers.push((name, shape));
    }
    headers
}

fn check_passes(decoder: &mut Decoder, name: &Name) {
    if crate::headers::never_passes(&name.text) {
        let message = format!("the header {} never passes", quote(&name.text));
        decoder.error(name.span, message);
    } else if crate::headers::is_credential_header(&name.text) {
        let message = format!(
            "the header {} is a slot for a credential",
            quote(&name.text)
        );
        decoder
            .error(name.span, message)
            .help("let the client's own credentials pass with `credential: client`");
    }
}
