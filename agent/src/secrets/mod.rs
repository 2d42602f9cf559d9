//! Secrets: where they come from, and the one type that holds a value.
//!
//! A value has neither `Debug` nor `Serialize`; only `pipeline::rewrite` reveals one.
mod mask;

pub(crate) use mask::Masker;

use crate::tls::{self, Identity, Roots};
use crate::upstream::Via;
use http::header::{HeaderName, HeaderValue};
use rustls::ClientConfig;
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tollgate_policy::{Api, Credential, Policy, Scheme, SecretRef};
use zeroize::Zeroizing;

/// A secret's longest value in bytes.
const SECRET_BYTES: usize = 16 * 1024;

/// Values for one policy: its credentials, and the trust roots of its apis.
#[derive(Debug)]
pub struct Secrets {
    injections: HashMap<String, Injection>,
    /// Apis with their own CA, or a client certificate.
    own_roots: HashMap<String, Arc<ClientConfig>>,
    system_roots: Arc<ClientConfig>,
}

/// The headers that put a credential in, ready to send.
pub(crate) struct Injection {
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Finds the secret where it comes back.
    masker: Arc<Masker>,
}

impl std::fmt::Debug for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Injection(hidden)")
    }
}

impl Injection {
    /// The values, for `pipeline::rewrite` alone (`cargo xtask check` sees to it).
    pub(crate) fn reveal(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// Finds the secret where it comes back.
    pub(crate) fn masker(&self) -> &Arc<Masker> {
        &self.masker
    }
}

/// Why a secret could not be had. Never holds its value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there or not readable.
    #[error("{name}: cannot read {path}: {source}: write the secret to that file, mode 0600")]
    Unreadable {
        /// As the policy names it.
        name: String,
        /// Where it was looked for.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The file may be read by users who are not its owner.
    #[error(
        "{name}: {path} can be read by others (mode {mode:04o}): run `chmod 0600 {path}`, and rotate the secret if it may have been read"
    )]
    Exposed {
        /// As the policy names it.
        name: String,
        /// The file.
        path: String,
        /// Its mode bits.
        mode: u32,
    },
    /// The value cannot be used.
    #[error("{name}: {path} {what}")]
    Unusable {
        /// As the policy names it.
        name: String,
        /// The file.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The name cannot be a file's.
    #[error(
        "{name}: a secret's name is one file name below the secrets directory, without `/` or `..`"
    )]
    Name {
        /// As the policy names it.
        name: String,
    },
    /// Trust roots.
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

impl Secrets {
    /// Reads every secret and CA that `policy` names; `file:NAME` is a file below `dir`.
    ///
    /// # Errors
    /// Every secret that could not be had.
    pub fn load(policy: &Policy, dir: &Path) -> Result<Self, Vec<Error>> {
        let mut faults = Vec::new();
        let mut injections = HashMap::new();
        for credential in policy.credentials() {
            match injection(credential, dir) {
                Ok(injection) => {
                    injections.insert(credential.name.clone(), injection);
                }
                Err(fault) => faults.push(fault),
            }
        }
        let mut own_roots = HashMap::new();
        for api in policy.apis() {
            if api.ca.is_none() && api.certificate.is_none() {
                continue;
            }
            match own_roots_of(api, dir) {
                Ok(config) => {
                    own_roots.insert(api.name.clone(), config);
                }
                Err(fault) => faults.push(fault),
            }
        }
        match Roots::System.client(None) {
            Ok(system_roots) if faults.is_empty() => Ok(Self {
                injections,
                own_roots,
                system_roots,
            }),
            Ok(_) => Err(faults),
            Err(fault) => {
                faults.push(fault.into());
                Err(faults)
            }
        }
    }

    /// The headers of a credential.
    pub(crate) fn injection(&self, credential: &Credential) -> Option<&Injection> {
        self.injections.get(&credential.name)
    }

    /// How an api's upstreams are reached and verified: by its own CA, or the system's roots.
    pub(crate) fn via(&self, api: Option<&Api>) -> Via {
        if api.is_some_and(|api| api.scheme == Scheme::Http) {
            return Via::Clear;
        }
        let own = api.and_then(|api| self.own_roots.get(&api.name));
        Via::Tls(Arc::clone(own.unwrap_or(&self.system_roots)))
    }
}

fn label(reference: &SecretRef) -> String {
    format!("secret {}:{}", reference.source, reference.key)
}

