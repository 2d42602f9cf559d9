//! Names that mean more than they say, and authorities that say one thing only.

/// Whether a name is `Transfer-Encoding` or `Content-Length` but for its punctuation: `Transfer--Encoding`,
/// `Content.Length`. Someone on the way may read it as that.
pub(super) fn is_framing_alias(name: &[u8]) -> bool {
    let letters = |wanted: &[u8]| {
        let mut bytes = name.iter().filter(|byte| byte.is_ascii_alphanumeric());
        wanted.iter().all(|letter| {
            bytes
                .next()
                .is_some_and(|byte| byte.eq_ignore_ascii_case(letter))
        }) && bytes.next().is_none()
    };
    (name.len() > 12 && letters(b"contentlength") && !name.eq_ignore_ascii_case(b"content-length"))
        || (name.len() > 15
            && letters(b"transferencoding")
            && !name.eq_ignore_ascii_case(b"transfer-encoding"))
}

/// `name`, `192.0.2.1` or `[2001:db8::1]`, and `:port` without leading zeros. What the characters mean is for the
/// policy's canonical form to say.
pub(super) fn is_plain_authority(value: &[u8]) -> bool {
    let (host_ok, rest) = match value.strip_prefix(b"[") {
        Some(literal) => {
            let end = memchr::memchr(b']', literal).unwrap_or(literal.len());
            let (address, rest) = literal.split_at(end);
            let plain = address
                .iter()
                .all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
            (
                plain && !address.is_empty() && !rest.is_empty(),
                rest.get(1..).unwrap_or_default(),
            )
        }
        None => {
            let end = memchr::memchr(b':', value).unwrap_or(value.len());
            let (name, rest) = value.split_at(end);
            let plain = name
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
            (plain && !name.is_empty(), rest)
        }
    };
    let port_ok = match rest {
        [] => true,
        [b':', b'1'..=b'9', more @ ..] => {
            more.iter().all(u8::is_ascii_digit)
                && std::str::from_utf8(rest.get(1..).unwrap_or_default())
                    .is_ok_and(|port| port.parse::<u16>().is_ok())
        }
        _ => false,
    };
    host_ok && port_ok
}
