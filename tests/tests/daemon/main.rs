//! The real agent as a process: starting, refusing to start, changing, dying, and what it says of itself. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

mod asking;
mod budgets;
mod bystanders;
mod changing;
mod confined;
mod containers;
mod counted;
mod covered;
mod crowding;
mod docker;
mod established;
mod flows;
mod gaps;
mod hardened;
mod late;
mod layers;
mod living;
mod load;
mod looks;
mod moving;
mod namespaces;
mod outside;
mod overlaid;
mod pods;
mod rebooting;
mod recognising;
mod reloading;
mod running;
mod starting;
mod storms;
mod stuck;
mod support;
mod swaps;
mod unclear;
mod upgrades;
