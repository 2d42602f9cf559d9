//! Calls to models, and their answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollgate_policy::fuzzing::meter(data));
