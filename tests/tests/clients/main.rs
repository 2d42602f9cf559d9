//! Real programs, as they are, behind the real agent: what is allowed passes with the credential in it, and what is refused
//! says so in each program's own way. `docs/clients.md` is written from what they print. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod fleet;
mod page;
mod plain;
mod stage;
mod trust;
