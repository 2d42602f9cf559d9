//! The data plane on real traffic: a governed client that sends any bytes, an upstream that misbehaves on demand,
//! the real agent and the real kernel between them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod again;
mod aws;
mod budgets;
mod container;
mod counted;
mod echoes;
mod edited;
mod identity;
mod language;
mod names;
mod progress;
mod reach;
mod redaction;
mod rules;
mod sockets;
mod uninspected;
mod upstream;
mod vault;
mod waiting;
mod websocket;

use harness::agent::Agent;
use harness::client::Running;
use harness::dns::Answer;
use harness::{World, eventually, repository};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ODD: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 40);
/// Speaks HTTP/2 only.
const TWO: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 42);
/// An address where nobody listens.
const IDLE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 41);

const POLICY: &str = r#"
version: 1
workloads: { probe: {}, watched: {} }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
  wrong: { hosts: [wrong.example], tls: { ca: "file:server-ca.pem" } }
  public: { hosts: [public.example] }
  inner: { hosts: [inner.example], tls: { ca: "file:server-ca.pem" } }
  down: { hosts: [down.example], tls: { ca: "file:server-ca.pem" } }
  nameless: { hosts: [nameless.example], tls: { ca: "file:server-ca.pem" } }
credentials:
  bot: { secret: "file:orders-bot", header: { authorization: "Bearer {secret}" }, to: [odd] }
