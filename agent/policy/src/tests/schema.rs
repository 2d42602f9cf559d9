//! The published schema against the compiler: what one takes the other does, as far as a schema can say.
use super::*;
use crate::SCHEMA;
use crate::syntax::{Decoder, Node, Value};
use serde_json::Value as Json;
use std::collections::BTreeSet;

fn validator() -> jsonschema::Validator {
    let schema: Json = serde_json::from_str(SCHEMA).unwrap();
    jsonschema::draft202012::meta::validate(&schema).unwrap();
    jsonschema::draft202012::options().build(&schema).unwrap()
}

/// As an editor reads YAML.
fn json(node: &Node) -> Json {
    match &node.value {
        Value::Scalar(scalar) => match scalar.kind() {
            "nothing" => Json::Null,
            "a boolean" => Json::Bool(scalar.text.eq_ignore_ascii_case("true")),
            "an integer" | "a number" => serde_json::from_str(&scalar.text)
                .unwrap_or_else(|_| Json::String(scalar.text.to_string())),
            _ => Json::String(scalar.text.to_string()),
        },
        Value::Sequence(items) => items.iter().map(json).collect(),
        Value::Mapping(entries) => {
            let members = entries.iter();
            members
                .map(|entry| (entry.key.text.to_string(), json(&entry.value)))
                .collect()
        }
    }
}

fn wrong(validator: &jsonschema::Validator, text: &str) -> Option<String> {
    let mut decoder = Decoder::new();
    let root = decoder.parse(&source("p.yaml", text)).unwrap();
    let document = json(&root);
    let error = validator.validate(&document).err()?;
    Some(format!("{}: {error}", error.instance_path()))
}

/// The whole policies among the YAML blocks of a page.
fn policies(page: &str) -> Vec<String> {
    let blocks = page.split("```yaml\n").skip(1);
    blocks
        .filter_map(|block| Some(block.split_once("```")?.0.to_owned()))
        .filter(|block| block.lines().any(|line| line == "version: 1"))
        .collect()
}

#[test]
fn what_compiles_fits() {
    let validator = validator();
    let mut texts = vec![
        POLICY.to_owned(),
        include_str!("../fuzzing/policy.yaml").to_owned(),
    ];
    texts.extend(policies(include_str!("../../../../README.md")));
    texts.extend(policies(include_str!("../../../../docs/policy.md")));
    assert!(texts.len() > 3, "{}", texts.len());
    for text in texts {
        if let Err(faults) = compile(&[source("p.yaml", &text)]) {
            panic!("{faults}");
        }
        assert_eq!(wrong(&validator, &text), None, "{text}");
    }
}

