//! Budgets that the agent counts: reserved before a call is sent, settled after its answer, kept over a restart.
//!
//! A request finds its accounts in an immutable [`Accounts`], which is a part of the snapshot. An account is a few atomics:
//! no lock is taken on the way of a request. Each change is written into the `ledger` by whoever made it.
mod account;
mod ledger;
mod registry;
mod table;

pub use account::{Account, Holder, Reservation, Short, Unit};
pub use registry::{Registry, TooMany};
pub use table::{Accounts, Line, Lines};

use tollgate_policy::PICODOLLARS;

/// Picodollars as dollars, in decimals without an end of zeros.
pub fn dollars(amount: u64) -> String {
    let (whole, rest) = (amount / PICODOLLARS, amount % PICODOLLARS);
    if rest == 0 {
        return whole.to_string();
    }
    let text = format!("{whole}.{rest:012}");
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests;