roles:
  odd-user:
    - api: odd
      credential: bot
      allow:
        - route: GET /{any}
        - route: HEAD /{any}
        - route: GET /deep/**
        - route: GET /q/list
          query: { page: 1..9 }
          extra: strip
        - route: POST /json
          body: { fields: { state: [open, closed], note: string }, max: 1KiB }
        - route: POST /stream
        - route: POST /either
          body: { fields: { state: [open, closed] }, max: 1KiB }
        - route: POST /either
      deny:
        - route: "* /secret"
      response: { strip: [set-cookie] }
  others:
    - api: wrong
      allow: [{ route: GET /** }]
    - api: public
      allow: [{ route: GET /** }]
    - api: inner
      allow: [{ route: GET /** }]
    - api: down
      allow: [{ route: GET /** }]
    - api: nameless
      allow: [{ route: GET /** }]
grants:
  - { role: odd-user, to: { workload: probe } }
  - { role: others, to: { workload: probe } }
  - { role: odd-user, to: { workload: watched }, mode: observe }
"#;

/// Who asks.
#[derive(Clone, Copy)]
enum Program {
    /// Sends any bytes.
    Raw,
    /// Sends what most programs would, over either version of HTTP.
    Ordinary,
    /// Sends any frames of a WebSocket.
    Socket,
}

/// A world with the odd server, an agent, and a governed client.
struct Lab {
    client: Running,
    servers: Vec<Running>,
    agent: Agent,
    world: World,
}

impl Lab {
    fn new() -> Self {
        Self::with("probe")
    }

    fn with(workload: &str) -> Self {
        Self::under(workload, POLICY)
    }

    fn under(workload: &str, policy: &str) -> Self {
        Self::of(workload, policy, "", Program::Raw)
    }

    /// One more server, that speaks HTTP/2, and an ordinary client.
    fn ordinary(policy: &str, settings: &str) -> Self {
        Self::of("probe", policy, settings, Program::Ordinary)
    }

    fn of(workload: &str, policy: &str, settings: &str, program: Program) -> Self {
        let world = World::new().unwrap();
        let mut servers = vec![odd_server(&world)];
        if let Program::Ordinary = program {
            servers.push(server(&world, "http2.py", TWO, &["two.example"]));
            world
                .dns
                .set("two.example", Answer::Addresses(vec![TWO.into()]));
        }
        for name in [
            "odd.example",
            "pinned.example",
            "wrong.example",
            "public.example",
        ] {
            world.dns.set(name, Answer::Addresses(vec![ODD.into()]));
        }
        world.dns.set(
            "inner.example",
            Answer::Addresses(vec![Ipv4Addr::LOCALHOST.into()]),
        );
        world
            .dns
            .set("down.example", Answer::Addresses(vec![IDLE.into()]));
        world.dns.set("nameless.example", Answer::Failure);
        let mut agent = Agent::new(&world, policy).unwrap();
        let mut config = std::fs::read_to_string(agent.config()).unwrap();
        config.push_str(settings);
        std::fs::write(agent.config(), config).unwrap();
        agent.start(&world).unwrap();
        world
            .show(&repository().join("tests/clients"), "clients")
            .unwrap();
        if let Program::Ordinary = program {
            world.show(&venv(), "python").unwrap();
        }
        let client = client(&world, &agent, workload, program);
        Self {
            client,
            servers,
            agent,
            world,
        }
    }

    /// Another client beside the first one.
    fn another(&self, program: Program) -> Running {
        client(&self.world, &self.agent, "probe", program)
    }

    /// What an ordinary client is answered, and the record of it.
    fn asked(&mut self, mut command: Value) -> (Value, Value) {
        command["do"] = json!("ask");
        let before = self.records(|_| true);
        let answer = self.ask(command);
        let after = eventually(Duration::from_secs(5), || {
            let all = self.agent.decisions(&self.world).unwrap();
            (all.len() > before).then_some(all)
        });
        let mut after = after.unwrap_or_else(|| panic!("no record of {answer}"));
        assert_eq!(after.len(), before + 1, "one record for one request");
        (answer, after.pop().unwrap())
    }

    /// Puts another policy in force.
    fn reload(&self, policy: &str) {
        self.agent.write_policy(policy).unwrap();
        let reload = self.agent.output(&self.world, "reload", &[]).unwrap();
        assert!(reload.status.success(), "{reload:?}");
    }

    fn records(&self, is: impl Fn(&Value) -> bool) -> usize {
        let all = self.agent.decisions(&self.world).unwrap();
        all.iter().filter(|record| is(record)).count()
    }

    fn ask(&mut self, command: Value) -> Value {
        self.client.ask(&command.to_string()).unwrap()
    }

    fn open(&mut self, host: &str) {
        let answer = self.ask(json!({"do": "open", "host": host}));
        assert!(answer.get("error").is_none(), "{answer}");
    }

    /// Sends `raw` on a new TLS connection to `odd.example`; returns the status, the whole answer, and how it ended.
    fn exchange(&mut self, raw: &str) -> (u16, String, String) {
        self.open("odd.example");
        self.ask(json!({"do": "send", "data": raw}));
        let answer = self.ask(json!({"do": "read", "wait": 3}));
        self.ask(json!({"do": "close"}));
        let data = answer["data"].as_str().unwrap_or_default().to_owned();
        (status(&data), data, answer["end"].to_string())
    }

    fn get(&mut self, host: &str, target: &str) -> (u16, String) {
        self.open(host);
        self.got(host, target)
    }

    /// The answer on the connection that is open.
    fn got(&mut self, host: &str, target: &str) -> (u16, String) {
        let raw = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        self.ask(json!({"do": "send", "data": raw}));
        let answer = self.ask(json!({"do": "read", "wait": 15}));
        let data = answer["data"].as_str().unwrap_or_default().to_owned();
        (status(&data), data)
    }

    /// Waits for the record that `find` accepts.
    fn record(&self, what: &str, find: impl Fn(&Value) -> bool) -> Value {
        eventually(Duration::from_secs(5), || {
            self.agent
                .decisions(&self.world)
                .unwrap()
                .into_iter()
                .rev()
                .find(|record| find(record))
        })
        .unwrap_or_else(|| {
            let all = self.agent.decisions(&self.world).unwrap();
            panic!("no record of {what} among {all:#?}\n{}", self.agent.log())
        })
    }

    fn record_of(&self, code: &str) -> Value {
        self.record(code, |record| record["reason"]["code"] == code)
    }
}

fn odd_server(world: &World) -> Running {
    world
        .servers
        .script(&format!("ip addr add {IDLE}/32 dev lo"))
        .unwrap();
    server(world, "odd.py", ODD, &["odd.example", "pinned.example"])
}

fn venv() -> PathBuf {
    repository().join("target/tools/venv")
}

fn server(world: &World, script: &str, address: Ipv4Addr, hosts: &[&'static str]) -> Running {
    server_with(world, script, address, hosts, &[])
}

fn server_with(
    world: &World,
    script: &str,
    address: Ipv4Addr,
    hosts: &[&'static str],
    more: &[&str],
) -> Running {
    world
        .servers
        .script(&format!("ip addr replace {address}/32 dev lo"))
        .unwrap();
    let files = world.ca.issue(hosts, world.directory()).unwrap();
    let mut command = world.servers.command(venv().join("bin/python3"));
    command
        .arg("-u")
        .arg(repository().join("tests/servers").join(script))
        .args([&address.to_string(), "443"])
        .args([&files.certificate, &files.key])
        .args(more);
    let mut server = Running::start(command).unwrap();
    assert_eq!(server.line(Duration::from_secs(10)).unwrap(), "ready");
    server
}

fn client(world: &World, agent: &Agent, workload: &str, program: Program) -> Running {
    let python = world.directory().join("python/bin/python3");
    let (python, script) = match program {
        Program::Raw => (Path::new("python3"), "raw.py"),
        Program::Socket => (Path::new("python3"), "websocket.py"),
        Program::Ordinary => (python.as_path(), "ordinary.py"),
    };
    let mut command = agent.governed(world, workload, python);
    command
        .arg("-u")
        .arg(world.directory().join("clients").join(script));
    Running::start(command).unwrap()
}

fn status(data: &str) -> u16 {
    data.split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0)
}

fn request(line: &str, headers: &str) -> String {
    format!("{line}\r\nhost: odd.example\r\n{headers}connection: close\r\n\r\n")
}

/// What the odd server says it was sent.
fn echoed(data: &str) -> Value {
    let (_, body) = data.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|_| panic!("no echo in {data}"))
}

fn header<'a>(echo: &'a Value, name: &str) -> Option<&'a str> {
    let pairs = echo["headers"].as_array().unwrap();
    pairs
        .iter()
        .find(|pair| pair[0].as_str().unwrap().eq_ignore_ascii_case(name))?[1]
        .as_str()
}

#[test]
fn parameters_and_bodies_are_held_to_their_rules() {
    let mut lab = Lab::new();
    let (_, data, _) = lab.exchange(&request("GET /q/list?page=3&debug=1 HTTP/1.1", ""));
    assert_eq!(echoed(&data)["line"], "GET /q/list?page=3 HTTP/1.1");
    let (status, data, _) = lab.exchange(&request("GET /q/list?page=987654321 HTTP/1.1", ""));
    assert_eq!(status, 403, "{data}");
    assert!(
        !data.contains("987654321"),
        "the value is in the answer: {data}"
    );

    let post = |body: &str, kind: &str| {
        format!(
            "POST /json HTTP/1.1\r\nhost: odd.example\r\nconnection: close\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let exact = "{\"state\" :\"open\",\n \"note\":\"h\u{0069}\"}";
    let (status, data, _) = lab.exchange(&post(exact, "application/json"));
    assert_eq!(status, 200, "{data}");
    assert_eq!(echoed(&data)["body"], exact, "not byte for byte");
    for (body, kind, code) in [
        (r#"{"state":"merged"}"#, "application/json", "body_field"),
        (
            r#"{"state":"open","admin":true}"#,
            "application/json",
            "body_field",
        ),
        (
            r#"{"state":"open","st\u0061te":"open"}"#,
            "application/json",
            "body_invalid",
        ),
        (r#"{"state":"open"} x"#, "application/json", "body_invalid"),
        (r#"{"state":"open"}"#, "text/plain", "body_type"),
    ] {
        let (status, data, _) = lab.exchange(&post(body, kind));
        assert_eq!(status, 403, "{body}: {data}");
        assert!(data.contains(code), "{body}: {data}");
    }
    let long = format!("{{\"note\":\"{}\"}}", "x".repeat(2000));
    let (status, data, _) = lab.exchange(&post(&long, "application/json"));
    assert_eq!(
        (status, data.contains("body_too_large")),
        (403, true),
        "{data}"
    );
}

#[test]
fn a_request_body_that_breaks_its_framing_is_refused_for_that() {
    let mut lab = Lab::new();
    let head = "POST /stream HTTP/1.1\r\nhost: odd.example\r\ntransfer-encoding: chunked\r\n\r\n";
    let (status, data, _) = lab.exchange(&format!("{head}5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\n\r\n"));
    assert_eq!(status, 400, "{data}");
    let record = lab.record("it", |record| record["request"]["path"] == "/stream");
    assert_eq!(record["verdict"], "DENY", "{record}");
}

#[test]
fn a_refusal_is_a_problem_document_with_the_decision() {
    let mut lab = Lab::new();
    let (status, data, _) = lab.exchange(&request("GET /secret HTTP/1.1", ""));
    assert_eq!(status, 403);
    assert!(
        data.to_lowercase()
            .contains("content-type: application/problem+json"),
        "{data}"
    );
    let problem = echoed(&data);
    let record = lab.record_of("denied_by_rule");
    assert_eq!(problem["decision"], record["id"]);
    assert_eq!(problem["status"], 403);
    for key in ["title", "detail", "hint", "code"] {
        assert!(problem[key].is_string(), "{key} in {problem}");
    }
    assert_eq!(record["verdict"], "DENY");
    assert_eq!(record["response"]["status"], 403);
    // A host that no api names is refused with an answer too, not with a broken connection.
    let here = Answer::Addresses(vec![ODD.into()]);
    lab.world.dns.set("elsewhere.example", here);
    let known = json!({"do": "open", "host": "elsewhere.example", "address": ODD.to_string()});
    assert!(lab.ask(known).get("error").is_none());
    let (status, data) = lab.got("elsewhere.example", "/");
    assert_eq!(status, 403, "{data}");
    assert!(data.contains("unknown_host"), "{data}");
}

#[test]
fn ambiguity_is_refused_and_recorded() {
    let mut lab = Lab::new();
    let cases = [
        (
            "two hosts",
            "GET /a HTTP/1.1\r\nhost: odd.example\r\nhost: odd.example\r\n\r\n",
        ),
        ("no host", "GET /a HTTP/1.1\r\naccept: */*\r\n\r\n"),
        (
            "absolute target",
            "GET https://odd.example/a HTTP/1.1\r\nhost: odd.example\r\n\r\n",
        ),
        (
            "both lengths",
            "POST /stream HTTP/1.1\r\nhost: odd.example\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "two lengths",
            "POST /stream HTTP/1.1\r\nhost: odd.example\r\ncontent-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        ),
        ("bare line feed", "GET /a HTTP/1.1\nhost: odd.example\n\n"),
        (
            "space before colon",
            "GET /a HTTP/1.1\r\nhost: odd.example\r\nx : 1\r\n\r\n",
        ),
        (
            "encoded slash",
            "GET /a%2fb HTTP/1.1\r\nhost: odd.example\r\n\r\n",
        ),
        (
            "encoded NUL",
            "GET /a%00 HTTP/1.1\r\nhost: odd.example\r\n\r\n",
        ),
        (
            "path parameter",
            "GET /a;x=1 HTTP/1.1\r\nhost: odd.example\r\n\r\n",
        ),
        (
            "backslash",
            "GET /a%5cb HTTP/1.1\r\nhost: odd.example\r\n\r\n",
        ),
        (
            "lower-case method",
            "get /a HTTP/1.1\r\nhost: odd.example\r\n\r\n",
        ),
        ("garbage", "\u{0}\u{1}\u{2}\u{3}\r\n\r\n"),
    ];
    for (name, raw) in cases {
        let before = lab.agent.decisions(&lab.world).unwrap().len();
        let (status, data, _) = lab.exchange(raw);
        assert!(
            (400..=431).contains(&status) && status != 403,
            "{name}: {data}"
        );
        let after = eventually(Duration::from_secs(3), || {
            let all = lab.agent.decisions(&lab.world).unwrap();
            (all.len() > before).then_some(all)
        });
        assert!(after.is_some(), "{name}: no record");
        assert_eq!(
            lab.agent.decisions(&lab.world).unwrap().len(),
            before + 1,
            "{name}: one record"
        );
    }
    for (method, status) in [("CONNECT odd.example:443", 405), ("TRACE /a", 405)] {
        let (got, data, _) = lab.exchange(&request(&format!("{method} HTTP/1.1"), ""));
        assert_eq!(got, status, "{method}: {data}");
    }
    let (status, data, _) = lab.exchange("GET /a HTTP/1.1\r\nhost: wrong.example\r\n\r\n");
    assert_eq!(status, 421, "{data}");
}

