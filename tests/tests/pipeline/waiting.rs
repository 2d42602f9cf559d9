//! Connections that stay open: answers that take long, and policy that changes between two requests or under a call.
use super::*;

const POLICY: &str = r#"
version: 1
workloads: { probe: {} }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
  two: { hosts: [two.example], tls: { ca: "file:server-ca.pem" } }
roles:
  user:
    - { api: odd, allow: [{ route: "* /**" }] }
    - { api: two, allow: [{ route: "* /**" }] }
grants:
  - { role: user, to: { workload: probe } }
"#;

#[test]
fn an_answer_may_take_as_long_as_the_limit_for_answers_says() {
    // Every other limit is shorter than what the answer takes.
    let settings =
        "limits: { idle: 2s, head: 2s, body_idle: 2s, response_idle: 2s, response_head: 7s }\n";
    let mut lab = Lab::ordinary(POLICY, settings);
    for h2 in [false, true] {
        let url = "https://odd.example/silent-4";
        let (got, record) = lab.asked(json!({"method": "GET", "url": url, "h2": h2}));
        assert_eq!(got["status"], 200, "{got}");
        assert_eq!(record["reason"], Value::Null, "{record}");
    }
    let url = "https://odd.example/silent-12";
    let (got, record) = lab.asked(json!({"method": "GET", "url": url}));
    assert_eq!(got["status"], 504, "{got}");
    assert_eq!(record["reason"]["code"], "upstream_timeout", "{record}");
}

/// A client that keeps one HTTP/2 connection to `two.example`.
struct Two(Running);

impl Two {
    fn new(lab: &Lab) -> Self {
        let at = lab.world.directory();
        let python = at.join("python/bin/python3");
        let mut command = lab.agent.governed(&lab.world, "probe", python);
        command.arg("-u").arg(at.join("clients/http2.py"));
        let mut two = Self(Running::start(command).unwrap());
        let opened = two.ask(json!({"do": "open", "host": "two.example"}));
        assert_eq!(opened["alpn"], "h2", "{opened}");
        two
    }

    fn ask(&mut self, command: Value) -> Value {
        self.0.ask(&command.to_string()).unwrap()
    }

    fn start(&mut self, method: &str, path: &str, kind: &str) -> Value {
        let headers = json!([
            [":method", method],
            [":scheme", "https"],
            [":authority", "two.example"],
            [":path", path],
            ["content-type", kind],
            ["te", "trailers"],
        ]);
        self.ask(json!({"do": "request", "headers": headers}))["stream"].clone()
    }

    /// A request's status, on the same connection.
    fn get(&mut self) -> Value {
        let stream = self.start("GET", "/a", "text/plain");
        let read = self.ask(json!({"do": "read", "streams": [stream], "wait": 10}));
        assert_eq!(read["ended"], Value::Null, "{read}");
        read["streams"][stream.to_string()]["status"].clone()
    }
}

#[test]
fn the_next_request_of_an_open_connection_obeys_the_policy_of_then() {
    let lab = Lab::ordinary(POLICY, "");
    let mut raw = lab.another(Program::Raw);
    let mut ask = |command: Value| raw.ask(&command.to_string()).unwrap();
    ask(json!({"do": "open", "host": "odd.example"}));
    let mut get = || {
        ask(json!({"do": "send", "data": "GET /a HTTP/1.1\r\nhost: odd.example\r\n\r\n"}));
        let answer = ask(json!({"do": "read", "wait": 10, "until": "}\n"}));
        status(answer["data"].as_str().unwrap())
    };
    let mut two = Two::new(&lab);
    assert_eq!((get(), two.get()), (200, json!(200)));
    lab.reload(&POLICY.replace("* /**", "* /other"));
    assert_eq!((get(), two.get()), (403, json!(403)));
    lab.reload(POLICY);
    assert_eq!((get(), two.get()), (200, json!(200)));
}

#[test]
fn a_grpc_call_that_streams_ends_with_what_allowed_it() {
    let lab = Lab::ordinary(POLICY, "");
    let mut two = Two::new(&lab);
    let call = two.start("POST", "/endless", "application/grpc");
    let number = call.to_string();
    let read = |two: &mut Two, events: u64| {
        two.ask(json!({"do": "read", "streams": [call], "wait": 10, "events": events}))["streams"]
            [&number]
            .clone()
    };
    assert_eq!(read(&mut two, 3)["status"], 200);
    // A change of something else.
    lab.reload(&POLICY.replace(
        "api: odd, allow: [{ route: \"* /**\"",
        "api: odd, allow: [{ route: \"* /other\"",
    ));
    let more = read(&mut two, 1)["events"].as_u64().unwrap() + 20;
    assert_eq!(read(&mut two, more)["end"], Value::Null);
    lab.reload(&POLICY.replace("* /**", "GET /**"));
    let over = read(&mut two, u64::MAX);
    assert!(
        over["end"]
            .as_str()
            .is_some_and(|end| end.starts_with("reset")),
        "{over}"
    );
    let record = lab.record_of("revoked");
    assert_eq!(record["request"]["path"], "/endless", "{record}");
    // The connection is what it was.
    assert_eq!(two.get(), 200);
}
