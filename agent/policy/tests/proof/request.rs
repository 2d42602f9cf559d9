//! A request as data, and how it is put to the policy.
use std::net::SocketAddr;
use tollgate_policy::canonical::{Host, Target};
use tollgate_policy::{
    Body, Connection, Decision, Explanation, Headers, Mode, Outcome, Policy, Request, Scheme,
    Subject, Verdict,
};

#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) workload: String,
    pub(crate) identity: Option<String>,
    pub(crate) now: i64,
    pub(crate) what: What,
    pub(crate) https: bool,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) method: String,
    /// Decoded segments; empty only as the last, for a trailing slash.
    pub(crate) path: Vec<String>,
    pub(crate) query: Vec<Pair>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) payload: Payload,
    /// How it is written, where there is more than one way.
    pub(crate) spelling: u32,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum What {
    Request,
    /// A connection with this name in the TLS hello: `host` and `port`.
    Name,
    Address(SocketAddr),
}

/// A parameter, decoded.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Debug, Clone)]
pub(crate) enum Payload {
    Absent,
    Json(Json),
    Form(Vec<(String, String)>),
    /// Neither.
    Broken(&'static str),
}

#[derive(Debug, Clone)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    /// As it is written.
    Number(&'static str),
    Text(String),
    List(Vec<Json>),
    /// Keys may stand twice.
    Object(Vec<(String, Json)>),
}

impl Json {
    /// With `pad` between the parts: JSON allows white space there.
    fn write(&self, pad: &str, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(text) => out.push_str(text),
            Self::Text(text) => write_text(text, pad, out),
            Self::List(items) => {
                out.push('[');
                for (index, item) in items.iter().enumerate() {
                    out.push_str(if index == 0 { pad } else { "," });
                    item.write(pad, out);
                }
                out.push(']');
            }
            Self::Object(entries) => {
                out.push('{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    out.push_str(if index == 0 { pad } else { "," });
                    write_text(key, pad, out);
                    out.push(':');
                    out.push_str(pad);
                    value.write(pad, out);
                }
                out.push('}');
            }
        }
    }
}

/// A padded text has its first character escaped.
fn write_text(text: &str, pad: &str, out: &mut String) {
    out.push('"');
    for (index, one) in text.chars().enumerate() {
        match one {
            '"' | '\\' => out.extend(['\\', one]),
            one if index == 0 && !pad.is_empty() => {
                out.push_str(&format!("\\u{:04x}", u32::from(one)));
            }
            one => out.push(one),
        }
    }
    out.push('"');
}

/// Escapes what RFC 3986 does not allow raw; `also` escapes more.
fn escaped(text: &str, also: impl Fn(u8) -> bool, out: &mut String) {
    for byte in text.bytes() {
        let raw = byte.is_ascii_alphanumeric() || b"-._~:@!$'()*,".contains(&byte);
        if raw && !also(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

impl Asked {
    fn spelt(&self, bit: u32) -> bool {
        self.spelling & (1 << bit) != 0
    }

    /// What the client sends.
    pub(crate) fn target(&self) -> String {
        let mut out = String::new();
        if self.spelt(0) {
            out.push_str("/.");
        }
        if self.spelt(1) && self.path.len() > 1 {
            out.push('/');
        }
        for segment in &self.path {
            out.push('/');
            // `a` may be written as its escape, and `:` is the same text either way.
            let (letter, colon) = (self.spelt(2), self.spelt(3));
            let also = |byte| (letter && byte == b'a') || (colon && byte == b':');
            escaped(segment, also, &mut out);
        }
        if !self.query.is_empty() || self.spelt(4) {
            out.push('?');
        }
        for (index, pair) in self.query.iter().enumerate() {
            if index > 0 {
                out.push_str(if self.spelt(5) { "&&" } else { "&" });
            }
            let mut text = String::new();
            self.write_pair(pair, &mut text);
            // Canonical names and values, or with a letter escaped.
            if self.spelt(6) {
                text = text.replace('p', "%70").replace("%20", "+");
            }
            out.push_str(&text);
        }
        out
    }

    /// A parameter in canonical form.
    pub(crate) fn write_pair(&self, pair: &Pair, out: &mut String) {
        let colon = self.spelt(3);
        escaped(&pair.name, |byte| colon && byte == b':', out);
        if !pair.value.is_empty() || self.spelt(7) {
            out.push('=');
            escaped(&pair.value, |byte| colon && byte == b':', out);
        }
    }

    pub(crate) fn bytes(&self) -> Option<Vec<u8>> {
        let pad = if self.spelt(8) { " " } else { "" };
        let mut out = String::new();
        match &self.payload {
            Payload::Absent => return None,
            Payload::Json(json) => json.write(pad, &mut out),
            Payload::Form(pairs) => {
                for (index, (name, value)) in pairs.iter().enumerate() {
                    if index > 0 {
                        out.push('&');
                    }
                    let also = |byte| self.spelt(2) && byte == b'a';
                    escaped(name, also, &mut out);
                    out.push('=');
                    escaped(value, also, &mut out);
                }
            }
            Payload::Broken(text) => out.push_str(text),
        }
        Some(out.into_bytes())
    }

    /// Whether the body is read only when it is asked for.
    pub(crate) fn is_unread(&self) -> bool {
        self.spelt(9)
    }
}

struct Fields<'a>(&'a [(String, String)]);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        let values = self.0.iter().filter(|(field, _)| field == name);
        values.for_each(|(_, value)| visit(value.as_bytes()));
    }
}

