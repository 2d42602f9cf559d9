use super::*;
use crate::{Message, Mode};

const LIVE: &str = r#"
version: 1
workloads: { app: {}, other: {}, watched: {} }
apis:
  live: { hosts: [live.example] }
  inner: { hosts: [inner.example], scheme: http }
roles:
  talk:
    - api: live
      allow:
        - { route: GET /page }
        - { route: GET /open, websocket: true }
        - { route: GET /text, websocket: { binary: false, max: 1KiB } }
        - route: GET /rooms/{room}
          headers: { require: { x-tenant: [acme] } }
          websocket:
            fields: { type: [say, ping], text: string, trace: string }
            required: [type]
            strip: [/trace]
            when: "request.json.type == 'ping' || path.room != 'quiet'"
        - { route: GET /both, websocket: { fields: { n: 1..9 }, max: 100 } }
        - { route: GET /both, websocket: { max: 10, binary: false } }
      deny:
        - { route: "* /rooms/closed" }
    - api: inner
      allow: [{ route: GET /page }, { route: GET /open, websocket: true }]
grants:
  - { role: talk, to: { workload: app } }
  - { role: talk, to: { workload: watched }, mode: observe }
"#;

const UPGRADE: &[(&str, &str)] = &[("upgrade", "WebSocket"), ("x-tenant", "acme")];

fn handshake(path: &str) -> String {
    format!("https://live.example{path}")
}

fn asked(policy: &Policy, path: &str, message: Option<Message<'_>>) -> String {
    let url = handshake(path);
    let call = Call {
        headers: UPGRADE,
        body: message.map_or(Body::Absent, Body::Message),
        ..call("app", "GET", &url)
    };
    call.outcome(policy)
}

#[test]
fn a_websocket_is_opened_by_a_rule_that_says_so_and_by_no_other() {
    let policy = compiled(LIVE).policy;
    assert_eq!(asked(&policy, "/open", None), "GET /open");
    assert_eq!(asked(&policy, "/rooms/a", None), "GET /rooms/{room}");
    assert_eq!(asked(&policy, "/page", None), "websocket");
    assert_eq!(asked(&policy, "/rooms/closed", None), "denied_by_rule");
    let plain = |path: &str| call("app", "GET", &handshake(path)).outcome(&policy);
    assert_eq!(plain("/page"), "GET /page");
    assert_eq!(plain("/open"), "websocket");
    // The rest of the rule holds for the handshake as for any request.
    let url = handshake("/rooms/a");
    let bare = Call {
        headers: &[("upgrade", "websocket")],
        ..call("app", "GET", &url)
    };
    assert_eq!(bare.outcome(&policy), "header_missing");
    let other = Call {
        headers: UPGRADE,
        ..call("other", "GET", &url)
    };
    assert_eq!(other.outcome(&policy), "no_grant");
}

#[test]
fn the_longest_message_that_any_rule_takes_is_told() {
    let policy = compiled(LIVE).policy;
    for (path, length) in [("/open", 64 << 10), ("/text", 1 << 10), ("/both", 100)] {
        let url = handshake(path);
        let call = Call {
            headers: UPGRADE,
            ..call("app", "GET", &url)
        };
        assert_eq!(call.decide(&policy).plan.websocket, Some(length), "{path}");
    }
    let page = handshake("/page");
    assert_eq!(
        call("app", "GET", &page).decide(&policy).plan.websocket,
        None
    );
}

