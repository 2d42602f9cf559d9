//! All accounts there are, over changes of the policy and over the life of an agent. The control plane's alone.
use super::account::{Account, Holder, Unit};
use super::ledger::{self, Id, Ledger, SLOTS, Slot};
use super::table::{Accounts, Line, Lines, Of, holders};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tollgate_policy::{Budget, Policy, Quota};

/// The file, below the runtime directory and, as a copy, below the state directory.
const FILE: &str = "budgets.ledger";

/// Writes a file whole or not at all.
type Publish = fn(&Path, &[u8], u32) -> io::Result<()>;

/// More accounts than there is room for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the budgets need more than {SLOTS} accounts: name fewer identities in `for`, or give some budgets no `each`"
)]
pub struct TooMany;

/// All accounts there are.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    ledger: Arc<Ledger>,
    copy: PathBuf,
    publish: Publish,
    /// What was spent before it was opened is not known in full, as of this second.
    damaged: Option<u64>,
    /// The copy cannot be written.
    uncopied: AtomicBool,
}

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<Id, Known>,
    /// Slots below `end` that nobody has.
    free: Vec<usize>,
    end: usize,
    copied: Vec<Slot>,
}

/// An account, or what was kept of one that no policy has had since.
#[derive(Debug)]
struct Known {
    number: usize,
    kept: Slot,
    account: Option<Arc<Account>>,
}

impl Known {
    fn now(&self, now: u64) -> Slot {
        let Some(account) = &self.account else {
            return self.kept;
        };
        let (window, spent) = account.state(now);
        Slot {
            window,
            spent,
            ..self.kept
        }
    }

    /// Nobody has it, and what it says no longer counts.
    fn is_over(&self, now: u64) -> bool {
        let held = |account: &Arc<Account>| Arc::strong_count(account) > 1;
        let slot = self.now(now);
        let past = slot.window < now / slot.seconds.max(1);
        !self.account.as_ref().is_some_and(held) && (past || slot.spent == 0)
    }
}

