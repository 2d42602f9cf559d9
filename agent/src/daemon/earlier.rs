//! Connections that processes had before they were governed: ended or let go on as policy says, and put on record.
use super::admin::wire;
use super::agent::{Agent, lock};
use super::events;
use crate::audit::{Allowance, Verdict};
use crate::kernel::{Before, Earlier, Fate, Looked, Outcome, Refusal, Unheld};
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::TryLockError;
use std::time::{Duration, Instant, SystemTime};
use tollgate_policy::{Established, Mode, Policy};

/// How often what goes on is looked at.
const REVIEW: Duration = Duration::from_secs(10);

/// What is still to be looked at, and what came of what was.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// Wholly looked at once. A connection that was being made at that moment is found by the second look.
    once: HashSet<u32>,
    /// Why the last look did not get to all: it is made again with the next call.
    missed: Option<String>,
    /// Reasons that the log was told since a look last got to all.
    told: HashSet<String>,
    /// What the last look could not hold, and what it could not end: told once, however often it is made.
    unheld: HashSet<Unheld>,
    unended: HashSet<(&'static str, SocketAddr, SocketAddr)>,
    /// When what goes on was looked at last, and by which policy.
    reviewed: Option<(Instant, String)>,
    /// Connections ended since the agent started, by workload.
    destroyed: BTreeMap<String, u64>,
}

impl Agent {
    /// Looks at what processes have open that became governed while they ran, at once and once more with the next call; whether it
    /// got to all.
    pub(super) fn look_at_earlier(&self) -> bool {
        let mut looks = lock(&self.earlier);
        let snapshot = self.shared.live.load_full();
        let says = |workload: &str| before(&snapshot.policy, workload, self.config.mode);
        let fence = &self.shared.fence;
        // The kernel's side remembers them: an agent that ends before it has looked leaves them to the next.
        let looked = fence.end_earlier(&[], &says);
        fence.has_seen(looks.take(&looked));
        let (mut found, mut missed) = (looked.found, looked.missed);
        let is_whole = missed.is_none();
        let hash = snapshot.policy.hash();
        let is_due = looks
            .reviewed
            .as_ref()
            .is_none_or(|(at, by)| at.elapsed() > REVIEW || by != hash);
        if is_due {
            let review = fence.review_kept(&says);
            found.extend(review.found);
            // One that did not get to all is made again with the next call.
            if review.missed.is_none() {
                looks.reviewed = Some((Instant::now(), hash.to_owned()));
            }
            missed = missed.or(review.missed);
        }
        looks.tell(missed);
        looks.count(&found);
        looks.leave_new(&mut found);
        self.put_on_record(found);
        is_whole
    }

