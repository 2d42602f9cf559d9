//! Many names, many grants.
use crate::{HEAD, MOST, check, many};

#[test]
fn definitions() {
    let workloads = |count: usize| many("workloads:\n", count, |n| format!("  w{n}: {{}}\n"), "");
    let roles = |count: usize| {
        many(
            "roles:\n",
            count,
            |n| format!("  r{n}: [{{api: a, allow: [{{route: GET /{n}}}]}}]\n"),
            "",
        )
    };
    let role = "roles: { r: [{ api: a, allow: [{ route: GET /x }] }] }\n";
    let any = "identities: { i: { token: tgi_i } }\n";
    let dates = |n: usize| {
        format!(
            "2{:03}-{:02}-{:02}",
            n / 336 % 1000,
            n / 28 % 12 + 1,
            n % 28 + 1
        )
    };
    check(vec![
        (
            "65 000 apis",
            vec![many(
                "version: 1\napis:\n",
                65_000,
                |n| format!(" a{n}: {{hosts: [a{n}.com]}}\n"),
                "",
            )],
            Some(""),
        ),
        (
            "65 000 ports",
            vec![many(
                "version: 1\napis:\n",
                65_000,
                |n| format!(" a{n}: {{hosts: [a.com], port: {}}}\n", n + 1),
                "",
            )],
            Some(""),
        ),
        (
            "hosts of one api",
            vec![many(
                "version: 1\napis: {a: {hosts: [",
                MOST,
                |n| format!("a{n}.com,"),
                "]}}",
            )],
            Some(""),
        ),
        (
            "endpoints",
            vec![many(
                "version: 1\napis: {a: {tcp: [",
                MOST,
                |n| format!("'10.{}.{}.{}:1',", n >> 16, n >> 8 & 255, n & 255),
                "]}}",
            )],
            Some(""),
        ),
        (
            "names that are nearly right",
            vec![many(
                HEAD,
                MOST,
                |n| match n {
                    0 => "grants:\n".into(),
                    n => format!(" - {{role: repo-raeder-{n}, to: {{workload: w}}}}\n"),
                },
                "roles: { repo-reader-1: [{ api: a, allow: [{ route: GET /x }] }] }\n",
            )],
            None,
        ),
        (
            "workloads",
            vec![format!("version: 1\n{}", workloads(MOST))],
            Some(""),
        ),
        (
            "grants of one role to one workload, each until another day",
            vec![many(
                &format!("{HEAD}{role}workloads: {{ w: {{}} }}\ngrants:\n"),
                MOST,
                |n| format!(" - {{role: r, to: {{workload: w}}, until: {}}}\n", dates(n)),
                "",
            )],
            None,
        ),
        (
            "100 000 grants to any of 10 000 workloads",
            vec![
                format!("{HEAD}{role}{any}{}", workloads(10_000)),
                many(
                    "version: 1\ngrants:\n",
                    100_000,
                    |_| " - {role: r, to: {identity: i}}\n".into(),
                    "",
                ),
            ],
            Some("1000000"),
        ),
        (
            "2 000 dated grants to any of 900 workloads",
            vec![
                format!("{HEAD}{role}{any}{}", workloads(900)),
                many(
                    "version: 1\ngrants:\n",
                    2_000,
                    |n| format!(" - {{role: r, to: {{identity: i}}, until: {}}}\n", dates(n)),
                    "",
                ),
            ],
            None,
        ),
        (
            "20 000 roles to any of 2 000 workloads",
            vec![
                format!("{HEAD}{any}{}", workloads(2_000)),
                format!("version: 1\n{}", roles(20_000)),
                many(
                    "version: 1\ngrants:\n",
                    20_000,
                    |n| format!(" - {{role: r{n}, to: {{identity: i}}}}\n"),
                    "",
                ),
            ],
            Some("too many roles"),
        ),
        (
            "groups of all, granted often",
            vec![
                many(
                    "version: 1\nidentities:\n",
                    60_000,
                    |n| format!(" i{n}: {{token: tgi_{n}}}\n"),
                    "",
                ),
                many(
                    "version: 1\ngroups: { g: [",
                    60_000,
                    |n| format!("i{n},"),
                    "] }\n",
                ),
                many(
                    &format!("{HEAD}{role}workloads: {{ w: {{}} }}\ngrants:\n"),
                    60_000,
                    |n| format!(" - {{role: r, to: {{group: g}}, until: {}}}\n", dates(n)),
                    "",
                ),
            ],
            None,
        ),
        (
            "groups of all in many guards",
            vec![
                many(
                    "version: 1\nidentities:\n",
                    60_000,
                    |n| format!(" i{n}: {{token: tgi_{n}}}\n"),
                    "",
                ),
                many(
                    "version: 1\ngroups: { g: [",
                    60_000,
                    |n| format!("i{n},"),
                    "] }\n",
                ),
                format!("{HEAD}{}", roles(5_000)),
                workloads(300).replacen("workloads", "version: 1\nworkloads", 1),
                many(
                    "version: 1\ngrants:\n",
                    5_000,
                    |n| format!(" - {{role: r{n}, to: {{group: g}}}}\n"),
                    "",
                ),
            ],
            None,
        ),
        (
            "many groups of many",
            vec![
                many(
                    "version: 1\nidentities:\n",
                    5_000,
                    |n| format!(" i{n}: {{token: tgi_{n}}}\n"),
                    "",
                ),
                many(
                    "version: 1\ngroups:\n",
                    5_000,
                    |n| {
                        format!(
                            " g{n}: [i{n},{}]\n",
                            (0..100)
                                .map(|m| format!("i{},", (n * 31 + m * 7) % 5_000))
                                .collect::<String>()
                        )
                    },
                    "",
                ),
                many(
                    &format!("{HEAD}{role}workloads: {{ w: {{}} }}\ngrants:\n"),
                    30,
                    |n| {
                        format!(
                            " - {{role: r, to: {{group: [{}]}}}}\n",
                            (0..4_900)
                                .map(|m| format!("g{},", m + n))
                                .collect::<String>()
                        )
                    },
                    "",
                ),
            ],
            None,
        ),
        (
            "headers of a credential",
            vec![many(
                &format!("{HEAD}credentials: {{ c: {{ secret: 'file:s', to: [a], header: {{"),
                MOST,
                |n| format!("x{n}: '{{secret}}',"),
                "}}}",
            )],
            None,
        ),
        (
            "apis of a credential",
            vec![
                many(
                    "version: 1\napis:\n",
                    60_000,
                    |n| format!(" a{n}: {{hosts: [a{n}.com]}}\n"),
                    "",
                ),
                many(
                    "version: 1\ncredentials: { c: { secret: 'file:s', header: { authorization: '{secret}' }, to: [",
                    60_000,
                    |n| format!("a{n},"),
                    "] } }\n",
                ),
                many(
                    "version: 1\nroles:\n",
                    60_000,
                    |n| {
                        format!(
                            " r{n}: [{{api: a{n}, credential: c, allow: [{{route: GET /}}]}}]\n"
                        )
                    },
                    "",
                ),
            ],
            None,
        ),
    ]);
}
