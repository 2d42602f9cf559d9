//! File systems as images, made of folders without mounting them.
use super::answer;
use crate::sh;
use anyhow::{Context as _, Result};
use std::path::Path;

/// Makes an ext4 image of `folder` with this many MiB free. What stands in its place stays until it is whole.
pub(super) fn ext4(folder: &Path, image: &Path, free: u64) -> Result<()> {
    let fresh = image.with_extension("new");
    let _ = std::fs::remove_file(&fresh);
    let mut du = sh::command("du");
    du.args(["--summarize", "--block-size=1M", "--apparent-size"]);
    du.arg(folder);
    let used: u64 = answer(du)?
        .split_whitespace()
        .next()
        .and_then(|size| size.parse().ok())
        .with_context(|| format!("cannot tell how large {} is", folder.display()))?;
    // A quarter more than the files hold, for inodes and blocks that are not full.
    let size = used + used / 4 + 16 + free;
    let mut mke2fs = sh::command("mke2fs");
    mke2fs
        // A crash loses the machine's changes as its end does: no journal.
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
        .arg(folder)
        .arg(&fresh)
        .arg(format!("{size}M"));
    answer(mke2fs)?;
    std::fs::rename(&fresh, image).with_context(|| format!("cannot make {}", image.display()))
}

/// An empty folder, whatever was there.
pub(super) fn empty(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
}
