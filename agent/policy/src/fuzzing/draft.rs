//! Policy documents made from bytes: each choice takes one, so that a changed byte is a changed choice.
//! The vocabulary is the whole language, with now and then a word that is none of it.
use std::fmt::Write;

/// Words that stand in a good document, and some that are faults.
struct Words {
    good: &'static [&'static str],
    odd: &'static [&'static str],
}

/// Reads choices from the bytes; all the highest when they are used up.
struct Choices<'a> {
    bytes: std::slice::Iter<'a, u8>,
    /// Which groups of constructs stand in this document, by bit: most documents have few.
    groups: u8,
}

const ROLES_OF_ROLES: u8 = 1;
const WHEN: u8 = 2;
const BODIES: u8 = 4;
const RESPONSES: u8 = 8;
const PROTOCOLS: u8 = 16;
const SUBJECTS: u8 = 32;
const UNINSPECTED: u8 = 64;
const PRESETS: u8 = 128;

impl<'a> Choices<'a> {
    fn byte(&mut self) -> u8 {
        self.bytes.next().copied().unwrap_or(u8::MAX)
    }

    /// Below `limit`.
    fn below(&mut self, limit: u8) -> u8 {
        self.byte().checked_rem(limit).unwrap_or(0)
    }

    /// Once in so many.
    fn once_in(&mut self, many: u8) -> bool {
        self.below(many) == 0 && !self.bytes.as_slice().is_empty()
    }

    /// As [`Choices::once_in`], where the document has this group of constructs.
    fn with(&mut self, group: u8, many: u8) -> bool {
        self.groups & group != 0 && self.once_in(many)
    }

    fn of<T: Copy + Default>(&mut self, list: &[T]) -> T {
        let number = usize::from(self.byte());
        let index = number.checked_rem(list.len()).unwrap_or(0);
        list.get(index).copied().unwrap_or_default()
    }

