//! Rules, and roles in each other.
use crate::{HEAD, MOST, check, many};

#[test]
fn rules() {
    let rule = |inside: String| {
        format!(
            "{HEAD}workloads: {{ w: {{}} }}\ngrants: [{{ role: r, to: {{ workload: w }} }}]\nroles: {{ r: [{{ api: a, allow: [{{ route: GET /x, {inside} }}] }}] }}\n"
        )
    };
    let patterns = |one: &dyn Fn(usize) -> String| {
        many(
            &format!("{HEAD}roles: {{ r: [{{ api: a, allow: ["),
            MOST,
            |n| format!("{{route: 'GET /{{a:{}}}'}},\n", one(n)),
            "]}]}",
        )
    };
    check(vec![
        (
            "parameters of a query",
            vec![rule(many("query: {", MOST, |n| format!("p{n}: int,"), "}"))],
            None,
        ),
        (
            "required headers",
            vec![rule(many(
                "headers: { require: {",
                MOST,
                |n| format!("x{n}: int,"),
                "} }",
            ))],
            None,
        ),
        (
            "headers allowed and stripped",
            vec![rule(many(
                "headers: { allow: [",
                150_000,
                |n| format!("x{n},"),
                &many("], strip: [", 150_000, |n| format!("y{n},"), "] }"),
            ))],
            None,
        ),
        (
            "fields of a body",
            vec![rule(many(
                "body: { fields: {",
                MOST,
                |n| format!("p{n}: int,"),
                "} }",
            ))],
            None,
        ),
        (
            "values",
            vec![rule(many(
                "query: { p: [",
                MOST,
                |n| format!("v{n},"),
                "] }",
            ))],
            Some("more than 1000 values"),
        ),
        (
            "rules",
            vec![many(
                &format!("{HEAD}roles: {{ r: [{{ api: a, allow: ["),
                MOST,
                |_| "{route: GET /},".into(),
                "]}]}",
            )],
            None,
        ),
        (
            "rules with segments",
            vec![many(
                &format!(
                    "{HEAD}workloads: {{ w: {{}} }}\ngrants: [{{ role: r, to: {{ workload: w }} }}]\nroles: {{ r: [{{ api: a, allow: ["
                ),
                MOST,
                |n| format!("{{route: GET /{n}{}}},", "/a".repeat(60)),
                "]}]}",
            )],
            None,
        ),
        (
            "different large patterns",
            vec![patterns(&|n| format!("x{n}[a-z]{{60}}\\w{{8}}"))],
            Some("too large"),
        ),
        (
            "different patterns",
            vec![patterns(&|n| format!("x{n}[a-z]{{40}}"))],
            Some("1024 different patterns"),
        ),
        (
            "patterns that are too large",
            vec![patterns(&|n| format!("x{n}\\w{{1000}}"))],
            Some("too large"),
        ),
        (
            "patterns of patterns",
            vec![patterns(&|n| {
                format!("(((x{n}a{{1,50}}){{1,50}}){{1,50}}){{1,50}}")
            })],
            None,
        ),
        (
            "patterns that backtrack elsewhere",
            vec![patterns(&|n| format!("(x+x+)+y{n}"))],
            Some("1024 different patterns"),
        ),
        (
            "deep patterns",
            vec![patterns(&|n| {
                format!("{}x{n}{}", "(".repeat(500), ")".repeat(500))
            })],
            Some("pattern"),
        ),
        (
            "classes",
            vec![patterns(&|n| format!("[\\w--\\p{{L}}&&[^a-z]]{{9}}{n}"))],
            None,
        ),
    ]);
}

