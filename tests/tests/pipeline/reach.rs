//! How upstreams are reached: in clear, with a client certificate, over either version of TLS, again and again, and with
//! bodies of any length.
use super::*;

const STRICT: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 44);
const OLD: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 45);

const POLICY: &str = r#"
version: 1
workloads: { probe: {}, other: {} }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
  clear: { hosts: [clear.example], scheme: http }
  strict: { hosts: [strict.example], tls: { ca: "file:server-ca.pem", cert: "file:client.pem", key: "file:client.key" } }
  bare: { hosts: [bare.example], tls: { ca: "file:server-ca.pem" } }
  old: { hosts: [old.example], tls: { ca: "file:server-ca.pem" } }
roles:
  user:
    - { api: odd, allow: [{ route: "* /**" }] }
    - { api: clear, allow: [{ route: "GET /open/**" }] }
    - { api: strict, allow: [{ route: "* /**" }] }
    - { api: bare, allow: [{ route: "* /**" }] }
    - { api: old, allow: [{ route: "* /**" }] }
grants:
  - { role: user, to: { workload: [probe, other] } }
"#;

/// A world whose agent has a client certificate, with a server that wants one, and one that speaks TLS 1.2 at most.
fn lab() -> Lab {
    let world = World::new().unwrap();
    let ca = world.ca_file().display().to_string();
    let servers = vec![
        odd_server(&world),
        server_with(
            &world,
            "odd.py",
            STRICT,
            &["strict.example", "bare.example"],
            &[&ca],
        ),
        server_with(&world, "odd.py", OLD, &["old.example"], &["-", "tls12"]),
    ];
    for (name, address) in [
        ("odd.example", ODD),
        ("strict.example", STRICT),
        ("bare.example", STRICT),
        ("old.example", OLD),
        ("clear.example", harness::Site::ORDERS.v4),
    ] {
        world.dns.set(name, Answer::Addresses(vec![address.into()]));
    }
    let mut agent = Agent::new(&world, POLICY).unwrap();
    let files = world
        .ca
        .issue(&["agent.example"], world.directory())
        .unwrap();
    for (name, file) in [
        ("client.pem", &files.certificate),
        ("client.key", &files.key),
    ] {
        let text = std::fs::read_to_string(file).unwrap();
        agent.write_secret(name, &text).unwrap();
    }
    agent.start(&world).unwrap();
    world
        .show(&repository().join("tests/clients"), "clients")
        .unwrap();
    let client = client(&world, &agent, "probe", Program::Raw);
    Lab {
        client,
        servers,
        agent,
        world,
    }
}

#[test]
fn an_api_in_clear_is_held_to_its_rules() {
    let lab = lab();
    for (url, status, told) in [
        ("http://clear.example/open/a", "200", "in clear"),
        ("http://clear.example/other", "403", "no_route"),
        // Only as the policy says.
        ("http://odd.example/open/a", "403", "unknown_host"),
        ("http://odd.example:443/open/a", "403", "cleartext"),
    ] {
        let mut curl = lab.agent.governed(&lab.world, "probe", "curl");
        curl.args([
            "--silent",
            "--show-error",
            "--write-out",
            " %{http_code}",
            url,
        ]);
        let output = curl.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.ends_with(status) && text.contains(told),
            "{url}: {output:?}"
        );
    }
    let record = lab.record("it", |record| record["verdict"] == "ALLOW");
    assert_eq!(record["request"]["scheme"], "http", "{record}");
    assert_eq!(record["upstream"]["tls"], Value::Null, "{record}");
    let seen = lab.world.nginx.requests().unwrap();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(
        (&*seen[0].scheme, &*seen[0].host),
        ("http", "clear.example")
    );
}

#[test]
fn a_client_certificate_is_shown_where_the_policy_says() {
    let mut lab = lab();
    let (status, data) = lab.get("strict.example", "/a");
    assert_eq!(status, 200, "{data}");
    let peer = echoed(&data)["peer"]["subject"].to_string();
    assert!(peer.contains("agent.example"), "{peer}");
    let (status, data) = lab.get("bare.example", "/a");
    assert_eq!(status, 502, "{data}");
    let record = lab.record("it", |record| record["request"]["host"] == "bare.example");
    let code = record["reason"]["code"].as_str().unwrap();
    assert!(
        ["upstream_tls", "upstream_reset"].contains(&code),
        "{record}"
    );
    // A key that others can read is no secret: the policy is refused.
    let key = lab
        .agent
        .policy()
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("secrets/client.key");
    let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(&key, mode(0o644)).unwrap();
    let reload = lab.agent.output(&lab.world, "reload", &[]).unwrap();
    assert!(!reload.status.success(), "{reload:?}");
    let told = String::from_utf8_lossy(&reload.stderr);
    assert!(
        told.contains("client.key") && told.contains("chmod 0600"),
        "{told}"
    );
}