/// Every construct, each once.
const ALL: &str = r#"
version: 1
workloads: { w: { match: [{ unit: w.service, user: 1001, cgroup: "/a/**", exe: /bin/w, container: "w-*", labels: { app: "w-*", io.kubernetes.pod.namespace: shop, tier: 1, empty: "" } }], listen: [8080, 1], unix: [/run/postgresql/**, "@x", /dev/log], established: report }, v: { listen: [], unix: [] } }
identities: { alice: { token: tgi_a }, ci: { jwt: { issuer: "https://ci.example", audience: t, claims: { repo: a/b }, keys: "file:keys" } } }
groups: { team: [alice, ci] }
apis:
  a: { hosts: [a.com, "*.b.com"], port: 8443, tls: { ca: "file:ca.pem" }, addresses: [10.0.0.0/8, "::1"], meter: openai }
  m: { hosts: [m.com], tls: { cert: "file:m.pem", key: "file:m.key" } }
  p: { hosts: [p.com], scheme: http, port: 8080 }
  t: { tcp: ["10.0.0.7:6379", "[2001:db8::1]:5432"] }
  s: { sni: [bank.com], port: 443, addresses: [10.0.0.1] }
credentials:
  c: { secret: "file:s", header: { Authorization: "Bearer {secret}" }, to: [a] }
  v: { secret: "vault:a/b.c#d", header: { x-key: "{secret}" }, to: [a] }
  k: { aws-sigv4: { access_key: "vault:aws#id", secret_key: "file:k", session_token: "file:t", region: eu-west-1, service: s3 }, to: [a] }
roles:
  reader(repo, max):
    - api: a
      allow:
        - { route: "read-only /repos/${repo}/**" }
        - { route: "GET /x", query: { page: "1..${max}" } }
  r:
    - include: reader(repo=acme/app, max=9)
    - { api: t }
    - api: a
      credential: c
      allow:
        - route: GET|HEAD /q/{n:int}/{u:uuid}/{p:[a-z]+}
          query: { a: int, b: [x, 1], c: [[x, y]], d: { type: "/[a-z]+/", required: true }, e: -5..5, f: [string] }
          extra: strip
          headers: { allow: [x-a], require: { x-b: [acme], accept: "/application/.*/" }, strip: [user-agent] }
        - route: POST /b
          body: { fields: { a: { b: [1, true, null] }, l: [{ n: int }], m: [[x, y]] }, required: [a], extra: strip, strip: [/a/b], max: 16KiB }
          when: request.json.a.b == 1
        - { route: POST /s, body: { schema: { type: object, required: [x] }, max: 1024 } }
        - { grpc: "acme.v1.Ledger/Get|List" }
        - { grpc: ["acme.v1.Other/*"], headers: { allow: [x-c] } }
        - route: POST /graphql
          graphql: { query: [viewer, repository.issues], mutation: [addComment], depth: 8, introspection: true }
        - route: POST /mcp
          mcp: { methods: [initialize, "notifications/*"], tools: { search: { q: string }, get: any }, prompts: [p], resources: ["file:///docs/*"], replies: true }
        - route: POST /llm
          llm: { models: [gpt-4o-mini, "claude-3-*"], max_tokens: 4096, choices: 1, tools: [], stream: false }
        - { route: GET /live, websocket: true }
        - { route: GET /plain, websocket: { binary: false, max: 1MiB } }
        - route: GET /looked
          websocket: { fields: { type: [a, b] }, required: [type], extra: strip, strip: [/x], max: 16KiB, when: request.json.type == 'a' }
        - { route: GET /schema, websocket: { schema: { type: object } } }
      deny:
        - { route: "* /no/**", when: "request.method != 'GET'" }
      response: { strip: [set-cookie], redact: [/user/email, /items/*/token], max: 10MiB }
    - { api: s }
grants:
  - { role: r, to: { workload: [w, v], identity: alice, group: [team] }, mode: observe, until: 2026-12-31T18:00:00Z }
  - { role: "reader(repo: x, max: 3)", to: { group: team }, until: 2026-12-31 }
budgets:
  interns: { for: { workload: w, group: [team] }, each: identity, limits: { usd: 50/day, tokens: 2M/day, requests: 60/min, bytes: 1GiB/day } }
  all: { for: { workload: [v, w] }, each: workload, limits: { usd: 0.25/hour, requests: 500k/day } }
prices:
  "gpt-4o*": { input: 2.50, output: 10, cached: "1.25", cache_write: 2.5, max_output: 16384 }
"#;

#[test]
fn every_construct_fits() {
    if let Err(faults) = compile(&[source("p.yaml", ALL)]) {
        panic!("{faults}");
    }
    assert_eq!(wrong(&validator(), ALL), None);
}

#[test]
fn what_is_wrong_does_not_fit() {
    let validator = validator();
    let cases = [
        ("version: 1", "version: 2"),
        ("workloads: {", "worklods: {"),
        ("unit: w.service", "unit: w"),
        ("unit: w.service", "unti: w.service"),
        ("cgroup: \"/a/**\"", "cgroup: a"),
        ("labels: { app: \"w-*\",", "labels: { \"app*\": w,"),
        ("labels: { app: \"w-*\",", "labels: { app: [w],"),
        ("v: { listen: []", "v: { match: { labels: {} }"),
        ("v: { listen: []", "v: { match: []"),
        ("v: { listen: []", "-v: { listen: []"),
        ("established: report", "established: kill"),
        ("established: report", "established: [report]"),
        ("listen: [8080, 1]", "listen: [0]"),
        ("listen: [8080, 1]", "listen: [65536]"),
        ("listen: [8080, 1]", "listen: 8080"),
        ("\"@x\"", "run/x"),
        ("\"@x\"", "/run/*/x"),
        ("\"@x\"", "/**"),
        ("\"@x\"", "\"@\""),
        ("\"@x\"", "/run/"),
        ("token: tgi_a", "token: secret"),
        ("token: tgi_a", "token: tgi_a, jwt: {}"),
        (
            "issuer: \"https://ci.example\"",
            "issuer: \"http://ci.example\"",
        ),
        ("claims: { repo: a/b }", "claims: { iss: x }"),
        ("[alice, ci]", "[]"),
        ("hosts: [a.com, ", "hosts: [\"https://a.com\", "),
        ("hosts: [a.com, \"*.b.com\"]", "hosts: a.com"),
        ("port: 8443", "port: 0"),
        ("port: 8443", "prot: 8443"),
        ("10.0.0.0/8, \"::1\"", "example.com"),
        ("{ tcp: [\"10.0.0.7:6379\"", "{ tcp: [\"10.0.0.7\""),
        ("tcp: [", "port: 1, tcp: ["),
        ("tcp: [", "scheme: http, tcp: ["),
        ("scheme: http, port", "scheme: ftp, port"),
        (
            "scheme: http, port",
            "scheme: http, tls: { ca: \"file:c\" }, port",
        ),
        (", key: \"file:m.key\"", ""),
        ("websocket: true", "websocket: yes"),
        ("websocket: true", "websocket: false"),
        ("websocket: true", "websocket: true, body: { max: 1KiB }"),
        ("{ binary: false", "{ binary: 1"),
        ("{ binary: false", "{ text: true"),
        ("{ grpc: [", "{ websocket: true, grpc: ["),
        ("sni: [bank.com]", "sni: [bank.com], hosts: [x.com]"),
        ("secret: \"file:s\"", "secret: \"file:../s\""),
        ("secret: \"file:s\"", "secret: plain"),
        ("\"Bearer {secret}\"", "Bearer"),
        ("\"Bearer {secret}\"", "\"{secret}{secret}\""),
        ("\"{secret}\" }, to: [a]", "\"{secret}\" }"),
        ("vault:a/b.c#d", "vault:a/b.c"),
        ("vault:a/b.c#d", "vault:a/../c#d"),
        ("vault:a/b.c#d", "vault:/a#d"),
        ("vault:a/b.c#d", "vault:a#b#c"),
        ("vault:a/b.c#d", "vault:a b#c"),
        ("access_key: \"vault:aws#id\", ", ""),
        ("region: eu-west-1", "region: EU"),
        ("service: s3", "service: \"\""),
        ("service: s3 }", "service: s3 }, secret: \"file:s\""),
        (
            "service: s3 }",
            "service: s3 }, header: { x: \"{secret}\" }",
        ),
        ("reader(repo, max):", "reader(repo max-):"),
        ("api: a\n      credential", "apis: a\n      credential"),
        ("GET|HEAD /q", "get /q"),
        ("GET|HEAD /q", "/q"),
        ("GET|HEAD /q", "GET q"),
        ("a: int, b", "a: strng, b"),
        ("a: int, b", "a: [], b"),
        ("a: int, b", "a: { type: int, requird: true }, b"),
        (
            "extra: strip\n          headers",
            "extra: drop\n          headers",
        ),
        ("query: { a: int", "qery: { a: int"),
        ("require: { x-b: [acme]", "require: { \"x b\": [acme]"),
        ("required: [a], extra", "required: a, extra"),
        ("strip: [/a/b]", "strip: [a/b]"),
        ("max: 16KiB", "max: 16KB"),
        ("max: 16KiB }", "max: 16KiB, feilds: {} }"),
        ("Ledger/Get|List\"", "Ledger\""),
        ("{ grpc: [", "{ body: { max: 1KiB }, grpc: ["),
        ("{ grpc: [", "{ route: GET /, grpc: ["),
        ("query: [viewer,", "query: [\"a b\","),
        ("depth: 8", "depth: 65"),
        ("get: any", "get: some"),
        ("replies: true", "replies: maybe"),
        ("max_tokens: 4096", "max_tokens: 0"),
        (
            "deny:\n        - { route",
            "deny:\n        - { query: {}, route",
        ),
        ("redact: [/user", "redact: [user"),
        ("response: { strip", "response: { stirp"),
        ("role: r, to", "role: r, too"),
        ("mode: observe", "mode: observ"),
        ("2026-12-31T18:00:00Z", "tomorrow"),
        ("to: { group: team }", "to: {}"),
        ("meter: openai", "meter: opnai"),
        ("sni: [bank.com]", "sni: [bank.com], meter: openai"),
        ("tcp: [\"10", "meter: openai, tcp: [\"10"),
        ("each: identity", "each: group"),
        ("for: { workload: w, group: [team] }", "for: {}"),
        ("for: { workload: w, group: [team] }", "for: { user: w }"),
        ("usd: 50/day", "usd: 50"),
        ("usd: 50/day", "usd: 1.0000001/day"),
        ("tokens: 2M/day", "tokens: 2G/day"),
        ("requests: 60/min", "requests: 60/s"),
        (
            "limits: { usd: 0.25/hour, requests: 500k/day }",
            "limits: {}",
        ),
        ("output: 10,", "output: -1,"),
        ("output: 10,", ""),
        ("max_output: 16384", "max_output: 0"),
    ];
    for (part, replacement) in cases {
        assert!(ALL.contains(part), "{part}");
        let text = ALL.replacen(part, replacement, 1);
        assert!(wrong(&validator, &text).is_some(), "{replacement}");
        assert!(
            compile(&[source("p.yaml", &text)]).is_err(),
            "{replacement}"
        );
    }
}

/// The keys that the compiler knows are those of the schema, mapping by mapping.
#[test]
fn keys_agree() {
    let schema: Json = serde_json::from_str(SCHEMA).unwrap();
    let role = |entry: &str| format!("roles: {{ r: [{entry}] }}");
    let allow = |rule: &str| role(&format!("{{ api: a, allow: [{rule}] }}"));
    let cases = [
        ("zzzzzz: 1".to_owned(), ""),
        (
            "workloads: { w: { zzzzzz: 1 } }".to_owned(),
            "/$defs/workload",
        ),
        (
            "workloads: { w: { match: { zzzzzz: 1 } } }".to_owned(),
            "/$defs/selector",
        ),
        (
            "identities: { i: { zzzzzz: 1 } }".to_owned(),
            "/$defs/identity",
        ),
        (
            "identities: { i: { jwt: { zzzzzz: 1 } } }".to_owned(),
            "/$defs/identity/properties/jwt",
        ),
        (
            "apis: { a: { hosts: [a.com], zzzzzz: 1 } }".to_owned(),
            "/$defs/api",
        ),
        (
            "apis: { a: { hosts: [a.com], tls: { zzzzzz: 1 } } }".to_owned(),
            "/$defs/api/properties/tls",
        ),
        (
            "credentials: { c: { zzzzzz: 1 } }".to_owned(),
            "/$defs/credential",
        ),
        (
            "credentials: { c: { aws-sigv4: { zzzzzz: 1 } } }".to_owned(),
            "/$defs/credential/properties/aws-sigv4",
        ),
        (role("{ api: a, zzzzzz: 1 }"), "/$defs/entry"),
        (role("{ include: x, zzzzzz: 1 }"), "/$defs/include"),
        (
            role("{ api: a, response: { zzzzzz: 1 } }"),
            "/$defs/entry/properties/response",
        ),
        (allow("{ route: GET /, zzzzzz: 1 }"), "/$defs/allow_rule"),
        (
            allow("{ route: GET /, query: { q: { type: int, zzzzzz: 1 } } }"),
            "/$defs/parameter/anyOf/1",
        ),
        (
            allow("{ route: GET /, headers: { zzzzzz: 1 } }"),
            "/$defs/allow_rule/properties/headers",
        ),
        (
            allow("{ route: GET /, body: { zzzzzz: 1 } }"),
            "/$defs/body",
        ),
        (
            allow("{ route: GET /, websocket: { zzzzzz: 1 } }"),
            "/$defs/websocket/oneOf/1",
        ),
        (
            allow("{ route: GET /, graphql: { zzzzzz: 1 } }"),
            "/$defs/graphql",
        ),
        (allow("{ route: GET /, mcp: { zzzzzz: 1 } }"), "/$defs/mcp"),
        (allow("{ route: GET /, llm: { zzzzzz: 1 } }"), "/$defs/llm"),
        ("grants: [{ zzzzzz: 1 }]".to_owned(), "/$defs/grant"),
        (
            "grants: [{ role: r, to: { zzzzzz: 1 } }]".to_owned(),
            "/$defs/whom",
        ),
        (
            "budgets: { b: { for: { workload: w }, zzzzzz: 1 } }".to_owned(),
            "/$defs/budget",
        ),
        (
            "budgets: { b: { for: { zzzzzz: 1 }, limits: { bytes: 1/day } } }".to_owned(),
            "/$defs/whom",
        ),
        (
            "budgets: { b: { for: { workload: w }, limits: { zzzzzz: 1 } } }".to_owned(),
            "/$defs/budget/properties/limits",
        ),
        ("prices: { m: { zzzzzz: 1 } }".to_owned(), "/$defs/price"),
    ];
    for (part, pointer) in cases {
        let text = format!("version: 1\n{part}\n");
        let faults = compile(&[source("p.yaml", &text)]).unwrap_err();
        let unknown = faults
            .iter()
            .find(|fault| fault.message.contains("`zzzzzz`"));
        let help = unknown.and_then(|fault| fault.help.clone());
        let help = help.unwrap_or_else(|| panic!("{part}\n{faults}"));
        let known = help.split_once("known keys: ").unwrap().1;
        let known: BTreeSet<&str> = known.split(", ").map(|key| key.trim_matches('`')).collect();
        let properties = schema.pointer(pointer).unwrap().get("properties").unwrap();
        let properties = properties.as_object().unwrap().keys();
        let properties: BTreeSet<&str> = properties.map(String::as_str).collect();
        assert_eq!(known, properties, "{pointer}");
    }
}

/// Editors show what a key is for.
#[test]
fn everything_is_described() {
    fn walk(at: &Json, path: &str, bare: &mut Vec<String>) {
        let Json::Object(members) = at else { return };
        if let Some(Json::Object(properties)) = members.get("properties") {
            for (name, property) in properties {
                let told = property.get("description").is_some() || property.get("$ref").is_some();
                if !told && property != &Json::Bool(false) {
                    bare.push(format!("{path}/{name}"));
                }
            }
        }
        for (name, member) in members {
            walk(member, &format!("{path}/{name}"), bare);
        }
    }
    let mut bare = Vec::new();
    walk(&serde_json::from_str(SCHEMA).unwrap(), "", &mut bare);
    assert_eq!(bare, Vec::<String>::new());
}
