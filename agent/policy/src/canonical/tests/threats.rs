//! Rows of the threat table that concern hosts, paths and queries: each form is refused, or has one
//! canonical form that is decided on and sent.
use super::*;

/// What a row asks for.
enum Is {
    /// Refused, with this code.
    Refused(&'static str),
    /// This is decided on and sent.
    Sent(&'static str),
}
use Is::{Refused, Sent};

#[test]
fn targets() {
    let rows: &[(&str, &str, Is)] = &[
        (
            "absolute form",
            "http://a.com/x",
            Refused("not_origin_form"),
        ),
        ("authority form", "a.com:443", Refused("not_origin_form")),
        ("another scheme", "ftp://a.com/", Refused("not_origin_form")),
        ("relative", "foo", Refused("not_origin_form")),
        ("asterisk", "*", Refused("not_origin_form")),
        (
            "gRPC without slash",
            "acme.Ledger/Get",
            Refused("not_origin_form"),
        ),
        ("dot segments", "/a/../admin", Sent("/admin")),
        ("double slash", "//admin", Sent("/admin")),
        (
            "double slash, host-like",
            "//evil.com/x",
            Sent("/evil.com/x"),
        ),
        ("encoded dots", "/a/%2e%2e/admin", Sent("/admin")),
        (
            "encoded dots above the root",
            "/%2e%2e/",
            Refused("beyond_root"),
        ),
        ("half encoded dots", "/a/.%2E/admin", Sent("/admin")),
        ("encoded slash", "/a%2fadmin", Refused("encoded_slash")),
        (
            "encoded slash, upper case",
            "/a%2Fadmin",
            Refused("encoded_slash"),
        ),
        (
            "encoded dots and slash",
            "/a/..%2fadmin",
            Refused("encoded_slash"),
        ),
        ("backslash", "/a\\admin", Refused("backslash")),
        ("encoded backslash", "/a%5cadmin", Refused("backslash")),
        (
            "parameter in a segment",
            "/a;x=1/admin",
            Refused("semicolon"),
        ),
        (
            "parameter on the last segment",
            "/admin;x=1",
            Refused("semicolon"),
        ),
        (
            "parameter behind dots",
            "/a/..;/admin",
            Refused("semicolon"),
        ),
        ("encoded parameter", "/a%3bx/admin", Refused("semicolon")),
        ("NUL", "/a%00", Refused("control")),
        ("NUL behind a suffix", "/admin%00.png", Refused("control")),
        ("line end", "/a%0d%0aX:1", Refused("control")),
        ("encoded twice", "/%252e%252e/", Refused("double_encoding")),
        (
            "encoded slash, twice",
            "/a%252fadmin",
            Refused("double_encoding"),
        ),
        (
            "encoded three times",
            "/a%25252fadmin",
            Refused("double_encoding"),
        ),
        (
            "digits of an escape encoded",
            "/%25%32%65",
            Refused("double_encoding"),
        ),
        ("fragment", "/a#/admin", Refused("fragment")),
        ("encoded hash", "/a%23b", Sent("/a%23b")),
        ("encoded question mark", "/a%3Fb", Sent("/a%3Fb")),
        ("not UTF-8", "/%ff", Refused("not_utf8")),
        ("overlong dot", "/%c0%ae%c0%ae/", Refused("not_utf8")),
        ("surrogate", "/%ed%a0%80", Refused("not_utf8")),
        ("raw bytes", "/\u{ff0e}", Refused("not_ascii")),
        (
            "fullwidth dots",
            "/%ef%bc%8e%ef%bc%8e/",
            Refused("look_alike"),
        ),
        ("fullwidth slash", "/a%ef%bc%8fb", Refused("look_alike")),
        ("fullwidth backslash", "/a%ef%bc%bcb", Refused("look_alike")),
        ("fullwidth percent", "/a%ef%bc%852e", Refused("look_alike")),
        ("escape of nothing", "/a%u002f", Refused("bad_percent")),
        ("space", "/a b", Refused("control")),
        ("duplicate keys", "/?a=1&a=2", Sent("/?a=1&a=2")),
        (
            "duplicate keys, one encoded",
            "/?a=1&%61=2",
            Sent("/?a=1&a=2"),
        ),
        (
            "list keys",
            "/?a[]=1&a%5b%5D=2",
            Sent("/?a%5B%5D=1&a%5B%5D=2"),
        ),
        ("semicolons", "/?a=1;b=2", Refused("semicolon")),
        (
            "encoded semicolon is data",
            "/?a=1%3bb=2",
            Sent("/?a=1%3Bb=2"),
        ),
        ("plus and %20", "/?a=b+c&d=b%20c", Sent("/?a=b%20c&d=b%20c")),
        ("encoded plus", "/?a=b%2bc", Sent("/?a=b%2Bc")),
        ("encoded ampersand", "/?a=1%26b=2", Sent("/?a=1%26b=2")),
        ("encoded equals in a name", "/?a%3d1=2", Sent("/?a%3D1=2")),
        ("bare question mark", "/a?", Sent("/a")),
        ("two question marks", "/a??b", Sent("/a??b")),
        (
            "mixed-case keys are two",
            "/?State=a&state=b",
            Sent("/?State=a&state=b"),
        ),
        ("NUL in a name", "/?a%00b=1", Refused("control")),
        ("NUL in a value", "/?a=%00", Refused("control")),
        (
            "a name encoded twice",
            "/?%2561=1",
            Refused("double_encoding"),
        ),
        ("no name", "/?=1", Refused("empty_parameter")),
    ];
    for (row, raw, is) in rows {
        let expected = match is {
            Refused(code) => Err(*code),
            Sent(canonical) => Ok((*canonical).to_owned()),
        };
        assert_eq!(target(raw), expected, "{row}: {raw:?}");
    }
    let many = format!("/?{}", vec!["a=1"; 10_000].join("&"));
    assert_eq!(target(&many), Err("too_many_parameters"));
}

#[test]
fn hosts() {
    let rows: &[(&str, &str, Is)] = &[
        ("none", "", Refused("empty_host")),
        ("userinfo, path and query", "a@b/c?d", Refused("userinfo")),
        ("trailing dot", "api.example.", Sent("api.example")),
        ("two trailing dots", "api.example..", Refused("empty_label")),
        ("upper case", "API.Example", Sent("api.example")),
        (
            "port with leading zero",
            "api.example:0443",
            Refused("port"),
        ),
        ("port that overflows", "api.example:65979", Refused("port")),
        ("two ports", "api.example:443:80", Refused("port")),
        ("zone", "[::1%25lo]", Refused("zone_id")),
        ("IPv4 in IPv6", "[::ffff:7f00:1]", Refused("mapped_address")),
        ("NUL", "api.example\0.evil.com", Refused("host_character")),
        ("octal address", "0177.0.0.1", Refused("numeric_host")),
        ("one number", "2130706433", Refused("numeric_host")),
        ("address", "198.51.100.7", Sent("198.51.100.7")),
        (
            "fullwidth dot",
            "api\u{ff0e}example",
            Refused("host_mapping"),
        ),
        ("underscore", "api_x.example", Refused("host_character")),
        ("escape", "api%2eexample", Refused("host_character")),
    ];
    for (row, raw, is) in rows {
        let expected = match is {
            Refused(code) => Err(*code),
            Sent(canonical) => Ok((*canonical).to_owned()),
        };
        let host = Host::parse_authority(raw)
            .map(|(host, _)| host.to_string())
            .map_err(|ambiguity| ambiguity.code);
        assert_eq!(host, expected, "{row}: {raw:?}");
    }
}
