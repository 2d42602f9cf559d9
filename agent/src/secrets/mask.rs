//! Echoes of a secret: what an upstream sends back of a credential that was put in is overwritten, byte for byte, so that
//! lengths, framing and all else stay true.
//!
//! A secret is known as it is, and as servers write it: escaped for a URL or for JSON, in base64 at any offset, and, where it
//! is itself a name and password in base64 (RFC 7617), in clear. Shorter than [`SHORTEST`] it could be anybody's word.
use aho_corasick::{AhoCorasick, MatchKind};
use std::ops::Range;
use zeroize::Zeroizing;

/// Bytes of what is looked for at least.
const SHORTEST: usize = 8;
/// A part in base64 at least: of less, chance finds too much.
const SHORTEST_BASE64: usize = 12;
/// What stands in its place.
const STAR: u8 = b'*';

/// Finds what a credential is made of. It says where, and never what.
pub(crate) struct Masker {
    forms: Vec<Zeroizing<Vec<u8>>>,
    finder: Option<AhoCorasick>,
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Masker(hidden)")
    }
}

impl Masker {
    /// Finds any of these.
    pub(super) fn new(secrets: &[&[u8]]) -> Self {
        let forms = forms(secrets);
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(forms.iter().map(|form| form.as_slice()))
            .ok()
            .filter(|_| !forms.is_empty());
        Self { forms, finder }
    }

    #[cfg(test)]
    pub(crate) fn for_test(secret: &[u8]) -> Self {
        Self::new(&[secret])
    }

    /// The bytes with every echo overwritten; `None` where there is none.
    pub(crate) fn mask(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let finder = self.finder.as_ref()?;
        let mut found = finder.find_iter(bytes).peekable();
        found.peek()?;
        let mut masked = bytes.to_vec();
        for range in found.map(|echo| Range::from(echo.span())) {
            if let Some(echo) = masked.get_mut(range) {
                echo.fill(STAR);
            }
        }
        Some(masked)
    }

    /// How many of the last bytes may be the beginning of an echo.
    pub(crate) fn may_begin(&self, bytes: &[u8]) -> usize {
        let begins = |form: &Zeroizing<Vec<u8>>| {
            let most = form.len().saturating_sub(1).min(bytes.len());
            let begins = |length: &usize| {
                let end = bytes.get(bytes.len() - length..);
                end.is_some_and(|end| form.starts_with(end))
            };
            (1..=most).rev().find(begins).unwrap_or(0)
        };
        self.forms.iter().map(begins).max().unwrap_or(0)
    }
}

fn forms(secrets: &[&[u8]]) -> Vec<Zeroizing<Vec<u8>>> {
    let mut forms: Vec<Zeroizing<Vec<u8>>> = Vec::new();
    for secret in secrets {
        written(secret, &mut forms);
        // `user:password`, and the password by itself.
        if let Some(clear) = decoded(secret) {
            written(&clear, &mut forms);
            if let Some(colon) = clear.iter().position(|byte| *byte == b':') {
                written(clear.get(colon + 1..).unwrap_or_default(), &mut forms);
            }
        }
    }
    forms.sort_by(|one, other| one.as_slice().cmp(other.as_slice()));
    forms.dedup();
    forms
}

/// A value as it is, and as servers write it.
fn written(value: &[u8], forms: &mut Vec<Zeroizing<Vec<u8>>>) {
    if value.len() < SHORTEST {
        return;
    }
    let mut add = |form: Vec<u8>| forms.push(Zeroizing::new(form));
    add(value.to_vec());
    for digits in [b"0123456789ABCDEF", b"0123456789abcdef"] {
        add(percent(value, digits));
    }
    add(json(value, false));
    add(json(value, true));
    for alphabet in [STANDARD, URL_SAFE] {
        for before in 0..3 {
            let form = base64(value, before, alphabet);
            if form.len() >= SHORTEST_BASE64 {
                add(form);
            }
        }
    }
}

fn percent(value: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    let digit = |nibble: u8| digits.get(usize::from(nibble)).copied().unwrap_or_default();
    let mut escaped = Vec::with_capacity(value.len() * 3);
    for &byte in value {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(byte);
            }
            _ => escaped.extend([b'%', digit(byte >> 4), digit(byte & 15)]),
        }
    }
    escaped
}

