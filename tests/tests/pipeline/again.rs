//! Requests that an upstream leaves undone: which are sent again, and how often they arrive.
use super::*;

const LEAVING: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 46);
const TELLING: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 47);

const POLICY: &str = r#"
version: 1
workloads: { probe: {} }
apis:
  telling: { hosts: [telling.example], tls: { ca: "file:server-ca.pem" } }
  leaving: { hosts: [leaving.example], tls: { ca: "file:server-ca.pem" } }
roles:
  user:
    - { api: telling, allow: [{ route: "* /**" }] }
    - { api: leaving, allow: [{ route: "* /**" }] }
grants:
  - { role: user, to: { workload: probe } }
"#;

/// A lab whose upstream tells what it saw: the odd server over HTTP/1.1, or the leaving one over HTTP/2.
struct Upstream {
    lab: Lab,
    host: &'static str,
}

impl Upstream {
    /// The odd server, and what it did.
    fn http1() -> Self {
        Self::of("odd.py", TELLING, "telling.example", &["-", "told"])
    }

    fn http2() -> Self {
        Self::of("leaving.py", LEAVING, "leaving.example", &[])
    }

    fn of(script: &str, address: Ipv4Addr, host: &'static str, more: &[&str]) -> Self {
        let mut lab = Lab::under("probe", POLICY);
        let server = server_with(&lab.world, script, address, &[host], more);
        lab.servers.push(server);
        let answer = Answer::Addresses(vec![address.into()]);
        lab.world.dns.set(host, answer);
        lab.open(host);
        Self { lab, host }
    }

    /// One request on the connection that stays open, so that one worker serves all of them; the answer's status and text.
    fn call(&mut self, line: &str, body: &str) -> (u16, String) {
        let (host, length) = (self.host, body.len());
        let raw = format!("{line} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n");
        let raw = match line.starts_with("GET") {
            true => format!("{line} HTTP/1.1\r\nhost: {host}\r\n\r\n"),
            false => raw + body,
        };
        self.lab.ask(json!({"do": "send", "data": raw}));
        let answer = self
            .lab
            .ask(json!({"do": "read", "wait": 5, "until": "}\n"}));
        let data = answer["data"].as_str().unwrap().to_owned();
        (status(&data), data)
    }

    /// What it has told of since this was last asked.
    fn told(&mut self) -> Vec<Value> {
        std::thread::sleep(Duration::from_millis(200));
        let server = self.lab.servers.last_mut().unwrap();
        let lines = std::iter::from_fn(|| server.has_line());
        lines
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect()
    }
}

fn those_with(told: &[Value], name: &str) -> Vec<Value> {
    let with = told.iter().filter(|told| told.get(name).is_some());
    with.cloned().collect()
}

#[test]
fn over_http1_only_what_may_be_done_twice_is_sent_twice() {
    let mut upstream = Upstream::http1();
    for (line, body, expected, dropped, did) in [
        ("GET /a", "", 200, 1, 1),
        ("PUT /a", "hello", 200, 1, 1),
        ("DELETE /a", "", 200, 1, 1),
        ("POST /a", "", 502, 1, 0),
        ("POST /a", "hello", 502, 1, 0),
        ("PATCH /a", "hello", 502, 1, 0),
    ] {
        // Leaves a connection that looks as if it could be used again.
        assert_eq!(upstream.call("GET /last", "").0, 200);
        upstream.told();
        let (got, data) = upstream.call(line, body);
        assert_eq!(got, expected, "{line}: {data}");
        let told = upstream.told();
        assert_eq!(those_with(&told, "dropped").len(), dropped, "{told:?}");
        let done = those_with(&told, "did");
        assert_eq!(done.len(), did, "{line}: {told:?}");
        assert!(
            done.iter().all(|done| done["body"] == body.len()),
            "{told:?}"
        );
        if expected == 502 {
            assert!(data.contains("upstream_reset"), "{line}: {data}");
        }
    }
    // One that the upstream is seen to have closed takes nothing, so that anything goes on a new one.
    for line in ["GET /a", "POST /a"] {
        assert_eq!(upstream.call("GET /then-close", "").0, 200);
        upstream.told();
        let (got, data) = upstream.call(line, "");
        assert_eq!(got, 200, "{line}: {data}");
        assert_eq!(upstream.told().len(), 1, "{line}");
    }
}

