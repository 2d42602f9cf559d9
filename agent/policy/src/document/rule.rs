//! Rules of a role: what a request must be like.
use super::route::{self, Route, refuse_tunnels};
use super::{Name, Reading, header_name, header_names};
use crate::body::BodySpec;
use crate::canonical::MAX_PARAMETERS;
use crate::payload::{Graphql, GrpcMethods, Payload};
use crate::policy::{Extra, Parameter, QuerySpec};
use crate::route::{Methods, Template};
use crate::shape::Shape;
use crate::syntax::{Decoder, Entry, Node, Span, quote};
use crate::websocket::Messages;
use crate::when::{Known, When};

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) route: Box<str>,
    pub(crate) span: Span,
    pub(crate) methods: Methods,
    pub(crate) template: Template,
    pub(crate) query: Option<QuerySpec>,
    pub(crate) headers: Headers,
    /// Few rules have one: the others stay small.
    pub(crate) body: Option<Box<BodySpec>>,
    pub(crate) payload: Option<Box<Payload>>,
    pub(crate) grpc: bool,
    pub(crate) websocket: Option<Box<Messages>>,
    pub(crate) when: Option<Box<When>>,
}

/// What a rule says of headers.
#[derive(Debug, Default, Clone)]
pub(crate) struct Headers {
    pub(crate) allow: Vec<Name>,
    pub(crate) require: Vec<(Name, Shape)>,
    pub(crate) strip: Vec<Name>,
}

/// What stands in a rule, before its route is known.
struct Parts {
    query: Option<QuerySpec>,
    headers: Headers,
    body: Option<BodySpec>,
    payload: Option<Payload>,
    websocket: Option<Messages>,
}

/// An allow rule; several where `grpc` names several methods.
pub(super) fn allow_rules(reading: &mut Reading<'_>, node: &Node) -> Vec<Rule> {
    let Some(mut fields) = reading.decoder.fields(node, "the rule") else {
        return Vec::new();
    };
    let (route, grpc) = (fields.take("route"), fields.take_entry("grpc"));
    let (query, extra) = (fields.take("query"), fields.take_entry("extra"));
    let (headers, body) = (fields.take("headers"), fields.take_entry("body"));
    let payload = ["graphql", "mcp", "llm"].map(|key| fields.take_entry(key));
    let websocket = fields.take_entry("websocket");
    let when = fields.take("when");
    let span = fields.span();
    fields.finish(reading.decoder);
    check_extra(reading.decoder, query, extra);
    let extras = [("deny", Extra::Deny), ("strip", Extra::Strip)];
    let extra = extra.and_then(|entry| reading.decoder.word(&entry.value, &extras));
    if grpc.is_some() {
        let more = payload.into_iter().chain([websocket]).flatten();
        let inspects = body.into_iter().chain(more).next();
        refuse_with_grpc(reading.decoder, route, inspects);
    }
    if let Some(entry) = websocket
        && body.is_some() | payload.iter().any(Option::is_some)
    {
        reading
            .decoder
            .error(entry.key.span, "what opens a WebSocket has no body")
            .help("say under `websocket` what its messages must be like");
    }
    let parts = Parts {
        websocket: websocket.and_then(|entry| super::body::messages(reading, &entry.value)),
        query: query.and_then(|node| query_spec(reading, node, extra.unwrap_or(Extra::Deny))),
        headers: headers
            .map(|node| header_rules(reading, node))
            .unwrap_or_default(),
        payload: payload_of(reading, payload),
        body: body.and_then(|entry| super::body::body_spec(reading, &entry.value)),
    };
    match (route, grpc) {
        (_, Some(entry)) => grpc_rules(reading, entry, when, &parts.headers),
        (Some(node), None) => route_rule(reading, node, (when, websocket), parts),
        (None, None) => {
            reading
                .decoder
                .error(span, "the rule needs `route`")
                .help("e.g. `route: GET /repos/{owner}/{repo}`; or `grpc: package.Service/Method`");
            Vec::new()
        }
    }
}
fn check_extra(decoder: &mut Decoder, query: Option<&Node>, extra: Option<&Entry>) {
    if let (Some(extra), None) = (extra, query) {
        decoder
            .error(
                extra.key.span,
                "`extra` says what becomes of parameters that `query` does not declare",
            )
            .help("add `query: {}` to declare that there are none");
    }
}

/// What gRPC sends is not looked at.
fn refuse_with_grpc(decoder: &mut Decoder, route: Option<&Node>, inspects: Option<&Entry>) {
    if let Some(node) = route {
        decoder
            .error(node.span, "a rule has `route` or `grpc`")
            .help("`grpc` is the route `POST /package.Service/Method`");
    }
    if let Some(entry) = inspects {
        decoder
            .error(
                entry.key.span,
                format!(
                    "{} cannot be held for gRPC: its messages are not looked at",
                    quote(&entry.key.text)
                ),
            )
            .help("service and method can be; take this out");
    }
}

/// The protocol of the body, if the rule names one.
fn payload_of(reading: &mut Reading<'_>, entries: [Option<&Entry>; 3]) -> Option<Payload> {
    let mut given = entries.iter().flatten();
    if let (Some(_), Some(second)) = (given.next(), given.next()) {
        reading
            .decoder
            .error(second.key.span, "a body is of one protocol")
            .help("write a rule for each of `graphql`, `mcp` and `llm`");
    }
    let [graphql, mcp, llm] = entries.map(|entry| entry.map(|entry| &entry.value));
    let graphql = graphql.and_then(|node| super::payload::graphql(reading, node));
    let mcp = mcp.and_then(|node| super::payload::mcp(reading, node));
    let llm = llm.and_then(|node| super::payload::llm(reading, node));
    graphql
        .map(Payload::Graphql)
        .or(mcp.map(Payload::Mcp))
        .or(llm.map(Payload::Llm))
}

