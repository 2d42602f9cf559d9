//! Any request against a policy with every construct, checked by what stands here in plain words.
use crate::canonical::{Host, Target, decode};
use crate::compile::compile;
use crate::syntax::Source;
use crate::{Body, Decision, Headers, Mode, Outcome, Policy, Request, Scheme, Subject, Verdict};
use std::sync::LazyLock;

/// The policy; `None` if it does not compile, which the crate's tests notice.
static POLICY: LazyLock<Option<Policy>> = LazyLock::new(|| {
    let source = Source {
        name: "policy.yaml".into(),
        text: include_str!("policy.yaml").into(),
    };
    compile(&[source]).ok().map(|compiled| compiled.policy)
});

/// The time of every request.
const NOW: i64 = 1_800_000_000;

/// Which role each workload has, said a second time.
const GRANTED: [(&str, Option<&str>, &str); 8] = [
    ("builder", None, "triage"),
    ("builder", None, "own"),
    ("builder", None, "rich"),
    ("builder", None, "reader(part: open/data)"),
    ("builder", Some("bob"), "personal"),
    ("notebooks", None, "chat"),
    ("notebooks", None, "own"),
    ("notebooks", Some("bob"), "personal"),
];

/// What nobody may do: part of the host, method or `*`, and how the path begins.
const NEVER: [(&str, &str, &str); 3] = [
    ("api.github.com", "*", "/repos/acme/payroll"),
    (
        "api.github.com",
        "DELETE",
        "/repos/acme/00000000-0000-0000-0000-000000000000",
    ),
    (".ledger.corp", "POST", "/close"),
];

/// A request in text: `workload [identity]`, `METHOD http[s]://host[:port] target`, header lines, an
/// empty line, the body.
struct Ask<'a> {
    workload: &'a str,
    identity: Option<&'a str>,
    scheme: Scheme,
    host: Host,
    port: u16,
    method: &'a str,
    target: Target<'a>,
    headers: Fields<'a>,
    body: &'a [u8],
}

struct Fields<'a>(Vec<(String, &'a str)>);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        let named = self.0.iter().filter(|(field, _)| field == name);
        named.for_each(|(_, value)| visit(value.as_bytes()));
    }
}

impl<'a> Ask<'a> {
    fn parse(data: &'a [u8]) -> Option<Self> {
        let end = data.windows(2).position(|pair| pair == b"\n\n");
        let (head, body) = data.split_at_checked(end.unwrap_or(data.len()))?;
        let mut lines = std::str::from_utf8(head).ok()?.split('\n');
        let who = lines.next()?;
        let (workload, identity) = match who.split_once(' ') {
            Some((workload, identity)) => (workload, Some(identity)),
            None => (who, None),
        };
        let mut words = lines.next()?.splitn(3, ' ');
        let method = words.next()?;
        let (scheme, authority) = words.next()?.split_once("://")?;
        let (host, port) = Host::parse_authority(authority).ok()?;
        let target = Target::parse(words.next()?).ok()?;
        let field = |line: &'a str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim()))
        };
        Some(Self {
            workload,
            identity,
            scheme: if scheme == "http" {
                Scheme::Http
            } else {
                Scheme::Https
            },
            host,
            port: port.unwrap_or(443),
            method,
            target,
            headers: Fields(lines.filter_map(field).collect()),
            body: body.strip_prefix(b"\n\n").unwrap_or(body),
        })
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            workload: self.workload,
            identity: self.identity,
        }
    }

    fn request<'r>(&'r self, body: Body<'r>) -> Request<'r> {
        Request {
            scheme: self.scheme,
            host: &self.host,
            port: self.port,
            method: self.method,
            target: &self.target,
            headers: &self.headers,
            body,
            now: NOW,
        }
    }
}

/// A request that is allowed is allowed by a rule that matches, that is granted, and that no denial
/// overrules; it makes no difference when the body is read; `explain` says what `decide` says.
pub fn decide(data: &[u8]) {
    let (Some(policy), Some(ask)) = (&*POLICY, Ask::parse(data)) else {
        return;
    };
    let absent = policy.decide(&ask.subject(), &ask.request(Body::Absent));
    if let Some(decision) = decided(absent) {
        check(policy, &ask, Body::Absent, &decision);
    }
    let Some(decision) = with_body(policy, &ask) else {
        return;
    };
    check(policy, &ask, Body::Read(ask.body), &decision);
}

