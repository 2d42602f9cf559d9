//! What a rule says, by its meaning: in the notation of the language, without the names it was given.
use crate::body::{BodySpec, Pointer};
use crate::model::{Credential, CredentialForm};
use crate::policy::{CredentialUse, Entry, Extra, RuleData};
use crate::shape::{Field, Literal, LiteralKind, Shape};
use crate::syntax::quote;
use crate::websocket::Messages;

impl RuleData {
    /// Whether it asks for nothing but its route.
    pub(crate) fn is_bare(&self) -> bool {
        let free = self.query.is_none() && self.headers.require.is_empty() && !self.grpc;
        let free = free && self.websocket.is_none();
        free && self.body.is_none() && self.payload.is_none() && self.when.is_none()
    }

    /// What it asks for besides its route, each in words.
    pub(crate) fn asks(&self) -> Vec<String> {
        let mut asks = Vec::new();
        if let Some(query) = &self.query {
            let parameters = query.parameters.iter().map(|parameter| {
                let must = if parameter.required {
                    " (required)"
                } else {
                    ""
                };
                format!("{}: {}{must}", parameter.name, notation(&parameter.shape))
            });
            let parameters: Vec<String> = parameters.collect();
            let extra = match query.extra {
                Extra::Deny => "",
                Extra::Strip => ", others are dropped",
            };
            asks.push(format!("query {{ {} }}{extra}", parameters.join(", ")));
        }
        for (name, shape) in &self.headers.require {
            asks.push(format!("header {name}: {}", notation(shape)));
        }
        if self.grpc {
            asks.push("content type of gRPC".to_owned());
        }
        if let Some(messages) = self.websocket.as_deref() {
            asks.push(format!("a WebSocket, {}", asks_of_messages(messages)));
        }
        asks.extend(self.body.as_deref().map(asks_of_body));
        asks.extend(self.payload.as_ref().map(|payload| format!("{payload:?}")));
        asks.extend(self.when.as_ref().map(|when| self.asks_when(when.text())));
        asks
    }

    /// The condition; with the names of the path's places, where it looks at them.
    fn asks_when(&self, text: &str) -> String {
        if !text.contains("path") {
            return format!("when {text}");
        }
        let names: Vec<&str> = self.template.names().collect();
        format!("when {text} (path: {})", names.join(", "))
    }

    /// What it does to a request that it allows, besides its credential: headers that pass or do not.
    pub(crate) fn does(&self) -> Vec<String> {
        let mut does = Vec::new();
        if !self.headers.allow.is_empty() {
            does.push(format!("lets pass {}", self.headers.allow.join(", ")));
        }
        if !self.headers.strip.is_empty() {
            let mut strip = self.headers.strip.clone();
            strip.sort_unstable();
            does.push(format!("drops {}", strip.join(", ")));
        }
        if let Some(body) = &self.body {
            let mut cut: Vec<&str> = body.strip.texts().collect();
            cut.sort_unstable();
            if !cut.is_empty() {
                does.push(format!("cuts {} out of the body", cut.join(", ")));
            }
            if body.fields.is_some() && body.extra == Extra::Strip {
                does.push("cuts undeclared fields out of the body".to_owned());
            }
        }
        if let Some(messages) = &self.websocket {
            let mut cut: Vec<&str> = messages.body.strip.texts().collect();
            cut.sort_unstable();
            if !cut.is_empty() {
                does.push(format!("cuts {} out of messages", cut.join(", ")));
            }
            if messages.body.fields.is_some() && messages.body.extra == Extra::Strip {
                does.push("cuts undeclared fields out of messages".to_owned());
            }
        }
        does
    }
}

/// What is asked of a body, in words.
pub(crate) fn asks_of_body(body: &BodySpec) -> String {
    let mut parts = Vec::new();
    if let Some(fields) = &body.fields {
        let field = |(index, field): (usize, &Field)| {
            let required = body.required.contains(&index);
            let must = if required { " (required)" } else { "" };
            format!("{}: {}{must}", field.name, notation(&field.shape))
        };
        let fields: Vec<String> = fields.iter().enumerate().map(field).collect();
        parts.push(format!("{{ {} }}", fields.join(", ")));
    }
    parts.extend(body.schema.as_ref().map(|schema| format!("{schema:?}")));
    parts.push(format!("of at most {} bytes", body.max));
    format!("body {}", parts.join(" "))
}

