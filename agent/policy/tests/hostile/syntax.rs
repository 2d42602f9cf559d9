//! Texts that are hard to read, whatever they say.
use crate::{FULL, LONG, MOST, check, cost, many};
use tollgate_policy::compile;
use tollgate_policy::syntax::Source;

#[test]
fn syntax() {
    let aliases = many(
        "a: &a [x]\n",
        40,
        |n| format!("b{n}: &b{n} [*a, *a, *a, *a, *a, *a, *a, *a]\n"),
        "",
    );
    check(vec![
        ("alias bomb", vec![aliases], Some("anchors")),
        (
            "anchors",
            vec![many("a:\n", MOST, |n| format!(" - &a{n} 1\n"), "")],
            Some("anchors"),
        ),
        (
            "aliases",
            vec![many("a: [", MOST, |_| "*a,".into(), "]")],
            Some("unknown anchor"),
        ),
        (
            "tags",
            vec![many("a: [", MOST, |_| "!!x 1,".into(), "]")],
            Some("tags"),
        ),
        (
            "100 MB",
            vec!["a".repeat(100 << 20)],
            Some("larger than 4 MiB"),
        ),
        (
            "100 MB of lines",
            vec!["a: 1\n".repeat(20 << 20)],
            Some("larger than 4 MiB"),
        ),
        (
            "brackets",
            vec!["[".repeat(10_000)],
            Some("recursion limit"),
        ),
        (
            "brackets to the end",
            vec!["[".repeat(LONG)],
            Some("recursion limit"),
        ),
        (
            "braces",
            vec!["{a: ".repeat(LONG / 4)],
            Some("recursion limit"),
        ),
        (
            "block lists",
            vec!["- ".repeat(LONG / 2)],
            Some("nested more than 64"),
        ),
        (
            "block keys",
            vec!["? ".repeat(LONG / 2)],
            Some("nested more than 64"),
        ),
        (
            "indented block",
            vec![many("", 2_000, |n| format!("{}a:\n", " ".repeat(n)), "")],
            Some("nested more than 64"),
        ),
        (
            "a million keys",
            vec![many("", MOST, |n| format!("{n:x}k: \n"), "")],
            None,
        ),
        (
            "a million keys in braces",
            vec![many("{", MOST, |n| format!("k{n:x}:,"), "}")],
            None,
        ),
        (
            "one key a million times",
            vec![many("", MOST, |_| "a:\n".into(), "")],
            Some("twice"),
        ),
        ("a huge key", vec![format!("{}: 1", "k".repeat(LONG))], None),
        (
            "a huge quoted key",
            vec![format!("? \"{}\"\n: 1", "k".repeat(LONG))],
            None,
        ),
        (
            "a huge value",
            vec![format!("version: {}", "1".repeat(LONG))],
            None,
        ),
        (
            "nodes",
            vec![many("a: [", MOST, |_| "1,".into(), "]")],
            Some("more than 1000000 nodes"),
        ),
        (
            "faults on one line",
            vec![many("version: 1\ngrants: [", MOST, |_| "[],".into(), "]")],
            None,
        ),
        (
            "faults at the end of a line",
            vec![format!(
                "version: 1\ngrants: [\"{}\"{}]",
                "x".repeat(LONG - 40_000),
                ",[]".repeat(10_000)
            )],
            None,
        ),
        ("empty lines", vec!["\n".repeat(FULL)], Some("empty")),
        (
            "escapes",
            vec![format!("a: \"{}\"", "\\u00e9".repeat(LONG / 6))],
            None,
        ),
    ]);
}

