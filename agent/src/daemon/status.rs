//! What `tollgate status` says, asked of the parts now and not remembered.
use super::admin::wire::{AgentStatus, CaStatus, FailMode, PolicyStatus, Status, Verdict};
use super::agent::{Agent, lock};
use crate::audit::Stats;
use crate::kernel::Layer;
use crate::snapshot::Snapshot;
use std::collections::HashSet;
use std::sync::atomic::Ordering;
use tollgate_policy::{Mode, Reason};

impl Agent {
    /// Health, now.
    pub(super) fn status(&self) -> Status {
        let snapshot = self.shared.live.load_full();
        let fence = &self.shared.fence;
        let layers = fence.layers();
        let audit = self.log.stats();
        let policy = self.policy_status(&snapshot);
        let (governed, listed) = (fence.governed(), fence.governed_processes());
        let mut gaps = self.gaps();
        let processes = listed.unwrap_or_else(|e| {
            gaps.push(format!("the governed processes cannot be listed: {e}"));
            Vec::new()
        });
        let here: HashSet<&String> = governed
            .iter()
            .map(|one| &one.workload)
            .chain(processes.iter().map(|one| &one.workload))
            .collect();
        let idle = snapshot.policy.workloads().iter().map(|w| &w.name);
        let idle_workloads = idle.filter(|name| !here.contains(name)).cloned().collect();
        let plane_up = lock(&self.plane).is_some();
        let (put_back, skipped) = {
            let watched = lock(&self.watched);
            (watched.put_back.clone(), watched.skipped.counts())
        };
        Status {
            verdict: refusing(
                verdict(&layers, gaps, self.config.mode, plane_up),
                snapshot.policy.refusing(),
            ),
            agent: AgentStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                started: self.started,
                port: self.port,
                workers: self.config.workers,
            },
            mode: self.config.mode,
            governed: governed.len(),
            processes: processes.len(),
            namespaces: self.namespaces.all(),
            containers: self.containers.refused(),
            idle_workloads,
            unresolved: lock(&self.enrolments).unresolved(),
            connections: lock(&self.plane)
                .as_ref()
                .map_or(0, |plane| plane.connections()),
            fail_modes: fail_modes(
                &policy,
                [
                    lock(&self.applied).unkept.is_some(),
                    self.unwatched.load(Ordering::Relaxed),
                    self.counters.is_failing(),
                ],
                &audit,
                self.budgets.troubles(),
            ),
            layers,
            put_back,
            skipped,
            policy,
            ca: CaStatus {
                fingerprint: self.shared.issuing.current().fingerprint().to_owned(),
                not_after: self.shared.issuing.current().not_after(),
            },
            audit,
            lost_events: fence.lost_events(),
            unrecorded_refusals: self
                .seen
                .unrecorded()
                .saturating_add(self.shared.unrecorded.load(Ordering::Relaxed)),
        }
    }

    /// What policy says and is not held.
    pub(super) fn gaps(&self) -> Vec<String> {
        // One after the other: nobody holds both in this order.
        let mut gaps = lock(&self.enrolments).gaps();
        gaps.extend(lock(&self.earlier).gap());
        gaps.extend(self.budgets.unheld());
        gaps.extend(self.unseen());
        gaps
    }

    fn policy_status(&self, snapshot: &Snapshot) -> PolicyStatus {
        let applied = lock(&self.applied);
        PolicyStatus {
            version: snapshot.policy.version(),
            hash: snapshot.policy.hash().to_owned(),
            generation: snapshot.generation,
            applied: applied.at,
            files: applied.sources.iter().map(|s| s.name.clone()).collect(),
            stale: applied.stale.clone(),
            secrets_stale: applied.secrets_trouble(),
        }
    }
}

/// What the facts come to. A kernel half that tells of no layer that is needed is not known to hold anything.
fn verdict(
    layers: &[Layer],
    gaps: impl IntoIterator<Item = String>,
    mode: Mode,
    plane_up: bool,
) -> Verdict {
    let mut needed = layers.iter().filter(|layer| layer.needed).peekable();
    let mut why = Vec::new();
    if needed.peek().is_none() {
        why.push("no layer is known that would hold scopes".to_owned());
    }
    why.extend(needed.filter_map(lack));
    why.extend(gaps);
    if !plane_up {
        why.push("the agent is stopping: the kernel refuses what it would decide".to_owned());
    }
    match (why.is_empty(), mode) {
        (false, _) => Verdict::NotEnforcing { why },
        (true, Mode::Observe) => Verdict::Observing,
        (true, Mode::Enforce) => Verdict::Enforcing,
    }
}

/// The same where nothing is allowed, for this reason.
fn refusing(verdict: Verdict, reason: Option<&Reason>) -> Verdict {
    let Some(Reason { detail, hint, .. }) = reason else {
        return verdict;
    };
    let told = format!("{detail}; {hint}");
    match verdict {
        Verdict::NotEnforcing { why } => Verdict::NotEnforcing {
            why: std::iter::once(told).chain(why).collect(),
        },
        // Denials pass.
        Verdict::Observing => Verdict::NotEnforcing { why: vec![told] },
        Verdict::Enforcing | Verdict::Refusing { .. } => Verdict::Refusing { why: told },
    }
}

