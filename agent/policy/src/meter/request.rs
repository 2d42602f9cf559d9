//! What a request to a model asks for: which model, and how much at most.
use super::{MAX_OUTPUT, Most};
use crate::body::strict_json;
use crate::budget::{Meter, Price};
use crate::fold;
use serde_json::{Map, Value};

/// Answers to one request, where how many cannot be read: more than any provider gives.
const MANY: u64 = 1 << 20;
/// What is looked for in a request. Some readers take these in any case, and others do not.
const NAMES: [&str; 18] = [
    "background",
    "best_of",
    "candidateCount",
    "candidate_count",
    "fallbacks",
    "generationConfig",
    "generation_config",
    "input",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "max_tokens_to_sample",
    "maxOutputTokens",
    "messages",
    "model",
    "models",
    "n",
    "prompt",
];
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
    ///
    /// # Errors
    /// Why that cannot be told, though a provider may well answer.
    pub fn call(self, path: &str, body: &[u8]) -> Result<Call, &'static str> {
        if self.answers_later(path) {
            return Err(LATER);
        }
        let read = match strict_json(body) {
            Err(_) if may_be_json(body) => return Err(AMBIGUOUS),
            read => read.ok(),
        };
        let bytes = body.len() as u64;
        let Some(request) = read.as_ref().and_then(Value::as_object) else {
            return Ok(Call {
                model: None,
                bytes,
                output: None,
                answers: 1,
            });
        };
        if misspelt(request) || configs(request).any(misspelt) {
            return Err(AMBIGUOUS);
        }
        let later = given(request, "background");
        if later.is_some_and(|later| *later != Value::Bool(false)) {
            return Err(LATER);
        }
        Ok(Call {
            model: self.model(path, request),
            bytes,
            output: self.output(path, request),
            answers: answers(request),
        })
    }

    /// Whether many calls are left there, to be answered some time.
    fn answers_later(self, path: &str) -> bool {
        let mut segments = path.rsplit('/').filter(|segment| !segment.is_empty());
        let last = segments.next().unwrap_or_default();
        match self {
            Self::OpenAi | Self::Anthropic => last.eq_ignore_ascii_case("batches"),
            Self::Gemini => gemini(path).is_some_and(|(_, verb)| {
                let verb = verb.to_ascii_lowercase();
                verb.contains("batch") && verb != "batchembedcontents"
            }),
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
    fn output(self, path: &str, request: &Map<String, Value>) -> Option<u64> {
        let responses = path.trim_end_matches('/').ends_with("/responses");
        let styles: &[(&str, &[&str])] = match self {
            // The request may lie with the server, and then says nothing else.
            Self::OpenAi if responses => return largest(request, &["max_output_tokens"]),
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

/// What is answered later is told to nobody who asked.
const LATER: &str = "it is answered later, which is not counted";
const AMBIGUOUS: &str = "its JSON can be read in more than one way";

/// Whether a reader that is less strict might take it for an object, also in another encoding.
fn may_be_json(body: &[u8]) -> bool {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    matches!(first, Some(b'{' | 0 | 0xEF | 0xFE | 0xFF))
}

/// Whether a name that is looked for stands there in another case.
fn misspelt(object: &Map<String, Value>) -> bool {
    object
        .keys()
        .any(|key| !NAMES.contains(&key.as_str()) && NAMES.iter().any(|name| fold::same(key, name)))
}

/// Where Gemini's limits stand.
fn configs(request: &Map<String, Value>) -> impl Iterator<Item = &Map<String, Value>> {
    let names = ["generationConfig", "generation_config"];
    let each = names.into_iter().filter_map(|name| given(request, name));
    each.filter_map(Value::as_object)
}

/// A member that is there and not null.
fn given<'v>(object: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// The largest of the limits that are there; `None` where there is none, or one that is no whole number. Zero is no limit to some.
fn largest(object: &Map<String, Value>, limits: &[&str]) -> Option<u64> {
    let mut most = None;
    for limit in limits.iter().filter_map(|name| given(object, name)) {
        most = most.max(Some(limit.as_u64().filter(|limit| *limit > 0)?));
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
    for config in configs(request) {
        for name in ["candidateCount", "candidate_count"] {
            most = most.max(given(config, name).map_or(1, count));
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

/// `/openai/deployments/NAME/…`, or `/v1/engines/NAME/…`. Azure takes paths in any case.
fn deployment(path: &str) -> Option<&str> {
    let names = ["deployments", "engines"];
    let mut segments = path.split('/');
    segments.find(|segment| names.iter().any(|name| name.eq_ignore_ascii_case(segment)))?;
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
