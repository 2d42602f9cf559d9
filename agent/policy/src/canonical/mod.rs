//! The one form of host, path and query that is decided on and sent.
//!
//! What has exactly one meaning is brought into canonical form; the rest is an [`Ambiguity`], answered
//! with 400 in every mode. The choices, where servers differ:
//!
//! | part | canonical | refused |
//! | --- | --- | --- |
//! | host | lower case, A-labels, one trailing dot removed; IPv6 as RFC 5952 in brackets | underscores, userinfo, `%`, zone ids, numeric hosts that are not dotted-quad IPv4, IPv4-mapped IPv6, Unicode that UTS 46 would map to something else |
//! | port | decimal 1 to 65535 | empty, leading zeros |
//! | path | unreserved characters decoded once, other escapes in upper case, what RFC 3986 does not allow raw escaped, `//` merged, dot segments resolved | encoded `/` and `\`, `\`, `;`, controls, `%25` before two hex digits, invalid UTF-8, `..` above the root or after `//`, look-alikes of `.` `/` `\` `%` `;` |
//! | query | as the path's characters; `+` becomes `%20`; empty pieces dropped; a bare `?` dropped | `;`, `\`, fragments, empty names, controls (in values TAB, LF, CR may stand encoded), doubly encoded names, more than 1000 parameters |

mod host;
mod percent;
mod target;
#[cfg(test)]
mod tests;

pub use host::Host;
pub use percent::decode;
pub use target::{MAX_PARAMETERS, MAX_TARGET, Pair, Pairs, Target};

/// Why a host or target has no single meaning. The answer to the client is 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Ambiguity {
    /// Stable code, e.g. `encoded_slash`.
    pub code: &'static str,
    /// What is wrong, for a person; never holds more than 80 bytes of the input.
    pub what: String,
}

impl Ambiguity {
    fn new(code: &'static str, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
        }
    }
}
