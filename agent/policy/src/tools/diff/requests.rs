//! Requests made up for a difference: at the borders of what the rules in question take.
use super::lines::Route;
use crate::body::BodySpec;
use crate::policy::RuleData;
use crate::route::{Methods, Segment, meet, path_of};
use crate::sample;
use std::collections::BTreeSet;

/// A request, but for its host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Attempt {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Option<String>,
}

/// Attempts for one difference at most.
const MOST: usize = 4_000;
/// Variations of one rule's query, headers and body at most.
const MOST_VARIATIONS: usize = 400;
/// A parameter, field or path that nobody declares.
const NOBODYS: &str = "tollgate-diff";
/// Where any method goes.
const METHODS: [&str; 9] = [
    "TOLLGATE", "GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE",
];

/// What is sent besides method and path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Variation {
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Option<String>,
}

/// Attempts at the rules that differ, and at what they share with other rules.
pub(super) fn attempts(route: &Route, rules: &[&RuleData], others: &[&RuleData]) -> Vec<Attempt> {
    let mut tried = BTreeSet::new();
    let mut attempts = Vec::new();
    let mut add = |method: &str, path: &str, variation: &Variation| {
        let attempt = variation.on(method, path);
        if attempts.len() < MOST && tried.insert(attempt.clone()) {
            attempts.push(attempt);
        }
    };
    let mut variations = vec![Variation::default()];
    variations.extend(rules.iter().flat_map(|rule| of_rule(rule)));
    let methods: Vec<&str> = match route.method.as_str() {
        "*" => METHODS.to_vec(),
        method => vec![method],
    };
    for rule in rules {
        for path in paths(&rule.template.segments) {
            // The first method with everything, and each method with nothing.
            for method in &methods {
                add(method, &path, &Variation::default());
            }
            let first = methods.first().into_iter().chain(methods.get(1));
            for (method, variation) in
                first.flat_map(|method| variations.iter().map(move |it| (method, it)))
            {
                add(method, &path, variation);
            }
        }
    }
    for (rule, other) in rules
        .iter()
        .flat_map(|rule| others.iter().map(move |other| (rule, other)))
    {
        let segments = rule.template.without_trailing_slash();
        let shared = meet(&rule.template.segments, &other.template.segments)
            .or_else(|| meet(segments, &other.template.segments));
        let Some(path) = shared.and_then(|shared| path_of(&shared, "x")) else {
            continue;
        };
        for method in &methods {
            if !other.methods.allow(method) && !matches!(other.methods, Methods::Any) {
                continue;
            }
            add(method, &path, &Variation::default());
            for variation in of_rule(other).iter().take(8) {
                add(method, &path, variation);
            }
        }
        if let (Methods::These(named), "*") = (&other.methods, route.method.as_str()) {
            for method in named {
                for variation in of_rule(other).iter().take(8) {
                    add(method, &path, variation);
                }
            }
        }
    }
    attempts
}

/// A few paths that a template takes.
fn paths(segments: &[Segment]) -> Vec<String> {
    let mut paths: Vec<String> = ["x", "y", "7", NOBODYS]
        .iter()
        .filter_map(|filler| path_of(segments, filler))
        .collect();
    if let Some((Segment::Rest, before)) = segments.split_last() {
        paths.extend(path_of(before, "x"));
        let mut deeper = before.to_vec();
        deeper.extend([Segment::One, Segment::One]);
        paths.extend(path_of(&deeper, NOBODYS));
        deeper.push(Segment::Literal("".into()));
        paths.extend(path_of(&deeper, "x"));
    }
    paths
}

impl Variation {
    fn on(&self, method: &str, path: &str) -> Attempt {
        let mut target = path.to_owned();
        for (index, (name, value)) in self.query.iter().enumerate() {
            target.push(if index == 0 { '?' } else { '&' });
            sample::escape(name, &mut target);
            target.push('=');
            sample::escape(value, &mut target);
        }
        Attempt {
            method: method.to_owned(),
            target,
            headers: self.headers.clone(),
            body: self.body.clone(),
        }
    }
}