#[test]
fn both_versions_of_tls_are_spoken_on_both_sides() {
    let lab = lab();
    for (host, upstream) in [("odd.example", "TLSv1.3"), ("old.example", "TLSv1.2")] {
        for version in ["1.2", "1.3"] {
            let mut curl = lab.agent.governed(&lab.world, "probe", "curl");
            let url = format!("https://{host}/tls{version}");
            curl.args(["--silent", "--show-error", "--fail", "--tls-max", version]);
            let output = curl
                .args([&format!("--tlsv{version}"), &url])
                .output()
                .unwrap();
            assert!(output.status.success(), "{url}: {output:?}");
            let record = lab.record(&url, |record| {
                record["request"]["path"] == format!("/tls{version}")
                    && record["request"]["host"] == host
            });
            let tls = record["upstream"]["tls"].as_str().unwrap();
            assert!(tls.starts_with(upstream), "{record}");
        }
    }
}

#[test]
fn a_workload_resumes_its_own_sessions_only() {
    let mut lab = lab();
    let ask = |client: &mut Running, path: &str| {
        let raw = format!("GET {path} HTTP/1.1\r\nhost: odd.example\r\n\r\n");
        client
            .ask(&json!({"do": "send", "data": raw}).to_string())
            .unwrap();
        let got = client
            .ask(&json!({"do": "read", "wait": 5, "until": "}"}).to_string())
            .unwrap();
        got["data"].as_str().unwrap().to_owned()
    };
    let open = json!({"do": "open", "host": "odd.example"}).to_string();
    // On one connection, so that one worker answers.
    lab.client.ask(&open).unwrap();
    let first = ask(&mut lab.client, "/a");
    assert!(first.contains("\"resumed\": false"), "{first}");
    let closing =
        json!({"do": "send", "data": "GET /until-close HTTP/1.1\r\nhost: odd.example\r\n\r\n"});
    lab.ask(closing);
    let closed = lab.ask(json!({"do": "read", "wait": 5, "until": "0\r\n\r\n"}));
    assert!(closed.to_string().contains("all of it"), "{closed}");
    let again = ask(&mut lab.client, "/b");
    assert!(again.contains("\"resumed\": true"), "{again}");
    let record = lab.record("it", |record| record["request"]["path"] == "/b");
    assert_eq!(
        record["upstream"]["tls"], "TLSv1.3 http/1.1 resumed",
        "{record}"
    );
    // Another's are not for it: eight connections reach both workers.
    for number in 0..8 {
        let mut other = client(&lab.world, &lab.agent, "other", Program::Raw);
        other.ask(&open).unwrap();
        let path = format!("/other-{number}");
        ask(&mut other, &path);
        if number == 0 {
            let record = lab.record("it", |record| record["request"]["path"] == path);
            assert_eq!(record["upstream"]["tls"], "TLSv1.3 http/1.1", "{record}");
        }
    }
}

/// How much memory the agent has had at most, in MiB.
fn most_memory(lab: &Lab) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", lab.agent.pid().unwrap())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024
}

#[test]
fn a_body_of_any_length_takes_no_memory() {
    const LENGTH: u64 = 256 << 20;
    let lab = lab();
    let path = lab.world.directory().join("huge");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(LENGTH)
        .unwrap();
    let path = path.display().to_string();
    let run = |arguments: &[&str]| {
        let mut curl = lab.agent.governed(&lab.world, "probe", "curl");
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "120"]);
        let output = curl.args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run(&["https://odd.example/a"]);
    let before = most_memory(&lab);
    for version in ["--http1.1", "--http2"] {
        let up = run(&[
            version,
            "-H",
            "Expect:",
            "-X",
            "POST",
            "-T",
            &path,
            "https://odd.example/sink",
        ]);
        assert!(up.contains(&format!("\"body\": \"{LENGTH}\"")), "{up}");
        let url = format!("https://odd.example/zeroes/{LENGTH}");
        let down = run(&[
            version,
            "--output",
            "/dev/null",
            "--write-out",
            "%{size_download}",
            &url,
        ]);
        assert_eq!(down, LENGTH.to_string());
    }
    let after = most_memory(&lab);
    assert!(after < before + 32, "{before} MiB, and then {after} MiB");
}

/// Who reads slowly holds up who sends, and nothing is kept for it in between.
#[test]
fn what_is_not_read_is_not_kept() {
    const LENGTH: u64 = 256 << 20;
    let lab = lab();
    let path = lab.world.directory().join("huge");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(LENGTH).unwrap();
    let path = path.display().to_string();
    let down = format!("https://odd.example/zeroes/{LENGTH}");
    let curl = |version: &str, arguments: &[&str]| {
        let mut curl = lab.agent.governed(&lab.world, "probe", "curl");
        curl.args([
            "--silent",
            "--output",
            "/dev/null",
            "--max-time",
            "4",
            version,
        ]);
        curl.args(arguments).output().unwrap()
    };
    assert!(curl("--http2", &["https://odd.example/a"]).status.success());
    let before = most_memory(&lab);
    for version in ["--http1.1", "--http2"] {
        for arguments in [
            &["--limit-rate", "1k", &*down][..],
            &[
                "-H",
                "Expect:",
                "-X",
                "POST",
                "-T",
                &path,
                "https://odd.example/unread",
            ],
        ] {
            let output = curl(version, arguments);
            assert_eq!(output.status.code(), Some(28), "not timed out: {output:?}");
            let after = most_memory(&lab);
            assert!(
                after < before + 32,
                "{version} {arguments:?}: {before} MiB, and then {after} MiB"
            );
        }
    }
}
