//! Rules on the text of the repository.
use super::{Found, source};
use anyhow::Result;

/// Lines of code a file may have.
const ROOM: usize = 600;

/// No macro that stands for code still to be written.
pub(super) fn nothing_unfinished() -> Result<Found> {
    let mut faults = Vec::new();
    for source in source::below(&[""])? {
        for name in ["todo", "unimplemented"] {
            faults.extend(source.places(&[name, "!"]));
        }
    }
    Ok(Found::of(faults, "finish it, or take the half away"))
}

/// No Rust file is longer than [`ROOM`].
pub(super) fn files_are_short() -> Result<Found> {
    let mut faults = Vec::new();
    for path in source::tracked()?
        .iter()
        .filter(|path| path.ends_with(".rs"))
    {
        let lines = source::read(path)?.lines().count();
        if lines > ROOM {
            faults.push(format!("{path}: {lines} lines of at most {ROOM}"));
        }
    }
    Ok(Found::of(faults, "split it where the story turns"))
}

/// Nothing names a directory of one machine, or a registry or mirror other than crates.io's own.
pub(super) fn names_no_place() -> Result<Found> {
    let mut faults = Vec::new();
    for path in source::tracked()? {
        // Binary files (corpora) are not text that names something.
        let Ok(text) = source::read(&path) else {
            continue;
        };
        for (number, line) in text.lines().enumerate() {
            if let Some(found) = named_place(line, path == "Cargo.lock") {
                faults.push(format!("{path}:{}: {found}", number + 1));
            }
        }
    }
    Ok(Found::of(
        faults,
        "say it without the place: it differs on every other machine",
    ))
}

/// The place that a line names, if any.
fn named_place(line: &str, is_lock: bool) -> Option<String> {
    // Put together here so that this file keeps its own rule.
    let home = concat!("/wo", "rk");
    if names_directory(line, home) {
        return Some(home.to_owned());
    }
    for setting in [concat!("index", "-url"), concat!("replace", "-with")] {
        if line.contains(setting) {
            return Some(format!("{setting} points at one registry"));
        }
    }
    let registry = line.strip_prefix("source = \"")?;
    (is_lock && registry != "registry+https://github.com/rust-lang/crates.io-index\"")
        .then(|| registry.to_owned())
}

/// Whether an absolute path in `line` begins with `directory`.
fn names_directory(line: &str, directory: &str) -> bool {
    let goes_on = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-');
    line.match_indices(directory).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line
            .get(at + directory.len()..)
            .and_then(|text| text.chars().next());
        !before.is_some_and(|c| goes_on(c) || matches!(c, '.' | '}' | '*'))
            && !after.is_some_and(goes_on)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_one_machine_are_found() {
        let home = concat!("/wo", "rk");
        for line in [
            format!("see {home}/shared"),
            format!("\"{home}\""),
            format!("cd {home}"),
        ] {
            assert!(named_place(&line, false).is_some(), "{line}");
        }
        for line in [
            format!("src{home}/x"),
            format!("{home}loads"),
            format!("./a{home}"),
        ] {
            assert!(named_place(&line, false).is_none(), "{line}");
        }
    }

    #[test]
    fn only_the_public_registry_may_be_locked() {
        assert!(named_place("source = \"registry+https://mirror.example/\"", true).is_some());
        let own = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        assert!(named_place(own, true).is_none());
    }
}
