//! Values taken out of responses: what the client gets, what it does not, and what is left alone.
use super::*;
use harness::nginx::USER;

const POLICY: &str = r#"
version: 1
workloads: { probe: {} }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
  two: { hosts: [two.example], tls: { ca: "file:server-ca.pem" } }
  orders: { hosts: [api.orders.example], tls: { ca: "file:server-ca.pem" } }
roles:
  redacted:
    - api: odd
      allow: [{ route: "GET|HEAD /say/{answer}" }, { route: GET /half/** }]
      response: { redact: [/user/email, "/items/*/token"] }
    - api: two
      allow: [{ route: "GET|HEAD /say/{answer}" }]
      response: { redact: [/user/email] }
    - api: orders
      allow: [{ route: GET|HEAD /open/user }]
      response: { redact: [/user/email, /user/phone] }
  untouched:
    - api: odd
      allow: [{ route: "GET|HEAD /raw/{answer}" }]
    - api: orders
      allow: [{ route: GET /open/user/raw }]
grants:
  - { role: redacted, to: { workload: probe } }
  - { role: untouched, to: { workload: probe } }
"#;

const SECRETS: &str = r#"{"id":7, "user" : {"email":"ann@acme.example","n":1.50}, "items":[{"token":"t-1"},{"token":9,"x":"\u0061"},{}]}"#;
const CLEAN: &str = r#"{"id":7, "user" : {"email":"[redacted]","n":1.50}, "items":[{"token":"[redacted]"},{"token":null,"x":"\u0061"},{}]}"#;
const JSON: &str = "content-type: application/json\r\n";

/// An answer in HTTP/1.1, with its length.
pub(crate) fn answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.chars().count()
    )
}

/// The odd server's path that says it: `say` is redacted, `raw` is not.
pub(crate) fn path(kind: &str, answer: &str) -> String {
    format!("https://odd.example/{kind}/{}", base64(answer))
}

pub(crate) fn base64(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bytes: Vec<u8> = text.chars().map(|c| u8::try_from(c).unwrap()).collect();
    let digit = |group: u32, shift: u32| char::from(DIGITS[(group >> shift & 63) as usize]);
    // Filled up with spaces, which no answer here minds: no `=` in a path.
    let mut padded = bytes;
    while !padded.len().is_multiple_of(3) {
        padded.push(b' ');
    }
    let groups = padded
        .chunks(3)
        .map(|c| u32::from_be_bytes([0, c[0], c[1], c[2]]));
    groups
        .flat_map(|g| [18, 12, 6, 0].map(|shift| digit(g, shift)))
        .collect()
}

/// No part of what is to be taken out.
fn innocent(answer: &Value) {
    let all = answer.to_string();
    assert!(!all.contains("ann@acme") && !all.contains("t-1"), "{all}");
}

#[test]
fn values_are_taken_out_of_what_the_client_gets_and_of_nothing_else() {
    let mut lab = Lab::ordinary(POLICY, "");
    let tags = "etag: \"1\"\r\ncontent-digest: sha-256=:AA==:\r\ncontent-md5: AA==\r\naccept-ranges: bytes\r\nx-kept: 1\r\n";
    let whole = answer("200 OK", &format!("{JSON}{tags}"), SECRETS);
    let chunked = format!(
        "HTTP/1.1 404 Not Found\r\n{JSON}transfer-encoding: chunked\r\n\r\n9\r\n{}\r\n{:x}\r\n{}\r\n0\r\nx-sum: 1\r\n\r\n",
        &SECRETS[..9],
        SECRETS.len() - 9,
        &SECRETS[9..]
    );
    for h2 in [false, true] {
        for (raw, expected) in [(&whole, 200), (&chunked, 404)] {
            let (got, record) =
                lab.asked(json!({"method": "GET", "url": path("say", raw), "h2": h2}));
            assert_eq!(got["status"], expected, "{got}");
            assert_eq!(got["version"], if h2 { "HTTP/2" } else { "HTTP/1.1" });
            assert_eq!(got["data"], CLEAN, "{got}");
            let length = CLEAN.len().to_string();
            assert_eq!(header(&got, "content-length"), Some(&*length), "{got}");
            for gone in [
                "etag",
                "content-digest",
                "content-md5",
                "accept-ranges",
                "transfer-encoding",
            ] {
                assert_eq!(header(&got, gone), None, "{gone}: {got}");
            }
            assert_eq!(record["verdict"], "ALLOW", "{record}");
            assert_eq!(record["redacted"], json!(["/user/email", "/items/*/token"]));
            assert_eq!(record["response"]["bytes"], CLEAN.len(), "{record}");
        }
        let (got, record) =
            lab.asked(json!({"method": "GET", "url": path("raw", &whole), "h2": h2}));
        assert_eq!(got["data"], SECRETS, "{got}");
        for kept in ["etag", "content-digest", "accept-ranges", "x-kept"] {
            assert!(header(&got, kept).is_some(), "{kept}: {got}");
        }
        assert_eq!(record["redacted"], json!([]), "{record}");
        // Nothing there that the pointers mean.
        let other = r#"{"users":[ {"email":"bob@acme.example"} ],"token":1}"#;
        let other_answer = answer("200 OK", JSON, other);
        let (got, record) =
            lab.asked(json!({"method": "GET", "url": path("say", &other_answer), "h2": h2}));
        assert_eq!(got["data"], other, "{got}");
        assert_eq!(record["redacted"], json!([]), "{record}");
    }
}

