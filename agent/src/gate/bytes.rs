//! Which bytes may stand where: a look-up is a few times faster than the comparisons it stands for.

/// `tchar` (RFC 9110 §5.6.2).
pub(super) const TOKEN: u8 = 1;
/// Field values: visible ASCII, blanks and tabs; no obs-text (RFC 9110 §5.5).
pub(super) const VALUE: u8 = 2;
/// Targets: visible ASCII but `#`, which has no place in one, and four that no URI has bare (RFC 3986 §2) and that
/// hyper does not take in all of them.
pub(super) const TARGET: u8 = 4;

#[allow(clippy::indexing_slicing)] // Evaluated by the compiler: out of bounds is no program.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        let character = byte as u8;
        if character.is_ascii_alphanumeric() {
            classes[byte] |= TOKEN;
        }
        if character.is_ascii_graphic() {
            classes[byte] |= VALUE;
            classes[byte] |= match character {
                b'#' | b'<' | b'>' | b'`' | b'"' => 0,
                _ => TARGET,
            };
        }
        classes[byte] |= match character {
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' => TOKEN,
            b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~' => TOKEN,
            b'\t' | b' ' => VALUE,
            _ => 0,
        };
        byte += 1;
    }
    classes
};

/// Whether `byte` is of a class.
pub(super) fn is(class: u8, byte: u8) -> bool {
    CLASSES
        .get(usize::from(byte))
        .is_some_and(|classes| classes & class != 0)
}

/// Where the first byte is that is not of a class.
pub(super) fn misfit(class: u8, bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| !is(class, *byte))
}

/// Whether all are of a class.
pub(super) fn all(class: u8, bytes: &[u8]) -> bool {
    misfit(class, bytes).is_none()
}
