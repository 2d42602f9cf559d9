//! Requests that the agent signs (AWS SigV4), against a server that signs each of them again with botocore and the real keys.
use super::*;
use std::process::Output;

const AWS: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 45);
const HOSTS: [&str; 3] = [
    "reports.s3.eu-central-1.amazonaws.com",
    "dynamodb.eu-central-1.amazonaws.com",
    "minio.example",
];
const REPORTS: &str = "https://reports.s3.eu-central-1.amazonaws.com";

/// The real keys, and those that the workload has.
const ID: &str = "AKIAREALKEY000000001";
const SECRET: &str = "real+secret/key0123456789abcdefghijklmno";
const SESSION: &str = "real-session-token-0123456789==";
const THEIR_ID: &str = "AKIAPLACEHOLDER00001";
const THEIR_SECRET: &str = "placeholder-key-of-the-workload-00000001";

const POLICY: &str = r#"
version: 1
workloads: { probe: {} }
apis:
  reports: { hosts: [reports.s3.eu-central-1.amazonaws.com], tls: { ca: "file:server-ca.pem" } }
  tables:  { hosts: [dynamodb.eu-central-1.amazonaws.com], tls: { ca: "file:server-ca.pem" } }
  minio:   { hosts: [minio.example], tls: { ca: "file:server-ca.pem" } }
credentials:
  aws:
    aws-sigv4: { access_key: "file:aws-id", secret_key: "file:aws-key", session_token: "file:aws-session" }
    to: [reports, tables, minio]
roles:
  user:
    - api: reports
      credential: aws
      allow:
        - route: "* /**"
        - route: "* /acl"
          headers: { strip: [x-amz-acl] }
        - route: "* /copy"
          headers: { allow: [x-amz-copy-source] }
      deny: [{ route: "DELETE /kept" }]
    - api: tables
      credential: aws
      allow: [{ route: POST / }]
    - api: minio
      credential: aws
      allow: [{ route: "* /**" }]
grants:
  - { role: user, to: { workload: probe } }
"#;

/// boto3 in a governed process, and the server that verifies.
struct Bench {
    boto: Running,
    server: Running,
    agent: Agent,
    world: World,
}

impl Bench {
    fn new() -> Self {
        let world = World::new().unwrap();
        let server = aws_server(&world);
        for host in HOSTS {
            world.dns.set(host, Answer::Addresses(vec![AWS.into()]));
        }
        let mut agent = Agent::new(&world, POLICY).unwrap();
        for (name, value) in [
            ("aws-id", ID),
            ("aws-key", SECRET),
            ("aws-session", SESSION),
        ] {
            agent.write_secret(name, &format!("{value}\n")).unwrap();
        }
        agent.start(&world).unwrap();
        let clients = world
            .show(&repository().join("tests/clients"), "clients")
            .unwrap();
        let python = world.show(&fleet(), "python").unwrap();
        let mut command = agent.governed(&world, "probe", python.join("bin/python3"));
        command.arg("-u").arg(clients.join("aws.py"));
        command
            .env("AWS_ACCESS_KEY_ID", THEIR_ID)
            .env("AWS_SECRET_ACCESS_KEY", THEIR_SECRET)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_MAX_ATTEMPTS", "1")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("HOME", "/");
        Self {
            boto: Running::start(command).unwrap(),
            server,
            agent,
            world,
        }
    }

    /// A call by boto3, and what the server was sent.
    fn boto(&mut self, call: &Value) -> (Value, Value) {
        let got = self.boto.ask(&call.to_string()).unwrap();
        self.hidden(&got.to_string());
        (got, self.sent())
    }

    fn s3(&mut self, call: &str, with: Value) -> (Value, Value) {
        let mut with = with;
        with["Bucket"] = json!("reports");
        let (got, sent) = self.boto(&json!({"service": "s3", "call": call, "with": with}));
        assert_eq!(sent["good"], true, "{call}: {got} {sent}");
        assert_eq!(got.get("error"), None, "{call}: {got} {sent}");
        (got, sent)
    }

