use super::*;

/// Each fault as what it underlines, its message and its help.
fn faults(text: &str) -> Vec<(String, String, String)> {
    faults_of(text, true)
}

fn faults_of(text: &str, body: bool) -> Vec<(String, String, String)> {
    let known = Known {
        parameters: PARAMETERS,
        body,
    };
    let faults = match When::parse(text, &known) {
        Ok(when) => panic!("{when:?} is taken"),
        Err(faults) => faults,
    };
    assert!(!faults.is_empty());
    let mut listed = Vec::new();
    for fault in faults {
        let end = (fault.at + fault.width).min(text.len());
        let marked = text.get(fault.at..end).expect("whole characters");
        listed.push((
            marked.to_owned(),
            fault.message,
            fault.help.unwrap_or_default(),
        ));
    }
    listed
}

#[track_caller]
fn one(text: &str, marked: &str, message: &str, help: &str) {
    let found = faults(text);
    let [(found_marked, found_message, found_help)] = found.as_slice() else {
        panic!("{text}: {found:?}");
    };
    assert_eq!(found_marked, marked, "{text}: {found:?}");
    assert!(found_message.contains(message), "{text}: {found:?}");
    assert!(found_help.contains(help), "{text}: {found:?}");
}

#[test]
fn unknown_names_come_with_the_nearest() {
    one("request.jsn.a == 1", "jsn", "unknown field", "`json`?");
    one("request['jsn'] == 1", "'jsn'", "unknown field", "`json`?");
    one(
        "subjet.workload == 'a'",
        "subjet",
        "unknown variable",
        "`subject`?",
    );
    one("json.a == 1", "json", "unknown variable", "`request.json`?");
    one("repo == 'a'", "repo", "unknown variable", "`path.repo`?");
    one(
        "groups == []",
        "groups",
        "unknown variable",
        "`subject.groups`?",
    );
    one(
        "path.rep == 'a'",
        "rep",
        "unknown path parameter",
        "`repo`?",
    );
    one("subject.name == 'a'", "name", "unknown field", "`workload`");
    one(
        "request.path.startWith('a')",
        "startWith",
        "unknown function",
        "`startsWith`?",
    );
    one(
        "request.json.a.any(x, x)",
        "any",
        "unknown function",
        "known:",
    );
    one(
        "request.json.a.all(item, itm == 1)",
        "itm",
        "unknown variable",
        "`item`?",
    );
    let none = Known {
        parameters: &[],
        body: true,
    };
    let found = When::parse("path.repo == 'a'", &none).unwrap_err();
    assert_eq!(found[0].help.as_deref(), Some("there is none"));
}

#[test]
fn all_faults_in_one_pass() {
    let found = faults("request.jsn == 1 && path.rep == 'a' && foo(1) && request.method == 3");
    let marked: Vec<_> = found.iter().map(|(marked, ..)| marked.as_str()).collect();
    assert_eq!(marked, ["jsn", "rep", "foo", "request.method == 3"]);
}

#[test]
fn functions_are_called_as_they_are_written() {
    for (text, usage) in [
        ("request.path.contains()", "text.contains('part')"),
        ("request.path.contains('a', 'b')", "text.contains('part')"),
        ("contains(request.path, 'a')", "text.contains('part')"),
        ("size() == 1 && request.path == ''", "size(list)"),
        ("request.json.has(a)", "has(request.json.field)"),
        ("request.json.a.all(x)", "list.all(item, condition)"),
        (
            "request.json.a.filter(x, true, true)",
            "list.filter(item, condition)",
        ),
        ("now.getHours('Europe/Paris') == 1", "now.getHours(), UTC"),
        ("int() == 1 && request.path == ''", "int(value)"),
    ] {
        let found = faults(text);
        assert!(found[0].1.contains("not called like this"), "{found:?}");
        assert!(found[0].2.contains(usage), "{found:?}");
    }
    one("has(path.repo)", "path.repo", "always there", "");
    one(
        "has(request.json['a'])",
        "request.json['a']",
        "takes a field",
        "in request.json",
    );
    one(
        "request.json.a.all(1, true)",
        "1",
        "variable stands here",
        "label",
    );
    one(
        "request.json.a.all(now, true)",
        "now",
        "has a meaning",
        "another name",
    );
    one(
        "request.json.a.all(x, x.all(x, x))",
        "x",
        "has a meaning",
        "another name",
    );
}

