//! Secrets: where they come from, and the one type that holds a value.
//!
//! A value has neither `Debug` nor `Serialize`; only `pipeline::rewrite` reveals one.
mod mask;
mod sigv4;
mod sources;
pub mod vault;

pub(crate) use mask::Masker;
pub(crate) use sigv4::{PAYLOAD, SESSION, Scope, Signer, Unsigned, sha256};
use sources::Found;
pub use sources::Sources;

use crate::tls::{self, Identity, Roots};
use crate::upstream::Via;
use http::header::{HeaderName, HeaderValue};
use rustls::ClientConfig;
use std::collections::HashMap;
use std::sync::Arc;
use tollgate_policy::{
    Api, AwsKeys, Credential, CredentialForm, HeaderTemplate, Policy, Scheme, SecretRef,
};
use zeroize::Zeroizing;

/// A secret's longest value in bytes.
const SECRET_BYTES: usize = 16 * 1024;

/// Values for one policy: its credentials, and the trust roots of its apis.
#[derive(Debug)]
pub struct Secrets {
    injections: HashMap<String, Injection>,
    /// Apis with their own CA, or a client certificate; `None` where those are not to be had.
    own_roots: HashMap<String, Option<Arc<ClientConfig>>>,
    system_roots: Option<Arc<ClientConfig>>,
}

/// What could not be had, with what lacks it.
pub type Absent = Vec<(String, Error)>;

/// A credential, ready to be put in.
pub(crate) struct Injection {
    put: Put,
    /// Finds the secret where it comes back.
    masker: Arc<Masker>,
}

/// What puts a credential in.
pub(crate) enum Put {
    /// These headers, ready to send.
    Headers(Vec<(HeaderName, HeaderValue)>),
    /// Keys that sign the request.
    Signature(Signer),
}

impl std::fmt::Debug for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Injection(hidden)")
    }
}

