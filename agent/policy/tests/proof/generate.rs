//! Policies by chance.
use crate::chance::Chance;
use crate::meaning::{CONDITIONS, PATTERNS};
use crate::model::{
    Api, Body, Carries, Credential, Entry, Grant, Headers, Item, Kind, Literal, Methods, Model,
    Parameter, Role, RoleUse, Rule, Segment, Shape,
};

/// Ends of grants: as written, and the last second.
pub(crate) const ENDS: [(&str, i64); 3] = [
    ("2026-06-30", 1_782_863_999),
    ("2026-07-01T12:00:00Z", 1_782_907_200),
    ("\"2026-07-02T01:30:00+02:00\"", 1_782_948_600),
];

/// Arguments of roles: what fills a place in a path or among values.
const ARGUMENTS: [&str; 6] = ["a", "b", "1", "acme/app", "x-1", "a:b"];
const TEXTS: [&str; 8] = ["a", "b", "1", "acme", "app", "a:b", "a%3Ab", "%C3%A9"];
const VALUES: [&str; 4] = ["open", "closed", "string", "1..5"];
pub(crate) const PARAMETERS: [&str; 6] = ["p", "q", "page", "a b", "api_key", "_method"];
pub(crate) const FIELDS: [&str; 4] = ["state", "n", "user", "labels"];
const METHODS: [&str; 5] = ["GET", "PUT", "POST", "OPTIONS", "DELETE"];

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

pub(crate) fn model(chance: &mut Chance) -> Model {
    let (apis, credentials) = apis(chance);
    let identities = texts(&["i0", "i1", "i2", "i3"]);
    let mut groups = vec![
        ("g0".to_owned(), chance.some(&identities, 3)),
        ("g1".to_owned(), chance.some(&identities, 2)),
    ];
    groups.retain(|(_, members)| !members.is_empty());
    let mut model = Model {
        workloads: texts(&["w0", "w1", "w2"]),
        identities,
        groups,
        apis,
        credentials,
        ..Model::default()
    };
    for number in 0..1 + chance.below(5) {
        let role = role(chance, &model, number);
        model.roles.push(role);
    }
    for _ in 0..1 + chance.below(6) {
        let grant = grant(chance, &model);
        model.grants.push(grant);
    }
    model
}

fn apis(chance: &mut Chance) -> (Vec<Api>, Vec<Credential>) {
    let api = |name: &str, kind| Api {
        name: name.to_owned(),
        kind,
    };
    let address = |text: &str| text.parse().unwrap();
    let mut apis = vec![
        api("a0", Kind::Hosts(texts(&["a.com"]), 443)),
        api("a1", Kind::Hosts(texts(&["*.b.com"]), 443)),
    ];
    let more = [
        api(
            "a2",
            Kind::Hosts(texts(&["x.b.com", "b.com"]), *chance.pick(&[443, 8443])),
        ),
        api("a3", Kind::Hosts(texts(&["a.com", "*.b.com"]), 8443)),
        api("n0", Kind::Sni(texts(&["pin.c.com", "*.d.com"]), 443)),
        api(
            "t0",
            Kind::Tcp(vec![
                (address("10.0.0.7"), 32, 6379),
                (address("10.1.0.0"), 16, 5432),
            ]),
        ),
        api(
            "t1",
            Kind::Tcp(vec![
                (address("10.0.0.0"), 8, 6379),
                (address("2001:db8::"), 32, 5432),
                (address("192.0.2.0"), 24, 443),
            ]),
        ),
    ];
    apis.extend(chance.some(&more, 5));
    let inspected: Vec<String> = inspected(&apis);
    let credential = |name: &str, header: &str, to: Vec<String>| Credential {
        name: name.to_owned(),
        header: header.to_owned(),
        to,
    };
    let credentials = vec![
        credential("c0", "authorization", inspected.clone()),
        credential("c1", "x-magic", inspected),
    ];
    (apis, credentials)
}

fn inspected(apis: &[Api]) -> Vec<String> {
    let inspected = apis.iter().filter(|api| api.is_inspected());
    inspected.map(|api| api.name.clone()).collect()
}

fn role(chance: &mut Chance, model: &Model, number: usize) -> Role {
    let parameters = match chance.below(3) {
        0 => chance.some(&texts(&["p", "q", "api"]), 3),
        _ => Vec::new(),
    };
    let mut items = Vec::new();
    for _ in 0..1 + chance.below(3) {
        if !model.roles.is_empty() && chance.once_in(3) {
            let included = chance.pick(&model.roles).clone();
            items.push(Item::Include(role_use(
                chance,
                model,
                &included,
                &parameters,
            )));
        } else {
            items.push(Item::Entry(entry(chance, model, &parameters)));
        }
    }
    // One that is not used is a fault.
    let text = format!("{items:?}");
    let used = |name: &String| text.contains(&format!("${{{name}}}"));
    Role {
        name: format!("r{number}"),
        parameters: parameters.into_iter().filter(used).collect(),
        items,
    }
}

