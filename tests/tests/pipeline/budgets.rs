//! Budgets that the agent holds: of requests, of tokens and money by what the provider says, and of bytes.
use super::redaction::{answer, base64};
use super::*;

const BASE: &str = r#"
version: 1
workloads: { probe: {}, other: {}, watched: {} }
identities:
  ann: { token: ANN }
  bob: { token: BOB }
apis:
  odd: { hosts: [odd.example], meter: openai, tls: { ca: "file:server-ca.pem" } }
  down: { hosts: [down.example], tls: { ca: "file:server-ca.pem" } }
roles:
  caller:
    - { api: odd, allow: [{ route: "GET|POST /**" }, { route: "GET /socket", websocket: true }], deny: [{ route: GET /secret }] }
    - { api: odd, allow: [{ route: "POST /raw/{answer}" }], response: { redact: [/id] } }
    - { api: down, allow: [{ route: GET /** }] }
grants:
  - { role: caller, to: { workload: [probe, other] } }
  - { role: caller, to: { workload: watched }, mode: observe }
prices:
  small-*: { input: 1, cached: 0.10, output: 2 }
  free: { input: 0, output: 0 }
budgets:
"#;
const JSON: &str = "content-type: application/json\r\n";
const EVENTS: &str = "content-type: text/event-stream\r\n";

fn policy(budgets: &str) -> String {
    with(
        budgets,
        &identity::issue(&harness::agent::program().unwrap()).1,
    )
}

fn with(budgets: &str, ann: &str) -> String {
    let other = identity::issue(&harness::agent::program().unwrap()).1;
    let base = BASE.replace("ANN", ann).replace("BOB", &other);
    format!("{base}  {budgets}\n")
}

impl Lab {
    /// What was spent of each account: budget, unit, identity, amount.
    fn spent(&self) -> Vec<(String, String, Value, Value)> {
        let output = self.agent.output(&self.world, "usage", &["-o", "json"]);
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        let usage: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let text = |usage: &Value, name: &str| usage[name].as_str().unwrap().to_owned();
        let line = |u: &Value| {
            (
                text(u, "budget"),
                text(u, "unit"),
                u["identity"].clone(),
                u["spent"].clone(),
            )
        };
        usage.iter().map(line).collect()
    }

    /// Of the first account, once it is `expected`: a settle comes with the end of an answer.
    fn one_spent(&self, expected: impl Into<Value>) {
        let expected = expected.into();
        let seen = eventually(Duration::from_secs(5), || {
            (self.spent().first()?.3 == expected).then_some(())
        });
        assert!(seen.is_some(), "not {expected}: {:?}", self.spent());
    }

    /// A call to a model, and what it is answered.
    fn call(&mut self, body: &str, raw: &str) -> (u16, String) {
        let target = format!("/say/{}", base64(raw));
        let (status, data, _) = self.exchange(&post(&target, body));
        (status, data)
    }
}

fn post(target: &str, body: &str) -> String {
    request(
        &format!("POST {target} HTTP/1.1"),
        &format!("{JSON}content-length: {}\r\n", body.len()),
    ) + body
}

/// Windows of a minute must not end between two requests.
fn not_at_the_border(seconds: i64, window: i64) {
    let left = window - jiff::Timestamp::now().as_second().rem_euclid(window);
    if left < seconds {
        std::thread::sleep(Duration::from_secs(left.unsigned_abs() + 1));
    }
}

const SMALL: &str = r#"{"model":"small-1","messages":[],"max_tokens":100}"#;

fn usage(input: u64, output: u64) -> String {
    format!(r#"{{"choices":[],"usage":{{"prompt_tokens":{input},"completion_tokens":{output}}}}}"#)
}

#[test]
fn requests_beyond_a_budget_are_told_when_to_come_again() {
    not_at_the_border(30, 60);
    let mut lab = Lab::under(
        "probe",
        &policy("few: { for: { workload: probe }, limits: { requests: 2/min } }"),
    );
    let get = |target: &str| request(&format!("GET {target} HTTP/1.1"), "");
    // What is denied, and what nobody was there for, costs nothing.
    assert_eq!(lab.exchange(&get("/secret")).0, 403);
    let open = json!({"do": "open", "host": "down.example", "address": ODD.to_string()});
    assert!(lab.ask(open).get("error").is_none());
    assert_eq!(lab.got("down.example", "/a").0, 502);
    lab.one_spent(0);
    for _ in 0..2 {
        assert_eq!(lab.exchange(&get("/a")).0, 200);
    }
    lab.one_spent(2);
    let (status, data, _) = lab.exchange(&get("/a"));
    assert_eq!(status, 429, "{data}");
    let seconds = data.split("retry-after: ").nth(1).unwrap();
    let seconds: u64 = seconds.split("\r\n").next().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    for word in [
        "budget `few` has 0 requests left of 2 requests/min",
        "raise `requests`",
    ] {
        assert!(data.contains(word), "{word}: {data}");
    }
    let record = lab.record_of("budget_requests");
    assert_eq!(
        (&record["verdict"], &record["budget"]),
        (&json!("LIMIT"), &json!("few"))
    );
    let passed = lab.record("one that passed", |record| record["verdict"] == "ALLOW");
    assert_eq!(passed["budget"], "few");
    // More is given: what was spent stays.
    lab.reload(&policy(
        "few: { for: { workload: probe }, limits: { requests: 3/min } }",
    ));
    assert_eq!(lab.exchange(&get("/a")).0, 200);
    assert_eq!(lab.exchange(&get("/a")).0, 429);
    // Killed, it has forgotten nothing.
    lab.agent.kill().unwrap();
    lab.agent.start(&lab.world).unwrap();
    lab.one_spent(3);
    assert_eq!(lab.exchange(&get("/a")).0, 429);
}

#[test]
fn each_identity_has_its_own() {
    not_at_the_border(60, 3600);
    let (token, public) = identity::issue(&harness::agent::program().unwrap());
    let budget = "own: { for: { workload: probe }, each: identity, limits: { requests: 1/hour } }";
    let mut lab = Lab::under("probe", &with(budget, &public));
    let get = |token: &str| {
        let proof = match token {
            "" => String::new(),
            token => format!("authorization: Bearer {token}\r\n"),
        };
        request("GET /a HTTP/1.1", &proof)
    };
    for proof in [&*token, ""] {
        assert_eq!(lab.exchange(&get(proof)).0, 200);
        assert_eq!(lab.exchange(&get(proof)).0, 429);
    }
    let requests = |identity: Value| ("own".to_owned(), "requests".to_owned(), identity, json!(1));
    assert_eq!(lab.spent(), [requests(Value::Null), requests(json!("ann"))]);
    let table = lab
        .agent
        .output(&lab.world, "usage", &["--identity", "ann"])
        .unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    let shown = table.contains("HOLDER") && table.contains(" ann ");
    assert!(shown && !table.contains("(no identity)"), "{table}");
}

#[test]
fn tokens_are_reserved_and_settled_by_what_the_answer_says() {
    not_at_the_border(60, 86_400);
    let budget = "llm: { for: { workload: probe }, limits: { tokens: 1000/day } }";
    let mut lab = Lab::under("probe", &policy(budget));
    let json = |text: &str| answer("200 OK", JSON, text);
    assert_eq!(lab.call(SMALL, &json(&usage(30, 12))).0, 200);
    lab.one_spent(42);
    // In events, in chunks, and with a length.
    let events = format!(
        "data: {{\"usage\":null}}\n\ndata: {}\n\ndata: [DONE]\n\n",
        usage(5, 3)
    );
    let (first, second) = events.split_at(40);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\n{EVENTS}transfer-encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    for (raw, spent) in [(chunked, 50), (answer("200 OK", EVENTS, &events), 58)] {
        let (status, data) = lab.call(SMALL, &raw);
        assert_eq!(status, 200, "{data}");
        lab.one_spent(spent);
    }
    // A failure without a count is given back; a success without one is not.
    assert_eq!(lab.call(SMALL, &answer("500 Oh", JSON, "{}")).0, 500);
    lab.one_spent(58);
    assert_eq!(lab.call(SMALL, &json("{}")).0, 200);
    let most = SMALL.len() as u64 + 100;
    lab.one_spent(58 + most);
    // Nor is one of somebody in between, who cannot say what was done.
    assert_eq!(lab.call(SMALL, &answer("504 Late", JSON, "{}")).0, 504);
    lab.one_spent(58 + 2 * most);
    // Nor is an answer that the client does not wait for.
    let begun = format!(
        "HTTP/1.1 200 OK\r\n{EVENTS}content-length: 1000\r\n\r\ndata: {}\n\n",
        usage(1, 1)
    );
    lab.open("odd.example");
    let call = post(&format!("/say/{}", base64(&begun)), SMALL);
    lab.ask(json!({"do": "send", "data": call}));
    lab.ask(json!({"do": "read", "wait": 5, "until": "data:"}));
    lab.ask(json!({"do": "close"}));
    lab.record_of("client_gone");
    lab.one_spent(58 + 3 * most);
    // What is not for a model is not counted, and more than was reserved is, in full.
    assert_eq!(lab.exchange(&request("GET /a HTTP/1.1", "")).0, 200);
    assert_eq!(lab.call(SMALL, &json(&usage(600, 300))).0, 200);
    lab.one_spent(958 + 3 * most);
    let (status, data) = lab.call(SMALL, &json(&usage(1, 1)));
    assert_eq!(status, 403, "{data}");
    assert!(
        data.contains("budget_tokens")
            && data.contains("budget `llm` has 0 tokens left of 1000 tokens/day"),
        "{data}"
    );
    assert!(!data.contains("retry-after"), "{data}");
    let compressed =
        post("/a", "x").replace("content-length", "content-encoding: gzip\r\ncontent-length");
    let (_, data, _) = lab.exchange(&compressed);
    assert!(data.contains("budget_unmetered"), "{data}");
    for body in [r#"{"n":1,"n":99}"#, r#"{"background":true}"#] {
        let (_, data, _) = lab.exchange(&post("/a", body));
        assert!(data.contains("budget_unmetered"), "{data}");
    }
    for target in ["/a?%24fields=usageMetadata.promptTokenCount", "/a?fields=x"] {
        let (_, data, _) = lab.exchange(&post(target, SMALL));
        assert!(data.contains("budget_unmetered"), "{data}");
    }
    let huge = request("POST /a HTTP/1.1", "content-length: 16777217\r\n");
    let (status, data, _) = lab.exchange(&huge);
    assert_eq!(
        (status, data.contains("larger than 16 MiB")),
        (403, true),
        "{data}"
    );
}

/// What `{"choices":[],"usage":{"prompt_tokens":30,"completion_tokens":12}}` is compressed to.
const GZIP: &str = "\u{1f}\u{8b}\u{8}\u{0}\u{0}\u{0}\u{0}\u{0}\u{2}\u{ff}\u{ab}\u{56}\u{4a}\u{ce}\u{c8}\u{cf}\u{4c}\u{4e}\u{2d}\u{56}\u{b2}\u{8a}\u{8e}\u{d5}\u{51}\u{2a}\u{2d}\u{4e}\u{4c}\u{4f}\u{55}\u{b2}\u{aa}\u{56}\u{2a}\u{28}\u{ca}\u{cf}\u{2d}\u{28}\u{89}\u{2f}\u{c9}\u{cf}\u{4e}\u{cd}\u{3}\u{ca}\u{19}\u{1b}\u{e8}\u{28}\u{25}\u{3}\u{45}\u{72}\u{52}\u{4b}\u{32}\u{f3}\u{f3}\u{e0}\u{c2}\u{86}\u{46}\u{b5}\u{b5}\u{0}\u{85}\u{b8}\u{84}\u{3b}\u{42}\u{0}\u{0}\u{0}";

#[test]
fn answers_that_are_changed_or_compressed_are_read_too() {
    not_at_the_border(60, 86_400);
    let budget = "llm: { for: { workload: probe }, limits: { tokens: 100k/day } }";
    let mut lab = Lab::under("probe", &policy(budget));
    let gzip = answer("200 OK", &format!("{JSON}content-encoding: gzip\r\n"), GZIP);
    let (status, data) = lab.call(SMALL, &gzip);
    assert_eq!(
        (status, data.contains("\"prompt_tokens\":30")),
        (200, true),
        "{data}"
    );
    lab.one_spent(42);
    let whole = usage(30, 12).replacen('{', r#"{"id":"x","#, 1);
    let event = format!("data: {whole}\n\n");
    for (raw, spent) in [
        (answer("200 OK", JSON, &whole), 84),
        (answer("200 OK", EVENTS, &event), 126),
    ] {
        let (status, data, _) = lab.exchange(&post(&format!("/raw/{}", base64(&raw)), SMALL));
        assert_eq!((status, data.contains("[redacted]")), (200, true), "{data}");
        lab.one_spent(spent);
    }
    // Piece by piece, where there are several.
    let (status, data, _) = lab.exchange(&post("/gzip-noise/200000", SMALL));
    let body = data.split_once("\r\n\r\n").unwrap().1;
    assert_eq!((status, body.matches(['x', 'y']).count()), (200, 200_000));
    let most = SMALL.len() as u64 + 100;
    lab.one_spent(126 + most);
    // The server compresses what it was sent, which holds no count: the reservation stays.
    let (status, data, _) = lab.exchange(&post("/gzip", SMALL));
    assert_eq!(status, 200);
    assert!(data.contains("\"accept-encoding\", \"identity\""), "{data}");
    lab.one_spent(126 + 2 * most);
    let (status, data, _) = lab.exchange(&post("/brotli", SMALL));
    assert_eq!((status, data.contains("content-encoding: br")), (200, true));
    lab.one_spent(126 + 3 * most);
}

#[test]
fn money_is_counted_by_price_and_what_has_none_is_refused() {
    not_at_the_border(60, 86_400);
    let budget = "llm: { for: { workload: probe }, limits: { usd: 0.002/day } }";
    let mut lab = Lab::under("probe", &policy(budget));
    let ok = answer("200 OK", JSON, &usage(100, 10));
    assert_eq!(lab.call(SMALL, &ok).0, 200);
    lab.one_spent("0.00012");
    for body in [
        r#"{"model":"large","messages":[],"max_tokens":1}"#,
        r#"{"model":"small-1","models":["large"],"messages":[],"max_tokens":1}"#,
        r#"{"messages":[],"max_tokens":1}"#,
        "not JSON",
        "",
    ] {
        let (status, data) = lab.call(body, &ok);
        assert_eq!(
            (status, data.contains("budget_price")),
            (403, true),
            "{body}: {data}"
        );
        assert!(data.contains("prices:"), "{data}");
    }
    // It may say 32768 tokens, which is too dear; a free model always has room.
    let (status, data) = lab.call(r#"{"model":"small-1","messages":[]}"#, &ok);
    assert_eq!((status, data.contains("budget_usd")), (403, true), "{data}");
    assert!(
        data.contains("0.00188 US dollars left of 0.002 US dollars/day"),
        "{data}"
    );
    assert_eq!(lab.call(r#"{"model":"free","messages":[]}"#, &ok).0, 200);
    lab.one_spent("0.00012");
    let (status, data, _) = lab.exchange(
        "GET /socket HTTP/1.1\r\nhost: odd.example\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    );
    assert_eq!(
        (status, data.contains("budget_unmetered")),
        (403, true),
        "{data}"
    );
    let record = lab.record_of("budget_price");
    assert_eq!(
        (&record["verdict"], &record["budget"]),
        (&json!("LIMIT"), &json!("llm"))
    );
}

#[test]
fn a_hundred_at_once_get_no_more_than_there_is() {
    not_at_the_border(120, 86_400);
    let budget =
        "llm: { for: { workload: probe }, limits: { tokens: 3000/day, requests: 90/day } }";
    let lab = Lab::under("probe", &policy(budget));
    // Each may take 150; the answers do not say, so that all of it is spent.
    let program = format!(
        "
import http.client, threading
body, results = {SMALL:?}, []
def call():
    c = http.client.HTTPSConnection('odd.example', timeout=60)
    c.request('POST', '/echo', body, {{'content-type': 'application/json'}})
    results.append(c.getresponse().status)
threads = [threading.Thread(target=call) for _ in range(100)]
for t in threads: t.start()
for t in threads: t.join()
print(sorted(results))
"
    );
    let mut command = lab.agent.governed(&lab.world, "probe", "python3");
    let output = command.args(["-c", &program]).output().unwrap();
    let said: Vec<u16> = serde_json::from_slice(output.stdout.trim_ascii())
        .unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let each = SMALL.len() as u64 + 100;
    let fit = 3000 / each;
    let of = |status: u16| said.iter().filter(|s| **s == status).count() as u64;
    assert_eq!(said.len(), 100);
    assert_eq!((of(200), of(403) + of(429)), (fit, 100 - fit), "{said:?}");
    let spent: Vec<Value> = lab.spent().into_iter().map(|line| line.3).collect();
    assert_eq!(spent, [json!(fit), json!(fit * each)]);
    let warned = eventually(Duration::from_secs(5), || {
        lab.agent.log().contains("tokens are spent").then_some(())
    });
    assert!(warned.is_some(), "nobody was warned");
}

#[test]
fn bytes_that_only_the_agent_can_tell_apart_are_cut() {
    not_at_the_border(60, 86_400);
    // Shared by two workloads: the kernel counts for each alone.
    let budget = "both: { for: { workload: [probe, other] }, limits: { bytes: 2MiB/day } }";
    let mut lab = Lab::under("probe", &policy(budget));
    let get = |target: &str| request(&format!("GET {target} HTTP/1.1"), "");
    let (status, data, _) = lab.exchange(&get("/zeroes/500000"));
    assert_eq!(status, 200);
    assert!(data.len() > 500_000);
    lab.one_spent(500_000);
    lab.open("odd.example");
    lab.ask(json!({"do": "send", "data": get("/zeroes/5000000")}));
    let answer = lab.ask(json!({"do": "read", "wait": 15, "most": 8 << 20}));
    lab.ask(json!({"do": "close"}));
    // No more than what was left. A client that is slow has less: what is under way when it is cut is lost.
    let got = answer["data"].as_str().unwrap().len();
    assert!((100_000..(2 << 20) - 500_000).contains(&got), "{got}");
    assert!(
        !["open", "silent"].contains(&answer["end"].as_str().unwrap()),
        "{}",
        answer["end"]
    );
    let record = lab.record_of("budget_bytes");
    assert_eq!(
        (&record["verdict"], &record["budget"]),
        (&json!("LIMIT"), &json!("both"))
    );
    lab.one_spent(2 << 20);
    let (status, data, _) = lab.exchange(&get("/a"));
    assert_eq!(
        (status, data.contains("budget_bytes")),
        (403, true),
        "{data}"
    );
    // What is sent is counted as well.
    lab.reload(&policy(
        "both: { for: { workload: [probe, other] }, limits: { bytes: 3MiB/day } }",
    ));
    let (status, data, _) = lab.exchange(&post("/sink", &"x".repeat(2_000_000)));
    assert_eq!(
        (status, data.contains("budget_bytes")),
        (403, true),
        "{data}"
    );
    lab.one_spent(3 << 20);
}

#[test]
fn what_is_only_observed_passes_and_is_counted() {
    not_at_the_border(60, 86_400);
    let budget = "few: { for: { workload: watched }, limits: { requests: 1/day } }";
    let mut lab = Lab::under("watched", &policy(budget));
    for _ in 0..3 {
        assert_eq!(lab.exchange(&request("GET /a HTTP/1.1", "")).0, 200);
    }
    lab.one_spent(3);
    let record = lab.record_of("budget_requests");
    assert_eq!(
        (&record["verdict"], &record["budget"]),
        (&json!("WOULD-DENY"), &json!("few"))
    );
}

#[test]
fn a_stream_over_http2_is_settled_and_one_that_is_reset_is_not() {
    not_at_the_border(60, 86_400);
    let two = "  two: { hosts: [two.example], meter: anthropic, tls: { ca: \"file:server-ca.pem\" } }\nroles:\n";
    let entry = "  caller:\n    - { api: two, allow: [{ route: POST /** }] }\n";
    let budget = "llm: { for: { workload: probe }, limits: { tokens: 100k/day } }";
    let policy = policy(budget)
        .replace("roles:\n", two)
        .replace("  caller:\n", entry);
    let mut lab = Lab::ordinary(&policy, "");
    let start = r#"{"type":"message_start","message":{"usage":{"input_tokens":25,"cache_read_input_tokens":10,"output_tokens":1}}}"#;
    let delta = r#"{"type":"message_delta","usage":{"output_tokens":15}}"#;
    let said = json!({
        "headers": [[":status", "200"], ["content-type", "text/event-stream"]],
        "body": format!("event: message_start\ndata: {start}\n\nevent: message_delta\ndata: {delta}\n\n"),
    });
    let call = |path: &str| {
        let body = r#"{"model":"c","messages":[],"max_tokens":50}"#;
        json!({"do": "ask", "method": "POST", "url": format!("https://two.example{path}"), "body": body, "h2": true,
               "headers": [["content-type", "application/json"]]})
    };
    let got = lab.ask(call(&format!("/say/{}", base64(&said.to_string()))));
    assert_eq!(got["status"], 200, "{got}");
    lab.one_spent(50);
    let got = lab.ask(call("/reset"));
    assert!(got.get("error").is_some(), "{got}");
    lab.one_spent(50 + 43 + 50);
}
