//! WebSockets over time: what ends one that nobody closes, what is watched and not enforced, and what is held to all of it.
use super::websocket::{POLICY, Talk};
use super::*;

/// Limits by which little time passes in the tests.
const QUICK: &str = "limits: { uninspected_idle: 2s, drain: 10s }\n";

#[test]
fn a_silent_socket_is_closed_and_one_that_says_something_is_not() {
    let mut talk = Talk::under(POLICY, QUICK);
    talk.open("/echo");
    // For longer than the limit, in which each ping is something.
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(800));
        talk.send(json!([{"opcode": 9, "data": "still"}]));
        assert_eq!(talk.next(), "still");
    }
    talk.closed(1001, "idle");
    let record = talk.last_record("/echo");
    assert_eq!(record["verdict"], "ERROR", "{record}");
    assert_eq!(record["reason"]["code"], "idle", "{record}");
}

#[test]
fn an_agent_that_stops_closes_its_sockets_and_says_so() {
    let mut talk = Talk::under(POLICY, QUICK);
    talk.open("/echo");
    talk.text("hello");
    assert_eq!(talk.next(), "hello");
    talk.heard();
    let began = std::time::Instant::now();
    talk.lab.agent.stop().unwrap();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "waited for: {took:?}");
    let last = talk.read(1);
    let frame = &last["frames"][0];
    assert_eq!(
        (&frame["code"], &frame["data"]),
        (&json!(1001), &json!("stopping")),
        "{last}"
    );
    let heard = talk.heard();
    assert_eq!(
        heard[0]["opcode"], 8,
        "the upstream was not told: {heard:?}"
    );
    let record = talk.last_record("/echo");
    assert_eq!(record["reason"]["code"], "stopping", "{record}");
}

#[test]
fn what_is_only_observed_passes_and_is_on_record() {
    let policy = POLICY.replace(
        "to: { workload: probe } }",
        "to: { workload: probe }, mode: observe }",
    );
    let mut talk = Talk::under(&policy, "");
    talk.open("/looked");
    let message = r#"{"type":"shout"}"#;
    talk.text(message);
    assert_eq!(talk.next(), message);
    let heard = talk.heard();
    assert_eq!(heard[0]["data"], message, "{heard:?}");
    talk.send(json!([{"opcode": 8, "data": "\u{3}\u{e8}"}]));
    talk.read(1);
    let record = talk.last_record("/looked");
    assert_eq!(record["response"]["status"], 101, "{record}");
    assert_eq!(record["verdict"], "WOULD-DENY", "{record}");
    assert_eq!(record["reason"]["code"], "message_field", "{record}");
}

/// The policy whose responses are held to something.
fn held_to(response: &str) -> String {
    let deny = "deny: [{ route: \"* /secret\" }]";
    POLICY
        .replace(deny, &format!("{deny}\n      response: {response}"))
        .replace("GET /room,", "GET /says,")
}

#[test]
fn all_that_an_upstream_says_is_held_to_the_size_of_a_response() {
    let mut talk = Talk::under(&held_to("{ max: 4000B }"), "");
    talk.open("/says");
    for _ in 0..2 {
        talk.text(&"x".repeat(1000));
        assert_eq!(talk.next().len(), 1000);
    }
    talk.text(&"x".repeat(3000));
    talk.closed(1009, "response_too_large");
    let record = talk.last_record("/says");
    assert_eq!(record["verdict"], "LIMIT", "{record}");
    assert_eq!(record["reason"]["code"], "response_too_large", "{record}");
}

#[test]
fn values_are_taken_out_of_what_an_upstream_says() {
    let mut talk = Talk::under(&held_to("{ redact: [/email] }"), "");
    let opening = talk.try_open("/says", json!({}));
    assert_eq!(opening["status"], 101, "{opening}");
    talk.read(1);
    talk.text(r#"{"email":"ann@acme.example", "n":1}"#);
    assert_eq!(talk.next(), r#"{"email":"[redacted]", "n":1}"#);
    talk.text(r#"{"n":2}"#);
    assert_eq!(talk.next(), r#"{"n":2}"#);
    talk.text("no JSON: ann@acme.example");
    talk.closed(1011, "response_unreadable");
    let record = talk.last_record("/says");
    assert_eq!(record["verdict"], "ERROR", "{record}");
    // The server tells what it was asked with first.
    assert_eq!(
        record["redacted"],
        json!(["/email", "credential"]),
        "{record}"
    );
    talk.try_open("/says", json!({}));
    talk.read(1);
    talk.text(r#"{"binary":"ann@acme.example"}"#);
    talk.closed(1011, "response_unreadable");
}