impl Registry {
    /// Reads what an earlier agent left, and begins a ledger with it.
    ///
    /// # Errors
    /// The ledger cannot be written.
    pub fn open(runtime: &Path, state: &Path, publish: Publish, now: u64) -> io::Result<Self> {
        let (path, copy) = (runtime.join(FILE), state.join(FILE));
        let (slots, damaged) = earlier(&path, &copy);
        publish(&path, &ledger::text(&slots), 0o600)?;
        let mut inner = Inner {
            end: slots.len(),
            ..Inner::default()
        };
        for (number, kept) in slots.into_iter().enumerate() {
            let account = None;
            inner.known.insert(
                kept.id,
                Known {
                    number,
                    kept,
                    account,
                },
            );
        }
        Ok(Self {
            inner: Mutex::new(inner),
            ledger: Arc::new(Ledger::open(&path)?),
            copy,
            publish,
            damaged: damaged.then_some(now),
            uncopied: AtomicBool::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The accounts of a policy: those there were are the same ones.
    ///
    /// # Errors
    /// There is no room for all of them.
    pub fn table(&self, policy: &Policy, now: u64) -> Result<Accounts, TooMany> {
        let mut inner = self.lock();
        inner.forget(&self.ledger, now);
        let workloads: Vec<&str> = policy.workloads().iter().map(|w| &*w.name).collect();
        let identities: Vec<&str> = policy.identities().iter().map(|i| &*i.name).collect();
        let mut of = Vec::with_capacity(policy.budgets().len());
        for budget in policy.budgets() {
            of.push(self.of(&mut inner, budget, (&workloads, &identities), now)?);
        }
        Ok(Accounts(of))
    }

    fn of(
        &self,
        inner: &mut Inner,
        budget: &Budget,
        (workloads, identities): (&[&str], &[&str]),
        now: u64,
    ) -> Result<Of, TooMany> {
        let mut of = Of::default();
        let limits = &budget.limits;
        let bytes = budget.agent_bytes();
        if !budget.is_the_agents() {
            return Ok(of);
        }
        let name: Arc<str> = budget.name.as_str().into();
        for holder in holders(budget, workloads, identities) {
            let mut line = |unit, quota: Option<Quota>| {
                let Some(quota) = quota else { return Ok(None) };
                let what = (
                    Arc::clone(&name),
                    unit,
                    quota.window.seconds(),
                    holder.clone(),
                );
                let account = self.account(inner, what, quota.amount, now)?;
                Ok(Some(Line { account, quota }))
            };
            let lines = Lines {
                requests: line(Unit::Requests, limits.requests)?,
                tokens: line(Unit::Tokens, limits.tokens)?,
                usd: line(Unit::Usd, limits.usd)?,
                bytes: line(Unit::Bytes, bytes)?,
            };
            match holder {
                Holder::Shared | Holder::Nobody => of.common = Some(lines),
                Holder::Workload(name) | Holder::Identity(name) => {
                    of.named.insert((*name).into(), lines);
                }
            }
        }
        Ok(of)
    }

    fn account(
        &self,
        inner: &mut Inner,
        what: (Arc<str>, Unit, u64, Holder),
        limit: u64,
        now: u64,
    ) -> Result<Arc<Account>, TooMany> {
        let (budget, unit, seconds, holder) = &what;
        let (id, seconds) = (Id::of(budget, *unit, *seconds, holder), *seconds);
        let window = now / seconds.max(1);
        let (number, kept) = match inner.known.get(&id) {
            Some(Known {
                account: Some(account),
                ..
            }) => return Ok(Arc::clone(account)),
            Some(known) => (known.number, known.kept),
            None => {
                // What may have been spent before nobody knows: in that window it counts as all.
                let unknown = self.damaged.is_some_and(|at| at / seconds.max(1) == window);
                let spent = if unknown { limit } else { 0 };
                let kept = Slot {
                    id,
                    window,
                    seconds,
                    spent,
                };
                (inner.free_slot().ok_or(TooMany)?, kept)
            }
        };
        let ledger = (Arc::clone(&self.ledger), number);
        let account = Arc::new(Account::new(what, (kept.window, kept.spent), ledger));
        let known = Known {
            number: account.slot(),
            kept,
            account: Some(Arc::clone(&account)),
        };
        inner.known.insert(id, known);
        Ok(account)
    }

    /// Copies what is spent to the state directory, if that is news.
    pub fn copy(&self, now: u64) {
        let mut inner = self.lock();
        let mut slots: Vec<Slot> = inner.known.values().map(|known| known.now(now)).collect();
        slots.retain(|slot| slot.spent > 0);
        slots.sort_by_key(|slot| slot.id);
        let copied = match slots == inner.copied {
            true => Ok(()),
            false => (self.publish)(&self.copy, &ledger::text(&slots), 0o600),
        };
        // It is tried again every few seconds.
        let was_failing = self.uncopied.swap(copied.is_err(), Ordering::Relaxed);
        match copied {
            Ok(()) => inner.copied = slots,
            Err(error) if !was_failing => {
                tracing::error!("{}: {error}: make room", self.copy.display());
            }
            Err(_) => {}
        }
    }

    /// Whether accounts may count as spent because what was spent before cannot be read.
    pub fn is_unknown(&self, now: u64) -> bool {
        const LONGEST: u64 = 86_400;
        self.damaged.is_some_and(|at| at / LONGEST == now / LONGEST)
    }

    /// Whether what is spent can no longer be written down, in the ledger or its copy.
    pub fn is_failing(&self) -> bool {
        self.ledger.is_failing() || self.uncopied.load(Ordering::Relaxed)
    }
}

impl Inner {
    /// Frees the slots of accounts that nobody has and that no longer count.
    fn forget(&mut self, ledger: &Ledger, now: u64) {
        let Self { known, free, .. } = self;
        known.retain(|_, known| {
            let over = known.is_over(now);
            if over {
                ledger.clear(known.number);
                free.push(known.number);
            }
            !over
        });
    }

    fn free_slot(&mut self) -> Option<usize> {
        if let Some(number) = self.free.pop() {
            return Some(number);
        }
        let number = self.end;
        self.end = number.checked_add(1).filter(|end| *end <= SLOTS)?;
        Some(number)
    }
}

/// What an earlier agent left, and whether something of it cannot be read. The ledger knows better than its copy, unless the
/// copy is of a later window.
fn earlier(path: &Path, copy: &Path) -> (Vec<Slot>, bool) {
    let (of_ledger, of_copy) = (kept(path), kept(copy));
    let mut damaged = match (&of_ledger, &of_copy) {
        (Some((_, damaged)), _) => *damaged,
        // The host was rebooted: there is nothing but the copy.
        (None, Some((_, damaged))) => *damaged,
        (None, None) => false,
    };
    let mut slots: HashMap<Id, Slot> = HashMap::new();
    let both = [of_copy, of_ledger];
    for slot in both.into_iter().flatten().flat_map(|(slots, _)| slots) {
        let known = slots.entry(slot.id).or_insert(slot);
        if slot.window >= known.window {
            *known = slot;
        }
    }
    let mut slots: Vec<Slot> = slots.into_values().collect();
    slots.sort_by_key(|slot| {
        (
            std::cmp::Reverse(slot.window.saturating_mul(slot.seconds)),
            slot.id,
        )
    });
    damaged |= slots.len() > SLOTS;
    slots.truncate(SLOTS);
    (slots, damaged)
}

/// What a file holds, and whether that is all; `None` where there is none.
fn kept(path: &Path) -> Option<(Vec<Slot>, bool)> {
    let (slots, damaged) = match ledger::read(path) {
        Ok(kept) => (kept.slots, kept.damaged.then(|| "it is damaged".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    if let Some(why) = &damaged {
        tracing::error!(
            "{}: {why}: what was spent of some budgets is not known; where the copy does not say it either, all of it counts as spent until the window ends (to begin anew, stop the agent and remove both files)",
            path.display()
        );
    }
    Some((slots, damaged.is_some()))
}