#[test]
fn what_cannot_be_read_without_doubt_is_withheld() {
    let mut lab = Lab::ordinary(POLICY, "");
    let gzip = "content-encoding: gzip\r\n";
    let twice = r#"{"user":{"email":"ann@acme.example"},"us\u0065r":{}}"#;
    for (name, raw) in [
        (
            "gzip",
            answer(
                "200 OK",
                &format!("{JSON}{gzip}"),
                "\u{1f}\u{8b}\u{8} ann@acme.example",
            ),
        ),
        (
            "HTML",
            answer("200 OK", "content-type: text/html\r\n", SECRETS),
        ),
        ("no type", answer("200 OK", "", SECRETS)),
        (
            "part",
            answer(
                "206 Partial Content",
                &format!("{JSON}content-range: bytes 0-1/2\r\n"),
                SECRETS,
            ),
        ),
        ("a name twice", answer("200 OK", JSON, twice)),
        (
            "two texts",
            answer("200 OK", JSON, &format!("{SECRETS}{SECRETS}")),
        ),
        (
            "byte order mark",
            answer("200 OK", JSON, &format!("\u{ef}\u{bb}\u{bf}{SECRETS}")),
        ),
        (
            "failure",
            answer(
                "500 Oops",
                "content-type: text/plain\r\n",
                "no such user ann@acme.example",
            ),
        ),
    ] {
        for h2 in [false, true] {
            let (got, record) =
                lab.asked(json!({"method": "GET", "url": path("say", &raw), "h2": h2}));
            assert_eq!(got["status"], 502, "{name}: {got}");
            assert!(
                got["data"]
                    .as_str()
                    .unwrap()
                    .contains("response_unreadable"),
                "{name}: {got}"
            );
            innocent(&got);
            assert_eq!(record["verdict"], "ERROR", "{name}: {record}");
            assert_eq!(record["reason"]["code"], "response_unreadable", "{name}");
            assert_eq!(record["redacted"], json!([]), "{name}");
            innocent(&record["reason"]);
        }
        let (got, _) = lab.asked(json!({"method": "GET", "url": path("raw", &raw)}));
        assert!(
            got["status"] != 502 && got["data"].as_str().unwrap().contains("ann@acme"),
            "{name}: {got}"
        );
    }
    // Cut on its way, it is no answer at all.
    let cut = format!(
        "HTTP/1.1 200 OK\r\n{JSON}transfer-encoding: chunked\r\n\r\n5\r\n{{\"a\":\r\nnonsense"
    );
    let (got, record) = lab.asked(json!({"method": "GET", "url": path("say", &cut)}));
    assert_eq!(got["status"], 502, "{got}");
    assert_eq!(record["reason"]["code"], "upstream_truncated", "{record}");
    // In HTTP/2 from the upstream too.
    let said =
        json!({"headers": [[":status", "200"], ["content-type", "text/html"]], "body": SECRETS});
    let url = format!("https://two.example/say/{}", base64(&said.to_string()));
    let (got, _) = lab.asked(json!({"method": "GET", "url": url, "h2": true}));
    assert_eq!(got["status"], 502, "{got}");
    innocent(&got);
}