fn decided(outcome: Outcome<'_>) -> Option<Decision<'_>> {
    match outcome {
        Outcome::Decided(decision) => Some(decision),
        Outcome::NeedsBody { .. } => None,
    }
}

/// As the agent does it: first unread, then as much as is asked for.
fn with_body<'p>(policy: &'p Policy, ask: &Ask<'_>) -> Option<Decision<'p>> {
    let whole = policy.decide(&ask.subject(), &ask.request(Body::Read(ask.body)));
    let whole = decided(whole);
    assert!(whole.is_some(), "a body is asked for that was read");
    for declared in [None, u64::try_from(ask.body.len()).ok()] {
        let first = policy.decide(&ask.subject(), &ask.request(Body::Unread(declared)));
        let second = match first {
            Outcome::Decided(decision) => decision,
            Outcome::NeedsBody { max } => {
                let read = ask.body.get(..max.saturating_add(1)).unwrap_or(ask.body);
                decided(policy.decide(&ask.subject(), &ask.request(Body::Read(read))))?
            }
        };
        let verdicts = whole.as_ref().map(same_words);
        assert_eq!(Some(same_words(&second)), verdicts, "reading late differs");
    }
    whole
}

/// A decision as far as it must be the same whenever the body is read.
fn same_words<'d>(decision: &'d Decision<'_>) -> (Verdict, Option<&'d str>, Option<&'d str>) {
    let rule = decision.rule.map(|rule| &*rule.label);
    let query = decision.plan.query.as_ref().and_then(Option::as_deref);
    (decision.verdict, rule, query)
}

fn check(policy: &Policy, ask: &Ask<'_>, body: Body<'_>, decision: &Decision<'_>) {
    let allowed = decision.verdict == Verdict::Allow;
    assert_eq!(allowed, decision.reason.is_none());
    assert!(decision.effective_mode(Mode::Enforce) == decision.mode);
    check_stripped(ask, decision);
    check_explained(policy, ask, body, decision);
    if !allowed {
        assert!(decision.plan.credential.is_none(), "a denial injects");
        return;
    }
    assert_eq!(ask.scheme, Scheme::Https, "allowed in clear");
    let host = ask.host.as_str();
    let path = decoded(&ask.target.path);
    for (whose, method, prefix) in NEVER {
        let below = path
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        // Only the one path is denied where a method is named.
        let below = below && (method == "*" || path.len() <= prefix.len() + 1);
        let same = method == "*" || method.eq_ignore_ascii_case(ask.method);
        assert!(
            !(host.ends_with(whose) && same && below),
            "allowed though denied"
        );
    }
    let Some(rule) = decision.rule else {
        assert!(decision.rule.is_some(), "allowed by no rule");
        return;
    };
    let granted = GRANTED.iter().any(|(workload, identity, role)| {
        *workload == ask.workload
            && identity.is_none_or(|identity| ask.identity == Some(identity))
            && rule.label.starts_with(&format!("role:{role} allow "))
    });
    assert!(granted, "{} is not granted to {}", rule.label, ask.workload);
    assert!(route_matches(&rule.route, ask.method, &ask.target.path));
    check_edited(policy, ask, decision);
}

/// What is sent instead of a body is allowed itself, by the same rule, and nothing more is cut out of it.
fn check_edited(policy: &Policy, ask: &Ask<'_>, decision: &Decision<'_>) {
    let Some(edited) = &decision.plan.body else {
        assert!(decision.plan.stripped_body.is_empty());
        return;
    };
    assert!(edited.len() < ask.body.len(), "nothing was cut out");
    let again = policy.decide(&ask.subject(), &ask.request(Body::Read(edited)));
    let again = decided(again);
    assert_eq!(again.as_ref().map(same_words), Some(same_words(decision)));
    assert!(again.is_some_and(|again| again.plan.body.is_none()));
}

