//! Who is granted what: identities, groups, expiry, roles with parameters, inclusion; and what is said where
//! it is written wrong.
use super::*;
use crate::Mode;

const WHO: &str = r#"version: 1
workloads: { builder: {}, notebooks: {}, idle: {} }
identities:
  alice: { token: tgi_alice }
  bob: { token: tgi_bob }
  ci-main: { jwt: { issuer: "https://ci.example", audience: tollgate, claims: { repo: acme/app, "attempt": 1 } } }
groups: { oncall: [alice, ci-main], staff: [alice, bob] }
apis:
  web: { hosts: [a.com] }
  pinned: { sni: [pin.com, "*.pin.com"], port: 8443 }
  cache: { tcp: ["10.0.0.7:6379", "10.0.0.0/8:5432", "[2001:db8::/32]:5432", "192.0.2.0/24:443"] }
  wide: { tcp: ["10.0.0.0/24:6379"] }
roles:
  reader(repo): [{ api: web, allow: [{ route: "read-only /repos/${repo}/**" }] }]
  pair(one, two): [{ include: "reader(repo: ${two})" }, { api: web, allow: [{ route: "GET /${one}", query: { state: ["${two}"] } }] }]
  left: [{ include: base }]
  right: [{ include: base }]
  both: [{ include: left }, { include: right }]
  base: [{ api: web, allow: [{ route: GET /base }] }]
  tcp: [{ api: cache }, { api: pinned }]
  late: [{ api: web, allow: [{ route: GET /late }] }]
  strict:
    - api: web
      allow:
        - route: POST /strict
          headers: { allow: [x-trace], require: { X-Tenant: [acme], accept: "/application/.*/" }, strip: [user-agent] }
grants:
  - { role: reader(repo=acme/app), to: { workload: builder } }
  - { role: "pair(two: acme/lib, one: one)", to: { workload: [builder, notebooks], identity: alice } }
  - { role: both, to: { group: oncall } }
  - { role: late, to: { identity: [alice, bob], group: oncall }, until: 2026-06-01, mode: observe }
  - { role: tcp, to: { workload: builder, group: staff }, mode: observe }
  - { role: strict, to: { workload: notebooks } }
"#;

/// 2026-06-01, its last second.
const END: i64 = NOW + 86_399;

struct Who<'a>(&'a str, Option<&'a str>, i64);

impl Who<'_> {
    /// The label of the rule that allows, or the code of the denial.
    fn outcome(&self, policy: &Policy, method: &str, path: &str) -> String {
        self.with(policy, method, path, &[])
    }

    fn with(&self, policy: &Policy, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        let decision = self.decide(policy, method, path, headers);
        match decision.reason {
            None => decision.rule.unwrap().label.to_string(),
            Some(reason) => reason.code.to_owned(),
        }
    }

    fn decide<'p>(
        &self,
        policy: &'p Policy,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Decision<'p> {
        let host = Host::parse("a.com").unwrap();
        let target = Target::parse(path).unwrap();
        let request = Request {
            scheme: Scheme::Https,
            host: &host,
            port: 443,
            method,
            target: &target,
            headers: &Fields(headers),
            body: Body::Absent,
            now: self.2,
        };
        match policy.decide(&self.subject(), &request) {
            Outcome::Decided(decision) => decision,
            Outcome::NeedsBody { .. } => panic!("the body is asked for"),
        }
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            workload: self.0,
            identity: self.1,
        }
    }
}