    /// What the server was sent last: signed anew, with nothing of the workload's keys in it.
    fn sent(&mut self) -> Value {
        let line = self.server.line(Duration::from_secs(10)).unwrap();
        assert!(!line.contains(THEIR_ID), "{line}");
        serde_json::from_str(&line).unwrap()
    }

    /// Nothing was sent.
    fn unsent(&mut self) {
        assert_eq!(self.server.has_line(), None);
    }

    /// The workload sees no real key.
    fn hidden(&self, seen: &str) {
        assert!(!seen.contains(SECRET) && !seen.contains(SESSION), "{seen}");
    }

    fn curl(&self, arguments: &[&str]) -> (u16, String) {
        let mut command = self.agent.governed(&self.world, "probe", "curl");
        command.args(["-sS", "-w", "\n%{http_code}"]);
        let Output { stdout, stderr, .. } = command.args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&stdout).into_owned();
        self.hidden(&text);
        let (body, status) = text.rsplit_once('\n').unwrap_or_default();
        let status = status.parse().unwrap_or(0);
        let why = String::from_utf8_lossy(&stderr);
        assert!(status > 0, "{text} {why}\n{}", self.agent.log());
        (status, body.to_owned())
    }

    fn last_record(&self) -> Value {
        self.agent.decisions(&self.world).unwrap().pop().unwrap()
    }
}

fn fleet() -> PathBuf {
    repository().join("target/tools/fleet")
}

fn aws_server(world: &World) -> Running {
    world
        .servers
        .script(&format!("ip addr replace {AWS}/32 dev lo"))
        .unwrap();
    let files = world.ca.issue(&HOSTS, world.directory()).unwrap();
    let keys = world.directory().join("aws-keys.json");
    std::fs::write(
        &keys,
        json!({"id": ID, "key": SECRET, "session": SESSION}).to_string(),
    )
    .unwrap();
    let mut command = world.servers.command(fleet().join("bin/python3"));
    command
        .arg("-u")
        .arg(repository().join("tests/servers/aws.py"))
        .args([&AWS.to_string(), "443"])
        .args([&files.certificate, &files.key, &keys]);
    let mut server = Running::start(command).unwrap();
    assert_eq!(server.line(Duration::from_secs(20)).unwrap(), "ready");
    server
}

#[test]
fn what_boto3_signs_with_worthless_keys_is_signed_with_the_real_ones() {
    let mut bench = Bench::new();
    for key in [
        "2026/march.csv",
        "with blank/and (brackets).csv",
        "ünïcode/€+plus&=@:,$!*'~.csv",
        "100%/sure",
    ] {
        let text = format!("of {key}\n");
        let with = json!({"Key": key, "text": text, "Metadata": {"note": "two  words"}, "ContentType": "text/csv"});
        let (_, sent) = bench.s3("put_object", with);
        // What S3 clients send over https: chunks without signatures, and a checksum behind them.
        let payload = &sent["headers"]["x-amz-content-sha256"];
        assert_eq!(payload, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "{sent}");
        let (got, sent) = bench.s3("get_object", json!({"Key": key}));
        assert_eq!(got["Body"], text.as_str(), "{got}");
        assert_eq!(
            (&sent["region"], &sent["service"]),
            (&json!("eu-central-1"), &json!("s3"))
        );
    }
    let (got, _) = bench.s3("list_objects_v2", json!({"Prefix": "ünïcode/€+plus&="}));
    assert_eq!(
        got["Contents"][0]["Key"], "ünïcode/€+plus&=@:,$!*'~.csv",
        "{got}"
    );
    assert_eq!(got["Contents"].as_array().unwrap().len(), 1, "{got}");
    bench.s3("head_object", json!({"Key": "100%/sure"}));
    bench.s3("delete_object", json!({"Key": "100%/sure"}));
    let (got, _) = bench.boto(&json!({"service": "s3", "call": "get_object", "with": {"Bucket": "reports", "Key": "100%/sure"}}));
    assert_eq!(got["error"], "NoSuchKey", "{got}");

    let record = bench.last_record();
    assert_eq!(record["credential"], "aws", "{record}");
    let injected = json!([
        "authorization",
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-security-token"
    ]);
    assert_eq!(record["injected"], injected, "{record}");
    assert!(
        record["stripped"].to_string().contains("authorization"),
        "{record}"
    );
    // Rules hold as for any credential, and the refusal is one that boto3 shows.
    let asked = json!({"service": "s3", "call": "delete_object", "with": {"Bucket": "reports", "Key": "kept"}});
    let got = bench.boto.ask(&asked.to_string()).unwrap();
    assert!(
        got["message"].to_string().contains("denied_by_rule"),
        "{got}"
    );
    bench.unsent();
}

