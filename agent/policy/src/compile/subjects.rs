//! Grants become, for each workload and api, one set of rules.
use super::names::Names;
use super::rules::{Placed, Ruled};
use crate::document::{Document, Named, Workload};
use crate::model::Mode;
use crate::policy::{ApiGrants, Grants, RuleSet};
use crate::syntax::{Decoder, quote};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Roles by workload, with the modes in which each is granted. Numbers are in order of name.
pub(super) type Granted = BTreeMap<usize, BTreeMap<usize, Mode>>;

/// Rules in all rule sets together, at most: bounds memory where many workloads have different
/// combinations of large roles.
const MAX_EXPANDED: usize = 2_000_000;

/// Resolves all grants, and warns of what is granted to nobody.
pub(super) fn resolve(decoder: &mut Decoder, names: &Names, document: &Document) -> Granted {
    let mut granted = Granted::new();
    let mut used = BTreeSet::new();
    for grant in &document.grants {
        let role = names.roles.resolve(decoder, &grant.role);
        let workload = names.workloads.resolve(decoder, &grant.workload);
        let (Some(role), Some(workload)) = (role, workload) else {
            continue;
        };
        used.insert(role);
        let mode = granted
            .entry(workload)
            .or_default()
            .entry(role)
            .or_insert(grant.mode);
        // The same role in both modes is enforced.
        *mode = stricter(*mode, grant.mode);
    }
    for (number, role) in document.roles.iter().enumerate() {
        if !used.contains(&number) {
            let message = format!("role {} is granted to nobody", quote(&role.name.text));
            decoder.warning(role.name.span, message);
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
    granted
}

fn stricter(one: Mode, other: Mode) -> Mode {
    if one == Mode::Observe { other } else { one }
}

/// Builds the lookups of every workload that has grants.
pub(super) fn build(
    decoder: &mut Decoder,
    ruled: &Ruled,
    workloads: &[Named<Workload>],
    granted: &Granted,
) -> HashMap<Box<str>, Grants> {
    let mut sets = Sets {
        ruled,
        made: HashMap::new(),
        expanded: 0,
    };
    let mut subjects = HashMap::new();
    for (number, roles) in granted {
        let Some(workload) = workloads.get(*number) else {
            continue;
        };
        let mode = roles
            .values()
            .copied()
            .reduce(stricter)
            .unwrap_or(Mode::Enforce);
        // By api: which roles say something of it, and in which mode.
        let mut apis: BTreeMap<usize, (Vec<usize>, Mode)> = BTreeMap::new();
        for (role, mode) in roles {
            for placed in ruled.roles.get(*role).into_iter().flatten() {
                let (roles, all) = apis.entry(placed.api).or_insert((Vec::new(), *mode));
                roles.push(*role);
                *all = stricter(*all, *mode);
            }
        }
        let api = |(api, (roles, mode))| {
            Some((
                api,
                ApiGrants {
                    mode,
                    rules: sets.get(api, roles)?,
                },
            ))
        };
        let apis: HashMap<usize, ApiGrants> = apis.into_iter().filter_map(api).collect();
        if sets.expanded > MAX_EXPANDED {
            decoder
                .error(
                    workload.name.span,
                    "the grants expand to more than 2000000 rules",
                )
                .help("grant the same combinations of roles to workloads, or split large roles");
            break;
        }
        subjects.insert(workload.name.text.clone(), Grants { mode, apis });
    }
    subjects
}

/// Rule sets, made once for each api and combination of roles.
struct Sets<'r> {
    ruled: &'r Ruled,
    made: HashMap<(usize, Vec<usize>), Arc<RuleSet>>,
    expanded: usize,
}

impl Sets<'_> {
    /// `None` where the policy is too large.
    fn get(&mut self, api: usize, roles: Vec<usize>) -> Option<Arc<RuleSet>> {
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
        let placed: Vec<&Placed> = key
            .1
            .iter()
            .filter_map(|role| {
                let placed = self.ruled.roles.get(*role)?;
                placed.get(
                    placed
                        .binary_search_by_key(&api, |placed| placed.api)
                        .ok()?,
                )
            })
            .collect();
        self.expanded += placed
            .iter()
            .map(|placed| placed.allow.len() + placed.deny.len())
            .sum::<usize>();
        if self.expanded > MAX_EXPANDED {
            return None;
        }
        let set = Arc::new(self.rule_set(&placed));
        self.made.insert(key, set.clone());
        Some(set)
    }

    fn rule_set(&self, placed: &[&Placed]) -> RuleSet {
        let mut set = RuleSet::default();
        let rule = |number: u32| self.ruled.rules.get(usize::try_from(number).ok()?);
        for number in placed.iter().flat_map(|placed| &placed.allow) {
            if let Some(rule) = rule(*number) {
                set.allows.push(*number);
                set.allow.insert(&rule.template.segments, *number);
            }
        }
        for number in placed.iter().flat_map(|placed| &placed.deny) {
            if let Some(rule) = rule(*number) {
                set.deny
                    .insert(rule.template.without_trailing_slash(), *number);
            }
        }
        set.allows.sort_unstable();
        set
    }
}
