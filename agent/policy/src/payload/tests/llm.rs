use super::{json, rule, table};
use serde_json::{Value, json};

const MODEL: Result<(), &str> = Err("llm_model");
const TOKENS: Result<(), &str> = Err("llm_tokens");
const TOOL: Result<(), &str> = Err("llm_tool");
const INVALID: Result<(), &str> = Err("llm_invalid");

#[test]
fn models_are_allowed_by_name_or_beginning() {
    let rule = rule("llm: { models: [gpt-4o-mini, 'claude-3-*'] }");
    table(
        &rule,
        &[
            (Ok(()), json!({ "model": "gpt-4o-mini" })),
            (
                Ok(()),
                json!({ "model": "claude-3-haiku-20240307", "n": 50, "tools": 3 }),
            ),
            (
                Ok(()),
                json!({ "model": "gpt-4o-mini", "models": ["claude-3-x", "gpt-4o-mini"] }),
            ),
            (
                MODEL,
                json!({ "model": "gpt-4o-mini", "models": ["claude-3-x", "gpt-5"] }),
            ),
            (MODEL, json!({ "model": "gpt-4o-mini", "models": "gpt-5" })),
            (MODEL, json!({ "model": "gpt-4o-mini-x" })),
            (MODEL, json!({ "model": "gpt-4o" })),
            (MODEL, json!({ "model": "GPT-4o-mini" })),
            (MODEL, json!({ "model": "claude-3" })),
            (MODEL, json!({ "model": "" })),
            (MODEL, json!({ "model": null })),
            (MODEL, json!({ "model": ["gpt-4o-mini"] })),
            (INVALID, json!({ "Model": "gpt-4o-mini" })),
            (MODEL, json!({})),
            (INVALID, json!([{ "model": "gpt-4o-mini" }])),
        ],
    );
}

#[test]
fn tokens_are_capped_where_the_server_looks() {
    let rule = rule("llm: { max_tokens: 100 }");
    let chat = |name: &str, value: Value| {
        let mut request = json!({ "messages": [] });
        request[name] = value;
        request
    };
    table(
        &rule,
        &[
            (Ok(()), chat("max_tokens", json!(100))),
            (Ok(()), chat("max_tokens", json!(1))),
            (Ok(()), chat("max_completion_tokens", json!(100))),
            (
                Ok(()),
                json!({ "messages": [], "max_tokens": null, "max_completion_tokens": 5 }),
            ),
            (Ok(()), json!({ "input": "x", "max_output_tokens": 100 })),
            (Ok(()), json!({ "prompt": "x", "max_tokens": 100 })),
            (
                Ok(()),
                json!({ "contents": [], "generationConfig": { "maxOutputTokens": 100 } }),
            ),
            (
                Ok(()),
                json!({ "contents": [], "generation_config": { "max_output_tokens": 100 } }),
            ),
            (TOKENS, chat("max_tokens", json!(101))),
            (TOKENS, chat("max_tokens", json!(0))),
            (TOKENS, chat("max_tokens", json!(-1))),
            (TOKENS, chat("max_tokens", json!(1.0))),
            (TOKENS, chat("max_tokens", json!("1"))),
            (TOKENS, chat("max_tokens", json!(u64::MAX))),
            (TOKENS, chat("max_tokens", Value::Null)),
            (TOKENS, json!({ "messages": [] })),
            (TOKENS, json!({})),
            (
                TOKENS,
                json!({ "messages": [], "max_tokens": 5, "max_completion_tokens": 101 }),
            ),
            (
                TOKENS,
                json!({ "messages": [], "max_tokens": 5, "max_output_tokens": 101 }),
            ),
            // A limit that servers of this style do not know is none.
            (TOKENS, chat("max_output_tokens", json!(5))),
            (TOKENS, json!({ "input": "x", "max_tokens": 5 })),
            (TOKENS, json!({ "contents": [], "max_tokens": 5 })),
            (
                TOKENS,
                json!({ "messages": [], "input": "x", "max_tokens": 5 }),
            ),
            (
                TOKENS,
                json!({ "contents": [], "generationConfig": { "maxOutputTokens": 5, "max_output_tokens": 101 } }),
            ),
            (
                TOKENS,
                json!({ "contents": [], "generationConfig": { "maxOutputTokens": 5 }, "generation_config": { "maxOutputTokens": 101 } }),
            ),
            (INVALID, json!({ "contents": [], "generationConfig": [] })),
            // Several answers cost several times as much.
            (
                Ok(()),
                json!({ "messages": [], "max_tokens": 5, "n": 1, "best_of": null }),
            ),
            (TOKENS, json!({ "messages": [], "max_tokens": 5, "n": 2 })),
            (TOKENS, json!({ "messages": [], "max_tokens": 5, "n": 1.0 })),
            (
                TOKENS,
                json!({ "prompt": "x", "max_tokens": 5, "best_of": 2 }),
            ),
            (
                TOKENS,
                json!({ "contents": [], "generationConfig": { "maxOutputTokens": 5, "candidateCount": 2 } }),
            ),
            (
                TOKENS,
                json!({ "contents": [], "generationConfig": { "maxOutputTokens": 5, "candidate_count": 2 } }),
            ),
        ],
    );
    table(
        &super::rule("llm: { max_tokens: 100, choices: 4 }"),
        &[
            (Ok(()), json!({ "messages": [], "max_tokens": 5, "n": 4 })),
            (TOKENS, json!({ "messages": [], "max_tokens": 5, "n": 5 })),
        ],
    );
}

