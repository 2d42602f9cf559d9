//! The notation: what is read, and what is said of what is wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
use super::super::{Patterns, Reading};
use crate::payload::{GrpcMethods, GrpcRoute, Payload};
use crate::syntax::{Decoder, Faults, Node, Source, Value};

/// Reads the one key of a document with `read`; the value and the warnings, or the faults.
fn decode<T>(
    text: &str,
    read: impl FnOnce(&mut Reading<'_>, &str, &Node) -> Option<T>,
) -> Result<(T, Faults), Faults> {
    let mut decoder = Decoder::new();
    let source = Source {
        name: "rule".into(),
        text: text.into(),
    };
    let root = decoder.parse(&source);
    let mut patterns = Patterns::default();
    let mut reading = Reading {
        decoder: &mut decoder,
        patterns: &mut patterns,
    };
    let value = root.and_then(|root| match &root.value {
        Value::Mapping(entries) => {
            let entry = entries.first()?;
            read(&mut reading, &entry.key.text, &entry.value)
        }
        _ => None,
    });
    let faults = decoder.finish()?;
    Ok((value.expect("no fault, and no value"), faults))
}

fn payload(reading: &mut Reading<'_>, key: &str, node: &Node) -> Option<Payload> {
    match key {
        "graphql" => super::graphql(reading, node).map(Payload::Graphql),
        "mcp" => super::mcp(reading, node).map(Payload::Mcp),
        "llm" => super::llm(reading, node).map(Payload::Llm),
        _ => None,
    }
}

/// A rule from `graphql: { … }`, `mcp: { … }` or `llm: { … }`.
pub(crate) fn read(text: &str) -> Result<Payload, Faults> {
    decode(text, payload).map(|(payload, _)| payload)
}

#[track_caller]
fn faults(text: &str, expected: &[&str]) {
    let faults = decode(text, payload).expect_err(text).to_string();
    for part in expected {
        assert!(faults.contains(part), "{part:?} is not in\n{faults}");
    }
}

#[track_caller]
fn warnings(text: &str, expected: &[&str]) {
    let (_, warnings) = decode(text, payload).unwrap_or_else(|faults| panic!("{faults}"));
    let warnings = warnings.to_string();
    for part in expected {
        assert!(warnings.contains(part), "{part:?} is not in\n{warnings}");
    }
    assert!(!expected.is_empty() || warnings.is_empty(), "{warnings}");
}

#[test]
fn graphql_faults() {
    faults(
        "graphql: {}",
        &["`graphql` allows nothing", "name the fields"],
    );
    faults("graphql: { introspection: false }", &["allows nothing"]);
    faults("graphql: [viewer]", &["expected a mapping"]);
    faults(
        "graphql: { querys: [a] }",
        &["unknown key `querys`", "did you mean `query`?"],
    );
    faults("graphql: { query: [] }", &["this list is empty"]);
    faults("graphql: { query: viewer }", &["expected a list"]);
    faults(
        "graphql: { query: [1] }",
        &["expected a string, found an integer"],
    );
    faults("graphql: { query: [a, a] }", &["`a` stands twice"]);
    faults(
        "graphql: { query: [a..b, .a, a., 'a b', 1a, 'a-b', é] }",
        &[
            "`a..b` is not a path",
            "`.a` is not",
            "`a.` is not",
            "`a b` is not",
            "`1a` is not",
            "`a-b` is not",
            "`é` is not",
        ],
    );
    faults(
        "graphql: { query: ['a.*', '*.a'] }",
        &["`a.*` has a `*` within a path", "`*.a` has"],
    );
    faults(
        "graphql: { query: [__schema, a.__typename] }",
        &[
            "`__schema` belongs to the schema",
            "introspection: true",
            "`a.__typename`",
        ],
    );
    faults("graphql: { query: [a], depth: 0 }", &["from 1 to 64"]);
    faults("graphql: { query: [a], depth: 65 }", &["from 1 to 64"]);
    faults(
        "graphql: { query: [a], introspection: yes }",
        &["expected `true` or `false`"],
    );
    // All of them in one pass.
    faults(
        "graphql: { query: ['a b'], mutation: [], depth: 99 }",
        &["`a b`", "empty", "from 1 to 64"],
    );
    let long = vec!["a"; 65].join(".");
    faults(
        &format!("graphql: {{ query: [{long}] }}"),
        &["longer than fields can be nested"],
    );
    let many: Vec<String> = (0..1_001).map(|n| format!("a{n}")).collect();
    faults(
        &format!("graphql: {{ query: [{}] }}", many.join(", ")),
        &["more than 1000 names"],
    );
}

#[test]
fn graphql_warnings() {
    warnings(
        "graphql: { query: [a, b.c, b.d], mutation: ['*'], subscription: [a], depth: 64 }",
        &[],
    );
    warnings(
        "graphql: { query: [a, a.b] }",
        &["`a.b` is allowed already"],
    );
    warnings(
        "graphql: { query: [a.b, a] }",
        &["`a` allows more than longer paths"],
    );
    warnings("graphql: { query: [a, '*'] }", &["`*` allows every query"]);
}

#[test]
fn mcp_faults() {
    faults("mcp: {}", &["`mcp` allows nothing"]);
    faults(
        "mcp: { tool: { a: any } }",
        &["unknown key `tool`", "did you mean `tools`?"],
    );
    faults(
        "mcp: { methods: ['*', 'tools*', 'a/*/b', '/*', 'a b'] }",
        &[
            "`*` is not a method",
            "`tools*` is not",
            "`a/*/b` is not",
            "`/*` is not",
            "`a b` is not",
        ],
    );
    faults(
        "mcp: { tools: [search] }",
        &["expected a mapping of tools", "`any` is any arguments"],
    );
    faults("mcp: { tools: {} }", &["`tools` names no tool"]);
    faults(
        "mcp: { tools: { a: string, b: [c], c: null } }",
        &["expected the tool's arguments", "found a list"],
    );
    faults(
        "mcp: { tools: { 'a*': any } }",
        &["`a*` is not a tool's name"],
    );
    faults(
        "mcp: { tools: { a: { b: strin } } }",
        &["unknown type `strin`", "did you mean `string`?"],
    );
    faults("mcp: { prompts: ['a*'] }", &["`a*` is not a prompt's name"]);
    faults(
        "mcp: { resources: [docs/a] }",
        &["does not begin with a scheme"],
    );
    faults(
        "mcp: { resources: ['file:///*/a'] }",
        &["not its last character"],
    );
    faults(
        "mcp: { resources: ['https://docs*'] }",
        &["ends within the host"],
    );
    faults(
        "mcp: { resources: ['https://docs:*'] }",
        &["ends within the host"],
    );
    faults("mcp: { replies: 1 }", &["expected `true` or `false`"]);
    faults(
        "mcp: { methods: [], prompts: [], tools: {} }",
        &["this list is empty", "`tools` names no tool"],
    );
}

#[test]
fn mcp_warnings() {
    warnings(
        "mcp: { methods: [initialize, tools/list, notifications/*, resources/*], tools: { a: any }, resources: ['a:b'] }",
        &[],
    );
    warnings(
        "mcp: { methods: [tools/call] }",
        &["`tools/call` allows any of the server's tools"],
    );
    warnings(
        "mcp: { methods: [tools/call], tools: { a: any } }",
        &["`tools` is without effect"],
    );
    warnings(
        "mcp: { methods: [resources/read] }",
        &["any of the server's resources"],
    );
    warnings(
        "mcp: { methods: [tools/*] }",
        &["`tools/*` does not reach `tools/call`"],
    );
    warnings(
        "mcp: { methods: [tools/lst] }",
        &["not a method of the protocol", "did you mean `tools/list`?"],
    );
}

#[test]
fn llm_faults() {
    faults("llm: {}", &["`llm` says nothing"]);
    faults(
        "llm: { model: a }",
        &["unknown key `model`", "did you mean `models`?"],
    );
    faults("llm: { models: a }", &["expected a list"]);
    faults("llm: { models: [] }", &["this list is empty"]);
    faults(
        "llm: { models: ['*-mini'] }",
        &["`*` that is not its last character"],
    );
    faults("llm: { max_tokens: 0 }", &["from 1 to 100000000"]);
    faults("llm: { max_tokens: 4k }", &["expected an integer"]);
    faults(
        "llm: { choices: 0, stream: no }",
        &["from 1 to 1000", "expected `true` or `false`"],
    );
    faults("llm: { tools: [a, a] }", &["`a` stands twice"]);
    faults("llm: { tools: [''] }", &["this is empty"]);
    warnings("llm: { tools: [] }", &[]);
    warnings(
        "llm: { models: [gpt-4o-mini, 'claude-3-*'], max_tokens: 4096, choices: 2, tools: [search], stream: true }",
        &[],
    );
}

fn grpc(text: &str) -> Result<Vec<GrpcRoute>, Faults> {
    decode(&format!("grpc: {text}"), |reading, _, node| {
        super::grpc(reading, node)
    })
    .map(|(routes, _)| routes)
}

#[test]
fn grpc_routes() {
    let these =
        |names: &[&str]| GrpcMethods::These(names.iter().map(|name| (*name).into()).collect());
    let route = |service: &str, methods| GrpcRoute {
        service: service.into(),
        methods,
    };
    let cases = [
        (
            "acme.v1.Ledger/Get|List",
            vec![route("acme.v1.Ledger", these(&["Get", "List"]))],
        ),
        (
            "acme.v1.Ledger/*",
            vec![route("acme.v1.Ledger", GrpcMethods::Any)],
        ),
        ("Health/Check", vec![route("Health", these(&["Check"]))]),
        (
            "[a.B/C, 'a.D/*']",
            vec![route("a.B", these(&["C"])), route("a.D", GrpcMethods::Any)],
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(grpc(text).unwrap(), expected, "{text}");
    }
    let faults = [
        ("acme.v1.Ledger", "names no method"),
        ("acme.v1.*", "names no service"),
        ("'*/Get'", "is not a service's name"),
        ("/Get", "is not a service's name"),
        ("a..B/Get", "is not a service's name"),
        ("a.B-C/Get", "is not a service's name"),
        ("a.B/", "is not a method's name"),
        ("a.B/Get/List", "is not a method's name"),
        ("a.B/Get|", "is not a method's name"),
        ("a.B/Get|*", "is not a method's name"),
        ("a.B/G*", "is not a method's name"),
        ("'a.B/{x}'", "is not a method's name"),
        ("'a.B/Get|Get'", "stands twice"),
        ("[a.B/C, a.B/D]", "stands twice in the list"),
        ("[]", "this list is empty"),
        ("3", "expected a string"),
    ];
    for (text, expected) in faults {
        let found = grpc(text).expect_err(text).to_string();
        assert!(found.contains(expected), "{text}: {found}");
    }
}
