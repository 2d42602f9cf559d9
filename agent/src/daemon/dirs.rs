//! The agent's directories and the files it puts there for others.
use super::error::Error;
use crate::config::Config;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Held for as long as this agent lives: one agent per runtime directory.
#[derive(Debug)]
pub(super) struct Lock(#[allow(dead_code)] File);

/// Makes the state directory (0700) and the runtime directory (0755, so that workloads can read the CA bundle), and
/// takes the lock in the latter.
pub(super) fn prepare(config: &Config) -> Result<Lock, Error> {
    ensure(&config.state_dir, 0o700, "state_dir")?;
    ensure(&config.runtime_dir, 0o755, "runtime_dir")?;
    lock(&config.runtime_dir)
}

fn ensure(path: &Path, mode: u32, key: &'static str) -> Result<(), Error> {
    let fail = |source| Error::Directory {
        key,
        path: path.display().to_string(),
        source,
    };
    if !path.is_dir() {
        DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(fail)?;
    }
    let meta = std::fs::metadata(path).map_err(fail)?;
    let uid = rustix::process::geteuid().as_raw();
    if meta.uid() != uid && meta.uid() != 0 {
        return Err(Error::ForeignDirectory {
            key,
            path: path.display().to_string(),
            owner: meta.uid(),
        });
    }
    // Others must never be able to put files there; beyond that an administrator's tighter mode stays.
    let wanted = if mode == 0o755 {
        (meta.mode() & 0o755) | 0o555
    } else {
        meta.mode() & mode
    } | 0o700;
    if meta.mode() & 0o7777 != wanted {
        std::fs::set_permissions(path, Permissions::from_mode(wanted)).map_err(fail)?;
    }
    Ok(())
}

fn lock(runtime_dir: &Path) -> Result<Lock, Error> {
    let path = runtime_dir.join("agent.lock");
    let fail = |source| Error::Directory {
        key: "runtime_dir",
        path: path.display().to_string(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(fail)?;
    if let Err(errno) =
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
    {
        if errno != rustix::io::Errno::WOULDBLOCK {
            return Err(fail(errno.into()));
        }
        let mut holder = String::new();
        let _ = (&mut file).take(16).read_to_string(&mut holder);
        return Err(Error::AlreadyRunning {
            pid: holder.trim().to_owned(),
            runtime_dir: runtime_dir.display().to_string(),
        });
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(fail)?;
    Ok(Lock(file))
}

/// Makes `directory` below `root`, which is there, so that every user can pass through.
pub(super) fn passable(root: &Path, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for part in directory.ancestors().take_while(|part| *part != root) {
        std::fs::set_permissions(part, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Writes a file that readers see whole or not at all.
///
/// # Errors
/// The system's word.
pub(super) fn publish(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = directory.join(format!(".{name}.{}", std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let written = file
        .write_all(contents)
        .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Removes the directory of a private agent, and nothing that does not look like one.
pub(super) fn remove_private(directory: &Path) {
    let named = directory
        .file_name()
        .is_some_and(|n| n.to_string_lossy().starts_with(super::PRIVATE_PREFIX));
    if named && let Err(e) = std::fs::remove_dir_all(directory) {
        tracing::warn!("{}: {e}", directory.display());
    }
}
