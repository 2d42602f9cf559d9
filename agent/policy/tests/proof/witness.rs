//! Requests made from the rules of a policy, so that many are allowed, and then changed a little, so that
//! many are nearly allowed.
use crate::chance::Chance;
use crate::generate::{ENDS, FIELDS, PARAMETERS};
use crate::meaning::{MEDIA, NUMBERS, PATTERNS, UUID, decoded};
use crate::model::{Api, Body, Kind, Literal, Methods, Model, Rule, Segment, Shape};
use crate::naive::{Naive, Placed};
use crate::request::{Asked, Json, Pair, Payload, What};
use std::net::{IpAddr, SocketAddr};

const TEXTS: [&str; 13] = [
    "a", "b", "ab", "1", "01", "-4", "acme", "app", "x-1", "a:b", "é", "v1", "open",
];
const VALUES: [&str; 14] = [
    "1", "3", "9", "x", "open", "closed", "true", "a b", "a:b", "", "1.0", "-0", "007", "string",
];

/// A request that one of the granted rules would allow, if nothing else stood against it.
pub(crate) fn witness(chance: &mut Chance, naive: &Naive<'_>) -> Asked {
    let granted = chance.pick(&naive.granted);
    let model = naive.model;
    let mut asked = anybody(chance);
    asked.workload = match granted.grant.workloads.is_empty() {
        true => chance.pick(&model.workloads).clone(),
        false => chance.pick(&granted.grant.workloads).clone(),
    };
    let mut fitting: Vec<Option<String>> = vec![None];
    fitting.extend(model.identities.iter().map(|name| Some(name.clone())));
    fitting.retain(|identity| {
        let probe = Asked {
            identity: identity.clone(),
            now: 0,
            ..asked.clone()
        };
        naive.holds(granted.grant, &probe)
    });
    if !fitting.is_empty() {
        asked.identity = chance.pick(&fitting).clone();
    }
    if let Some((_, last)) = granted.grant.until {
        asked.now = last - i64::try_from(chance.below(2)).unwrap() * 40_000;
    }
    let placed = chance.pick(&granted.rules);
    if let Some(api) = model.apis.iter().find(|api| api.name == placed.entry.api) {
        go_to(chance, api, &mut asked);
    }
    satisfy(chance, placed, &mut asked);
    asked
}

/// A request like any other.
fn anybody(chance: &mut Chance) -> Asked {
    Asked {
        workload: "w0".to_owned(),
        identity: None,
        now: ENDS[0].1 - 1_000_000,
        what: What::Request,
        https: true,
        host: "a.com".to_owned(),
        port: 443,
        method: "GET".to_owned(),
        path: vec![String::new()],
        query: Vec::new(),
        headers: Vec::new(),
        payload: Payload::Absent,
        spelling: u32::try_from(chance.next() & chance.next() & 0x7ff).unwrap(),
    }
}

fn go_to(chance: &mut Chance, api: &Api, asked: &mut Asked) {
    match &api.kind {
        Kind::Hosts(hosts, port) | Kind::Sni(hosts, port) => {
            asked.host = chance.pick(hosts).replace('*', chance.word(&["x", "y"]));
            asked.port = *port;
            if !api.is_inspected() {
                asked.what = What::Name;
            }
        }
        Kind::Tcp(endpoints) => {
            let (range, _, port) = *chance.pick(endpoints);
            asked.what = What::Address(SocketAddr::new(near(chance, range), port));
        }
    }
}

/// The address itself, or some in the ranges about it.
fn near(chance: &mut Chance, address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(four) => {
            let step = *chance.pick(&[0, 0, 1, 256, 70_000]);
            let four = std::net::Ipv4Addr::from_bits(four.to_bits().wrapping_add(step));
            match chance.once_in(4) {
                true => four.to_ipv6_mapped().into(),
                false => four.into(),
            }
        }
        IpAddr::V6(six) => {
            let step = *chance.pick(&[0, 1, 1 << 100]);
            std::net::Ipv6Addr::from_bits(six.to_bits().wrapping_add(step)).into()
        }
    }
}

