//! The Model Context Protocol (2025-06-18) over HTTP: one JSON-RPC 2.0 message in a body.
use super::value::{ShapeFault, check_object};
use super::{Glob, PayloadFault, some_of, unknown_member};
use crate::shape::Field;
use crate::syntax::quote;
use serde_json::{Map, Value};

/// What a rule says of MCP messages.
#[derive(Debug, Default)]
pub(crate) struct Mcp {
    pub(crate) methods: Methods,
    /// Tools that may be called, by name.
    pub(crate) tools: Vec<(Box<str>, Arguments)>,
    pub(crate) prompts: Vec<Box<str>>,
    /// URIs that may be read and subscribed to.
    pub(crate) resources: Vec<Glob>,
    /// Whether answers to the server's own requests pass.
    pub(crate) replies: bool,
}

/// Methods that pass with any parameters.
#[derive(Debug, Default)]
pub(crate) struct Methods(pub(crate) Vec<Glob>);

/// What a tool may be called with.
#[derive(Debug)]
pub(crate) enum Arguments {
    Any,
    /// These at most, sorted by name.
    Fields(Vec<Field>),
}

/// A method that names what it acts on, and has a key of its own in a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Tool,
    Prompt,
    Resource,
}

impl Methods {
    /// The methods of the protocol that a client sends.
    pub(crate) const KNOWN: [&'static str; 17] = [
        "completion/complete",
        "initialize",
        "logging/setLevel",
        "notifications/cancelled",
        "notifications/initialized",
        "notifications/progress",
        "notifications/roots/list_changed",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "tools/call",
        "tools/list",
    ];

    /// The key of a rule that says what a method may act on: `tools` for `tools/call`.
    pub(crate) fn own_key(method: &str) -> Option<&'static str> {
        Target::of(method).map(|target| match target {
            Target::Tool => "tools",
            Target::Prompt => "prompts",
            Target::Resource => "resources",
        })
    }

    /// A method with a key of its own passes here only if it is written out: `tools/*` does not say which tools.
    fn allow(&self, method: &str) -> bool {
        let targeted = Target::of(method).is_some();
        self.0.iter().any(|glob| match glob {
            Glob::Exact(_) => glob.matches(method),
            Glob::Prefix(_) => !targeted && glob.matches(method),
        })
    }
}

impl Target {
    fn of(method: &str) -> Option<Self> {
        match method {
            "tools/call" => Some(Self::Tool),
            "prompts/get" => Some(Self::Prompt),
            "resources/read" | "resources/subscribe" | "resources/unsubscribe" => {
                Some(Self::Resource)
            }
            _ => None,
        }
    }

    /// Members of the parameters.
    fn members(self) -> &'static [&'static str] {
        match self {
            Self::Tool | Self::Prompt => &["_meta", "arguments", "name"],
            Self::Resource => &["_meta", "uri"],
        }
    }
}

