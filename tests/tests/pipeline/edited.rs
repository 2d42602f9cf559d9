//! Bodies that a rule cuts something out of: what reaches the upstream is what is left, and says so.
use super::*;

const POLICY: &str = r#"
version: 1
workloads: { probe: {} }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
  two: { hosts: [two.example], tls: { ca: "file:server-ca.pem" } }
roles:
  writer:
    - api: odd
      allow: &RULES
    - api: two
      allow: &RULES
grants:
  - { role: writer, to: { workload: probe } }
"#;

const RULES: &str = r#"
        - route: POST /profile
          headers: { allow: [content-digest, repr-digest, digest, content-md5] }
          body: { strip: [/internal, "/emails/*/verified"], max: 4KiB }
        - route: POST /event
          body: { fields: { kind: [click, view], page: string }, extra: strip }
        - route: POST /kept
          headers: { allow: [content-digest, repr-digest, digest, content-md5] }
          body: { fields: { internal: any, name: string, emails: any }, max: 4KiB }
"#;

/// Aliases are no part of the language.
fn policy() -> String {
    POLICY.replace(" &RULES\n", RULES)
}

const PROFILE: &str = "{ \"name\" : \"A\u{6e}n\",\r\n \"internal\": {\"a\":[1,2]} ,\t\"emails\":[ {\"to\":\"a\", \"verified\":true},{\"verified\":false} ] }";
const KIND: [&str; 2] = ["content-type", "application/json"];

/// What the upstream says it was sent: the body, and its headers.
fn sent(got: &Value) -> (String, Value) {
    assert_eq!(got["status"], 200, "{got}");
    let text = got["data"].as_str().unwrap();
    let echo: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("no echo in {got}"));
    (echo["body"].as_str().unwrap().to_owned(), echo)
}

/// Every pair of an upstream and a version that the client speaks.
const WAYS: [(&str, bool); 4] = [
    ("odd.example", false),
    ("odd.example", true),
    ("two.example", false),
    ("two.example", true),
];

#[test]
fn exactly_what_is_cut_is_missing_and_the_length_is_true() {
    let mut lab = Lab::ordinary(&policy(), "");
    let digests = ["content-digest", "repr-digest", "digest", "content-md5"];
    let mut headers: Vec<[&str; 2]> = digests.map(|name| [name, "sha-256=:AA==:"]).into();
    headers.push(KIND);
    for (host, h2) in WAYS {
        for chunked in [false, true] {
            let post = |path: &str, body: &str| json!({"method": "POST", "url": format!("https://{host}{path}"), "headers": headers, "body": body, "h2": h2, "chunked": chunked});
            let (got, record) = lab.asked(post("/profile", PROFILE));
            let (body, echo) = sent(&got);
            assert_eq!(
                body, "{ \"name\" : \"Ann\" ,\t\"emails\":[ {\"to\":\"a\"},{} ] }",
                "{host} {h2}"
            );
            let length = body.len().to_string();
            assert_eq!(header(&echo, "content-length"), Some(&*length), "{echo}");
            for gone in digests.iter().chain(&["transfer-encoding"]) {
                assert_eq!(header(&echo, gone), None, "{gone}: {echo}");
            }
            assert_eq!(header(&echo, KIND[0]), Some(KIND[1]));
            let stripped = record["stripped"].as_array().unwrap();
            for name in digests
                .iter()
                .chain(&["body:/internal", "body:/emails/*/verified"])
            {
                assert!(stripped.contains(&json!(name)), "{name}: {record}");
            }
            assert_eq!(record["request"]["bytes"], PROFILE.len(), "{record}");
            // With nothing to cut, and without the rule that cuts, it is what the client sent.
            for (path, body) in [
                ("/profile", "{ \"name\":\"\\u0041\" }\n"),
                ("/kept", PROFILE),
            ] {
                let (got, record) = lab.asked(post(path, body));
                let (arrived, echo) = sent(&got);
                assert_eq!(arrived, body, "{path} {host} {h2}");
                for kept in digests {
                    assert!(header(&echo, kept).is_some(), "{kept}: {echo}");
                }
                assert_eq!(record["stripped"], json!([]), "{record}");
            }
        }
    }
}

#[test]
fn fields_that_no_rule_names_are_cut_from_json_and_forms() {
    let mut lab = Lab::ordinary(&policy(), "");
    let form = ["content-type", "application/x-www-form-urlencoded"];
    for (host, h2) in WAYS {
        for (kind, body, left, cut) in [
            (
                KIND,
                r#"{"session":"s", "kind":"click", "page":"/a?b", "z":[{}]}"#,
                r#"{ "kind":"click", "page":"/a?b"}"#,
                json!(["body:/session", "body:/z"]),
            ),
            (KIND, r#"{"kind":"view"}"#, r#"{"kind":"view"}"#, json!([])),
            (
                form,
                "session=s&kind=click&page=%2fa+b&z=",
                "kind=click&page=%2fa+b",
                json!(["body:/session", "body:/z"]),
            ),
            (
                form,
                "kind=view&page=%2Fa",
                "kind=view&page=%2Fa",
                json!([]),
            ),
        ] {
            let url = format!("https://{host}/event");
            let (got, record) = lab.asked(
                json!({"method": "POST", "url": url, "headers": [kind], "body": body, "h2": h2}),
            );
            let (arrived, echo) = sent(&got);
            assert_eq!(arrived, left, "{host} {h2}");
            assert_eq!(
                header(&echo, "content-length"),
                Some(&*left.len().to_string()),
                "{echo}"
            );
            assert_eq!(record["stripped"], cut, "{record}");
        }
        // What is declared is still held to its shape, and a name twice is still no JSON.
        for (body, code) in [
            (r#"{"kind":"x","s":1}"#, "body_field"),
            (r#"{"kind":"view","s":1,"s":2}"#, "body_invalid"),
        ] {
            let url = format!("https://{host}/event");
            let (got, record) = lab.asked(
                json!({"method": "POST", "url": url, "headers": [KIND], "body": body, "h2": h2}),
            );
            assert_eq!(got["status"], 403, "{got}");
            assert_eq!(record["reason"]["code"], code, "{record}");
            assert_eq!(record["upstream"], Value::Null, "{record}");
        }
    }
}
