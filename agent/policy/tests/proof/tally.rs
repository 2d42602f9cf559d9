//! What was tried, and how often.
use crate::agreement::Agreed;
use crate::model::{Body, Carries, Kind, Literal, Methods, Rule, Segment, Shape};
use crate::naive::{Naive, Placed};
use crate::request::{Asked, Payload, What};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    pairs: u64,
    allowed: u64,
    denied: u64,
    /// Reason codes, and constructs of rules that decided.
    hits: BTreeMap<&'static str, u64>,
}

/// Hits that each of the expected must have.
const ENOUGH: u64 = 200;

/// Each of these decides many times, or the comparison has not tried it.
const EXPECTED: [&str; 74] = [
    "any-workload grant allows",
    "body",
    "body any",
    "body enum of bool",
    "body enum of int",
    "body enum of null",
    "body enum of text",
    "body form",
    "body json",
    "body list",
    "body list of objects",
    "body max",
    "body nested object",
    "body unread",
    "code body_encoding",
    "code body_field",
    "code body_invalid",
    "code body_too_large",
    "code body_type",
    "code cleartext",
    "code denied_by_rule",
    "code expired",
    "code header_missing",
    "code header_value",
    "code identity",
    "code identity_required",
    "code method",
    "code no_grant",
    "code no_route",
    "code query_duplicate",
    "code query_extra",
    "code query_missing",
    "code query_value",
    "code uninspected",
    "code unknown_host",
    "connected by address",
    "connected by name",
    "connection denied",
    "connection inspected",
    "credential client",
    "credential injected",
    "credential none",
    "credential not on OPTIONS",
    "deny with other case",
    "deny with slash",
    "enforced denial",
    "grant by group",
    "grant by identity",
    "grant by identity and group",
    "grant with until",
    "header allow",
    "header require",
    "header strip",
    "host wildcard",
    "method any",
    "method read-only",
    "method several",
    "observed denial",
    "port 8443",
    "query any parameter",
    "query enum",
    "query list",
    "query pattern",
    "query range",
    "query required",
    "query stripped",
    "response max",
    "role included",
    "role with arguments",
    "segment **",
    "segment int",
    "segment pattern",
    "segment uuid",
    "trailing slash",
];

impl Tally {
    fn hit(&mut self, what: &'static str) {
        *self.hits.entry(what).or_default() += 1;
    }

    pub(crate) fn count(&mut self, naive: &Naive<'_>, asked: &Asked, agreed: &Agreed<'_>) {
        self.pairs += 1;
        let Agreed::Decided(answer, placed, code) = agreed else {
            self.hit("connection inspected");
            return;
        };
        if answer.allow {
            self.allowed += 1;
        } else {
            self.denied += 1;
            let observed = naive.observed(answer, *placed);
            self.hit(if observed {
                "observed denial"
            } else {
                "enforced denial"
            });
            if asked.what != What::Request {
                self.hit("connection denied");
            }
        }
        if let Some(code) = code {
            self.hit(code_name(code));
        }
        let Some(placed) = placed else {
            return;
        };
        match &placed.rule {
            None if matches!(asked.what, What::Name) => self.hit("connected by name"),
            None => self.hit("connected by address"),
            Some(rule) if placed.deny => {
                let slash = asked.path.last().is_some_and(String::is_empty);
                if slash && !matches!(rule.path.last(), Some(Segment::Rest)) {
                    self.hit("deny with slash");
                }
                if asked.method.starts_with(|one: char| one.is_lowercase()) {
                    self.hit("deny with other case");
                }
            }
            Some(rule) if answer.allow => self.count_rule(naive, asked, placed, rule),
            Some(_) => {}
        }
        if answer.allow {
            self.count_grant(naive, asked, placed);
        }
    }

    fn count_grant(&mut self, naive: &Naive<'_>, asked: &Asked, placed: &Placed) {
        let gives = naive.granted.iter().find(|granted| {
            naive.holds(granted.grant, asked)
                && granted.rules.iter().any(|rule| rule.label == placed.label)
        });
        let Some(granted) = gives else {
            return;
        };
        let grant = granted.grant;
        match (grant.identities.is_empty(), grant.groups.is_empty()) {
            (true, true) => {}
            (false, true) => self.hit("grant by identity"),
            (true, false) => self.hit("grant by group"),
            (false, false) => self.hit("grant by identity and group"),
        }
        if grant.workloads.is_empty() {
            self.hit("any-workload grant allows");
        }
        if grant.until.is_some() {
            self.hit("grant with until");
        }
        if granted.includes && !placed.label.starts_with(&format!("role:{} ", grant.role)) {
            self.hit("role included");
        }
        if placed.label.contains('(') {
            self.hit("role with arguments");
        }
    }