#[test]
fn a_condition_is_true_or_false() {
    one("request.method", "request.method", "a string", "compare");
    one("'text'", "'text'", "a string", "compare");
    one(
        "request.port + 1",
        "request.port + 1",
        "an integer",
        "compare",
    );
    one(
        "request.json.a.map(x, x)",
        "request.json.a.map(x, x)",
        "a list",
        "compare",
    );
    one("now", "now", "a timestamp", "compare");
    one(
        "true",
        "true",
        "nothing about the request",
        "leave `when` out",
    );
    one("1 < 2", "1 < 2", "nothing about the request", "name what");
    one(
        "[1].all(x, x > 0)",
        "[1].all(x, x > 0)",
        "nothing about",
        "",
    );
    one(
        "!request.method",
        "request.method",
        "takes true or false",
        "",
    );
    one(
        "request.method && true",
        "request.method",
        "takes true or false",
        "",
    );
    one(
        "request.port ? true : false",
        "request.port",
        "takes true or false",
        "",
    );
    assert!(parse("request.json.flag").is_ok());
}

#[test]
fn types_that_cannot_fit() {
    one(
        "request.method == 3",
        "request.method == 3",
        "never equal",
        "convert",
    );
    one(
        "request.port < 'a'",
        "request.port < 'a'",
        "does not take",
        "convert",
    );
    one(
        "request.method + 1 == 'a'",
        "request.method + 1",
        "does not take",
        "",
    );
    one(
        "'a' in request.method",
        "'a' in request.method",
        "looks into",
        "contains",
    );
    one(
        "request.method.name == 'a'",
        "request.method",
        "takes a map",
        "",
    );
    one(
        "request.method[0] == 'P'",
        "request.method",
        "takes a list",
        "",
    );
    one(
        "request.port.startsWith('4')",
        "request.port",
        "takes a string",
        "",
    );
    one("now + now > now", "now + now", "does not take", "");
    one(
        "now > '2026-01-01'",
        "now > '2026-01-01'",
        "does not take",
        "",
    );
    one("subject.groups['a'] == 'a'", "'a'", "takes an integer", "");
    one(
        "request.query.map(n, n) == []",
        "request.query",
        "takes a list",
        "",
    );
    one(
        "request.json.a.getHours() == 1",
        "request.json.a",
        "may be anything",
        "timestamp(…)",
    );
    one(
        "now - now < duration(request.json.a)",
        "request.json.a",
        "string in the condition",
        "e.g.",
    );
    assert!(parse("subject.identity == null && request.json.a == 'x'").is_ok());
}

#[test]
fn patterns_are_literal_and_bounded() {
    let literal = "a string in the condition";
    one(
        "request.path.matches(path.repo)",
        "path.repo",
        literal,
        "e.g.",
    );
    one(
        "request.path.matches('a' + 'b')",
        "'a' + 'b'",
        literal,
        "e.g.",
    );
    one("request.path.matches('(')", "'('", "not valid", "");
    one(
        "request.path.matches('(a{500}){500}')",
        "'(a{500}){500}'",
        "too large",
        "",
    );
    let long = format!("request.path.matches('{}')", "a".repeat(1025));
    assert!(faults(&long)[0].1.contains("longer than 1024"));
}

#[test]
fn headers_are_named() {
    let alone = "alone is not a value";
    one(
        "request.headers == {}",
        "request.headers",
        alone,
        "name the header",
    );
    one("size(request.headers) == 1", "request.headers", alone, "");
    one(
        "request.headers[path.repo] == ''",
        "path.repo",
        "named by a string",
        "",
    );
    one(
        "path.repo in request.headers",
        "path.repo",
        "named by a string",
        "",
    );
    one(
        "request.headers['a b'] == ''",
        "'a b'",
        "not a header's name",
        "",
    );
    one("request == 1", "request", alone, "request.method");
    one("size(path) == 1", "path", alone, "path.name");
}

