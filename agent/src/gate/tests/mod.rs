#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
mod corpora;
mod hyper;
mod rules;
mod yaml;
