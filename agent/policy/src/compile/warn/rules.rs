//! Rules that do nothing, and rules that do more than they look.
use super::Whole;
use crate::body::{Pointer, Redactor};
use crate::compile::rules::Ruled;
use crate::headers::{ParameterKind, parameter_kind};
use crate::model::Coverage;
use crate::policy::{Entry, Extra, RuleData};
use crate::route::{Index, Methods, Segment, covers};
use crate::syntax::{Decoder, Span, quote};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

/// Pairs of rules that are compared at most.
const MAX_COMPARED: usize = 400_000;

/// Why a rule does nothing.
#[derive(Clone, Copy)]
enum Idle {
    /// No canonical path has such a segment.
    Impossible,
    /// This deny rule takes all that it would allow.
    Denied(u32),
    /// This rule says the same.
    Twice(u32),
    /// This rule allows all that it allows.
    Wider(u32),
}

/// The rules of one role on one api, by their templates.
#[derive(Default)]
struct Indexed {
    allow: Index,
    deny: Index,
    denies: bool,
}

struct Search<'w> {
    ruled: &'w Ruled,
    indexed: HashMap<(usize, usize), Indexed>,
    compared: usize,
    /// What rules ask for, made once.
    asks: RefCell<HashMap<u32, Rc<Vec<String>>>>,
}

pub(super) fn warn(decoder: &mut Decoder, whole: &Whole<'_>) {
    let mut search = Search {
        ruled: whole.ruled,
        indexed: index(whole.ruled),
        compared: 0,
        asks: RefCell::default(),
    };
    // A role with parameters has the same rule once for each list of arguments: only one that is idle with
    // all of them is.
    let mut found: BTreeMap<Span, Option<Idle>> = BTreeMap::new();
    for (role, places) in whole.ruled.roles.iter().enumerate() {
        let Some(closure) = whole.closures.get(role) else {
            continue;
        };
        for place in places {
            if search.compared > MAX_COMPARED {
                break;
            }
            for number in &place.allow {
                let Some((rule, span)) = search.rule(*number) else {
                    continue;
                };
                if is_connect(rule) {
                    continue;
                }
                let idle = search.idle(*number, rule, place.api, closure, role);
                found
                    .entry(span)
                    .and_modify(|known| *known = known.and(idle))
                    .or_insert(idle);
            }
        }
    }
    for (span, idle) in found {
        if let Some(idle) = idle {
            tell(decoder, whole.ruled, span, idle);
        }
    }
    warn_of_all(decoder, whole);
}

/// What stands for a connection that is not inspected.
fn is_connect(rule: &RuleData) -> bool {
    &*rule.public.route == "connect"
}

fn index(ruled: &Ruled) -> HashMap<(usize, usize), Indexed> {
    let rule = |number: &u32| ruled.rules.get(usize::try_from(*number).ok()?);
    let mut all = HashMap::new();
    for (role, places) in ruled.roles.iter().enumerate() {
        for place in places {
            let mut indexed = Indexed::default();
            for number in &place.allow {
                if let Some(rule) = rule(number) {
                    indexed.allow.insert(&rule.template.segments, *number);
                }
            }
            for number in &place.deny {
                if let Some(rule) = rule(number).filter(|rule| rule.is_bare()) {
                    let segments = rule.template.without_trailing_slash();
                    indexed.deny.insert(segments, *number);
                    indexed.denies = true;
                }
            }
            all.insert((role, place.api), indexed);
        }
    }
    all
}

impl<'w> Search<'w> {
    fn rule(&self, number: u32) -> Option<(&'w RuleData, Span)> {
        let number = usize::try_from(number).ok()?;
        Some((
            self.ruled.rules.get(number)?,
            *self.ruled.spans.get(number)?,
        ))
    }

    /// Why an allow rule does nothing for whoever has its role, if so.
    fn idle(
        &mut self,
        number: u32,
        rule: &RuleData,
        api: usize,
        closure: &BTreeSet<usize>,
        own: usize,
    ) -> Option<Idle> {
        if !rule.template.segments.iter().all(Segment::is_possible) {
            return Some(Idle::Impossible);
        }
        let mut shadow = None;
        for role in closure {
            if self.compared > MAX_COMPARED {
                return None;
            }
            let Some(indexed) = self.indexed.get(&(*role, api)) else {
                continue;
            };
            if indexed.denies {
                let path = rule.template.without_trailing_slash();
                let denies = indexed.deny.covering(path);
                self.compared += denies.len();
                let denied = denies.iter().find(|deny| {
                    self.rule(**deny)
                        .is_some_and(|(deny, _)| denies_all(deny, rule))
                });
                if let Some(deny) = denied {
                    return Some(Idle::Denied(*deny));
                }
            }
            let allows = indexed.allow.covering(&rule.template.segments);
            self.compared += 1 + allows.len();
            shadow = shadow.or_else(|| {
                let mut others = allows.iter().filter(|other| **other != number);
                others.find_map(|other| self.shadow(number, rule, *other, *role == own))
            });
        }
        shadow
    }

