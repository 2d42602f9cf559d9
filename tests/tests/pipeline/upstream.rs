//! What goes upstream, and what comes back from there.
use super::*;

#[test]
fn what_goes_upstream_is_canonical_stripped_and_has_the_credential() {
    let mut lab = Lab::new();
    let headers = "authorization: Bearer mine\r\ncookie: a=b\r\nx-api-key: k\r\nx-http-method-override: DELETE\r\n\
                   accept: text/plain\r\nte: trailers\r\n";
    let (status, data, _) = lab.exchange(&request("GET /deep/%61/../b//c?x=%7e HTTP/1.1", headers));
    assert_eq!(status, 200, "{data}");
    let echo = echoed(&data);
    assert_eq!(echo["line"], "GET /deep/b/c?x=~ HTTP/1.1");
    assert_eq!(echo["backwards"], "yek-tob-sredro-tsrif reraeB", "{echo}");
    assert_eq!(header(&echo, "accept"), Some("text/plain"));
    assert_eq!(header(&echo, "host"), Some("odd.example"));
    for gone in [
        "cookie",
        "x-api-key",
        "x-http-method-override",
        "te",
        "connection",
    ] {
        assert_eq!(header(&echo, gone), None, "{gone}");
    }
    let record = lab.record("the call", |record| record["verdict"] == "ALLOW");
    assert_eq!(record["request"]["path"], "/deep/b/c");
    assert_eq!(record["request"]["query_keys"], json!(["x"]));
    assert_eq!(record["credential"], "bot");
    assert_eq!(record["injected"], json!(["authorization"]));
    let stripped = record["stripped"].to_string();
    assert!(
        stripped.contains("cookie") && stripped.contains("x-api-key"),
        "{stripped}"
    );
    assert_eq!(record["workload"], "probe");
    assert!(
        record["process"]["exe"]
            .as_str()
            .unwrap()
            .contains("python"),
        "{record}"
    );
    assert_eq!(record["upstream"]["address"], format!("{ODD}:443"));
    let log = lab.agent.decisions(&lab.world).unwrap();
    let log = serde_json::to_string(&log).unwrap();
    assert!(
        !log.contains("orders-bot-key") && !log.contains("mine"),
        "a value is in the log"
    );
}

#[test]
fn a_body_that_one_rule_stops_reading_and_another_allows_arrives_whole() {
    let mut lab = Lab::new();
    let body: String = (0..20_000).map(|i| format!("{i} ")).collect();
    let head = "POST /either HTTP/1.1\r\nhost: odd.example\r\nconnection: close\r\ncontent-type: application/json";
    let length = body.len();
    let (status, data, _) =
        lab.exchange(&format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}"));
    assert_eq!(status, 200, "{data}");
    assert!(echoed(&data)["body"] == body, "not what was sent");
    let chunks: String = body
        .as_bytes()
        .chunks(700)
        .map(|chunk| {
            format!(
                "{:x}\r\n{}\r\n",
                chunk.len(),
                std::str::from_utf8(chunk).unwrap()
            )
        })
        .collect();
    let (status, data, _) = lab.exchange(&format!(
        "{head}\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
    ));
    assert_eq!(status, 200, "{data}");
    let record = lab.record("the call", |record| record["request"]["path"] == "/either");
    assert_eq!(record["request"]["bytes"], length);
}

#[test]
fn upstream_trouble_is_told_apart_from_a_refusal() {
    let mut lab = Lab::new();
    for (host, code, expected) in [
        ("wrong.example", "upstream_tls", 502),
        ("public.example", "upstream_tls", 502),
        ("inner.example", "upstream_address", 403),
    ] {
        let (status, data) = lab.get(host, "/a");
        assert_eq!(status, expected, "{host}: {data}");
        let record = lab.record_of(code);
        assert_eq!(record["response"]["status"], expected, "{record}");
    }
    // A client that knows an address: what the agent resolves counts.
    for (host, code) in [
        ("nameless.example", "upstream_dns"),
        ("down.example", "upstream_connect"),
    ] {
        let answer = lab.ask(json!({"do": "open", "host": host, "address": ODD.to_string()}));
        assert!(answer.get("error").is_none(), "{answer}");
        let raw = format!("GET /a HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        lab.ask(json!({"do": "send", "data": raw}));
        let answer = lab.ask(json!({"do": "read", "wait": 15}));
        let data = answer["data"].as_str().unwrap();
        assert_eq!(status(data), 502, "{host}: {data}");
        assert!(data.contains(code), "{host}: {data}");
        lab.record_of(code);
    }
    for (target, code) in [
        ("/unasked-upgrade", "upstream_http"),
        ("/garbage", "upstream_http"),
        ("/close", "upstream_reset"),
    ] {
        let (status, data) = lab.get("odd.example", target);
        assert_eq!(status, 502, "{target}: {data}");
        let record = lab.record(target, |record| record["request"]["path"] == target);
        assert_eq!(record["reason"]["code"], code, "{record}");
        assert_eq!(record["verdict"], "ERROR");
    }
}

#[test]
fn a_cut_response_is_an_error_and_no_success() {
    let mut lab = Lab::new();
    for target in ["/cut", "/cut-chunked", "/until-cut"] {
        let (status, data, end) = lab.exchange(&request(&format!("GET {target} HTTP/1.1"), ""));
        assert_eq!(status, 200);
        assert!(
            !data.ends_with("0\r\n\r\n"),
            "{target} looks whole: {data} {end}"
        );
        let record = lab.record(target, |record| record["request"]["path"] == target);
        assert_eq!(record["verdict"], "ERROR", "{record}");
        assert_eq!(record["reason"]["code"], "upstream_truncated");
    }
    // One that ends with its connection is whole if TLS says that this is the end.
    let (status, data, _) = lab.exchange(&request("GET /until-close HTTP/1.1", ""));
    assert_eq!(status, 200, "{data}");
    assert!(data.contains("all of it"), "{data}");
    let record = lab.record("it", |record| record["request"]["path"] == "/until-close");
    assert_eq!(record["reason"], Value::Null, "{record}");
}

#[test]
fn responses_lose_what_would_lead_around_the_agent() {
    let mut lab = Lab::new();
    let (status, data, _) = lab.exchange(&request("GET /headers HTTP/1.1", ""));
    let head = data.to_lowercase();
    assert_eq!(status, 200);
    for gone in ["alt-svc", "set-cookie", "x-hop", "keep-alive: timeout"] {
        assert!(!head.contains(gone), "{gone}: {head}");
    }
    assert!(head.contains("x-kept: 1"), "{head}");
    // A redirect is passed on and not followed.
    let (status, data, _) = lab.exchange(&request("GET /redirect HTTP/1.1", ""));
    assert_eq!(status, 302, "{data}");
}
