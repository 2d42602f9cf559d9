//! One account: what is spent of one amount in the window that it is now.
use super::ledger::{Id, Ledger, Slot};
use arc_swap::ArcSwap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

/// What is counted at most for one call where no limit is held: many of them still have room in an integer.
const MOST: u64 = 1 << 56;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Requests, and connections that are not inspected.
    Requests,
    /// Tokens of language models.
    Tokens,
    /// Money, in picodollars.
    Usd,
    /// Bytes of bodies, and of connections that are not inspected.
    Bytes,
}

impl Unit {
    /// As the policy names it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Usd => "usd",
            Self::Bytes => "bytes",
        }
    }

    /// Code of a refusal for want of it.
    pub fn code(self) -> &'static str {
        match self {
            Self::Requests => "budget_requests",
            Self::Tokens => "budget_tokens",
            Self::Usd => "budget_usd",
            Self::Bytes => "budget_bytes",
        }
    }

    /// An amount of it, for people.
    pub fn show(self, amount: u64) -> String {
        match self {
            Self::Usd => format!("{} US dollars", super::dollars(amount)),
            other => format!("{amount} {}", other.as_str()),
        }
    }
}

/// Whose an account is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Holder {
    /// All who fit.
    Shared,
    /// This workload's.
    Workload(Arc<str>),
    /// This identity's.
    Identity(Arc<str>),
    /// All calls without an identity, where each identity has its own.
    Nobody,
}

/// What is spent in one window.
#[derive(Debug)]
struct Cell {
    window: u64,
    spent: AtomicU64,
    /// Somebody was told that little is left.
    warned: AtomicBool,
}

/// One account. Its limit is the policy's, and may change; what is spent stays.
#[derive(Debug)]
pub struct Account {
    /// Name of the budget.
    pub budget: Arc<str>,
    /// What is counted.
    pub unit: Unit,
    /// Length of a window.
    pub seconds: u64,
    /// Whose it is.
    pub holder: Holder,
    cell: ArcSwap<Cell>,
    id: Id,
    ledger: Arc<Ledger>,
    slot: usize,
}

/// There is not enough left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Short {
    /// What is left.
    pub left: u64,
    /// When there is more, in seconds since 1970.
    pub until: u64,
}

impl Account {
    /// An account of which `spent` is spent in `window`.
    pub(super) fn new(
        (budget, unit, seconds, holder): (Arc<str>, Unit, u64, Holder),
        (window, spent): (u64, u64),
        (ledger, slot): (Arc<Ledger>, usize),
    ) -> Self {
        let account = Self {
            id: Id::of(&budget, unit, seconds, &holder),
            budget,
            unit,
            seconds: seconds.max(1),
            holder,
            cell: ArcSwap::from_pointee(Cell::new(window, spent)),
            ledger,
            slot,
        };
        account.write();
        account
    }

    /// The window of now, begun if need be. Windows only move forward: a clock that is set back refills nothing.
    fn current(&self, now: u64) -> Arc<Cell> {
        let window = now / self.seconds;
        loop {
            let cell = self.cell.load_full();
            if cell.window >= window {
                return cell;
            }
            let next = Arc::new(Cell::new(window, 0));
            self.cell.compare_and_swap(&cell, next);
        }
    }

    /// Takes `amount` out of what `limit` leaves, to be settled. Without a limit it is only counted.
    ///
    /// # Errors
    /// That much is not left. What costs nothing always is.
    pub fn reserve(
        self: &Arc<Self>,
        amount: u64,
        limit: Option<u64>,
        now: u64,
    ) -> Result<Reservation, Short> {
        let cell = self.current(now);
        let amount = if limit.is_some() {
            amount
        } else {
            amount.min(MOST)
        };
        let more = |spent: u64| {
            let sum = spent.saturating_add(amount);
            let fits = amount == 0 || limit.is_none_or(|limit| sum <= limit);
            fits.then_some(sum)
        };
        match cell.spent.fetch_update(SeqCst, SeqCst, more) {
            Ok(before) => {
                self.changed(&cell);
                self.warn(&cell, before.saturating_add(amount), limit);
                let account = Arc::clone(self);
                // What an integer has no room for was not added, and is not to be given back.
                let amount = before.saturating_add(amount).saturating_sub(before);
                Ok(Reservation {
                    account,
                    cell,
                    amount,
                })
            }
            Err(spent) => Err(Short {
                left: limit.unwrap_or(0).saturating_sub(spent),
                until: self.end_of(cell.window),
            }),
        }
    }

