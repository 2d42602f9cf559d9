//! Which account a request is counted in, by the policy of one snapshot.
use super::account::{Account, Holder};
use std::collections::HashMap;
use std::sync::Arc;
use tollgate_policy::{Budget, Each, Quota, Subject};

/// The accounts of a policy.
#[derive(Debug, Default)]
pub struct Accounts(pub(super) Vec<Of>);

/// The accounts of one budget.
#[derive(Debug, Default)]
pub(super) struct Of {
    /// Where all share one; and of calls without identity, where each identity has its own.
    pub(super) common: Option<Lines>,
    pub(super) named: HashMap<Box<str>, Lines>,
}

/// The accounts of one holder in one budget.
#[derive(Debug, Default)]
pub struct Lines {
    /// Requests.
    pub requests: Option<Line>,
    /// Tokens.
    pub tokens: Option<Line>,
    /// Money.
    pub usd: Option<Line>,
    /// Bytes that the agent counts.
    pub bytes: Option<Line>,
}

/// An account and how much may be spent of it.
#[derive(Debug, Clone)]
pub struct Line {
    /// The account.
    pub account: Arc<Account>,
    /// The policy's limit.
    pub quota: Quota,
}

impl Lines {
    /// Those that are there.
    pub fn all(&self) -> impl Iterator<Item = &Line> {
        let each = [&self.requests, &self.tokens, &self.usd, &self.bytes];
        each.into_iter().flatten()
    }

    /// Whether calls to models are counted.
    pub fn metered(&self) -> bool {
        self.tokens.is_some() || self.usd.is_some()
    }
}

impl Accounts {
    /// The accounts that `subject` has in the budget of this number, which fits it.
    pub fn of(&self, (number, budget): (usize, &Budget), subject: &Subject<'_>) -> Option<&Lines> {
        let of = self.0.get(number)?;
        match (budget.each, subject.identity) {
            (None, _) | (Some(Each::Identity), None) => of.common.as_ref(),
            (Some(Each::Identity), Some(name)) => of.named.get(name),
            (Some(Each::Workload), _) => of.named.get(subject.workload),
        }
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Line> {
        self.0
            .iter()
            .flat_map(|of| of.common.iter().chain(of.named.values()))
            .flat_map(Lines::all)
    }
}

/// Whose accounts a budget has.
pub(super) fn holders(budget: &Budget, workloads: &[&str], identities: &[&str]) -> Vec<Holder> {
    let own = |named: &[String], all: &[&str], make: fn(Arc<str>) -> Holder| -> Vec<Holder> {
        match named.is_empty() {
            true => all.iter().map(|name| make(Arc::from(*name))).collect(),
            false => named.iter().map(|name| make(Arc::from(&**name))).collect(),
        }
    };
    match (budget.each, &budget.identities) {
        (None, _) => vec![Holder::Shared],
        (Some(Each::Workload), _) => own(&budget.workloads, workloads, Holder::Workload),
        (Some(Each::Identity), Some(named)) => own(named, &[], Holder::Identity),
        (Some(Each::Identity), None) => {
            let mut all = own(&[], identities, Holder::Identity);
            all.push(Holder::Nobody);
            all
        }
    }
}
