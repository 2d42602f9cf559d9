#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs
)]
use super::*;
use proptest::prelude::*;
use std::time::Duration;

fn source(text: &str) -> Source {
    Source {
        name: "t.yaml".into(),
        text: text.into(),
    }
}

/// The faults of a text whose tree alone is looked at.
fn faults(text: &str) -> Vec<String> {
    let mut decoder = Decoder::new();
    let node = decoder.parse(&source(text));
    let faults = decoder.finish().err().unwrap_or_default();
    assert_eq!(node.is_none(), faults.has_errors());
    faults
        .iter()
        .map(|fault| format!("{}: {}", fault.at, fault.message))
        .collect()
}

fn read<T>(text: &str, read: impl FnOnce(&mut Decoder, &Node) -> Option<T>) -> Result<T, String> {
    let mut decoder = Decoder::new();
    let node = decoder.parse(&source(text)).expect("a tree");
    let value = read(&mut decoder, &node);
    match decoder.finish() {
        Ok(_) => Ok(value.expect("a value where there is no fault")),
        Err(faults) => Err(faults.0[0].message.clone()),
    }
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    let cases = [
        (
            "a: &x 1\nb: 2",
            "t.yaml:1:4: anchors (`&name`) are not supported",
        ),
        (
            "a: &x 1\nb: *x",
            "t.yaml:1:4: anchors (`&name`) are not supported",
        ),
        ("a: !!int 1", "t.yaml:1:4: tags (`!name`) are not supported"),
        (
            "<<: {a: 1}",
            "t.yaml:1:1: merge keys (`<<`) are not supported",
        ),
        ("a: 1\nb: 2\na: 3", "t.yaml:3:1: `a` is defined twice"),
        ("a: 1\n\"\\x61\": 3", "t.yaml:2:1: `a` is defined twice"),
        (
            "a: 1\n---\nb: 1",
            "t.yaml:2:1: a second document in one file",
        ),
        ("1: a", "t.yaml:1:1: a key must be a string, not an integer"),
        (
            "true: a",
            "t.yaml:1:1: a key must be a string, not a boolean",
        ),
        ("[a]: b", "t.yaml:1:1: a key must be a string, not a list"),
        ("", "t.yaml:1:1: the document is empty"),
        ("# nothing\n", "t.yaml:1:1: the document is empty"),
        (
            "a: \u{202e}b",
            "t.yaml:1:4: the character U+202E is not allowed here",
        ),
        (
            "a: b\u{0}",
            "t.yaml:1:5: the character U+0000 is not allowed here",
        ),
        (
            "\u{feff}a: b",
            "t.yaml:1:1: the character U+FEFF is not allowed here",
        ),
    ];
    for (text, fault) in cases {
        assert_eq!(faults(text)[0], fault, "{text}");
    }
    assert!(faults("a: [1, 2").first().unwrap().contains("invalid YAML"));
    assert!(faults("a: {b: c").first().unwrap().contains("invalid YAML"));
}

#[test]
fn a_duplicate_key_points_to_both_places() {
    let mut decoder = Decoder::new();
    assert!(decoder.parse(&source("a: 1\nb: 2\na: 3")).is_none());
    let faults = decoder.finish().unwrap_err();
    assert_eq!(
        faults.0[0].help.as_deref(),
        Some("first defined at t.yaml:1:1; keep one of them")
    );
}

#[test]
fn size_depth_and_number_are_bounded() {
    assert_eq!(
        faults(&"[".repeat(100))[0],
        "t.yaml:1:65: the document is nested more than 64 levels deep"
    );
    let deep_blocks = (0..100)
        .map(|depth| format!("{}a:\n", " ".repeat(depth)))
        .collect::<String>();
    assert!(faults(&deep_blocks)[0].contains("nested more than 64"));
    assert!(faults(&"a".repeat(MAX_TEXT + 1))[0].contains("larger than 4 MiB"));
    let many = format!("[{}]", "1,1,\n ".repeat(MAX_NODES / 2 + 1));
    assert!(faults(&many)[0].contains("more than 1000000 nodes"));
    let long = format!("a: 1\nb: {}\n", "x".repeat(MAX_LINE));
    assert_eq!(
        faults(&long)[0],
        "t.yaml:2:1: the line is longer than 1 MiB"
    );
}