fn satisfy(chance: &mut Chance, placed: &Placed, asked: &mut Asked) {
    let Some(rule) = &placed.rule else {
        return;
    };
    asked.method = match &rule.methods {
        Methods::Any => (*chance.pick(&["GET", "POST", "PURGE", "OPTIONS"])).to_owned(),
        Methods::ReadOnly => (*chance.pick(&["GET", "HEAD"])).to_owned(),
        Methods::These(methods) => chance.pick(methods).clone(),
    };
    asked.path = path(chance, &rule.path);
    for parameter in rule.query.iter().flatten() {
        let times = match &parameter.shape {
            Shape::List(_) => chance.below(3),
            _ if parameter.required => 1,
            _ => chance.below(2),
        };
        for _ in 0..times.max(usize::from(parameter.required)) {
            asked.query.push(Pair {
                name: parameter.name.clone(),
                value: text(chance, &parameter.shape),
            });
        }
    }
    chance.shuffle(&mut asked.query);
    for (name, shape) in &rule.headers.require {
        let value = text(chance, shape);
        asked.headers.push((name.clone(), value));
    }
    body(chance, rule, asked);
}

fn path(chance: &mut Chance, template: &[Segment]) -> Vec<String> {
    let mut path = Vec::new();
    for segment in template {
        path.push(match segment {
            Segment::Text(text) => decoded(text),
            Segment::Star | Segment::Named(_) => (*chance.pick(&TEXTS)).to_owned(),
            Segment::Int(_) => (*chance.pick(&["1", "-4", "0", "123"])).to_owned(),
            Segment::Uuid(_) => UUID.to_owned(),
            Segment::Pattern(_, number) => (*chance.pick(PATTERNS[*number].like)).to_owned(),
            Segment::Rest => {
                for _ in 0..chance.below(3) {
                    path.push((*chance.pick(&TEXTS)).to_owned());
                }
                if path.is_empty() || chance.once_in(3) {
                    path.push(String::new());
                }
                return path;
            }
        });
    }
    path
}

fn text(chance: &mut Chance, shape: &Shape) -> String {
    let list: &[&str] = match shape {
        Shape::Any | Shape::Text | Shape::Object(_) => &["x", "a b", "1", ""],
        Shape::Int | Shape::Number => &["1", "-4", "0", "9223372036854775807"],
        Shape::Bool => &["true", "false"],
        Shape::Uuid => &[UUID],
        Shape::Range(..) => &["-4", "0", "3"],
        Shape::Pattern(number) => PATTERNS[*number].like,
        Shape::List(item) => return text(chance, item),
        Shape::OneOf(literals) => {
            return match chance.pick(literals) {
                Literal::Text(text) => text.clone(),
                Literal::Int(number) => number.to_string(),
                Literal::Bool(value) => value.to_string(),
                Literal::Null => "null".to_owned(),
            };
        }
    };
    (*chance.pick(list)).to_owned()
}

fn body(chance: &mut Chance, rule: &Rule, asked: &mut Asked) {
    let Some(Body { fields, .. }) = &rule.body else {
        if chance.once_in(8) {
            asked.payload = Payload::Json(Json::Object(Vec::new()));
        }
        return;
    };
    let object = |(_, shape): &(String, Shape)| match shape {
        Shape::Object(_) => true,
        Shape::List(item) => matches!(**item, Shape::Object(_)),
        _ => false,
    };
    let sent: Vec<&(String, Shape)> = fields.iter().filter(|_| !chance.once_in(3)).collect();
    let form = chance.once_in(3) && !sent.iter().any(|field| object(field));
    let media: Vec<&str> = MEDIA
        .iter()
        .filter(|(_, json)| *json == Some(!form))
        .map(|(value, _)| *value)
        .collect();
    let media = (*chance.pick(&media)).to_owned();
    asked.headers.push(("content-type".to_owned(), media));
    if chance.once_in(6) {
        asked
            .headers
            .push(("content-encoding".to_owned(), "identity".to_owned()));
    }
    if form {
        let pairs = sent
            .into_iter()
            .map(|(name, shape)| (name.clone(), text(chance, shape)));
        asked.payload = Payload::Form(pairs.collect());
    } else {
        let entries = sent
            .into_iter()
            .map(|(name, shape)| (name.clone(), json(chance, shape)));
        asked.payload = Payload::Json(Json::Object(entries.collect()));
    }
}