#[test]
fn messages_are_held_to_their_rule() {
    let policy = compiled(LIVE).policy;
    let long = "x".repeat(2000);
    for (path, message, expected) in [
        ("/open", Message::Text("anything"), "GET /open"),
        ("/open", Message::Binary(b"\xff"), "GET /open"),
        ("/text", Message::Text("anything"), "GET /text"),
        ("/text", Message::Binary(b"x"), "message_type"),
        ("/text", Message::Text(&long), "message_too_large"),
        (
            "/rooms/a",
            Message::Text(r#"{"type":"say","text":"hi"}"#),
            "GET /rooms/{room}",
        ),
        (
            "/rooms/a",
            Message::Text(r#"{"type":"shout"}"#),
            "message_field",
        ),
        (
            "/rooms/a",
            Message::Text(r#"{"text":"hi"}"#),
            "message_field",
        ),
        (
            "/rooms/a",
            Message::Text(r#"{"type":"say","type":"say"}"#),
            "message_invalid",
        ),
        ("/rooms/a", Message::Text("hi"), "message_invalid"),
        ("/rooms/a", Message::Text(""), "message_invalid"),
        (
            "/rooms/a",
            Message::Binary(br#"{"type":"say"}"#),
            "message_type",
        ),
        (
            "/rooms/quiet",
            Message::Text(r#"{"type":"ping"}"#),
            "GET /rooms/{room}",
        ),
        (
            "/rooms/quiet",
            Message::Text(r#"{"type":"say"}"#),
            "message_condition",
        ),
        (
            "/rooms/closed",
            Message::Text(r#"{"type":"ping"}"#),
            "denied_by_rule",
        ),
        // Any of the rules that could have opened it will do.
        ("/both", Message::Text(r#"{"n":1}"#), "GET /both"),
        ("/both", Message::Text("short"), "GET /both"),
        (
            "/both",
            Message::Text("longer than ten"),
            "message_too_large",
        ),
        ("/page", Message::Text("x"), "websocket"),
    ] {
        assert_eq!(
            asked(&policy, path, Some(message)),
            expected,
            "{path} {message:?}"
        );
    }
}

#[test]
fn what_is_cut_out_of_a_message_is_not_sent() {
    let policy = compiled(LIVE).policy;
    let url = handshake("/rooms/a");
    let call = Call {
        headers: UPGRADE,
        body: Body::Message(Message::Text(r#"{"type":"say", "trace":"t", "text":"hi"}"#)),
        ..call("app", "GET", &url)
    };
    let plan = call.decide(&policy).plan;
    assert_eq!(
        plan.body.as_deref(),
        Some(&br#"{"type":"say", "text":"hi"}"#[..])
    );
    assert_eq!(plan.stripped_body, ["/trace"]);
}

#[test]
fn an_api_in_clear_is_reached_in_clear_only() {
    let policy = compiled(LIVE).policy;
    let asked = |workload, url, headers| {
        let call = Call {
            headers,
            ..call(workload, "GET", url)
        };
        let decision = call.decide(&policy);
        (call.outcome(&policy), decision.mode)
    };
    let enforced = |code: &str| (code.to_owned(), Mode::Enforce);
    assert_eq!(
        asked("app", "http://inner.example:80/page", &[]),
        enforced("GET /page")
    );
    assert_eq!(
        asked("app", "http://inner.example:80/open", UPGRADE),
        enforced("GET /open")
    );
    assert_eq!(
        asked("app", "https://inner.example:80/page", &[]),
        enforced("cleartext")
    );
    // Also where denials are only observed: what came through TLS would leave without.
    assert_eq!(
        asked("watched", "https://inner.example:80/page", &[]),
        enforced("cleartext")
    );
    assert_eq!(
        asked("app", "http://live.example:443/page", &[]),
        enforced("cleartext")
    );
}

#[test]
fn faults_are_named() {
    let wrong = |part: &str, replacement: &str| {
        assert!(LIVE.contains(part), "{part}");
        let text = LIVE.replace(part, replacement);
        let faults = compile(&[source("p.yaml", &text)]).unwrap_err();
        faults
            .iter()
            // What is not granted is only warned of.
            .filter(|fault| !fault.message.contains("has no grants"))
            .map(|fault| fault.message.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        wrong("GET /text, websocket", "POST /text, websocket"),
        ["a WebSocket is opened with GET"]
    );
    assert_eq!(
        wrong(
            "{ route: GET /open, websocket: true }\n        - { route: GET /text",
            "{ route: GET /open, websocket: true, llm: { models: [a] } }\n        - { route: GET /text"
        ),
        ["what opens a WebSocket has no body"]
    );
    assert_eq!(
        wrong(
            "{ fields: { n: 1..9 }",
            "{ binary: true, fields: { n: 1..9 }"
        ),
        ["messages that are looked at are text"]
    );
    assert_eq!(
        wrong("scheme: http }", "scheme: http, tls: { ca: \"file:ca\" } }"),
        ["an api that is reached in clear has no `tls`"]
    );
    assert_eq!(
        wrong(
            "[live.example] }",
            "[live.example], tls: { cert: \"file:c\" } }"
        ),
        ["a client certificate needs both `cert` and `key`"]
    );
    assert_eq!(
        wrong("[live.example] }", "[live.example], tls: {} }"),
        ["`tls` says nothing"]
    );
    let credential = "credentials: { c: { secret: \"file:s\", header: { authorization: \"{secret}\" }, to: [inner] } }\nroles:";
    assert_eq!(
        wrong("roles:", credential),
        ["api `inner` is reached in clear: no credential is sent there"]
    );
    assert_eq!(
        wrong("- api: inner", "- api: inner\n      credential: client"),
        ["api `inner` is reached in clear: no credential is sent there"]
    );
}