#[test]
fn roles() {
    let grants = "workloads: { w: {} }\ngrants: [{ role: r0, to: { workload: w } }]\n";
    let rules = "{ api: a, allow: [{ route: GET /x }] }";
    let big = |inside: &str, grants: usize| {
        vec![
            format!(
                "{HEAD}workloads: {{ w: {{}} }}\nroles: {{ \"r(x)\": [{{ api: a, allow: [{inside}] }}] }}\n"
            ),
            many(
                "version: 1\ngrants:\n",
                grants,
                |n| format!(" - {{role: 'r(x: v{n})', to: {{workload: w}}}}\n"),
                "",
            ),
        ]
    };
    check(vec![
        (
            "a circle",
            vec![format!(
                "{HEAD}{grants}roles: {{ r0: [{{ include: r1 }}], r1: [{{ include: r0 }}] }}\n"
            )],
            Some("includes itself"),
        ),
        (
            "a long circle",
            vec![many(
                &format!("{HEAD}{grants}roles:\n"),
                30_000,
                |n| format!(" r{n}: [{{include: r{}}}]\n", (n + 1) % 30_000),
                "",
            )],
            None,
        ),
        (
            "a chain",
            vec![many(
                &format!("{HEAD}{grants}roles:\n"),
                60_000,
                |n| format!(" r{n}: [{{include: r{}}}]\n", n + 1),
                &format!(" r60000: [{rules}]\n"),
            )],
            Some("32 levels"),
        ),
        (
            "a diamond of 30 levels",
            vec![many(
                &format!("{HEAD}{grants}roles:\n"),
                30,
                |n| format!(" r{n}: [{{include: r{0}}}, {{include: r{0}}}]\n", n + 1),
                &format!(" r30: [{rules}]\n"),
            )],
            Some(""),
        ),
        (
            "a diamond with arguments",
            vec![many(
                &format!(
                    "{HEAD}workloads: {{ w: {{}} }}\ngrants: [{{ role: 'r0(x: a)', to: {{ workload: w }} }}]\nroles:\n"
                ),
                30,
                |n| {
                    format!(
                        " 'r{n}(x)': [{{include: 'r{0}(x: ${{x}}0)'}}, {{include: 'r{0}(x: ${{x}}1)'}}]\n",
                        n + 1
                    )
                },
                &format!(" 'r30(x)': [{rules}]\n"),
            )],
            Some("too many roles"),
        ),
        (
            "arguments that double",
            vec![many(
                &format!(
                    "{HEAD}workloads: {{ w: {{}} }}\ngrants: [{{ role: 'r0(x: a)', to: {{ workload: w }} }}]\nroles:\n"
                ),
                30,
                |n| {
                    format!(
                        " 'r{n}(x)': [{{include: 'r{0}(x: ${{x}}${{x}})'}}]\n",
                        n + 1
                    )
                },
                &format!(" 'r30(x)': [{rules}]\n"),
            )],
            Some("is no argument"),
        ),
        (
            "wide inclusion",
            vec![
                many(
                    &format!("{HEAD}roles:\n"),
                    1_000,
                    |n| format!(" r{n}: [{rules}]\n"),
                    "",
                ),
                many(
                    "version: 1\nroles:\n",
                    5_000,
                    |n| {
                        format!(
                            " s{n}: [{}]\n",
                            (0..25)
                                .map(|m| format!("{{include: r{}}},", (n + m * 37) % 1_000))
                                .collect::<String>()
                        )
                    },
                    "",
                ),
            ],
            None,
        ),
        (
            "a large role with many arguments",
            big(&"{route: 'GET /${x}'},\n          ".repeat(10_000), 10_000),
            None,
        ),
        (
            "a large role without mention",
            big(&"{route: GET /x},\n          ".repeat(10_000), 10_000),
            None,
        ),
        (
            "mentions",
            big(&format!("{{route: 'GET /{}'}}", "${x}".repeat(200_000)), 10),
            None,
        ),
        (
            "mentions with a long argument",
            vec![format!(
                "{HEAD}workloads: {{ w: {{}} }}\nroles: {{ \"r(x)\": [{{ api: a, allow: [{{route: 'GET /{}'}}] }}] }}\ngrants: [{{role: 'r(x: {})', to: {{workload: w}}}}]",
                "${x}".repeat(200_000),
                "v".repeat(256)
            )],
            None,
        ),
        (
            "keys of a role with parameters",
            vec![many(
                &format!(
                    "{HEAD}workloads: {{ w: {{}} }}\ngrants: [{{role: 'r(x: v)', to: {{workload: w}}}}]\nroles: {{ 'r(x)': [{{ api: a, allow: [{{route: 'GET /${{x}}', query: {{"
                ),
                MOST,
                |n| format!("p{n}: int,"),
                "}}]}]}",
            )],
            None,
        ),
        (
            "parameters of a role",
            vec![many(
                &format!("{HEAD}roles: {{ ? 'r("),
                MOST,
                |n| format!("p{n},"),
                "p)' : [] }",
            )],
            None,
        ),
        (
            "arguments of a role",
            vec![
                format!("{HEAD}workloads: {{ w: {{}} }}\nroles: {{ 'r(x)': [{rules}] }}\n"),
                many(
                    "version: 1\ngrants: [{ to: { workload: w }, role: 'r(",
                    MOST,
                    |n| format!("p{n}: v,"),
                    "x: v)' }]\n",
                ),
            ],
            None,
        ),
        (
            "parameters and arguments",
            vec![
                many(
                    &format!("{HEAD}workloads: {{ w: {{}} }}\nroles: {{ ? 'r("),
                    200_000,
                    |n| format!("p{n},"),
                    &format!("p)' : [{rules}] }}\n"),
                ),
                many(
                    "version: 1\ngrants: [{ to: { workload: w }, role: 'r(",
                    200_000,
                    |n| format!("p{n}: v,"),
                    "p: v)' }]\n",
                ),
            ],
            None,
        ),
    ]);
}
