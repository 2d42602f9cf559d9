//! Grants become, for each workload and api, one set of rules.
use super::instances::{Instance, Instances};
use super::names::Names;
use super::rules::{Placed, Ruled};
use crate::document::{Document, Grant, Named, Reading, Workload};
use crate::grants::{ALWAYS, ApiGrants, Clause, Grants, Guard, GuardId, Modes};
use crate::policy::RuleSet;
use crate::syntax::{Decoder, quote};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// By workload: the instances of roles it may have, and the clauses under which it has each. Numbers are in
/// order of name.
pub(super) type Granted = BTreeMap<usize, BTreeMap<usize, Vec<Clause>>>;

/// Rules in all rule sets together, at most: bounds memory where many workloads have different
/// combinations of large roles.
const MAX_EXPANDED: usize = 2_000_000;

/// Resolves all grants, and warns of what is granted to nobody.
pub(super) fn resolve(
    reading: &mut Reading<'_>,
    names: &Names,
    document: &Document<'_>,
    instances: &mut Instances<'_>,
) -> Granted {
    let members = members(reading.decoder, names, document);
    let mut granted = Granted::new();
    let mut expanded = 0;
    for grant in &document.grants {
        let instance = instances.granted(reading, names, &grant.role);
        let workloads = workloads(reading.decoder, names, document, grant);
        let clause = clause(reading.decoder, names, &members, grant);
        let Some((instance, clause)) =
            instance.and_then(|number| Some((instances.get(number)?, clause?)))
        else {
            continue;
        };
        expanded += workloads.len() * instance.all.len();
        if expanded > MAX_EXPANDED {
            too_large(reading.decoder, grant.role.name.span);
            break;
        }
        give(&mut granted, &workloads, instance, &clause);
    }
    warn(reading.decoder, document, instances, &granted);
    granted
}

fn give(granted: &mut Granted, workloads: &[usize], instance: &Instance, clause: &Clause) {
    for workload in workloads {
        let roles = granted.entry(*workload).or_default();
        for role in &instance.all {
            let clauses = roles.entry(*role).or_default();
            if !clauses.contains(clause) {
                clauses.push(clause.clone());
            }
        }
    }
}

fn too_large(decoder: &mut Decoder, span: crate::syntax::Span) {
    decoder
        .error(span, "the grants expand to more than 2000000 rules")
        .help("grant the same combinations of roles to workloads, or split large roles");
}

