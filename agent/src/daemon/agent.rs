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
use crate::secrets::vault::{Reach, Values};
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
    /// Locked for the whole of a change, so that changes come one after the other. One may wait for Vault.
    pub(super) changes: Mutex<()>,
    /// Changed by who holds `changes`, and locked for moments only: `status` waits for nobody.
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
    /// What Vault gave last.
    pub(super) vault: Arc<Values>,
    pub(super) at: jiff::Timestamp,
    /// First fault of the policy on disk, where that is not the one in force.
    pub(super) stale: Option<String>,
    /// Why secrets on disk are not the ones in force.
    pub(super) secrets_stale: Option<String>,
    /// Why what Vault has is not known, or not in force.
    pub(super) vault_stale: Option<String>,
}

impl Applied {
    pub(super) fn new(sources: Vec<Source>, secret_files: SecretFiles, vault: Arc<Values>) -> Self {
        Self {
            sources,
            secret_files,
            vault,
            at: jiff::Timestamp::now(),
            stale: None,
            secrets_stale: None,
            vault_stale: None,
        }
    }

    /// What is wrong with the sources of secrets.
    pub(super) fn secrets_trouble(&self) -> Option<String> {
        let all = [&self.secrets_stale, &self.vault_stale];
        let all: Vec<&str> = all.into_iter().flatten().map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

/// A lock whose data is replaced whole: a panic elsewhere leaves nothing half done behind.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    /// Reads policy and secrets again and applies both, or neither. Blocks on the disk, and on Vault.
    pub(super) fn reload(&self) -> Result<Reply, Fault> {
        notify::reloading();
        let _one_after_the_other = lock(&self.changes);
        let result = self.apply_from_disk();
        let another = result.is_err() && self.another_is_on_disk();
        let mut applied = lock(&self.applied);
        let answer = match result {
            Ok(reply) => {
                applied.stale = None;
                applied.secrets_stale = None;
                applied.vault_stale = None;
                Ok(reply)
            }
            Err(error) => {
                let first = error.first_line();
                tracing::error!("reload refused, the running policy stays: {first}");
                let message = format!("{error}\nnot applied: the running policy stays in force");
                let of_secrets = matches!(error, Error::Secrets(_) | Error::Vault(_));
                if !of_secrets || another {
                    applied.stale = Some(first.clone());
                }
                match error {
                    Error::Secrets(_) => applied.secrets_stale = Some(first),
                    Error::Vault(_) => applied.vault_stale = Some(first),
                    _ => {}
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

    fn apply_from_disk(&self) -> Result<Reply, Error> {
        let loaded = policy::compile(policy::read(&self.config.policy)?)?;
        let old = self.shared.live.load_full();
        let hash = loaded.policy.hash().to_owned();
        let changed = hash != old.policy.hash();
        let files = SecretFiles::of(&loaded.policy, &self.config);
        let vault = policy::ask_vault(&loaded.policy, &self.config, &self.reach())?;
        let next = policy::snapshot(
            loaded.policy,
            &self.config,
            (&self.shared.published, &vault, self.budgets.accounts()),
            old.generation.saturating_add(1),
        )?;
        self.swap_in(next);
        let mut applied = lock(&self.applied);
        applied.sources = loaded.sources;
        applied.secret_files = files;
        applied.vault = vault;
        applied.at = jiff::Timestamp::now();
        drop(applied);
        tracing::info!(hash, changed, "policy applied");
        Ok(Reply::Reloaded {
            hash,
            changed,
            warnings: loaded.warnings,
            unheld: self.gaps(),
        })
    }

    /// Whether the policy on disk is a good one, and not the one in force.
    fn another_is_on_disk(&self) -> bool {
        let found = policy::read(&self.config.policy).and_then(policy::compile);
        found.is_ok_and(|found| found.policy.hash() != self.shared.live.load().policy.hash())
    }

    fn reach(&self) -> Reach<'_> {
        Reach {
            dns_servers: &self.shared.dns_servers,
            own: Arc::clone(&self.shared.own),
        }
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
        // What they have open would be free if it was not looked at before.
        if self.look_at_earlier() {
            lock(&self.enrolments).let_go_of_others(&snapshot.policy);
        }
        directories
    }

    /// Takes up secrets that changed on disk, if any did or if the last attempt failed. Blocks on the disk.
    pub(super) fn refresh_secrets(&self) {
        let _one_after_the_other = lock(&self.changes);
        let current = self.shared.live.load_full();
        let files = SecretFiles::of(&current.policy, &self.config);
        let (same, vault) = {
            let applied = lock(&self.applied);
            let same = files == applied.secret_files && applied.secrets_stale.is_none();
            (same, Arc::clone(&applied.vault))
        };
        if same {
            return;
        }
        let refused = self.rebuild(&vault).err().map(|error| error.first_line());
        let mut applied = lock(&self.applied);
        match &refused {
            None => tracing::info!("secrets on disk changed: the new values are in force"),
            Some(first) if applied.secrets_stale.as_ref() != Some(first) => tracing::error!(
                "secrets on disk changed and cannot be used, the old values stay: {first}"
            ),
            Some(_) => {}
        }
        applied.secrets_stale = refused;
        applied.secret_files = files;
    }

    /// Takes up secrets that changed in Vault; whether it gave them. Blocks on the network, for a bounded time.
    pub(super) fn refresh_vault(&self) -> bool {
        let _one_after_the_other = lock(&self.changes);
        let current = self.shared.live.load_full();
        let before = Arc::clone(&lock(&self.applied).vault);
        let taken = policy::ask_vault(&current.policy, &self.config, &self.reach());
        let taken = taken.and_then(|values| {
            if values != before {
                self.rebuild(&values)?;
                lock(&self.applied).vault = values;
                tracing::info!("secrets in Vault changed: the new values are in force");
            }
            Ok(())
        });
        let refused = taken.err().map(|error| error.first_line());
        let mut applied = lock(&self.applied);
        match (&refused, &applied.vault_stale) {
            (Some(first), told) if told.as_ref() != Some(first) => {
                tracing::error!("secrets in Vault cannot be had, the last values stay: {first}");
            }
            (None, Some(_)) => tracing::info!("secrets in Vault can be had again"),
            _ => {}
        }
        applied.vault_stale = refused;
        applied.vault_stale.is_none()
    }

    /// The policy in force with the secrets of now, and these of Vault's.
    fn rebuild(&self, vault: &Values) -> Result<(), Error> {
        let sources = lock(&self.applied).sources.clone();
        let loaded = policy::compile(sources)?;
        let next = policy::snapshot(
            loaded.policy,
            &self.config,
            (&self.shared.published, vault, self.budgets.accounts()),
            self.shared.live.load().generation.saturating_add(1),
        )?;
        self.swap_in(next);
        Ok(())
    }
}
