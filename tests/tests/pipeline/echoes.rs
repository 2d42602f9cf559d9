//! Credentials that come back: in headers and bodies, in parts, compressed, written in other ways.
use super::redaction::{answer, base64, path};
use super::*;

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
      allow: [{ route: "* /**" }]
    - api: two
      credential: bot
      allow: [{ route: "* /**" }]
  reader:
    - api: odd
      credential: bot
      allow: [{ route: "* /**" }]
      response: { redact: [/email, /items/*/token] }
grants:
  - { role: user, to: { workload: probe } }
"#;

const KEY: &str = "first-orders-bot-key";
const STARS: &str = "********************";

fn clean(got: &Value) {
    let all = got.to_string();
    assert!(!all.contains(KEY) && !all.contains("orders-bot"), "{all}");
}

#[test]
fn an_echo_is_overwritten_wherever_it_stands() {
    let mut lab = Lab::ordinary(POLICY, "");
    let plain = answer(
        "200 OK",
        &format!("content-type: text/plain\r\nx-echo: Bearer {KEY}\r\n"),
        &format!("you sent {KEY}, did you not?"),
    );
    let (first, second) = KEY.split_at(7);
    let parts = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n\
         a\r\nit is {first:4.4}\r\n3\r\n{}\r\n{:x}\r\n{second}\r\n1\r\n!\r\n0\r\n\r\n",
        &first[4..],
        second.len()
    );
    let encoded = base64(&format!("bot:{KEY}!!"));
    for h2 in [false, true] {
        let ask = |url: String| json!({"method": "GET", "url": url, "h2": h2});
        let (got, record) = lab.asked(ask(path("say", &plain)));
        assert_eq!(
            got["data"],
            format!("you sent {STARS}, did you not?"),
            "{got}"
        );
        assert_eq!(
            field(&got, "x-echo"),
            Some(&*format!("Bearer {STARS}")),
            "{got}"
        );
        assert_eq!(record["redacted"], json!(["credential"]), "{record}");
        clean(&got);
        let (got, _) = lab.asked(ask(path("say", &parts)));
        assert_eq!(got["data"], format!("it is {STARS}!"), "{got}");
        // Written in base64 behind a name, and escaped.
        let raw = answer(
            "200 OK",
            "",
            &format!("{encoded} and {}", KEY.replace('-', "%2D")),
        );
        let (got, _) = lab.asked(ask(path("say", &raw)));
        let data = got["data"].as_str().unwrap();
        assert!(!data.contains(&encoded[8..30]), "{got}");
        // The server's own echo, over either version.
        for url in ["https://odd.example/echo", "https://two.example/echo"] {
            let (got, record) = lab.asked(ask(url.to_owned()));
            clean(&got);
            let echo: Value = serde_json::from_str(got["data"].as_str().unwrap()).unwrap();
            assert_eq!(echo["backwards"], "yek-tob-sredro-tsrif reraeB", "{echo}");
            assert_eq!(record["redacted"], json!(["credential"]), "{record}");
        }
        // Nothing is changed where nothing comes back.
        let (got, record) = lab.asked(ask(path("say", &answer("200 OK", "", "first-orders-bot"))));
        assert_eq!(got["data"], "first-orders-bot", "{got}");
        assert_eq!(record["redacted"], json!([]), "{record}");
    }
}

#[test]
fn what_is_compressed_is_read_or_withheld() {
    let mut lab = Lab::ordinary(POLICY, "");
    for h2 in [false, true] {
        for coding in ["gzip", "deflate"] {
            let url = format!("https://odd.example/{coding}");
            let headers = json!([["accept-encoding", "gzip, br"]]);
            let (got, record) =
                lab.asked(json!({"method": "GET", "url": url, "headers": headers, "h2": h2}));
            assert_eq!(got["status"], 200, "{got}");
            assert_eq!(field(&got, "content-encoding"), None, "{got}");
            assert_eq!(field(&got, "etag"), None, "{got}");
            clean(&got);
            let echo: Value = serde_json::from_str(got["data"].as_str().unwrap()).unwrap();
            assert_eq!(header(&echo, "accept-encoding"), Some("identity"), "{echo}");
            assert_eq!(record["redacted"], json!(["credential"]), "{record}");
        }
        let (got, record) =
            lab.asked(json!({"method": "GET", "url": "https://odd.example/brotli", "h2": h2}));
        assert_eq!(got["status"], 502, "{got}");
        clean(&got);
        assert_eq!(record["reason"]["code"], "response_unreadable", "{record}");
    }
}

#[test]
fn events_lose_values_one_by_one() {
    let mut lab = Lab::ordinary(&POLICY.replace("role: user", "role: reader"), "");
    let events = |body: &str| answer("200 OK", "content-type: text/event-stream\r\n", body);
    let body = format!(
        ": hi\n\nid: 1\nevent: user\ndata: {{\"email\":\"ann@acme.example\",\"key\":\"{KEY}\"}}\n\ndata: [DONE]\n\n"
    );
    let told = format!(
        ": hi\n\nid: 1\nevent: user\ndata: {{\"email\":\"[redacted]\",\"key\":\"{STARS}\"}}\n\ndata: [DONE]\n\n"
    );
    let message = |text: &str| {
        let length = u32::try_from(text.len()).unwrap().to_be_bytes();
        let length: String = length.iter().map(|byte| char::from(*byte)).collect();
        format!("\0{length}{text}")
    };
    let framed = message(r#"{"email":"ann@acme.example"}"#) + &message("{}");
    let unframed = message(r#"{"email":"[redacted]"}"#) + &message("{}");
    let grpc = answer(
        "200 OK",
        "content-type: application/grpc-web+json\r\n",
        &framed,
    );
    for h2 in [false, true] {
        let ask = |raw: &str| json!({"method": "GET", "url": path("say", raw), "h2": h2});
        let (got, record) = lab.asked(ask(&events(&body)));
        assert_eq!(got["data"], told, "{got}");
        assert_eq!(
            record["redacted"],
            json!(["/email", "/items/*/token", "credential"]),
            "{record}"
        );
        let (got, _) = lab.asked(ask(&grpc));
        assert_eq!(got["data"], unframed, "{got}");
        // What is no JSON is not sent; the client sees that something is missing.
        let (got, record) = lab.asked(ask(&events(
            "data: {\"n\":1}\n\ndata: ann@acme.example\n\n",
        )));
        assert!(got["error"].is_string(), "{got}");
        assert_eq!(record["reason"]["code"], "response_unreadable", "{record}");
    }
    // Each goes on when it comes, and not when the next one does.
    let mut raw = lab.another(Program::Raw);
    let ask = |raw: &mut Running, command: Value| raw.ask(&command.to_string()).unwrap();
    ask(&mut raw, json!({"do": "open", "host": "odd.example"}));
    ask(
        &mut raw,
        json!({"do": "send", "data": "GET /ticks HTTP/1.1\r\nhost: odd.example\r\n\r\n"}),
    );
    for number in 1..=3 {
        let until = format!("\"n\":{number}}}\n\n");
        let got = ask(&mut raw, json!({"do": "read", "wait": 5, "until": until}));
        assert!(
            got["data"].as_str().unwrap().contains("[redacted]"),
            "{got}"
        );
        assert!(!got.to_string().contains("ann@"), "{got}");
        assert_eq!(
            lab.servers[0].line(Duration::from_secs(1)).unwrap(),
            format!("tick {number}")
        );
        assert_eq!(
            lab.servers[0].has_line(),
            None,
            "not before the next one was sent"
        );
    }
}

fn field<'a>(got: &'a Value, name: &str) -> Option<&'a str> {
    let pairs = got["headers"].as_array()?;
    pairs.iter().find(|pair| pair[0] == name)?[1].as_str()
}