#[test]
fn what_is_not_http_over_tls_ends_with_a_record() {
    let mut lab = Lab::new();
    lab.ask(json!({"do": "open", "host": "odd.example", "tls": false}));
    lab.ask(json!({"do": "send", "data": "GET /a HTTP/1.1\r\nhost: odd.example:443\r\n\r\n"}));
    let answer = lab.ask(json!({"do": "read", "wait": 3}));
    assert_eq!(status(answer["data"].as_str().unwrap()), 403, "{answer}");
    lab.record_of("cleartext");

    lab.ask(json!({"do": "open", "host": "odd.example", "tls": false}));
    lab.ask(json!({"do": "send", "data": "\u{80}\u{1}not http\r\n"}));
    let answer = lab.ask(json!({"do": "read", "wait": 5}));
    assert_ne!(answer["end"], "silent", "{answer}");
    lab.record_of("not_http");

    lab.ask(json!({"do": "open", "host": "odd.example", "tls": false}));
    lab.ask(json!({"do": "send", "data": "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}half"}));
    lab.ask(json!({"do": "close"}));
    lab.record_of("client_tls");

    let answer = lab.ask(json!({"do": "open", "host": "odd.example", "sni": ""}));
    assert!(answer.get("error").is_none(), "{answer}");
    lab.ask(json!({"do": "send", "data": request("GET /a HTTP/1.1", "")}));
    let answer = lab.ask(json!({"do": "read", "wait": 3}));
    assert_eq!(status(answer["data"].as_str().unwrap()), 421, "{answer}");
    lab.record_of("no_server_name");
}