    /// Counts what has been moved, for good. Where it is more than is left it takes all that is.
    ///
    /// # Errors
    /// It is more than was left.
    pub fn spend(&self, amount: u64, limit: Option<u64>, now: u64) -> Result<(), Short> {
        let cell = self.current(now);
        let more = |spent: u64| {
            let sum = spent.saturating_add(amount);
            Some(limit.map_or(sum, |limit| sum.min(limit.max(spent))))
        };
        let before = cell.spent.fetch_update(SeqCst, SeqCst, more);
        let sum = before.unwrap_or_else(|spent| spent).saturating_add(amount);
        self.changed(&cell);
        self.warn(&cell, sum, limit);
        match limit {
            Some(limit) if sum > limit => Err(Short {
                left: 0,
                until: self.end_of(cell.window),
            }),
            _ => Ok(()),
        }
    }

    /// Whether something of `limit` is left.
    ///
    /// # Errors
    /// Nothing is.
    pub fn open(&self, limit: u64, now: u64) -> Result<(), Short> {
        let (window, spent) = self.state(now);
        match spent < limit {
            true => Ok(()),
            false => Err(Short {
                left: 0,
                until: self.end_of(window),
            }),
        }
    }

    /// The window of now, and what is spent in it.
    pub fn state(&self, now: u64) -> (u64, u64) {
        let cell = self.cell.load();
        let window = now / self.seconds;
        match cell.window >= window {
            true => (cell.window, cell.spent.load(SeqCst)),
            false => (window, 0),
        }
    }

    /// When a window ends, in seconds since 1970.
    pub fn end_of(&self, window: u64) -> u64 {
        window.saturating_add(1).saturating_mul(self.seconds)
    }

    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    /// Writes down a change, unless the window is over, which no restart needs to know of.
    fn changed(&self, cell: &Arc<Cell>) {
        if Arc::ptr_eq(&self.cell.load(), cell) {
            self.write();
        }
    }

    /// Writes what is spent now. Two that write at the same time can overtake each other, so whoever finds afterwards that it
    /// wrote what is no longer true writes again: the last one to write has looked after its write.
    fn write(&self) {
        loop {
            let cell = self.cell.load_full();
            let spent = cell.spent.load(SeqCst);
            let (window, seconds) = (cell.window, self.seconds);
            self.ledger.write(
                self.slot,
                &Slot {
                    id: self.id,
                    window,
                    seconds,
                    spent,
                },
            );
            let same = Arc::ptr_eq(&self.cell.load(), &cell);
            if same && cell.spent.load(SeqCst) == spent {
                return;
            }
        }
    }

    /// Says once in a window that four fifths are spent.
    fn warn(&self, cell: &Cell, spent: u64, limit: Option<u64>) {
        let Some(limit) = limit else { return };
        let little = u128::from(spent) * 5 >= u128::from(limit) * 4;
        if little && !cell.warned.swap(true, SeqCst) {
            let holder = match &self.holder {
                Holder::Shared => "all who fit",
                Holder::Workload(name) | Holder::Identity(name) => name,
                Holder::Nobody => "calls without identity",
            };
            tracing::warn!(
                budget = %self.budget,
                holder,
                "{} of {} are spent: `tollgate usage` shows what is left",
                self.unit.show(spent.min(limit)),
                self.unit.show(limit),
            );
        }
    }
}

impl Cell {
    fn new(window: u64, spent: u64) -> Self {
        Self {
            window,
            spent: AtomicU64::new(spent),
            warned: AtomicBool::new(false),
        }
    }
}

/// An amount that is taken from an account. Given back when it is dropped, unless it was kept or settled.
#[derive(Debug)]
pub struct Reservation {
    account: Arc<Account>,
    /// Where it was taken, which is also where it is settled.
    cell: Arc<Cell>,
    amount: u64,
}

impl Reservation {
    /// It is spent.
    pub fn keep(mut self) {
        self.amount = 0;
    }

    /// `actual` was spent, less or more than was reserved.
    pub fn settle(mut self, actual: u64) {
        let reserved = std::mem::take(&mut self.amount);
        self.replace(reserved, actual);
    }

    fn replace(&self, reserved: u64, actual: u64) {
        if reserved == actual {
            return;
        }
        let settled = |spent: u64| Some(spent.saturating_sub(reserved).saturating_add(actual));
        let _ = self.cell.spent.fetch_update(SeqCst, SeqCst, settled);
        self.account.changed(&self.cell);
    }

    /// What is counted.
    pub fn unit(&self) -> Unit {
        self.account.unit
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.replace(self.amount, 0);
    }
}
