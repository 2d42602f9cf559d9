//! TLS on both sides: the issuing CA, leaves for clients, verification of upstreams.
use std::path::Path;

/// The local CA that issues leaves for governed clients.
#[derive(Debug)]
pub struct Authority {
    _private: (),
}

/// What can go wrong with the CA or the trust roots. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key file is readable by others.
    #[error("{path}: the CA key is readable by others (mode {mode:o}): run `chmod 0600 {path}`, and rotate the CA if it may have been read")]
    KeyExposed {
        /// The key file.
        path: String,
        /// Its mode bits.
        mode: u32,
    },
}

impl Authority {
    /// Opens the CA in `state_dir` (`ca.pem`, `ca-key.pem` 0600), made on the first call: ECDSA P-256.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let _ = state_dir;
        todo!()
    }
    /// The CA certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        todo!()
    }
    /// SHA-256 of the certificate, hex.
    pub fn fingerprint(&self) -> &str {
        todo!()
    }
    /// When it expires.
    pub fn not_after(&self) -> jiff::Timestamp {
        todo!()
    }
    /// The system's roots and this CA, PEM: for the variables that replace a client's store.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn bundle_pem(&self) -> Result<String, Error> {
        todo!()
    }
}