#[test]
fn an_answer_without_a_body_is_no_trouble() {
    let mut lab = Lab::ordinary(POLICY, "");
    let tagged = format!("{JSON}etag: \"1\"\r\n");
    for h2 in [false, true] {
        let raw = format!("HTTP/1.1 200 OK\r\n{tagged}content-length: 112\r\n\r\n");
        let (got, record) =
            lab.asked(json!({"method": "HEAD", "url": path("say", &raw), "h2": h2}));
        assert_eq!(
            (&got["status"], &got["data"]),
            (&json!(200), &json!("")),
            "{got}"
        );
        for gone in ["content-length", "etag"] {
            assert_eq!(
                header(&got, gone),
                None,
                "not true of what GET gives: {gone}: {got}"
            );
        }
        assert_eq!(
            (&record["verdict"], &record["redacted"]),
            (&json!("ALLOW"), &json!([]))
        );
        for (line, headers) in [
            ("204 No Content", "x-kept: 1\r\n"),
            ("304 Not Modified", "x-kept: 1\r\netag: \"1\"\r\n"),
            ("200 OK", "x-kept: 1\r\ncontent-length: 0\r\n"),
            (
                "302 Found",
                "x-kept: 1\r\nlocation: /b\r\ncontent-length: 0\r\n",
            ),
        ] {
            let raw = format!("HTTP/1.1 {line}\r\n{headers}\r\n");
            let (got, record) =
                lab.asked(json!({"method": "GET", "url": path("say", &raw), "h2": h2}));
            assert_eq!(got["status"].to_string(), line[..3], "{got}");
            assert_eq!(
                (&got["data"], header(&got, "x-kept")),
                (&json!(""), Some("1")),
                "{got}"
            );
            assert_eq!(record["verdict"], "ALLOW", "{record}");
        }
        // The end of the stream comes after the head: whether there is a body shows late.
        for (status, kind) in [("204", "x-kept"), ("200", "content-type")] {
            let said =
                json!({"headers": [[":status", status], [kind, "application/json"]], "body": ""});
            let url = format!("https://two.example/say/{}", base64(&said.to_string()));
            let (got, record) = lab.asked(json!({"method": "GET", "url": url, "h2": h2}));
            assert_eq!(
                (got["status"].to_string(), &got["data"]),
                (status.to_owned(), &json!("")),
                "{got}"
            );
            assert_eq!(record["verdict"], "ALLOW", "{record}");
        }
    }
}

#[test]
fn a_real_server_is_asked_for_all_of_it_in_clear() {
    let mut lab = Lab::ordinary(POLICY, "");
    let clean = USER.replace("ann@acme.example", "[redacted]");
    let user = "https://api.orders.example/open/user";
    for h2 in [false, true] {
        let ranged = json!([["range", "bytes=0-9"], ["accept-encoding", "gzip"]]);
        let (got, record) =
            lab.asked(json!({"method": "GET", "url": user, "headers": ranged, "h2": h2}));
        assert_eq!(
            (&got["status"], &got["data"]),
            (&json!(200), &json!(clean)),
            "{got}"
        );
        for gone in ["content-encoding", "etag", "accept-ranges", "content-range"] {
            assert_eq!(header(&got, gone), None, "{gone}: {got}");
        }
        assert_eq!(
            record["redacted"],
            json!(["/user/email", "/user/phone"]),
            "{record}"
        );
        assert_eq!(record["stripped"], json!(["range"]), "{record}");
        let (got, _) = lab.asked(json!({"method": "HEAD", "url": user, "h2": h2}));
        assert_eq!(
            (&got["status"], header(&got, "content-length")),
            (&json!(200), None),
            "{got}"
        );
        // What is not redacted is still had in part, and compressed.
        let raw = "https://api.orders.example/open/user/raw";
        let only = json!([["range", "bytes=0-9"], ["accept-encoding", "identity"]]);
        let (got, record) =
            lab.asked(json!({"method": "GET", "url": raw, "headers": only, "h2": h2}));
        assert_eq!(
            (&got["status"], &got["data"]),
            (&json!(206), &json!(USER[..10])),
            "{got}"
        );
        assert_eq!(record["stripped"], json!([]), "{record}");
        let (got, _) = lab.asked(json!({"method": "GET", "url": raw, "h2": h2}));
        assert_eq!(header(&got, "content-encoding"), Some("gzip"), "{got}");
    }
    for version in ["--http1.1", "--http2"] {
        let mut curl = lab.agent.governed(&lab.world, "probe", "curl");
        curl.args([
            "--silent",
            "--show-error",
            "--fail",
            "--compressed",
            version,
            user,
        ]);
        let output = curl.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), clean, "{output:?}");
    }
}

