//! What is asked and what is answered, in the words of each provider.
#![allow(clippy::unwrap_used)]
use super::*;
use crate::budget::Meter;
use proptest::prelude::*;

fn call(meter: Meter, path: &str, body: &str) -> (Option<String>, Option<u64>, u64) {
    let call = meter.call(path, body.as_bytes()).unwrap();
    assert_eq!(call.bytes, body.len() as u64);
    (call.model, call.output, call.answers)
}

#[test]
fn what_a_request_asks_for() {
    let chat = "/v1/chat/completions";
    let gemini = "/v1beta/models/gemini-2.5-pro:streamGenerateContent";
    for (meter, path, body, model, output, answers) in [
        (
            Meter::OpenAi,
            chat,
            r#"{"model":"m","messages":[],"max_tokens":7}"#,
            Some("m"),
            Some(7),
            1,
        ),
        (
            Meter::OpenAi,
            chat,
            r#"{"model":"m","messages":[],"max_tokens":7,"max_completion_tokens":9,"n":3}"#,
            Some("m"),
            Some(9),
            3,
        ),
        (
            Meter::OpenAi,
            chat,
            r#"{"model":"m","messages":[]}"#,
            Some("m"),
            None,
            1,
        ),
        // A limit of another style is none.
        (
            Meter::OpenAi,
            chat,
            r#"{"model":"m","messages":[],"max_output_tokens":1}"#,
            Some("m"),
            None,
            1,
        ),
        (
            Meter::OpenAi,
            chat,
            r#"{"model":"m","messages":[],"input":"","max_tokens":1}"#,
            Some("m"),
            None,
            1,
        ),
        (
            Meter::OpenAi,
            chat,
            r#"{"model":"m","messages":[],"max_tokens":null,"n":null}"#,
            Some("m"),
            None,
            1,
        ),
        (
            Meter::OpenAi,
            chat,
            r#"{"model":"m","messages":[],"max_tokens":1.5,"n":"2"}"#,
            Some("m"),
            None,
            1 << 20,
        ),
        (
            Meter::OpenAi,
            "/v1/responses",
            r#"{"model":"m","input":"x","max_output_tokens":5}"#,
            Some("m"),
            Some(5),
            1,
        ),
        (
            Meter::OpenAi,
            "/v1/responses",
            r#"{"model":"m","prompt":{"id":"p"},"messages":[],"max_tokens":5}"#,
            Some("m"),
            None,
            1,
        ),
        (
            Meter::OpenAi,
            "/v1/completions",
            r#"{"model":"m","prompt":["a","b"],"max_tokens":5,"best_of":2}"#,
            Some("m"),
            Some(5),
            4,
        ),
        (
            Meter::OpenAi,
            "/v1/completions",
            r#"{"model":"m","prompt":[1,2,3],"max_tokens":5}"#,
            Some("m"),
            Some(5),
            1,
        ),
        // Others may answer, or it is not known who.
        (
            Meter::OpenAi,
            chat,
            r#"{"model":"m","models":["n"],"messages":[]}"#,
            None,
            None,
            1,
        ),
        (
            Meter::OpenAi,
            chat,
            r#"{"model":7,"messages":[]}"#,
            None,
            None,
            1,
        ),
        // Zero is no limit to some.
        (
            Meter::OpenAi,
            chat,
            r#"{"model":"m","messages":[],"max_tokens":0}"#,
            Some("m"),
            None,
            1,
        ),
        (Meter::OpenAi, chat, "not JSON", None, None, 1),
        (Meter::OpenAi, chat, "[]", None, None, 1),
        (
            Meter::OpenAi,
            "/openai/deployments/dear/chat/completions",
            r#"{"model":"cheap","messages":[]}"#,
            Some("dear"),
            None,
            1,
        ),
        (
            Meter::OpenAi,
            "/openai/Deployments/dear/chat/completions",
            r#"{"model":"cheap","messages":[]}"#,
            Some("dear"),
            None,
            1,
        ),
        (
            Meter::Anthropic,
            "/v1/messages",
            r#"{"model":"c","messages":[],"max_tokens":4}"#,
            Some("c"),
            Some(4),
            1,
        ),
        (
            Meter::Gemini,
            gemini,
            r#"{"contents":[],"generationConfig":{"maxOutputTokens":8,"candidateCount":2}}"#,
            Some("gemini-2.5-pro"),
            Some(8),
            2,
        ),
        (
            Meter::Gemini,
            gemini,
            r#"{"contents":[],"generation_config":{"max_output_tokens":9},"generationConfig":{"maxOutputTokens":8}}"#,
            Some("gemini-2.5-pro"),
            Some(9),
            1,
        ),
        (
            Meter::Gemini,
            gemini,
            r#"{"model":"cheap","contents":[]}"#,
            Some("gemini-2.5-pro"),
            None,
            1,
        ),
        (Meter::Gemini, "/v1beta/files", "{}", None, None, 1),
    ] {
        let expected = (model.map(str::to_owned), output, answers);
        assert_eq!(call(meter, path, body), expected, "{path} {body}");
    }
}

