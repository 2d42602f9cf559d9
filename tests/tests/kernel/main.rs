//! The kernel half on the loaded kernel: each promise as an effect on real sockets, and the effect's
//! absence once the fence is lifted. Needs root; fails without it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub
)]

mod account;
mod adopt;
mod before;
mod birth;
mod detached;
mod established;
mod exit;
mod layers;
mod listen;
mod looks;
mod lsm;
mod names;
mod namespaces;
mod origin;
mod overlaid;
mod owner;
mod quota;
mod recognise;
mod refuse;
mod routes;
mod rules;
mod sockets;
mod steer;
mod stress;
mod support;
mod unix;
mod waiting;
mod ways;