#[test]
fn tools_are_allowed_by_what_the_server_goes_by() {
    let rule = rule(
        "llm: { tools: [search, get_weather, 'web_search*', 'https://mcp.example/sse', connector_gmail] }",
    );
    let with = |tools: Value| json!({ "tools": tools });
    table(
        &rule,
        &[
            (Ok(()), json!({})),
            (Ok(()), with(json!([]))),
            (Ok(()), with(Value::Null)),
            (
                Ok(()),
                with(
                    json!([{ "type": "function", "function": { "name": "search", "parameters": {} } }]),
                ),
            ),
            (
                Ok(()),
                with(json!([{ "type": "function", "name": "search", "strict": true }])),
            ),
            (
                Ok(()),
                with(json!([{ "type": "custom", "custom": { "name": "search" } }])),
            ),
            (
                Ok(()),
                with(
                    json!([{ "name": "search", "input_schema": {} }, { "type": "custom", "name": "get_weather" }]),
                ),
            ),
            (
                Ok(()),
                with(
                    json!([{ "type": "web_search_preview" }, { "type": "web_search_20250305", "name": "web_search" }]),
                ),
            ),
            (
                Ok(()),
                with(
                    json!([{ "functionDeclarations": [{ "name": "search" }, { "name": "get_weather" }] }]),
                ),
            ),
            (
                Ok(()),
                with(
                    json!([{ "type": "mcp", "server_label": "x", "server_url": "https://mcp.example/sse" }]),
                ),
            ),
            (
                Ok(()),
                with(
                    json!([{ "type": "mcp", "server_label": "x", "connector_id": "connector_gmail" }]),
                ),
            ),
            (Ok(()), json!({ "functions": [{ "name": "search" }] })),
            (Ok(()), json!({ "web_search_options": {} })),
            (
                Ok(()),
                json!({ "mcp_servers": [{ "type": "url", "url": "https://mcp.example/sse", "name": "x" }] }),
            ),
            (Ok(()), json!({ "prompt": "text" })),
            (
                TOOL,
                with(json!([{ "type": "function", "function": { "name": "drop" } }])),
            ),
            (
                TOOL,
                with(
                    json!([{ "type": "function", "name": "search", "function": { "name": "drop" } }]),
                ),
            ),
            (
                TOOL,
                with(
                    json!([{ "type": "function", "name": "drop", "function": { "name": "search" } }]),
                ),
            ),
            (
                TOOL,
                with(json!([{ "name": "search" }, { "name": "drop" }])),
            ),
            (TOOL, with(json!([{ "name": "Search" }]))),
            (TOOL, with(json!([{ "type": "code_interpreter" }]))),
            // The name beside a hosted type is not what is run.
            (
                TOOL,
                with(json!([{ "type": "bash_20250124", "name": "search" }])),
            ),
            (
                TOOL,
                with(
                    json!([{ "type": "mcp", "server_label": "search", "server_url": "https://evil.example/" }]),
                ),
            ),
            (
                TOOL,
                with(
                    json!([{ "type": "mcp", "server_label": "search", "server_url": "https://mcp.example/sse", "connector_id": "connector_drive" }]),
                ),
            ),
            (
                TOOL,
                json!({ "mcp_servers": [{ "url": "https://evil.example/", "name": "search" }] }),
            ),
            (
                TOOL,
                with(json!([{ "functionDeclarations": [{ "name": "drop" }] }])),
            ),
            (
                TOOL,
                with(json!([{ "function_declarations": [{ "name": "drop" }] }])),
            ),
            (
                TOOL,
                with(
                    json!([{ "functionDeclarations": [{ "name": "search" }], "codeExecution": {} }]),
                ),
            ),
            (TOOL, with(json!([{ "googleSearch": {} }]))),
            (
                TOOL,
                with(json!([{ "name": "search", "functionDeclarations": [{ "name": "drop" }] }])),
            ),
            (
                TOOL,
                with(
                    json!([{ "type": "function", "name": "search", "tools": [{ "type": "shell" }] }]),
                ),
            ),
            (
                TOOL,
                with(json!([{ "type": "namespace", "name": "search", "tools": [] }])),
            ),
            (TOOL, json!({ "functions": [{ "name": "drop" }] })),
            (TOOL, json!({ "plugins": [{ "id": "web" }] })),
            (TOOL, json!({ "prompt": { "id": "pmpt_1" } })),
            (TOOL, json!({ "cachedContent": "cachedContents/1" })),
            (
                TOOL,
                json!({ "toolConfig": { "tools": [{ "toolSpec": { "name": "drop" } }] } }),
            ),
            (INVALID, with(json!({}))),
            (INVALID, with(json!(["search"]))),
            (INVALID, with(json!([{}]))),
            (INVALID, with(json!([{ "type": "function" }]))),
            (
                INVALID,
                with(json!([{ "type": "function", "function": "search" }])),
            ),
            (
                INVALID,
                with(json!([{ "type": ["function"], "name": "search" }])),
            ),
            (INVALID, with(json!([{ "name": 1 }]))),
            (
                INVALID,
                with(json!([{ "type": "mcp", "server_label": "search" }])),
            ),
            (INVALID, json!({ "functions": [{}] })),
        ],
    );
    table(
        &super::rule("llm: { tools: [] }"),
        &[
            (Ok(()), json!({ "tools": [] })),
            (TOOL, json!({ "tools": [{ "name": "search" }] })),
            (TOOL, json!({ "web_search_options": {} })),
        ],
    );
    table(
        &super::rule("llm: { models: [m] }"),
        &[(
            Ok(()),
            json!({ "model": "m", "tools": [{ "type": "shell" }] }),
        )],
    );
    let tool = json!([{ "type": "mcp", "server_url": "https://evil.example/?key=hunter2" }]);
    let fault = rule.check(&with(tool)).unwrap_err();
    assert!(!format!("{fault:?}").contains("hunter2"), "{fault:?}");
}

