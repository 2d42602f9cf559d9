//! Requests and answers that overlap: uploads nobody wants, bodies that wait to be asked for, clients that send no more.
use super::*;
use std::process::Output;

const POLICY: &str = r#"
version: 1
workloads: { probe: {} }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
  two: { hosts: [two.example], tls: { ca: "file:server-ca.pem" } }
  down: { hosts: [down.example], tls: { ca: "file:server-ca.pem" } }
roles:
  user:
    - api: odd
      allow: [{ route: "* /**" }]
      deny: [{ route: "* /refused" }]
    - api: two
      allow: [{ route: "* /**" }]
      deny: [{ route: "* /refused" }]
    - api: down
      allow: [{ route: "* /**" }]
grants:
  - { role: user, to: { workload: probe } }
"#;

/// What a program prints that was given `arguments`.
fn output(lab: &Lab, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Output {
    let mut command = lab.agent.governed(&lab.world, "probe", program);
    command.args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A file of so many zeroes that everybody can read, and that takes no room.
fn zeroes(lab: &Lab, bytes: u64) -> String {
    let path = lab.world.directory().join(format!("zeroes-{bytes}"));
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(bytes).unwrap();
    path.display().to_string()
}

const PYTHON: &str = "
import sys, requests
try:
    answer = requests.post(sys.argv[1], data=open(sys.argv[2], 'rb'), timeout=60)
    print(answer.status_code, answer.json()['code'])
except Exception as error:
    print('failed', repr(error))
";

const NODE: &str = "
const [url, path] = process.argv.slice(-2);
const request = require('https').request(url, { method: 'POST' }, (answer) => {
  let body = '';
  answer.on('data', (part) => (body += part));
  answer.on('end', () => { console.log(answer.statusCode, JSON.parse(body).code); process.exit(0); });
});
request.on('error', (error) => console.log('failed', error.message));
require('fs').createReadStream(path).pipe(request);
";

#[test]
fn real_programs_that_upload_what_is_refused_are_told_so() {
    let lab = Lab::ordinary(POLICY, "");
    let huge = zeroes(&lab, 1 << 30);
    let large = zeroes(&lab, 64 << 20);
    for host in ["odd.example", "two.example"] {
        let url = format!("https://{host}/refused");
        // Asking first, which curl does over HTTP/1.1, not asking, and over HTTP/2.
        for how in [
            &["--http1.1"][..],
            &["--http1.1", "-H", "Expect:"],
            &["--http2"],
        ] {
            let mut arguments = vec!["--silent", "--show-error", "--max-time", "60", "-X", "POST"];
            arguments.extend(["--write-out", "\n%{http_code} %{time_total}", "-T", &huge]);
            arguments.extend(how);
            arguments.push(&url);
            let output = output(&lab, "curl", &arguments);
            let text = text(&output);
            assert!(
                text.contains("\"code\":\"denied_by_rule\""),
                "{how:?}: {output:?}"
            );
            assert!(text.contains("\n403 "), "{how:?}: {output:?}");
        }
        let python = lab.world.directory().join("python/bin/python3");
        let answered = output(&lab, python, &["-c", PYTHON, &url, &large]);
        assert_eq!(text(&answered), "403 denied_by_rule\n", "{answered:?}");
        let answered = output(&lab, "node", &["-e", NODE, &url, &large]);
        assert_eq!(text(&answered), "403 denied_by_rule\n", "{answered:?}");
    }
    let refused = |record: &Value| record["reason"]["code"] == "denied_by_rule";
    assert_eq!(lab.records(refused), 10, "one record for each");
    assert_eq!(
        lab.records(|record| record["upstream"] != Value::Null),
        0,
        "somebody heard of it"
    );
}

#[test]
fn a_body_is_asked_for_once_the_policy_allows_it() {
    let mut lab = Lab::new();
    let head = |path: &str, expect: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: odd.example\r\ncontent-type: application/json\r\n\
             content-length: 16\r\nexpect: {expect}\r\nconnection: close\r\n\r\n"
        )
    };
    let body = r#"{"state":"open"}"#;
    for path in ["/stream", "/json"] {
        lab.open("odd.example");
        lab.ask(json!({"do": "send", "data": head(path, "100-continue")}));
        let asked = lab.ask(json!({"do": "read", "wait": 5, "until": "\r\n\r\n"}));
        assert_eq!(
            asked["data"], "HTTP/1.1 100 Continue\r\n\r\n",
            "{path}: {asked}"
        );
        lab.ask(json!({"do": "send", "data": body}));
        let answer = lab.ask(json!({"do": "read", "wait": 5}));
        let data = answer["data"].as_str().unwrap();
        assert_eq!(status(data), 200, "{path}: {answer}");
        assert_eq!(echoed(data)["body"], body, "{path}");
        assert_eq!(header(&echoed(data), "expect"), None, "{path}");
    }
    for (path, expect, expected) in [
        ("/secret", "100-continue", 403),
        ("/a%2fb", "100-continue", 400),
        ("/stream", "200-maybe", 417),
    ] {
        lab.open("odd.example");
        lab.ask(json!({"do": "send", "data": head(path, expect)}));
        let answer = lab.ask(json!({"do": "read", "wait": 5}));
        let data = answer["data"].as_str().unwrap();
        assert_eq!(status(data), expected, "{path}: {answer}");
        assert!(!data.contains("100 Continue"), "{path}: {answer}");
    }
}