#[test]
fn what_is_not_signed_is_signed_too() {
    let mut bench = Bench::new();
    let (status, body) = bench.curl(&[
        "-X",
        "PUT",
        "--data-binary",
        "hello",
        "-H",
        "content-type: text/plain",
        &format!("{REPORTS}/greeting"),
    ]);
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        bench.sent()["headers"]["x-amz-content-sha256"],
        "UNSIGNED-PAYLOAD"
    );
    let (status, body) = bench.curl(&[&format!(
        "{REPORTS}/greeting?x=a+b&&response-content-type=text%2fplain"
    )]);
    assert_eq!((status, &*body), (200, "hello"));
    let sent = bench.sent();
    assert_eq!(sent["good"], true, "{sent}");
    // A hash that the client made is what the service holds the body against.
    let hash =
        "x-amz-content-sha256: 2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    for (data, expected) in [("hello", 200), ("jello", 403)] {
        let (status, body) = bench.curl(&[
            "-X",
            "PUT",
            "-H",
            hash,
            "--data-binary",
            data,
            &format!("{REPORTS}/greeting"),
        ]);
        assert_eq!(status, expected, "{data}: {body}");
        bench.sent();
    }
    // A presigned URL is a credential of the client's.
    let asked = json!({"service": "s3", "call": "presign", "with": {"Bucket": "reports", "Key": "greeting"}});
    let url = bench.boto.ask(&asked.to_string()).unwrap()["url"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        url.contains(THEIR_ID) && url.contains("X-Amz-Signature"),
        "{url}"
    );
    let (status, body) = bench.curl(&[&url]);
    assert_eq!((status, &*body), (200, "hello"));
    assert_eq!(bench.sent()["target"], "/greeting");
    // What comes back of the keys is overwritten; the id is no secret.
    let (status, body) = bench.curl(&[&format!("{REPORTS}/leak")]);
    let stars = |text: &str| "*".repeat(text.len());
    assert_eq!(
        (status, body),
        (200, format!("{} {} {ID}", stars(SECRET), stars(SESSION)))
    );
}

