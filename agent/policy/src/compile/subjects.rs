//! Grants become, for each workload and api, one set of rules.
use super::instances::{Instance, Instances};
use super::names::Names;
use super::rules::{Placed, Ruled};
use crate::document::{Document, Grant, Named, Reading, Workload};
use crate::grants::{ALWAYS, ApiGrants, Callers, Clause, Grants, Guard, GuardId, Modes};
use crate::policy::RuleSet;
use crate::route::Index;
use crate::syntax::{Decoder, quote};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// By workload: the instances of roles it may have, and the clauses under which it has each. Numbers are in
/// order of name.
pub(super) type Granted = BTreeMap<usize, BTreeMap<usize, Vec<Clause>>>;

/// Rules and segments of their paths in all rule sets together, at most: bounds memory where many workloads
/// have different combinations of large roles.
const MAX_EXPANDED: usize = 1_000_000;
/// Identities in the lists of all grants together, at most; a list that stands in several counts once.
const MAX_CALLERS: usize = 2_000_000;

/// Resolves all grants, and warns of what is granted to nobody.
pub(super) fn resolve(
    reading: &mut Reading<'_>,
    names: &Names,
    document: &Document<'_>,
    instances: &mut Instances<'_>,
) -> Granted {
    let members = members(reading.decoder, names, document);
    let mut lists = Lists::default();
    let mut granted = Granted::new();
    let mut expanded = 0;
    for grant in &document.grants {
        let instance = instances.granted(reading, names, &grant.role);
        let workloads = workloads(reading.decoder, names, document, grant);
        let clause = clause(reading.decoder, names, &members, &mut lists, grant);
        if lists.listed > MAX_CALLERS {
            let message = "the grants have more than 2000000 identities together";
            reading
                .decoder
                .error(grant.role.name.span, message)
                .help("grant to the same groups, or to fewer of them");
            break;
        }
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
    for clauses in granted.values_mut().flat_map(BTreeMap::values_mut) {
        Clause::merge(clauses);
    }
    // A grant that is wrong leaves a gap, and what it gives would be said to be granted to nobody.
    if reading.decoder.errors() == 0 {
        warn(reading.decoder, document, instances, &granted);
    }
    granted
}

fn give(granted: &mut Granted, workloads: &[usize], instance: &Instance, clause: &Clause) {
    for workload in workloads {
        let roles = granted.entry(*workload).or_default();
        for role in &instance.all {
            // Most have a role once: room for four would be most of what is held here.
            let clauses = roles.entry(*role).or_insert_with(|| Vec::with_capacity(1));
            clauses.push(clause.clone());
        }
    }
}

fn too_large(decoder: &mut Decoder, span: crate::syntax::Span) {
    decoder
        .error(
            span,
            "the grants expand to more than 1000000 rules and segments of paths",
        )
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
        if document.workloads.is_empty() {
            decoder
                .warning(
                    grant.role.name.span,
                    "nobody fits this grant: the policy has no workload",
                )
                .help("define those that it governs under `workloads:`");
        }
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

/// Lists of identities, each made once.
#[derive(Default)]
struct Lists {
    /// By the identities and the groups that are named.
    by_names: HashMap<(BTreeSet<u32>, BTreeSet<usize>), Callers>,
    numbers: HashMap<Arc<[u32]>, u32>,
    listed: usize,
}

impl Lists {
    /// Those of `named` that are in one of `groups`, or all of either where the other is not asked for.
    fn get(
        &mut self,
        (named, groups): (Option<BTreeSet<u32>>, Option<BTreeSet<usize>>),
        members: &[BTreeSet<u32>],
    ) -> Callers {
        let key = (
            named.clone().unwrap_or_default(),
            groups.clone().unwrap_or_default(),
        );
        if let Some(known) = self.by_names.get(&key) {
            return known.clone();
        }
        let of_groups = key.1.iter().filter_map(|group| members.get(*group));
        self.listed += key.0.len() + of_groups.clone().map(BTreeSet::len).sum::<usize>();
        let mut identities: Vec<u32> = match (named, groups) {
            (Some(named), None) => named.into_iter().collect(),
            // Too many: the caller ends with a fault.
            _ if self.listed > MAX_CALLERS => Vec::new(),
            (named, _) => {
                let grouped = of_groups.flatten().copied();
                let fits = |one: &u32| named.as_ref().is_none_or(|named| named.contains(one));
                grouped.filter(fits).collect()
            }
        };
        identities.sort_unstable();
        identities.dedup();
        let identities: Arc<[u32]> = identities.into();
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(identities.clone()).or_insert(next);
        let callers = Callers { number, identities };
        self.by_names.insert(key, callers.clone());
        callers
    }
}

/// What a grant asks for besides the workload.
fn clause(
    decoder: &mut Decoder,
    names: &Names,
    members: &[BTreeSet<u32>],
    lists: &mut Lists,
    grant: &Grant,
) -> Option<Clause> {
    let named = (!grant.identities.is_empty()).then(|| {
        let numbers = grant.identities.iter();
        numbers
            .filter_map(|name| u32::try_from(names.identities.resolve(decoder, name)?).ok())
            .collect()
    });
    let groups = (!grant.groups.is_empty()).then(|| {
        let numbers = grant.groups.iter();
        numbers
            .filter_map(|name| names.groups.resolve(decoder, name))
            .collect()
    });
    let asks = named.is_some() || groups.is_some();
    let callers = asks.then(|| lists.get((named, groups), members));
    let nobody = callers
        .as_ref()
        .is_some_and(|callers| callers.identities.is_empty());
    if nobody && lists.listed <= MAX_CALLERS {
        decoder
            .warning(
                grant.role.name.span,
                "nobody fits this grant: none of its identities is in its groups",
            )
            .help("both `identity` and `group` must fit; make two grants where either will do");
    }
    Some(Clause {
        callers,
        mode: grant.mode,
        until: grant.until,
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
            .flat_map(|(placed, _)| placed.allow.iter().chain(&placed.deny))
            .filter_map(|number| self.ruled.rules.get(usize::try_from(*number).ok()?))
            .map(|rule| 1 + rule.template.segments.len())
            .sum::<usize>();
        if self.expanded > MAX_EXPANDED {
            return None;
        }
        let set = Arc::new(self.rule_set(&placed));
        self.made.insert(key, set.clone());
        Some(set)
    }

    fn rule_set(&self, placed: &[(&Placed, GuardId)]) -> RuleSet {
        let mut set = RuleSet {
            deny: Index::loose(),
            ..RuleSet::default()
        };
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