/// What is sent of the query is a part of it, and canonical.
fn check_stripped(ask: &Ask<'_>, decision: &Decision<'_>) {
    let Some(left) = &decision.plan.query else {
        assert!(decision.plan.stripped_query.is_empty());
        return;
    };
    let left = left.as_deref().unwrap_or("");
    let again = format!("/?{left}");
    let again = Target::parse(&again).map(|target| target.query.unwrap_or_default().into_owned());
    assert_eq!(again.as_deref(), Ok(left), "what is left is not canonical");
    let kept: Vec<&str> = left.split('&').filter(|piece| !piece.is_empty()).collect();
    let mut before = ask.target.pairs().map(|pair| pair.raw);
    let all = kept.iter().all(|piece| before.any(|raw| raw == *piece));
    assert!(all, "{left} was not sent so");
}

fn check_explained(policy: &Policy, ask: &Ask<'_>, body: Body<'_>, decision: &Decision<'_>) {
    let explained = policy.explain(&ask.subject(), &ask.request(body));
    assert_eq!(same_words(&explained.decision), same_words(decision));
    assert_eq!(explained.decision.mode, decision.mode);
    assert_eq!(explained.decision.reason, decision.reason);
    for near in &explained.near {
        assert!(!near.failed.detail.is_empty() && !near.failed.code.is_empty());
        let allowing = decision.verdict == Verdict::Allow;
        let same = decision
            .rule
            .is_some_and(|rule| std::ptr::eq(rule, near.rule));
        assert!(!(allowing && same), "the rule that allows came only near");
    }
}

/// A route against a method and path, without tree, order or kinds: what must hold of any match.
fn route_matches(route: &str, method: &str, path: &str) -> bool {
    let Some((methods, template)) = route.split_once(' ') else {
        return false;
    };
    let methods = match methods {
        "read-only" => "GET|HEAD",
        methods => methods,
    };
    let any = methods == "*" && !matches!(method, "CONNECT" | "TRACE");
    let template: Vec<&str> = template.split('/').skip(1).collect();
    let path: Vec<&str> = path.split('/').skip(1).collect();
    (any || methods.split('|').any(|named| named == method)) && segments_match(&template, &path)
}

fn segments_match(template: &[&str], path: &[&str]) -> bool {
    match (template, path) {
        (["**"], _) | ([], []) => true,
        ([first, template @ ..], [segment, path @ ..]) => {
            let segment = decode(segment);
            let one = match *first {
                literal if !literal.starts_with('{') => decode(literal) == segment,
                int if int.ends_with(":int}") => segment.parse::<i64>().is_ok(),
                uuid if uuid.ends_with(":uuid}") => segment.len() == 36,
                _ => !segment.is_empty(),
            };
            one && segments_match(template, path)
        }
        _ => false,
    }
}

fn decoded(path: &str) -> String {
    path.split('/').map(decode).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_compiles_and_requests_are_read() {
        assert!(POLICY.is_some());
        let text = b"builder alice\nPATCH https://api.github.com /repos/acme/app/issues/1\nContent-Type: application/json\n\n{}";
        let ask = Ask::parse(text).unwrap();
        assert_eq!((ask.workload, ask.identity), ("builder", Some("alice")));
        assert_eq!(ask.body, b"{}");
        let decision = with_body(POLICY.as_ref().unwrap(), &ask).unwrap();
        assert_eq!(decision.verdict, Verdict::Allow);
    }

    #[test]
    fn every_seed_is_a_request() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/decide");
        let (mut allowed, mut denied) = (0, 0);
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let data = std::fs::read(&path).unwrap();
            let ask = Ask::parse(&data).unwrap_or_else(|| panic!("{}", path.display()));
            match with_body(POLICY.as_ref().unwrap(), &ask).unwrap().verdict {
                Verdict::Allow => allowed += 1,
                Verdict::Deny => denied += 1,
            }
        }
        assert!(
            allowed > 5 && denied > 5,
            "{allowed} allowed, {denied} denied"
        );
    }
}
