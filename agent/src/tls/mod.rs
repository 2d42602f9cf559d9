//! TLS on both sides: the issuing CA, leaves for clients, verification of upstreams.
mod authority;
mod constrain;
mod files;
mod leaf;
mod stores;
mod upstream;

pub use authority::Authority;
pub use constrain::inspected;
pub(crate) use leaf::LeafCache;
pub(crate) use stores::{browser_policy, pkcs12};
pub(crate) use upstream::{CA_BYTES, Identity, Roots};

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;
use std::sync::Arc;

/// The CA in use: workers read it without a lock, a rotation swaps it whole.
#[derive(Debug)]
pub struct Issuing(ArcSwap<Authority>);

impl Issuing {
    /// Starts with this one.
    pub fn new(authority: Authority) -> Self {
        Self(ArcSwap::from_pointee(authority))
    }
    /// The one to issue with now.
    pub fn current(&self) -> Arc<Authority> {
        self.0.load_full()
    }
    /// From now on leaves are another's.
    pub fn replace(&self, authority: Authority) {
        self.0.store(Arc::new(authority));
    }
}

/// Certificates one after the other, PEM.
pub(crate) fn bundle_pem(roots: &[CertificateDer<'_>]) -> String {
    roots.iter().map(authority::pem).collect()
}

/// What can go wrong with the CA or the trust roots. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key file is readable by others.
    #[error(
        "{path}: the CA key is readable by others (mode {mode:04o}): run `chmod 0600 {path}`, and make a new CA if it may have been read"
    )]
    KeyExposed {
        /// The key file.
        path: String,
        /// Its mode bits.
        mode: u32,
    },
    /// One half of the CA is missing.
    #[error(
        "{present} is there but {missing} is not: restore it from a backup, or remove {present} to have a new CA made (clients must then trust that one)"
    )]
    HalfMissing {
        /// The file that exists.
        present: String,
        /// The file that does not.
        missing: String,
    },
    /// A file of the CA could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// A file of the CA or a root does not hold what it should.
    #[error("{path}: {what}")]
    Invalid {
        /// The file.
        path: String,
        /// What is wrong, never its content.
        what: String,
    },
    /// A certificate could not be made.
    #[error("cannot issue a certificate for {host}: {what}")]
    Issue {
        /// For whom.
        host: String,
        /// Why.
        what: String,
    },
    /// The host has no usable trust roots.
    #[error(
        "no trusted root certificates on this host{what}: install the package `ca-certificates`"
    )]
    NoRoots {
        /// Details of what was tried.
        what: String,
    },
}