impl Mcp {
    pub(super) fn check(&self, body: &Value) -> Result<(), PayloadFault> {
        let Value::Object(message) = body else {
            let detail = match body {
                Value::Array(_) => "the body is a batch of messages",
                _ => "the body is not a JSON-RPC message",
            };
            return Err(invalid(
                detail,
                "send one JSON-RPC message as a JSON object",
            ));
        };
        if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return Err(invalid("`jsonrpc` is not \"2.0\"", "send JSON-RPC 2.0"));
        }
        match message.get("method") {
            None => self.reply(message),
            Some(Value::String(method)) => self.request(message, method),
            Some(_) => Err(invalid("`method` is not text", "send JSON-RPC 2.0")),
        }
    }

    /// A request or, without `id`, a notification.
    fn request(&self, message: &Map<String, Value>, method: &str) -> Result<(), PayloadFault> {
        only(
            message,
            &["id", "jsonrpc", "method", "params"],
            "the message",
        )?;
        check_id(message, false)?;
        let none = Map::new();
        let params = match message.get("params") {
            None => &none,
            Some(Value::Object(params)) => params,
            Some(_) => return Err(invalid("`params` is not an object", "send an object")),
        };
        if self.methods.allow(method) {
            return Ok(());
        }
        match Target::of(method) {
            Some(target) => {
                only(params, target.members(), "`params`")?;
                self.target(target, method, params)
            }
            None => Err(self.denied(method)),
        }
    }

    fn target(
        &self,
        target: Target,
        method: &str,
        params: &Map<String, Value>,
    ) -> Result<(), PayloadFault> {
        let is_declared = match target {
            Target::Tool => !self.tools.is_empty(),
            Target::Prompt => !self.prompts.is_empty(),
            Target::Resource => !self.resources.is_empty(),
        };
        if !is_declared {
            return Err(self.denied(method));
        }
        let key = if target == Target::Resource {
            "uri"
        } else {
            "name"
        };
        let Some(Value::String(name)) = params.get(key) else {
            let detail = format!(
                "{} does not say on what: `params.{key}` is not text",
                quote(method)
            );
            return Err(invalid(detail, "name it"));
        };
        let arguments = match params.get("arguments") {
            None => None,
            Some(Value::Object(arguments)) => Some(arguments),
            Some(_) => {
                return Err(invalid(
                    "`params.arguments` is not an object",
                    "send an object",
                ));
            }
        };
        match target {
            Target::Tool => self.tool(name, arguments),
            Target::Prompt if self.prompts.iter().any(|known| **known == **name) => Ok(()),
            Target::Prompt => {
                let known = some_of(self.prompts.iter().map(|name| &**name));
                Err(PayloadFault::new(
                    "mcp_method",
                    format!("the prompt {} is not allowed", quote(name)),
                    format!("allowed prompts: {known}"),
                ))
            }
            Target::Resource if self.resources.iter().any(|glob| is_within(glob, name)) => Ok(()),
            Target::Resource => Err(PayloadFault::new(
                "mcp_method",
                format!("the resource {} is not allowed", quote(without_query(name))),
                "add it to `resources` in the rule; a path with dot segments or escapes of them is never within one",
            )),
        }
    }

    fn tool(&self, name: &str, arguments: Option<&Map<String, Value>>) -> Result<(), PayloadFault> {
        let Some((_, declared)) = self.tools.iter().find(|(known, _)| **known == *name) else {
            let known = some_of(self.tools.iter().map(|(name, _)| &**name));
            return Err(PayloadFault::new(
                "mcp_tool",
                format!("the tool {} is not allowed", quote(name)),
                format!("allowed tools: {known}"),
            ));
        };
        let (Some(arguments), Arguments::Fields(fields)) = (arguments, declared) else {
            return Ok(());
        };
        check_object(arguments, fields).map_err(|fault| {
            let tool = quote(name);
            let known = some_of(fields.iter().map(|field| &*field.name));
            let (detail, hint) = match fault {
                ShapeFault::Undeclared(field) => (
                    format!("the argument {field} of the tool {tool} is not declared"),
                    format!("declared arguments: {known}"),
                ),
                ShapeFault::Value { field, expected } => (
                    format!("the argument {field} of the tool {tool} is not {expected}"),
                    "send a value of the declared kind".to_owned(),
                ),
            };
            PayloadFault::new("mcp_arguments", detail, hint)
        })
    }

    /// An answer to a request of the server's.
    fn reply(&self, message: &Map<String, Value>) -> Result<(), PayloadFault> {
        only(
            message,
            &["error", "id", "jsonrpc", "result"],
            "the message",
        )?;
        if message.contains_key("result") == message.contains_key("error") {
            return Err(invalid(
                "the message has no `method`, nor one of `result` and `error`",
                "send a JSON-RPC request, notification or response",
            ));
        }
        check_id(message, true)?;
        match self.replies {
            true => Ok(()),
            false => Err(PayloadFault::new(
                "mcp_method",
                "the message answers a request of the server's",
                "answers (to sampling, elicitation, roots, ping) are allowed by `replies: true` in the rule",
            )),
        }
    }

    fn denied(&self, method: &str) -> PayloadFault {
        let hint = match Methods::own_key(method) {
            Some(key) => format!("say which ones in `{key}` of the rule"),
            None => "add it to `methods` in the rule".to_owned(),
        };
        PayloadFault::new(
            "mcp_method",
            format!("the method {} is not allowed", quote(method)),
            hint,
        )
    }
}

fn invalid(detail: impl Into<String>, hint: &str) -> PayloadFault {
    PayloadFault::new("mcp_invalid", detail, hint)
}

fn only(object: &Map<String, Value>, known: &[&str], what: &str) -> Result<(), PayloadFault> {
    let Some(name) = unknown_member(object, known) else {
        return Ok(());
    };
    let list = some_of(known.iter().copied());
    Err(PayloadFault::new(
        "mcp_invalid",
        format!("{what} has the member {}", quote(name)),
        format!("known members: {list}"),
    ))
}

/// Text or an integer; null is nobody's.
fn check_id(message: &Map<String, Value>, required: bool) -> Result<(), PayloadFault> {
    let good = match message.get("id") {
        None => !required,
        Some(Value::String(_)) => true,
        Some(Value::Number(number)) => number.is_i64() || number.is_u64(),
        Some(_) => false,
    };
    match good {
        true => Ok(()),
        false => Err(invalid(
            "`id` is neither text nor an integer",
            "send JSON-RPC 2.0",
        )),
    }
}

/// Whether a URI is the one named or begins with the prefix. What follows a prefix must not lead out of it
/// again, however it is spelled.
fn is_within(glob: &Glob, uri: &str) -> bool {
    let prefix = match glob {
        Glob::Exact(text) => return **text == *uri,
        Glob::Prefix(prefix) => prefix,
    };
    let Some(rest) = uri.strip_prefix(&**prefix) else {
        return false;
    };
    let rest = rest.to_ascii_lowercase();
    // An escaped `%` is a second round of unescaping away from any of the others.
    let escapes = ["%00", "%25", "%2e", "%2f", "%5c"];
    let disguised = escapes.iter().any(|escape| rest.contains(escape))
        || rest
            .chars()
            .any(|byte| byte == '\\' || byte.is_control() || byte == ' ');
    // The last segment of the prefix goes on into the rest: `a/.` and `./b`.
    let begun = prefix.rsplit('/').next().unwrap_or("");
    let leads_out = format!("{begun}{rest}")
        .split(['/', '?', '#', ';'])
        .any(|segment| matches!(segment, "." | ".."));
    !disguised && !leads_out
}

/// A URI for people, without what follows its path.
fn without_query(uri: &str) -> &str {
    uri.split(['?', '#']).next().unwrap_or(uri)
}
