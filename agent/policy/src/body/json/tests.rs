#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
use super::*;
use crate::corpora::corpus;
use proptest::prelude::*;

fn read(bytes: &[u8]) -> Read<()> {
    let mut reader = Reader::new(bytes)?;
    reader.skip()?;
    reader.end().map(drop)
}

#[test]
fn what_readers_differ_on_is_refused() {
    let cases: [(&[u8], JsonError); 12] = [
        (b"\xef\xbb\xbf{}", JsonError::ByteOrderMark),
        (b"\"\xff\"", JsonError::NotUtf8),
        (br#"{"a":1,"a":2}"#, JsonError::DuplicateKey("`a`".into())),
        (
            br#"{"a":1,"\u0061":2}"#,
            JsonError::DuplicateKey("`a`".into()),
        ),
        (
            br#"[{"x":{"a":1,"a":2}}]"#,
            JsonError::DuplicateKey("`a`".into()),
        ),
        (b"1e999", JsonError::NumberTooLarge),
        (br#""\ud800""#, JsonError::Surrogate),
        (br#""\ud800\u0041""#, JsonError::Surrogate),
        (br#""\udc00""#, JsonError::Surrogate),
        (b"{} {}", JsonError::Trailing),
        (b"{}\n{}", JsonError::Trailing),
        (b"NaN", JsonError::Syntax(0)),
    ];
    for (bytes, error) in cases {
        assert_eq!(
            read(bytes),
            Err(error),
            "{}",
            String::from_utf8_lossy(bytes)
        );
    }
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert_eq!(read(nested(MAX_DEPTH).as_bytes()), Ok(()));
    assert_eq!(
        read(nested(MAX_DEPTH + 1).as_bytes()),
        Err(JsonError::Depth)
    );
    assert_eq!(
        read("[".repeat(1_000_000).as_bytes()),
        Err(JsonError::Depth)
    );
    let many: Vec<String> = (0..5_000)
        .map(|n| format!("\"k{}\":0", n % 4_999))
        .collect();
    let many = format!("{{{}}}", many.join(","));
    assert_eq!(
        read(many.as_bytes()),
        Err(JsonError::DuplicateKey("`k0`".into()))
    );
}

#[test]
fn json_test_suite() {
    let Some(folder) = corpus("JSONTestSuite/test_parsing") else {
        return;
    };
    // Valid by the grammar, and refused because two readers take two values from it.
    let refused_by_policy = [
        "y_object_duplicated_key.json",
        "y_object_duplicated_key_and_value.json",
    ];
    let (mut good, mut bad) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let result = read(&std::fs::read(&path).unwrap());
        match name.get(..2) {
            Some("y_") if refused_by_policy.contains(&name.as_str()) => {
                assert!(matches!(result, Err(JsonError::DuplicateKey(_))), "{name}");
                good += 1;
            }
            Some("y_") => {
                assert_eq!(result, Ok(()), "{name}");
                good += 1;
            }
            Some("n_") => {
                assert!(result.is_err(), "{name}");
                bad += 1;
            }
            // What is taken though either is right must be what another strict reader takes.
            _ => {
                let text = std::fs::read(&path).unwrap();
                assert!(
                    result.is_err() || serde_json::from_slice::<serde_json::Value>(&text).is_ok(),
                    "{name}"
                );
            }
        }
    }
    assert!(good >= 90 && bad >= 180, "{good} y_, {bad} n_");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_048, ..ProptestConfig::default() })]

    /// What is taken is what another reader takes, and strings come out the same.
    #[test]
    fn agrees_with_serde_json(text in "[\\[\\]{},:\"\\\\a-fu0-9eE+. \n-]{0,24}|\"(\\\\u[dD][89cC]00|\\\\u00[0-9a-f]{2}|[a-z]|\\\\[nrtbf/\"\\\\]){0,6}\"") {
        let ours = read(text.as_bytes()).is_ok();
        let theirs = serde_json::from_str::<serde_json::Value>(&text);
        prop_assert!(!ours || theirs.is_ok(), "{text}");
        if let (Ok(serde_json::Value::String(theirs)), true) = (theirs, ours) {
            let mut reader = Reader::new(text.as_bytes()).unwrap();
            prop_assert_eq!(reader.string().unwrap(), theirs);
        }
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in any::<Vec<u8>>()) {
        let _ = read(&bytes);
    }
}