#[test]
fn all_sources_together_are_bounded() {
    let part = source(&"# a comment\n".repeat(300_000));
    let mut decoder = Decoder::new();
    for _ in 0..5 {
        decoder.parse(&part);
    }
    let faults = decoder.finish().unwrap_err();
    let last = &faults.0[4].message;
    assert_eq!(last, "the files are larger than 16 MiB together");
    let half = source(&format!("[{}]", "1,1,\n ".repeat(MAX_NODES / 4)));
    let mut decoder = Decoder::new();
    let parsed: Vec<bool> = (0..3).map(|_| decoder.parse(&half).is_some()).collect();
    assert_eq!(parsed, [true, false, false]);
}

#[test]
fn many_faults_are_counted_and_few_are_kept() {
    let text = (0..5_000).map(|n| format!("{n}: x\n")).collect::<String>();
    let mut decoder = Decoder::new();
    assert!(decoder.parse(&source(&text)).is_none());
    let faults = decoder.finish().unwrap_err();
    assert_eq!(faults.len(), 500);
    assert!(
        faults.0[499]
            .help
            .as_ref()
            .unwrap()
            .ends_with("4500 more faults are not shown")
    );
}

#[test]
fn a_fault_on_a_long_line_carries_a_part_of_it() {
    let text = format!("{{ a: \"{}\", a: 1 }}", "x".repeat(100_000));
    let mut decoder = Decoder::new();
    assert!(decoder.parse(&source(&text)).is_none());
    let faults = decoder.finish().unwrap_err();
    assert!(faults.0[0].line_text.len() <= 200);
    let shown = faults.to_string();
    let lines: Vec<&str> = shown.lines().collect();
    let at = lines[3].find('^').unwrap();
    assert_eq!(&lines[2][at..=at], "a", "{shown}");
}

#[test]
fn scalars_are_what_the_core_schema_says() {
    let kinds = [
        ("12", "an integer"),
        ("-3", "an integer"),
        ("0o17", "an integer"),
        ("0xff", "an integer"),
        ("1.5", "a number"),
        ("1e3", "a number"),
        (".inf", "a number"),
        ("1.2.3", "a string"),
        ("yes", "a string"),
        ("no", "a string"),
        ("True", "a boolean"),
        ("~", "nothing"),
        ("\"12\"", "a string"),
        ("'true'", "a string"),
        ("1..100", "a string"),
    ];
    for (text, kind) in kinds {
        let mut decoder = Decoder::new();
        let node = decoder.parse(&source(&format!("[{text}]"))).unwrap();
        let Value::Sequence(items) = node.value else {
            panic!()
        };
        assert_eq!(items[0].kind(), kind, "{text}");
    }
}

#[test]
fn who_quotes_an_integer_is_told_not_to() {
    for (text, quoted) in [("\"8443\"", true), ("\"0\"", false), ("0", false)] {
        let mut decoder = Decoder::new();
        let node = decoder.parse(&source(text)).expect("a tree");
        assert_eq!(decoder.integer(&node, 1..=65535_u16), None);
        let faults = decoder.finish().unwrap_err();
        assert_eq!(faults.0[0].help.is_some(), quoted, "{text}");
    }
}