#[test]
fn a_body_is_hashed_where_it_must_be_and_refused_where_it_cannot_be() {
    let mut bench = Bench::new();
    let (got, sent) = bench.boto(&json!({"service": "dynamodb", "call": "list_tables"}));
    assert_eq!(got["TableNames"], json!(["length", "2"]), "{got} {sent}");
    assert_eq!(sent["service"], "dynamodb", "{sent}");
    let file = bench.world.directory().join("large");
    let data = format!("@{}", file.display());
    let url = format!("https://{}/", HOSTS[1]);
    for (megabytes, expected) in [(15, 200), (17, 413)] {
        std::fs::write(&file, vec![b'x'; megabytes << 20]).unwrap();
        for transfer in [
            "content-type: application/x-amz-json-1.0",
            "transfer-encoding: chunked",
        ] {
            let (status, body) = bench.curl(&[
                "-H",
                transfer,
                "-H",
                "expect:",
                "--data-binary",
                &data,
                &url,
            ]);
            assert_eq!(status, expected, "{megabytes} MiB: {body}");
            if expected == 200 {
                let sent = bench.sent();
                assert_eq!(
                    (&sent["good"], &sent["length"]),
                    (&json!(true), &json!(megabytes << 20)),
                    "{sent}"
                );
            }
        }
    }
    bench.unsent();
    let signed = "x-amz-content-sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD";
    let (status, body) = bench.curl(&[
        "-X",
        "PUT",
        "-H",
        signed,
        "--data-binary",
        "x",
        &format!("{REPORTS}/x"),
    ]);
    assert!(
        status == 400 && body.contains("sigv4_chunks"),
        "{status} {body}"
    );
    // Neither the policy nor the client nor the host says what it would be for.
    let (status, body) = bench.curl(&["https://minio.example/reports/x"]);
    assert!(
        status == 400 && body.contains("sigv4_scope"),
        "{status} {body}"
    );
    bench.unsent();
    let asked = json!({"service": "s3", "call": "put_object", "endpoint": "https://minio.example", "with": {"Bucket": "reports", "Key": "x", "text": "x"}});
    let (got, sent) = bench.boto(&asked);
    assert_eq!(
        (got.get("error"), &sent["good"]),
        (None, &json!(true)),
        "{got} {sent}"
    );
    assert_eq!(sent["target"], "/reports/x", "{sent}");
}

#[test]
fn another_key_in_the_file_signs_from_the_next_request_on() {
    let mut bench = Bench::new();
    bench.s3("put_object", json!({"Key": "a", "text": "a"}));
    bench
        .agent
        .write_secret("aws-key", "another-key-that-nobody-knows-of-0000001")
        .unwrap();
    let asked =
        json!({"service": "s3", "call": "get_object", "with": {"Bucket": "reports", "Key": "a"}});
    let refused = eventually(Duration::from_secs(10), || {
        let (got, _) = bench.boto(&asked);
        (got["error"] == "SignatureDoesNotMatch").then_some(())
    });
    assert!(refused.is_some(), "the server takes any signature");
    bench.agent.write_secret("aws-key", SECRET).unwrap();
    let good = eventually(Duration::from_secs(10), || {
        (bench.boto(&asked).0["Body"] == "a").then_some(())
    });
    assert!(good.is_some());
    let explained = bench
        .agent
        .output(
            &bench.world,
            "explain",
            &["--workload", "probe", "GET", &format!("{REPORTS}/a")],
        )
        .unwrap();
    let told = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(
        told.contains("authorization, x-amz-content-sha256, x-amz-date, x-amz-security-token"),
        "{told}"
    );
}

/// Without its source, a copy would be an empty object.
#[test]
fn no_header_of_aws_is_lost_without_a_word() {
    let mut bench = Bench::new();
    let copy = |key: &str| {
        let with = json!({"Bucket": "reports", "Key": key, "CopySource": {"Bucket": "reports", "Key": "a"}});
        json!({"service": "s3", "call": "copy_object", "with": with})
    };
    let got = bench.boto.ask(&copy("b").to_string()).unwrap();
    assert!(got["message"].to_string().contains("sigv4_header"), "{got}");
    assert_eq!(bench.last_record()["verdict"], "DENY");
    bench.unsent();
    let (_, sent) = bench.boto(&copy("copy"));
    assert_eq!(sent["headers"]["x-amz-copy-source"], "reports/a", "{sent}");
    assert_eq!(sent["good"], true, "{sent}");
    let (_, sent) = bench.s3(
        "put_object",
        json!({"Key": "acl", "text": "x", "ACL": "public-read"}),
    );
    assert_eq!(sent["headers"].get("x-amz-acl"), None, "{sent}");
}
