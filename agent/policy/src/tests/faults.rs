use super::*;

/// The faults of one document: `line:column: message`.
fn faults(text: &str) -> Vec<String> {
    let Err(faults) = compile(&[source("p.yaml", text)]) else {
        return Vec::new();
    };
    faults
        .iter()
        .map(|fault| format!("{}:{}: {}", fault.at.line, fault.at.column, fault.message))
        .collect()
}

/// A whole policy with one part replaced, and the fault that gives.
fn with(part: &str, replacement: &str) -> Vec<String> {
    const SMALL: &str = r#"version: 1
workloads: { w: { match: { unit: w.service } } }
apis: { a: { hosts: [a.com] } }
credentials: { c: { secret: "file:s", header: { authorization: "{secret}" }, to: [a] } }
roles: { r: [{ api: a, credential: c, allow: [{ route: GET /x }] }] }
grants: [{ role: r, to: { workload: w } }]
"#;
    assert_eq!(faults(SMALL), Vec::<String>::new());
    assert!(SMALL.contains(part), "{part}");
    faults(&SMALL.replace(part, replacement))
}

#[test]
fn what_is_wrong_stands_out_of_everything_that_may_be_written() {
    let text = r#"
version: 1
workloads:
  report-builder: { match: { unit: report-builder.service } }
  notebooks:
    match:
      - { user: intern, cgroup: "/user.slice/**" }
      - { user: intern, exe: /usr/bin/python3.11, container: "x-*" }
      - { labels: { io.kubernetes.pod.namespace: shop, app: "web-*" } }
identities:
  alice: { token: tgi_7Q2 }
apis:
  github: { hosts: [api.github.com] }
  openai: { hosts: [api.openai.com], meter: openai }
  cache:  { tcp: ["10.0.0.7:6379"] }
  s3: { hosts: [s3.example.com] }
credentials:
  github-bot: { secret: "vault:github#bot", header: { authorization: "Bearer {secret}" }, to: [github] }
  s3-reader:  { aws-sigv4: { access_key: "vault:aws#id", secret_key: "vault:aws#key" }, to: [s3] }
roles:
  issue-triage:
    - api: github
      credential: github-bot
      allow:
        - route: PATCH /repos/acme/{repo}/issues/{number:int}
          body: { fields: { state: [open, closed] }, max: 16KiB }
        - route: read-only /x
      deny:
        - route: "* /repos/acme/payroll/**"

          query: { a: int }

      response: { strip: [set-cookie], max: 1MiB }
  "chat(x)": [{ api: openai, allow: [{ route: "GET /${x}" }] }]
grants:
  - { role: issue-triage, to: { workload: report-builder } }
  - { role: "chat(x: y)", to: { workload: notebooks, identity: alice }, mode: observe, until: 2026-12-31 }
budgets:
  interns: { for: { workload: notebooks }, each: identity, limits: { usd: 50/day, bytes: 1GiB/day } }
prices: { small: { input: 1, output: 2 } }
"#;
    let found = faults(text);
    let expected = ["31:11: a deny rule has no `query`"];
    assert_eq!(found, expected);
}

