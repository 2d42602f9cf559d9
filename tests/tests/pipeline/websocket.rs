//! WebSockets on real traffic: handshakes that are not what they seem, frames of all kinds, messages that are refused, and a
//! policy that changes under an open socket.
use super::*;

const TALK: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 43);

pub(super) const POLICY: &str = r#"
version: 1
workloads: { probe: {} }
apis:
  talk: { hosts: [talk.example], tls: { ca: "file:server-ca.pem" } }
credentials:
  bot: { secret: "file:orders-bot", header: { authorization: "Bearer {secret}" }, to: [talk] }
roles:
  user:
    - api: talk
      credential: bot
      allow:
        - { route: GET /plain }
        - route: GET /{any:echo|pushed|flood|drop|no-upgrade|h2c|another|extended|wrong-accept}
          websocket: { max: 2KiB }
        - { route: GET /room, websocket: true }
        - route: GET /looked
          websocket: { fields: { type: [say, ping], text: string, trace: string }, required: [type], strip: [/trace], max: 1KiB }
        - route: GET /chat
          headers: { allow: [sec-websocket-protocol] }
          websocket: true
      deny: [{ route: "* /secret" }]
grants:
  - { role: user, to: { workload: probe } }
"#;

pub(super) struct Talk {
    pub(super) lab: Lab,
    client: Running,
}

impl Talk {
    fn new() -> Self {
        Self::under(POLICY, "")
    }

    pub(super) fn under(policy: &str, settings: &str) -> Self {
        let mut lab = Lab::of("probe", policy, settings, Program::Raw);
        let server = server(&lab.world, "websocket.py", TALK, &["talk.example"]);
        lab.servers.push(server);
        lab.world
            .dns
            .set("talk.example", Answer::Addresses(vec![TALK.into()]));
        let client = lab.another(Program::Socket);
        Self { lab, client }
    }

    fn ask(&mut self, command: Value) -> Value {
        self.client.ask(&command.to_string()).unwrap()
    }

    pub(super) fn try_open(&mut self, path: &str, headers: Value) -> Value {
        self.ask(json!({"do": "open", "host": "talk.example", "path": path, "headers": headers}))
    }

    /// Opens one; what the server was asked with.
    pub(super) fn open(&mut self, path: &str) -> Value {
        let answer = self.try_open(path, json!({}));
        assert_eq!(answer["status"], 101, "{answer}");
        let first = self.read(1);
        serde_json::from_str(first["frames"][0]["data"].as_str().unwrap()).unwrap()
    }

    pub(super) fn send(&mut self, frames: Value) {
        let answer = self.ask(json!({"do": "send", "frames": frames}));
        assert_eq!(answer, json!({}));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.send(json!([{"opcode": 1, "data": text}]));
    }

    pub(super) fn read(&mut self, count: usize) -> Value {
        self.ask(json!({"do": "read", "count": count}))
    }