#[test]
fn a_deny_rule_does_not_see_the_body() {
    for text in [
        "request.json.a == 1",
        "has(request.json)",
        "has(request.form.a)",
        "request['json'] == 1",
    ] {
        let found = faults_of(text, false);
        assert_eq!(found[0].1, "a deny rule cannot look at the body");
        assert!(found[0].2.contains("allow rule"));
    }
    let known = Known {
        parameters: &[],
        body: false,
    };
    let when = When::parse("request.host == 'a'", &known).unwrap();
    assert!(!when.needs_json() && !when.needs_form());
}

#[test]
fn loops_nest_twice() {
    let text = "request.json.a.all(x, x.all(y, y.all(z, z)))";
    one(text, "z", "at most 2 deep", "");
    assert!(parse("request.json.a.all(x, x.all(y, y)) && request.json.b.map(x, x)[0]").is_ok());
    assert!(parse("request.json.a.map(x, x).filter(x, x).exists(x, x)").is_ok());
}

#[test]
fn times_are_read_at_once() {
    for text in [
        "2026-01-01",
        "2026-13-01T00:00:00Z",
        "2026-01-01T00:00:60Z",
        "2026-01-01T00:00:00",
        "0000-01-01T00:00:00Z",
        "2026-01-01T00:00:00+1:00",
        "2026-01-01T00:00:00Z[UTC]",
        "2026-01-01T00:00:00.Z",
        "ä",
    ] {
        let found = faults(&format!("now < timestamp('{text}')"));
        assert!(found[0].1.contains("is not a time"), "{text}: {found:?}");
    }
    for text in [
        "",
        "1",
        "h",
        "1h1",
        "1d",
        "-",
        "1.h1",
        ".s",
        "99999999999999h",
        "9999999999999999999s",
        "80000000h",
    ] {
        let found = faults(&format!("now - now < duration('{text}')"));
        assert!(
            found[0].1.contains("is not a duration"),
            "{text}: {found:?}"
        );
    }
}

#[test]
fn grammar() {
    let unexpected = "not expected";
    one("request.path = 'a'", "=", unexpected, "`==`");
    one("request.port > 1 and true", "and", unexpected, "`&&`");
    one("request.port > 1 & true", "&", unexpected, "`&&`");
    one("'ä' == request.path or true", "or", unexpected, "`||`");
    one("request.path == 'a", "'a", "does not end", "ends with '");
    one("request.path == 'a\nb'", "'a", "does not end", "");
    one("request.path == b'a'", "b'a'", "bytes", "string");
    one("request.json.in == 1", "in", unexpected, "['the-name']");
    one("request.json.`a-b` == 1", ".", unexpected, "");
    one("request.port == 1a", "a", unexpected, "");
    let large = "request.port == 9223372036854775808";
    one(large, "9223372036854775808", "out of range", "`u`");
    one("request.port == 1e999", "1e999", "out of range", "");
    one("request.path == '\\q'", "'\\q'", unexpected, "backslash");
    one(
        "request.path == '\\ud800'",
        "'\\ud800'",
        "an escape",
        "backslash",
    );
    one("(request.port == 1", "", "ends too early", "bracket");
    one("request.port == 1)", ")", unexpected, "");
    one("", "", "ends too early", "");
    one("if (true)", "if", "reserved", "");
    one("Name{a: 1} == 1", "{", "messages", "");
    one("request.json.?a == 1", ".", unexpected, "");
    one("ä == 1", "ä", unexpected, "");
    one("request.path == 'a\u{1}'", "'a\u{1}'", "does not end", "");
    one("request.path == \u{0}", "\u{0}", "control character", "");
    assert!(parse("request.json.if == 1 // a comment ' (\n && !false").is_ok());
    assert!(parse("request.port in [1, 2, ] && {'a': 1, }.a == request.port").is_ok());
    assert!(
        parse(r"request.path == r'\' && request.path != '\'(((((((((((((((((((((((((('").is_ok()
    );
    assert!(parse("request.path == '''it's (((((((((((((((((((((((((((((((( fine'''").is_ok());
}