#[test]
fn who_sends_no_more_is_answered_and_who_is_gone_is_not_waited_for() {
    let mut lab = Lab::under("probe", POLICY);
    // Waits for its answer without being able to send anything: `shutdown(SHUT_WR)`.
    lab.open("odd.example");
    lab.ask(json!({"do": "send", "data": "GET /silent-2 HTTP/1.1\r\nhost: odd.example\r\n\r\n"}));
    lab.ask(json!({"do": "end"}));
    let answer = lab.ask(json!({"do": "read", "wait": 10}));
    assert_eq!(status(answer["data"].as_str().unwrap()), 200, "{answer}");
    assert_eq!(answer["end"], "closed", "nothing more can come: {answer}");
    let record = lab.record("it", |record| record["request"]["path"] == "/silent-2");
    assert_eq!(record["reason"], Value::Null, "{record}");
    // Gone, while the upstream still thinks.
    lab.open("odd.example");
    lab.ask(json!({"do": "send", "data": "GET /silent-60 HTTP/1.1\r\nhost: odd.example\r\n\r\n"}));
    std::thread::sleep(Duration::from_millis(300));
    lab.ask(json!({"do": "close"}));
    let record = lab.record_of("client_gone");
    assert_eq!(record["request"]["path"], "/silent-60", "{record}");
}

#[test]
fn interim_answers_and_trailers_break_nothing() {
    let mut lab = Lab::ordinary(POLICY, "");
    for h2 in [false, true] {
        for (path, data) in [("/hints", None), ("/trailers", Some("ok"))] {
            let url = format!("https://odd.example{path}");
            let (got, record) = lab.asked(json!({"method": "GET", "url": url, "h2": h2}));
            assert_eq!(got["status"], 200, "{path}: {got}");
            assert!(data.is_none_or(|data| got["data"] == data), "{path}: {got}");
            assert_eq!(record["reason"], Value::Null, "{path}: {record}");
        }
        // A stream that the upstream resets half-way is no whole answer.
        let (got, record) =
            lab.asked(json!({"method": "GET", "url": "https://two.example/reset", "h2": h2}));
        assert!(got["error"].is_string(), "{got}");
        assert_eq!(record["reason"]["code"], "upstream_truncated", "{record}");
    }
}

#[test]
fn grpc_clients_are_told_trouble_from_refusal() {
    let settings = "limits: { response_head: 2s }\n";
    let mut lab = Lab::ordinary(POLICY, settings);
    for (url, status, code) in [
        ("https://two.example/refused", "7", "denied_by_rule"),
        ("https://two.example/a%2fb", "3", "encoded"),
        ("https://two.example/silent", "4", "upstream_timeout"),
        (
            "https://down.example/shop.Orders/List",
            "14",
            "upstream_connect",
        ),
        ("https://odd.example/close", "14", "upstream_reset"),
    ] {
        let typed = json!([["content-type", "application/grpc"], ["te", "trailers"]]);
        let (got, record) = lab.asked(
            json!({"method": "POST", "url": url, "headers": typed, "body": "\0\0\0\0\0", "h2": true}),
        );
        assert_eq!(got["status"], 200, "{url}: {got}");
        assert_eq!(field(&got, "grpc-status"), Some(status), "{url}: {got}");
        let message = field(&got, "grpc-message").unwrap();
        assert!(message.contains("tollgate explain"), "{url}: {message}");
        assert_eq!(got["data"], "", "{url}: {got}");
        let recorded = record["reason"]["code"].as_str().unwrap();
        assert!(recorded.contains(code), "{url}: {record}");
    }
}

fn field<'a>(got: &'a Value, name: &str) -> Option<&'a str> {
    let pairs = got["headers"].as_array()?;
    pairs.iter().find(|pair| pair[0] == name)?[1].as_str()
}

/// A client that sends all before it reads, as most do, must not be reset before it has read why.
#[test]
fn who_uploads_what_is_refused_hears_so() {
    let mut lab = Lab::new();
    let length = 20_000_000;
    let body = "x".repeat(length);
    for (path, expected) in [("/secret", 403), ("/a%2fb", 400)] {
        lab.open("odd.example");
        let raw = format!(
            "POST {path} HTTP/1.1\r\nhost: odd.example\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let sent = lab.ask(json!({"do": "send", "data": raw}));
        assert!(sent.get("error").is_none(), "{path}: {sent}");
        let answer = lab.ask(json!({"do": "read", "wait": 5}));
        let data = answer["data"].as_str().unwrap();
        assert_eq!(status(data), expected, "{path}: {answer}");
        assert_eq!(answer["end"], "closed", "{path}: {answer}");
        lab.ask(json!({"do": "close"}));
    }
}