/// What the rule takes, and what it takes just not; the most ordinary first.
fn of_rule(rule: &RuleData) -> Vec<Variation> {
    let base = base(rule);
    let mut all = vec![base.clone()];
    if let Some(query) = &rule.query {
        for parameter in &query.parameters {
            let rest = base
                .query
                .iter()
                .filter(|(name, _)| **name != *parameter.name);
            let rest: Vec<_> = rest.cloned().collect();
            let with = |values: &[String]| {
                let mut query = rest.clone();
                query.extend(
                    values
                        .iter()
                        .map(|value| (parameter.name.to_string(), value.clone())),
                );
                Variation {
                    query,
                    ..base.clone()
                }
            };
            all.push(with(&[]));
            let texts = sample::texts(&parameter.shape);
            if let Some(first) = texts.first() {
                all.push(with(&[first.clone(), first.clone()]));
            }
            all.extend(texts.into_iter().map(|text| with(&[text])));
        }
    }
    let mut undeclared = base.clone();
    undeclared.query.push((NOBODYS.to_owned(), "1".to_owned()));
    all.push(undeclared);
    for (name, shape) in &rule.headers.require {
        let rest = base.headers.iter().filter(|(known, _)| known != name);
        let rest: Vec<_> = rest.cloned().collect();
        let with = |value: Option<String>| {
            let mut headers = rest.clone();
            headers.extend(value.map(|value| (name.clone(), value)));
            Variation {
                headers,
                ..base.clone()
            }
        };
        all.push(with(None));
        all.extend(
            sample::texts(shape)
                .into_iter()
                .map(|text| with(Some(text))),
        );
    }
    let passing = rule.headers.allow.iter().chain(&rule.headers.strip);
    for name in passing.filter(|name| !base.headers.iter().any(|(known, _)| known == *name)) {
        let mut with = base.clone();
        with.headers.push((name.clone(), "x".to_owned()));
        all.push(with);
    }
    all.extend(bodies(rule).into_iter().map(|body| Variation {
        body,
        ..base.clone()
    }));
    all.truncate(MOST_VARIATIONS);
    all
}

/// What the rule asks for, and no more.
fn base(rule: &RuleData) -> Variation {
    let mut base = Variation::default();
    let fitting = |shape: &crate::shape::Shape| {
        let texts = sample::texts(shape).into_iter();
        texts
            .filter(|text| shape.accepts_text(text))
            .find(|text| !text.is_empty())
    };
    let parameters = rule.query.iter().flat_map(|query| &query.parameters);
    for parameter in parameters.filter(|parameter| parameter.required) {
        let value = fitting(&parameter.shape);
        base.query
            .extend(value.map(|value| (parameter.name.to_string(), value)));
    }
    for (name, shape) in &rule.headers.require {
        base.headers
            .extend(fitting(shape).map(|value| (name.clone(), value)));
    }
    if rule.grpc {
        base.headers
            .push(("content-type".to_owned(), "application/grpc".to_owned()));
    }
    if rule.websocket.is_some() {
        base.headers
            .push(("upgrade".to_owned(), "websocket".to_owned()));
    }
    if let Some(body) = &rule.body {
        let json = ("content-type".to_owned(), "application/json".to_owned());
        if !base.headers.iter().any(|(name, _)| *name == json.0) {
            base.headers.push(json);
        }
        base.body = Some(object(required(body)));
    }
    base
}

/// The fields that must be there, each with a value that fits.
fn required(body: &BodySpec) -> Vec<(&str, String)> {
    let fields = body.fields.as_deref().unwrap_or_default();
    let fields = body.required.iter().filter_map(|index| fields.get(*index));
    fields
        .filter_map(|field| {
            Some((
                &*field.name,
                sample::values(&field.shape).into_iter().next()?,
            ))
        })
        .collect()
}

fn object(fields: Vec<(&str, String)>) -> String {
    let members = fields
        .into_iter()
        .map(|(name, value)| format!("{}:{value}", serde_json::Value::from(name)));
    format!("{{{}}}", members.collect::<Vec<_>>().join(","))
}

/// Bodies with what must be there and one field more or other, with one that is not declared, and none.
fn bodies(rule: &RuleData) -> Vec<Option<String>> {
    let Some(body) = &rule.body else {
        return Vec::new();
    };
    let with = |name: &str, value: Option<String>| {
        let mut members = required(body);
        members.retain(|(known, _)| *known != name);
        members.extend(value.map(|value| (name, value)));
        Some(object(members))
    };
    let mut bodies = vec![None, with(NOBODYS, Some("1".to_owned()))];
    for field in body.fields.iter().flatten() {
        bodies.push(with(&field.name, None));
        let values = sample::values(&field.shape).into_iter();
        bodies.extend(values.map(|value| with(&field.name, Some(value))));
    }
    bodies
}
