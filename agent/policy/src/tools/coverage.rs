//! Which rules of a policy decided something.
use crate::policy::Policy;
use crate::syntax::Location;
use std::collections::BTreeMap;

/// The rules of a policy by where they stand, with how often each decided. A rule of a role with parameters is one,
/// whatever its arguments; connections that are not inspected are not counted.
#[derive(Debug)]
pub struct Coverage {
    rules: BTreeMap<Location, Use>,
}

/// How often a rule decided.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Use {
    /// The rule as records name it.
    pub rule: String,
    /// Where it stands.
    pub at: Location,
    /// Cases that it decided.
    pub hits: usize,
}

impl Coverage {
    /// Nothing is covered yet.
    pub fn new(policy: &Policy) -> Self {
        let rules = policy.rules.iter().map(|rule| &rule.public);
        let inspected = rules.filter(|rule| &*rule.route != "connect");
        let entries = inspected.map(|rule| {
            let (rule, at) = (rule.label.to_string(), rule.at.clone());
            let entry = Use {
                rule,
                at: at.clone(),
                hits: 0,
            };
            (at, entry)
        });
        Self {
            rules: entries.collect(),
        }
    }

    /// Notes that the rule that stands there decided.
    pub(super) fn hit(&mut self, at: &Location) {
        if let Some(rule) = self.rules.get_mut(at) {
            rule.hits += 1;
        }
    }

    /// Every rule, in the order of files and lines.
    pub fn rules(&self) -> impl Iterator<Item = &Use> {
        self.rules.values()
    }

    /// How many rules decided something, and how many there are.
    pub fn counts(&self) -> (usize, usize) {
        let hit = self.rules().filter(|rule| rule.hits > 0).count();
        (hit, self.rules.len())
    }

    /// The covered part in percent, rounded down; 100 where there are no rules.
    pub fn percent(&self) -> usize {
        let (hit, all) = self.counts();
        hit.saturating_mul(100).checked_div(all).unwrap_or(100)
    }
}
