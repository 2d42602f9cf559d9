//! Tools for people who write policies: cases that must hold, what a change does, who can make a call.
pub mod call;
pub mod cases;
pub mod coverage;
pub mod diff;
mod read;