#[test]
fn what_cannot_be_told_is_no_call() {
    let chat = "/v1/chat/completions";
    let gemini = "/v1beta/models/g:generateContent";
    // UTF-16, which Python's reader takes as well.
    let wide: Vec<u8> = r#"{"n":99}"#.encode_utf16().flat_map(u16::to_be_bytes).collect();
    for (meter, path, body) in [
        (
            Meter::OpenAi,
            chat,
            &br#"{"model":"m","messages":[],"n":1,"n":99}"#[..],
        ),
        (
            Meter::OpenAi,
            chat,
            br#"{"model":"m","Model":"n","messages":[],"max_tokens":1}"#,
        ),
        (
            Meter::OpenAi,
            chat,
            br#"{"messages":[],"n":99,"max_tokens":50000,"user":"\ud800"}"#,
        ),
        (
            Meter::OpenAi,
            chat,
            br#"{"messages":[],"n":99,"seed":99999999999999999999}"#,
        ),
        (
            Meter::OpenAi,
            chat,
            br#"{"messages":[],"max_tokens":1,"Max_Completion_Tokens":50000}"#,
        ),
        (Meter::OpenAi, chat, br#"{"messages":[],"N":99}"#),
        (Meter::OpenAi, chat, wide.as_slice()),
        (
            Meter::Gemini,
            gemini,
            br#"{"generationConfig":{"maxOutputTokens":1,"CandidateCount":9}}"#,
        ),
        (
            Meter::OpenAi,
            "/v1/responses",
            br#"{"model":"m","input":"","background":true}"#,
        ),
        (
            Meter::OpenAi,
            "/v1/batches",
            br#"{"model":"m","input_file_id":"f"}"#,
        ),
        (
            Meter::Anthropic,
            "/v1/messages/batches/",
            br#"{"requests":[]}"#,
        ),
        (
            Meter::Gemini,
            "/v1beta/models/g:batchGenerateContent",
            b"{}",
        ),
    ] {
        let text = String::from_utf8_lossy(body);
        assert!(meter.call(path, body).is_err(), "{path} {text}");
    }
    let fine = br#"{"model":"m","input":"","background":false}"#;
    assert!(Meter::OpenAi.call("/v1/responses", fine).is_ok());
}

#[test]
fn what_is_free() {
    for (meter, method, path, free) in [
        (Meter::OpenAi, "GET", "/v1/models", true),
        (Meter::OpenAi, "POST", "/v1/messages/count_tokens", false),
        (Meter::OpenAi, "QUERY", "/v1/models", false),
        (Meter::Anthropic, "POST", "/v1/messages/count_tokens", true),
        (Meter::Anthropic, "POST", "/v1/messages", false),
        (Meter::Gemini, "POST", "/v1beta/models/g:countTokens", true),
        (
            Meter::Gemini,
            "POST",
            "/v1beta/models/g:generateContent",
            false,
        ),
    ] {
        assert_eq!(meter.is_free(method, path), free, "{method} {path}");
    }
}

#[test]
fn what_it_may_cost_at_most() {
    let call = Meter::OpenAi
        .call("/", br#"{"model":"m","messages":[],"n":2}"#)
        .unwrap();
    let most = call.most(None);
    assert_eq!((most.input, most.output), (33, 2 * MAX_OUTPUT));
    let rates = Rates {
        input: 2,
        cached: 1,
        cache_write: 3,
        output: 10,
    };
    assert_eq!(most.cost(&rates), 33 * 3 + 2 * MAX_OUTPUT * 10);
    let most = Most {
        input: u64::MAX,
        output: u64::MAX,
    };
    assert_eq!((most.total(), most.cost(&rates)), (u64::MAX, u64::MAX));
    let tokens = Tokens {
        input: 1,
        cached: 10,
        cache_write: 100,
        output: 1000,
    };
    assert_eq!(
        (tokens.total(), tokens.cost(&rates)),
        (1111, 2 + 10 + 300 + 10_000)
    );
}

fn tokens(input: u64, cached: u64, cache_write: u64, output: u64) -> Tokens {
    Tokens {
        input,
        cached,
        cache_write,
        output,
    }
}

/// What is read of it, fed in parts of each size; at its end, and before.
fn answered(meter: Meter, media: &str, body: &str) -> (Option<Tokens>, Option<Tokens>) {
    let mut all = [1, 7, body.len().max(1)].map(|size| {
        let mut answer = Answer::new(meter, media);
        for part in body.as_bytes().chunks(size) {
            answer.feed(part);
        }
        (answer.tokens(true), answer.tokens(false))
    });
    all.sort_by_key(|read| format!("{read:?}"));
    let [first, second, third] = all;
    assert_eq!((first, second), (second, third), "{body}");
    first
}

#[test]
fn answers_in_one_piece() {
    for (meter, body, expected) in [
        (
            Meter::OpenAi,
            r#"{"id":"x","choices":[{"message":{"content":"\"usage\":{\"prompt_tokens\":9}"},"usage":{"prompt_tokens":9,"completion_tokens":9}}],"usage":{"prompt_tokens":100,"completion_tokens":20,"total_tokens":120,"prompt_tokens_details":{"cached_tokens":60}}}"#,
            Some(tokens(40, 60, 0, 20)),
        ),
        (
            Meter::OpenAi,
            r#"{"usage" : { "input_tokens":10, "input_tokens_details":{"cached_tokens":4}, "output_tokens":5, "total_tokens":15 } , "x":1}"#,
            Some(tokens(6, 4, 0, 5)),
        ),
        // Thoughts that stand in the total alone.
        (
            Meter::OpenAi,
            r#"{"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":40}}"#,
            Some(tokens(10, 0, 0, 30)),
        ),
        (
            Meter::OpenAi,
            r#"{"usage":{"prompt_tokens":10,"total_tokens":10}}"#,
            Some(tokens(10, 0, 0, 0)),
        ),
        (
            Meter::Anthropic,
            r#"{"content":[{"text":"\\"}],"usage":{"input_tokens":3,"cache_creation_input_tokens":100,"cache_read_input_tokens":1000,"output_tokens":7}}"#,
            Some(tokens(3, 1000, 100, 7)),
        ),
        (
            Meter::Gemini,
            r#"[{"usageMetadata":{"promptTokenCount":10,"totalTokenCount":10}},
               {"usageMetadata":{"promptTokenCount":10,"cachedContentTokenCount":4,"candidatesTokenCount":5,"thoughtsTokenCount":20,"totalTokenCount":35}}]"#,
            Some(tokens(6, 4, 0, 25)),
        ),
        (Meter::OpenAi, r#"{"usage":null}"#, None),
        (Meter::OpenAi, r#"{"usage":{"prompt_tokens":-1}}"#, None),
        (
            Meter::OpenAi,
            r#"{"data":{"usage":{"prompt_tokens":1}}}"#,
            None,
        ),
        (Meter::OpenAi, r#"{"usage":{"prompt_tokens":1}"#, None),
        (Meter::OpenAi, "<html>", None),
        (Meter::OpenAi, "", None),
    ] {
        let read = answered(meter, "application/json", body);
        assert_eq!(read, (expected, None), "{body}");
    }
    let long = format!(
        r#"{{"usage":{{"x":"{}","prompt_tokens":1}}}}"#,
        "x".repeat(20_000)
    );
    assert_eq!(
        answered(Meter::OpenAi, "application/json", &long),
        (None, None)
    );
}

#[test]
fn answers_in_events() {
    let chat = "data: {\"choices\":[{}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}\n\n";
    let done = format!("{chat}data: [DONE]\n\n");
    let responses = "event: response.created\r\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\r\n\r\n\
        event: response.completed\r\ndata: {\"type\":\"response.completed\",\r\ndata: \"response\":{\"output\":[{\"usage\":{\"input_tokens\":1}}],\"usage\":{\"input_tokens\":8,\"output_tokens\":3}}}\r\n\r\n";
    let start = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":10,\"output_tokens\":1}}}\n\n";
    let delta = format!(
        "{start}data:{{\"type\":\"message_delta\",\"delta\":{{}},\"usage\":{{\"output_tokens\":15}}}}\n\n"
    );
    let stop = format!("{delta}data: {{\"type\":\"message_stop\"}}\n\n");
    let gemini = "data: {\"usageMetadata\":{\"promptTokenCount\":4,\"totalTokenCount\":4}}\n\ndata: {\"usageMetadata\":{\"promptTokenCount\":4,\"candidatesTokenCount\":6,\"totalTokenCount\":10}}\n\n";
    let of_chat = Some(tokens(5, 0, 0, 2));
    let of_messages = Some(tokens(25, 10, 0, 15));
    for (meter, body, ended, before) in [
        (Meter::OpenAi, chat, of_chat, None),
        (Meter::OpenAi, &done, of_chat, of_chat),
        (Meter::OpenAi, "data: [DONE]\n\n", None, None),
        (
            Meter::OpenAi,
            responses,
            Some(tokens(8, 0, 0, 3)),
            Some(tokens(8, 0, 0, 3)),
        ),
        // Broken off after its beginning: what followed is not known.
        (Meter::Anthropic, start, None, None),
        (Meter::Anthropic, &delta, of_messages, None),
        (Meter::Anthropic, &stop, of_messages, of_messages),
        (Meter::Gemini, gemini, Some(tokens(4, 0, 0, 6)), None),
        (Meter::OpenAi, ": data: x\n\nid: 1\n\n", None, None),
    ] {
        let read = answered(meter, "text/event-stream; charset=utf-8", body);
        assert_eq!(read, (ended, before), "{body}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), pieces in "[{}\\[\\]\",:\\\\a-z0-9 \n]{0,200}") {
        for meter in [Meter::OpenAi, Meter::Anthropic, Meter::Gemini] {
            for media in ["text/event-stream", "application/json"] {
                let mut answer = Answer::new(meter, media);
                answer.feed(&bytes);
                answer.feed(pieces.as_bytes());
                let _ = answer.tokens(true);
            }
            let _ = meter.call(&pieces, &bytes);
            let _ = meter.call(&String::from_utf8_lossy(&bytes), pieces.as_bytes());
        }
    }
}