#[test]
fn one_fault_at_a_time() {
    let cases = [
        (
            "version: 1",
            "version: 2",
            "1:10: expected an integer from 1 to 1, found `2`",
        ),
        ("version: 1", "versio: 1", "1:1: the policy needs `version`"),
        (
            "hosts: [a.com]",
            "host: [a.com]",
            "3:12: the api needs `hosts`",
        ),
        ("hosts: [a.com]", "hosts: []", "3:21: this list is empty"),
        (
            "hosts: [a.com]",
            "hosts: a.com",
            "3:21: expected a list (`- item` lines, or `[item, item]`), found a string",
        ),
        (
            "[a.com]",
            "[\"*.com\"]",
            "3:22: `*.com` covers a whole top-level domain",
        ),
        (
            "[a.com]",
            "[\"a.*.com\"]",
            "3:22: `*` may only stand as the first label of a host",
        ),
        (
            "[a.com]",
            "[\"https://a.com\"]",
            "3:22: a host has no scheme and no path",
        ),
        (
            "[a.com]",
            "[0x7f.1]",
            "3:22: the host is a number that is not a dotted-quad IPv4 address",
        ),
        (
            "[a.com]",
            "[a.com, A.COM]",
            "3:29: `a.com` stands twice in the api",
        ),
        (
            "[a.com]",
            "[a.com], port: 0",
            "3:36: expected an integer from 1 to 65535, found `0`",
        ),
        (
            "[a.com]",
            "[a.com], addresses: [10.0.0.1/8]",
            "3:42: the range has bits set behind its prefix; it would be `10.0.0.0/8`",
        ),
        (
            "unit: w.service",
            "unit: w",
            "2:34: `w` is not the name of a systemd unit with processes",
        ),
        (
            "unit: w.service",
            "cgroup: /a/../b",
            "2:36: a cgroup path has no empty, `.` or `..` segment",
        ),
        (
            "unit: w.service",
            "cgroup: a",
            "2:36: a cgroup path begins with `/`, the cgroup2 root, and names a group below it",
        ),
        (
            "unit: w.service",
            "cgroup: /",
            "2:36: a cgroup path begins with `/`, the cgroup2 root, and names a group below it",
        ),
        (
            "unit: w.service",
            "unit: w.service, sha256: 9F",
            "2:53: `9F` is not a SHA-256 digest",
        ),
        (
            "unit: w.service",
            "user: 4294967295",
            "2:34: `4294967295` is not a user's name or number",
        ),
        (
            "unit: w.service",
            "user: 99999999999",
            "2:34: `99999999999` is not a user's name or number",
        ),
        (
            "unit: w.service",
            "exe: \"/bin/*\"",
            "2:33: `/bin/*` is not the path of an executable",
        ),
        (
            "unit: w.service",
            "container: {}",
            "2:39: expected a container's name, found a mapping",
        ),
        (
            "unit: w.service",
            "labels: {}",
            "2:36: a selector has 1 to 32 labels",
        ),
        (
            "unit: w.service",
            "labels: { \"a*\": b }",
            "2:38: `a*` is not a label's name",
        ),
        (
            "unit: w.service",
            "labels: { app: \"a\\tb\" }",
            "2:43: `a\\tb` is not a label's one value",
        ),
        (
            "unit: w.service",
            "labels: { app: [a, b] }",
            "2:43: expected a label's one value, found a list",
        ),
        (
            "unit: w.service",
            "labels: app",
            "2:36: expected a mapping (`key: value` lines, or `{ key: value }`), found a string",
        ),
        ("file:s", "file:../s", "4:29: `../s` is not a secret's name"),
        ("file:s", "op:s", "4:29: `op` is no source of secrets"),
        (
            "\"file:s\"",
            "s",
            "4:29: expected `file:NAME` or `vault:PATH#FIELD`, found `s`",
        ),
        (
            "authorization: \"{secret}\"",
            "host: \"{secret}\"",
            "4:49: `host` belongs to the connection or the message and cannot carry a credential",
        ),
        (
            "authorization: \"{secret}\"",
            "content-length: \"{secret}\"",
            "4:49: `content-length` belongs to the connection or the message and cannot carry a credential",
        ),
        (
            "\"{secret}\"",
            "\"x\"",
            "4:64: the header's value must be printable ASCII with `{secret}` exactly once",
        ),
        (
            "\"{secret}\"",
            "\"{secret}{secret}\"",
            "4:64: the header's value must be printable ASCII with `{secret}` exactly once",
        ),
        (
            "\"{secret}\"",
            "\"{secret}\\n\"",
            "4:64: the header's value must be printable ASCII with `{secret}` exactly once",
        ),
        ("to: [a]", "to: [b]", "4:83: there is no api `b`"),
        ("api: a,", "api: b,", "5:21: there is no api `b`"),
        (
            "credential: c",
            "credential: d",
            "5:36: there is no credential `d`",
        ),
        ("role: r", "role: s", "6:18: there is no role `s`"),
        (
            "workload: w",
            "workload: v",
            "6:37: there is no workload `v`",
        ),
        (
            "to: { workload: w }",
            "to: {}",
            "6:25: the grantee needs `workload`, `identity` or `group`",
        ),
        (
            "to: { workload: w }",
            "to: { workload: w }, mode: observ",
            "6:48: expected one of `enforce`, `observe`, found `observ`",
        ),
        (
            "allow: [{ route: GET /x }]",
            "allow: []",
            "5:46: this list is empty",
        ),
        (
            "allow: [{ route: GET /x }]",
            "alow: []",
            "5:14: the role's entry needs `allow` or `deny`",
        ),
        ("GET /x", "get /x", "5:56: `get` is not a method"),
        ("GET /x", "/x", "5:56: the route needs a method and a path"),
        (
            "GET /x",
            "GET x",
            "5:56: the path of a route begins with `/`",
        ),
        (
            "GET /x",
            "\"GET /x/**/y\"",
            "5:56: `**` may only stand last in a route",
        ),
        (
            "GET /x",
            "\"GET /x*\"",
            "5:56: the segment `x*` mixes text and wildcard",
        ),
        (
            "GET /x",
            "\"GET /{a}/{a}\"",
            "5:56: `{a}` stands twice in the route",
        ),
        (
            "GET /x",
            "\"GET /{a:[}\"",
            "5:56: the pattern is not valid: unclosed character class",
        ),
        (
            "GET /x",
            "\"GET /{a:\\\\w{1000}}\"",
            "5:56: the pattern is too large when compiled",
        ),
        (
            "GET /x",
            "GET /a?b",
            "5:56: a route is a path, without query and fragment",
        ),
        ("GET /x", "GET /a/../b", "5:56: a route has no dot segments"),
        (
            "GET /x",
            "GET /a//b",
            "5:56: the route has an empty segment (`//`)",
        ),
        (
            "GET /x",
            "GET /a%2fb",
            "5:56: the path has an encoded slash (`%2F`)",
        ),
        ("GET /x", "TRACE /x", "5:56: `TRACE` cannot be allowed"),
        (
            "GET /x",
            "GET /x, extra: strip",
            "5:64: `extra` says what becomes of parameters that `query` does not declare",
        ),
        (
            "GET /x",
            "GET /x, query: { a: strng }",
            "5:76: unknown type `strng`",
        ),
        (
            "GET /x",
            "GET /x, query: { a: 9..1 }",
            "5:76: the range is empty: its first number is larger than its last",
        ),
        (
            "GET /x",
            "GET /x, query: { a: [] }",
            "5:76: no value is allowed by an empty list",
        ),
        (
            "GET /x",
            "GET /x, query: { a: [string, int] }",
            "5:77: `string` is a type and stands among values",
        ),
        (
            "GET /x",
            "GET /x, query: { a: [b, b] }",
            "5:80: `b` stands twice in the list",
        ),
        (
            "GET /x",
            "GET /x, query: { a: { b: int } }",
            "5:76: the parameter needs `type`",
        ),
        ("GET /x", "GET /x, body: {}", "5:70: `body` says nothing"),
        (
            "GET /x",
            "GET /x, body: { fields: {}, max: 1GiB }",
            "5:89: a body that is looked at has between 1 byte and 16MiB",
        ),
        (
            "GET /x",
            "GET /x, headers: { allow: [x_y] }",
            "5:83: the header `x_y` never passes",
        ),
        (
            "GET /x",
            "GET /x, headers: { allow: [cookie] }",
            "5:83: the header `cookie` is a slot for a credential",
        ),
    ];
    let wrong: Vec<String> = cases
        .iter()
        .map(|(part, replacement, fault)| (fault, with(part, replacement)))
        .filter(|(fault, found)| !found.iter().any(|found| found == *fault))
        .map(|(fault, found)| format!("{fault}\n    {}", found.join("\n    ")))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn credentials_stay_bound() {
    let found = with(
        "apis: { a: { hosts: [a.com] } }",
        "apis: { a: { hosts: [a.com] }, b: { hosts: [b.com] } }",
    );
    assert_eq!(found, Vec::<String>::new());
    let text = r#"version: 1
workloads: { w: {} }
apis: { a: { hosts: [a.com] }, b: { hosts: [b.com] } }
credentials: { c: { secret: "file:s", header: { x-magic: "{secret}" }, to: [a] }, client: { secret: "file:s", header: { x: "{secret}" }, to: [a] } }
roles: { r: [{ api: b, credential: c, allow: [{ route: GET /x, headers: { allow: [x-magic] } }] }] }
grants: [{ role: r, to: { workload: w } }]
"#;
    assert_eq!(
        faults(text),
        [
            "4:83: `client` is not free as a credential's name",
            "5:36: credential `c` is not bound to api `b`",
            "5:83: the header `x-magic` is set by the rule's credential",
        ]
    );
}

#[test]
fn what_is_defined_twice_is_named_with_both_places() {
    let one = source(
        "a.yaml",
        "version: 1\nworkloads: { w: { match: { unit: w.service } } }\napis: { a: { hosts: [a.com] } }\n",
    );
    let two = source(
        "b.yaml",
        "version: 1\n\nworkloads: { w: {}, v: { match: { unit: w.service } } }\napis: { b: { hosts: [A.com.] } }\n",
    );
    for sources in [[one.clone(), two.clone()], [two, one]] {
        let (first, second) = (sources[0].name.clone(), sources[1].name.clone());
        let text = compile(&sources).unwrap_err().to_string();
        for what in [
            "workload `w` is defined twice",
            "`a.com` on port 443 belongs to two apis",
            "recognised by the same selector",
        ] {
            let line = text.lines().position(|line| line.contains(what)).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines[line].starts_with(&second), "{text}");
            assert!(lines[line + 4].contains(&first), "{text}");
        }
    }
}

