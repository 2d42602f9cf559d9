//! Requests against a policy with every construct.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollgate_policy::fuzzing::decide(data));
