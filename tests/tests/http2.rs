//! HTTP/2 on real traffic: what a client may try with it, what the agent makes of it, in both directions. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use harness::agent::Agent;
use harness::client::Running;
use harness::dns::Answer;
use harness::{World, eventually, repository};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const ODD: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 40);
const TWO: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 41);

const POLICY: &str = r#"
version: 1
workloads: { probe: {} }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
  two: { hosts: [two.example], tls: { ca: "file:server-ca.pem" } }
credentials:
  bot: { secret: "file:orders-bot", header: { authorization: "Bearer {secret}" }, to: [odd, two] }
roles:
  user:
    - api: odd
      credential: bot
      allow: [{ route: GET /** }, { route: HEAD /** }, { route: POST /** }]
      deny: [{ route: "* /secret" }]
    - api: two
      credential: bot
      allow: [{ route: GET /** }, { route: POST /** }]
      deny: [{ route: "* /shop.Orders/Delete" }]
      response: { strip: [set-cookie] }
grants:
  - { role: user, to: { workload: probe } }
"#;

/// A world with an HTTP/1.1 server and an HTTP/2 server, an agent, and a governed HTTP/2 client.
struct Lab {
    client: Running,
    _odd: Running,
    two: Running,
    agent: Agent,
    world: World,
}

fn venv() -> PathBuf {
    repository().join("target/tools/venv")
}

fn server(world: &World, script: &str, address: Ipv4Addr, host: &'static str) -> Running {
    world
        .servers
        .script(&format!("ip addr add {address}/32 dev lo"))
        .unwrap();
    world.dns.set(host, Answer::Addresses(vec![address.into()]));
    let files = world.ca.issue(&[host], world.directory()).unwrap();
    let mut command = world.servers.command(venv().join("bin/python3"));
    command
        .arg("-u")
        .arg(repository().join("tests/servers").join(script))
        .args([&address.to_string(), "443"])
        .args([&files.certificate, &files.key]);
    let mut server = Running::start(command).unwrap();
    assert_eq!(server.line(Duration::from_secs(10)).unwrap(), "ready");
    server
}

impl Lab {
    fn new() -> Self {
        let world = World::new().unwrap();
        let odd = server(&world, "odd.py", ODD, "odd.example");
        let two = server(&world, "http2.py", TWO, "two.example");
        let mut agent = Agent::new(&world, POLICY).unwrap();
        agent.start(&world).unwrap();
        let clients = world
            .show(&repository().join("tests/clients"), "clients")
            .unwrap();
        let python = world.show(&venv(), "python").unwrap();
        let mut command = agent.governed(&world, "probe", python.join("bin/python3"));
        command.arg("-u").arg(clients.join("http2.py"));
        let client = Running::start(command).unwrap();
        Self {
            client,
            _odd: odd,
            two,
            agent,
            world,
        }
    }

    fn ask(&mut self, command: Value) -> Value {
        self.client.ask(&command.to_string()).unwrap()
    }

    fn open(&mut self, host: &str) {
        let answer = self.ask(json!({"do": "open", "host": host}));
        assert_eq!(answer["alpn"], "h2", "{answer}");
    }

    fn start(&mut self, mut request: Value) -> u64 {
        request["do"] = json!("request");
        let answer = self.ask(request);
        answer["stream"]
            .as_u64()
            .unwrap_or_else(|| panic!("{answer}"))
    }

    /// Sends one request on the open connection; the stream as the client saw it, and how the connection ended if it did.
    fn exchange(&mut self, request: Value) -> (Value, Value) {
        let number = self.start(request);
        let answer = self.ask(json!({"do": "read", "streams": [number], "wait": 5}));
        (
            answer["streams"][number.to_string()].clone(),
            answer["ended"].clone(),
        )
    }

    fn records(&self) -> Vec<Value> {
        self.agent.decisions(&self.world).unwrap()
    }

    /// Waits until there are `count` records that `find` accepts, and makes sure that no more follow.
    fn exactly(&self, count: usize, find: impl Fn(&Value) -> bool) -> Vec<Value> {
        let found = || -> Vec<Value> { self.records().into_iter().filter(&find).collect() };
        eventually(Duration::from_secs(5), || {
            (found().len() >= count).then_some(())
        });
        std::thread::sleep(Duration::from_millis(300));
        let all = found();
        assert_eq!(
            all.len(),
            count,
            "{:#?}\n{}",
            self.records(),
            self.agent.log()
        );
        all
    }
}

/// A request's pseudo headers and more.
fn head(method: &str, host: &str, path: &str, more: &[(&str, &str)]) -> Value {
    let mut all = vec![
        (":method", method),
        (":scheme", "https"),
        (":authority", host),
        (":path", path),
    ];
    all.extend(more);
    json!(all)
}

fn get(host: &str, path: &str) -> Value {
    json!({"headers": head("GET", host, path, &[])})
}

fn field<'a>(pairs: &'a Value, name: &str) -> Option<&'a str> {
    let pairs = pairs.as_array()?;
    pairs.iter().find(|pair| pair[0] == name)?[1].as_str()
}

fn body(stream: &Value) -> Value {
    let text = stream["data"].as_str().unwrap();
    serde_json::from_str(text).unwrap_or_else(|_| panic!("{stream}"))
}

#[test]
fn both_versions_meet_in_the_middle() {
    let mut lab = Lab::new();
    // HTTP/2 in, HTTP/1.1 out.
    lab.open("odd.example");
    let (stream, _) = lab.exchange(json!({
        "headers": head("POST", "odd.example", "/a?x=%7e", &[("cookie", "a=b"), ("cookie", "c=d"), ("te", "trailers"), ("authorization", "Bearer mine"), ("content-type", "text/plain")]),
        "body": "hello",
    }));
    assert_eq!(stream["status"], 200, "{stream}");
    let echo = body(&stream);
    assert_eq!(echo["line"], "POST /a?x=~ HTTP/1.1");
    assert!(echo["body"].as_str().unwrap().contains("hello"), "{echo}");
    let pairs = &echo["headers"];
    assert_eq!(echo["backwards"], "yek-tob-sredro-tsrif reraeB", "{echo}");
    assert_eq!(field(pairs, "host"), Some("odd.example"), "{echo}");
    for gone in ["cookie", "te", "connection"] {
        assert_eq!(field(pairs, gone), None, "{gone}: {echo}");
    }
    // HTTP/2 in, HTTP/2 out.
    lab.ask(json!({"do": "close"}));
    lab.open("two.example");
    let (stream, _) = lab.exchange(json!({
        "headers": head("POST", "two.example", "/b", &[("cookie", "a=b"), ("te", "trailers")]),
        "body": "hello",
    }));
    assert_eq!(stream["status"], 200, "{stream}");
    let echo = body(&stream);
    assert_eq!(echo["body"], "hello");
    let pairs = &echo["headers"];
    assert_eq!(field(pairs, ":authority"), Some("two.example"));
    assert_eq!(field(pairs, ":scheme"), Some("https"));
    assert_eq!(field(pairs, "te"), Some("trailers"));
    assert_eq!(echo["backwards"], "yek-tob-sredro-tsrif reraeB", "{echo}");
    assert_eq!(field(pairs, "host"), None, "{echo}");
    assert_eq!(field(pairs, "cookie"), None, "{echo}");
    lab.exactly(2, |record| record["verdict"] == "ALLOW");
}

#[test]
fn trailers_of_a_response_arrive_and_those_of_a_request_do_not_pass() {
    let mut lab = Lab::new();
    lab.open("two.example");
    let (stream, _) = lab.exchange(json!({
        "headers": head("POST", "two.example", "/shop.Orders/List", &[("te", "trailers"), ("content-type", "application/grpc")]),
        "body": "\0\0\0\0\0",
    }));
    assert_eq!(stream["status"], 200, "{stream}");
    assert_eq!(stream["data"], "\0\0\0\0\u{2}ok");
    assert_eq!(
        field(&stream["trailers"], "grpc-status"),
        Some("0"),
        "{stream}"
    );
    assert_eq!(
        field(&stream["trailers"], "set-cookie"),
        None,
        "stripped by the rule: {stream}"
    );
    let masked = Some("Bearer ********************");
    assert_eq!(field(&stream["trailers"], "x-echo"), masked, "{stream}");
    // As an HTTP/1.1 server writes them.
    lab.open("odd.example");
    let (stream, _) = lab.exchange(json!({
        "headers": head("GET", "odd.example", "/trailers", &[("te", "trailers")]),
    }));
    assert_eq!(stream["data"], "ok", "{stream}");
    assert_eq!(field(&stream["trailers"], "x-echo"), masked, "{stream}");
    lab.open("two.example");
    // A trailer could carry what headers may not: another credential, a second length.
    let (stream, _) = lab.exchange(json!({
        "headers": head("POST", "two.example", "/echo", &[]),
        "body": "x",
        "trailers": [["authorization", "Bearer mine"], ["x-http-method-override", "DELETE"]],
    }));
    assert_eq!(stream["status"], 200, "{stream}");
    assert_eq!(body(&stream)["trailers"], Value::Null, "{stream}");
    assert_eq!(body(&stream)["body"], "x");
}

#[test]
fn a_refused_grpc_call_has_its_status_without_a_body() {
    let mut lab = Lab::new();
    lab.open("two.example");
    let (stream, _) = lab.exchange(json!({
        "headers": head("POST", "two.example", "/shop.Orders/Delete", &[("te", "trailers"), ("content-type", "application/grpc+proto")]),
        "body": "\0\0\0\0\0",
    }));
    assert_eq!(stream["status"], 200, "{stream}");
    assert_eq!(
        field(&stream["headers"], "grpc-status"),
        Some("7"),
        "{stream}"
    );
    assert_eq!(
        field(&stream["headers"], "content-type"),
        Some("application/grpc")
    );
    assert_eq!(
        (&stream["data"], &stream["end"]),
        (&json!(""), &json!("whole"))
    );
    let [record] = &lab.exactly(1, |record| record["verdict"] == "DENY")[..] else {
        unreachable!()
    };
    assert_eq!(record["request"]["path"], "/shop.Orders/Delete");
}

#[test]
fn ambiguity_is_refused_and_recorded() {
    let mut lab = Lab::new();
    let plain = |headers: &[(&str, &str)]| json!({"headers": headers});
    let (m, s, p) = ((":method", "GET"), (":scheme", "https"), (":path", "/a"));
    let a = (":authority", "odd.example");
    for (name, request, expected) in [
        ("another authority", get("two.example", "/a"), 421),
        ("another port", get("odd.example:8443", "/a"), 421),
        ("userinfo", get("me@odd.example", "/a"), 400),
        ("no authority", plain(&[m, s, p]), 400),
        (
            "Host alone",
            plain(&[m, s, p, ("host", "odd.example")]),
            400,
        ),
        (
            "Host differs",
            plain(&[m, s, a, p, ("host", "two.example")]),
            400,
        ),
        (
            "two Hosts",
            plain(&[m, s, a, p, ("host", "odd.example"), ("host", "odd.example")]),
            400,
        ),
        ("scheme http", plain(&[m, (":scheme", "http"), a, p]), 400),
        ("scheme ftp", plain(&[m, (":scheme", "ftp"), a, p]), 400),
        ("CONNECT", plain(&[(":method", "CONNECT"), a]), 405),
        ("TRACE", plain(&[(":method", "TRACE"), s, a, p]), 405),
        (
            "lower-case method",
            plain(&[(":method", "get"), s, a, p]),
            400,
        ),
        ("encoded slash", get("odd.example", "/a%2fb"), 400),
        (
            "GET with a body",
            json!({"headers": head("GET", "odd.example", "/a", &[]), "body": "GET /secret HTTP/1.1\r\n\r\n"}),
            400,
        ),
        (
            "GET with a length",
            json!({"headers": head("GET", "odd.example", "/a", &[("content-length", "3")]), "body": "abc"}),
            400,
        ),
        ("path of a host", get("odd.example", "//two.example/x"), 200),
    ] {
        lab.open("odd.example");
        let before = lab.records().len();
        let (stream, ended) = lab.exchange(request);
        assert_eq!(stream["status"], expected, "{name}: {stream} {ended}");
        let after = eventually(Duration::from_secs(3), || {
            let all = lab.records();
            (all.len() > before).then_some(all)
        });
        assert_eq!(
            after.unwrap_or_default().len(),
            before + 1,
            "{name}: one record"
        );
        lab.ask(json!({"do": "close"}));
    }
}

/// What HTTP/2 itself calls malformed (RFC 9113, section 8.1.1) ends the stream, reaches no upstream, and leaves the
/// connection and the agent well.
#[test]
fn malformed_requests_reach_nobody() {
    let mut lab = Lab::new();
    for (name, more) in [
        ("upper case", ("X-Upper", "1")),
        ("connection", ("connection", "close")),
        ("transfer-encoding", ("transfer-encoding", "chunked")),
        ("te", ("te", "gzip")),
        ("line feed", ("x-a", "b\r\nx-c: d")),
        ("space", ("x a", "b")),
        ("late pseudo", (":path", "/b")),
        ("wrong length", ("content-length", "7")),
    ] {
        lab.open("odd.example");
        let (stream, ended) = lab.exchange(json!({
            "headers": head("POST", "odd.example", "/malformed", &[more]), "body": "abc",
        }));
        assert_ne!(stream["status"], 200, "{name}: {stream} {ended}");
        assert!(
            stream["end"] != Value::Null || ended != Value::Null,
            "{name}: hangs: {stream}"
        );
        lab.ask(json!({"do": "close"}));
    }
    lab.open("odd.example");
    let (stream, _) = lab.exchange(get("odd.example", "/a"));
    assert_eq!(stream["status"], 200, "{stream}");
    let upstream = lab.records();
    let reached: Vec<_> = upstream
        .iter()
        .filter(|record| record["response"]["status"] == 200)
        .collect();
    assert_eq!(reached.len(), 1, "{upstream:#?}");
}

#[test]
fn heads_are_bounded() {
    let mut lab = Lab::new();
    for (name, more) in [
        ("bytes", vec![("x-long".to_owned(), "y".repeat(80 * 1024))]),
        (
            "fields",
            (0..500)
                .map(|i| (format!("x-{i}"), "y".to_owned()))
                .collect(),
        ),
    ] {
        lab.open("odd.example");
        let before = lab.records().len();
        let more: Vec<_> = more.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let (stream, ended) =
            lab.exchange(json!({"headers": head("GET", "odd.example", "/a", &more)}));
        assert_eq!(stream["status"], 431, "{name}: {stream} {ended}");
        assert!(
            eventually(Duration::from_secs(3), || (lab.records().len() > before)
                .then_some(()))
            .is_some(),
            "{name}: no record"
        );
        lab.ask(json!({"do": "close"}));
    }
}

#[test]
fn floods_end_the_connection_and_not_the_agent() {
    let mut lab = Lab::new();
    lab.open("odd.example");
    let answer = lab.ask(json!({"do": "rapid_reset", "headers": head("GET", "odd.example", "/a", &[]), "times": 5000}));
    let after = lab.ask(json!({"do": "read", "streams": [], "wait": 3}));
    assert!(
        answer["broken"].is_string() || after["ended"] != Value::Null,
        "never stopped: {answer} {after}"
    );
    lab.ask(json!({"do": "close"}));

    // HEADERS without END_HEADERS, then CONTINUATION for ever (CVE-2024-27316).
    lab.open("odd.example");
    lab.ask(json!({"do": "frames", "data": "\0\0\0\u{1}\0\0\0\0\u{1}"}));
    // Literals without indexing: name `x`, value of 100 bytes.
    let literal = format!("\0\u{1}x\u{64}{}", "y".repeat(100));
    let block = literal.repeat(100);
    let (high, low) = (
        (block.len() >> 8) as u8 as char,
        (block.len() & 255) as u8 as char,
    );
    let frame = format!("\0{high}{low}\u{9}\0\0\0\0\u{1}{block}");
    let answer = lab.ask(json!({"do": "frames", "data": frame, "times": 5000}));
    let after = lab.ask(json!({"do": "read", "streams": [], "wait": 3}));
    assert!(
        answer["broken"].is_string() || after["ended"] != Value::Null,
        "never stopped: {answer} {after}"
    );
    lab.ask(json!({"do": "close"}));

    // Pings and settings, whose answers pile up if nobody reads them.
    lab.open("odd.example");
    let ping = "\0\0\u{8}\u{6}\0\0\0\0\0abcdefgh".repeat(1000);
    lab.ask(json!({"do": "frames", "data": ping, "times": 20}));
    lab.ask(json!({"do": "close"}));

    lab.open("odd.example");
    let (stream, _) = lab.exchange(get("odd.example", "/a"));
    assert_eq!(stream["status"], 200, "{stream}");
    let pid = lab.agent.pid().unwrap();
    let resident = resident(pid);
    assert!(resident < 200 << 20, "{} MiB", resident >> 20);
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

#[test]
fn many_streams_are_each_decided_and_recorded_once() {
    let mut lab = Lab::new();
    lab.open("two.example");
    let mut numbers = Vec::new();
    for index in 0..90 {
        let path = if index % 3 == 0 {
            "/shop.Orders/Delete"
        } else {
            "/fine"
        };
        numbers.push(lab.start(get("two.example", path)));
    }
    let answer = lab.ask(json!({"do": "read", "streams": numbers, "wait": 10}));
    let statuses: Vec<u64> = numbers
        .iter()
        .map(|n| {
            answer["streams"][n.to_string()]["status"]
                .as_u64()
                .unwrap_or(0)
        })
        .collect();
    assert_eq!(
        statuses.iter().filter(|&&s| s == 200).count(),
        60,
        "{statuses:?}"
    );
    assert_eq!(
        statuses.iter().filter(|&&s| s == 403).count(),
        30,
        "{statuses:?}"
    );
    lab.exactly(60, |record| record["verdict"] == "ALLOW");
    lab.exactly(30, |record| record["verdict"] == "DENY");
}

#[test]
fn a_cancelled_stream_is_cancelled_upstream_and_recorded_once() {
    let mut lab = Lab::new();
    lab.open("two.example");
    for (path, waits_for) in [("/endless", json!(2)), ("/silent", Value::Null)] {
        let number = lab.start(get("two.example", path));
        lab.ask(json!({"do": "read", "streams": [number], "wait": 1, "events": waits_for}));
        lab.ask(json!({"do": "reset", "number": number}));
        let began = Instant::now();
        assert_eq!(
            lab.two.line(Duration::from_secs(5)).unwrap(),
            format!("cancelled {path}")
        );
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        let [record] = &lab.exactly(1, |record| record["request"]["path"] == path)[..] else {
            unreachable!()
        };
        assert_eq!(record["reason"]["code"], "client_gone", "{record}");
    }
    // The connection still serves.
    let (stream, _) = lab.exchange(get("two.example", "/a"));
    assert_eq!(stream["status"], 200, "{stream}");
    // And one that goes away as a whole.
    let number = lab.start(get("two.example", "/endless"));
    lab.ask(json!({"do": "read", "streams": [number], "wait": 1, "events": 2}));
    lab.ask(json!({"do": "close"}));
    let began = Instant::now();
    assert_eq!(
        lab.two.line(Duration::from_secs(5)).unwrap(),
        "cancelled /endless"
    );
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}