#[test]
fn everything_that_a_grant_asks_for_must_hold() {
    let policy = compiled(WHO).policy;
    let base = "role:base allow GET /base";
    let late = "role:late allow GET /late";
    let pair = "role:pair(one: one, two: acme/lib) allow GET /one";
    let reader = "role:reader(repo: acme/lib) allow read-only /repos/acme/lib/**";
    let cases = [
        // A group, on any workload.
        ("builder", Some("alice"), NOW, "/base", base),
        ("idle", Some("ci-main"), NOW, "/base", base),
        ("idle", Some("bob"), NOW, "/base", "identity"),
        ("idle", None, NOW, "/base", "identity_required"),
        ("idle", Some("stranger"), NOW, "/base", "identity"),
        ("unheard-of", Some("alice"), NOW, "/base", "no_grant"),
        // A workload and an identity.
        ("notebooks", Some("alice"), NOW, "/one?state=acme/lib", pair),
        (
            "notebooks",
            Some("alice"),
            NOW,
            "/one?state=other",
            "query_value",
        ),
        (
            "notebooks",
            Some("bob"),
            NOW,
            "/one?state=acme/lib",
            "identity",
        ),
        ("notebooks", None, NOW, "/one", "identity_required"),
        ("idle", Some("alice"), NOW, "/one", "no_route"),
        // What is included has the arguments of who includes it.
        ("notebooks", Some("alice"), NOW, "/repos/acme/lib/x", reader),
        (
            "notebooks",
            Some("alice"),
            NOW,
            "/repos/acme/app/x",
            "no_route",
        ),
        // An identity that is also in the group, until the end of a day.
        ("idle", Some("alice"), END, "/late", late),
        ("idle", Some("alice"), END + 1, "/late", "expired"),
        ("idle", Some("bob"), NOW, "/late", "identity"),
        ("idle", Some("ci-main"), NOW, "/late", "identity"),
    ];
    for (workload, identity, now, path, expected) in cases {
        let found = Who(workload, identity, now).outcome(&policy, "GET", path);
        assert_eq!(found, expected, "{workload} {identity:?} {path}");
    }
    let builder = Who("builder", None, NOW);
    let app = "role:reader(repo: acme/app) allow read-only /repos/acme/app/**";
    assert_eq!(builder.outcome(&policy, "HEAD", "/repos/acme/app"), app);
    assert_eq!(
        builder.outcome(&policy, "POST", "/repos/acme/app"),
        "method"
    );
    assert_eq!(builder.outcome(&policy, "GET", "/repos/acme"), "no_route");
}

#[test]
fn only_grants_that_hold_say_the_mode() {
    let policy = compiled(WHO).policy;
    let mode = |who: &Who<'_>| who.decide(&policy, "GET", "/nothing", &[]).mode;
    // `late` is observed; `both` is enforced for those on call.
    assert_eq!(mode(&Who("idle", Some("alice"), NOW)), Mode::Enforce);
    assert_eq!(mode(&Who("idle", Some("bob"), NOW)), Mode::Enforce);
    let only = WHO.replace("  - { role: both, to: { group: oncall } }\n", "");
    let policy = compiled(&only).policy;
    let mode = |who: &Who<'_>| who.decide(&policy, "GET", "/nothing", &[]).mode;
    assert_eq!(mode(&Who("idle", Some("alice"), END)), Mode::Observe);
    assert_eq!(mode(&Who("idle", Some("alice"), END + 1)), Mode::Enforce);
    assert_eq!(mode(&Who("idle", None, NOW)), Mode::Enforce);
}

#[test]
fn groups_of_an_identity() {
    let policy = compiled(WHO).policy;
    assert_eq!(policy.groups_of("alice"), ["oncall", "staff"]);
    assert_eq!(policy.groups_of("ci-main"), ["oncall"]);
    assert_eq!(policy.groups_of("stranger"), [""; 0]);
    let names: Vec<&str> = policy.identities().iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["alice", "bob", "ci-main"]);
    let crate::Proof::Jwt { claims, .. } = &policy.identities()[2].proof else {
        panic!("a token");
    };
    let claim = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(*claims, [claim("attempt", "1"), claim("repo", "acme/app")]);
}

#[test]
fn required_and_stripped_headers() {
    let policy = compiled(WHO).policy;
    let who = Who("notebooks", None, NOW);
    let post = |headers: &[(&str, &str)]| who.with(&policy, "POST", "/strict", headers);
    let (tenant, accept) = (("x-tenant", "acme"), ("accept", "application/json"));
    assert_eq!(post(&[tenant, accept]), "role:strict allow POST /strict");
    assert_eq!(post(&[accept]), "header_missing");
    assert_eq!(post(&[tenant]), "header_missing");
    assert_eq!(post(&[tenant, accept, tenant]), "header_value");
    assert_eq!(post(&[("x-tenant", "other"), accept]), "header_value");
    assert_eq!(post(&[tenant, ("accept", "text/html")]), "header_value");
    assert_eq!(
        post(&[tenant, ("accept", "application/json, text/html")]),
        "role:strict allow POST /strict"
    );
    let headers = who
        .decide(&policy, "POST", "/strict", &[tenant, accept])
        .plan
        .headers;
    for (name, passes) in [
        ("x-trace", true),
        ("x-tenant", true),
        ("accept", true),
        ("user-agent", false),
        ("x-other", false),
        ("authorization", false),
    ] {
        assert_eq!(headers.passes(name), passes, "{name}");
    }
    let reason = who
        .decide(&policy, "POST", "/strict", &[tenant])
        .reason
        .unwrap();
    assert_eq!(reason.detail, "header `accept` is required by POST /strict");
}

