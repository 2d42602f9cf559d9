//! The rules that a workload has at a place, by their meaning.
use super::places::Place;
use super::probe::{Found, Probe};
use super::{Change, Kind, Side};
use crate::grants::Clause;
use crate::meaning;
use crate::policy::{Policy, RuleSet};
use crate::route::{self, Methods};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

/// Who has a rule, until when (`i64::MAX` for always).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holders {
    /// Whoever calls.
    pub(super) anybody: Option<i64>,
    /// Those who have it longer than anybody.
    pub(super) named: BTreeMap<String, i64>,
}

/// Effect, method and path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) deny: bool,
    pub(super) method: String,
    pub(super) path: String,
}

/// What rules of one route say, each with who has it and the number of one such rule.
pub(super) type Variants = BTreeMap<String, (Holders, u32)>;
type Lines = BTreeMap<Route, Variants>;

/// Lines of rule sets that were looked at, by the set's address: sets are shared by many workloads.
#[derive(Default)]
pub(super) struct Known(BTreeMap<(bool, usize), Rc<Lines>>);

impl Known {
    fn get(&mut self, policy: &Policy, new: bool, set: &Arc<RuleSet>) -> Rc<Lines> {
        let key = (new, Arc::as_ptr(set).addr());
        let made = self
            .0
            .entry(key)
            .or_insert_with(|| Rc::new(lines(policy, set)));
        made.clone()
    }
}

impl Holders {
    fn add(&mut self, policy: &Policy, clause: &Clause) {
        let until = clause.until.unwrap_or(i64::MAX);
        let Some(callers) = &clause.callers else {
            self.anybody = self.anybody.max(Some(until));
            return;
        };
        for number in callers.identities.iter() {
            let identity = usize::try_from(*number).ok();
            if let Some(identity) = identity.and_then(|number| policy.identities.get(number)) {
                let known = self.named.entry(identity.name.clone()).or_insert(until);
                *known = until.max(*known);
            }
        }
    }

    /// Without those who have it no longer than anybody.
    fn settle(&mut self) {
        let anybody = self.anybody;
        self.named.retain(|_, until| Some(*until) > anybody);
    }

    /// Until when a caller has it.
    fn until(&self, identity: Option<&String>) -> Option<i64> {
        let named = identity.and_then(|name| self.named.get(name)).copied();
        named.max(self.anybody)
    }

    fn words(&self) -> String {
        let until = |until: &i64| match *until {
            i64::MAX => String::new(),
            until => format!(" until {}", moment(until)),
        };
        let named = self.named.iter();
        let mut words: Vec<String> = named
            .map(|(name, end)| format!("for {name}{}", until(end)))
            .collect();
        words.extend(
            self.anybody
                .as_ref()
                .map(|end| format!("for anybody{}", until(end))),
        );
        words.join(", ")
    }
}

fn moment(seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(seconds);
    time.map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn lines(policy: &Policy, set: &RuleSet) -> Lines {
    let mut lines = Lines::new();
    let denies = set.denies.iter().map(|number| (*number, true));
    let rules = set.allows.iter().map(|number| (*number, false));
    for (number, deny) in rules.chain(denies) {
        let Some(rule) = policy.rule(number) else {
            continue;
        };
        let segments = match deny {
            true => rule.template.without_trailing_slash(),
            false => &rule.template.segments,
        };
        let mut says = rule.asks();
        if !deny {
            says.extend(rule.does());
            let entry = policy.entry(rule);
            says.extend(entry.map_or_else(Vec::new, |entry| {
                meaning::of_entry(entry, &policy.credentials)
            }));
        }
        if &*rule.public.route == "connect" {
            says.push("connects without inspection".to_owned());
        }
        let methods: Vec<String> = match &rule.methods {
            Methods::Any => vec!["*".to_owned()],
            Methods::These(methods) if deny => methods
                .iter()
                .map(|method| method.to_ascii_uppercase())
                .collect(),
            Methods::These(methods) => methods.iter().map(ToString::to_string).collect(),
        };
        for method in methods {
            let route = Route {
                deny,
                method,
                path: route::meaning(segments),
            };
            let variants = lines.entry(route).or_default();
            let (holders, _) = variants
                .entry(says.join("; "))
                .or_insert_with(|| (Holders::default(), number));
            for clause in policy.clauses(set, number) {
                holders.add(policy, clause);
            }
        }
    }
    for (holders, _) in lines.values_mut().flat_map(BTreeMap::values_mut) {
        holders.settle();
    }
    lines
}

/// Workloads with the same rules in both policies.
type Alike<'p> = BTreeMap<(usize, usize), (Vec<String>, [Option<&'p Arc<RuleSet>>; 2])>;

