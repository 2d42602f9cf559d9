//! Test data written by others, read from beside the repository and never copied into it.
#![allow(clippy::panic)]
use std::path::{Path, PathBuf};

/// A file or folder of the shared corpora. Absent, it is named; under `CI=true` that is a failure.
pub(crate) fn corpus(name: &str) -> Option<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .map(|folder| folder.join("shared/corpora").join(name))
        .find(|path| path.exists());
    if found.is_none() {
        println!("corpus absent: {name}");
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "corpus absent: {name}"
        );
    }
    found
}
