//! What is valid and probably not meant; each warning, and its absence where the cause is gone.
use super::*;

const WHOLE: &str = r#"version: 1
workloads: { w: {} }
identities: { alice: { token: tgi_a }, bob: { token: tgi_b } }
groups: { team: [bob] }
apis:
  a: { hosts: [api.a.com, "10.9.0.1"], addresses: [10.1.0.0/16] }
  b: { hosts: [b.com] }
  cache: { tcp: ["10.0.0.7:6379"] }
  bank: { sni: [pinned.bank.com] }
credentials: { c: { secret: "file:s", header: { authorization: "{secret}" }, to: [a] } }
roles:
  common:
    - api: b
      allow: [{ route: GET /common }]
  param(x):
    - api: b
      allow: [{ route: "GET /${x}" }]
  r:
    - include: common
    - api: a
      credential: c
      allow:
        - route: GET /one
        - route: POST /two
          query: { q: int }
      deny:
        - route: "* /no/**"
    - { api: cache }
    - { api: bank }
grants:
  - { role: r, to: { workload: w, identity: alice } }
  - { role: "param(x: y)", to: { group: team } }
"#;

/// The warnings of the whole policy with one part replaced: `line: message`.
fn with(part: &str, replacement: &str) -> Vec<String> {
    assert!(WHOLE.contains(part), "{part}");
    warnings(&WHOLE.replace(part, replacement))
}

fn warnings(text: &str) -> Vec<String> {
    let warnings = compiled(text).warnings;
    let told = warnings.iter();
    told.map(|fault| format!("{}: {}", fault.at.line, fault.message))
        .collect()
}

#[test]
fn what_is_fine_gives_none() {
    assert_eq!(with("version: 1", "version: 1"), Vec::<String>::new());
}

