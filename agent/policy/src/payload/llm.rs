//! Requests to language models: which models, how many tokens, which tools.
//!
//! Known are OpenAI's chat completions, completions and responses, Anthropic's messages, and Gemini's
//! `generateContent`, and what speaks like them. Members that a rule does not speak of pass.
use super::{Glob, PayloadFault, member, some_of};
use crate::fold::same;
use crate::syntax::quote;
use serde_json::{Map, Value};

/// Tools within a tool's own list of tools, at most.
const MAX_TOOL_DEPTH: u32 = 4;

/// What a rule says of requests to models. What is `None` is not looked at.
#[derive(Debug, Default)]
pub(crate) struct Llm {
    pub(crate) models: Option<Vec<Glob>>,
    pub(crate) max_tokens: Option<u64>,
    /// Answers to one request at most; one where `max_tokens` is said and this is not.
    pub(crate) choices: Option<u64>,
    pub(crate) tools: Option<Vec<Glob>>,
    pub(crate) stream: Option<bool>,
}

type Object = Map<String, Value>;
type Checked = Result<(), PayloadFault>;

impl Llm {
    pub(super) fn check(&self, body: &Value) -> Checked {
        let Value::Object(request) = body else {
            return Err(invalid("the body is not a JSON object", "send one request"));
        };
        refuse_disguised(request, &MEMBERS)?;
        if let Some(models) = &self.models {
            check_models(models, request)?;
        }
        if let Some(cap) = self.max_tokens {
            check_tokens(cap, request)?;
        }
        if self.max_tokens.or(self.choices).is_some() {
            check_choices(self.choices.unwrap_or(1), request)?;
        }
        if let Some(allowed) = &self.tools {
            Tools { allowed }.check(request)?;
        }
        match self.stream {
            Some(stream) => check_stream(stream, request),
            None => Ok(()),
        }
    }
}

fn invalid(detail: impl Into<String>, hint: &str) -> PayloadFault {
    PayloadFault::new("llm_invalid", detail, hint)
}

fn allows(globs: &[Glob], name: &str) -> bool {
    globs.iter().any(|glob| glob.matches(name))
}

fn list(globs: &[Glob]) -> String {
    some_of(globs.iter().map(|glob| match glob {
        Glob::Exact(text) | Glob::Prefix(text) => &**text,
    }))
}

/// `model`, and `models`, which some gateways fall back to.
fn check_models(allowed: &[Glob], request: &Object) -> Checked {
    let check = |value: &Value| match value {
        Value::String(model) if allows(allowed, model) => Ok(()),
        Value::String(model) => Err(PayloadFault::new(
            "llm_model",
            format!("the model {} is not allowed", quote(model)),
            format!("allowed models: {}", list(allowed)),
        )),
        _ => Err(PayloadFault::new(
            "llm_model",
            "`model` is not text",
            "name the model",
        )),
    };
    let Some(model) = request.get("model") else {
        return Err(PayloadFault::new(
            "llm_model",
            "the request names no model",
            "name it in `model`; where it stands in the path, say it in the rule's `route`",
        ));
    };
    check(model)?;
    match member(request, "models") {
        None => Ok(()),
        Some(Value::Array(models)) => models.iter().try_for_each(check),
        Some(_) => Err(PayloadFault::new(
            "llm_model",
            "`models` is not a list",
            "name one model in `model`",
        )),
    }
}

/// What is looked at of a request.
const MEMBERS: [&str; 24] = [
    "best_of",
    "cachedContent",
    "cached_content",
    "contents",
    "functions",
    "generationConfig",
    "generation_config",
    "input",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "mcp_servers",
    "messages",
    "model",
    "models",
    "n",
    "options",
    "plugins",
    "prompt",
    "stream",
    "toolConfig",
    "tool_config",
    "tools",
    "web_search_options",
];
/// Of a tool, function, server or plugin.
const TOOL_MEMBERS: [&str; 11] = [
    "connector_id",
    "custom",
    "function",
    "functionDeclarations",
    "function_declarations",
    "id",
    "name",
    "server_url",
    "tools",
    "type",
    "url",
];
/// Of `generationConfig`.
const GENERATION_MEMBERS: [&str; 4] = [
    "candidateCount",
    "candidate_count",
    "maxOutputTokens",
    "max_output_tokens",
];