/// One thing over and over, at the top, in a flow list, and as a value.
#[test]
fn repeated_tokens() {
    let tokens = [
        "a",
        " ",
        "\t",
        "\n",
        " \n",
        "#",
        "# \n",
        "'",
        "\"",
        "''",
        "\"\"",
        "|",
        "|\n",
        ">\n",
        "|1\n",
        "%",
        "%a\n",
        "@",
        "`",
        "-",
        "- ",
        "-\n",
        "?",
        "? ",
        "?\n",
        ":",
        ": ",
        ":\n",
        ",",
        ", ",
        "&a ",
        "*a ",
        "!a ",
        "!<a>",
        "!",
        "---",
        "---\n",
        "...\n",
        "a\n",
        "a: ",
        "a:\n",
        "[]",
        "[],",
        "{}",
        "{},",
        "]",
        "}",
        "[\n",
        "{\n",
        "\\",
        "\"\\\"",
        "é",
        "\u{1f600}",
        "~",
        "\r",
        "a,",
        "a: b,",
        "\"a\":b,",
        "<<: ",
    ];
    let mut cases = Vec::new();
    for token in tokens {
        let body = token.repeat((1 << 19) / token.len());
        let texts = [
            body.clone(),
            format!("a: [{body}"),
            format!("a:\n  b: {body}"),
            format!("- \"{body}"),
        ];
        for text in texts {
            cases.push((token, vec![text], None));
        }
    }
    check(cases);
}

#[test]
fn many_files() {
    let nodes = || {
        many("version: 1\nworkloads: {a: [", MOST, |_| "1,".into(), "]}")
            .replace("1,1,1,1,1,", "1,")
    };
    check(vec![
        (
            "40 files of many nodes",
            (0..40).map(|_| nodes()).collect(),
            None,
        ),
        (
            "files of 20 MiB together",
            (0..5).map(|_| "# a comment\n".repeat(340_000)).collect(),
            None,
        ),
        (
            "1 000 files",
            (0..1_000)
                .map(|n| format!("version: 1\nworkloads: {{w{n}: {{}}}}"))
                .collect(),
            Some(""),
        ),
    ]);
}

/// Any text that is nearly a policy gives a policy or faults.
#[test]
fn broken_documents_give_faults() {
    const POLICY: &str = r#"version: 1
workloads: { w: { match: { unit: w.service } } }
identities: { i: { token: tgi_i }, j: { jwt: { issuer: https://ci.example, audience: x, claims: { a: b } } } }
groups: { g: [i, j] }
apis: { a: { hosts: [a.com], port: 443 }, b: { tcp: ["10.0.0.0/8:1"] } }
credentials: { c: { secret: "file:s", header: { authorization: "x {secret}" }, to: [a] } }
roles:
  r(x): [{ include: s }, { api: a, credential: c, allow: [{ route: "GET /${x}/{n:int}/**", query: { p: 1..9 }, headers: { require: { y: [z] } } }] }]
  s: [{ api: b }, { api: a, allow: [{ route: read-only /y, body: { fields: { f: [{ g: string }] }, max: 1KiB } }], deny: [{ route: "* /z" }] }]
grants: [{ role: "r(x: v)", to: { workload: w, identity: i, group: g }, until: 2026-12-31, mode: observe }]
"#;
    assert!(cost("whole", vec![POLICY.to_owned()]).fault.is_none());
    let junk = [
        "", "-", "{", "}", "[", "]", ":", ", ", "\"", "'", "*", "/", "\n", " ", "0", "z", "~", "|",
        "é", "${", "}}", "&a", "!", "#", "\t", "..",
    ];
    let mut number = 0_usize;
    for cut in (0..POLICY.len()).filter(|cut| POLICY.is_char_boundary(*cut)) {
        for skip in [0, 1, 2, 7] {
            number += 1;
            let tail = POLICY.get(cut + skip..).unwrap_or("");
            let text = format!("{}{}{tail}", &POLICY[..cut], junk[number % junk.len()]);
            let source = Source {
                name: "p.yaml".to_owned(),
                text,
            };
            match compile(&[source]) {
                Ok(compiled) => assert!(!compiled.warnings.has_errors()),
                Err(faults) => {
                    assert!(faults.has_errors() && faults.to_string().contains("p.yaml:"));
                }
            }
        }
    }
}