#[test]
fn connections_that_are_not_inspected() {
    let policy = compiled(WHO).policy;
    let to = |identity, address: &str, now| {
        let address = crate::Connection::Address(address.parse().unwrap());
        let subject = Subject {
            workload: "builder",
            identity,
        };
        let decision = policy.connect(&subject, address, now)?;
        let code = decision.reason.as_ref().map_or("", |reason| reason.code);
        let api = decision.plan.api.unwrap().name.clone();
        Some((api, code, decision.mode))
    };
    let cache = |code, mode| Some(("cache".to_owned(), code, mode));
    let (alice, observe) = (Some("alice"), Mode::Observe);
    assert_eq!(to(alice, "10.0.0.7:6379", NOW), cache("", observe));
    assert_eq!(to(alice, "10.9.9.9:5432", NOW), cache("", observe));
    assert_eq!(to(alice, "[2001:db8::7]:5432", NOW), cache("", observe));
    assert_eq!(to(alice, "[::ffff:10.0.0.7]:6379", NOW), cache("", observe));
    assert_eq!(
        to(None, "10.9.9.9:5432", NOW),
        cache("identity_required", Mode::Enforce)
    );
    assert_eq!(
        to(Some("ci-main"), "10.9.9.9:5432", NOW),
        cache("identity", Mode::Enforce)
    );
    // The longest prefix, and only that.
    let wide = to(alice, "10.0.0.8:6379", NOW);
    assert_eq!(wide, Some(("wide".to_owned(), "no_grant", Mode::Enforce)));
    assert_eq!(to(alice, "10.0.0.7:6380", NOW), None);
    assert_eq!(to(alice, "11.0.0.7:6379", NOW), None);
    // Where others are inspected on the port, so is what is not granted.
    assert_eq!(to(alice, "192.0.2.1:443", NOW), cache("", observe));
    assert_eq!(to(None, "192.0.2.1:443", NOW), None);
    let named = |name: &str, port| {
        let host = Host::parse(name).unwrap();
        let subject = Subject {
            workload: "builder",
            identity: alice,
        };
        let connection = crate::Connection::Name(&host, port);
        let decision = policy.connect(&subject, connection, NOW)?;
        Some((decision.verdict, decision.rule.unwrap().label.to_string()))
    };
    let pinned = Some((Verdict::Allow, "role:tcp connect pinned".to_owned()));
    assert_eq!(named("pin.com", 8443), pinned);
    assert_eq!(named("x.pin.com", 8443), pinned);
    assert_eq!(named("x.y.pin.com", 8443), None);
    assert_eq!(named("pin.com", 443), None);
    assert_eq!(named("a.com", 443), None);
}

