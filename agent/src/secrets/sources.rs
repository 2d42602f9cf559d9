//! Where values are: files below the secrets directory, and what was read from Vault.
use super::{Error, vault};
use crate::tls;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tollgate_policy::SecretRef;
use zeroize::Zeroizing;

/// What a policy's references are looked up in.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// `file:NAME` is a file in this directory.
    pub dir: &'a Path,
    /// `vault:PATH#FIELD` is among these.
    pub vault: &'a vault::Values,
}

/// What was found, and where, for messages.
pub(crate) struct Found {
    pub(crate) place: String,
    pub(crate) bytes: Zeroizing<Vec<u8>>,
}

impl Sources<'_> {
    /// At most `limit` bytes; a `private` file must be its owner's alone. `what` it is, for messages.
    pub(super) fn find(
        &self,
        what: &str,
        reference: &SecretRef,
        (limit, private): (usize, bool),
    ) -> Result<Found, Error> {
        let name = format!("{what} {reference}");
        if reference.source == vault::SOURCE {
            return self.in_vault(name, reference, limit);
        }
        let Some(path) = locate(reference, self.dir) else {
            return Err(Error::Name { name });
        };
        Ok(Found {
            place: path.display().to_string(),
            bytes: read(&name, &path, limit, private)?,
        })
    }

    /// What is not secret, such as the keys of an issuer.
    pub(crate) fn public(&self, reference: &SecretRef) -> Result<Found, Error> {
        self.find("secret", reference, (tls::CA_BYTES, false))
    }

    fn in_vault(&self, name: String, reference: &SecretRef, limit: usize) -> Result<Found, Error> {
        let Some(bytes) = self.vault.get(&reference.key) else {
            let what = "it was not read".to_owned();
            return Err(Error::Vault { name, what });
        };
        let place = "its value in Vault".to_owned();
        if bytes.len() > limit {
            return Err(Error::Unusable {
                name,
                path: place,
                what: format!("is longer than {limit} bytes"),
            });
        }
        Ok(Found {
            place,
            bytes: bytes.clone(),
        })
    }
}

fn locate(reference: &SecretRef, dir: &Path) -> Option<PathBuf> {
    let plain = !reference.key.is_empty()
        && !reference.key.contains(['/', '\0'])
        && !reference.key.starts_with('.');
    (reference.source == "file" && plain).then(|| dir.join(&reference.key))
}

/// Reads at most `limit` bytes; a private file must be its owner's alone.
pub(super) fn read(
    name: &str,
    path: &Path,
    limit: usize,
    private: bool,
) -> Result<Zeroizing<Vec<u8>>, Error> {
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
