//! Connections that no request is read from: passed on by address, or by the name in the TLS hello.
use super::*;

const UNSEEN: &str = r#"
version: 1
workloads: { probe: {}, watched: {}, other: {} }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
  mail: { tcp: ["93.184.216.40:2525"] }
  news: { tcp: ["93.184.216.0/24:2526"] }
  pinned: { sni: [pinned.example] }
  inner: { sni: [inner.example] }
  secret: { sni: [odd2.example] }
roles:
  mailer: [{ api: mail }]
  reader: [{ api: news }]
  banker: [{ api: pinned }, { api: inner }]
  odd-user: [{ api: odd, allow: [{ route: GET /** }] }]
  rest: [{ api: secret }]
grants:
  - { role: mailer, to: { workload: probe }UNTIL }
  - { role: banker, to: { workload: probe } }
  - { role: odd-user, to: { workload: [probe, other] } }
  - { role: reader, to: { workload: other } }
  - { role: rest, to: { workload: other } }
  - { role: odd-user, to: { workload: watched }, mode: observe }
"#;

fn policy(until: &str) -> String {
    UNSEEN.replace("UNTIL", until)
}

/// The lab and a server that speaks first on two ports.
fn lab(workload: &str, policy: &str) -> (Lab, Running) {
    let lab = Lab::under(workload, policy);
    let mut command = lab.world.servers.command("python3");
    command
        .arg("-u")
        .arg(repository().join("tests/servers/greeter.py"))
        .arg(ODD.to_string())
        .args(["2525", "2526"]);
    let mut greeter = Running::start(command).unwrap();
    assert_eq!(greeter.line(Duration::from_secs(10)).unwrap(), "ready");
    (lab, greeter)
}

impl Lab {
    /// Connects and waits for the server's greeting, without a word.
    fn greeted(&mut self, port: u16) -> Value {
        let command = json!({"do": "open", "host": ODD.to_string(), "port": port, "tls": false});
        let answer = self.ask(command);
        assert!(answer.get("error").is_none(), "{answer}");
        self.ask(json!({"do": "read", "wait": 3, "until": "\n"}))
    }
}

impl Lab {
    /// Connects and is reset, before or after it has learnt that it is connected.
    fn refused(&mut self, port: u16) {
        let command = json!({"do": "open", "host": ODD.to_string(), "port": port, "tls": false});
        let mut answer = self.ask(command);
        if answer.get("error").is_none() {
            answer = self.ask(json!({"do": "read", "wait": 3}));
            assert_eq!(answer["data"], "", "{answer}");
        }
        let told = answer.to_string();
        assert!(told.contains("reset"), "{told}");
    }
}

fn of_tcp(record: &Value) -> bool {
    record["coverage"] == "tcp"
}

#[test]
fn a_server_that_speaks_first_is_heard_and_each_direction_ends_by_itself() {
    let (mut lab, _greeter) = lab("probe", &policy(""));
    let greeting = lab.greeted(2525);
    assert_eq!(greeting["data"], "220 welcome\n", "{greeting}");
    lab.ask(json!({"do": "send", "data": "EHLO\n"}));
    assert_eq!(
        lab.ask(json!({"do": "read", "wait": 3, "until": "\n"}))["data"],
        "EHLO\n"
    );
    assert_eq!(lab.records(of_tcp), 0, "on record before its end");
    lab.ask(json!({"do": "end"}));
    let rest = lab.ask(json!({"do": "read", "wait": 3}));
    assert_eq!(
        (&rest["data"], &rest["end"]),
        (&json!("221 heard 5\n"), &json!("closed"))
    );

    let record = lab.record("it", of_tcp);
    assert_eq!(record["verdict"], "ALLOW", "{record}");
    assert_eq!(record["reason"], Value::Null);
    assert_eq!(record["workload"], "probe");
    assert_eq!(record["request"]["scheme"], "tcp");
    assert_eq!(record["request"]["host"], ODD.to_string());
    assert_eq!(record["request"]["port"], 2525);
    assert_eq!(record["request"]["bytes"], 5);
    assert_eq!(record["response"]["bytes"], 12 + 5 + 12);
    assert_eq!(record["upstream"]["address"], format!("{ODD}:2525"));
    assert_eq!(lab.records(of_tcp), 1);
}

#[test]
fn a_connection_without_a_grant_is_reset_and_reaches_nobody() {
    let (mut lab, mut greeter) = lab("probe", &policy(""));
    lab.refused(2526);
    let record = lab.record_of("no_grant");
    assert_eq!(record["verdict"], "DENY", "{record}");
    assert_eq!(record["coverage"], "tcp");
    assert_eq!(record["request"]["port"], 2526);
    assert_eq!(greeter.has_line(), None, "the server was reached");
    // Granted, it passes.
    let wider = policy("").replace(
        "role: reader, to: { workload: other }",
        "role: reader, to: { workload: probe }",
    );
    lab.reload(&wider);
    assert_eq!(lab.greeted(2526)["data"], "220 welcome\n");
    assert_eq!(greeter.line(Duration::from_secs(2)).unwrap(), "accepted");
}

#[test]
fn a_policy_change_cuts_what_it_no_longer_allows_and_nothing_else() {
    let (mut lab, _greeter) = lab("probe", &policy(""));
    assert_eq!(lab.greeted(2525)["data"], "220 welcome\n");
    lab.reload(&policy("").replace("GET /**", "GET /a/**"));
    lab.ask(json!({"do": "send", "data": "still\n"}));
    assert_eq!(
        lab.ask(json!({"do": "read", "wait": 3, "until": "\n"}))["data"],
        "still\n"
    );
    lab.reload(&policy("").replace(
        "role: mailer, to: { workload: probe }",
        "role: mailer, to: { workload: other }",
    ));
    let answer = lab.ask(json!({"do": "read", "wait": 3}));
    assert!(
        answer["end"].as_str().unwrap().starts_with("reset"),
        "{answer}"
    );
    let record = lab.record_of("revoked");
    assert_eq!(
        (&record["verdict"], &record["coverage"]),
        (&json!("DENY"), &json!("tcp"))
    );
    assert_eq!(record["request"]["bytes"], 6, "{record}");
}

#[test]
fn the_end_of_a_grant_cuts_a_connection() {
    let end = jiff::Timestamp::now().as_second() + 7;
    let until = jiff::Timestamp::from_second(end).unwrap();
    let (mut lab, _greeter) = lab("probe", &policy(&format!(", until: \"{until}\"")));
    assert_eq!(lab.greeted(2525)["data"], "220 welcome\n");
    let answer = lab.ask(json!({"do": "read", "wait": 12}));
    assert!(
        answer["end"].as_str().unwrap().starts_with("reset"),
        "{answer}"
    );
    let late = jiff::Timestamp::now().as_second() - end;
    assert!((0..=3).contains(&late), "cut {late} s after the end");
    lab.refused(2525);
    lab.record_of("expired");
}

#[test]
fn a_pinned_client_sees_its_own_server_by_name() {
    let (mut lab, _greeter) = lab("probe", &policy(""));
    // Only the server's own CA is trusted: the agent's certificate would not do.
    let ca = lab.world.ca_file();
    let open = json!({"do": "open", "host": "pinned.example", "ca": ca});
    let answer = lab.ask(open.clone());
    assert!(answer.get("error").is_none(), "{answer}");
    let raw = "GET /a HTTP/1.1\r\nhost: pinned.example\r\nauthorization: Bearer mine\r\nconnection: close\r\n\r\n";
    lab.ask(json!({"do": "send", "data": raw}));
    let answer = lab.ask(json!({"do": "read", "wait": 3, "until": "}"}));
    let data = answer["data"].as_str().unwrap();
    assert_eq!(status(data), 200, "{answer}");
    assert_eq!(header(&echoed(data), "authorization"), Some("Bearer mine"));
    lab.ask(json!({"do": "close"}));
    let record = lab.record("it", |record| record["coverage"] == "sni");
    assert_eq!(record["verdict"], "ALLOW", "{record}");
    assert_eq!(record["request"]["host"], "pinned.example");
    assert_eq!(record["request"]["scheme"], "tls");
    assert_eq!(record["request"]["path"], "");
    assert_eq!(record["upstream"]["address"], format!("{ODD}:443"));
    assert!(
        record["request"]["bytes"].as_u64().unwrap() > 300,
        "{record}"
    );

    // Where the client says it connects does not matter; the agent resolves the name.
    let elsewhere =
        json!({"do": "open", "host": "pinned.example", "ca": ca, "address": IDLE.to_string()});
    let answer = lab.ask(elsewhere);
    assert!(answer.get("error").is_none(), "{answer}");
    // A name that leads inside is refused as for any api, and so is one that is not granted.
    for (host, code) in [
        ("inner.example", "upstream_address"),
        ("odd2.example", "no_grant"),
    ] {
        let answer =
            lab.ask(json!({"do": "open", "host": host, "ca": ca, "address": ODD.to_string()}));
        assert!(answer["error"].is_string(), "{host}: {answer}");
        let record = lab.record_of(code);
        assert_eq!(
            (&record["verdict"], &record["coverage"]),
            (&json!("DENY"), &json!("sni"))
        );
    }
    // Without the name, TLS is ended here, as for any other api.
    let answer = lab.ask(json!({"do": "open", "host": "pinned.example", "sni": ""}));
    assert!(answer.get("error").is_none(), "{answer}");
    lab.ask(json!({"do": "send", "data": raw}));
    let answer = lab.ask(json!({"do": "read", "wait": 3}));
    assert_eq!(status(answer["data"].as_str().unwrap()), 421, "{answer}");
    // And an api with hosts is inspected beside it.
    let (status, data, _) = lab.exchange(&request("GET /a HTTP/1.1", ""));
    assert_eq!(status, 200, "{data}");
    // No longer granted, the pinned one is reset.
    lab.reload(&policy("").replace(
        "role: banker, to: { workload: probe }",
        "role: banker, to: { workload: other }",
    ));
    let answer = lab.ask(open);
    assert!(answer["error"].is_string(), "{answer}");
}

#[test]
fn in_observe_mode_what_an_api_names_passes_on_record_and_the_rest_stays_refused() {
    let (mut lab, _greeter) = lab("watched", &policy(""));
    assert_eq!(lab.greeted(2525)["data"], "220 welcome\n");
    lab.ask(json!({"do": "end"}));
    lab.ask(json!({"do": "read", "wait": 3}));
    let record = lab.record("it", of_tcp);
    assert_eq!(record["verdict"], "WOULD-DENY", "{record}");
    assert_eq!(record["mode"], "observe");
    assert_eq!(record["reason"]["code"], "no_grant");
    assert_eq!(record["response"]["bytes"], 12 + 12, "{record}");
    // Nobody named this port.
    let command = json!({"do": "open", "host": ODD.to_string(), "port": 2527, "tls": false});
    assert!(lab.ask(command).get("error").is_none());
    lab.ask(json!({"do": "send", "data": "\u{80}\u{1}not http\r\n"}));
    let answer = lab.ask(json!({"do": "read", "wait": 5}));
    assert_ne!(answer["end"], "silent", "{answer}");
    lab.record_of("not_http");
}

/// A ClientHello with a name in clear, and an encrypted one inside.
fn hello_with_ech(name: &str) -> String {
    let sized = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
    let extension = |kind: u16, content: &[u8]| {
        [&kind.to_be_bytes()[..], &sized(content.len()), content].concat()
    };
    let name = [
        &sized(name.len() + 3)[..],
        &[0],
        &sized(name.len()),
        name.as_bytes(),
    ]
    .concat();
    let extensions = [
        extension(0, &name),
        extension(43, &[2, 3, 4]),
        extension(13, &[0, 2, 4, 3]),
        extension(10, &[0, 2, 0, 29]),
        extension(0xfe0d, &[0, 0, 1, 0, 1, 5, 0, 1, 7, 0, 1, 7]),
    ]
    .concat();
    let fixed = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0]].concat();
    let content = [&fixed[..], &sized(extensions.len()), &extensions].concat();
    let message = [&[1, 0][..], &sized(content.len()), &content].concat();
    let record = [&[0x16, 3, 1][..], &sized(message.len()), &message].concat();
    record.into_iter().map(char::from).collect()
}

#[test]
fn a_name_that_may_not_be_the_one_meant_is_refused() {
    let (mut lab, _greeter) = lab("probe", &policy(""));
    lab.ask(json!({"do": "open", "host": "pinned.example", "tls": false}));
    lab.ask(json!({"do": "send", "data": hello_with_ech("pinned.example")}));
    let answer = lab.ask(json!({"do": "read", "wait": 3}));
    assert_eq!(answer["data"], "", "{answer}");
    assert_ne!(answer["end"], "silent", "{answer}");
    let record = lab.record_of("server_name_encrypted");
    assert_eq!(record["verdict"], "DENY", "{record}");
    assert_eq!(lab.records(|record| record["coverage"] == "sni"), 0);
}

#[test]
fn a_budget_counts_connections_and_what_they_move() {
    let budgets = "budgets:\n  two: { for: { workload: probe }, limits: { requests: 2/day } }\n";
    let (mut lab, _greeter) = lab("probe", &(policy("") + budgets));
    for _ in 0..2 {
        assert_eq!(lab.greeted(2525)["data"], "220 welcome\n");
        lab.ask(json!({"do": "close"}));
    }
    lab.refused(2525);
    let record = lab.record_of("budget_requests");
    assert_eq!(
        (&record["verdict"], &record["budget"]),
        (&json!("LIMIT"), &json!("two"))
    );
    // Shared by two workloads: what the agent counts. The greeting has room, its echo has not.
    let budgets =
        "budgets:\n  few: { for: { workload: [probe, other] }, limits: { bytes: 20/day } }\n";
    lab.reload(&(policy("") + budgets));
    assert_eq!(lab.greeted(2525)["data"], "220 welcome\n");
    lab.ask(json!({"do": "send", "data": "much more than that\n"}));
    let answer = lab.ask(json!({"do": "read", "wait": 3}));
    assert!(
        answer["end"].as_str().unwrap().contains("reset"),
        "{answer}"
    );
    let record = lab.record_of("budget_bytes");
    assert_eq!(
        (&record["verdict"], &record["coverage"]),
        (&json!("LIMIT"), &json!("tcp"))
    );
    lab.refused(2525);
}
