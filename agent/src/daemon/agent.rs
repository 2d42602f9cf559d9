//! A running agent as its control plane sees it, and the changes it can take.
use super::admin::wire::{Fault, FaultKind, Reply};
use super::budgets::Budgets;
use super::containers::Containers;
use super::counters::Counters;
use super::earlier::Looks;
use super::enrol::Enrolments;
use super::error::Error;
use super::events::Seen;
use super::mend::Watched;
use super::namespaces::Namespaces;
use super::policy::{self, SecretFiles};
use super::{Lifetime, kept, notify};
use crate::audit::Log;
use crate::config::Config;
use crate::pipeline::{Plane, Shared};
use crate::secrets::vault::{Reach, Values};
use crate::snapshot::Snapshot;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tollgate_policy::Policy;
use tollgate_policy::syntax::Source;

/// How often what failed is tried again while nothing changes: each time the whole policy is compiled.
const AGAIN: Duration = Duration::from_secs(4);

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
    /// Cgroups cannot be watched, or not all: new ones are looked for.
    pub(super) unwatched: AtomicBool,
    pub(super) containers: Arc<Containers>,
    pub(super) namespaces: Namespaces,
    pub(super) budgets: Budgets,
    pub(super) counters: Counters,
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
    /// Why the policy in force is not kept for the next start.
    pub(super) unkept: Option<String>,
    /// When what failed was last tried.
    tried: Instant,
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
            unkept: None,
            tried: Instant::now(),
        }
    }

    /// Notes which secrets the policy in force was taken up without.
    pub(super) fn lacks(&mut self, not_given: Option<&Error>, not_read: Option<&Error>) {
        for fault in [not_given, not_read].into_iter().flatten() {
            tracing::error!("what needs this secret is refused: {}", fault.first_line());
        }
        self.vault_stale = not_given.map(Error::first_line);
        self.secrets_stale = not_read.map(Error::first_line);
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
        let answer = self.take_up();
        notify::ready();
        answer
    }

    /// The same, by who holds `changes`.
    fn take_up(&self) -> Result<Reply, Fault> {
        let error = match self.apply_from_disk() {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let another = self.another_is_on_disk();
        let first = error.first_line();
        let refusing = self.is_refusing_all();
        let stays = match refusing {
            false => "the running policy stays in force",
            true => "all that is governed stays refused",
        };
        let mut applied = lock(&self.applied);
        // Then it is tried all the time.
        if !refusing || applied.stale.as_ref() != Some(&first) {
            tracing::error!("reload refused, {stays}: {first}");
        }
        let of_secrets = matches!(error, Error::Secrets(_) | Error::Vault(_));
        if !of_secrets || another {
            applied.stale = Some(first.clone());
        }
        let message = format!("{error}\nnot applied: {stays}");
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

    fn apply_from_disk(&self) -> Result<Reply, Error> {
        let loaded = policy::compile(policy::read(&self.config.policy)?)?;
        let old = self.shared.live.load_full();
        let hash = loaded.policy.hash().to_owned();
        let changed = hash != old.policy.hash();
        let files = SecretFiles::of(&loaded.policy, &self.config);
        let (vault, not_given) = self.ask_vault(&loaded.policy)?;
        let (next, not_read) = self.joined(loaded.policy, &vault)?;
        self.swap_in(next);
        let mut applied = lock(&self.applied);
        applied.sources = loaded.sources;
        applied.secret_files = files;
        applied.vault = vault;
        applied.at = jiff::Timestamp::now();
        applied.stale = None;
        applied.lacks(not_given.as_ref(), not_read.as_ref());
        drop(applied);
        self.keep();
        tracing::info!(hash, changed, "policy applied");
        let lacking = [not_given, not_read].into_iter().flatten();
        let lacking = lacking.map(|fault| fault.first_line());
        let unresolved = lock(&self.enrolments).unresolved();
        Ok(Reply::Reloaded {
            hash,
            changed,
            warnings: loaded
                .warnings
                .into_iter()
                .chain(lacking)
                .chain(unresolved)
                .collect(),
            unheld: self.gaps(),
        })
    }

    /// Keeps the policy in force for a start at which there is none that can be taken up.
    fn keep(&self) {
        if self.lifetime != Lifetime::Service || self.is_refusing_all() {
            return;
        }
        let sources = lock(&self.applied).sources.clone();
        let unkept = kept::keep(&self.config.state_dir, &sources);
        lock(&self.applied).unkept = unkept;
    }

    /// Whether nothing is allowed, for want of a policy that can be taken up.
    fn is_refusing_all(&self) -> bool {
        self.shared.live.load().policy.refusing().is_some()
    }

    /// Whether the policy on disk is a good one, and not the one in force.
    fn another_is_on_disk(&self) -> bool {
        let found = policy::read(&self.config.policy).and_then(policy::compile);
        found.is_ok_and(|found| found.policy.hash() != self.shared.live.load().policy.hash())
    }

    /// What Vault has. A fault is none of those that end a change where there is no value to go on with: it comes beside what could
    /// be had.
    fn ask_vault(&self, policy: &Policy) -> Result<(Arc<Values>, Option<Error>), Error> {
        let reach = Reach {
            dns_servers: &self.shared.dns_servers,
            own: Arc::clone(&self.shared.own),
        };
        let current = self.shared.live.load_full();
        let (mut values, fault) = policy::ask_vault(policy, &self.config, &reach);
        match fault {
            Some(fault) if current.absent.is_empty() && current.policy.refusing().is_none() => {
                return Err(fault);
            }
            Some(_) => values.fill_in(&lock(&self.applied).vault),
            None => {}
        }
        Ok((Arc::new(values), fault))
    }

    /// A policy with its secrets of now. It may lack what the one in force does, and what one that refuses all never had.
    fn joined(&self, policy: Policy, vault: &Values) -> Result<(Snapshot, Option<Error>), Error> {
        let current = self.shared.live.load_full();
        policy::snapshot(
            policy,
            &self.config,
            (&self.shared.published, vault, self.budgets.accounts()),
            current.generation.saturating_add(1),
            &|absent| current.policy.refusing().is_some() || absent.is_subset(&current.absent),
        )
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

    /// Takes up secrets that changed on disk; now and then tries again what failed. Blocks on the disk.
    pub(super) fn refresh_secrets(&self) {
        let _one_after_the_other = lock(&self.changes);
        let current = self.shared.live.load_full();
        let is_due = {
            let mut applied = lock(&self.applied);
            let is_due = applied.tried.elapsed() >= AGAIN;
            if is_due {
                applied.tried = Instant::now();
            }
            is_due
        };
        if is_due && lock(&self.applied).unkept.is_some() {
            self.keep();
        }
        if current.policy.refusing().is_some() {
            if is_due && self.take_up().is_ok() {
                tracing::info!(
                    "the policy could be taken up: nothing is refused for its fault any more"
                );
            }
            return;
        }
        let files = SecretFiles::of(&current.policy, &self.config);
        let (changed, failing, vault) = {
            let applied = lock(&self.applied);
            let changed = files != applied.secret_files;
            (
                changed,
                applied.secrets_stale.is_some(),
                Arc::clone(&applied.vault),
            )
        };
        if !(changed || failing && is_due) {
            return;
        }
        let refused = self.rebuild(&vault, changed);
        let refused = refused.unwrap_or_else(Some);
        let refused = refused.map(|error| error.first_line());
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
        if current.policy.refusing().is_some() {
            return false;
        }
        let before = Arc::clone(&lock(&self.applied).vault);
        let taken = self.ask_vault(&current.policy);
        let taken = taken.and_then(|(values, not_given)| {
            if values != before {
                self.rebuild(&values, true)?;
                lock(&self.applied).vault = values;
                tracing::info!("secrets in Vault changed: the new values are in force");
            }
            not_given.map_or(Ok(()), Err)
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

    /// The policy in force with the secrets of now, if any `changed` or was lacking, and these of Vault's; with why it lacks some
    /// still.
    fn rebuild(&self, vault: &Values, changed: bool) -> Result<Option<Error>, Error> {
        let sources = lock(&self.applied).sources.clone();
        let loaded = policy::compile(sources)?;
        let (next, not_read) = self.joined(loaded.policy, vault)?;
        // Connections to upstreams are not kept over a swap.
        if changed || next.absent != self.shared.live.load().absent {
            self.swap_in(next);
        }
        Ok(not_read)
    }
}
