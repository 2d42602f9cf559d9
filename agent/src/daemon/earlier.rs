//! Connections that processes had before they were governed: ended or let go on as policy says, and put on record.
use super::admin::wire;
use super::agent::{Agent, lock};
use super::events;
use crate::audit::{Allowance, Verdict};
use crate::kernel::{Before, Earlier, Fate, Outcome, Refusal};
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant, SystemTime};
use tollgate_policy::{Established, Mode, Policy};

/// How often what goes on is looked at.
const REVIEW: Duration = Duration::from_secs(10);

/// What is still to be looked at, and what came of what was.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// Looked at once. A connection that was being made at that moment is found by the second look.
    once: HashSet<u32>,
    /// When what goes on was looked at last, and by which policy.
    reviewed: Option<(Instant, String)>,
    /// Connections ended since the agent started, by workload.
    destroyed: BTreeMap<String, u64>,
}

impl Agent {
    /// Looks at what processes have open that became governed while they ran, at once and once more with the next call.
    pub(super) fn look_at_earlier(&self) {
        let mut looks = lock(&self.earlier);
        let snapshot = self.shared.live.load_full();
        let says = |workload: &str| before(&snapshot.policy, workload, self.config.mode);
        let fence = &self.shared.fence;
        // The kernel's side remembers them: an agent that ends before it has looked leaves them to the next.
        let unseen = fence.unseen();
        let mut found = match unseen.is_empty() {
            true => Vec::new(),
            false => fence.end_earlier(&[], &says),
        };
        let unseen = unseen.into_iter();
        let (twice, once) = unseen.partition::<HashSet<u32>, _>(|one| looks.once.contains(one));
        fence.has_seen(twice);
        looks.once = once;
        let hash = snapshot.policy.hash();
        let is_due = looks
            .reviewed
            .as_ref()
            .is_none_or(|(at, by)| at.elapsed() > REVIEW || by != hash);
        if is_due {
            found.extend(fence.review_kept(&says));
            looks.reviewed = Some((Instant::now(), hash.to_owned()));
        }
        for earlier in &found {
            if earlier.outcome == Outcome::Destroyed {
                *looks
                    .destroyed
                    .entry(earlier.workload.to_string())
                    .or_default() += 1;
            }
        }
        self.put_on_record(found);
    }

    fn put_on_record(&self, found: Vec<Earlier>) {
        let (now, snapshot) = (Instant::now(), self.shared.live.load());
        let mut allowances = BTreeMap::new();
        for earlier in found {
            let allowance = allowances
                .entry(earlier.workload.clone())
                .or_insert_with(|| Allowance::new(now));
            if allowance.spend(now) {
                let (refusal, verdict) = refusal(earlier);
                let record = events::record(refusal, verdict, &snapshot);
                self.shared.sink.submit(record);
            } else {
                self.seen.left_unrecorded();
            }
        }
    }

    /// What came of connections from before, for each workload that had any.
    pub(super) fn earlier(&self) -> Vec<wire::Earlier> {
        let kept = self.shared.fence.kept();
        let destroyed = &lock(&self.earlier).destroyed;
        let mut all = BTreeMap::<&String, (u64, usize)>::new();
        for (workload, count) in destroyed {
            all.entry(workload).or_default().0 = *count;
        }
        for (workload, count) in &kept {
            all.entry(workload).or_default().1 = *count;
        }
        all.into_iter()
            .map(|(workload, (destroyed, open))| wire::Earlier {
                workload: workload.clone(),
                destroyed,
                open,
            })
            .collect()
    }
}

/// What policy says; an agent that only observes ends nothing.
fn before(policy: &Policy, workload: &str, mode: Mode) -> Option<Before> {
    let mut all = policy.workloads().iter();
    let workload = all.find(|known| known.name == workload)?;
    Some(Before {
        fate: match (workload.established, mode) {
            (Established::Destroy, Mode::Enforce) => Fate::Destroy,
            _ => Fate::Keep,
        },
        listen: workload.listen.clone(),
    })
}

fn refusal(earlier: Earlier) -> (Refusal, Verdict) {
    let (verdict, detail) = match earlier.outcome {
        Outcome::Destroyed => (
            Verdict::Deny,
            "connected before the workload was governed, and ended: connect again, or give the workload `established: report` \
             in the policy if such connections are to go on"
                .to_owned(),
        ),
        Outcome::Kept => (
            Verdict::WouldDeny,
            "connected before the workload was governed: it goes on, and nothing on it is decided on".to_owned(),
        ),
        Outcome::Failed(why) => (
            Verdict::Error,
            format!("connected before the workload was governed, and could not be ended: {why}"),
        ),
    };
    let refusal = Refusal {
        time: SystemTime::now(),
        workload: earlier.workload,
        process: earlier.process,
        destination: Some(earlier.peer),
        name: None,
        protocol: earlier.protocol.to_owned(),
        reason: "established",
        detail,
    };
    (refusal, verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_observes_ends_nothing() {
        let text = "version: 1\nworkloads:\n  a: { listen: [80] }\n  b: { established: report }\n";
        let source = tollgate_policy::syntax::Source {
            name: "p".into(),
            text: text.into(),
        };
        let policy = tollgate_policy::compile(&[source]).unwrap().policy;
        let fate = |workload, mode| before(&policy, workload, mode).map(|before| before.fate);
        assert_eq!(fate("a", Mode::Enforce), Some(Fate::Destroy));
        assert_eq!(fate("a", Mode::Observe), Some(Fate::Keep));
        assert_eq!(fate("b", Mode::Enforce), Some(Fate::Keep));
        assert_eq!(fate("c", Mode::Enforce), None);
        assert_eq!(before(&policy, "a", Mode::Enforce).unwrap().listen, [80]);
    }
}
