//! Tollgate's build, test and demo verbs: `cargo xtask --help`.

fn main() {}