/// Adds what is different at one place.
pub(super) fn compare(probe: &mut Probe<'_>, place: &Place, changes: &mut Vec<Change>) {
    let [old, new] = probe.policies();
    let names = old.workloads.iter().chain(&new.workloads);
    let names: BTreeSet<&str> = names.map(|workload| workload.name.as_str()).collect();
    let mut alike = Alike::new();
    for name in names {
        let sets = [set_of(old, place.old, name), set_of(new, place.new, name)];
        if sets.iter().all(Option::is_none) {
            continue;
        }
        let address = |set: Option<&Arc<RuleSet>>| set.map_or(0, |set| Arc::as_ptr(set).addr());
        let [was, is] = sets;
        let group = alike.entry((address(was), address(is)));
        let (workloads, _) = group.or_insert_with(|| (Vec::new(), sets));
        workloads.push(name.to_owned());
        probe.compare_mode(name, place, changes);
    }
    for (workloads, [was, is]) in alike.into_values() {
        let was = was.map_or_else(Rc::default, |set| probe.known.get(old, false, set));
        let is = is.map_or_else(Rc::default, |set| probe.known.get(new, true, set));
        let routes: BTreeSet<&Route> = was.keys().chain(is.keys()).collect();
        let none = Variants::new();
        for route in routes {
            let sides = [
                was.get(route).unwrap_or(&none),
                is.get(route).unwrap_or(&none),
            ];
            if let Some(change) = compare_route(probe, place, &workloads, route, sides) {
                changes.push(change);
            }
        }
    }
}

fn set_of<'p>(policy: &'p Policy, api: Option<usize>, workload: &str) -> Option<&'p Arc<RuleSet>> {
    let grants = policy.subjects.get(workload)?;
    Some(&grants.apis.get(&api?)?.rules)
}

fn compare_route(
    probe: &mut Probe<'_>,
    place: &Place,
    workloads: &[String],
    route: &Route,
    [was, is]: [&Variants; 2],
) -> Option<Change> {
    let differs = |one: &Variants, other: &Variants| -> Vec<(String, Holders, u32)> {
        let known = |says: &String| other.get(says).map(|(holders, _)| holders);
        let only = one
            .iter()
            .filter(|(says, (holders, _))| known(says) != Some(holders));
        only.map(|(says, (holders, rule))| (says.clone(), holders.clone(), *rule))
            .collect()
    };
    let (old, new) = (differs(was, is), differs(is, was));
    if old.is_empty() && new.is_empty() {
        return None;
    }
    let numbers = |side: &[(String, Holders, u32)]| side.iter().map(|(_, _, rule)| *rule).collect();
    let holders = || old.iter().chain(&new).map(|(_, holders, _)| holders);
    let callers = callers(was, is);
    let ends: BTreeSet<i64> = holders()
        .flat_map(|holders| holders.named.values().copied().chain(holders.anybody))
        .filter(|end| *end != i64::MAX)
        .collect();
    let workload = workloads.first()?;
    let found = probe.prove(
        workload,
        place,
        route,
        [numbers(&old), numbers(&new)],
        &callers,
        &ends,
    );
    let side = |policy: &Policy, side: Vec<(String, Holders, u32)>| -> Vec<Side> {
        let side = side.into_iter().map(|(says, holders, rule)| Side {
            says: match says.is_empty() {
                true => holders.words(),
                false => format!("{says}; {}", holders.words()),
            },
            at: policy.rule(rule).map(|rule| rule.public.at.clone()),
        });
        side.collect()
    };
    let [old_policy, new_policy] = probe.policies();
    let effect = if route.deny { "deny" } else { "allow" };
    let named = callers.into_iter().flatten();
    Some(Change {
        kind: kind(&found),
        workloads: workloads.to_vec(),
        identities: named.collect(),
        places: place.names.clone(),
        what: format!("{effect} {} {}", route.method, route.path),
        old: side(old_policy, old),
        new: side(new_policy, new),
        witnesses: found.into_witnesses(),
    })
}

fn kind(found: &Found) -> Kind {
    match (&found.lets_in, &found.shuts_out, &found.changes) {
        (Some(_), Some(_), _) => Kind::Both,
        (Some(_), None, _) => Kind::LetsIn,
        (None, Some(_), _) => Kind::ShutsOut,
        (None, None, Some(_)) => Kind::Changes,
        (None, None, None) => Kind::Unproven,
    }
}

/// Those for whom rules of a route are not the same; all who have one where it is only what they say.
fn callers(was: &Variants, is: &Variants) -> Vec<Option<String>> {
    let sides = || was.values().chain(is.values()).map(|(holders, _)| holders);
    let names: BTreeSet<&String> = sides().flat_map(|holders| holders.named.keys()).collect();
    let all = names.into_iter().map(Some).chain([None]);
    let has = |variants: &Variants, caller: Option<&String>| -> Vec<(String, i64)> {
        let until = |(says, (holders, _)): (&String, &(Holders, u32))| {
            Some((says.clone(), holders.until(caller)?))
        };
        variants.iter().filter_map(until).collect()
    };
    let differing = all.filter(|caller| has(was, *caller) != has(is, *caller));
    differing.map(|caller| caller.cloned()).collect()
}