    fn count_rule(&mut self, naive: &Naive<'_>, asked: &Asked, placed: &Placed, rule: &Rule) {
        match &rule.methods {
            Methods::Any => self.hit("method any"),
            Methods::ReadOnly => self.hit("method read-only"),
            Methods::These(methods) if methods.len() > 1 => self.hit("method several"),
            Methods::These(_) => {}
        }
        for segment in &rule.path {
            match segment {
                Segment::Int(_) => self.hit("segment int"),
                Segment::Uuid(_) => self.hit("segment uuid"),
                Segment::Pattern(..) => self.hit("segment pattern"),
                Segment::Rest => self.hit("segment **"),
                Segment::Text(text) if text.is_empty() => self.hit("trailing slash"),
                _ => {}
            }
        }
        match &placed.entry.credential {
            Carries::None => self.hit("credential none"),
            Carries::Client => self.hit("credential client"),
            Carries::Injected(_) if asked.method == "OPTIONS" => {
                self.hit("credential not on OPTIONS");
            }
            Carries::Injected(_) => self.hit("credential injected"),
        }
        if placed.entry.response_max.is_some() {
            self.hit("response max");
        }
        for api in naive
            .model
            .apis
            .iter()
            .filter(|api| api.name == placed.entry.api)
        {
            if let Kind::Hosts(hosts, port) = &api.kind {
                if !hosts.contains(&asked.host) {
                    self.hit("host wildcard");
                }
                if *port == 8443 {
                    self.hit("port 8443");
                }
            }
        }
        self.count_headers(rule);
        self.count_query(rule, asked);
        if let Some(declared) = &rule.body {
            self.count_body(declared, asked);
        }
    }

    fn count_headers(&mut self, rule: &Rule) {
        for (there, what) in [
            (!rule.headers.allow.is_empty(), "header allow"),
            (!rule.headers.require.is_empty(), "header require"),
            (!rule.headers.strip.is_empty(), "header strip"),
        ] {
            if there {
                self.hit(what);
            }
        }
    }

    fn count_query(&mut self, rule: &Rule, asked: &Asked) {
        let Some(declared) = &rule.query else {
            if !asked.query.is_empty() {
                self.hit("query any parameter");
            }
            return;
        };
        for pair in &asked.query {
            let Some(parameter) = declared.iter().find(|known| known.name == pair.name) else {
                self.hit("query stripped");
                continue;
            };
            if parameter.required {
                self.hit("query required");
            }
            match &parameter.shape {
                Shape::OneOf(_) => self.hit("query enum"),
                Shape::List(_) => self.hit("query list"),
                Shape::Pattern(_) => self.hit("query pattern"),
                Shape::Range(..) => self.hit("query range"),
                _ => {}
            }
        }
    }

    fn count_body(&mut self, declared: &Body, asked: &Asked) {
        self.hit("body");
        if asked.is_unread() {
            self.hit("body unread");
        }
        match asked.payload {
            Payload::Json(_) => self.hit("body json"),
            _ => self.hit("body form"),
        }
        if declared.max.is_some() {
            self.hit("body max");
        }
        for (_, shape) in &declared.fields {
            match shape {
                Shape::Any => self.hit("body any"),
                Shape::Object(_) => self.hit("body nested object"),
                Shape::List(item) if matches!(**item, Shape::Object(_)) => {
                    self.hit("body list of objects");
                }
                Shape::List(_) => self.hit("body list"),
                Shape::OneOf(literals) => {
                    for literal in literals {
                        self.hit(match literal {
                            Literal::Text(_) => "body enum of text",
                            Literal::Int(_) => "body enum of int",
                            Literal::Bool(_) => "body enum of bool",
                            Literal::Null => "body enum of null",
                        });
                    }
                }
                _ => {}
            }
        }
    }

    /// A proof that tries nothing proves nothing.
    pub(crate) fn check(&self) {
        assert!(self.pairs >= 1_000_000, "{} pairs", self.pairs);
        assert!(self.allowed * 5 >= self.pairs, "{} allowed", self.allowed);
        assert!(self.denied * 5 >= self.pairs, "{} denied", self.denied);
        let hits = |what: &str| self.hits.get(what).copied().unwrap_or(0);
        let rare: Vec<String> = EXPECTED
            .iter()
            .filter(|what| hits(what) < ENOUGH)
            .map(|what| format!("{what}: {}", hits(what)))
            .collect();
        assert!(rare.is_empty(), "hardly tried: {rare:?}");
    }
}

fn code_name(code: &'static str) -> &'static str {
    let named = |name: &&&str| name.strip_prefix("code ") == Some(code);
    EXPECTED.iter().find(named).copied().unwrap_or("code other")
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (pairs, allowed, denied) = (self.pairs, self.allowed, self.denied);
        writeln!(f, "pairs {pairs}, allowed {allowed}, denied {denied}")?;
        for (what, count) in &self.hits {
            writeln!(f, "{count:>8} {what}")?;
        }
        Ok(())
    }
}