#[test]
fn heads_are_bounded() {
    let mut lab = Lab::new();
    let long = format!(
        "GET /a HTTP/1.1\r\nhost: odd.example\r\nx: {}\r\n\r\n",
        "y".repeat(1 << 20)
    );
    let (status, data, _) = lab.exchange(&long);
    assert_eq!(status, 431, "{data}");
    let many = format!(
        "GET /a HTTP/1.1\r\nhost: odd.example\r\n{}\r\n",
        "a: b\r\n".repeat(500)
    );
    let (status, data, _) = lab.exchange(&many);
    assert_eq!(status, 431, "{data}");
    // The agent is still there.
    let (status, data, _) = lab.exchange(&request("GET /a HTTP/1.1", ""));
    assert_eq!(status, 200, "{data}");
}

#[test]
fn an_observed_denial_passes_and_is_recorded() {
    let mut lab = Lab::with("watched");
    let (status, data, _) = lab.exchange(&request(
        "DELETE /a HTTP/1.1",
        "authorization: Bearer mine\r\n",
    ));
    assert_eq!(status, 200, "{data}");
    // As the client sent it: its own credential, and none put in.
    assert_eq!(header(&echoed(&data), "authorization"), Some("Bearer mine"));
    let record = lab.record("the denial", |record| record["verdict"] == "WOULD-DENY");
    assert_eq!(record["mode"], "observe");
    assert_eq!(record["request"]["method"], "DELETE");
    // What is ambiguous is refused in this mode too.
    let (status, _, _) = lab.exchange("GET /a%2fb HTTP/1.1\r\nhost: odd.example\r\n\r\n");
    assert_eq!(status, 400);
}

