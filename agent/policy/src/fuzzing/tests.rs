//! The entries over the committed seeds and over bytes by chance, so that they hold without a fuzzer too.
#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use proptest::prelude::*;
use std::path::Path;

/// Runs an entry over every seed of a target.
fn seeds(target: &str, entry: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
    let mut run = 0;
    for file in std::fs::read_dir(folder.join(target)).unwrap() {
        let path = file.unwrap().path();
        let shown = path.display().to_string();
        let data = std::fs::read(path).unwrap();
        if std::panic::catch_unwind(|| entry(&data)).is_err() {
            panic!("{shown} breaks {target}");
        }
        run += 1;
    }
    assert!(run > 0, "{target} has no seeds");
}

#[test]
fn documents_of_the_seeds() {
    seeds("document", document);
}

#[test]
fn made_documents_of_the_seeds() {
    seeds("compile", compile);
}

#[test]
fn spellings_of_the_seeds() {
    seeds("canonical", canonical);
}

#[test]
fn requests_of_the_seeds() {
    seeds("decide", decide);
}

#[test]
fn calls_to_models_of_the_seeds() {
    seeds("meter", meter);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_024, ..ProptestConfig::default() })]

    #[test]
    fn made_documents(data in prop::collection::vec(any::<u8>(), 0..256)) {
        compile(&data);
    }

    #[test]
    fn spellings(host in "[a-zA-Z0-9.:%é-]{0,12}", target in "/([a-c/.&=?+-]|%[0-9a-fA-F]{2}){0,24}") {
        canonical(format!("{host}\n{target}").as_bytes());
    }
}

/// The generator would be of no use if its documents had nothing but faults.
#[test]
fn many_made_documents_compile() {
    let mut good = 0;
    let mut state = 1_u64;
    for _ in 0..512 {
        let byte = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            u8::try_from(state >> 56).unwrap()
        };
        let data: Vec<u8> = (0..256).map(byte).collect();
        let [one, two] = draft::documents(&data);
        good += usize::from(check(&[("one.yaml", &one), ("two.yaml", &two)]).is_some());
    }
    assert!(good > 5, "{good} of 512 compile");
}