/// What is asked of the messages of a WebSocket, in words.
pub(crate) fn asks_of_messages(messages: &Messages) -> String {
    let mut parts = Vec::new();
    if messages.looked_at {
        let body = asks_of_body(&messages.body);
        parts.push(format!("each message is a JSON {body}"));
    } else {
        parts.push(format!("messages of at most {} bytes", messages.body.max));
    }
    if !messages.binary {
        parts.push("text only".to_owned());
    }
    let when = messages.when.as_ref();
    parts.extend(when.map(|when| format!("each when {}", when.text())));
    parts.join(", ")
}

/// What an entry does to requests and responses, in words; a credential by what it is, and not by its name.
pub(crate) fn of_entry(entry: &Entry, credentials: &[Credential]) -> Vec<String> {
    let mut does = Vec::new();
    match entry.credential {
        CredentialUse::None => {}
        CredentialUse::Client => does.push("lets the client's own credential pass".to_owned()),
        CredentialUse::Inject(number) => {
            does.extend(
                credentials
                    .get(number)
                    .map(|known| format!("puts in {}", of_credential(known))),
            );
        }
    }
    if !entry.response_strip.is_empty() {
        let mut names = entry.response_strip.clone();
        names.sort_unstable();
        does.push(format!("drops {} of responses", names.join(", ")));
    }
    if let Some(redactor) = &entry.response_redact {
        let mut pointers: Vec<&str> = redactor.pointers().iter().map(Pointer::as_str).collect();
        pointers.sort_unstable();
        does.push(format!("redacts {} of responses", pointers.join(", ")));
    }
    if let Some(max) = entry.response_max {
        does.push(format!("lets responses have {max} bytes"));
    }
    does
}

/// A credential by where its secrets are and what is made of them.
pub(crate) fn of_credential(credential: &Credential) -> String {
    match &credential.form {
        CredentialForm::Headers { secret, headers } => {
            let mut headers: Vec<String> = headers
                .iter()
                .map(|(name, value)| format!("{name}: {}{{secret}}{}", value.before, value.after))
                .collect();
            headers.sort_unstable();
            format!("{secret} as {}", headers.join(", "))
        }
        CredentialForm::AwsSigV4(keys) => {
            let secrets = credential.form.secrets();
            let all: Vec<String> = secrets.into_iter().map(ToString::to_string).collect();
            let part = |what: &str, part: &Option<String>| {
                let named = part.as_ref().map(|part| format!(", {what} {part}"));
                named.unwrap_or_default()
            };
            format!(
                "a signature (AWS SigV4{}{}) with {}",
                part("region", &keys.region),
                part("service", &keys.service),
                all.join(", ")
            )
        }
    }
}

/// A shape as the language writes it.
pub(crate) fn notation(shape: &Shape) -> String {
    match shape {
        Shape::Any => "any".to_owned(),
        Shape::Text => "string".to_owned(),
        Shape::Int => "int".to_owned(),
        Shape::Number => "number".to_owned(),
        Shape::Bool => "bool".to_owned(),
        Shape::Uuid => "uuid".to_owned(),
        Shape::Range(low, high) => format!("{low}..{high}"),
        Shape::Pattern(pattern) => format!("/{}/", pattern.text()),
        Shape::OneOf(literals) => {
            let mut values: Vec<String> = literals.iter().map(value).collect();
            values.sort_unstable();
            format!("[{}]", values.join(", "))
        }
        Shape::List(item) => format!("[{}]", notation(item)),
        Shape::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| format!("{}: {}", field.name, notation(&field.shape)))
                .collect();
            format!("{{ {} }}", fields.join(", "))
        }
    }
}

/// A value, in quotes where it would be read as something else without.
fn value(literal: &Literal) -> String {
    let plain = literal
        .text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let number = literal
        .text
        .starts_with(|first: char| !first.is_ascii_alphabetic());
    let word = matches!(
        &*literal.text,
        "any" | "bool" | "int" | "number" | "string" | "uuid" | "true" | "false" | "null"
    );
    match literal.kind {
        LiteralKind::Text if !plain || number || word || literal.text.contains("..") => {
            format!("{:?}", literal.text)
        }
        _ => literal.text.to_string(),
    }
}

/// Names in a sentence: the first few, and how many more.
pub(crate) fn listed<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    const SHOWN: usize = 5;
    let mut names = names.into_iter();
    let shown: Vec<String> = names.by_ref().take(SHOWN).map(quote).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
