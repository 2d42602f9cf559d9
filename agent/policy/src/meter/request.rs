//! What a request to a model asks for: which model, and how much at most.
use super::{MAX_OUTPUT, Most};
use crate::body::strict_json;
use crate::budget::{Meter, Price};
use serde_json::{Map, Value};

/// Answers to one request, where how many cannot be read: more than any provider gives.
const MANY: u64 = 128;
/// Bytes of a model's name at most.
const NAME: usize = 256;

/// A call, as far as it can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The one model that can answer; `None` where that cannot be told.
    pub model: Option<String>,
    /// Bytes of the body.
    pub bytes: u64,
    /// Tokens of each answer at most, where the request says.
    pub output: Option<u64>,
    /// Answers at most.
    pub answers: u64,
}

impl Call {
    /// What it may take, at the price of its model where that has one.
    pub fn most(&self, price: Option<&Price>) -> Most {
        let unsaid = price.and_then(|price| price.max_output);
        let each = self.output.or(unsaid).unwrap_or(MAX_OUTPUT);
        Most {
            input: self.bytes,
            output: each.saturating_mul(self.answers),
        }
    }
}

impl Meter {
    /// Whether a request takes no tokens, whatever its body.
    pub fn is_free(self, method: &str, path: &str) -> bool {
        if matches!(method, "GET" | "HEAD" | "DELETE" | "OPTIONS") {
            return true;
        }
        // These count, and answer nothing else.
        match self {
            Self::OpenAi => false,
            Self::Anthropic => path.ends_with("/messages/count_tokens"),
            Self::Gemini => gemini(path).is_some_and(|(_, verb)| verb == "countTokens"),
        }
    }

    /// What a request asks for. `path` is canonical, `body` is what is sent.
    pub fn call(self, path: &str, body: &[u8]) -> Call {
        let read = strict_json(body).ok();
        let request = read.as_ref().and_then(Value::as_object);
        let bytes = body.len() as u64;
        let Some(request) = request else {
            return Call {
                model: None,
                bytes,
                output: None,
                answers: 1,
            };
        };
        Call {
            model: self.model(path, request),
            bytes,
            output: self.output(request),
            answers: answers(request),
        }
    }

    fn model(self, path: &str, request: &Map<String, Value>) -> Option<String> {
        // A list of others that may answer instead.
        if given(request, "models").is_some() || given(request, "fallbacks").is_some() {
            return None;
        }
        let named = given(request, "model").and_then(Value::as_str);
        let name = match self {
            // A deployment is what its path says, whatever the body says beside it.
            Self::OpenAi => deployment(path).or(named)?,
            Self::Anthropic => named?,
            Self::Gemini => {
                let (model, verb) = gemini(path)?;
                model_answers(verb).then_some(model)?
            }
        };
        (1..=NAME).contains(&name.len()).then(|| name.to_owned())
    }

    /// What bounds the answer. A limit counts only where servers of that style go by it; of several, the largest.
    fn output(self, request: &Map<String, Value>) -> Option<u64> {
        let styles: &[(&str, &[&str])] = match self {
            Self::OpenAi => &[
                ("messages", &["max_tokens", "max_completion_tokens"]),
                ("input", &["max_output_tokens"]),
                ("prompt", &["max_tokens", "max_output_tokens"]),
            ],
            Self::Anthropic => &[
                ("messages", &["max_tokens"]),
                ("prompt", &["max_tokens_to_sample"]),
            ],
            Self::Gemini => return generated(request),
        };
        let mut most = None;
        for (_, limits) in styles
            .iter()
            .filter(|(content, _)| request.contains_key(*content))
        {
            most = most.max(Some(largest(request, limits)?));
        }
        most
    }
}

/// A member that is there and not null.
fn given<'v>(object: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// The largest of the limits that are there; `None` where there is none, or one that is no whole number.
fn largest(object: &Map<String, Value>, limits: &[&str]) -> Option<u64> {
    let mut most = None;
    for limit in limits.iter().filter_map(|name| given(object, name)) {
        most = most.max(Some(limit.as_u64()?));
    }
    most
}

/// Gemini's servers take both spellings of every name.
fn generated(request: &Map<String, Value>) -> Option<u64> {
    let mut most = None;
    for name in ["generationConfig", "generation_config"] {
        if let Some(config) = given(request, name) {
            let limit = largest(
                config.as_object()?,
                &["maxOutputTokens", "max_output_tokens"],
            )?;
            most = most.max(Some(limit));
        }
    }
    most
}

/// How many answers a request asks for.
fn answers(request: &Map<String, Value>) -> u64 {
    let count = |value: &Value| value.as_u64().unwrap_or(MANY).max(1);
    let mut most = 1;
    for name in ["n", "best_of"] {
        most = most.max(given(request, name).map_or(1, count));
    }
    for name in ["generationConfig", "generation_config"] {
        let config = given(request, name).and_then(Value::as_object);
        for name in ["candidateCount", "candidate_count"] {
            let count = config.and_then(|config| given(config, name)).map(count);
            most = most.max(count.unwrap_or(1));
        }
    }
    // Each of many prompts is answered. Numbers are the tokens of one.
    let prompts = match request.get("prompt") {
        Some(Value::Array(prompts)) if !prompts.iter().all(Value::is_number) => {
            prompts.len() as u64
        }
        _ => 1,
    };
    most.saturating_mul(prompts.max(1))
}

/// `/openai/deployments/NAME/…`
fn deployment(path: &str) -> Option<&str> {
    let mut segments = path.split('/');
    segments.find(|segment| *segment == "deployments")?;
    segments.next()
}

/// `/v1beta/models/MODEL:VERB`
fn gemini(path: &str) -> Option<(&str, &str)> {
    let (before, last) = path.rsplit_once('/')?;
    let collection = before.rsplit('/').next()?;
    let named = ["models", "tunedModels"].contains(&collection);
    last.split_once(':').filter(|_| named)
}

/// Whether the answer comes at once, and tells what it took.
fn model_answers(verb: &str) -> bool {
    [
        "generateContent",
        "streamGenerateContent",
        "embedContent",
        "batchEmbedContents",
    ]
    .contains(&verb)
}