/// A role with arguments; some are those of the role that includes it.
fn role_use(chance: &mut Chance, model: &Model, role: &Role, within: &[String]) -> RoleUse {
    let arguments = role.parameters.iter().map(|name| {
        let value = match name.as_str() {
            "api" if within.contains(name) => "${api}".to_owned(),
            "api" => chance.pick(&inspected(&model.apis)).clone(),
            _ => match within.iter().find(|outer| *outer != "api") {
                Some(outer) if chance.once_in(2) => format!("${{{outer}}}"),
                _ => (*chance.pick(&ARGUMENTS)).to_owned(),
            },
        };
        (name.clone(), value)
    });
    RoleUse {
        name: role.name.clone(),
        arguments: arguments.collect(),
    }
}

fn entry(chance: &mut Chance, model: &Model, parameters: &[String]) -> Entry {
    let bare = |api: String| Entry {
        api,
        credential: Carries::None,
        allow: Vec::new(),
        deny: Vec::new(),
        response_strip: Vec::new(),
        response_max: None,
    };
    let uninspected: Vec<&Api> = model
        .apis
        .iter()
        .filter(|api| !api.is_inspected())
        .collect();
    if !uninspected.is_empty() && chance.once_in(4) {
        return bare(chance.pick(&uninspected).name.clone());
    }
    let by_parameter = parameters.iter().any(|name| name == "api");
    let mut entry = bare(match by_parameter {
        true => "${api}".to_owned(),
        false => chance.pick(&inspected(&model.apis)).clone(),
    });
    entry.credential = match chance.below(4) {
        0 => Carries::None,
        1 => Carries::Client,
        _ => Carries::Injected(chance.pick(&model.credentials).name.clone()),
    };
    let inner: Vec<&String> = parameters.iter().filter(|name| *name != "api").collect();
    for _ in 0..chance.below(5) {
        let rule = allow(chance, &entry, &inner);
        entry.allow.push(rule);
    }
    if entry.allow.is_empty() || chance.once_in(4) {
        entry.deny.push(deny(chance, &inner));
    }
    if chance.once_in(3) {
        entry.response_strip = chance.some(&texts(&["set-cookie", "server"]), 2);
        entry.response_max = chance.once_in(2).then_some(10_000);
    }
    entry
}

fn bare_rule(methods: Methods, path: Vec<Segment>) -> Rule {
    Rule {
        methods,
        path,
        query: None,
        strip: false,
        headers: Headers::default(),
        body: None,
        when: None,
    }
}

/// A rule for any entry.
pub(crate) fn rule(chance: &mut Chance, is_deny: bool) -> Rule {
    if is_deny {
        return deny(chance, &[]);
    }
    let entry = Entry {
        api: String::new(),
        // The one whose header no rule may let pass.
        credential: Carries::Injected("c1".to_owned()),
        allow: Vec::new(),
        deny: Vec::new(),
        response_strip: Vec::new(),
        response_max: None,
    };
    allow(chance, &entry, &[])
}

/// Every method, and no path yet.
pub(crate) fn anything() -> Rule {
    bare_rule(Methods::Any, Vec::new())
}

fn allow(chance: &mut Chance, entry: &Entry, parameters: &[&String]) -> Rule {
    let methods = methods(chance, &METHODS);
    let mut rule = bare_rule(methods, path(chance, parameters));
    if chance.once_in(2) {
        let mut names = chance.some(&texts(&PARAMETERS), 3);
        chance.shuffle(&mut names);
        let declared = names.into_iter().map(|name| Parameter {
            name,
            shape: shape(chance, Side::Query, parameters),
            required: chance.once_in(4),
        });
        rule.query = Some(declared.collect());
        rule.strip = chance.once_in(2);
    }
    if chance.once_in(3) {
        rule.headers = headers(chance, entry, parameters);
    }
    if chance.once_in(3) {
        let fields = fields(chance, parameters, 2);
        let max = *chance.pick(&[None, None, Some(24), Some(200)]);
        rule.body = Some(Body { fields, max });
    }
    if !CONDITIONS.is_empty() && chance.once_in(4) {
        rule.when = Some(chance.below(CONDITIONS.len()));
    }
    rule
}

fn deny(chance: &mut Chance, parameters: &[&String]) -> Rule {
    let methods = methods(chance, &["GET", "PUT", "POST", "TRACE", "CONNECT"]);
    let mut rule = bare_rule(methods, path(chance, parameters));
    if !CONDITIONS.is_empty() && chance.once_in(3) {
        let condition = chance.below(CONDITIONS.len());
        rule.when = CONDITIONS[condition].deny.then_some(condition);
    }
    rule
}

fn methods(chance: &mut Chance, known: &[&str]) -> Methods {
    match chance.below(4) {
        0 => Methods::Any,
        1 => Methods::ReadOnly,
        _ => {
            let mut methods = chance.some(&texts(known), 3);
            chance.shuffle(&mut methods);
            if methods.is_empty() {
                methods.push("GET".to_owned());
            }
            Methods::These(methods)
        }
    }
}

