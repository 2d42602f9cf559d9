//! Names without their case, as readers compare them that do not mind it: Go takes `Role` for a field `role`, and many
//! servers take `/Payroll` for `/payroll`.
use smallvec::SmallVec;
use std::borrow::Cow;

/// The text without its case; two texts are one to such a reader if these are the same. Borrowed where it has none.
pub(crate) fn fold(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(text.to_ascii_lowercase()),
            false => Cow::Borrowed(text),
        };
    }
    // Through upper case: `ſ` is another `s`, as `K` (Kelvin) is another `k`.
    let upper = text.chars().flat_map(char::to_uppercase);
    Cow::Owned(upper.flat_map(char::to_lowercase).collect())
}

/// Gives the text without its case to `then`. A short ASCII text is not allocated.
pub(crate) fn folded<T>(text: &str, then: impl FnOnce(&str) -> T) -> T {
    if text.len() <= 128 && text.is_ascii() {
        let mut lower: SmallVec<[u8; 128]> = SmallVec::from_slice(text.as_bytes());
        lower.make_ascii_lowercase();
        if let Ok(lower) = std::str::from_utf8(&lower) {
            return then(lower);
        }
    }
    then(&fold(text))
}

/// Whether two texts differ in case at most.
pub(crate) fn same(one: &str, other: &str) -> bool {
    match one.is_ascii() && other.is_ascii() {
        true => one.eq_ignore_ascii_case(other),
        false => fold(one) == fold(other),
    }
}

#[cfg(test)]
mod tests {
    use super::{fold, folded, same};

    #[test]
    fn case_makes_no_difference() {
        for (one, other) in [
            ("Role", "rOLE"),
            ("ſ", "S"),
            ("\u{212a}ey", "kEY"),
            ("Öl", "öL"),
            ("Σ", "ς"),
            ("", ""),
        ] {
            assert!(same(one, other), "{one} {other}");
            assert_eq!(fold(one), fold(other));
            assert_eq!(folded(one, str::to_owned), fold(one));
        }
        assert!(!same("role", "roles") && !same("o", "ö"));
        let long = "A".repeat(500);
        assert_eq!(folded(&long, str::to_owned), "a".repeat(500));
    }
}