fn route_rule(
    reading: &mut Reading<'_>,
    node: &Node,
    (when, websocket): (Option<&Node>, Option<&Entry>),
    mut parts: Parts,
) -> Vec<Rule> {
    let Some(route) = route::parse(reading, node) else {
        return Vec::new();
    };
    refuse_tunnels(reading.decoder, &route);
    // A handshake has no body to look at.
    let body = websocket.is_none();
    let when = when.and_then(|node| condition(reading, node, &route.template, body));
    if let (Some(entry), Some(messages)) = (websocket, &mut parts.websocket) {
        if !route.methods.allow("GET") {
            reading
                .decoder
                .error(entry.key.span, "a WebSocket is opened with GET")
                .help("write `GET` in the `route`");
        }
        messages.when = super::body::message_condition(&entry.value)
            .and_then(|node| condition(reading, node, &route.template, true));
    }
    let (mut query, mut body) = (parts.query, parts.body);
    if let Some(payload) = &parts.payload {
        // Some servers take parts of the request from there.
        let query = query.get_or_insert_with(|| QuerySpec {
            parameters: Vec::new(),
            extra: Extra::Deny,
        });
        check_parameters(reading.decoder, node.span, payload, query);
    }
    let looked_at = parts.payload.is_some() || when.as_ref().is_some_and(|when| when.needs_body());
    if looked_at && body.is_none() {
        body = Some(super::body::any_body(parts.payload.is_some()));
    }
    vec![Rule {
        query,
        headers: parts.headers,
        body: body.map(Box::new),
        payload: parts.payload.map(Box::new),
        websocket: parts.websocket.map(Box::new),
        when: when.map(Box::new),
        ..bare(route)
    }]
}

/// What GraphQL servers take from the query is not looked at there.
fn check_parameters(decoder: &mut Decoder, span: Span, payload: &Payload, query: &QuerySpec) {
    let Payload::Graphql(_) = payload else {
        return;
    };
    let known = |parameter: &&Parameter| Graphql::PARAMETERS.contains(&&*parameter.name);
    if let Some(parameter) = query.parameters.iter().find(known) {
        decoder
            .error(
                span,
                format!(
                    "{} in the query is part of a GraphQL request",
                    quote(&parameter.name)
                ),
            )
            .help("take it out of `query`: operations are only looked at in the body");
    }
}

/// `POST /package.Service/Method` for each method.
fn grpc_rules(
    reading: &mut Reading<'_>,
    entry: &Entry,
    when: Option<&Node>,
    headers: &Headers,
) -> Vec<Rule> {
    let services = super::payload::grpc(reading, &entry.value).unwrap_or_default();
    let mut rules = Vec::new();
    for service in services {
        let any: [Box<str>; 1] = ["*".into()];
        let methods = match &service.methods {
            GrpcMethods::Any => &any[..],
            GrpcMethods::These(methods) => methods,
        };
        for method in methods {
            let text = format!("POST /{}/{method}", service.service);
            let Some(route) = route::of_text(reading, entry.value.span, &text) else {
                continue;
            };
            let when = when.and_then(|node| condition(reading, node, &route.template, false));
            rules.push(Rule {
                headers: headers.clone(),
                grpc: true,
                when: when.map(Box::new),
                ..bare(route)
            });
        }
    }
    rules
}

pub(super) fn deny_rule(reading: &mut Reading<'_>, node: &Node) -> Option<Rule> {
    let mut fields = reading.decoder.fields(node, "the deny rule")?;
    let route = fields.require(reading.decoder, "route");
    let when = fields.take("when");
    for key in [
        "query",
        "extra",
        "body",
        "headers",
        "graphql",
        "grpc",
        "mcp",
        "llm",
        "websocket",
    ] {
        if let Some(entry) = fields.take_entry(key) {
            reading
                .decoder
                .error(entry.key.span, format!("a deny rule has no `{key}`"))
                .help("it is a route, and a condition on the head of the request under `when`");
        }
    }
    fields.finish(reading.decoder);
    let route = route::parse(reading, route?)?;
    let when = when.and_then(|node| condition(reading, node, &route.template, false));
    Some(Rule {
        when: when.map(Box::new),
        ..bare(route)
    })
}

/// Reads a condition; `body` says whether it may look at the body.
fn condition(
    reading: &mut Reading<'_>,
    node: &Node,
    template: &Template,
    body: bool,
) -> Option<When> {
    let text = reading.decoder.string(node)?;
    let names: Vec<&str> = template.names().collect();
    let known = Known {
        parameters: &names,
        body,
    };
    match When::parse(text, &known) {
        Ok(when) => Some(when),
        Err(faults) => {
            for fault in faults {
                let span = reading
                    .decoder
                    .within(node.span, text, fault.at, fault.width);
                let remark = reading.decoder.error(span, fault.message);
                if let Some(help) = fault.help {
                    remark.help(help);
                }
            }
            None
        }
    }
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
        payload: None,
        grpc: false,
        websocket: None,
        when: None,
    }
}

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
