//! From policy files and secrets on disk to a snapshot that can be swapped in.
use super::error::Error;
use crate::audit::PolicyStamp;
use crate::budget::Registry;
use crate::config::Config;
use crate::identity::{Identities, Published, REVOKED, Revoked};
use crate::secrets::vault::{self, Reach, Values};
use crate::secrets::{Secrets, Sources};
use crate::snapshot::Snapshot;
use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tollgate_policy::syntax::Source;
use tollgate_policy::{Compiled, Policy, Proof, SecretRef};

/// Bytes of one policy file at most.
const FILE_BYTES: u64 = 4 << 20;
/// Bytes of all policy files at most: the compiler takes no more, and they are held at once.
pub(super) const ALL_BYTES: u64 = tollgate_policy::syntax::MAX_TEXTS as u64;
/// Policy files at most.
const FILES: usize = 1024;

/// A policy that was read and compiled, and what it was read from.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Texts it was compiled from; kept to compile again when only secrets change.
    pub(super) sources: Vec<Source>,
    /// The policy.
    pub(super) policy: Policy,
    /// Warnings of the compiler, each a line.
    pub(super) warnings: Vec<String>,
}

/// Reads all of `paths`: files as they are, `*.yaml` of directories in the order of their names.
///
/// # Errors
/// The first path that cannot be read, or that there is nothing at all.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Source>, Error> {
    let mut files = Vec::new();
    for path in paths {
        let fail = |source| Error::PolicyUnreadable {
            path: path.display().to_string(),
            source,
        };
        if std::fs::metadata(path).map_err(fail)?.is_dir() {
            files.extend(yaml_files(path).map_err(fail)?);
        } else {
            files.push(path.clone());
        }
    }
    if files.is_empty() {
        let named: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
        return Err(Error::PolicyMissing(named.join(", ")));
    }
    let (mut sources, mut left) = (Vec::new(), ALL_BYTES);
    for path in &files {
        let source = read_file(path)?;
        left = left
            .checked_sub(source.text.len() as u64)
            .ok_or(Error::PoliciesTooLarge { max: ALL_BYTES })?;
        sources.push(source);
    }
    Ok(sources)
}

fn yaml_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if path.extension().is_some_and(|e| e == "yaml") && !hidden {
            // To open a pipe waits for whoever writes into it.
            let is_file = std::fs::metadata(&path).is_ok_and(|of| of.is_file());
            if !is_file {
                let name = path.display();
                return Err(std::io::Error::other(format!(
                    "{name} is no file, nor a link to one"
                )));
            }
            found.push(path);
        }
        if found.len() > FILES {
            return Err(std::io::Error::other(format!(
                "more than {FILES} policy files"
            )));
        }
    }
    found.sort();
    Ok(found)
}

fn read_file(path: &Path) -> Result<Source, Error> {
    let name = path.display().to_string();
    let fail = |source| Error::PolicyUnreadable {
        path: name.clone(),
        source,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(fail)?;
    file.take(FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(fail)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(Error::PolicyTooLarge {
            path: name,
            max: FILE_BYTES,
        });
    }
    Ok(Source { name, text })
}

/// Compiles `sources`.
pub(super) fn compile(sources: Vec<Source>) -> Result<Loaded, Error> {
    let Compiled { policy, warnings } =
        super::fit::compile(&sources).map_err(Error::PolicyFaults)?;
    let warnings = warnings
        .0
        .iter()
        .map(|f| format!("{}:{}:{}: {}", f.at.file, f.at.line, f.at.column, f.message))
        .collect();
    Ok(Loaded {
        sources,
        policy,
        warnings,
    })
}

/// Every secret, CA and key that a policy names, each once.
fn references(policy: &Policy) -> Vec<&SecretRef> {
    let secrets = policy.credentials().iter().flat_map(|c| c.form.secrets());
    let cas = policy.apis().iter().filter_map(|a| a.ca.as_ref());
    let own = policy.apis().iter().filter_map(|a| a.certificate.as_ref());
    let own = own.flat_map(|own| [&own.chain, &own.key]);
    let issuers = policy.identities().iter().filter_map(|i| match &i.proof {
        Proof::Jwt { keys, .. } => keys.as_ref(),
        Proof::Token(_) => None,
    });
    let mut all: Vec<&SecretRef> = secrets.chain(cas).chain(own).chain(issuers).collect();
    all.sort_by(|a, b| (&a.source, &a.key).cmp(&(&b.source, &b.key)));
    all.dedup();
    all
}

/// What Vault has for a policy now, and why it has not the rest. Blocks on the network, for a bounded time.
pub(super) fn ask_vault(
    policy: &Policy,
    config: &Config,
    reach: &Reach<'_>,
) -> (Values, Option<Error>) {
    let mut all = references(policy);
    all.retain(|reference| reference.source == vault::SOURCE);
    let (values, faults) = vault::read(config.vault.as_ref(), reach, &all);
    (values, (!faults.is_empty()).then(|| Error::Vault(faults)))
}

/// What a policy is joined with: published keys, what Vault gave, and the agent's accounts.
pub(super) type With<'a> = (&'a Published, &'a Values, &'a Registry);

