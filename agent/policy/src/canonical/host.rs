//! Hosts and authorities.
use super::Ambiguity;
use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A name in DNS, without the trailing dot (RFC 1035, section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// A host in canonical form: lower-case A-labels without a trailing dot, or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

impl Host {
    /// Parses a reg-name or IP literal as it appears in SNI, `Host` or `:authority` (without port).
    ///
    /// # Errors
    /// Anything that is not exactly one unambiguous host.
    pub fn parse(raw: &str) -> Result<Self, Ambiguity> {
        if raw.is_empty() {
            return Err(Ambiguity::new("empty_host", "the host is empty"));
        }
        if let Some(literal) = raw.strip_prefix('[') {
            return parse_ipv6(literal.strip_suffix(']').unwrap_or("")).map(Self);
        }
        if raw.contains('@') {
            return Err(Ambiguity::new(
                "userinfo",
                "the host carries user information",
            ));
        }
        if raw.is_ascii() {
            parse_ascii(raw)
        } else {
            parse_unicode(raw)
        }
        .map(Self)
    }

    /// Parses `host[:port]` as in a `Host` header; the port is `None` where absent.
    ///
    /// # Errors
    /// As [`Host::parse`], and userinfo, empty or non-canonical ports.
    pub fn parse_authority(raw: &str) -> Result<(Self, Option<u16>), Ambiguity> {
        // The colons inside an IPv6 literal are no port's.
        let literal_end = if raw.starts_with('[') {
            raw.find(']').map_or(0, |end| end + 1)
        } else {
            0
        };
        let (literal, tail) = raw.split_at_checked(literal_end).unwrap_or(("", raw));
        let Some((name_tail, port)) = tail.split_once(':') else {
            return Ok((Self::parse(raw)?, None));
        };
        if !literal.is_empty() && !name_tail.is_empty() {
            return Err(bad_character());
        }
        let host = if literal.is_empty() {
            name_tail
        } else {
            literal
        };
        let host = Self::parse(host)?;
        Ok((host, Some(parse_port(port)?)))
    }

    /// The canonical text; IPv6 in brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, if this host is an IP literal.
    pub fn ip(&self) -> Option<IpAddr> {
        match self.0.strip_prefix('[') {
            Some(literal) => literal
                .strip_suffix(']')?
                .parse::<Ipv6Addr>()
                .ok()
                .map(IpAddr::V6),
            None => self.0.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        }
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn bad_character() -> Ambiguity {
    Ambiguity::new(
        "host_character",
        "the host has a character that no host name has",
    )
}

fn parse_port(text: &str) -> Result<u16, Ambiguity> {
    let canonical = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse::<u16>()
        .ok()
        .filter(|_| canonical)
        .ok_or_else(|| Ambiguity::new("port", "the port is not a decimal number from 1 to 65535"))
}

fn parse_ipv6(literal: &str) -> Result<String, Ambiguity> {
    if literal.contains('%') {
        return Err(Ambiguity::new("zone_id", "the IPv6 address has a zone"));
    }
    let address: Ipv6Addr = literal
        .parse()
        .map_err(|_| Ambiguity::new("ipv6", "what stands in brackets is not an IPv6 address"))?;
    if address.to_ipv4_mapped().is_some() {
        return Err(Ambiguity::new(
            "mapped_address",
            "an IPv4 address is written as an IPv6 address",
        ));
    }
    Ok(format!("[{address}]"))
}

fn parse_ascii(raw: &str) -> Result<String, Ambiguity> {
    // Longer than any name: not worth lower-casing.
    if raw.len() > MAX_NAME + 1 {
        return Err(Ambiguity::new(
            "host_length",
            "the host is longer than 253 characters",
        ));
    }
    let name = raw.strip_suffix('.').unwrap_or(raw);
    let lower = name.to_ascii_lowercase();
    check_labels(&lower)?;
    if ends_in_number(&lower) {
        let canonical = lower.parse::<Ipv4Addr>().is_ok() && name.len() == raw.len();
        return if canonical { Ok(lower) } else { Err(numeric()) };
    }
    if lower.split('.').any(|label| label.starts_with("xn--")) {
        check_a_labels(&lower)?;
    }
    Ok(lower)
}

fn numeric() -> Ambiguity {
    Ambiguity::new(
        "numeric_host",
        "the host is a number that is not a dotted-quad IPv4 address",
    )
}

/// Letters, digits and inner hyphens; no label empty or too long.
fn check_labels(name: &str) -> Result<(), Ambiguity> {
    if name.len() > MAX_NAME {
        return Err(Ambiguity::new(
            "host_length",
            "the host is longer than 253 characters",
        ));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(Ambiguity::new("empty_label", "the host has an empty label"));
        }
        if label.len() > MAX_LABEL {
            return Err(Ambiguity::new(
                "host_length",
                "a label of the host is longer than 63",
            ));
        }
        if !label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return Err(bad_character());
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(Ambiguity::new(
                "host_hyphen",
                "a label begins or ends with a hyphen",
            ));
        }
    }
    Ok(())
}

/// Whether some reader takes this host for an IPv4 address (WHATWG URL, "ends in a number").
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hexadecimal = last.strip_prefix("0x");
    last.bytes().all(|byte| byte.is_ascii_digit())
        || hexadecimal.is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// An A-label must be what its own Unicode form encodes to, not decode to plain ASCII, and not
/// decode to what looks like an A-label again.
fn check_a_labels(lower: &str) -> Result<(), Ambiguity> {
    let mut a_labels = lower.split('.').filter(|label| label.starts_with("xn--"));
    let whole = to_ascii(lower, Hyphens::CheckFirstLast).is_some_and(|ascii| ascii == lower);
    if whole && a_labels.all(|label| to_ascii(label, Hyphens::Check).is_some()) {
        return Ok(());
    }
    Err(Ambiguity::new(
        "a_label",
        "an `xn--` label of the host is not valid",
    ))
}

fn to_ascii(name: &str, hyphens: Hyphens) -> Option<String> {
    Uts46::new()
        .to_ascii(
            name.as_bytes(),
            AsciiDenyList::STD3,
            hyphens,
            DnsLength::Verify,
        )
        .ok()
        .map(Into::into)
}

/// A name with U-labels: taken only if it is already what UTS 46 maps it to, but for ASCII case.
fn parse_unicode(raw: &str) -> Result<String, Ambiguity> {
    let mapped = || {
        Ambiguity::new(
            "host_mapping",
            "the host's Unicode form is not the canonical one",
        )
    };
    // Each character takes at least one of the name's 253, at most 4 bytes.
    if raw.len() > MAX_NAME * 4 {
        return Err(Ambiguity::new(
            "host_length",
            "the host is longer than 253 characters",
        ));
    }
    // IDNA 2003 and 2008 disagree about these: two clients would go to two hosts.
    if raw.contains(['ß', 'ẞ', 'ς', '\u{200c}', '\u{200d}']) {
        return Err(mapped());
    }
    let lower = raw.to_ascii_lowercase();
    let lower = lower.strip_suffix('.').unwrap_or(&lower);
    let ascii = to_ascii(lower, Hyphens::CheckFirstLast).ok_or_else(mapped)?;
    let (unicode, valid) = Uts46::new().to_unicode(
        ascii.as_bytes(),
        AsciiDenyList::STD3,
        Hyphens::CheckFirstLast,
    );
    if valid.is_err() || unicode != lower {
        return Err(mapped());
    }
    parse_ascii(&ascii)
}