#[test]
fn each_warning_and_what_causes_it() {
    let cases = [
        // Denied whole.
        (
            "- route: GET /one",
            "- route: GET /no/one",
            "23: the rule never holds: `* /no/**` denies all of it",
        ),
        (
            "- route: GET /one",
            "- route: GET /no/",
            "23: the rule never holds: `* /no/**` denies all of it",
        ),
        // No path is like that.
        (
            "- route: GET /one",
            "- route: 'GET /{x:a/b}'",
            "23: no path has such a segment: the rule never matches",
        ),
        (
            "- route: GET /one",
            "- route: 'GET /{x:a{0}}'",
            "23: no path has such a segment: the rule never matches",
        ),
        // Said twice, or changes nothing.
        (
            "- route: GET /one",
            "- route: GET /one\n        - route: GET /one",
            "24: another rule of the role says the same",
        ),
        (
            "- route: GET /one",
            "- route: GET /{x}/y\n        - route: GET /{z}/y",
            "24: another rule of the role says the same",
        ),
        (
            "- route: GET /one",
            "- route: GET|HEAD /one\n        - route: GET /one",
            "24: the rule changes nothing: `GET|HEAD /one` allows all of it, and asks for nothing more",
        ),
        (
            "- route: GET /one",
            "- route: POST /**",
            "24: the rule changes nothing: `POST /**` allows all of it, and asks for nothing more",
        ),
        (
            "- { api: cache }",
            "- { api: cache }\n    - { api: b, allow: [{ route: GET /common }] }",
            "29: another rule of the role says the same",
        ),
        // Granted to nobody, used by nothing.
        (
            "identity: alice }",
            "identity: bob }",
            "3: nothing uses identity `alice`",
        ),
        (
            "to: { group: team }",
            "to: { identity: bob }",
            "4: nothing uses group `team`",
        ),
        ("    - { api: cache }\n", "", "8: nothing uses api `cache`"),
        (
            "      credential: c\n",
            "",
            "10: nothing uses credential `c`",
        ),
        // Wider than it looks.
        (
            "- route: GET /one",
            "- route: '* /**'",
            "23: this allows every request to api `a`, with every method",
        ),
        (
            "hosts: [api.a.com,",
            "hosts: [\"*.a.com\",",
            "10: credential `c` goes to every host of `*.a.com`",
        ),
        (
            "10.0.0.7:6379",
            "10.2.0.0/23:6379",
            "8: `10.2.0.0/23` is a wide range for connections that are not inspected",
        ),
        (
            "10.0.0.7:6379",
            "[2001:db8::/63]:6379",
            "8: `2001:db8::/63` is a wide range for connections that are not inspected",
        ),
        (
            "10.0.0.7:6379",
            "10.0.0.7:443",
            "8: port 443 is inspected for other apis, and not for this one",
        ),
        // Around the credential.
        (
            "10.0.0.7:6379",
            "10.1.2.3:443",
            "8: api `cache` may lead to the hosts of api `a` without inspection, where credential `c` is used",
        ),
        (
            "10.0.0.7:6379",
            "10.9.0.1:443",
            "8: api `cache` may lead to the hosts of api `a` without inspection, where credential `c` is used",
        ),
        (
            "10.0.0.7:6379",
            "140.0.0.0/8:443",
            "8: api `cache` may lead to the hosts of api `a` without inspection, where credential `c` is used",
        ),
        (
            "sni: [pinned.bank.com]",
            "sni: [\"*.a.com\"]",
            "9: api `bank` may lead to the hosts of api `a` without inspection, where credential `c` is used",
        ),
    ];
    let wrong: Vec<String> = cases
        .iter()
        .map(|(part, replacement, warning)| (warning, with(part, replacement)))
        .filter(|(warning, found)| !found.iter().any(|found| found == *warning))
        .map(|(warning, found)| format!("{warning}\n    {}", found.join("\n    ")))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_only_looks_like_it_gives_none() {
    let cases = [
        // Another method, another path, more than the deny rule takes.
        ("- route: GET /one", "- route: GET /nob"),
        ("- route: GET /one", "- route: GET /**"),
        ("- route: \"* /no/**\"", "- route: \"POST /one\""),
        // Both say something of their own.
        (
            "- route: GET /one",
            "- route: GET /one\n        - route: GET /one\n          query: { token: string }",
        ),
        (
            "- route: GET /one",
            "- route: GET /one\n        - route: GET /one\n          headers: { allow: [x-y] }",
        ),
        (
            "- route: GET /one",
            "- route: GET /one\n          query: { a: int }\n        - route: GET /one\n          query: { b: int }",
        ),
        (
            "- route: GET /one",
            "- route: 'GET /{x:[a-z]+}'\n        - route: 'GET /{x:[a-f]+}'",
        ),
        // The same on another api, with another credential, or in a role that includes nothing of it.
        (
            "- { api: cache }",
            "- { api: cache }\n    - { api: b, allow: [{ route: GET /one }] }",
        ),
        (
            "- { api: cache }",
            "- { api: cache }\n    - { api: a, allow: [{ route: GET /one }] }",
        ),
        // A pattern that some segment fits.
        ("- route: GET /one", "- route: 'GET /{x:(a/b|c)}'"),
        ("10.0.0.7:6379", "10.0.0.0/24:6379"),
        ("10.0.0.7:6379", "10.1.2.3:5432"),
        ("sni: [pinned.bank.com]", "sni: [\"*.api.a.com\"]"),
        ("sni: [pinned.bank.com]", "sni: [\"*.a.com\"], port: 8443"),
    ];
    for (part, replacement) in cases {
        assert_eq!(
            with(part, replacement),
            Vec::<String>::new(),
            "{replacement}"
        );
    }
}

#[test]
fn a_rule_with_arguments_is_idle_only_with_all_of_them() {
    let one = with(
        "route: \"GET /${x}\" }]",
        "route: \"GET /${x}\" }]\n      deny: [{ route: \"GET /y\" }]",
    );
    assert_eq!(one, ["17: the rule never holds: `GET /y` denies all of it"]);
    let text = WHOLE.replace(
        "route: \"GET /${x}\" }]",
        "route: \"GET /${x}\" }]\n      deny: [{ route: \"GET /y\" }]",
    );
    let both = format!("{text}  - {{ role: \"param(x: z)\", to: {{ group: team }} }}\n");
    assert_eq!(warnings(&both), Vec::<String>::new());
}

#[test]
fn large_policies_are_looked_at_in_bounded_time() {
    use std::time::{Duration, Instant};
    let head = "version: 1\nworkloads: { w: {} }\napis: { a: { hosts: [a.com] } }\nroles:\n  r:\n    - api: a\n      allow:\n";
    let tail = "grants: [{ role: r, to: { workload: w } }]\n";
    let same: String = (0..10_000)
        .map(|_| "        - { route: GET /x, query: { a: int } }\n")
        .collect();
    let nested: String = (0..10_000)
        .map(|number| format!("        - route: GET /x/{{a}}/{{b}}/t{number}/**\n"))
        .collect();
    for rules in [same, nested] {
        let start = Instant::now();
        compiled(&format!("{head}{rules}{tail}"));
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
    }
}