    /// The same, unless somebody is looking: whom a look is for stays marked, and the next one, a second later, is for them too.
    pub(super) fn look_at_earlier_if_nobody_does(&self) {
        if !matches!(self.earlier.try_lock(), Err(TryLockError::WouldBlock)) {
            self.look_at_earlier();
        }
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

impl Looks {
    /// Takes up what a look got to; returns whom two have got to wholly.
    fn take(&mut self, looked: &Looked) -> HashSet<u32> {
        let all = looked.complete.iter().copied();
        let (twice, once) = all.partition(|one| self.once.contains(one));
        self.once = once;
        let unheld: HashSet<Unheld> = looked.unheld.iter().cloned().collect();
        unheld.difference(&self.unheld).for_each(Unheld::warn);
        self.unheld = unheld;
        twice
    }

    /// Tells the log each reason once until nothing is missed any more: looks are made all the time.
    fn tell(&mut self, missed: Option<String>) {
        match &missed {
            Some(why) if self.told.insert(why.clone()) => tracing::error!("{}", gap(why)),
            Some(_) => {}
            None if self.told.is_empty() => {}
            None => {
                self.told.clear();
                tracing::info!("what processes had open before they were governed was looked at");
            }
        }
        self.missed = missed;
    }

    fn count(&mut self, found: &[Earlier]) {
        for earlier in found {
            if earlier.outcome == Outcome::Destroyed {
                let count = self.destroyed.entry(earlier.workload.to_string());
                *count.or_default() += 1;
            }
        }
    }

    /// Leaves out what the last look could not end either.
    fn leave_new(&mut self, found: &mut Vec<Earlier>) {
        let mut unended = HashSet::new();
        found.retain(|earlier| {
            let id = (earlier.protocol, earlier.local, earlier.peer);
            match earlier.outcome {
                Outcome::Failed(_) => unended.insert(id) && !self.unended.contains(&id),
                Outcome::Destroyed | Outcome::Kept => true,
            }
        });
        self.unended = unended;
    }

    /// What is not known to be held to its policy, and why.
    pub(super) fn gap(&self) -> Option<String> {
        self.missed.as_deref().map(gap)
    }
}

fn gap(why: &str) -> String {
    format!(
        "connections and listeners from before processes were governed may go on: not all of them could be looked at ({why}); \
         the agent tries again every second. If that stays so: where it is short of descriptors, threads or memory, raise LimitNOFILE=, \
         TasksMax= or MemoryMax= of its unit; where processes do not stand still for it, end what makes them"
    )
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

    fn looked(complete: &[u32], missed: Option<&str>) -> Looked {
        Looked {
            complete: complete.to_vec(),
            missed: missed.map(str::to_owned),
            ..Looked::default()
        }
    }

    #[test]
    fn only_two_whole_looks_count() {
        let mut looks = Looks::default();
        let mut take = |complete: &[u32]| {
            let mut twice: Vec<u32> = looks.take(&looked(complete, None)).into_iter().collect();
            twice.sort_unstable();
            twice
        };
        // However often nobody could be looked at wholly, nobody is done with.
        for _ in 0..3 {
            assert!(take(&[]).is_empty());
        }
        assert!(take(&[1, 2]).is_empty());
        // 2 was missed, and 3 is new.
        assert_eq!(take(&[1, 3]), [1]);
        assert_eq!(take(&[2, 3]), [3]);
        assert_eq!(take(&[2]), [2]);
        assert!(take(&[]).is_empty());
    }

    #[test]
    fn a_look_that_missed_something_is_a_gap_until_one_did_not() {
        let mut looks = Looks::default();
        assert_eq!(looks.gap(), None);
        for why in ["no descriptors", "no thread", "no descriptors"] {
            looks.tell(looked(&[], Some(why)).missed);
            let gap = looks.gap().unwrap();
            assert!(gap.contains(why) && gap.contains("may go on"), "{gap}");
        }
        // Each was told once.
        assert_eq!(looks.told.len(), 2);
        looks.tell(None);
        assert_eq!((looks.gap(), looks.told.len()), (None, 0));
    }

    fn earlier(port: u16, outcome: Outcome) -> Earlier {
        let process = crate::kernel::Process {
            pid: 1,
            start: 1,
            exe: "/bin/x".to_owned(),
            exe_dev: 0,
            exe_inode: 0,
            sha256: None,
            uid: 0,
            cgroup: "/".to_owned(),
            unit: None,
        };
        Earlier {
            workload: "a".into(),
            process: process.into(),
            protocol: "tcp",
            local: ([127, 0, 0, 1], port).into(),
            peer: ([127, 0, 0, 1], 1).into(),
            outcome,
        }
    }

    #[test]
    fn what_cannot_be_ended_is_put_on_record_once() {
        let mut looks = Looks::default();
        let mut left = |found: &[(u16, bool)]| {
            let outcome = |failed| match failed {
                true => Outcome::Failed("no memory".to_owned()),
                false => Outcome::Destroyed,
            };
            let all = found.iter();
            let mut all: Vec<Earlier> =
                all.map(|(port, no)| earlier(*port, outcome(*no))).collect();
            looks.leave_new(&mut all);
            all.iter().map(|one| one.local.port()).collect::<Vec<_>>()
        };
        assert_eq!(left(&[(1, true), (2, true), (3, false)]), [1, 2, 3]);
        assert_eq!(left(&[(1, true), (2, false), (4, true)]), [2, 4]);
        assert!(left(&[]).is_empty());
        assert_eq!(left(&[(1, true)]), [1]);
    }
}
