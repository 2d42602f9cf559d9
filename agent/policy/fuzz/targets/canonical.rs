//! Hosts, authorities and targets.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollgate_policy::fuzzing::canonical(data));
