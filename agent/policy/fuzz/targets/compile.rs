//! Policy documents made from bytes: nearly all of them are well formed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tollgate_policy::fuzzing::compile(data));
