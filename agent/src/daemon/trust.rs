//! The files that clients trust the local CA by, and its rotation.
use super::admin::wire::{Ca, Fault, FaultKind, Reply, Trust};
use super::agent::{Agent, lock};
use super::dirs;
use super::error::Error;
use crate::config::Config;
use crate::tls::{self, Authority};
use std::path::Path;
use std::time::Duration;

/// The CA's certificate alone.
const CA_FILE: &str = "ca.pem";
/// The system's roots and the local CA.
const BUNDLE_FILE: &str = "ca-bundle.pem";
/// The same for Java.
const JAVA_FILE: &str = "ca-bundle.p12";
/// What is laid over the settings of a browser of Chromium's kin, and the file in it.
const BROWSERS: &str = "browsers";
/// Below a browser's directory of settings.
const BROWSER_POLICY: &str = "policies/managed/tollgate.json";

/// Where the trust files of an agent with this runtime directory are.
pub fn trust(runtime_dir: &Path) -> Trust {
    Trust {
        ca: runtime_dir.join(CA_FILE),
        bundle: runtime_dir.join(BUNDLE_FILE),
        java: runtime_dir.join(JAVA_FILE),
        browsers: runtime_dir.join(BROWSERS),
    }
}

/// Writes them where every workload can read them.
pub(super) fn publish(config: &Config, authority: &Authority) -> Result<(), Error> {
    let files = trust(&config.runtime_dir);
    let roots = authority.roots()?;
    let policy = files.browsers.join(BROWSER_POLICY);
    let fail = |path: &Path, source| Error::Publish {
        path: path.display().to_string(),
        source,
    };
    if let Some(directory) = policy.parent() {
        // Whatever the umask: other users' browsers read it.
        dirs::passable(&config.runtime_dir, directory).map_err(|e| fail(directory, e))?;
    }
    let bundle = tls::bundle_pem(&roots);
    let java = tls::pkcs12(&roots);
    let browsers = tls::browser_policy(authority.certificate_pem());
    let contents: [(&Path, &[u8]); 4] = [
        (&files.ca, authority.certificate_pem().as_bytes()),
        (&files.bundle, bundle.as_bytes()),
        (&files.java, &java),
        (&policy, browsers.as_bytes()),
    ];
    for (path, bytes) in contents {
        dirs::publish(path, bytes, 0o644).map_err(|e| fail(path, e))?;
    }
    Ok(())
}

impl Agent {
    /// The CA as it is told of.
    pub(super) fn ca(&self) -> Result<Ca, Error> {
        let authority = self.shared.issuing.current();
        let names = tls::inspected(&self.shared.live.load().policy);
        Ok(Ca {
            certificate: authority.certificate_pem().to_owned(),
            fingerprint: authority.fingerprint().to_owned(),
            not_after: authority.not_after(),
            overlap: authority.overlap(),
            constrained: authority.constrained_pem(&names)?,
            names,
            trust: trust(&self.config.runtime_dir),
        })
    }

    /// Replaces the CA: what is started from now on trusts the new one, and what runs goes on for `overlap`.
    pub(super) fn rotate_ca(&self, overlap: Duration) -> Result<Reply, Fault> {
        // Held for the whole of it: one change after the other.
        let changing = lock(&self.changes);
        let fault = |message| Fault {
            kind: FaultKind::Failed,
            message,
        };
        let next = self
            .shared
            .issuing
            .current()
            .rotate(&self.config.state_dir, overlap)
            .map_err(|e| fault(format!("{e}: the CA in use stays")))?;
        let published = publish(&self.config, &next);
        tracing::info!(fingerprint = next.fingerprint(), "the CA was replaced");
        // Also where the files could not be written: on disk it is the CA, and programs that know the old one are served.
        self.shared.issuing.replace(next);
        drop(changing);
        published
            .and_then(|()| self.ca())
            .map(Reply::Ca)
            .map_err(|e| fault(format!("{e}: the CA was replaced all the same")))
    }
}
