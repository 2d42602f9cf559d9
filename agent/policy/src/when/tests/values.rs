use super::*;

#[track_caller]
fn all(expected: &Result<bool, &str>, conditions: &[&str]) {
    let body = body();
    for condition in conditions {
        let found = on(condition, &body);
        match (expected, &found) {
            (Ok(expected), Ok(found)) => assert_eq!(expected, found, "{condition}"),
            (Err(part), Err(found)) if found.contains(part) => {}
            _ => panic!("{condition}: {found:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn the_request_is_there() {
    all(
        &Ok(true),
        &[
            "request.method == 'PATCH'",
            "request.scheme == \"https\"",
            "request.host.endsWith('.github.com')",
            "request.port == 443",
            "request.path == '/repos/acme/tools/issues/7'",
            "request['path'].startsWith('/repos/')",
            "path.repo == 'tools' && path['number'] == '7'",
            "int(path.number) < 10",
            "request.query.page == ['2']",
            "request.query['tag'] == ['a', 'b c']",
            "request.query.empty[0] == ''",
            "!('debug' in request.query) && 'page' in request.query && !has(request.query.debug)",
            "size(request.query) == 3 && request.query.all(name, name in ['page', 'tag', 'empty'])",
            "request.headers['x-tenant'] == 'acme'",
            "request.headers['X-Tenant'] == 'acme'",
            "'x-tenant' in request.headers && has(request.headers.host) == false",
            "!('x-other' in request.headers)",
            "request.form.a == '1' && 'x' in request.form.tags",
            "has(request.json) && has(request.form) && has(subject.identity)",
            "subject.workload == 'report-builder' && subject.identity == 'alice'",
            "'oncall' in subject.groups && !('root' in subject.groups) && subject.groups.size() == 2",
            "subject.groups.exists(group, group.startsWith('on'))",
        ],
    );
}

#[test]
fn the_policys_example() {
    let condition = "!('secret' in request.json.labels) && path.repo != 'payroll'";
    assert_eq!(on(condition, &json!({ "labels": ["bug"] })), Ok(true));
    assert_eq!(on(condition, &json!({ "labels": ["secret"] })), Ok(false));
    let missing = on(condition, &json!({}));
    assert_eq!(missing, Err("there is no field `labels`".to_owned()));
    assert!(on(condition, &json!({ "labels": "secret" })).is_err());
    let when = parse(condition).unwrap();
    assert!(when.needs_json() && !when.needs_form());
    assert_eq!(when.text(), condition);
    assert!(format!("{when:?}").contains("payroll"));
    let absent = with_facts(None, |facts| when.holds(facts));
    assert_eq!(absent, Err("there is no JSON body".to_owned()));
}

#[test]
fn numbers_compare_by_value() {
    all(
        &Ok(true),
        &[
            "request.json.n < 10 && request.json.half < 10 && request.json.neg < 10",
            "request.json.whole == 3 && request.json.n == request.json.whole && request.json.n == 3u",
            "request.json.huge > 10 && request.json.huge == 18446744073709551615u",
            "request.json.huge > request.json.max && request.json.min < request.json.neg",
            "request.json.half > 9 && request.json.half >= 9.5 && request.json.half != 9",
            "request.json.max <= 9223372036854775808.0 && -1 < request.json.huge",
            "request.json.whole in [1, 2, 3] && 3 in [1.0, 3.0] == request.json.flag",
            "request.json.n + 1 == 4 && request.json.n * 2 - 1 == 5 && request.json.neg / 2 == -3",
            "request.json.neg % 3 == -1 && request.json.half * 2.0 == 19.0",
            "request.json.min == -9223372036854775808",
            "double(request.json.n) * 1.5 == 4.5 && int(request.json.half) == 9",
            "uint(request.json.n) == 3u && string(request.json.n) == '3'",
            "{1: 'a'}[request.json.whole - 2.0] == 'a' && [1, 2][request.json.zero] == 1",
            "-request.json.n == -3 && - 3 == -request.json.n",
            "0x10 == 16 && 1e3 == 1000 && .5 < 1 && request.json.flag",
        ],
    );
}

#[test]
fn what_cannot_be_computed_is_an_error() {
    all(
        &Err("too large"),
        &[
            "request.json.max + 1 > 0",
            "request.json.min - 1 < 0",
            "request.json.max * 2 > 0",
            "-request.json.min > 0",
            "request.json.min / -1 > 0",
            "request.json.min % -1 == 0",
            "request.json.huge + 1u > 0u",
            "uint(request.json.n) - 4u > 0u",
            "timestamp('9999-12-31T00:00:00Z') + duration('2400h') > now",
        ],
    );
    all(
        &Err("divided by zero"),
        &[
            "1 / request.json.zero == 1",
            "1 % request.json.zero == 1",
            "1u / uint(request.json.zero) == 1u",
        ],
    );
    all(
        &Err("type it does not take"),
        &[
            "request.json.n + 1.5 > 0.0",
            "request.json.labels[0.5] == 'x'",
            "request.json.title > 3",
            "request.json.n.startsWith('a')",
            "request.json.labels.matches('a')",
            "request.json.none < 1",
            "'a' in request.json.title",
            "request.json.title[0] == 'C'",
            "request.json.title.all(letter, true)",
            "size(request.json.n) == 1",
            "request.json.user + request.json.user == {}",
            "-request.json.title == 'x'",
        ],
    );
    all(
        &Err("no field"),
        &[
            "request.json.missing == 1",
            "request.json['missing'] == 1",
            "request.json.title.length == 1",
            "has(request.json.missing.deeper)",
            "request.query.debug == []",
        ],
    );
    all(
        &Err("lacks the key"),
        &["request.json.user[0] == 1", "{'a': 1}[path.repo] == 1"],
    );
    all(
        &Err("shorter than"),
        &[
            "request.json.labels[2] == 'x'",
            "request.json.labels[-1] == 'x'",
            "request.json.labels[18446744073709551615u] == 'x'",
        ],
    );
    all(
        &Err("cannot convert"),
        &[
            "int(request.json.title) == 1",
            "int(request.json.huge) == 1",
            "uint(request.json.neg) == 1u",
            "int(1e300 * double(request.json.n)) == 1",
            "double(request.json.title) == 1.0",
            "timestamp(request.json.title) < now",
        ],
    );
    all(
        &Err("true or false is needed"),
        &[
            "request.json.n",
            "!request.json.n",
            "request.json.n && true",
            "request.json.n ? true : false",
            "request.json.labels.all(label, label)",
        ],
    );
    all(&Err("twice"), &["request.headers.accept == 'text/html'"]);
    all(&Err("twice"), &["'accept' in request.headers"]);
    all(&Err("UTF-8"), &["request.headers['x-raw'] == ''"]);
    all(&Err("no header"), &["request.headers['x-none'] == ''"]);
    all(
        &Err("one key twice"),
        &["{path.repo: 1, 'tools': 2}.tools == 1"],
    );
}

#[test]
fn errors_give_way_to_what_decides() {
    all(
        &Ok(true),
        &[
            "request.json.missing == 1 || request.json.flag",
            "request.json.flag || request.json.missing == 1",
            "!(request.json.missing == 1 && request.json.n > 5)",
            "request.json.items.exists(item, item.missing == 1 || item.id == 2)",
            "[0, 1, 2].exists(n, 4 / n == 2 && request.json.flag)",
            "!request.json.items.all(item, item.id == 2)",
            "request.json.flag ? true : request.json.missing",
        ],
    );
    all(
        &Err("no field"),
        &[
            "request.json.missing == 1 || request.json.n > 5",
            "request.json.flag && request.json.missing == 1",
            "request.json.items.all(item, item.missing == 1)",
            "request.json.items.exists_one(item, item.missing == 1)",
            "request.json.missing ? true : request.json.flag",
        ],
    );
}

#[test]
fn loops_and_lists() {
    all(
        &Ok(true),
        &[
            "request.json.labels.all(label, label in ['bug', 'ui'])",
            "request.json.items.exists(item, item.tags.exists(tag, tag == 'b'))",
            "request.json.items.exists_one(item, size(item.tags) == 1)",
            "request.json.items.map(item, item.id) == [1, 2]",
            "request.json.items.map(item, item.id > 1, item.tags[0]) == ['a']",
            "request.json.items.filter(item, item.id > 1)[0].tags == ['a', 'b']",
            "request.json.user.exists(key, key == 'odd-name') && request.json.user['odd-name'] == 1",
            "request.json.labels + ['x'] == ['bug', 'ui', 'x']",
            "request.json.items[0] == {'tags': ['a'], 'id': 1.0}",
            "{'id': 1, 'tags': ['a']} in request.json.items",
            "request.json.none == null && request.json.n != null && request.json.user.roles == []",
            "size(request.json.labels) == 2 && size('äö') == 2 && request.json.user.size() == 3",
            "[] == request.json.user.roles && request.json.user.roles.all(role, false)",
            "has(request.json.user.name) && !has(request.json.user.email)",
            "'name' in request.json.user && !('email' in request.json.user)",
            "request.json.labels != ['bug'] && request.json.labels != 'bug'",
        ],
    );
}

#[test]
fn texts() {
    all(
        &Ok(true),
        &[
            "request.json.title.contains('at') && request.json.title.startsWith('Crash')",
            "request.json.title + '!' == 'Crash at start!' && request.json.title < 'D'",
            // Not anchored, as everywhere in CEL.
            "request.path.matches('/issues/[0-9]+$') && !request.path.matches('^issues')",
            "matches(request.json.title, r'^\\w+ at')",
            "request.path.contains('') && 'a' + 'b' in ['ab', path.repo]",
        ],
    );
    let escapes = "'\\x41\\u00e4\\U0001F600\\101\\'' + path.repo == \"A\u{e4}\u{1f600}A'tools\"";
    assert_eq!(on(escapes, &body()), Ok(true));
}

#[test]
fn times() {
    all(
        &Ok(true),
        &[
            "now > timestamp('2026-11-24T08:00:00Z') && now < timestamp('2026-11-24T09:05:10+01:00')",
            "now - timestamp(request.json.at) == duration('5m9s')",
            "now.getFullYear() == 2026 && now.getMonth() == 10 && now.getDate() == 24",
            "now.getDayOfMonth() == 23 && now.getDayOfWeek() == 2 && now.getDayOfYear() == 327",
            "now.getHours() == 8 && now.getMinutes() == 5 && now.getSeconds() == 9",
            "now.getMilliseconds() == 0 && int(now) == 1795507509",
            "now + duration('-1.5h') < timestamp(request.json.at) && duration('90m').getHours() == 1",
            "(now - timestamp('2026-11-24T08:05:08.5Z')).getMilliseconds() == 500",
        ],
    );
}

#[test]
fn a_part_of_a_time_is_in_utc() {
    all(
        &Ok(true),
        &[
            "timestamp('2026-11-24T01:30:00+02:00').getHours() == 23 && request.json.flag",
            "timestamp('2026-11-24T01:30:00+02:00').getDate() == 23 && request.json.flag",
            "timestamp(request.json.at).getHours() == 8 && (now + duration('1h')).getHours() == 9",
        ],
    );
}

#[test]
fn a_map_has_no_order() {
    all(
        &Err("lists, not maps"),
        &[
            "request.json.user.map(name, name) == []",
            "request.json.user.filter(name, true).size() > 0",
        ],
    );
    all(
        &Ok(true),
        &["request.json.user.exists(name, name == 'roles') && request.json.user.size() == 3"],
    );
}

/// The library looks for types and qualified names too.
#[test]
fn names_are_what_they_are_here() {
    all(
        &Ok(true),
        &[
            "request.json.labels.exists(int, int == 'ui') && request.json.labels.all(string, string(string) != '')",
            "request.json.items.exists(type, type.id == 2 && has(type.tags))",
            "request.json.items.all(request2, request2.tags.size() <= 2)",
            "request.json['user']['name'] == 'alice' && request['json'].user['odd-name'] == 1",
            "has(request.json.user.name) && !has(request.json.user.none) && has(request['json'].n)",
        ],
    );
}