impl Injection {
    /// The values, for `pipeline::rewrite` alone (`cargo xtask check` sees to it).
    pub(crate) fn reveal(&self) -> &Put {
        &self.put
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
    /// Vault has no value for it, or cannot be asked.
    #[error("{name}: {what}")]
    Vault {
        /// As the policy names it.
        name: String,
        /// What happened, and what to do.
        what: String,
    },
    /// Trust roots.
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

impl Secrets {
    /// Looks up every secret and CA that `policy` names; with what is not to be had.
    pub fn load(policy: &Policy, sources: Sources<'_>) -> (Self, Absent) {
        let mut absent = Vec::new();
        let mut lack = |what, error| absent.push((what, error));
        let mut injections = HashMap::new();
        for credential in policy.credentials() {
            match injection(credential, sources) {
                Ok(injection) => {
                    injections.insert(credential.name.clone(), injection);
                }
                Err(fault) => lack(format!("credential {}", credential.name), fault),
            }
        }
        let mut own_roots = HashMap::new();
        for api in policy.apis() {
            if api.ca.is_none() && api.certificate.is_none() {
                continue;
            }
            let own = own_roots_of(api, sources);
            let own = own.map_err(|fault| lack(format!("api {}", api.name), fault));
            own_roots.insert(api.name.clone(), own.ok());
        }
        let system = Roots::System.client(None);
        let system = system.map_err(|fault| lack("trust roots".to_owned(), fault.into()));
        let secrets = Self {
            injections,
            own_roots,
            system_roots: system.ok(),
        };
        (secrets, absent)
    }

    /// The headers of a credential.
    pub(crate) fn injection(&self, credential: &Credential) -> Option<&Injection> {
        self.injections.get(&credential.name)
    }

    /// How an api's upstreams are reached and verified: by its own CA, or the system's roots. `None` where those are not
    /// to be had: an api's own are never stood in for by others.
    pub(crate) fn via(&self, api: Option<&Api>) -> Option<Via> {
        if api.is_some_and(|api| api.scheme == Scheme::Http) {
            return Some(Via::Clear);
        }
        let own = api.and_then(|api| self.own_roots.get(&api.name));
        let roots = own.unwrap_or(&self.system_roots).as_ref()?;
        Some(Via::Tls(Arc::clone(roots)))
    }
}

/// A value that can stand in a header, found and trimmed.
struct Text {
    name: String,
    found: Found,
}

impl Text {
    fn find(reference: &SecretRef, sources: Sources<'_>) -> Result<Self, Error> {
        let text = Self {
            name: format!("secret {reference}"),
            found: sources.find("secret", reference, (SECRET_BYTES, true))?,
        };
        match text.bytes().is_empty() {
            true => Err(text.unusable("is empty")),
            false => Ok(text),
        }
    }

    /// Editors and `echo` end a file with a newline; it is never part of a token.
    fn bytes(&self) -> &[u8] {
        self.found.bytes.trim_ascii_end()
    }

    fn unusable(&self, what: &str) -> Error {
        Error::Unusable {
            name: self.name.clone(),
            path: self.found.place.clone(),
            what: what.into(),
        }
    }

    /// As a header's value, between what stands before and after it.
    fn header(&self, before: &str, after: &str) -> Result<HeaderValue, Error> {
        let text = Zeroizing::new([before.as_bytes(), self.bytes(), after.as_bytes()].concat());
        let plain = text.iter().all(|byte| (0x20..0x7f).contains(byte));
        let mut value = HeaderValue::from_bytes(&text)
            .ok()
            .filter(|_| plain)
            .ok_or_else(|| self.unusable("holds bytes that cannot stand in a header (line breaks, control or non-ASCII characters)"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn injection(credential: &Credential, sources: Sources<'_>) -> Result<Injection, Error> {
    match &credential.form {
        CredentialForm::Headers { secret, headers } => in_headers(secret, headers, sources),
        CredentialForm::AwsSigV4(keys) => signing(keys, sources),
    }
}

fn in_headers(
    secret: &SecretRef,
    headers: &[(String, HeaderTemplate)],
    sources: Sources<'_>,
) -> Result<Injection, Error> {
    let text = Text::find(secret, sources)?;
    let mut set = Vec::new();
    for (header, template) in headers {
        let name = HeaderName::from_bytes(header.as_bytes())
            .map_err(|_| text.unusable("is for a header whose name is not valid"))?;
        set.push((name, text.header(&template.before, &template.after)?));
    }
    Ok(Injection {
        put: Put::Headers(set),
        masker: Arc::new(Masker::new(&[text.bytes()])),
    })
}

fn signing(keys: &AwsKeys, sources: Sources<'_>) -> Result<Injection, Error> {
    let access = Text::find(&keys.access_key, sources)?;
    let secret = Text::find(&keys.secret_key, sources)?;
    let session = keys.session_token.as_ref();
    let session = session
        .map(|reference| Text::find(reference, sources))
        .transpose()?;
    let id = std::str::from_utf8(access.bytes()).ok();
    let id = id.filter(|id| id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric()));
    let id = id.ok_or_else(|| {
        access.unusable("is not an access key's id: 1 to 128 letters and digits, such as AKIA…")
    })?;
    // It is sent nowhere; but whatever a header could not hold is no key either.
    secret.header("", "")?;
    let token = session.as_ref().map(|token| token.header("", ""));
    let token = token.transpose()?;
    // The id is no secret: it tells whose key it is, and stands in every request.
    let hidden: Vec<&[u8]> = std::iter::once(&secret)
        .chain(&session)
        .map(Text::bytes)
        .collect();
    Ok(Injection {
        masker: Arc::new(Masker::new(&hidden)),
        put: Put::Signature(Signer::new(id.to_owned(), secret.bytes(), token)),
    })
}

fn own_roots_of(api: &Api, sources: Sources<'_>) -> Result<Arc<ClientConfig>, Error> {
    let file = |what: &str, reference: &SecretRef, private: bool| {
        let found = sources.find(what, reference, (tls::CA_BYTES, private))?;
        Ok::<_, Error>((found.place, found.bytes))
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