/// As it stands in a JSON string; some writers escape `/` too.
fn json(value: &[u8], slashes: bool) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(value.len() + 8);
    for &byte in value {
        if matches!(byte, b'"' | b'\\') || (slashes && byte == b'/') {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    escaped
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The digits that a value surely has in the base64 of a text in which `before` bytes of a group stand before it.
fn base64(value: &[u8], before: usize, alphabet: &[u8; 64]) -> Vec<u8> {
    let bit = |at: usize| {
        let byte = value.get(at / 8).copied().unwrap_or_default();
        usize::from(byte >> (7 - at % 8) & 1)
    };
    // The first digit that begins within the value; the bits before it belong to one with what stands before.
    let skip = (6 - before * 8 % 6) % 6;
    let whole = (value.len() * 8).saturating_sub(skip) / 6;
    let digit = |number: usize| {
        let from = skip + number * 6;
        let digit = (from..from + 6).fold(0, |digit, at| digit << 1 | bit(at));
        alphabet.get(digit).copied().unwrap_or_default()
    };
    (0..whole).map(digit).collect()
}

/// What is meant by base64 that holds text.
fn decoded(value: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let digits = value
        .strip_suffix(b"==")
        .or(value.strip_suffix(b"="))
        .unwrap_or(value);
    let mut clear = Zeroizing::new(Vec::with_capacity(value.len()));
    let (mut bits, mut held) = (0_u32, 0_u32);
    for digit in digits {
        let place = STANDARD.iter().position(|known| known == digit);
        let place = place.or_else(|| URL_SAFE.iter().position(|known| known == digit))?;
        bits = bits << 6 | u32::try_from(place).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            clear.push(u8::try_from(bits >> held & 0xff).ok()?);
        }
        bits &= (1 << held) - 1;
    }
    let text = clear.contains(&b':') && clear.iter().all(|byte| (0x20..0x7f).contains(byte));
    text.then_some(clear)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"s3cr/t+k\"y-0123456789";

    fn masked(masker: &Masker, text: &str) -> String {
        let bytes = masker.mask(text.as_bytes());
        bytes.map_or(text.to_owned(), |bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn an_echo_is_known_however_it_is_written() {
        let masker = Masker::new(&[SECRET]);
        for written in [
            "s3cr/t+k\"y-0123456789",
            "s3cr%2Ft%2Bk%22y-0123456789",
            "s3cr%2ft%2bk%22y-0123456789",
            "s3cr/t+k\\\"y-0123456789",
            "s3cr\\/t+k\\\"y-0123456789",
        ] {
            let told = masked(&masker, &format!("key={written}; and more"));
            assert_eq!(told, format!("key={}; and more", "*".repeat(written.len())));
        }
        assert_eq!(
            masked(&masker, "s3cr/t+k\"y-012345678"),
            "s3cr/t+k\"y-012345678"
        );
    }

    #[test]
    fn base64_is_known_at_any_offset() {
        // From an encoder of its own, so that both would have to be wrong.
        fn encode(bytes: &[u8]) -> String {
            let mut text = String::new();
            for group in bytes.chunks(3) {
                let mut word = [0; 4];
                word[1..=group.len()].copy_from_slice(group);
                let word = u32::from_be_bytes(word);
                for place in 0..=group.len() {
                    text.push(char::from(
                        STANDARD[(word >> (18 - 6 * place) & 63) as usize],
                    ));
                }
            }
            text
        }
        let masker = Masker::new(&[SECRET]);
        for before in ["", "x", "xy", "xyz", "Bearer ", "user:"] {
            for after in ["", "!", "!!", " and more"] {
                let whole = [before.as_bytes(), SECRET, after.as_bytes()].concat();
                let encoded = encode(&whole);
                let told = masked(&masker, &encoded);
                let stars = told.bytes().filter(|byte| *byte == STAR).count();
                // All but a digit at either end, which has bits of others.
                assert!(
                    stars + 2 >= SECRET.len() * 4 / 3,
                    "{before}{after}: {encoded} {told}"
                );
            }
        }
    }

    #[test]
    fn the_password_of_a_basic_credential_is_known() {
        // alice:correct-horse-battery
        let masker = Masker::new(&[b"YWxpY2U6Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5"]);
        assert_eq!(
            masked(&masker, "password correct-horse-battery!"),
            format!("password {}!", "*".repeat(21))
        );
        assert_eq!(masked(&masker, "alice"), "alice");
    }

    #[test]
    fn what_may_go_on_is_told() {
        let masker = Masker::new(&[SECRET]);
        assert_eq!(masker.may_begin(b"nothing"), 0);
        assert_eq!(masker.may_begin(b"key=s3cr"), 4);
        assert_eq!(
            masker.may_begin(b"key=s3cr/t+k\"y-012345678"),
            SECRET.len() - 1
        );
        assert_eq!(masker.may_begin(b""), 0);
        let short = Masker::new(&[b"short"]);
        assert_eq!((short.mask(b"short"), short.may_begin(b"sho")), (None, 0));
    }
}