#[test]
fn streams_are_asked_for_as_declared() {
    table(
        &rule("llm: { stream: false }"),
        &[
            (Ok(()), json!({})),
            (Ok(()), json!({ "stream": false })),
            (Ok(()), json!({ "stream": null })),
            (INVALID, json!({ "stream": true })),
            (INVALID, json!({ "stream": 1 })),
            (INVALID, json!({ "stream": "true" })),
        ],
    );
    table(
        &rule("llm: { stream: true }"),
        &[(Ok(()), json!({ "stream": true })), (INVALID, json!({}))],
    );
}

#[test]
fn realistic_requests() {
    let rule = rule(
        "llm: { models: [gpt-4o-mini, gpt-5-mini, 'claude-3-*'], max_tokens: 4096, tools: [search, get_weather, web_search_preview] }",
    );
    let chat = json(include_str!("corpus/chat.json"));
    let responses = json(
        r#"{"model":"gpt-5-mini","input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]}],
        "max_output_tokens":2048,"tools":[{"type":"web_search_preview"},{"type":"function","name":"search","parameters":{}}],
        "store":false,"stream":true,"reasoning":{"effort":"low"}}"#,
    );
    let messages = json(
        r#"{"model":"claude-3-5-haiku-latest","max_tokens":1024,"system":"Be brief.","messages":[{"role":"user","content":"hi"}],
        "tools":[{"name":"get_weather","description":"…","input_schema":{"type":"object"}}],"tool_choice":{"type":"auto"}}"#,
    );
    let gemini = json(
        r#"{"contents":[{"role":"user","parts":[{"text":"hi"}]}],"generationConfig":{"maxOutputTokens":800,"temperature":0.2},
        "tools":[{"functionDeclarations":[{"name":"search","parameters":{"type":"OBJECT"}}]}]}"#,
    );
    table(
        &rule,
        &[
            (Ok(()), chat),
            (Ok(()), responses),
            (Ok(()), messages),
            (MODEL, gemini.clone()),
        ],
    );
    table(
        &super::rule("llm: { max_tokens: 800, tools: [search] }"),
        &[(Ok(()), gemini)],
    );
}