/// An upstream closes an idle connection whenever it likes, and the request that meets that is nobody's fault.
#[test]
fn a_connection_given_up_upstream_fails_no_request_that_may_be_repeated() {
    let mut lab = Lab::new();
    for (line, expected) in [("GET /a", 200), ("HEAD /a", 200), ("POST /stream", 502)] {
        lab.open("odd.example");
        let keep = "HTTP/1.1\r\nhost: odd.example\r\n\r\n";
        lab.ask(json!({"do": "send", "data": format!("GET /last {keep}")}));
        let first = lab.ask(json!({"do": "read", "wait": 3, "until": "ok"}));
        assert_eq!(status(first["data"].as_str().unwrap()), 200, "{first}");
        lab.ask(json!({"do": "send", "data": request(&format!("{line} HTTP/1.1"), "")}));
        let second = lab.ask(json!({"do": "read", "wait": 3}));
        let data = second["data"].as_str().unwrap();
        assert_eq!(status(data), expected, "{line}: {data}");
    }
    let records = lab.agent.decisions(&lab.world).unwrap();
    let of = |path: &str| {
        let is = |record: &&Value| record["request"]["path"] == path;
        records.iter().filter(is).count()
    };
    assert_eq!((of("/a"), of("/stream")), (2, 1), "{records:#?}");
}