fn json(chance: &mut Chance, shape: &Shape) -> Json {
    match shape {
        Shape::Any => any_json(chance, 3),
        Shape::Int | Shape::Range(..) => Json::Number(chance.word(&["1", "0", "-4", "3"])),
        Shape::Number => {
            Json::Number(chance.word(&["1", "1.0", "1e0", "-0", "9223372036854775808"]))
        }
        Shape::Bool => Json::Bool(chance.once_in(2)),
        Shape::Text | Shape::Uuid | Shape::Pattern(_) => Json::Text(text(chance, shape)),
        Shape::OneOf(literals) => match chance.pick(literals) {
            Literal::Text(text) => Json::Text(text.clone()),
            Literal::Int(_) => Json::Number("1"),
            Literal::Bool(value) => Json::Bool(*value),
            Literal::Null => Json::Null,
        },
        Shape::List(item) => Json::List((0..chance.below(3)).map(|_| json(chance, item)).collect()),
        Shape::Object(fields) => {
            let sent = chance.some(fields, fields.len());
            let entries = sent
                .into_iter()
                .map(|(name, shape)| (name, json(chance, &shape)));
            Json::Object(entries.collect())
        }
    }
}

fn any_json(chance: &mut Chance, depth: usize) -> Json {
    match chance.below(if depth == 0 { 4 } else { 7 }) {
        0 => Json::Null,
        1 => Json::Bool(chance.once_in(2)),
        2 => Json::Number(chance.pick(&NUMBERS).0),
        3 => Json::Text((*chance.pick(&VALUES)).to_owned()),
        4 => Json::List(
            (0..chance.below(3))
                .map(|_| any_json(chance, depth - 1))
                .collect(),
        ),
        5 if chance.once_in(8) => {
            // As deep as may be, or one deeper; it stands in an object.
            let nested = |inner, _| Json::List(vec![inner]);
            (0..62 + chance.below(3)).fold(Json::List(Vec::new()), nested)
        }
        _ => {
            let entries = (0..chance.below(3)).map(|_| {
                let key = (*chance.pick(&FIELDS)).to_owned();
                (key, any_json(chance, depth - 1))
            });
            Json::Object(entries.collect())
        }
    }
}

/// Changes one thing.
pub(crate) fn change(chance: &mut Chance, model: &Model, asked: &mut Asked) {
    match chance.below(22) {
        0 => asked.workload = (*chance.pick(&["w0", "w1", "w2", "ghost"])).to_owned(),
        1 => {
            let identity = *chance.pick(&["i0", "i1", "i2", "i3", "ghost"]);
            asked.identity = Some(identity.to_owned());
        }
        2 => asked.identity = None,
        3 => asked.now = chance.pick(&ENDS).1 + i64::try_from(chance.below(3)).unwrap() - 1,
        4 => {
            let hosts = [
                "a.com",
                "x.b.com",
                "y.b.com",
                "b.com",
                "x.y.b.com",
                "pin.c.com",
                "x.d.com",
                "c.com",
            ];
            asked.host = (*chance.pick(&hosts)).to_owned();
        }
        5 => asked.port = *chance.pick(&[443, 8443, 80]),
        6 => asked.https = false,
        7 => {
            let methods = [
                "GET", "HEAD", "PUT", "POST", "OPTIONS", "TRACE", "CONNECT", "PURGE",
            ];
            asked.method = (*chance.pick(&methods)).to_owned();
        }
        8 => asked.method = asked.method.to_lowercase(),
        9 | 10 => change_path(chance, asked),
        11 => asked.query.push(Pair {
            name: (*chance.pick(&["z", "P", "API-Key", "access_token"])).to_owned(),
            value: (*chance.pick(&VALUES)).to_owned(),
        }),
        12 => asked.query.push(Pair {
            name: (*chance.pick(&PARAMETERS)).to_owned(),
            value: (*chance.pick(&VALUES)).to_owned(),
        }),
        13 if !asked.query.is_empty() => {
            let pair = chance.pick(&asked.query).clone();
            asked.query.push(pair);
        }
        14 if !asked.query.is_empty() => {
            let index = chance.below(asked.query.len());
            match chance.once_in(2) {
                true => drop(asked.query.remove(index)),
                false => asked.query[index].value = (*chance.pick(&VALUES)).to_owned(),
            }
        }
        15 if !asked.headers.is_empty() => {
            let index = chance.below(asked.headers.len());
            match chance.below(3) {
                0 => drop(asked.headers.remove(index)),
                1 => asked.headers.push(asked.headers[index].clone()),
                _ => asked.headers[index].1 = (*chance.pick(&VALUES)).to_owned(),
            }
        }
        16 => {
            let media = chance.pick(&MEDIA).0.to_owned();
            asked.headers.retain(|(name, _)| name != "content-type");
            asked.headers.push(("content-type".to_owned(), media));
        }
        17 if chance.once_in(2) => {
            asked
                .headers
                .push(("content-encoding".to_owned(), "gzip".to_owned()));
        }
        18 => change_going(chance, model, asked),
        _ => change_body(chance, asked),
    }
}

