//! The agent's own way out: resolve a name, refuse addresses that are not public, dial, verify, keep connections.
mod address;
mod dial;
pub(crate) mod fetch;
mod pool;
mod resolve;

pub(crate) use dial::{Destination, Sender, Via, reach};
pub(crate) use pool::{Key, Lease, Pool};
pub(crate) use resolve::{Family, Named, Resolver};

use std::net::IpAddr;
use std::time::Duration;

/// Why an upstream could not be reached. The client gets 502 or 504, never 403: this is trouble, not a refusal,
/// except for [`Error::Forbidden`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No name servers, or none answered.
    #[error("the name {host} could not be resolved: {what}")]
    Dns { host: String, what: String },
    /// Every address of the name is one that needs an explicit rule.
    #[error("{host} resolves to {address}, {class}")]
    Forbidden {
        host: String,
        address: IpAddr,
        class: &'static str,
    },
    /// No address accepted a connection.
    #[error("no connection to {host} ({address}): {what}")]
    Connect {
        host: String,
        address: String,
        what: String,
    },
    /// TLS failed: the upstream's certificate or protocol.
    #[error("TLS with {host} ({address}) failed: {what}")]
    Tls {
        host: String,
        address: String,
        what: String,
    },
    /// The connection, or the request's stream on it, was ended by the upstream before there was an answer.
    #[error("{host} broke off before it answered: {what}")]
    Reset { host: String, what: String },
    /// The HTTP handshake or exchange failed.
    #[error("{host}: {what}")]
    Http { host: String, what: String },
    /// Took longer than allowed.
    #[error("{host} did not {what} within {after:?}")]
    Timeout {
        host: String,
        what: &'static str,
        after: Duration,
    },
}

impl Error {
    /// Stable code for records.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Dns { .. } => "upstream_dns",
            Self::Forbidden { .. } => "upstream_address",
            Self::Connect { .. } => "upstream_connect",
            Self::Tls { .. } => "upstream_tls",
            Self::Reset { .. } => "upstream_reset",
            Self::Http { .. } => "upstream_http",
            Self::Timeout { .. } => "upstream_timeout",
        }
    }

    /// What to do about it.
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Dns { .. } => {
                "check the name, and that the resolvers in the agent's `dns_servers` answer".into()
            }
            Self::Forbidden { address, .. } => format!(
                "if that is meant, add `addresses: [{address}/{}]` to the api in the policy",
                if address.is_ipv4() { 32 } else { 128 }
            ),
            Self::Connect { .. } => "check that the upstream is up and reachable from this host".into(),
            Self::Tls { .. } => {
                "the upstream's certificate must be valid for this name; for a private CA, set `tls: { ca: file:NAME }` on the api".into()
            }
            Self::Reset { .. } => "try again, if the request may be done twice: the upstream may have done it".into(),
            Self::Http { .. } | Self::Timeout { .. } => "try again; the upstream did not answer properly".into(),
        }
    }
}
