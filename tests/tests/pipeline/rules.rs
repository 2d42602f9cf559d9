//! What a rule says of headers, of who calls, until when, and of the response.
use super::*;

const RULES: &str = r#"
version: 1
workloads: { probe: {} }
identities: { alice: { token: tgi_abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrst } }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
  wrong: { hosts: [wrong.example] }
roles:
  caller:
    - api: odd
      allow:
        - route: GET /plain
        - route: GET /tenant
          headers: { require: { x-tenant: [acme] }, allow: [x-more], strip: [user-agent] }
        - route: GET /drip
          headers: { require: { x-tenant: [acme] } }
  bounded:
    - api: odd
      allow: [{ route: GET|HEAD /sized }, { route: GET /unsized }, { route: GET /small }]
      response: { max: 4000B }
  personal:
    - api: wrong
      allow: [{ route: "* /**" }]
grants:
  - { role: caller, to: { workload: probe }UNTIL }
  - { role: bounded, to: { workload: probe } }
  - { role: personal, to: { workload: probe, identity: alice } }
"#;

fn rules(until: &str) -> String {
    RULES.replace("UNTIL", until)
}

impl Lab {
    /// Opens the stream that never ends, and sees it run.
    fn drip(&mut self) {
        self.open("odd.example");
        let raw = "GET /drip HTTP/1.1\r\nhost: odd.example\r\nx-tenant: acme\r\n\r\n";
        self.ask(json!({"do": "send", "data": raw}));
        let answer = self.ask(json!({"do": "read", "wait": 3, "until": "tick"}));
        assert_eq!(status(answer["data"].as_str().unwrap()), 200, "{answer}");
    }

    /// Reads the stream for a while: how it ended, if it did.
    fn dripping(&mut self) -> bool {
        let answer = self.ask(json!({"do": "read", "wait": 2, "most": 150}));
        answer["end"] == "open"
    }
}

#[test]
fn headers_are_required_let_through_and_taken_out_as_the_rule_says() {
    let mut lab = Lab::under("probe", &rules(""));
    let more = "x-more: 1\r\nuser-agent: secretive\r\n";
    let (status, data, _) = lab.exchange(&request(
        "GET /tenant HTTP/1.1",
        &format!("x-tenant: acme\r\n{more}"),
    ));
    assert_eq!(status, 200, "{data}");
    let echo = echoed(&data);
    assert_eq!(header(&echo, "x-tenant"), Some("acme"));
    assert_eq!(header(&echo, "x-more"), Some("1"));
    assert_eq!(header(&echo, "user-agent"), None);
    let record = lab.record("it", |record| record["request"]["path"] == "/tenant");
    assert_eq!(record["stripped"], json!(["user-agent"]), "{record}");
    // Another rule on the same api changes nothing of it.
    let (status, data, _) = lab.exchange(&request("GET /plain HTTP/1.1", more));
    assert_eq!(status, 200, "{data}");
    assert_eq!(header(&echoed(&data), "user-agent"), Some("secretive"));
    assert_eq!(header(&echoed(&data), "x-more"), None);
    for (headers, code) in [
        ("", "header_missing"),
        ("x-tenant: other\r\n", "header_value"),
        ("x-tenant: acme\r\nx-tenant: acme\r\n", "header_value"),
    ] {
        let (status, data, _) = lab.exchange(&request("GET /tenant HTTP/1.1", headers));
        assert_eq!(status, 403, "{data}");
        assert!(data.contains(code), "{code}: {data}");
    }
}

#[test]
fn who_must_prove_an_identity_is_told_how() {
    let mut lab = Lab::under("probe", &rules(""));
    let (status, data) = lab.get("wrong.example", "/a");
    assert_eq!(status, 401, "{data}");
    let head = data.to_lowercase();
    assert!(
        head.contains("www-authenticate: bearer realm=\"tollgate\"\r\n"),
        "{data}"
    );
    let record = lab.record_of("identity_required");
    assert_eq!(record["verdict"], "DENY");
    assert_eq!(record["response"]["status"], 401);
    assert_eq!(record["identity"], Value::Null);

    lab.open("wrong.example");
    let raw = "POST /a.B/C HTTP/1.1\r\nhost: wrong.example\r\ncontent-type: application/grpc\r\n\
               content-length: 0\r\nconnection: close\r\n\r\n";
    lab.ask(json!({"do": "send", "data": raw}));
    let answer = lab.ask(json!({"do": "read", "wait": 5}));
    let data = answer["data"].as_str().unwrap().to_lowercase();
    assert!(data.contains("grpc-status: 16\r\n"), "{answer}");
    // Who is refused for something else is not asked for a proof.
    let (status, data, _) = lab.exchange(&request("GET /nowhere HTTP/1.1", ""));
    assert_eq!(status, 403, "{data}");
    assert!(!data.to_lowercase().contains("www-authenticate"), "{data}");
}

