//! Calls to models and their answers from any bytes.
use crate::body::strict_json;
use crate::budget::Meter;
use crate::meter::{Answer, Call, Tokens};
use serde_json::{Map, Value};

const METERS: [(&str, Meter); 3] = [
    ("openai", Meter::OpenAi),
    ("anthropic", Meter::Anthropic),
    ("gemini", Meter::Gemini),
];

/// The first line is a provider and a path, the rest a request's body, an answer, and an answer in events. What is told of
/// a request bounds what a plain reading of it asks for; what is told of an answer does not depend on how it was cut.
pub fn meter(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n');
    let (head, rest) = data
        .split_at_checked(end.unwrap_or(data.len()))
        .unwrap_or_default();
    let body = rest.get(1..).unwrap_or_default();
    let head = String::from_utf8_lossy(head);
    let (name, path) = head.split_once(' ').unwrap_or((&head, "/"));
    let named = METERS.iter().find(|(known, _)| *known == name);
    for (_, meter) in METERS
        .iter()
        .filter(|meter| named.is_none_or(|named| named == *meter))
    {
        let called = meter.call(path, body);
        assert_eq!(called, meter.call(path, body));
        if let Ok(call) = called {
            check_call(&call, path, body);
        }
        for media in ["application/json", "text/event-stream; charset=utf-8"] {
            check_answer(*meter, media, body);
        }
    }
}

fn check_call(call: &Call, path: &str, body: &[u8]) {
    assert_eq!(call.bytes, body.len() as u64);
    assert!(call.answers >= 1);
    assert_ne!(call.output, Some(0));
    let named = call.model.as_ref();
    assert!(named.is_none_or(|name| !name.is_empty() && name.len() <= 256));
    let most = call.most(None);
    assert!(
        most.input == call.bytes && most.output >= call.answers,
        "{call:?}"
    );
    // As a reader would who takes the last of two members of the same name.
    let Ok(Value::Object(asked)) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    let number = |name: &str| asked.get(name).and_then(Value::as_u64);
    for name in ["n", "best_of"] {
        assert!(
            number(name).is_none_or(|n| n <= call.answers),
            "{path} {name}"
        );
    }
    assert_ne!(asked.get("background"), Some(&Value::Bool(true)), "{path}");
    let twice = |name: &&String| {
        asked
            .keys()
            .filter(|k| k.eq_ignore_ascii_case(name))
            .count()
            > 1
    };
    let limits = [
        "model",
        "n",
        "max_tokens",
        "max_completion_tokens",
        "max_output_tokens",
    ];
    let bounded = |name: &&String| limits.contains(&name.to_ascii_lowercase().as_str());
    let read_twice = asked.keys().filter(bounded).find(twice);
    assert_eq!(read_twice, None, "{path}");
}

fn check_answer(meter: Meter, media: &str, body: &[u8]) {
    let told = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut answer = Answer::new(meter, media);
        pieces.for_each(|piece| answer.feed(piece));
        [answer.tokens(false), answer.tokens(true)]
    };
    let whole = told(&mut std::iter::once(body));
    for size in [1, 2, 7, 64] {
        assert_eq!(told(&mut body.chunks(size)), whole, "in pieces of {size}");
    }
    let [early, late] = whole;
    assert!(
        early.is_none() || early == late,
        "the body's end changed what was told"
    );
    let counted = body.windows(5).any(|part| part == b"usage");
    assert!(counted || late.is_none(), "tokens that nobody counted");
    if media == "application/json" {
        check_usage(meter, body, late);
    }
}

/// A plain answer is counted in full.
fn check_usage(meter: Meter, body: &[u8], told: Option<Tokens>) {
    let Some(usage) = plain_usage(body) else {
        return;
    };
    let count = |name: &str| usage.get(name).and_then(Value::as_u64);
    let (input, output, total) = match meter {
        Meter::OpenAi => ("prompt_tokens", "completion_tokens", Some("total_tokens")),
        Meter::Anthropic => ("input_tokens", "output_tokens", None),
        Meter::Gemini => (
            "promptTokenCount",
            "candidatesTokenCount",
            Some("totalTokenCount"),
        ),
    };
    let (Some(input), Some(output)) = (count(input), count(output)) else {
        return;
    };
    let total = total.and_then(count).unwrap_or(0);
    let least = input.saturating_add(output).max(total);
    let told = told.map_or(0, |tokens| tokens.total());
    assert!(told >= least, "{told} tokens of {least}");
}

/// The one usage of an answer that is an object, small, without escapes, and read in one way only.
fn plain_usage(body: &[u8]) -> Option<Map<String, Value>> {
    if body.contains(&b'\\') || body.len() > 8 << 10 {
        return None;
    }
    let Ok(Value::Object(mut answer)) = strict_json(body) else {
        return None;
    };
    let usages = ["usage", "usageMetadata"].map(|name| answer.remove(name));
    match usages {
        [Some(Value::Object(usage)), None] | [None, Some(Value::Object(usage))] => Some(usage),
        _ => None,
    }
}