/// Joins a policy with the values it names. Those that are not to be had are left out if `may_lack` says so; with why the first
/// file is.
pub(super) fn snapshot(
    policy: Policy,
    config: &Config,
    (published, vault, accounts): With<'_>,
    generation: u64,
    may_lack: &dyn Fn(&BTreeSet<String>) -> bool,
) -> Result<(Snapshot, Option<Error>), Error> {
    let sources = Sources {
        dir: &config.secrets_dir,
        vault,
    };
    let list = config.state_dir.join(REVOKED);
    let revoked = match Revoked::read(&list) {
        Ok(revoked) => revoked,
        // Nothing is allowed to anybody.
        Err(_) if policy.refusing().is_some() => Revoked::default(),
        Err(source) => {
            let path = list.display().to_string();
            return Err(Error::Revoked { path, source });
        }
    };
    let (secrets, mut lacking) = Secrets::load(&policy, sources);
    let (identities, more) = Identities::load(&policy, sources, revoked, published);
    lacking.extend(more);
    let absent: BTreeSet<String> = lacking.iter().map(|(what, _)| what.clone()).collect();
    let mut faults: Vec<_> = lacking.into_iter().map(|(_, fault)| fault).collect();
    if !absent.is_empty() && !may_lack(&absent) {
        return Err(Error::Secrets(faults));
    }
    // Vault itself says why it gave none.
    faults.retain(|fault| !matches!(fault, crate::secrets::Error::Vault { .. }));
    // Last: only now it is certain that the policy is taken.
    let now = u64::try_from(crate::pipeline::now()).unwrap_or(0);
    let accounts = accounts.table(&policy, now)?;
    let stamp = Arc::new(PolicyStamp {
        version: policy.version(),
        hash: policy.hash().to_owned(),
    });
    let snapshot = Snapshot {
        generation,
        accounts,
        policy,
        mode: config.mode,
        secrets,
        absent,
        identities,
        stamp,
    };
    Ok((
        snapshot,
        (!faults.is_empty()).then(|| Error::Secrets(faults)),
    ))
}

/// What the files behind a policy's secrets look like from outside: changes when one is written or replaced.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SecretFiles(Vec<(PathBuf, Option<FileState>)>);

/// Inode, size, and times of change of contents and of the inode, in nanoseconds.
type FileState = (u64, u64, i64, i64);

impl SecretFiles {
    /// Looks at every `file:` secret, CA and key of `policy`, and at the list of revoked tokens.
    pub(super) fn of(policy: &Policy, config: &Config) -> Self {
        let keys = references(policy).into_iter();
        let keys = keys.filter(|reference| reference.source == "file");
        Self(
            keys.map(|r| config.secrets_dir.join(&r.key))
                .chain(std::iter::once(config.state_dir.join(REVOKED)))
                .map(|path| {
                    let state = std::fs::metadata(&path).ok().map(|m| {
                        let at =
                            |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
                        (
                            m.ino(),
                            m.size(),
                            at(m.mtime(), m.mtime_nsec()),
                            at(m.ctime(), m.ctime_nsec()),
                        )
                    });
                    (path, state)
                })
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    /// A file that takes no room on disk.
    fn sparse(folder: &Path, name: &str, bytes: u64) -> PathBuf {
        let path = folder.join(name);
        std::fs::File::create(&path)
            .unwrap()
            .set_len(bytes)
            .unwrap();
        path
    }

    #[test]
    fn what_is_no_text_is_told_to_be_none() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name| folder.path().join(name);
        std::fs::write(at("binary.yaml"), b"\xff\xfe").unwrap();
        for (name, next) in [
            ("binary.yaml", "a policy is text, in UTF-8"),
            ("none.yaml", "name policy files under `policy:`"),
        ] {
            let told = read(&[at(name)]).unwrap_err().to_string();
            assert!(told.contains(name) && told.contains(next), "{told}");
        }
    }

    #[test]
    fn a_pipe_in_a_directory_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.yaml");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let told = read(&[folder.path().to_owned()]).unwrap_err().to_string();
        assert!(told.contains("pipe.yaml is no file"), "{told}");
    }

    #[test]
    fn files_are_read_no_further_than_their_bound() {
        let folder = tempfile::tempdir().unwrap();
        let huge = sparse(folder.path(), "huge.yaml", 100 << 30);
        let start = std::time::Instant::now();
        assert!(matches!(read(&[huge]), Err(Error::PolicyTooLarge { .. })));
        assert!(start.elapsed() < std::time::Duration::from_secs(5));
        let folder = tempfile::tempdir().unwrap();
        for number in 0..4 {
            sparse(folder.path(), &format!("{number}.yaml"), FILE_BYTES);
        }
        let all = [folder.path().to_owned()];
        assert_eq!(read(&all).unwrap().len(), 4);
        sparse(folder.path(), "one-more.yaml", 1);
        assert!(matches!(read(&all), Err(Error::PoliciesTooLarge { .. })));
    }
}