fn change_path(chance: &mut Chance, asked: &mut Asked) {
    let slash = asked.path.last().is_some_and(String::is_empty);
    match chance.below(4) {
        0 if slash && asked.path.len() > 1 => drop(asked.path.pop()),
        0 | 1 if !slash => asked.path.push(String::new()),
        2 if asked.path.len() > 1 => drop(asked.path.remove(0)),
        _ => {
            let index = chance.below(asked.path.len());
            let text = (*chance.pick(&TEXTS)).to_owned();
            match chance.once_in(2) {
                true => asked.path.insert(index, text),
                false => asked.path[index] = text,
            }
        }
    }
}

/// To somewhere else, or in another way.
fn change_going(chance: &mut Chance, model: &Model, asked: &mut Asked) {
    asked.what = match chance.below(3) {
        0 => What::Request,
        1 => What::Name,
        _ => What::Address("10.0.0.7:6379".parse().unwrap()),
    };
    let api = chance.pick(&model.apis);
    if chance.once_in(2) {
        go_to(chance, api, asked);
    }
}

fn change_body(chance: &mut Chance, asked: &mut Asked) {
    match &mut asked.payload {
        Payload::Json(json) if !chance.once_in(6) => change_json(chance, json),
        Payload::Form(pairs) if !chance.once_in(6) => match chance.below(3) {
            0 if !pairs.is_empty() => pairs.push(chance.pick(pairs).clone()),
            1 if !pairs.is_empty() => {
                let index = chance.below(pairs.len());
                pairs[index].1 = (*chance.pick(&VALUES)).to_owned();
            }
            _ => pairs.push(((*chance.pick(&FIELDS)).to_owned(), "open".to_owned())),
        },
        payload => {
            *payload = match chance.below(4) {
                0 => Payload::Absent,
                1 => Payload::Json(any_json(chance, 2)),
                2 => Payload::Form(vec![("state".to_owned(), "open".to_owned())]),
                _ => Payload::Broken(chance.word(&[
                    "{\"state\":",
                    "state=%zz",
                    "state=1;n=2",
                    "{} {}",
                ])),
            }
        }
    }
}

fn change_json(chance: &mut Chance, json: &mut Json) {
    match json {
        Json::Object(entries) if !entries.is_empty() && !chance.once_in(8) => {
            let index = chance.below(entries.len());
            match chance.below(5) {
                0 => entries.push(entries[index].clone()),
                1 => entries.push(((*chance.pick(&FIELDS)).to_owned(), any_json(chance, 1))),
                2 => entries[index].0 = (*chance.pick(&FIELDS)).to_owned(),
                _ => change_json(chance, &mut entries[index].1),
            }
        }
        Json::List(items) if !items.is_empty() && !chance.once_in(8) => {
            let index = chance.below(items.len());
            change_json(chance, &mut items[index]);
        }
        Json::Object(entries) if entries.is_empty() => {
            entries.push(((*chance.pick(&FIELDS)).to_owned(), any_json(chance, 1)));
        }
        other => *other = any_json(chance, 1),
    }
}

/// Requests about a policy: a part as its rules would have them, most with something changed.
pub(crate) fn requests(chance: &mut Chance, naive: &Naive<'_>, count: usize) -> Vec<Asked> {
    let request = |_| {
        let mut asked = witness(chance, naive);
        let changes = *chance.pick(&[0, 0, 1, 1, 1, 2, 3]);
        for _ in 0..changes {
            change(chance, naive.model, &mut asked);
        }
        asked
    };
    (0..count).map(request).collect()
}