/// A member in another case is another to this rule, and the same to a server that does not mind case.
fn refuse_disguised(object: &Object, members: &[&str]) -> Checked {
    let disguised = |key: &&String| {
        !members.contains(&key.as_str()) && members.iter().any(|known| same(known, key))
    };
    match object.keys().find(disguised) {
        None => Ok(()),
        Some(key) => Err(invalid(
            format!("{} is another spelling of a member", quote(key)),
            "write it as the API does",
        )),
    }
}

/// Limits at the top of a request.
const LIMITS: [&str; 3] = ["max_tokens", "max_completion_tokens", "max_output_tokens"];
/// Where servers of other styles take limits from. Such a limit is held to the cap, and is not enough.
const OTHER_LIMITS: [&str; 5] = [
    "maxOutputTokens",
    "maxTokens",
    "max_new_tokens",
    "max_tokens_to_sample",
    "num_predict",
];
const OTHER_CONFIGS: [&str; 4] = [
    "inferenceConfig",
    "inference_config",
    "options",
    "parameters",
];

/// Where Gemini keeps its numbers. Its servers take both spellings of every name.
const GENERATION: [&str; 2] = ["generationConfig", "generation_config"];

/// What a style of request is known by, and which members limit its tokens.
struct Style {
    content: &'static str,
    limits: &'static [&'static str],
}

const STYLES: [Style; 4] = [
    Style {
        content: "messages",
        limits: &["max_tokens", "max_completion_tokens"],
    },
    Style {
        content: "input",
        limits: &["max_output_tokens"],
    },
    Style {
        content: "contents",
        limits: &["maxOutputTokens"],
    },
    Style {
        content: "prompt",
        limits: &["max_tokens", "max_output_tokens"],
    },
];

/// Every limit that stands in a request, by the name it is known under.
fn limits(request: &Object) -> Result<Vec<(&'static str, &Value)>, PayloadFault> {
    let mut found: Vec<_> = named(request, &LIMITS).collect();
    for config in generation_configs(request) {
        let config = config?;
        refuse_disguised(config, &GENERATION_MEMBERS)?;
        for spelling in ["maxOutputTokens", "max_output_tokens"] {
            found.extend(member(config, spelling).map(|value| ("maxOutputTokens", value)));
        }
    }
    found.extend(named(request, &OTHER_LIMITS));
    let configs = OTHER_CONFIGS.into_iter();
    for config in configs.filter_map(|name| request.get(name)?.as_object()) {
        found.extend(named(config, &OTHER_LIMITS));
        // By another name: here it is not where a server of a known style goes by it.
        let known = named(config, &LIMITS).map(|(_, value)| ("parameters", value));
        found.extend(known);
    }
    Ok(found)
}

fn named<'v>(
    object: &'v Object,
    names: &'static [&'static str],
) -> impl Iterator<Item = (&'static str, &'v Value)> {
    let names = names.iter();
    names.filter_map(move |name| Some((*name, member(object, name)?)))
}

fn generation_configs(
    request: &Object,
) -> impl Iterator<Item = Result<&Object, PayloadFault>> + Clone {
    let configs = GENERATION
        .into_iter()
        .filter_map(|name| member(request, name));
    configs.map(|config| match config {
        Value::Object(config) => Ok(config),
        _ => Err(invalid(
            "`generationConfig` is not an object",
            "send an object",
        )),
    })
}

