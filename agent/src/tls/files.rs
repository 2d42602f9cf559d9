//! Where the CA lies on disk: written whole or not at all, and replaced so that a crash in between is made good.
//!
//! `ca.pem` and `ca-key.pem` are the CA. A new one is written beside them as `ca-next.pem` and then `ca-next-key.pem`:
//! with the second it counts, and [`Files::roll_forward`] moves first the key and then the certificate into place.
use super::Error;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The files of one state directory.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    /// The CA's certificate, signed by the CA before it.
    pub(super) cross: PathBuf,
    next_certificate: PathBuf,
    next_key: PathBuf,
}

impl Files {
    pub(super) fn of(state_dir: &Path) -> Self {
        Self {
            certificate: state_dir.join("ca.pem"),
            key: state_dir.join("ca-key.pem"),
            cross: state_dir.join("ca-cross.pem"),
            next_certificate: state_dir.join("ca-next.pem"),
            next_key: state_dir.join("ca-next-key.pem"),
        }
    }

    /// Whether there is a CA.
    pub(super) fn are_there(&self) -> Result<bool, Error> {
        match (self.certificate.exists(), self.key.exists()) {
            (false, false) => Ok(false),
            (true, true) => Ok(true),
            (true, false) => Err(half_missing(&self.certificate, &self.key)),
            (false, true) => Err(half_missing(&self.key, &self.certificate)),
        }
    }

    /// Makes this the CA, in place of another if there is one.
    pub(super) fn put(&self, certificate: &str, key: &str) -> Result<(), Error> {
        write_new(&self.next_certificate, certificate.as_bytes(), 0o644)?;
        write_new(&self.next_key, key.as_bytes(), 0o600)?;
        self.roll_forward()
    }

    /// Ends what [`Files::put`] began, if it was cut short.
    pub(super) fn roll_forward(&self) -> Result<(), Error> {
        if !self.next_certificate.exists() {
            return Ok(());
        }
        let replaces = |from: &Path, to: &Path| fs::rename(from, to).map_err(|e| io(from, e));
        if self.next_key.exists() {
            replaces(&self.next_key, &self.key)?;
        } else if !self.next_is_of_the_key() {
            // Its key was never written: it does not count.
            return fs::remove_file(&self.next_certificate)
                .map_err(|e| io(&self.next_certificate, e));
        }
        replaces(&self.next_certificate, &self.certificate)
    }

    /// Whether the next certificate's key is in place already.
    fn next_is_of_the_key(&self) -> bool {
        let read = |path: &Path| fs::read_to_string(path).ok().map(Zeroizing::new);
        let pair = read(&self.next_certificate).zip(read(&self.key));
        pair.is_some_and(|(certificate, key)| {
            rcgen::KeyPair::from_pem(&key)
                .is_ok_and(|key| super::authority::belongs(&certificate, &key))
        })
    }

    /// The key, which nobody else may be able to read.
    pub(super) fn read_key(&self) -> Result<Zeroizing<String>, Error> {
        let path = &self.key;
        let metadata = fs::metadata(path).map_err(|e| io(path, e))?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(Error::KeyExposed {
                path: path.display().to_string(),
                mode,
            });
        }
        read(path).map(Zeroizing::new)
    }
}

pub(super) fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|e| io(path, e))
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io {
        path: path.display().to_string(),
        source,
    }
}

fn half_missing(present: &Path, missing: &Path) -> Error {
    Error::HalfMissing {
        present: present.display().to_string(),
        missing: missing.display().to_string(),
    }
}

/// Writes a file that appears whole or not at all.
pub(super) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let io = |source| io(path, source);
    let partial = path.with_extension("new");
    let _ = fs::remove_file(&partial);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&partial)
        .map_err(io)?;
    // The umask may have narrowed the mode.
    file.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&partial, path).map_err(io)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tls::Authority;

    /// Wherever a replacement is cut short, what is opened next is the old CA or the new one, whole.
    #[test]
    fn a_crash_leaves_the_old_or_the_new() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let fingerprint = |dir: &Path| Authority::open(dir).map(|ca| ca.fingerprint().to_owned());
        let (was, will) = (
            fingerprint(old.path()).unwrap(),
            fingerprint(new.path()).unwrap(),
        );
        let (files, made) = (Files::of(old.path()), Files::of(new.path()));
        fs::copy(&made.certificate, &files.next_certificate).unwrap();
        assert_eq!(fingerprint(old.path()).unwrap(), was);
        assert!(!files.next_certificate.exists());
        fs::copy(&made.certificate, &files.next_certificate).unwrap();
        fs::copy(&made.key, &files.next_key).unwrap();
        fs::rename(&files.next_key, &files.key).unwrap();
        assert_eq!(fingerprint(old.path()).unwrap(), will);
        assert!(!files.next_certificate.exists());
    }
}