#[test]
fn over_http2_what_the_upstream_did_nothing_of_is_sent_again() {
    let mut upstream = Upstream::http2();
    let long = "x".repeat(200_000);
    for (line, body, expected, saw, did) in [
        ("POST /refused-at-once", "", 200, 2, 1),
        ("POST /refused", "hello", 200, 2, 1),
        ("POST /refused-half-way", "hello", 200, 2, 1),
        ("POST /left", "hello", 200, 2, 1),
        // Once again, and no more often.
        ("POST /refused-always", "hello", 502, 2, 0),
        // More of it was sent than is kept.
        ("POST /refused-whole", &*long, 502, 1, 0),
        // It may have been done.
        ("POST /broken", "hello", 502, 1, 1),
    ] {
        let (got, data) = upstream.call(line, body);
        assert_eq!(got, expected, "{line}: {data}");
        let told = upstream.told();
        assert_eq!(those_with(&told, "saw").len(), saw, "{line}: {told:?}");
        let done = those_with(&told, "did");
        assert_eq!(done.len(), did, "{line}: {told:?}");
        assert!(
            done.iter().all(|done| done["body"] == body.len()),
            "{told:?}"
        );
    }
    // What may be done twice is, where the connection was there before.
    assert_eq!(upstream.call("GET /a", "").0, 200);
    upstream.told();
    assert_eq!(upstream.call("GET /broken-too", "").0, 200);
    let told = upstream.told();
    assert_eq!(those_with(&told, "saw").len(), 2, "{told:?}");
    // One record for each.
    let records = |path: &str| {
        upstream
            .lab
            .records(|record| record["request"]["path"] == path)
    };
    for path in [
        "/refused",
        "/left",
        "/refused-always",
        "/broken",
        "/broken-too",
    ] {
        assert_eq!(records(path), 1, "{path}");
    }
}

#[test]
fn many_that_lose_a_connection_share_the_next() {
    let mut upstream = Upstream::http2();
    let (world, agent) = (&upstream.lab.world, &upstream.lab.agent);
    let python = world.show(&venv(), "python").unwrap();
    let mut command = agent.governed(world, "probe", python.join("bin/python3"));
    let script = world.directory().join("clients/http2.py");
    let mut client = Running::start({
        command.arg("-u").arg(script);
        command
    })
    .unwrap();
    let mut ask = |command: Value| client.ask(&command.to_string()).unwrap();
    ask(json!({"do": "open", "host": "leaving.example"}));
    let streams: Vec<Value> = (0..10)
        .map(|number| {
            let path = format!("/many/{number}");
            let headers = json!([
                [":method", "POST"],
                [":scheme", "https"],
                [":authority", "leaving.example"],
                [":path", path]
            ]);
            ask(json!({"do": "request", "headers": headers, "body": "hello"}))["stream"].clone()
        })
        .collect();
    let answer = ask(json!({"do": "read", "streams": streams, "wait": 10}));
    for stream in &streams {
        let stream = &answer["streams"][stream.to_string()];
        assert_eq!(stream["status"], 200, "{answer}");
    }
    let told = upstream.told();
    assert_eq!(those_with(&told, "saw").len(), 20, "{told:?}");
    assert_eq!(those_with(&told, "did").len(), 10, "{told:?}");
    let on = |number: u64| {
        told.iter()
            .filter(|told| told["connection"] == number)
            .count()
    };
    assert_eq!((on(1), on(2)), (10, 10), "{told:?}");
}