/// Asks for a JSON text of so many bytes, whose second half comes so many seconds later.
fn half(length: usize, seconds: f32) -> Value {
    json!({"do": "ask", "method": "GET", "url": format!("https://odd.example/half/{length}/{seconds}")})
}

impl Lab {
    /// Waits until the first half of it is on its way.
    fn halfway(&mut self) {
        let line = self.servers[0].line(Duration::from_secs(10)).unwrap();
        assert_eq!(line, "half");
        std::thread::sleep(Duration::from_millis(300));
    }
}

#[test]
fn held_responses_have_bounded_room() {
    let mut lab = Lab::ordinary(POLICY, "limits: { held_bytes: 1MiB }\n");
    let mut slow = lab.another(Program::Ordinary);
    slow.tell(&half(700_000, 8.0).to_string()).unwrap();
    lab.halfway();
    let got = lab.ask(half(700_001, 0.1));
    assert_eq!(got["status"], 503, "{got}");
    assert_eq!(header(&got, "retry-after"), Some("1"), "{got}");
    let problem = got["data"].as_str().unwrap();
    assert!(problem.contains("\"code\":\"held_bytes\""), "{got}");
    assert!(problem.contains("limits.held_bytes"), "{got}");
    innocent(&got);
    let record = lab.record_of("held_bytes");
    assert_eq!(record["verdict"], "LIMIT", "{record}");
    assert_eq!(record["response"]["status"], 503, "{record}");
    // There is room for a small one.
    let small = answer("200 OK", JSON, SECRETS);
    let got = lab.ask(json!({"do": "ask", "method": "GET", "url": path("say", &small)}));
    assert_eq!(got["data"], CLEAN, "{got}");
    let first: Value = serde_json::from_str(&slow.line(Duration::from_secs(15)).unwrap()).unwrap();
    assert_eq!(first["status"], 200, "{first}");
    let text = first["data"].as_str().unwrap();
    assert!(
        text.starts_with(r#"{"user":{"email":"[redacted]"}"#),
        "{}",
        &text[..60]
    );
    assert!(
        text.ends_with("xx\"}") && text.len() == 700_000 - 6,
        "{}",
        text.len()
    );
    // Its room is free again, many times.
    for _ in 0..2 {
        let got = lab.ask(half(700_001, 0.1));
        assert_eq!(got["status"], 200, "{}", lab.agent.log());
    }
}

#[test]
fn what_is_held_is_revoked() {
    let mut lab = Lab::ordinary(POLICY, "");
    // A change of something else does nothing to it.
    for (from, to, expected) in [
        ("/open/user/raw", "/open/other", 200),
        ("/half/", "/full/", 403),
    ] {
        lab.client.tell(&half(5000, 6.0).to_string()).unwrap();
        lab.halfway();
        lab.reload(&POLICY.replace(from, to));
        let line = lab.client.line(Duration::from_secs(10)).unwrap();
        let got: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(got["status"], expected, "{got}");
        innocent(&got);
    }
    let record = lab.record_of("revoked");
    assert_eq!(record["verdict"], "DENY", "{record}");
}

#[test]
fn an_explanation_tells_what_would_be_redacted() {
    let lab = Lab::under("probe", POLICY);
    let explain = |url: &str| -> Value {
        let arguments = ["GET", url, "--workload", "probe", "-o", "json"];
        let output = lab.agent.output(&lab.world, "explain", &arguments).unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let told = explain("https://api.orders.example/open/user");
    assert_eq!(
        told["response_redacted"],
        json!(["/user/email", "/user/phone"]),
        "{told}"
    );
    let told = explain("https://api.orders.example/open/user/raw");
    assert_eq!(told["response_redacted"], json!([]), "{told}");
}