/// What is wrong with a layer that must be in force.
fn lack(layer: &Layer) -> Option<String> {
    let cause = layer
        .why
        .as_deref()
        .unwrap_or("the kernel does not say why");
    (!layer.enforcing).then(|| {
        format!(
            "{} is not in force ({cause}), which leaves open: {}",
            layer.name, layer.leaves_open
        )
    })
}

/// Every named failure, what happens then, and whether it is so now.
fn fail_modes(
    policy: &PolicyStatus,
    [unkept, unwatched, uncounted]: [bool; 3],
    audit: &Stats,
    [unwritten, unread]: [bool; 2],
) -> Vec<FailMode> {
    let mode = |when: &str, then: &str, now| FailMode {
        when: when.to_owned(),
        then: then.to_owned(),
        now,
    };
    vec![
        mode(
            "policy invalid",
            "the last good one stays in force; at a start its workloads are held, and all they ask for is refused",
            policy.stale.is_some(),
        ),
        mode(
            "policy cannot be kept in the state directory",
            "it is in force; a start at which the policy is invalid goes by the one kept before",
            unkept,
        ),
        mode(
            "secret source down",
            "the last good values stay in force; what needs one that was not there at the start is refused",
            policy.secrets_stale.is_some(),
        ),
        mode(
            "audit sink full",
            "requests are refused with 503 until it can be written",
            !audit.healthy,
        ),
        mode(
            "ledger of budgets cannot be written",
            "budgets are held; what was spent since is forgotten if the agent ends, of bytes if the host does",
            unwritten,
        ),
        mode(
            "ledger of budgets cannot be read at the start",
            "what is in no copy, nor known to the kernel, counts as spent until its window ends",
            unread,
        ),
        mode(
            "counters cannot be written",
            "the kernel counts on; what it has counted since is forgotten if the host starts anew, or its fence is removed",
            uncounted,
        ),
        mode(
            "cgroups cannot be watched, or not all (fs.inotify.max_user_instances, max_user_watches)",
            "the kernel governs new ones by their path; the agent looks for them each second",
            unwatched,
        ),
        mode(
            "agent dead",
            "the kernel refuses governed connections at once",
            false,
        ),
        mode(
            "control plane lost",
            "the data plane goes on; the watchdog restarts the agent",
            false,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str, needed: bool, enforcing: bool) -> Layer {
        Layer {
            name: name.to_owned(),
            enforcing,
            needed,
            leaves_open: "something".to_owned(),
            why: None,
        }
    }

    #[test]
    fn each_needed_layer_is() {
        let layers = |missing| ["a", "b"].map(|name| layer(name, true, name != missing));
        for name in ["a", "b"] {
            let verdict = verdict(&layers(name), [], Mode::Enforce, true);
            assert!(
                matches!(verdict, Verdict::NotEnforcing { why } if why.len() == 1 && why[0].starts_with(name)),
                "{name}"
            );
        }
        assert_eq!(
            verdict(&layers(""), [], Mode::Enforce, true),
            Verdict::Enforcing
        );
        assert!(matches!(
            verdict(&layers(""), [], Mode::Enforce, false),
            Verdict::NotEnforcing { .. }
        ));
        assert!(matches!(
            verdict(&layers(""), ["a gap", "another"].map(str::to_owned), Mode::Observe, true),
            Verdict::NotEnforcing { why } if why == ["a gap", "another"]
        ));
    }

    #[test]
    fn a_missing_backup_is_enforcing() {
        let layers = [layer("a", true, true), layer("lsm", false, false)];
        assert_eq!(
            verdict(&layers, [], Mode::Enforce, true),
            Verdict::Enforcing
        );
        assert_eq!(
            verdict(&layers, [], Mode::Observe, true),
            Verdict::Observing
        );
    }

    #[test]
    fn what_refuses_all_is_said_before_all_else() {
        let reason = Reason {
            code: "policy_fault",
            detail: "a fault".to_owned(),
            hint: "mend it".to_owned(),
        };
        let told = "a fault; mend it".to_owned();
        let open = |why: &[&str]| Verdict::NotEnforcing {
            why: why.iter().map(|one| (*one).to_owned()).collect(),
        };
        for (before, after) in [
            (Verdict::Enforcing, Verdict::Refusing { why: told.clone() }),
            (Verdict::Observing, open(&[&told])),
            (open(&["a gap"]), open(&[&told, "a gap"])),
        ] {
            assert_eq!(refusing(before.clone(), None), before);
            assert_eq!(refusing(before, Some(&reason)), after);
        }
    }

    #[test]
    fn nothing_known_is_not_enforcing() {
        for layers in [vec![], vec![layer("a", false, true)]] {
            let verdict = verdict(&layers, [], Mode::Observe, true);
            assert!(matches!(verdict, Verdict::NotEnforcing { why } if why.len() == 1));
        }
    }
}
