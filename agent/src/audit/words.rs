//! A record in words: what was asked, safe for line-based logs, and whether two were refused alike.
use super::line::is_active;
use super::record::{Coverage, Record, RequestRecord, Verdict};
use std::fmt::Write as _;
use std::hash::{Hash as _, Hasher};

impl Record {
    /// Host and route, or path where no route matched; the protocol and the address where only a connection was seen.
    pub(crate) fn place(&self) -> Option<String> {
        let request = self.request.as_ref()?;
        Some(match self.coverage {
            Coverage::Kernel | Coverage::Sni | Coverage::Tcp => attempt(request),
            Coverage::Request | Coverage::Connection | Coverage::Dns => place(request),
        })
    }

    /// Hashes what two refusals have in common that differ in nothing but when, and in what a route leaves open.
    pub(crate) fn hash_alike(&self, hasher: &mut impl Hasher) {
        (self.workload.as_deref(), self.verdict as u8).hash(hasher);
        (self.coverage as u8, self.response.map(|r| r.status)).hash(hasher);
        let reason = self.reason.as_ref();
        reason.map(|r| (&r.code, &r.detail)).hash(hasher);
        let Some(request) = &self.request else {
            return;
        };
        (
            &request.method,
            &request.scheme,
            &request.host,
            request.port,
        )
            .hash(hasher);
        match &request.route {
            Some(route) => route.hash(hasher),
            None => request.path.hash(hasher),
        }
    }
}

impl Verdict {
    /// Whether it did not pass because the policy said no.
    pub(crate) fn is_refusal(self) -> bool {
        matches!(self, Self::Deny | Self::Limit)
    }
}

/// `text` on one line of at most `limit` bytes, in which no character can move a cursor or reorder text.
pub(super) fn inert(text: &str, limit: usize) -> String {
    let mut safe = String::with_capacity(text.len().min(limit));
    for character in text.chars() {
        let start = safe.len();
        if character.is_control() || is_active(character) {
            // Writing to a String does not fail.
            let _ = write!(safe, "{}", character.escape_default());
        } else {
            safe.push(character);
        }
        if safe.len() > limit.saturating_sub('…'.len_utf8()) {
            safe.truncate(start);
            safe.push('…');
            break;
        }
    }
    safe
}

/// What was seen as a connection only, in words.
fn attempt(request: &RequestRecord) -> String {
    let protocol = match request.scheme.as_str() {
        "tcp" => "TCP",
        "udp" => "UDP",
        "icmp" => "ICMP",
        "raw" => "raw socket",
        "132" => "SCTP",
        "136" => "UDP-Lite",
        "262" => "MPTCP",
        number if number.bytes().all(|b| b.is_ascii_digit()) => {
            return with_address(&format!("IP protocol {number}"), request);
        }
        other => other,
    };
    with_address(protocol, request)
}

fn with_address(protocol: &str, request: &RequestRecord) -> String {
    match (request.host.as_str(), request.port) {
        ("", _) => format!("{protocol}, not yet to anywhere"),
        (host, 0) => format!("{protocol} to {host}"),
        (host, port) => format!("{protocol} to {}:{port}", bracketed(host)),
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

/// Host and route, or path where no route matched.
fn place(request: &RequestRecord) -> String {
    let port = match (request.scheme.as_str(), request.port) {
        ("https", 443) | ("http", 80) | ("dns", 53) | (_, 0) => String::new(),
        (_, port) => format!(":{port}"),
    };
    let host = bracketed(&request.host);
    let route = request
        .route
        .as_deref()
        .map(|r| r.split_once(' ').map_or(r, |(_, path)| path));
    let scheme = match request.scheme.as_str() {
        "https" => String::new(),
        other => format!("{other}://"),
    };
    format!("{scheme}{host}{port}{}", route.unwrap_or(&request.path))
}