/// How a decision was come to.
pub(crate) enum Got<'p> {
    Decided(Decision<'p>),
    /// Only after a part of the body was read; the reason speaks of that part.
    FromPart(Decision<'p>),
    /// A connection that is to be inspected.
    Inspected,
}

pub(crate) fn ask<'p>(policy: &'p Policy, asked: &Asked) -> Got<'p> {
    let subject = subject(asked);
    let host = Host::parse(&asked.host).unwrap();
    match asked.what {
        What::Request => {}
        What::Name => {
            let connection = Connection::Name(&host, asked.port);
            return connected(policy.connect(&subject, connection, asked.now));
        }
        What::Address(address) => {
            let connection = Connection::Address(address);
            return connected(policy.connect(&subject, connection, asked.now));
        }
    }
    let bytes = asked.bytes();
    let length = bytes.as_ref().map(|bytes| bytes.len() as u64);
    let whole = bytes.as_deref().map_or(Body::Absent, Body::Read);
    let body = match whole {
        Body::Read(_) if asked.is_unread() => Body::Unread(length.filter(|_| asked.spelt(10))),
        whole => whole,
    };
    match with_request(asked, body, |request| policy.decide(&subject, request)) {
        Outcome::Decided(decision) if asked.is_unread() => Got::FromPart(decision),
        Outcome::Decided(decision) => Got::Decided(decision),
        Outcome::NeedsBody { max } => {
            assert!(matches!(body, Body::Unread(_)), "the body is there");
            let bytes = bytes.as_deref().unwrap_or(&[]);
            let read = Body::Read(&bytes[..bytes.len().min(max + 1)]);
            match with_request(asked, read, |request| policy.decide(&subject, request)) {
                Outcome::Decided(decision) => Got::FromPart(decision),
                Outcome::NeedsBody { .. } => panic!("the body is asked for twice"),
            }
        }
    }
}

pub(crate) fn explain<'p>(policy: &'p Policy, asked: &Asked) -> Explanation<'p> {
    let bytes = asked.bytes();
    let body = bytes.as_deref().map_or(Body::Absent, Body::Read);
    with_request(asked, body, |request| {
        policy.explain(&subject(asked), request)
    })
}

fn subject(asked: &Asked) -> Subject<'_> {
    Subject {
        workload: &asked.workload,
        identity: asked.identity.as_deref(),
    }
}

fn connected(decision: Option<Decision<'_>>) -> Got<'_> {
    decision.map_or(Got::Inspected, Got::Decided)
}

fn with_request<T>(asked: &Asked, body: Body<'_>, then: impl FnOnce(&Request<'_>) -> T) -> T {
    let host = Host::parse(&asked.host).unwrap();
    let raw = asked.target();
    let target = Target::parse(&raw).unwrap_or_else(|error| panic!("{raw}: {error}"));
    then(&Request {
        scheme: if asked.https {
            Scheme::Https
        } else {
            Scheme::Http
        },
        host: &host,
        port: asked.port,
        method: &asked.method,
        target: &target,
        headers: &Fields(&asked.headers),
        body,
        now: asked.now,
    })
}

/// All that can be seen of a decision, to be compared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Seen {
    pub(crate) allow: bool,
    pub(crate) observe: bool,
    /// Label of the rule.
    pub(crate) rule: Option<String>,
    pub(crate) code: Option<&'static str>,
    pub(crate) plan: SeenPlan,
}

/// All that can be seen of a plan.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SeenPlan {
    pub(crate) api: Option<String>,
    pub(crate) credential: Option<String>,
    pub(crate) client: bool,
    pub(crate) query: Option<Option<String>>,
    pub(crate) stripped: Vec<String>,
    pub(crate) response_strip: Vec<String>,
    pub(crate) response_max: Option<u64>,
    /// For each of the known headers whether it passes.
    pub(crate) passing: u32,
}

/// `None` for a connection that is to be inspected.
pub(crate) fn seen(got: &Got<'_>) -> Option<Seen> {
    match got {
        Got::Decided(decision) => Some(seen_decision(decision)),
        Got::FromPart(decision) => Some(Seen {
            code: None,
            ..seen_decision(decision)
        }),
        Got::Inspected => None,
    }
}

pub(crate) fn seen_decision(decision: &Decision<'_>) -> Seen {
    let plan = &decision.plan;
    assert!(plan.body.is_none() && plan.stripped_body.is_empty());
    assert_eq!(plan.client_credentials, plan.headers.client_credentials);
    let passing = crate::meaning::HEADERS.iter().enumerate();
    let passing = passing.filter(|(_, (name, _))| plan.headers.passes(name));
    assert_eq!(
        decision.reason.is_none(),
        decision.verdict == Verdict::Allow,
        "a reason for denials only"
    );
    Seen {
        allow: decision.verdict == Verdict::Allow,
        observe: decision.mode == Mode::Observe,
        rule: decision.rule.map(|rule| rule.label.to_string()),
        code: decision.reason.as_ref().map(|reason| reason.code),
        plan: SeenPlan {
            api: plan.api.map(|api| api.name.clone()),
            credential: plan.credential.map(|credential| credential.name.clone()),
            client: plan.client_credentials,
            query: plan.query.clone(),
            stripped: plan.stripped_query.clone(),
            response_strip: plan.response_strip.to_vec(),
            response_max: plan.response_max,
            passing: passing.map(|(index, _)| 1 << index).sum(),
        },
    }
}