#[test]
fn values_are_read_or_said_to_be_wrong() {
    assert_eq!(read("8443", |d, n| d.integer(n, 1..=65535_u16)), Ok(8443));
    assert_eq!(
        read("\"8443\"", |d, n| d.integer(n, 1..=65535_u16)).unwrap_err(),
        "expected an integer from 1 to 65535, found `8443`"
    );
    for wrong in ["0", "65536", "0443", "+443", "0x1bb", "4.0", "[1]", "-1"] {
        assert!(
            read(wrong, |d, n| d.integer(n, 1..=65535_u16)).is_err(),
            "{wrong}"
        );
    }
    assert_eq!(read("-5", |d, n| d.integer(n, -9..=9_i64)), Ok(-5));
    assert_eq!(read("16KiB", |d, n| d.byte_size(n)), Ok(16_384));
    assert_eq!(read("0", |d, n| d.byte_size(n)), Ok(0));
    for wrong in [
        "16KB",
        "16K",
        "-1",
        "1.5KiB",
        "01KiB",
        "99999999999TiB",
        "KiB",
        "16 KiB",
    ] {
        assert!(read(wrong, |d, n| d.byte_size(n)).is_err(), "{wrong}");
    }
    assert_eq!(
        read("250ms", |d, n| d.duration(n)),
        Ok(Duration::from_millis(250))
    );
    assert_eq!(
        read("5m", |d, n| d.duration(n)),
        Ok(Duration::from_secs(300))
    );
    for wrong in ["5", "5min", "1h30m", "-1s", "184467440737095516150s"] {
        assert!(read(wrong, |d, n| d.duration(n)).is_err(), "{wrong}");
    }
    assert_eq!(read("true", |d, n| d.boolean(n)), Ok(true));
    assert!(read("yes", |d, n| d.boolean(n)).is_err());
    assert_eq!(read("::1", |d, n| d.ip(n)), Ok("::1".parse().unwrap()));
    assert_eq!(
        read("12", |d, n| d.string(n).map(String::from)).unwrap_err(),
        "expected a string, found an integer"
    );
}

#[test]
fn underlines_stand_below_what_they_mean() {
    let mut decoder = Decoder::new();
    let node = decoder.parse(&source("{\t\"日本\": 1, bad: x }")).unwrap();
    let fields = decoder.fields(&node, "the test").unwrap();
    fields.finish(&mut decoder);
    let text = decoder.finish().unwrap_err().to_string();
    assert!(
        text.contains("t.yaml:1:12: error: unknown key `bad`"),
        "{text}"
    );
    assert!(
        text.contains("1 | {    \"日本\": 1, bad: x }\n  |      ^^^^^^\n"),
        "{text}"
    );
    assert!(
        text.contains("1 | {    \"日本\": 1, bad: x }\n  |                 ^^^\n"),
        "{text}"
    );
}

#[test]
fn the_nearest_word_is_offered_only_when_near() {
    assert_eq!(nearest("rout", ["route", "role"]), Some("route"));
    assert_eq!(nearest("hsots", ["hosts", "port"]), Some("hosts"));
    assert_eq!(nearest("banana", ["hosts", "port"]), None);
    assert_eq!(nearest(&"x".repeat(1_000_000), ["hosts"]), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Any text gives a tree or a fault, and every fault can be shown.
    #[test]
    fn nothing_panics(text in "[-a-c:,{}\\[\\]&*!#|>'\"%?\n\r\t \\\\0-9~<é日]{0,80}") {
        let mut decoder = Decoder::new();
        let node = decoder.parse(&source(&text));
        if let Some(node) = &node && let Some(fields) = decoder.fields(node, "the test") {
            fields.finish(&mut decoder);
        }
        match decoder.finish() {
            Ok(_) => prop_assert!(node.is_some()),
            Err(faults) => prop_assert!(!faults.to_string().is_empty()),
        }
    }
}

/// Found by fuzzing: the scanner is a line further when the last has no end.
#[test]
fn a_fault_at_the_end_stands_in_the_text() {
    let source = Source {
        name: "x.yaml".into(),
        text: "v rsio: 1\nwork".into(),
    };
    let mut decoder = Decoder::new();
    assert!(decoder.parse(&source).is_none());
    let faults = decoder.finish().unwrap_err();
    assert_eq!(faults.iter().next().unwrap().at.to_string(), "x.yaml:2:5");
}