#[test]
fn a_typo_gets_the_nearest_key_and_name() {
    let text = with_text("hosts: [a.com]", "hosts: [a.com], prot: 1");
    assert!(
        text.contains("p.yaml:3:30: error: unknown key `prot` in the api"),
        "{text}"
    );
    assert!(
        text.contains(
            "= help: did you mean `port`? known keys: `addresses`, `hosts`, `meter`, `port`, `scheme`, `sni`, `tcp`, `tls`"
        ),
        "{text}"
    );
    let text = with_text("role: reader", "role: raeder");
    assert!(
        text.contains("there is no role `raeder`") && text.contains("did you mean `reader`?"),
        "{text}"
    );
}

fn with_text(part: &str, replacement: &str) -> String {
    let text = "version: 1\nworkloads: { w: {} }\napis: { a: { hosts: [a.com] } }\n\
        roles: { reader: [{ api: a, allow: [{ route: GET /x }] }] }\ngrants: [{ role: reader, to: { workload: w } }]\n";
    compile(&[source("p.yaml", &text.replace(part, replacement))])
        .unwrap_err()
        .to_string()
}

#[test]
fn warnings_do_not_refuse() {
    let text = "version: 1\nworkloads: { w: {} }\napis: { a: { hosts: [a.com] } }\nroles: { r: [{ api: a, allow: [{ route: GET /x }] }] }\n";
    let warnings = compiled(text).warnings;
    let found: Vec<&str> = warnings
        .iter()
        .map(|fault| fault.message.as_str())
        .collect();
    assert_eq!(
        found,
        [
            "workload `w` has no grants",
            "role `r` is granted to nobody"
        ]
    );
    assert!(!warnings.has_errors());
}