/// The workloads of a grant: those it names, or all.
fn workloads(
    decoder: &mut Decoder,
    names: &Names,
    document: &Document<'_>,
    grant: &Grant,
) -> Vec<usize> {
    if grant.workloads.is_empty() {
        return (0..document.workloads.len()).collect();
    }
    let named = grant
        .workloads
        .iter()
        .filter_map(|name| names.workloads.resolve(decoder, name));
    named.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The identities of each group.
fn members(decoder: &mut Decoder, names: &Names, document: &Document<'_>) -> Vec<BTreeSet<u32>> {
    let mut numbers = |members: &[crate::document::Name]| {
        let resolved = members
            .iter()
            .filter_map(|name| names.identities.resolve(decoder, name));
        resolved
            .filter_map(|number| u32::try_from(number).ok())
            .collect()
    };
    document
        .groups
        .iter()
        .map(|group| numbers(&group.value.members))
        .collect()
}

/// The names of the groups that each identity is in.
pub(super) fn groups_of(names: &Names, document: &Document<'_>) -> Vec<Vec<String>> {
    let mut groups = vec![Vec::new(); document.identities.len()];
    for group in &document.groups {
        for member in &group.value.members {
            let number = names.identities.number(&member.text);
            if let Some(of) = number.and_then(|number| groups.get_mut(number)) {
                of.push(group.name.text.to_string());
            }
        }
    }
    groups
}

/// What a grant asks for besides the workload; `None` where it can be nobody.
fn clause(
    decoder: &mut Decoder,
    names: &Names,
    members: &[BTreeSet<u32>],
    grant: &Grant,
) -> Option<Clause> {
    let named: Vec<u32> = grant
        .identities
        .iter()
        .filter_map(|name| u32::try_from(names.identities.resolve(decoder, name)?).ok())
        .collect();
    let grouped: BTreeSet<u32> = grant
        .groups
        .iter()
        .filter_map(|name| members.get(names.groups.resolve(decoder, name)?))
        .flatten()
        .copied()
        .collect();
    let identities: Option<BTreeSet<u32>> =
        match (grant.identities.is_empty(), grant.groups.is_empty()) {
            (true, true) => None,
            (false, true) => Some(named.into_iter().collect()),
            (true, false) => Some(grouped),
            (false, false) => Some(
                named
                    .into_iter()
                    .filter(|number| grouped.contains(number))
                    .collect(),
            ),
        };
    if identities.as_ref().is_some_and(BTreeSet::is_empty) {
        decoder
            .warning(
                grant.role.name.span,
                "nobody fits this grant: none of its identities is in its groups",
            )
            .help("both `identity` and `group` must fit; make two grants where either will do");
    }
    Some(Clause {
        identities: identities.map(|numbers| numbers.into_iter().collect::<Vec<_>>().into()),
        until: grant.until,
        mode: grant.mode,
    })
}

fn warn(
    decoder: &mut Decoder,
    document: &Document<'_>,
    instances: &Instances<'_>,
    granted: &Granted,
) {
    for (number, role) in document.roles.iter().enumerate() {
        if !instances.is_used(number) {
            let message = format!("role {} is granted to nobody", quote(&role.name.text));
            let remark = decoder.warning(role.name.span, message);
            if !role.value.parameters.is_empty() {
                remark.help("its rules are read only with arguments: they were not checked");
            }
        }
    }
    for (number, workload) in document.workloads.iter().enumerate() {
        if !granted.contains_key(&number) {
            let message = format!("workload {} has no grants", quote(&workload.name.text));
            decoder
                .warning(workload.name.span, message)
                .help("all of its requests are denied");
        }
    }
}

/// The lookups of every workload that has grants, and the guards that they refer to.
pub(super) struct Subjects {
    pub(super) grants: HashMap<Box<str>, Grants>,
    pub(super) guards: Vec<Guard>,
}

/// A role on an api and the guard under which it is had.
type Guarded = (usize, GuardId);

pub(super) fn build(
    decoder: &mut Decoder,
    ruled: &Ruled,
    workloads: &[Named<Workload>],
    granted: &Granted,
) -> Subjects {
    let mut sets = Sets {
        ruled,
        made: HashMap::new(),
        expanded: 0,
    };
    let mut guards = Guards::new();
    let mut subjects = HashMap::new();
    for (number, roles) in granted {
        let Some(workload) = workloads.get(*number) else {
            continue;
        };
        // By api: which roles say something of it, and under which clauses.
        let mut apis: BTreeMap<usize, (Vec<Guarded>, Vec<Clause>)> = BTreeMap::new();
        for (role, clauses) in roles {
            let guard = guards.number(clauses);
            for placed in ruled.roles.get(*role).into_iter().flatten() {
                let (roles, all) = apis.entry(placed.api).or_default();
                roles.push((*role, guard));
                all.extend_from_slice(clauses);
                sets.expanded += clauses.len();
            }
            if sets.expanded > MAX_EXPANDED {
                break;
            }
        }
        let mut api = |(api, (roles, clauses)): (usize, (Vec<Guarded>, Vec<Clause>))| {
            let rules = sets.get(api, roles)?;
            let modes = Modes::new(clauses);
            Some((api, ApiGrants { modes, rules }))
        };
        let apis: HashMap<usize, ApiGrants> = apis.into_iter().filter_map(&mut api).collect();
        if sets.expanded > MAX_EXPANDED {
            too_large(decoder, workload.name.span);
            break;
        }
        let modes = Modes::new(roles.values().flatten().cloned().collect());
        subjects.insert(workload.name.text.clone(), Grants { modes, apis });
    }
    Subjects {
        grants: subjects,
        guards: guards.all,
    }
}

/// Each guard once; the first is the one that always holds.
struct Guards {
    all: Vec<Guard>,
    numbers: HashMap<Guard, GuardId>,
}

impl Guards {
    fn new() -> Self {
        let always = Guard::always();
        Self {
            numbers: HashMap::from([(always.clone(), ALWAYS)]),
            all: vec![always],
        }
    }

    fn number(&mut self, clauses: &[Clause]) -> GuardId {
        let guard = Guard::new(clauses.to_vec());
        if let Some(number) = self.numbers.get(&guard) {
            return *number;
        }
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.push(guard.clone());
        self.numbers.insert(guard, number);
        number
    }
}

/// Rule sets, made once for each api and combination of roles.
struct Sets<'r> {
    ruled: &'r Ruled,
    made: HashMap<(usize, Vec<Guarded>), Arc<RuleSet>>,
    expanded: usize,
}

impl Sets<'_> {
    /// `None` where the policy is too large.
    fn get(&mut self, api: usize, roles: Vec<Guarded>) -> Option<Arc<RuleSet>> {
        let key = (api, roles);
        // A shared set costs each workload a reference.
        self.expanded += 1;
        if self.expanded > MAX_EXPANDED {
            return None;
        }
        if let Some(made) = self.made.get(&key) {
            return Some(made.clone());
        }
        // A reference costs memory too, also where its rules are few.
        self.expanded += key.1.len();
        let placed: Vec<(&Placed, GuardId)> = key
            .1
            .iter()
            .filter_map(|(role, guard)| {
                let placed = self.ruled.roles.get(*role)?;
                let index = placed.binary_search_by_key(&api, |placed| placed.api);
                Some((placed.get(index.ok()?)?, *guard))
            })
            .collect();
        self.expanded += placed
            .iter()
            .map(|(placed, _)| placed.allow.len() + placed.deny.len())
            .sum::<usize>();
        if self.expanded > MAX_EXPANDED {
            return None;
        }
        let set = Arc::new(self.rule_set(&placed));
        self.made.insert(key, set.clone());
        Some(set)
    }

    fn rule_set(&self, placed: &[(&Placed, GuardId)]) -> RuleSet {
        let mut set = RuleSet::default();
        let rule = |number: u32| self.ruled.rules.get(usize::try_from(number).ok()?);
        for (placed, guard) in placed {
            for number in &placed.allow {
                if let Some(rule) = rule(*number) {
                    set.allows.push(*number);
                    set.allow.insert(&rule.template.segments, *number);
                }
            }
            for number in &placed.deny {
                if let Some(rule) = rule(*number) {
                    set.denies.push(*number);
                    set.deny
                        .insert(rule.template.without_trailing_slash(), *number);
                }
            }
            if *guard != ALWAYS {
                let rules = placed.allow.iter().chain(&placed.deny);
                set.guarded.extend(rules.map(|number| (*number, *guard)));
            }
        }
        set.allow.shrink();
        set.deny.shrink();
        set.allows.shrink_to_fit();
        set.allows.sort_unstable();
        set.denies.sort_unstable();
        set.guarded.sort_unstable();
        set
    }
}
