//! Any bytes as a policy document.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollgate_policy::fuzzing::document(data));
