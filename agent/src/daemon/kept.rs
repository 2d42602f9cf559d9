//! The policy in force, kept in the state directory: where a later one cannot be taken up when the agent starts, the fence stands
//! by the workloads of this one, and nothing of theirs passes.
use super::dirs;
use super::policy::ALL_BYTES;
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use tollgate_policy::syntax::Source;

/// Below the state directory.
const FILE: &str = "policy-in-force.json";
/// Bytes of it at most: JSON writes a control character with six.
const FILE_BYTES: u64 = 6 * ALL_BYTES + (1 << 20);

/// One text of the policy.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    name: String,
    text: String,
}

pub(super) fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Keeps `sources`; why it could not, which is told.
pub(super) fn keep(state_dir: &Path, sources: &[Source]) -> Option<String> {
    let error = write(state_dir, sources).err()?;
    let why = format!("{}: {error}: make room", path(state_dir).display());
    tracing::error!("the policy in force is not kept for the next start: {why}");
    Some(why)
}

/// Whole or not at all.
fn write(state_dir: &Path, sources: &[Source]) -> io::Result<()> {
    let kept = sources.iter().map(|source| Kept {
        name: source.name.clone(),
        text: source.text.clone(),
    });
    let text = serde_json::to_vec(&kept.collect::<Vec<_>>())?;
    if read_bytes(state_dir).is_ok_and(|before| before == text) {
        return Ok(());
    }
    dirs::publish(&path(state_dir), &text, 0o600)?;
    // The rename is to be there after a power cut too.
    std::fs::File::open(state_dir)?.sync_all()
}

/// What was kept; `None`: nothing ever was.
pub(super) fn read(state_dir: &Path) -> io::Result<Option<Vec<Source>>> {
    let bytes = match read_bytes(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let kept: Vec<Kept> = serde_json::from_slice(&bytes)?;
    let sources = kept
        .into_iter()
        .map(|Kept { name, text }| Source { name, text });
    Ok(Some(sources.collect()))
}

fn read_bytes(state_dir: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path(state_dir))?
        .take(FILE_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_was_kept_is_read_again_and_what_is_damaged_is_said() {
        let state = tempfile::tempdir().unwrap();
        assert!(read(state.path()).unwrap().is_none());
        let source = |text: &str| Source {
            name: "a.yaml".to_owned(),
            text: text.to_owned(),
        };
        for text in ["version: 1\n", "\u{1}\"ä\n"] {
            write(state.path(), &[source(text)]).unwrap();
            let read = read(state.path()).unwrap().unwrap();
            assert_eq!((&*read[0].name, &*read[0].text), ("a.yaml", text));
        }
        let mode = std::fs::metadata(path(state.path())).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        std::fs::write(path(state.path()), "[{").unwrap();
        assert!(read(state.path()).is_err());
    }
}