fn path(chance: &mut Chance, parameters: &[&String]) -> Vec<Segment> {
    let mut path = Vec::new();
    for number in 0..chance.below(4) {
        let name = format!("s{number}");
        path.push(match chance.below(9) {
            0 => Segment::Star,
            1 => Segment::Named(name),
            2 => Segment::Int(name),
            3 => Segment::Uuid(name),
            4 => Segment::Pattern(name, chance.below(PATTERNS.len())),
            5 if !parameters.is_empty() => {
                Segment::Text(format!("${{{}}}", chance.pick(parameters)))
            }
            6 if !parameters.is_empty() => {
                Segment::Text(format!("x-${{{}}}", chance.pick(parameters)))
            }
            _ => Segment::Text((*chance.pick(&TEXTS)).to_owned()),
        });
    }
    match chance.below(6) {
        0 | 1 => path.push(Segment::Rest),
        2 => path.push(Segment::Text(String::new())),
        _ if path.is_empty() => path.push(Segment::Text(String::new())),
        _ => {}
    }
    path
}

fn headers(chance: &mut Chance, entry: &Entry, parameters: &[&String]) -> Headers {
    let mut headers = Headers::default();
    let set =
        |name: &str| name == "x-magic" && entry.credential == Carries::Injected("c1".to_owned());
    for name in ["x-tenant", "accept", "x-custom", "x-magic"] {
        if set(name) {
            continue;
        }
        let name = name.to_owned();
        match chance.below(5) {
            0 => headers.allow.push(name),
            1 => headers
                .require
                .push((name, shape(chance, Side::Header, parameters))),
            2 => {
                let shape = shape(chance, Side::Header, parameters);
                headers.allow.push(name.clone());
                headers.require.push((name, shape));
            }
            3 => headers.strip.push(name),
            _ => {}
        }
    }
    headers
        .strip
        .extend(chance.some(&texts(&["user-agent", "cookie"]), 2));
    headers
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Query,
    Header,
    Body,
}

fn fields(chance: &mut Chance, parameters: &[&String], depth: usize) -> Vec<(String, Shape)> {
    let mut names = chance.some(&texts(&FIELDS), 3);
    chance.shuffle(&mut names);
    let field = |name: String| {
        let nested = if depth > 0 { chance.below(4) } else { 3 };
        let shape = match nested {
            0 => Shape::Object(fields(chance, parameters, depth - 1)),
            1 => Shape::List(Box::new(Shape::Object(fields(
                chance,
                parameters,
                depth - 1,
            )))),
            _ => shape(chance, Side::Body, parameters),
        };
        (name, shape)
    };
    names.into_iter().map(field).collect()
}

fn shape(chance: &mut Chance, side: Side, parameters: &[&String]) -> Shape {
    if side != Side::Header && chance.once_in(5) {
        return Shape::List(Box::new(match plain_shape(chance, side, parameters) {
            // In brackets only what YAML takes without quotes.
            Shape::Pattern(_) => Shape::Pattern(2 + chance.below(2)),
            other => other,
        }));
    }
    plain_shape(chance, side, parameters)
}

fn plain_shape(chance: &mut Chance, side: Side, parameters: &[&String]) -> Shape {
    match chance.below(10) {
        0 => Shape::Any,
        1 => Shape::Text,
        2 => Shape::Int,
        3 => Shape::Number,
        4 => Shape::Bool,
        5 => Shape::Uuid,
        6 => Shape::Range(-4, 3),
        7 => Shape::Pattern(chance.below(PATTERNS.len())),
        _ => {
            let mut literals: Vec<Literal> = chance
                .some(&VALUES, 3)
                .into_iter()
                .map(|text| Literal::Text(text.to_owned()))
                .collect();
            if side == Side::Body {
                literals
                    .extend(chance.some(&[Literal::Int(1), Literal::Bool(true), Literal::Null], 3));
            }
            if !parameters.is_empty() && chance.once_in(2) {
                literals.push(Literal::Text(format!("${{{}}}", chance.pick(parameters))));
            }
            if literals.is_empty() {
                literals.push(Literal::Text("open".to_owned()));
            }
            Shape::OneOf(literals)
        }
    }
}

pub(crate) fn grant(chance: &mut Chance, model: &Model) -> Grant {
    let role = chance.pick(&model.roles).clone();
    let group_names: Vec<String> = model.groups.iter().map(|(name, _)| name.clone()).collect();
    let mut grant = Grant {
        role: role_use(chance, model, &role, &[]),
        workloads: chance.some(&model.workloads, 2),
        identities: Vec::new(),
        groups: Vec::new(),
        observe: chance.once_in(3),
        until: chance.once_in(3).then(|| *chance.pick(&ENDS)),
    };
    if chance.once_in(3) {
        grant.identities = chance.some(&model.identities, 2);
    }
    if chance.once_in(4) {
        grant.groups = chance.some(&group_names, 2);
    }
    if grant.workloads.is_empty() && grant.identities.is_empty() && grant.groups.is_empty() {
        grant.workloads.push(chance.pick(&model.workloads).clone());
    }
    grant
}
