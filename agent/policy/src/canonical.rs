//! The one form of host, path and query that is decided on and sent.
use std::borrow::Cow;

/// A host in canonical form: lower-case A-labels without a trailing dot, or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

impl Host {
    /// Parses a reg-name or IP literal as it appears in SNI, `Host` or `:authority` (without port).
    ///
    /// # Errors
    /// Anything that is not exactly one unambiguous host.
    pub fn parse(raw: &str) -> Result<Self, Ambiguity> {
        let _ = raw;
        todo!()
    }

    /// Parses `host[:port]` as in a `Host` header; the port is `None` where absent.
    ///
    /// # Errors
    /// As [`Host::parse`], and userinfo, empty or non-canonical ports.
    pub fn parse_authority(raw: &str) -> Result<(Self, Option<u16>), Ambiguity> {
        let _ = raw;
        todo!()
    }

    /// The canonical text; IPv6 in brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address, if this host is an IP literal.
    pub fn ip(&self) -> Option<std::net::IpAddr> {
        todo!()
    }
}

/// A request target in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target<'a> {
    /// Path, starting with `/`.
    pub path: Cow<'a, str>,
    /// Query as it is sent, without `?`; `None` where there was no `?`.
    pub query: Option<Cow<'a, str>>,
}

impl<'a> Target<'a> {
    /// Parses an origin-form target.
    ///
    /// # Errors
    /// Any other form, and anything two servers could read differently.
    pub fn parse(raw: &'a str) -> Result<Self, Ambiguity> {
        let _ = raw;
        todo!()
    }
}

/// Why a host or target has no single meaning. The answer to the client is 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Ambiguity {
    /// Stable code, e.g. `encoded_slash`.
    pub code: &'static str,
    /// What is wrong, for a person; never holds more than 80 bytes of the input.
    pub what: String,
}
impl<'a> Target<'a> {
    pub fn canonical(path: &'a str, query: Option<&'a str>) -> Self { let _ = (path, query); todo!() }
    pub fn borrowed(&self) -> Target<'_> { todo!() }
    pub fn into_owned(self) -> Target<'static> { todo!() }
    pub fn pairs(&self) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> { std::iter::empty() }
}
