//! Secrets: sources, rotation, and the one type that holds a value.
//!
//! [`Secret`] has neither `Debug` of its value nor `Serialize`; only `pipeline::rewrite` reveals one.
use std::path::Path;
use tollgate_policy::Policy;

/// Values for one policy: its credentials, and the CAs of its apis.
#[derive(Debug, Default)]
pub struct Secrets {}

/// Why a secret could not be had. Never holds its value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there or not readable.
    #[error("secret {name}: cannot read {path}: {source}: write the secret to that file, mode 0600")]
    Unreadable {
        /// As the policy names it.
        name: String,
        /// Where it was looked for.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
}

impl Secrets {
    /// Reads every secret and CA that `policy` names; `file:NAME` is a file below `dir`.
    ///
    /// # Errors
    /// Every secret that could not be had.
    pub fn load(policy: &Policy, dir: &Path) -> Result<Self, Vec<Error>> {
        let _ = (policy, dir);
        todo!()
    }
}