    /// The data of the next frame.
    pub(super) fn next(&mut self) -> String {
        let answer = self.read(1);
        let data = answer["frames"][0]["data"].as_str();
        data.unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// That the socket is closed with this code and reason, and the connection after it.
    pub(super) fn closed(&mut self, code: u16, reason: &str) {
        let answer = self.read(1);
        let last = &answer["frames"][0];
        assert_eq!(
            (&last["opcode"], &last["code"], &last["data"]),
            (&json!(8), &json!(code), &json!(reason)),
            "{answer}"
        );
        self.send(json!([{"opcode": 8, "data": "\u{3}\u{e8}"}]));
        assert_eq!(self.read(1)["end"], "closed", "{code} {reason}");
    }

    /// What the server was sent on its sockets since this was last asked.
    pub(super) fn heard(&mut self) -> Vec<Value> {
        std::thread::sleep(Duration::from_millis(200));
        let server = self.lab.servers.last_mut().unwrap();
        let lines = std::iter::from_fn(|| server.has_line());
        lines
            .map(|line| serde_json::from_str(&line).unwrap())
            .filter(|told: &Value| told.get("early") != Some(&json!(0)))
            .collect()
    }

    pub(super) fn last_record(&self, path: &str) -> Value {
        self.lab
            .record(path, |record| record["request"]["path"] == path)
    }
}

#[test]
fn messages_pass_both_ways_and_leave_one_record() {
    let mut talk = Talk::new();
    let seen = talk.open("/echo");
    assert_eq!(seen["backwards"], "yek-tob-sredro-tsrif reraeB", "{seen}");
    assert_eq!(header(&seen, "sec-websocket-version"), Some("13"), "{seen}");
    // An echo of it in a message is overwritten.
    let stars = format!("Bearer {}", "*".repeat(20));
    assert_eq!(header(&seen, "authorization"), Some(&*stars), "{seen}");
    for gone in ["sec-websocket-extensions", "cookie"] {
        assert_eq!(header(&seen, gone), None, "{seen}");
    }
    talk.text("hello");
    assert_eq!(talk.next(), "hello");
    // In three frames, and a ping between them, which is answered first.
    talk.send(json!([
        {"opcode": 1, "data": "in ", "fin": false}, {"opcode": 9, "data": "there?"},
        {"opcode": 0, "data": "three ", "fin": false}, {"opcode": 0, "data": "parts"},
    ]));
    let both = talk.read(2);
    let frames = both["frames"].as_array().unwrap();
    let of = |opcode: u8| frames.iter().find(|frame| frame["opcode"] == opcode);
    assert_eq!(of(10).unwrap()["data"], "there?", "{both}");
    assert_eq!(of(1).unwrap()["data"], "in three parts", "{both}");
    assert!(frames.iter().all(|frame| frame["masked"] == 0), "{both}");
    talk.send(json!([{"opcode": 2, "data": "\u{0}\u{ff}"}]));
    assert_eq!(talk.next(), "\u{0}\u{ff}");
    talk.send(json!([{"opcode": 8, "data": "\u{f}\u{a0}bye"}]));
    let last = talk.read(2);
    assert_eq!(last["frames"][0]["code"], 4000, "{last}");
    assert_eq!(last["end"], "closed", "{last}");
    let heard = talk.heard();
    let kinds: Vec<&Value> = heard.iter().map(|told| &told["opcode"]).collect();
    assert_eq!(kinds, [1, 9, 1, 2, 8], "{heard:?}");
    assert_eq!(heard[4]["data"], "\u{f}\u{a0}bye", "{heard:?}");
    let record = talk.last_record("/echo");
    assert_eq!(record["verdict"], "ALLOW", "{record}");
    assert_eq!(record["reason"], Value::Null, "{record}");
    assert_eq!(record["response"]["status"], 101, "{record}");
    assert_eq!(record["request"]["bytes"], 5 + 6 + 14 + 2, "{record}");
    assert_eq!(talk.lab.records(|_| true), 1);
}

#[test]
fn only_a_faultless_handshake_opens_one() {
    let mut talk = Talk::new();
    for (path, status, code) in [
        ("/wrong-accept", 502, "upstream_http"),
        ("/extended", 502, "upstream_http"),
        ("/another", 502, "upstream_http"),
        ("/h2c", 502, "upstream_http"),
        ("/plain", 403, "websocket"),
        ("/secret", 403, "denied_by_rule"),
    ] {
        let answer = talk.try_open(path, json!({}));
        assert_eq!(answer["status"], status, "{path}: {answer}");
        let record = talk.last_record(path);
        assert_eq!(record["reason"]["code"], code, "{record}");
    }
    for (name, headers, status) in [
        ("version", json!({"Sec-WebSocket-Version": "8"}), 426),
        ("no version", json!({"Sec-WebSocket-Version": null}), 426),
        ("no key", json!({"Sec-WebSocket-Key": null}), 400),
        ("short key", json!({"Sec-WebSocket-Key": "c2hvcnQ="}), 400),
        ("no connection", json!({"Connection": "keep-alive"}), 400),
        (
            "another too",
            json!({"Upgrade": "websocket", "upgrade": "h2c"}),
            400,
        ),
        ("a body", json!({"Content-Length": "5"}), 400),
        // Nothing that is ever passed on: the request is one like any other, and the rule wants a WebSocket.
        ("h2c", json!({"Upgrade": "h2c"}), 403),
    ] {
        let answer = talk.try_open("/echo", headers);
        assert_eq!(answer["status"], status, "{name}: {answer}");
    }
    assert_eq!(talk.heard(), Vec::<Value>::new());
    // An upstream that opens none answers like any other.
    let answer = talk.try_open("/no-upgrade", json!({}));
    assert_eq!(answer["status"], 200, "{answer}");
    let plain = talk.try_open("/plain", json!({"Upgrade": "h2c"}));
    assert_eq!(plain["status"], 200, "{plain}");
    let seen = serde_json::from_str(plain["body"].as_str().unwrap()).unwrap();
    assert_eq!(header(&seen, "upgrade"), None, "{seen}");
    // A subprotocol passes where the rule says so.
    let asked = json!({"Sec-WebSocket-Protocol": "chat.v1, chat.v2"});
    let answer = talk.try_open("/chat", asked.clone());
    assert_eq!(
        answer["headers"]["sec-websocket-protocol"], "chat.v2",
        "{answer}"
    );
    let answer = talk.try_open("/echo", asked);
    assert_eq!(answer["status"], 101, "{answer}");
    let seen = serde_json::from_str(&talk.next()).unwrap();
    assert_eq!(header(&seen, "sec-websocket-protocol"), None, "{seen}");
}

#[test]
fn what_comes_before_the_answer_waits_for_it() {
    let mut talk = Talk::new();
    let ping = "\u{89}\u{80}\u{0}\u{0}\u{0}\u{0}";
    let command = |path: &str, early: &str| json!({"do": "open", "host": "talk.example", "path": path, "early": early});
    let answer = talk.ask(command("/echo", ping));
    assert_eq!(answer["status"], 101, "{answer}");
    let heard = talk.heard();
    let early = heard.iter().find(|told| told.get("early").is_some());
    assert_eq!(early, None, "went ahead of the handshake");
    assert_eq!(heard[0]["opcode"], 9, "{heard:?}");
    // Where none is opened, it is the next request, or none.
    talk.ask(json!({"do": "close"}));
    talk.heard();
    let answer = talk.ask(command("/plain", ping));
    assert_eq!(answer["status"], 403, "{answer}");
    assert_eq!(talk.heard(), Vec::<Value>::new());
}

#[test]
fn a_refused_message_goes_nowhere_and_closes_the_socket() {
    let mut talk = Talk::new();
    for (message, code) in [
        (r#"{"type":"shout"}"#, "message_field"),
        (r#"{"type":"say","type":"ping"}"#, "message_invalid"),
        ("no JSON", "message_invalid"),
    ] {
        talk.open("/looked");
        talk.text(r#"{"type":"say", "trace":"t-1", "text":"hi"}"#);
        assert_eq!(talk.next(), r#"{"type":"say", "text":"hi"}"#);
        talk.text(message);
        talk.closed(1008, code);
        let told = talk.heard();
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0]["data"], r#"{"type":"say", "text":"hi"}"#);
        assert_eq!(told[1]["opcode"], 8, "{told:?}");
        let record = talk.last_record("/looked");
        assert_eq!(record["verdict"], "DENY", "{record}");
        assert_eq!(record["reason"]["code"], code, "{record}");
        assert_eq!(record["response"]["status"], 101, "{record}");
        assert!(
            !record.to_string().contains("shout"),
            "a value is in the log"
        );
    }
    talk.open("/looked");
    talk.send(json!([{"opcode": 2, "data": r#"{"type":"say"}"#}]));
    talk.closed(1008, "message_type");
}

#[test]
fn frames_are_bounded_and_well_formed() {
    let mut talk = Talk::new();
    let long = "x".repeat(3000);
    let half = "x".repeat(1500);
    let ping = "x".repeat(126);
    for (name, frames, code, reason) in [
        (
            "long",
            json!([{"opcode": 1, "data": long}]),
            1008,
            "message_too_large",
        ),
        (
            "long in parts",
            json!([{"opcode": 1, "data": half, "fin": false}, {"opcode": 0, "data": half}]),
            1008,
            "message_too_large",
        ),
        (
            "no mask",
            json!([{"opcode": 1, "data": "x", "mask": false}]),
            1002,
            "websocket_protocol",
        ),
        (
            "compressed",
            json!([{"opcode": 1, "data": "x", "rsv": 4}]),
            1002,
            "websocket_protocol",
        ),
        (
            "unknown",
            json!([{"opcode": 5, "data": "x"}]),
            1002,
            "websocket_protocol",
        ),
        (
            "long ping",
            json!([{"opcode": 9, "data": ping}]),
            1002,
            "websocket_protocol",
        ),
        (
            "ping in parts",
            json!([{"opcode": 9, "data": "x", "fin": false}]),
            1002,
            "websocket_protocol",
        ),
        (
            "nothing to go on",
            json!([{"opcode": 0, "data": "x"}]),
            1002,
            "websocket_protocol",
        ),
        (
            "no UTF-8",
            json!([{"opcode": 1, "data": "\u{ff}"}]),
            1002,
            "websocket_protocol",
        ),
    ] {
        talk.open("/echo");
        talk.send(frames);
        let answer = talk.read(1);
        let last = &answer["frames"][0];
        assert_eq!(
            (&last["code"], &last["data"]),
            (&json!(code), &json!(reason)),
            "{name}: {answer}"
        );
        talk.ask(json!({"do": "close"}));
        let heard = talk.heard();
        assert!(
            heard.iter().all(|told| told["opcode"] == 8),
            "{name}: {heard:?}"
        );
    }
    let record = talk.last_record("/echo");
    assert_eq!(record["verdict"], "DENY", "{record}");
    // The upstream's too.
    talk.open("/flood");
    talk.closed(1009, "message_too_large");
    assert_eq!(talk.last_record("/flood")["verdict"], "LIMIT");
    talk.open("/drop");
    talk.closed(1011, "upstream_reset");
    assert_eq!(talk.last_record("/drop")["verdict"], "ERROR");
    // And it may close, and ask whether somebody is there.
    talk.open("/pushed");
    let all = talk.read(4);
    let frames = all["frames"].as_array().unwrap();
    let kinds: Vec<&Value> = frames.iter().map(|frame| &frame["opcode"]).collect();
    assert_eq!(kinds, [1, 9, 8], "{all}");
    assert_eq!(
        (&frames[2]["code"], &frames[2]["data"]),
        (&json!(4000), &json!("bye"))
    );
}

#[test]
fn a_new_policy_reaches_the_open_socket() {
    let mut talk = Talk::new();
    talk.open("/echo");
    talk.text("anything");
    assert_eq!(talk.next(), "anything");
    // What is unchanged for it goes on.
    talk.lab.reload(&POLICY.replace("GET /plain", "GET /other"));
    talk.text("still");
    assert_eq!(talk.next(), "still");
    // The next message obeys.
    let narrow = "websocket: { max: 2KiB, fields: { a: int } }";
    talk.lab
        .reload(&POLICY.replace("websocket: { max: 2KiB }", narrow));
    talk.text("anything");
    talk.closed(1008, "message_invalid");
    // One that may be open no more is closed, though nothing moves.
    talk.open("/room");
    talk.lab.reload(&POLICY.replace("GET /room", "GET /shut"));
    talk.closed(1008, "revoked");
    let record = talk.last_record("/room");
    assert_eq!(record["verdict"], "DENY", "{record}");
    assert_eq!(record["reason"]["code"], "revoked", "{record}");
    // A client that just goes leaves a record that says so.
    talk.open("/echo");
    talk.ask(json!({"do": "close"}));
    talk.lab.record_of("client_gone");
}
