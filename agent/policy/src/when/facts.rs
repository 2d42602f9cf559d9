//! What is known of a request, as values of the library. Only what a condition names is made.
use super::Facts;
use super::run::Meter;
use crate::syntax::quote;
use cel::common::types::{
    CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt,
};
use cel::common::value::Val;
use serde_json::Value as Json;
use std::borrow::Cow;
use std::collections::HashMap;

/// Levels of a body at most; strict JSON has fewer.
const MAX_DEPTH: usize = 128;

pub(super) type Boxed<'v> = Box<dyn Val + 'v>;

/// A part of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fact {
    Method,
    Scheme,
    Host,
    Port,
    Path,
    Query,
    Workload,
    Identity,
    HasIdentity,
    Groups,
    Now,
    /// A path parameter.
    Parameter(Box<str>),
    /// The one value of a header, by its lower-case name.
    Header(Box<str>),
    HasHeader(Box<str>),
    /// A member within the body.
    Member(Place),
    /// Whether an object of the body has a member; of no path: whether there is a body.
    HasMember(Place),
}

/// Where in a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) form: bool,
    pub(super) path: Vec<Box<str>>,
}

impl Fact {
    /// Its value, or why there is none.
    pub(super) fn value<'f>(&self, facts: &Facts<'f>, meter: &Meter) -> Result<Boxed<'f>, String> {
        let text = |text: &'f str| -> Boxed<'f> { Box::new(CelString::from(text)) };
        Ok(match self {
            Self::Method => text(facts.method),
            Self::Scheme => text(facts.scheme),
            Self::Host => text(facts.host),
            Self::Port => Box::new(CelInt::from(i64::from(facts.port))),
            Self::Path => text(facts.path),
            Self::Query => query(facts),
            Self::Workload => text(facts.workload),
            Self::Identity => facts.identity.map_or(Box::new(CelNull), text),
            Self::HasIdentity => truth(facts.identity.is_some()),
            Self::Groups => {
                let groups: Vec<Boxed<'f>> = facts.groups.iter().map(|group| text(group)).collect();
                Box::new(CelList::from(groups))
            }
            Self::Now => super::run::time(facts.now).ok_or("the time is out of range")?,
            Self::Parameter(name) => facts
                .parameters
                .iter()
                .find(|(known, _)| *known == &**name)
                .map(|(_, value)| text(value))
                .ok_or_else(|| format!("there is no path parameter {}", quote(name)))?,
            Self::Header(name) => Box::new(CelString::from(
                header(facts, name)?
                    .ok_or_else(|| format!("there is no header {}", quote(name)))?,
            )),
            Self::HasHeader(name) => truth(header(facts, name)?.is_some()),
            Self::Member(place) => {
                let value = place.find(facts, &place.path)?;
                convert(value, 0, meter).ok_or("there is too much in the body")?
            }
            Self::HasMember(place) => truth(place.has(facts)?),
        })
    }
}

impl Place {
    fn body<'f>(&self, facts: &Facts<'f>) -> Option<&'f Json> {
        if self.form { facts.form } else { facts.json }
    }

    fn find<'f>(&self, facts: &Facts<'f>, path: &[Box<str>]) -> Result<&'f Json, String> {
        let none = || match self.form {
            true => "there is no form body".to_owned(),
            false => "there is no JSON body".to_owned(),
        };
        let mut value = self.body(facts).ok_or_else(none)?;
        for name in path {
            let member = value.as_object().and_then(|members| members.get(&**name));
            value = member.ok_or_else(|| no_field(name))?;
        }
        Ok(value)
    }

    fn has(&self, facts: &Facts<'_>) -> Result<bool, String> {
        let Some((name, parents)) = self.path.split_last() else {
            return Ok(self.body(facts).is_some());
        };
        match self.find(facts, parents)? {
            Json::Object(members) => Ok(members.contains_key(&**name)),
            _ => Err(no_field(name)),
        }
    }
}

pub(super) fn no_field(name: &str) -> String {
    format!("there is no field {}", quote(name))
}

fn truth<'v>(held: bool) -> Boxed<'v> {
    Box::new(CelBool::from(held))
}

/// The value of a header that is there once.
fn header(facts: &Facts<'_>, name: &str) -> Result<Option<String>, String> {
    let mut found = None;
    let mut count = 0_usize;
    facts.headers.each(name, &mut |value| {
        count += 1;
        found = Some(std::str::from_utf8(value).map(str::to_owned));
    });
    match found {
        _ if count > 1 => Err(format!("the header {} is there twice", quote(name))),
        None => Ok(None),
        Some(Ok(text)) => Ok(Some(text)),
        Some(Err(_)) => Err(format!("the header {} is not UTF-8", quote(name))),
    }
}

fn query<'f>(facts: &Facts<'f>) -> Boxed<'f> {
    let mut lists: HashMap<CelMapKey<'f>, Vec<Boxed<'f>>> = HashMap::new();
    for pair in facts.query.pairs() {
        let name: Cow<'f, str> = pair.name;
        let value: Cow<'f, str> = pair.value;
        let list = lists.entry(CelMapKey::String(CelString::from(name)));
        list.or_default().push(Box::new(CelString::from(value)));
    }
    let boxed = |list| -> Boxed<'f> { Box::new(CelList::from(list)) };
    let lists = lists.into_iter().map(|(name, list)| (name, boxed(list)));
    Box::new(CelMap::from(lists.collect::<HashMap<_, _>>()))
}

/// JSON as a value; its texts are not copied. `None` where there is too much of it.
fn convert<'f>(json: &'f Json, depth: usize, meter: &Meter) -> Option<Boxed<'f>> {
    if depth > MAX_DEPTH || !meter.take(1) {
        meter.exhaust();
        return None;
    }
    Some(match json {
        Json::Null => Box::new(CelNull),
        Json::Bool(value) => truth(*value),
        Json::Number(number) => {
            if let Some(value) = number.as_i64() {
                Box::new(CelInt::from(value))
            } else if let Some(value) = number.as_u64() {
                Box::new(CelUInt::from(value))
            } else {
                // No number beyond 64 bits gets here; if one did, no comparison with it would hold.
                Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN)))
            }
        }
        Json::String(text) => Box::new(CelString::from(text.as_str())),
        Json::Array(items) => {
            let items: Option<Vec<_>> = items
                .iter()
                .map(|item| convert(item, depth + 1, meter))
                .collect();
            Box::new(CelList::from(items?))
        }
        Json::Object(members) => {
            // A member is hashed and takes two allocations.
            meter.take(
                u64::try_from(members.len())
                    .unwrap_or(u64::MAX)
                    .saturating_mul(2),
            );
            let members: Option<HashMap<_, _>> = members
                .iter()
                .map(|(name, value)| {
                    let name = CelMapKey::String(CelString::from(name.as_str()));
                    Some((name, convert(value, depth + 1, meter)?))
                })
                .collect();
            Box::new(CelMap::from(members?))
        }
    })
}
