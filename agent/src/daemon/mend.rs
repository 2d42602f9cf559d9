//! Looks after the kernel half while the agent runs: what somebody takes away is put back, told, and counted.
use super::agent::{Agent, lock};
use super::skipped::Skipped;
use super::vital;
use crate::kernel::Mended;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was put back since the agent started, and what could not be, by layer.
#[derive(Debug, Default)]
pub(super) struct Watched {
    pub(super) put_back: BTreeMap<String, u64>,
    pub(super) skipped: Skipped,
    /// Not all that is governed has been enrolled and looked at again since hooks were away.
    unseen: bool,
    /// The last word on what is not in force, so that it is said once.
    failing: BTreeMap<&'static str, String>,
}

/// Until it panics.
pub(super) async fn watch(agent: Arc<Agent>) {
    let mut ticks = tokio::time::interval(agent.config.fence_check);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let agent = Arc::clone(&agent);
        let mending = vital::blocking("looking after the fence", move || agent.mend());
        if mending.await.is_none() {
            return;
        }
    }
}

impl Agent {
    /// Puts back what is gone. Nothing was seen of what passed while a hook was, nor of what the kernel did not show to a hook that
    /// was there, so all that is governed is looked at as if it had been governed just now.
    fn mend(&self) {
        let mended = self.shared.fence.mend();
        let was_open = mended
            .iter()
            .any(|one| matches!(one.result, Some(Ok(()))) && one.was_open);
        let skipped = self.shared.fence.skipped();
        let mut watched = lock(&self.watched);
        watched.take(mended);
        let is_unseen = watched.skipped.take(skipped);
        watched.unseen |= was_open || is_unseen || self.shared.fence.is_unseen();
        if watched.unseen {
            drop(watched);
            let done = self.see_again();
            lock(&self.watched).unseen = !done;
        }
    }

    /// Whether that is done.
    fn see_again(&self) -> bool {
        let all = lock(&self.enrolments).again();
        // Who has left the cgroups, or never was in one, has made processes too.
        let made = self.shared.fence.enrol_descendants();
        let looked = self.shared.fence.look_again_at_all();
        let looked = made.and(looked);
        if let Err(error) = &looked {
            tracing::error!("not all that is governed is looked at again: {error}");
        }
        self.settle();
        all && looked.is_ok() && self.note_seen()
    }

    fn note_seen(&self) -> bool {
        let noted = self.shared.fence.seen();
        if let Err(error) = &noted {
            tracing::error!("it cannot be noted that all that is governed was looked at: {error}");
        }
        noted.is_ok()
    }

    /// What `status` says while not all has been looked at again.
    pub(super) fn unseen(&self) -> Option<String> {
        let is_unseen = lock(&self.watched).unseen || self.shared.fence.is_unseen();
        is_unseen.then(|| {
            "hooks were away, and not all that is governed has been looked at since: what it made meanwhile may not be governed yet"
                .to_owned()
        })
    }
}

impl Watched {
    /// Of an agent that has found a fence. `was_open`: not all of it.
    pub(super) fn new(was_open: bool) -> Self {
        Self {
            unseen: was_open,
            ..Self::default()
        }
    }

    fn take(&mut self, mended: Vec<Mended>) {
        let mut failing = BTreeMap::new();
        for one in mended {
            let Mended {
                layer, why, result, ..
            } = one;
            match result {
                Some(Ok(())) => {
                    tracing::error!(
                        "the fence was changed by another hand: {layer} was not in force ({why}), and is again"
                    );
                    let count = self.put_back.entry(layer.to_owned()).or_default();
                    *count = count.saturating_add(1);
                }
                Some(Err(error)) => {
                    let said = error.to_string();
                    if self.failing.get(layer) != Some(&said) {
                        tracing::error!(
                            "{layer} is not in force ({why}) and cannot be put back: {said}"
                        );
                    }
                    failing.insert(layer, said);
                }
                None => {
                    if self.failing.get(layer) != Some(&why) {
                        tracing::error!("it is not known whether {layer} is in force: {why}");
                    }
                    failing.insert(layer, why);
                }
            }
        }
        self.failing = failing;
    }
}