#[test]
fn responses_are_held_to_their_size() {
    let mut lab = Lab::under("probe", &rules(""));
    let (status, data, _) = lab.exchange(&request("GET /sized HTTP/1.1", ""));
    assert_eq!(status, 502, "{data}");
    assert!(
        data.contains("response_too_large") && !data.contains("xxx"),
        "{data}"
    );
    let record = lab.record("it", |record| record["request"]["path"] == "/sized");
    assert_eq!(record["verdict"], "LIMIT", "{record}");
    assert_eq!(record["reason"]["code"], "response_too_large");
    assert_eq!(record["response"]["status"], 502);

    let (status, data, _) = lab.exchange(&request("GET /unsized HTTP/1.1", ""));
    assert_eq!(status, 200, "{data}");
    assert!(!data.ends_with("0\r\n\r\n"), "looks whole: {data}");
    let passed = data.matches("xxxx").count() * 4;
    assert!((1000..=4000).contains(&passed), "{passed} bytes passed");
    let record = lab.record("it", |record| record["request"]["path"] == "/unsized");
    assert_eq!(record["verdict"], "LIMIT", "{record}");
    assert_eq!(record["reason"]["code"], "response_too_large");

    let (status, data, _) = lab.exchange(&request("GET /small HTTP/1.1", ""));
    assert_eq!(status, 200, "{data}");
    assert_eq!(echoed(&data)["line"], "GET /small HTTP/1.1");

    // Without the bound, both pass whole.
    lab.reload(&rules("").replace("      response: { max: 4000B }\n", ""));
    for path in ["/sized", "/unsized"] {
        let (status, data, _) = lab.exchange(&request(&format!("GET {path} HTTP/1.1"), ""));
        assert_eq!(
            (status, data.matches("xxxx").count()),
            (200, 1250),
            "{path}"
        );
    }
}

#[test]
fn an_open_response_is_held_to_the_headers_it_was_asked_with() {
    let mut lab = Lab::under("probe", &rules(""));
    lab.drip();
    // Something else changes: the stream goes on, though its rule looks at a header that was sent long ago.
    lab.reload(&rules("").replace("/plain", "/plainer"));
    for _ in 0..3 {
        assert!(lab.dripping(), "a change of something else cut the stream");
    }
    lab.reload(&rules("").replace(
        "GET /drip\n          headers: { require: { x-tenant: [acme] } }",
        "GET /drip\n          headers: { require: { x-tenant: [other] } }",
    ));
    let answer = lab.ask(json!({"do": "read", "wait": 3}));
    assert_ne!(answer["end"], "silent", "{answer}");
    let record = lab.record_of("revoked");
    assert_eq!(record["verdict"], "DENY", "{record}");
}

#[test]
fn an_open_response_is_held_to_the_headers_of_its_condition() {
    let required = "GET /drip\n          headers: { require: { x-tenant: [acme] } }";
    let condition = "GET /drip\n          when: \"request.headers['X-Tenant'] == 'acme'\"";
    let policy = rules("").replace(required, condition);
    // No rule but this one looks at the header.
    let policy = policy.replace("x-tenant: [acme] }, allow", "x-other: [acme] }, allow");
    let mut lab = Lab::under("probe", &policy);
    lab.drip();
    lab.reload(&policy.replace("/plain", "/plainer"));
    for _ in 0..3 {
        assert!(lab.dripping(), "a change of something else cut the stream");
    }
    lab.reload(&policy.replace("== 'acme'", "== 'other'"));
    let answer = lab.ask(json!({"do": "read", "wait": 3}));
    assert_ne!(answer["end"], "silent", "{answer}");
    let record = lab.record_of("revoked");
    assert_eq!(record["verdict"], "DENY", "{record}");
}

#[test]
fn the_end_of_a_grant_ends_what_is_open() {
    let end = jiff::Timestamp::now().as_second() + 7;
    let until = jiff::Timestamp::from_second(end).unwrap();
    let policy = rules(&format!(", until: \"{until}\""));
    let mut lab = Lab::under("probe", &policy);
    lab.drip();
    assert!(lab.dripping());
    let answer = lab.ask(json!({"do": "read", "wait": 3}));
    let late = jiff::Timestamp::now().as_second() - end;
    assert!(
        (0..=3).contains(&late),
        "cut {late} s after the end: {answer}"
    );
    let record = lab.record_of("revoked");
    assert_eq!(record["verdict"], "DENY", "{record}");
    let (status, data, _) = lab.exchange(&request("GET /plain HTTP/1.1", ""));
    assert_eq!(status, 403, "{data}");
    lab.record_of("expired");
    // A grant without an end goes on.
    let (status, data, _) = lab.exchange(&request("GET /small HTTP/1.1", ""));
    assert_eq!(status, 200, "{data}");
}

#[test]
fn pipelined_requests_are_each_decided() {
    let mut lab = Lab::new();
    let raw = "GET /a HTTP/1.1\r\nhost: odd.example\r\n\r\nGET /secret HTTP/1.1\r\nhost: odd.example\r\n\r\n\
               GET /b HTTP/1.1\r\nhost: odd.example\r\nconnection: close\r\n\r\n";
    let (_, data, _) = lab.exchange(raw);
    let statuses: Vec<&str> = data
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &data[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["200", "403", "200"], "{data}");
}