/// What is written, and the fault: `line:column: message`, and its help.
fn wrong(cases: &[(&str, &str, &str, &str)]) {
    let mut found = Vec::new();
    for (part, replacement, fault, help) in cases {
        assert!(WHO.contains(part), "{part}");
        let text = WHO.replacen(part, replacement, 1);
        let faults = compile(&[source("p.yaml", &text)])
            .err()
            .unwrap_or_default();
        let shown: Vec<String> = faults
            .iter()
            .map(|fault| {
                let help = fault.help.as_deref().unwrap_or("");
                format!(
                    "{}:{}: {} ({help})",
                    fault.at.line, fault.at.column, fault.message
                )
            })
            .collect();
        if !shown.contains(&format!("{fault} ({help})")) {
            found.push(format!("{fault} ({help})\n    {}", shown.join("\n    ")));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn faults_of_identities_and_groups() {
    wrong(&[
        (
            "{ token: tgi_bob }",
            "{ token: bob }",
            "5:17: this is not the public half of a token",
            "it begins with `tgi_`; never write the secret half into a policy",
        ),
        (
            "{ token: tgi_bob }",
            "{ tokn: tgi_bob }",
            "5:10: unknown key `tokn` in the identity",
            "did you mean `token`? known keys: `jwt`, `token`",
        ),
        (
            "{ token: tgi_bob }",
            "{}",
            "5:8: the identity needs `token` or `jwt`",
            "",
        ),
        (
            "{ token: tgi_bob }",
            "{ token: tgi_b, jwt: {} }",
            "5:24: an identity is proven by `token` or by `jwt`",
            "make two identities, and a group of both",
        ),
        (
            "tgi_bob",
            "tgi_alice",
            "5:3: two identities are proven by the same",
            "the other stands at p.yaml:4:3",
        ),
        (
            "https://ci.example",
            "http://ci.example",
            "6:29: `http://ci.example` is no issuer",
            "write the `iss` of its tokens: a URL that begins with `https://`",
        ),
        (
            "audience: tollgate, ",
            "",
            "6:19: `jwt` needs `audience`",
            "",
        ),
        (
            "repo: acme/app",
            "aud: x",
            "6:81: the claim `aud` is checked anyway",
            "`issuer` and `audience` say what `iss` and `aud` must be",
        ),
        (
            "repo: acme/app",
            "repo: [x]",
            "6:87: expected the claim's one value, found a list",
            "",
        ),
        (
            "oncall: [alice, ci-main]",
            "oncall: [alice, ci-mian]",
            "7:27: there is no identity `ci-mian`",
            "did you mean `ci-main`?",
        ),
        (
            "oncall: [alice, ci-main]",
            "oncall: []",
            "7:19: this list is empty",
            "list at least one, or remove the key",
        ),
        (
            "staff: [alice, bob] }",
            "staff: alice }",
            "7:44: expected a list (`- item` lines, or `[item, item]`), found a string",
            "",
        ),
    ]);
}

#[test]
fn faults_of_grants() {
    let grant = "to: { group: oncall }";
    wrong(&[
        (
            grant,
            "to: { group: onkall }",
            "30:32: there is no group `onkall`",
            "did you mean `oncall`?",
        ),
        (
            grant,
            "to: { identity: carol }",
            "30:35: there is no identity `carol`",
            "define it under `identities:`",
        ),
        (
            grant,
            "to: { groups: oncall }",
            "30:25: unknown key `groups` in the grantee",
            "did you mean `group`? known keys: `group`, `identity`, `workload`",
        ),
        (
            grant,
            "to: { workload: [] }",
            "30:35: this list is empty",
            "list at least one, or remove the key",
        ),
        (
            grant,
            "to: {}",
            "30:23: the grantee needs `workload`, `identity` or `group`",
            "for example `workload: report-builder`",
        ),
        (
            "until: 2026-06-01",
            "until: 2026-6-1",
            "31:73: `2026-6-1` is neither a date nor a time",
            "write `2026-12-31` (through the end of that day, UTC) or `2026-12-31T18:00:00Z`",
        ),
        (
            "until: 2026-06-01",
            "until: 2026-02-30",
            "31:73: `2026-02-30` is neither a date nor a time",
            "write `2026-12-31` (through the end of that day, UTC) or `2026-12-31T18:00:00Z`",
        ),
        (
            "role: both",
            "role: boht",
            "30:13: there is no role `boht`",
            "did you mean `both`?",
        ),
    ]);
    let nobody = WHO.replace(
        "identity: [alice, bob], group: oncall",
        "identity: bob, group: oncall",
    );
    let warnings = compiled(&nobody).warnings.to_string();
    assert!(
        warnings.contains("policy.yaml:31:13: warning: nobody fits this grant"),
        "{warnings}"
    );
}

#[test]
fn faults_of_parameters_and_inclusion() {
    let given = "\"pair(two: acme/lib, one: one)\"";
    wrong(&[
        (
            given,
            "pair",
            "29:13: role `pair` needs the argument `two`",
            "write \"pair(two: …)\"",
        ),
        (
            given,
            "\"pair(two: a)\"",
            "29:13: role `pair` needs the argument `one`",
            "write \"pair(one: …)\"",
        ),
        (
            given,
            "\"pair(two: a, one: b, tow: c)\"",
            "29:13: role `pair` has no parameter `tow`",
            "did you mean `two`?",
        ),
        (
            given,
            "\"pair(two: a, one: b, one: c)\"",
            "29:13: the argument `one` stands twice",
            "",
        ),
        (
            given,
            "\"pair(two: a*, one: b)\"",
            "29:13: `a*` is no argument of a role",
            "an argument is 1 to 256 letters, digits or `._~/@:+=-`: it fills a place and widens nothing",
        ),
        (
            given,
            "\"pair(a)\"",
            "29:13: `a` is no argument of a role",
            "write `role(name: value)`, in quotes, or `role(name=value)`",
        ),
        (
            "/repos/${repo}/**",
            "/repos/${rep}/**",
            "14:47: `rep` is no parameter of this role",
            "did you mean `${repo}`?",
        ),
        (
            "/repos/${repo}/**",
            "/repos/${repo/**",
            "14:47: `${` has no closing brace",
            "write `${name}`, where `name` is a parameter of the role",
        ),
        (
            "reader(repo): ",
            "reader(repo, repo): ",
            "14:3: `repo` is no parameter's name here",
            "write each once, in letters, digits or `_`: `repo-reader(owner, repo)`",
        ),
        (
            "base: [{ api: web, allow: [{ route: GET /base }] }]",
            "base: [{ include: both }]",
            "16:21: the role includes itself",
            "the circle is base → both → left → base",
        ),
        (
            "left: [{ include: base }]",
            "left: [{ include: bose }]",
            "16:21: there is no role `bose`",
            "did you mean `base`?",
        ),
        (
            "left: [{ include: base }]",
            "left: [{ include: base, api: web }]",
            "16:27: unknown key `api` in the inclusion",
            "known keys: `include`",
        ),
    ]);
}

#[test]
fn faults_of_headers_and_of_what_is_not_inspected() {
    let headers = "headers: { allow: [x-trace], require: { X-Tenant: [acme], accept: \"/application/.*/\" }, strip: [user-agent] }";
    wrong(&[
        (
            headers,
            "headers: { allow: [x-a], strip: [X-A] }",
            "26:44: the header `x-a` both passes and is stripped",
            "",
        ),
        (
            headers,
            "headers: { require: { cookie: string } }",
            "26:33: the header `cookie` is a slot for a credential",
            "let the client's own credentials pass with `credential: client`",
        ),
        (
            headers,
            "headers: { require: { x-a: [string] } }",
            "26:38: a required header has one value, and not a list",
            "",
        ),
        (
            headers,
            "headers: { require: { x-a: int, X-A: int } }",
            "26:43: the header `x-a` is required twice",
            "",
        ),
        (
            headers,
            "headers: { require: { host: string } }",
            "26:33: the header `host` never passes",
            "",
        ),
        (
            "[{ api: cache }, ",
            "[{ api: cache, allow: [{ route: GET / }] }, ",
            "20:23: api `cache` is not inspected: this cannot be held there",
            "an entry that has only `api:` lets connect; or give the api `hosts`",
        ),
        (
            "[{ api: web, allow: [{ route: GET /late }] }]",
            "[{ api: web }]",
            "21:10: the role's entry needs `allow` or `deny`",
            "",
        ),
        (
            "sni: [pin.com",
            "hosts: [b.com], sni: [pin.com",
            "10:29: an api has one of `hosts`, `sni` and `tcp`",
            "make an api of each",
        ),
        (
            "port: 8443",
            "tls: { ca: \"file:x\" }",
            "10:42: `tls` means nothing for an api with `sni`",
            "",
        ),
        (
            "10.0.0.7:6379\"",
            "10.0.0.7\"",
            "11:18: expected an address and port such as `10.0.0.7:6379`, `10.1.0.0/16:5432` or `[2001:db8::1]:5432`, found `10.0.0.7`",
            "",
        ),
        (
            "10.0.0.0/8:5432",
            "10.0.0.1/8:5432",
            "11:35: the range has bits set behind its prefix; it would be `10.0.0.0/8`",
            "",
        ),
        (
            "10.0.0.0/24:6379",
            "10.0.0.7:6379",
            "12:17: `10.0.0.7/32:6379` stands twice",
            "the other stands at p.yaml:11:18; an address and port is one api's",
        ),
    ]);
}
