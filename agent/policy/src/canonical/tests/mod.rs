#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
mod threats;
mod whatwg;

use super::*;
use proptest::prelude::*;
use std::borrow::Cow;

fn host(raw: &str) -> Result<String, &'static str> {
    Host::parse(raw)
        .map(|host| host.as_str().to_owned())
        .map_err(|ambiguity| ambiguity.code)
}

fn target(raw: &str) -> Result<String, &'static str> {
    Target::parse(raw)
        .map(|target| target.to_string())
        .map_err(|ambiguity| ambiguity.code)
}

#[test]
fn hosts_have_one_spelling() {
    let taken = [
        ("API.GitHub.com", "api.github.com"),
        ("api.github.com.", "api.github.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("r3---sn-abc.video.example", "r3---sn-abc.video.example"),
        ("1.1.1.1.nip", "1.1.1.1.nip"),
        ("localhost", "localhost"),
        ("198.51.100.7", "198.51.100.7"),
        ("[2001:DB8:0:0::1]", "[2001:db8::1]"),
    ];
    for (raw, canonical) in taken {
        assert_eq!(host(raw).as_deref(), Ok(canonical), "{raw}");
    }
}

#[test]
fn hosts_that_could_be_read_twice_are_refused() {
    let refused = [
        "",
        ".",
        "a..b",
        ".a",
        "a.com..",
        "a_b.com",
        "-a.com",
        "a-.com",
        "a b",
        "a/b",
        "a@b",
        "a:b",
        "a%2eb",
        "a\\b",
        "a?b",
        "a#b",
        "a\tb",
        "a\0b",
        "*.a.com",
        "0177.0.0.1",
        "0x7f.1",
        "2130706433",
        "127.1",
        "127.0.0.1.",
        "256.1.1.1",
        "1.2.3.4.5",
        "0x",
        "a.0x1f",
        "01.1.1.1",
        "①②⑦.0.0.1",
        "１２７.0.0.1",
        "a。com",
        "a．com",
        "ｅxample.com",
        "ſ.com",
        "ß.com",
        "straße.de",
        "Ü.com",
        "a\u{200d}b.com",
        "a\u{ad}b.com",
        "\u{212a}.com",
        "[::1%25lo]",
        "[::1%lo]",
        "[fe80::1%eth0]",
        "[::ffff:127.0.0.1]",
        "[::1",
        "::1",
        "[]",
        "[1.2.3.4]",
        "xn--a",
        "xn--",
        "xn--a-.com",
        "xn--example-.com",
        "xn--ls8h=.la",
    ];
    for raw in refused {
        assert!(host(raw).is_err(), "{raw} gave {:?}", host(raw));
    }
    assert!(host(&"a".repeat(64)).is_err());
    assert!(host(&["a"; 128].join(".")).is_err());
    assert!(host(&"é".repeat(100_000)).is_err());
}

#[test]
fn authorities() {
    let parse = |raw: &str| {
        Host::parse_authority(raw)
            .map(|(host, port)| (host.as_str().to_owned(), port))
            .ok()
    };
    assert_eq!(parse("A.com"), Some(("a.com".into(), None)));
    assert_eq!(parse("a.com:8443"), Some(("a.com".into(), Some(8443))));
    assert_eq!(parse("[::1]"), Some(("[::1]".into(), None)));
    assert_eq!(parse("[::1]:443"), Some(("[::1]".into(), Some(443))));
    for raw in [
        "a:0443",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "a:1:2",
        "a:b",
        "u@a:1",
        ":1",
        "[::1]x:1",
        "[::1]:",
        "[::1",
        "a]:1",
        "[::1]1",
        "a:４４３",
    ] {
        assert_eq!(parse(raw), None, "{raw}");
    }
}

#[test]
fn targets_have_one_spelling() {
    let taken = [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/", "/a/"),
        ("//admin", "/admin"),
        ("/a//b///c", "/a/b/c"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/..", "/"),
        ("/a/b/.", "/a/b/"),
        ("/%61%7e", "/a~"),
        ("/%c3%a9", "/%C3%A9"),
        ("/a%3ab", "/a%3Ab"),
        ("/a:b@c", "/a:b@c"),
        ("/{id}", "/%7Bid%7D"),
        ("/100%25", "/100%25"),
        ("/a?", "/a"),
        ("/a?&&", "/a"),
        ("/a?b", "/a?b"),
        ("/a?b=", "/a?b="),
        ("/a?b=c+d", "/a?b=c%20d"),
        ("/a?b=c%20d", "/a?b=c%20d"),
        ("/a?b=c%2bd", "/a?b=c%2Bd"),
        ("/a?b=1&&c=2&", "/a?b=1&c=2"),
        ("/a?%62=%63", "/a?b=c"),
        ("/a?x[]=1", "/a?x%5B%5D=1"),
        ("/a?u=https://x/?y", "/a?u=https://x/?y"),
        ("/a?u=%252F", "/a?u=%252F"),
        ("/a?t=a%0Ab", "/a?t=a%0Ab"),
        ("/a/...", "/a/..."),
    ];
    for (raw, canonical) in taken {
        assert_eq!(target(raw).as_deref(), Ok(canonical), "{raw}");
    }
}

#[test]
fn targets_that_could_be_read_twice_are_refused() {
    let refused = [
        ("", "not_origin_form"),
        ("*", "not_origin_form"),
        ("foo", "not_origin_form"),
        ("http://a/b", "not_origin_form"),
        ("a:443", "not_origin_form"),
        ("/a#b", "fragment"),
        ("/a?b#c", "fragment"),
        ("/a\\b", "backslash"),
        ("/a%5cb", "backslash"),
        ("/a?b\\c", "backslash"),
        ("/a%2fb", "encoded_slash"),
        ("/a;x=1/b", "semicolon"),
        ("/a/..;/b", "semicolon"),
        ("/a%3bx", "semicolon"),
        ("/a?b;c", "semicolon"),
        ("/a%00", "control"),
        ("/a%0a", "control"),
        ("/a\0", "control"),
        ("/a b", "control"),
        ("/a?b%00=1", "control"),
        ("/a?b=%00", "control"),
        ("/a?b%0A=1", "control"),
        ("/a%c2%85", "control"),
        ("/a%252e", "double_encoding"),
        ("/a%25%32%65", "double_encoding"),
        ("/a?%2561=1", "double_encoding"),
        ("/a%", "bad_percent"),
        ("/a%2", "bad_percent"),
        ("/a%zz", "bad_percent"),
        ("/a%ff", "not_utf8"),
        ("/a%c0%af", "not_utf8"),
        ("/a?b=%ed%a0%80", "not_utf8"),
        ("/é", "not_ascii"),
        ("/../a", "beyond_root"),
        ("/a/../../b", "beyond_root"),
        ("/a//../b", "dots_after_slashes"),
        ("/a//./../b", "dots_after_slashes"),
        ("/a/%ef%bc%8e%ef%bc%8e/b", "look_alike"),
        ("/a%e2%88%95b", "look_alike"),
        ("/a?=1", "empty_parameter"),
    ];
    for (raw, code) in refused {
        assert_eq!(target(raw), Err(code), "{raw}");
    }
    let many = format!("/?{}", vec!["a"; MAX_PARAMETERS + 1].join("&"));
    assert_eq!(target(&many), Err("too_many_parameters"));
    assert!(target(&many[..many.len() - 2]).is_ok());
    assert_eq!(
        target(&format!("/{}", "a".repeat(MAX_TARGET))),
        Err("target_length")
    );
}

#[test]
fn pairs_are_decoded() {
    let target = Target::parse("/a?x%5b%5d=1+2&y&z=%26%3D").unwrap();
    let pairs: Vec<(String, String, &str)> = target
        .pairs()
        .map(|pair| (pair.name.into(), pair.value.into(), pair.raw))
        .collect();
    assert_eq!(pairs[0], ("x[]".into(), "1 2".into(), "x%5B%5D=1%202"));
    assert_eq!(pairs[1], ("y".into(), "".into(), "y"));
    assert_eq!(pairs[2], ("z".into(), "&=".into(), "z=%26%3D"));
}

#[test]
fn a_canonical_target_is_borrowed() {
    let target = Target::parse("/repos/acme/app/issues?state=open&page=2").unwrap();
    assert!(matches!(target.path, Cow::Borrowed(_)));
    assert!(matches!(target.query, Some(Cow::Borrowed(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_096, ..ProptestConfig::default() })]

    #[test]
    fn canonicalising_a_target_twice_is_once(raw in "/([a-c./]|%2[eEfF5]|%[0-9a-fA-F]{2}|[;?&=+#\\\\{é\u{0} ]){0,24}") {
        if let Ok(once) = Target::parse(&raw) {
            let text = once.to_string();
            let twice = Target::parse(&text).unwrap();
            prop_assert_eq!(&once, &twice);
            prop_assert!(matches!(twice.path, Cow::Borrowed(_)));
            prop_assert!(!matches!(twice.query, Some(Cow::Owned(_))));
            prop_assert!(!once.path.contains("//") && !once.path.contains("/../"));
        }
    }

    #[test]
    fn canonicalising_a_host_twice_is_once(raw in "([a-zA-Z0-9.-]|xn--|0x|[éßſ。．①\\[\\]:%@_]){0,16}") {
        if let Ok(once) = Host::parse(&raw) {
            prop_assert_eq!(Host::parse(once.as_str()), Ok(once.clone()));
            prop_assert_eq!(Host::parse(&raw.to_ascii_uppercase()), Ok(once));
        }
    }

    #[test]
    fn any_text_is_taken_or_refused(raw in any::<String>()) {
        let _ = (Host::parse(&raw), Host::parse_authority(&raw), Target::parse(&raw));
        let slashed = format!("/{raw}");
        if let Ok(target) = Target::parse(&slashed) {
            prop_assert!(target.pairs().count() <= MAX_PARAMETERS);
        }
    }
}