#[test]
fn hostile_documents_are_bounded() {
    use std::time::{Duration, Instant};
    let start = Instant::now();
    let patterns = (0..2_000)
        .map(|n| format!("{{ route: 'GET /{{a:x{n}[a-z]{{40}}}}' }}, "))
        .collect::<String>();
    let found = with("{ route: GET /x }", &patterns);
    assert!(
        found[0].contains("more than 1024 different patterns"),
        "{}",
        found[0]
    );
    let roles = (0..3_000).map(|n| {
        format!(
            "  r{n}: [{{ api: a, allow: [{}] }}]\n",
            "{ route: GET /x }, ".repeat(20)
        )
    });
    let workloads = (0..3_000).map(|n| format!("  w{n}: {{}}\n"));
    let grants = (0..3_000).flat_map(|n| {
        (0..20).map(move |m| {
            format!(
                "- {{ role: r{}, to: {{ workload: w{n} }} }}\n",
                (n * 7 + m * 131) % 3_000
            )
        })
    });
    let text = format!(
        "version: 1\napis: {{ a: {{ hosts: [a.com] }} }}\nroles:\n{}workloads:\n{}grants:\n{}",
        roles.collect::<String>(),
        workloads.collect::<String>(),
        grants.collect::<String>()
    );
    let _ = compile(&[source("p.yaml", &text)]);
    assert!(
        start.elapsed() < Duration::from_secs(60),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn openings_are_ports_and_whole_names() {
    let ports: String = (1..=65).map(|port| format!("{port},")).collect();
    let cases = [
        (
            "listen: [0]",
            "2:56: expected an integer from 1 to 65535, found `0`",
        ),
        (
            "listen: 8080",
            "2:55: expected a list (`- item` lines, or `[item, item]`), found an integer",
        ),
        (
            "established: kill",
            "2:60: expected one of `destroy`, `report`, found `kill`",
        ),
        ("unix: [run/x]", "2:54: `run/x` is no socket's name"),
        ("unix: [/]", "2:54: `/` is no socket's name"),
        ("unix: [/**]", "2:54: `/**` is no socket's name"),
        ("unix: [/a/../b]", "2:54: `/a/../b` is no socket's name"),
        ("unix: [/a/**/b]", "2:54: `/a/**/b` is no socket's name"),
        ("unix: [/a//**]", "2:54: `/a//**` is no socket's name"),
        ("unix: [\"@\"]", "2:54: `@` is no socket's name"),
    ];
    for (openings, expected) in cases {
        let replacement = format!("match: {{ unit: w.service }}, {openings}");
        assert_eq!(with("match: { unit: w.service }", &replacement), [expected]);
    }
    let many = format!("match: {{ unit: w.service }}, listen: [{ports}]");
    let found = with("match: { unit: w.service }", &many);
    assert!(found[0].contains("at most 64 ports"), "{found:?}");
    let long = format!("match: {{ unit: w.service }}, unix: [/{}]", "x".repeat(107));
    assert_eq!(with("match: { unit: w.service }", &long).len(), 1);
}