    /// Whether another rule, whose template takes all of this one's, makes this one pointless.
    fn shadow(&self, number: u32, rule: &RuleData, other: u32, same_role: bool) -> Option<Idle> {
        let (wide, wide_at) = self.rule(other)?;
        let same_asks = || match (wide.is_bare(), rule.is_bare()) {
            (false, false) => self.asks(other, wide) == self.asks(number, rule),
            (one, other) => one == other,
        };
        let wider = wide.websocket.is_some() == rule.websocket.is_some()
            && takes_methods(&wide.methods, &rule.methods)
            && self.same_entry(wide, rule)
            && wide.does() == rule.does()
            && (same_asks() || (wide.is_bare() && leaves_query(rule)));
        if !wider {
            return None;
        }
        let mutual = takes_methods(&rule.methods, &wide.methods)
            && covers(&rule.template.segments, &wide.template.segments)
            && same_asks();
        if !mutual {
            return Some(Idle::Wider(other));
        }
        // Of two that say the same, the later is one too many.
        let own_at = self.rule(number)?.1;
        (!same_role || (own_at, number) > (wide_at, other)).then_some(Idle::Twice(other))
    }

    fn asks(&self, number: u32, rule: &RuleData) -> Rc<Vec<String>> {
        let mut known = self.asks.borrow_mut();
        known
            .entry(number)
            .or_insert_with(|| Rc::new(rule.asks()))
            .clone()
    }

    /// Whether the entries of two rules do the same to what passes.
    fn same_entry(&self, one: &RuleData, other: &RuleData) -> bool {
        let entry = |rule: &RuleData| self.ruled.entries.get(usize::try_from(rule.entry).ok()?);
        match (entry(one), entry(other)) {
            (Some(one), Some(other)) => {
                one.credential == other.credential
                    && one.response_strip == other.response_strip
                    && one.response_max == other.response_max
                    && redacts(one) == redacts(other)
            }
            _ => false,
        }
    }
}

fn redacts(entry: &Entry) -> Vec<&Pointer> {
    let redactor = entry.response_redact.iter();
    redactor.flat_map(Redactor::pointers).collect()
}

fn denies_all(deny: &RuleData, rule: &RuleData) -> bool {
    match (&deny.methods, &rule.methods) {
        (Methods::Any, _) => true,
        (_, Methods::Any) => false,
        (deny, Methods::These(methods)) => methods.iter().all(|method| deny.deny(method)),
    }
}

fn takes_methods(wide: &Methods, narrow: &Methods) -> bool {
    match (wide, narrow) {
        (Methods::Any, Methods::Any) => true,
        (_, Methods::Any) => false,
        (wide, Methods::These(methods)) => methods.iter().all(|method| wide.allow(method)),
    }
}

/// Whether the rule sends the query as a rule without `query` would.
fn leaves_query(rule: &RuleData) -> bool {
    rule.query.as_ref().is_none_or(|query| {
        let plain = |name: &str| parameter_kind(name) == ParameterKind::Plain;
        query.extra == Extra::Deny && query.parameters.iter().all(|known| plain(&known.name))
    })
}

fn tell(decoder: &mut Decoder, ruled: &Ruled, span: Span, idle: Idle) {
    let other = |number: u32| {
        let number = usize::try_from(number).ok();
        let rule = number.and_then(|number| ruled.rules.get(number));
        rule.map_or(("", String::new()), |rule| {
            let at = &rule.public.at;
            (&*rule.public.route, format!("{}:{}", at.file, at.line))
        })
    };
    match idle {
        Idle::Impossible => {
            decoder
                .warning(span, "no path has such a segment: the rule never matches")
                .help(
                    "a segment never holds `/`, `\\`, `;` or control characters, and is not empty",
                );
        }
        Idle::Denied(number) => {
            let (route, at) = other(number);
            decoder
                .warning(
                    span,
                    format!("the rule never holds: {} denies all of it", quote(route)),
                )
                .help(format!(
                    "the deny rule stands at {at}, and wins; remove one of them"
                ));
        }
        Idle::Twice(number) => {
            let (_, at) = other(number);
            decoder
                .warning(span, "another rule of the role says the same")
                .help(format!("it stands at {at}; remove one of them"));
        }
        Idle::Wider(number) => {
            let (route, at) = other(number);
            decoder
                .warning(
                    span,
                    format!(
                        "the rule changes nothing: {} allows all of it, and asks for nothing more",
                        quote(route)
                    ),
                )
                .help(format!("narrow the rule at {at}, or remove this one"));
        }
    }
}

/// `* /**` is the whole api.
fn warn_of_all(decoder: &mut Decoder, whole: &Whole<'_>) {
    let apis = &whole.document.apis;
    let mut told = BTreeSet::new();
    for place in whole.ruled.roles.iter().flatten() {
        let Some(api) = apis.get(place.api) else {
            continue;
        };
        if api.value.coverage != Coverage::Inspected {
            continue;
        }
        for number in &place.allow {
            let number = usize::try_from(*number).ok();
            let rule = number.and_then(|number| {
                Some((
                    whole.ruled.rules.get(number)?,
                    *whole.ruled.spans.get(number)?,
                ))
            });
            let Some((rule, span)) = rule else { continue };
            let all = matches!(rule.template.segments.as_slice(), [Segment::Rest])
                && rule.methods == Methods::Any
                && rule.is_bare();
            if all && told.insert(span) {
                let api = quote(&api.name.text);
                decoder
                    .warning(span, format!("this allows every request to api {api}, with every method"))
                    .help("name the methods and paths that are needed; `tollgate decisions` shows what is used");
            }
        }
    }
}