/// Each limit that is there is within the cap, and there is one that servers of this style go by.
fn check_tokens(cap: u64, request: &Object) -> Checked {
    let tokens = |detail: String| {
        PayloadFault::new(
            "llm_tokens",
            detail,
            format!("at most {cap} tokens are allowed"),
        )
    };
    let found = limits(request)?;
    for (name, value) in &found {
        match value.as_u64() {
            Some(limit) if (1..=cap).contains(&limit) => {}
            Some(_) => return Err(tokens(format!("`{name}` is more than is allowed"))),
            None => return Err(tokens(format!("`{name}` is not a positive integer"))),
        }
    }
    let has = |names: &[&str]| found.iter().any(|(name, _)| names.contains(name));
    let styles = STYLES
        .iter()
        .filter(|style| request.contains_key(style.content));
    for style in styles {
        if !has(style.limits) {
            let names = some_of(style.limits.iter().copied());
            let detail = format!(
                "a request with `{}` does not limit its tokens",
                style.content
            );
            return Err(PayloadFault::new(
                "llm_tokens",
                detail,
                format!("set one of {names}, {cap} at most"),
            ));
        }
    }
    match found.is_empty() {
        true => Err(tokens("the request does not limit its tokens".to_owned())),
        false => Ok(()),
    }
}

fn check_choices(most: u64, request: &Object) -> Checked {
    let check = |name: &str, value: Option<&Value>| match value.map(Value::as_u64) {
        None => Ok(()),
        Some(Some(count)) if count <= most => Ok(()),
        Some(_) => Err(PayloadFault::new(
            "llm_tokens",
            format!("`{name}` is not an integer of {most} at most"),
            "ask for fewer answers, or raise `choices` in the rule",
        )),
    };
    for name in ["n", "best_of"] {
        check(name, member(request, name))?;
    }
    for config in generation_configs(request) {
        let config = config?;
        for name in ["candidateCount", "candidate_count"] {
            check(name, member(config, name))?;
        }
    }
    Ok(())
}

fn check_stream(stream: bool, request: &Object) -> Checked {
    let asked = match member(request, "stream") {
        None => Some(false),
        Some(value) => value.as_bool(),
    };
    if asked == Some(stream) {
        return Ok(());
    }
    let detail = match stream {
        true => "the request does not ask for a stream",
        false => "the request asks for a stream",
    };
    Err(invalid(detail, "the rule's `stream` says which is allowed"))
}

/// The tools of a request against the ones that are allowed.
struct Tools<'r> {
    allowed: &'r [Glob],
}

