//! A running agent as its control plane sees it, and the changes it can take.
use super::admin::wire::{Fault, FaultKind, Reply};
use super::budgets::Budgets;
use super::containers::Containers;
use super::earlier::Looks;
use super::enrol::Enrolments;
use super::error::Error;
use super::events::Seen;
use super::mend::Watched;
use super::namespaces::Namespaces;
use super::policy::{self, SecretFiles};
use super::{Lifetime, notify};
use crate::audit::Log;
use crate::config::Config;
use crate::pipeline::{Plane, Shared};
use crate::snapshot::Snapshot;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tollgate_policy::syntax::Source;

/// A running agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) config: Config,
    pub(super) lifetime: Lifetime,
    pub(super) shared: Arc<Shared>,
    pub(super) log: Log,
    pub(super) seen: Arc<Seen>,
    /// None once it drains.
    pub(super) plane: Mutex<Option<Plane>>,
    /// Locked for the whole of a change, so that changes come one after the other.
    pub(super) applied: Mutex<Applied>,
    pub(super) enrolments: Mutex<Enrolments>,
    /// Locked before `enrolments`.
    pub(super) earlier: Mutex<Looks>,
    pub(super) watched: Mutex<Watched>,
    pub(super) containers: Arc<Containers>,
    pub(super) namespaces: Namespaces,
    pub(super) budgets: Budgets,
    pub(super) started: jiff::Timestamp,
    pub(super) port: u16,
}

/// What is in force, and what was wrong with what should have been.
#[derive(Debug)]
pub(super) struct Applied {
    /// What the policy in force was compiled from.
    pub(super) sources: Vec<Source>,
    pub(super) secret_files: SecretFiles,
    pub(super) at: jiff::Timestamp,
    /// First fault of the policy on disk, where that is not the one in force.
    pub(super) stale: Option<String>,
    /// Why secrets on disk are not the ones in force.
    pub(super) secrets_stale: Option<String>,
}

impl Applied {
    pub(super) fn new(sources: Vec<Source>, secret_files: SecretFiles) -> Self {
        Self {
            sources,
            secret_files,
            at: jiff::Timestamp::now(),
            stale: None,
            secrets_stale: None,
        }
    }
}

/// A lock whose data is replaced whole: a panic elsewhere leaves nothing half done behind.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Reads policy and secrets again and applies both, or neither. Blocks on the disk.
    pub(super) fn reload(&self) -> Result<Reply, Fault> {
        notify::reloading();
        let mut applied = lock(&self.applied);
        let result = self.apply_from_disk(&mut applied);
        let answer = match result {
            Ok(reply) => {
                applied.stale = None;
                applied.secrets_stale = None;
                Ok(reply)
            }
            Err(error) => {
                let first = error.first_line();
                tracing::error!("reload refused, the running policy stays: {first}");
                let message = format!("{error}\nnot applied: the running policy stays in force");
                match error {
                    Error::Secrets(_) => applied.secrets_stale = Some(first),
                    _ => applied.stale = Some(first),
                }
                Err(Fault {
                    kind: FaultKind::Configuration,
                    message,
                })
            }
        };
        drop(applied);
        notify::ready();
        answer
    }

    fn apply_from_disk(&self, applied: &mut Applied) -> Result<Reply, Error> {
        let loaded = policy::compile(policy::read(&self.config.policy)?)?;
        let old = self.shared.live.load_full();
        let hash = loaded.policy.hash().to_owned();
        let changed = hash != old.policy.hash();
        let files = SecretFiles::of(&loaded.policy, &self.config);
        let next = policy::snapshot(
            loaded.policy,
            &self.config,
            &self.shared.published,
            old.generation.saturating_add(1),
        )?;
        self.swap_in(next);
        applied.sources = loaded.sources;
        applied.secret_files = files;
        applied.at = jiff::Timestamp::now();
        tracing::info!(hash, changed, "policy applied");
        Ok(Reply::Reloaded {
            hash,
            changed,
            warnings: loaded.warnings,
        })
    }

    /// Readers see all of `next` or nothing of it from here on.
    fn swap_in(&self, next: Snapshot) {
        self.shared.live.store(next);
        if let Some(plane) = lock(&self.plane).as_ref() {
            plane.snapshot_changed();
        }
        self.apply_budgets();
        self.settle();
    }

    /// Makes what is governed true to the policy and the host; returns the cgroup directories to be watched.
    pub(super) fn settle(&self) -> Vec<PathBuf> {
        let snapshot = self.shared.live.load_full();
        let directories = lock(&self.enrolments).settle(&snapshot.policy);
        self.look_at_earlier();
        directories
    }

    /// Takes up secrets that changed on disk, if any did or if the last attempt failed. Blocks on the disk.
    pub(super) fn refresh_secrets(&self) {
        let mut applied = lock(&self.applied);
        let current = self.shared.live.load_full();
        let files = SecretFiles::of(&current.policy, &self.config);
        if files == applied.secret_files && applied.secrets_stale.is_none() {
            return;
        }
        let generation = current.generation.saturating_add(1);
        let next = policy::compile(applied.sources.clone()).and_then(|loaded| {
            policy::snapshot(
                loaded.policy,
                &self.config,
                &self.shared.published,
                generation,
            )
        });
        match next {
            Ok(next) => {
                self.swap_in(next);
                tracing::info!("secrets on disk changed: the new values are in force");
                applied.secrets_stale = None;
                applied.secret_files = files;
            }
            Err(error) => {
                let first = error.first_line();
                if applied.secrets_stale.as_ref() != Some(&first) {
                    tracing::error!(
                        "secrets on disk changed and cannot be used, the old values stay: {first}"
                    );
                }
                applied.secrets_stale = Some(first);
                applied.secret_files = files;
            }
        }
    }
}
