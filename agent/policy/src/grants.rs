//! Grants as they are decided by: who must call, until when, and which rules that gives.
use crate::model::Mode;
use crate::policy::RuleSet;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Some identities. The same ones have the same number, by which they are compared: there may be many of
/// them in many clauses.
#[derive(Debug, Clone)]
pub(crate) struct Callers {
    pub(crate) number: u32,
    /// The numbers of the identities, in order.
    pub(crate) identities: Arc<[u32]>,
}

impl PartialEq for Callers {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Callers {}

impl PartialOrd for Callers {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Callers {
    fn cmp(&self, other: &Self) -> Ordering {
        self.number.cmp(&other.number)
    }
}

impl Hash for Callers {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

/// What one grant asks for besides the workload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Clause {
    /// Those who may call; `None` is anybody, also who has proven nothing.
    pub(crate) callers: Option<Callers>,
    pub(crate) mode: Mode,
    /// The last second at which it holds (since 1970, UTC).
    pub(crate) until: Option<i64>,
}

/// Who calls, when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    pub(crate) identity: Option<u32>,
    pub(crate) now: i64,
}

impl Clause {
    pub(crate) fn holds(&self, caller: Caller) -> bool {
        self.lasts(caller.now) && self.names(caller.identity)
    }

    pub(crate) fn lasts(&self, now: i64) -> bool {
        self.until.is_none_or(|until| now <= until)
    }

    fn names(&self, identity: Option<u32>) -> bool {
        let Some(callers) = &self.callers else {
            return true;
        };
        identity.is_some_and(|identity| callers.identities.binary_search(&identity).is_ok())
    }

    fn is_unconditional(&self) -> bool {
        self.callers.is_none() && self.until.is_none()
    }

    /// The clauses in order, each once, and of those that differ in their end only the one that lasts longest.
    pub(crate) fn merge(clauses: &mut Vec<Self>) {
        clauses.sort_unstable_by(|one, other| {
            // No end is the latest.
            let end = |clause: &Self| clause.until.unwrap_or(i64::MAX);
            let same = (&one.callers, one.mode).cmp(&(&other.callers, other.mode));
            same.then_with(|| end(other).cmp(&end(one)))
                .then_with(|| one.until.cmp(&other.until))
        });
        clauses.dedup_by(|next, kept| (&next.callers, next.mode) == (&kept.callers, kept.mode));
    }
}

/// Number of a [`Guard`].
pub(crate) type GuardId = u32;
/// The number of the guard that always holds.
pub(crate) const ALWAYS: GuardId = 0;

/// Under which of several grants a rule is had: any of them will do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Guard(pub(crate) Vec<Clause>);

impl Guard {
    /// The clauses in order, each once; only the unconditional one where there is such.
    pub(crate) fn new(mut clauses: Vec<Clause>) -> Self {
        // The mode is no matter of the rule, and guards that differ in it alone are one.
        for clause in &mut clauses {
            clause.mode = Mode::Enforce;
        }
        if clauses.iter().any(Clause::is_unconditional) {
            clauses.retain(Clause::is_unconditional);
        }
        Clause::merge(&mut clauses);
        Self(clauses)
    }

    /// The one that asks for nothing.
    pub(crate) fn always() -> Self {
        Self(vec![Clause {
            callers: None,
            mode: Mode::Enforce,
            until: None,
        }])
    }

    pub(crate) fn holds(&self, caller: Caller) -> bool {
        self.0.iter().any(|clause| clause.holds(caller))
    }
}

/// The clauses of some grants, and the mode that they have together.
///
/// The mode is that of all of them, also of those that do not hold: else the end of a grant, or a proof that was left
/// away, would let pass what was refused before.
#[derive(Debug, Clone, Default)]
pub(crate) struct Modes {
    clauses: Vec<Clause>,
    mode: Option<Mode>,
    /// Whether one of them always holds.
    always: bool,
}

impl Modes {
    pub(crate) fn new(mut clauses: Vec<Clause>) -> Self {
        Clause::merge(&mut clauses);
        Self {
            mode: clauses.iter().map(|clause| clause.mode).reduce(stricter),
            always: clauses.iter().any(Clause::is_unconditional),
            clauses,
        }
    }

    /// Observe where all are; `None` where none holds.
    pub(crate) fn mode(&self, caller: Caller) -> Option<Mode> {
        let holds = || self.clauses.iter().any(|clause| clause.holds(caller));
        self.mode.filter(|_| self.always || holds())
    }

    /// The same for whoever will call, as long as a clause lasts.
    pub(crate) fn lasting(&self, now: i64) -> Option<Mode> {
        let lasts = || self.clauses.iter().any(|clause| clause.lasts(now));
        self.mode.filter(|_| self.always || lasts())
    }

    pub(crate) fn clauses(&self) -> &[Clause] {
        &self.clauses
    }
}

/// Something granted in both modes is enforced.
fn stricter(one: Mode, other: Mode) -> Mode {
    if one == Mode::Observe { other } else { one }
}

/// What is granted to one workload.
#[derive(Debug)]
pub(crate) struct Grants {
    /// Of all its grants.
    pub(crate) modes: Modes,
    /// By number of the api.
    pub(crate) apis: HashMap<usize, ApiGrants>,
}

/// What is granted to one workload on one api.
#[derive(Debug)]
pub(crate) struct ApiGrants {
    /// Of the grants that say something of the api.
    pub(crate) modes: Modes,
    /// Shared by all workloads with the same roles under the same guards.
    pub(crate) rules: Arc<RuleSet>,
}
