//! What the data plane reads on every request: one immutable snapshot, swapped whole.
use crate::budget::Accounts;
use crate::identity::Identities;
use crate::secrets::Secrets;
use arc_swap::ArcSwap;
use std::collections::BTreeSet;
use std::sync::Arc;
use tollgate_policy::{Mode, Policy};

/// A policy and everything that was resolved for it.
#[derive(Debug)]
pub struct Snapshot {
    /// Counts up by one per applied change.
    pub generation: u64,
    /// The compiled policy.
    pub policy: Policy,
    /// Mode of the whole agent.
    pub mode: Mode,
    /// Values of the policy's credentials and CAs.
    pub secrets: Secrets,
    /// What could not be had of them, nor of what identities are proven by, since the agent started.
    pub absent: BTreeSet<String>,
    /// Where what the policy's budgets limit is counted.
    pub accounts: Accounts,
    /// What the policy's identities are proven by.
    pub identities: Identities,
    /// `policy{version,hash}` of every record.
    pub stamp: Arc<crate::audit::PolicyStamp>,
}

/// The live snapshot: readers load it without a lock, the control plane stores it.
#[derive(Debug)]
pub struct Live(ArcSwap<Snapshot>);

impl Live {
    /// Starts with this snapshot.
    pub fn new(first: Snapshot) -> Self {
        Self(ArcSwap::from_pointee(first))
    }
    /// The snapshot to decide this request on.
    pub fn load(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.0.load()
    }
    /// The snapshot, to keep.
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }
    /// Swaps in another, whole.
    pub fn store(&self, next: Snapshot) {
        self.0.store(Arc::new(next));
    }
}