fn locate(reference: &SecretRef, dir: &Path) -> Result<PathBuf, Error> {
    let plain = !reference.key.is_empty()
        && !reference.key.contains(['/', '\0'])
        && !reference.key.starts_with('.');
    if reference.source == "file" && plain {
        Ok(dir.join(&reference.key))
    } else {
        Err(Error::Name {
            name: label(reference),
        })
    }
}

/// A file that is not secret, such as the keys of an issuer: its path and contents.
pub(crate) fn public_file(
    reference: &SecretRef,
    dir: &Path,
) -> Result<(PathBuf, Zeroizing<Vec<u8>>), Error> {
    let path = locate(reference, dir)?;
    let bytes = read(&label(reference), &path, tls::CA_BYTES, false)?;
    Ok((path, bytes))
}

fn injection(credential: &Credential, dir: &Path) -> Result<Injection, Error> {
    let name = label(&credential.secret);
    let path = locate(&credential.secret, dir)?;
    let unusable = |what: &str| Error::Unusable {
        name: name.clone(),
        path: path.display().to_string(),
        what: what.into(),
    };
    let value = read(&name, &path, SECRET_BYTES, true)?;
    // Editors and `echo` end a file with a newline; it is never part of a token.
    let value = value.trim_ascii_end();
    if value.is_empty() {
        return Err(unusable("is empty"));
    }
    let mut headers = Vec::new();
    for (header, template) in &credential.headers {
        let mut text = Zeroizing::new(Vec::with_capacity(
            template.before.len() + value.len() + template.after.len(),
        ));
        text.extend_from_slice(template.before.as_bytes());
        text.extend_from_slice(value);
        text.extend_from_slice(template.after.as_bytes());
        let name = HeaderName::from_bytes(header.as_bytes())
            .map_err(|_| unusable("is for a header whose name is not valid"))?;
        let plain = text.iter().all(|byte| (0x20..0x7f).contains(byte));
        let mut value = HeaderValue::from_bytes(&text)
            .ok()
            .filter(|_| plain)
            .ok_or_else(|| unusable("holds bytes that cannot stand in a header (line breaks, control or non-ASCII characters)"))?;
        value.set_sensitive(true);
        headers.push((name, value));
    }
    Ok(Injection {
        headers,
        masker: Arc::new(Masker::new(value)),
    })
}

fn own_roots_of(api: &Api, dir: &Path) -> Result<Arc<ClientConfig>, Error> {
    let file = |what: &str, reference: &SecretRef, private: bool| {
        let name = format!("{what} {}:{}", reference.source, reference.key);
        let path = locate(reference, dir)?;
        let pem = read(&name, &path, tls::CA_BYTES, private)?;
        Ok::<_, Error>((path.display().to_string(), pem))
    };
    let roots = match &api.ca {
        None => Roots::System,
        Some(ca) => {
            let (name, pem) = file("CA", ca, false)?;
            let pem = pem.to_vec();
            Roots::Own { name, pem }
        }
    };
    let Some(certificate) = &api.certificate else {
        return Ok(roots.client(None)?);
    };
    let (chain_name, chain) = file("client certificate", &certificate.chain, false)?;
    let (key_name, key) = file("key", &certificate.key, true)?;
    Ok(roots.client(Some(Identity {
        names: [chain_name, key_name],
        chain: &chain,
        key: &key,
    }))?)
}

/// Reads at most `limit` bytes; a private file must be its owner's alone.
fn read(name: &str, path: &Path, limit: usize, private: bool) -> Result<Zeroizing<Vec<u8>>, Error> {
    let unreadable = |source| Error::Unreadable {
        name: name.to_owned(),
        path: path.display().to_string(),
        source,
    };
    let file = fs::File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let mode = metadata.mode() & 0o7777;
    if private && mode & 0o077 != 0 {
        return Err(Error::Exposed {
            name: name.to_owned(),
            path: path.display().to_string(),
            mode,
        });
    }
    let unusable = |what: String| Error::Unusable {
        name: name.to_owned(),
        path: path.display().to_string(),
        what,
    };
    if !metadata.is_file() {
        return Err(unusable("is not a regular file".into()));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit.min(64 * 1024) + 1));
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() > limit {
        return Err(unusable(format!("is longer than {limit} bytes")));
    }
    Ok(bytes)
}