    /// A word of the list, rarely an odd one or a short text of the bytes themselves.
    fn word(&mut self, words: &Words) -> String {
        match self.byte() {
            0 => {
                let length = usize::from(self.below(12));
                let bytes: Vec<u8> = self.bytes.by_ref().take(length).copied().collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            1..=2 => self.of(words.odd).to_owned(),
            byte => {
                let number = usize::from(byte).checked_rem(words.good.len());
                let word = words.good.get(number.unwrap_or(0));
                word.copied().unwrap_or_default().to_owned()
            }
        }
    }

    /// Different words between brackets.
    fn list(&mut self, words: &Words) -> String {
        let mut list: Vec<String> = (0..=self.below(3)).map(|_| self.word(words)).collect();
        list.sort();
        list.dedup();
        format!("[{}]", list.join(", "))
    }
}

const WORKLOADS: Words = Words {
    good: &["w0", "w1", "w2"],
    odd: &["w9"],
};
const IDENTITIES: Words = Words {
    good: &["alice", "ci"],
    odd: &["nobody"],
};
const APIS: Words = Words {
    good: &["a0", "a1", "a2"],
    odd: &["a9"],
};
const ROLES: Words = Words {
    good: &["r0", "r1", "r2"],
    odd: &["r3(x: a)", "r9", "\"r3()\"", "\"r0(x: 1)\""],
};
const HOSTS: Words = Words {
    good: &[
        "a.example",
        "\"*.a.example\"",
        "b.example",
        "\"*.b.example\"",
        "bücher.example",
        "198.51.100.7",
        "\"[2001:db8::1]\"",
        "A.EXAMPLE",
        "c.example",
        "d.example",
        "\"*.e.example\"",
    ],
    odd: &["xn--a", "\"*\"", "a_b", "\"a.example:1\""],
};
const SEGMENTS: Words = Words {
    good: &[
        "a",
        "b",
        "{x}",
        "*",
        "**",
        "{n:int}",
        "{u:uuid}",
        "{p:[a-z]+}",
        "{q:(a|b)*c}",
        "a:b",
        "caf%C3%A9",
        "{r:a{1,9}}",
    ],
    odd: &["a%2Fb", "", "{x:}", "${x}", "{{", "..", "{x:[}"],
};
const METHODS: Words = Words {
    good: &["GET", "POST", "*", "GET|HEAD", "PATCH"],
    odd: &["get", "TRACE", "GET|GET", ""],
};
const NAMES: Words = Words {
    good: &[
        "state", "page", "q", "api_key", "labels", "\"a.b\"", "x_y", "_method",
    ],
    odd: &["\"a b\"", "x: y", "\"\""],
};
const SHAPES: Words = Words {
    good: &[
        "string",
        "int",
        "number",
        "bool",
        "uuid",
        "any",
        "1..100",
        "-5..5",
        "\"/[a-z]+/\"",
        "\"/(a*)*b/\"",
        "[open, closed]",
        "[string]",
        "[[a, b]]",
        "[1, 2]",
    ],
    odd: &[
        "9..1",
        "\"/(/\"",
        "[]",
        "null",
        "7",
        "strin",
        "\"/(a*)*{9}{9}{9}/\"",
    ],
};
const SIZES: Words = Words {
    good: &["16KiB", "1B", "16MiB", "64"],
    odd: &["17MiB", "0", "1TiB", "-1"],
};
const HEADERS: Words = Words {
    good: &["x-tenant", "accept", "user-agent", "x-reason", "x-b3"],
    odd: &["host", "X-Upper", "authorization", "x_y", "cookie"],
};
const POINTERS: Words = Words {
    good: &[
        "/a",
        "/a/b",
        "/items/*/token",
        "\"\"",
        "/~0~1",
        "/*",
        "/debug",
    ],
    odd: &["a", "/~2"],
};
const WHENS: Words = Words {
    good: &[
        "\"request.json.a == 1\"",
        "\"!('secret' in request.json.labels)\"",
        "\"path.x != 'a'\"",
        "\"now > 5\"",
        "\"subject.workload == 'w0'\"",
        "\"request.query.q\"",
        "\"true || [1,2].all(x, x > 0)\"",
    ],
    odd: &["\"(\"", "1", "\"\""],
};
const UNTIL: Words = Words {
    good: &["2026-12-31", "\"2026-12-31T10:00:00Z\""],
    odd: &["2026-02-30", "tomorrow", "1"],
};
const TO: Words = Words {
    good: &["workload", "identity", "group"],
    odd: &["nobody"],
};

const VALUES: Words = Words {
    good: &["Bearer {secret}", "{secret}"],
    odd: &["{secret}{secret}", "none"],
};
const SECRETS: Words = Words {
    good: &[
        "secret: \"file:c0\"",
        "secret: \"vault:c/0#key\"",
        "aws-sigv4: { access_key: \"file:id\", secret_key: \"file:key\", region: eu-west-1 }",
    ],
    odd: &[
        "secret: \"vault:../c#key\"",
        "aws-sigv4: { access_key: \"file:id\", service: S3 }",
    ],
};
const WHOSE: Words = Words {
    good: &["client"],
    odd: &["c0", "c9"],
};
const EXTRA: Words = Words {
    good: &["deny", "strip"],
    odd: &["both"],
};
const MODES: Words = Words {
    good: &["observe", "enforce"],
    odd: &["off"],
};

const METERS: Words = Words {
    good: &["openai", "anthropic", "gemini"],
    odd: &["none"],
};
const EACH: Words = Words {
    good: &["identity", "workload"],
    odd: &["group"],
};
const LIMITS: Words = Words {
    good: &[
        "bytes: 1GiB/day",
        "requests: 60/min",
        "requests: 5k/hour",
        "tokens: 2M/day",
        "usd: 50/day",
        "usd: 0.000001/hour",
    ],
    odd: &[
        "usd: 1e3/day",
        "tokens: 99999999999999999999/day",
        "bytes: 0/day",
    ],
};
const PRICES: Words = Words {
    good: &[
        "\"small*\": { input: 0.15, output: 0.60 }",
        "a/b:c: { input: 1, output: 2, cached: 0.5, cache_write: 3, max_output: 9 }",
    ],
    odd: &[
        "\"*\": { input: 1, output: 1 }",
        "m: { input: 0.0000001, output: x }",
    ],
};

/// Two files that together are one policy, or nearly.
pub(super) fn documents(data: &[u8]) -> [String; 2] {
    let mut choices = Choices {
        bytes: data.iter(),
        groups: 0,
    };
    choices.groups = choices.byte() & choices.byte();
    let mut texts = ["version: 1\n".to_owned(), "version: 1\n".to_owned()];
    let sections: [fn(&mut Choices<'_>) -> String; 8] = [
        workloads,
        apis,
        roles,
        grants,
        identities,
        groups,
        credentials,
        budgets,
    ];
    for section in sections {
        let text = section(&mut choices);
        let [one, two] = &mut texts;
        if choices.once_in(3) { two } else { one }.push_str(&text);
    }
    texts
}

fn workloads(choices: &mut Choices<'_>) -> String {
    let mut text = "workloads:\n".to_owned();
    for name in ["w0", "w1", "w2"] {
        // Nobody may have the selector of another.
        let selector = match choices.below(48) {
            0..3 if choices.groups & UNINSPECTED == 0 => String::new(),
            1 => "{ user: intern, exe: /usr/bin/x }".to_owned(),
            2 => "{ labels: { app: \"w-*\", tier: 1 }, container: img }".to_owned(),
            0..3 => "{ container: \"img-*\" }".to_owned(),
            3 => "{ unit: 5 }".to_owned(),
            4..24 => format!("{{ unit: {name}.service }}"),
            24..36 => format!("[{{ unit: {name}b.service }}, {{ cgroup: \"/{name}/**\" }}]"),
            _ => String::new(),
        };
        let _ = match selector.as_str() {
            "" => writeln!(text, "  {name}: {{}}"),
            selector => writeln!(text, "  {name}: {{ match: {selector} }}"),
        };
    }
    text
}

fn apis(choices: &mut Choices<'_>) -> String {
    let mut text = "apis:\n".to_owned();
    for (name, port) in [("a0", "443"), ("a1", "8443"), ("a2", "9443")] {
        let mut api = vec![format!("hosts: {}", choices.list(&HOSTS))];
        // Ports of their own, so that few hosts are claimed twice.
        if !choices.once_in(48) {
            api.push(format!("port: {port}"));
        }
        if choices.once_in(5) {
            api.push("tls: { ca: \"file:ca\" }".to_owned());
        }
        if choices.once_in(5) {
            api.push("addresses: [10.0.0.0/8, \"fd00::/8\"]".to_owned());
        }
        if choices.with(PRESETS, 3) {
            api.push(format!("meter: {}", choices.word(&METERS)));
        }
        let _ = writeln!(text, "  {name}: {{ {} }}", api.join(", "));
    }
    if choices.with(UNINSPECTED, 2) {
        let what = choices.of(&[
            "tcp: [\"10.0.0.7:6379\"]",
            "sni: [c.example], port: 443",
            "tcp: [x]",
        ]);
        let _ = writeln!(text, "  cache: {{ {what} }}");
    }
    text
}

fn identities(choices: &mut Choices<'_>) -> String {
    if !choices.with(SUBJECTS, 1) {
        return String::new();
    }
    let claims = choices.word(&NAMES);
    format!(
        "identities:\n  alice: {{ token: tgi_0123456789abcdef }}\n  ci: {{ jwt: {{ issuer: https://ci.example, audience: t, claims: {{ {claims}: x }} }} }}\n"
    )
}

fn groups(choices: &mut Choices<'_>) -> String {
    if !choices.with(SUBJECTS, 1) {
        return String::new();
    }
    format!("groups:\n  oncall: {}\n", choices.list(&IDENTITIES))
}

fn credentials(choices: &mut Choices<'_>) -> String {
    let header = choices.word(&HEADERS);
    let value = choices.word(&VALUES);
    let secret = choices.word(&SECRETS);
    let to = choices.list(&APIS);
    let c0 = match secret.starts_with("aws") {
        true => format!("{secret}, to: {to}"),
        false => format!("{secret}, header: {{ {header}: \"{value}\" }}, to: {to}"),
    };
    format!("credentials:\n  c0: {{ {c0} }}\n")
}

fn budgets(choices: &mut Choices<'_>) -> String {
    if !choices.with(SUBJECTS, 2) {
        return String::new();
    }
    let mut text = "budgets:\n".to_owned();
    for name in ["b0", "b1"] {
        let whom = format!("{}: {}", choices.word(&TO), choices.word(&WORKLOADS));
        let limits: Vec<String> = (0..=choices.below(2))
            .map(|_| choices.word(&LIMITS))
            .collect();
        let _ = writeln!(
            text,
            "  {name}: {{ for: {{ {whom} }}, each: {}, limits: {{ {} }} }}",
            choices.word(&EACH),
            limits.join(", ")
        );
    }
    let price = choices.word(&PRICES);
    let _ = writeln!(text, "prices:\n  {price}");
    text
}

fn roles(choices: &mut Choices<'_>) -> String {
    let mut text = "roles:\n".to_owned();
    for name in ["r0", "r1", "r2", "r3(x)"] {
        if name.contains('(') && choices.groups & ROLES_OF_ROLES == 0 {
            break;
        }
        let _ = writeln!(text, "  {name}:");
        if choices.with(ROLES_OF_ROLES, 4) {
            let _ = writeln!(text, "    - include: {}", role(choices));
        }
        for _ in 0..=choices.below(2) {
            entry(choices, &mut text);
        }
    }
    text
}

fn role(choices: &mut Choices<'_>) -> String {
    if choices.with(ROLES_OF_ROLES, 4) {
        return "\"r3(x: a)\"".to_owned();
    }
    choices.word(&ROLES)
}

fn entry(choices: &mut Choices<'_>, text: &mut String) {
    let _ = writeln!(text, "    - api: {}", choices.word(&APIS));
    if choices.once_in(4) {
        let whose = choices.word(&WHOSE);
        let _ = writeln!(text, "      credential: {whose}");
    }
    text.push_str("      allow:\n");
    for _ in 0..=choices.below(4) {
        rule(choices, text);
    }
    if choices.once_in(3) {
        let _ = writeln!(text, "      deny:\n        - route: '{}'", route(choices));
        if choices.with(WHEN, 4) {
            let _ = writeln!(text, "          when: {}", choices.word(&WHENS));
        }
    }
    if choices.once_in(4) {
        let redact = choices.list(&POINTERS);
        let _ = match choices.groups & RESPONSES == 0 {
            true => writeln!(
                text,
                "      response: {{ strip: {} }}",
                choices.list(&HEADERS)
            ),
            false => writeln!(text, "      response: {{ redact: {redact}, max: 1MiB }}"),
        };
    }
}

fn route(choices: &mut Choices<'_>) -> String {
    let mut route = match choices.with(PRESETS, 2) {
        true => "read-only ".to_owned(),
        false => format!("{} ", choices.word(&METHODS)),
    };
    for number in 0..=choices.below(4) {
        // A name of its own for each placeholder.
        let segment = choices.word(&SEGMENTS);
        let _ = match segment.split_once(['}', ':']) {
            Some((name, _)) if name.starts_with('{') => {
                let rest = segment.get(name.len()..).unwrap_or("");
                write!(route, "/{name}{number}{rest}")
            }
            _ => write!(route, "/{segment}"),
        };
        if segment == "**" {
            break;
        }
    }
    route.replace('\'', "''")
}

fn rule(choices: &mut Choices<'_>, text: &mut String) {
    if choices.with(PROTOCOLS, 8) {
        let grpc = choices.of(&["acme.v1.Ledger/Get|List", "acme.v1.Ledger/*", "x"]);
        let _ = writeln!(text, "        - grpc: {grpc}");
        return;
    }
    let _ = writeln!(text, "        - route: '{}'", route(choices));
    if choices.once_in(2) {
        let fields = fields(choices);
        let _ = writeln!(text, "          query: {{ {fields} }}");
        if choices.once_in(3) {
            let extra = choices.word(&EXTRA);
            let _ = writeln!(text, "          extra: {extra}");
        }
    }
    if choices.once_in(3) {
        body(choices, text);
    }
    if choices.once_in(5) {
        headers(choices, text);
    }
    if choices.with(WHEN, 4) {
        let _ = writeln!(text, "          when: {}", choices.word(&WHENS));
    }
    if choices.with(PROTOCOLS, 4) {
        protocol(choices, text);
    }
}

fn fields(choices: &mut Choices<'_>) -> String {
    let mut fields: Vec<(String, String)> = (0..choices.below(4))
        .map(|_| (choices.word(&NAMES), choices.word(&SHAPES)))
        .collect();
    fields.sort();
    fields.dedup_by(|one, other| one.0 == other.0);
    let field = |(name, shape)| format!("{name}: {shape}");
    fields.into_iter().map(field).collect::<Vec<_>>().join(", ")
}

fn body(choices: &mut Choices<'_>, text: &mut String) {
    let mut body = vec![format!("fields: {{ {} }}", fields(choices))];
    if choices.once_in(2) {
        body.push(format!("max: {}", choices.word(&SIZES)));
    }
    if choices.with(BODIES, 3) {
        body.push(format!("strip: {}", choices.list(&POINTERS)));
    }
    if choices.with(BODIES, 3) {
        body.push(format!("required: {}", choices.list(&NAMES)));
    }
    if choices.with(BODIES, 6) {
        body.push("schema: { type: object, properties: { a: { type: integer } } }".to_owned());
    }
    let _ = writeln!(text, "          body: {{ {} }}", body.join(", "));
}

fn headers(choices: &mut Choices<'_>, text: &mut String) {
    let list = choices.list(&HEADERS);
    let _ = match choices.below(6) {
        _ if choices.groups & PRESETS == 0 => {
            writeln!(text, "          headers: {{ allow: {list} }}")
        }
        0 => writeln!(text, "          headers: {{ strip: {list} }}"),
        1 => writeln!(
            text,
            "          headers: {{ require: {{ {}: {} }} }}",
            choices.word(&HEADERS),
            choices.word(&SHAPES)
        ),
        _ => writeln!(text, "          headers: {{ allow: {list} }}"),
    };
}

fn protocol(choices: &mut Choices<'_>, text: &mut String) {
    let what = choices.of(&[
        "graphql: { query: [viewer, repository.issues], mutation: [addComment], depth: 8 }",
        "graphql: { depth: -1 }",
        "mcp: { methods: [initialize, tools/list], tools: { search: { q: string, limit: 1..10 }, get: any } }",
        "mcp: { tools: 5 }",
        "llm: { models: [small, \"claude-3-*\"], max_tokens: 4096, tools: [search] }",
        "llm: {}",
    ]);
    let _ = writeln!(text, "          {what}");
}

fn grants(choices: &mut Choices<'_>) -> String {
    let mut text = "grants:\n".to_owned();
    for _ in 0..=choices.below(6) {
        let to = match choices.below(8) {
            _ if choices.groups & SUBJECTS == 0 => {
                format!("workload: {}", choices.word(&WORKLOADS))
            }
            0 => format!("{}: {}", choices.word(&TO), choices.list(&IDENTITIES)),
            1 => format!(
                "workload: {}, identity: {}",
                choices.word(&WORKLOADS),
                choices.word(&IDENTITIES)
            ),
            2 => "group: oncall".to_owned(),
            3 => format!("workload: {}", choices.list(&WORKLOADS)),
            _ => format!("workload: {}", choices.word(&WORKLOADS)),
        };
        let mut grant = vec![
            format!("role: {}", role(choices)),
            format!("to: {{ {to} }}"),
        ];
        if choices.with(SUBJECTS, 5) {
            grant.push(format!("until: {}", choices.word(&UNTIL)));
        }
        if choices.once_in(3) {
            grant.push(format!("mode: {}", choices.word(&MODES)));
        }
        let _ = writeln!(text, "  - {{ {} }}", grant.join(", "));
    }
    text
}