impl Tools<'_> {
    fn check(&self, request: &Object) -> Checked {
        refuse_unseen(request)?;
        each(request, "tools", &mut |tool| self.tool(tool, 0))?;
        each(request, "functions", &mut |function| {
            self.text(function.get("name"), "a function has no name")
        })?;
        // Whoever sends a request chooses the labels in it; what is called is the address.
        each(request, "mcp_servers", &mut |server| {
            self.text(server.get("url"), "an MCP server has no `url`")
        })?;
        each(request, "plugins", &mut |plugin| {
            self.text(plugin.get("id"), "a plugin has no `id`")
        })?;
        match member(request, "web_search_options") {
            Some(_) => self.name("web_search"),
            None => Ok(()),
        }
    }

    fn tool(&self, tool: &Object, depth: u32) -> Checked {
        refuse_disguised(tool, &TOOL_MEMBERS)?;
        if depth > MAX_TOOL_DEPTH {
            return Err(invalid("tools are nested too deep", "list them at the top"));
        }
        each(tool, "tools", &mut |inner| self.tool(inner, depth + 1))?;
        for name in ["functionDeclarations", "function_declarations"] {
            each(tool, name, &mut |function| {
                self.text(function.get("name"), "a function has no name")
            })?;
        }
        match tool.get("type") {
            None => self.untyped(tool),
            Some(Value::String(kind)) => match kind.as_str() {
                "function" | "custom" => self.named(tool),
                "mcp" => self.server(tool),
                // Named by the provider: the name beside it is not what is run.
                hosted => self.name(hosted),
            },
            Some(Value::Null) => self.named(tool),
            Some(_) => Err(invalid("a tool's `type` is not text", "name its type")),
        }
    }

    /// Without a type: Anthropic's tools have a name; Gemini's are the members themselves.
    fn untyped(&self, tool: &Object) -> Checked {
        if ["custom", "function", "name"]
            .iter()
            .any(|key| tool.contains_key(*key))
        {
            return self.named(tool);
        }
        if tool.is_empty() {
            return Err(invalid("a tool has no name", "name it"));
        }
        let lists = ["functionDeclarations", "function_declarations", "tools"];
        tool.keys()
            .filter(|key| !lists.contains(&key.as_str()))
            .try_for_each(|key| self.name(key))
    }

    /// Wherever a name stands it is compared, so that it does not matter which of them a server reads.
    fn named(&self, tool: &Object) -> Checked {
        let mut any = false;
        for inner in ["function", "custom"] {
            match tool.get(inner) {
                None => {}
                Some(Value::Object(inner)) => {
                    any = true;
                    refuse_disguised(inner, &["name"])?;
                    self.text(inner.get("name"), "a tool has no name")?;
                }
                Some(_) => return Err(invalid("a tool's definition is not an object", "mend it")),
            }
        }
        match tool.get("name") {
            None if any => Ok(()),
            name => self.text(name, "a tool has no name"),
        }
    }

    fn server(&self, tool: &Object) -> Checked {
        let address = ["server_url", "connector_id"];
        let mut present = address
            .iter()
            .filter_map(|key| member(tool, key))
            .peekable();
        if present.peek().is_none() {
            return Err(invalid(
                "an MCP server has neither `server_url` nor `connector_id`",
                "say which server it is",
            ));
        }
        present.try_for_each(|value| self.text(Some(value), "an MCP server's address is not text"))
    }

    fn text(&self, value: Option<&Value>, missing: &str) -> Checked {
        match value {
            Some(Value::String(name)) => self.name(name),
            _ => Err(invalid(missing, "name it")),
        }
    }

    fn name(&self, name: &str) -> Checked {
        if allows(self.allowed, name) {
            return Ok(());
        }
        Err(PayloadFault::new(
            "llm_tool",
            format!("the tool {} is not allowed", quote(shown(name))),
            format!("allowed tools: {}", list(self.allowed)),
        ))
    }
}

/// An address for people: without what follows its path, which may be a key.
fn shown(name: &str) -> &str {
    match name.contains("://") {
        true => name.split(['?', '#']).next().unwrap_or(name),
        false => name,
    }
}

/// Tools that a server has stored, or that are written where this rule does not know to look.
fn refuse_unseen(request: &Object) -> Checked {
    let stored = ["cachedContent", "cached_content"]
        .into_iter()
        .find(|name| member(request, name).is_some());
    let stored = stored.or_else(|| {
        let prompt = request.get("prompt").is_some_and(Value::is_object);
        prompt.then_some("prompt")
    });
    let stored = stored.or_else(|| {
        let mut configs = ["toolConfig", "tool_config"].into_iter();
        configs.find(|name| {
            let config = request.get(*name).and_then(Value::as_object);
            config.is_some_and(|config| config.contains_key("tools"))
        })
    });
    match stored {
        None => Ok(()),
        Some(name) => Err(PayloadFault::new(
            "llm_tool",
            format!("`{name}` can bring tools that the rule does not see"),
            "send the tools in `tools`",
        )),
    }
}

/// The objects of a list that may be absent.
fn each<'v>(
    object: &'v Object,
    name: &str,
    check: &mut dyn FnMut(&'v Object) -> Checked,
) -> Checked {
    let items = match member(object, name) {
        None => return Ok(()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(invalid(format!("`{name}` is not a list"), "send a list")),
    };
    items.iter().try_for_each(|item| match item {
        Value::Object(item) => check(item),
        _ => Err(invalid(
            format!("`{name}` holds something that is no object"),
            "mend it",
        )),
    })
}
