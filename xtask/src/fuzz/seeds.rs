//! What fuzzing starts from, besides the committed seeds: the repository's own policies, and the URLs
//! that others test with, where they lie beside the repository.
use super::place;
use crate::sh;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Writes the gathered seeds of a target, each file named by its number.
pub(super) fn gather(target: &str) -> Result<()> {
    let seeds = match target {
        "document" => documents()?,
        "canonical" => urls()?,
        _ => Vec::new(),
    };
    let folder = place("seeds", target);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    for (number, seed) in seeds.iter().enumerate() {
        std::fs::write(folder.join(number.to_string()), seed)?;
    }
    Ok(())
}

/// Every YAML file of the repository and every YAML block of its documents.
fn documents() -> Result<Vec<String>> {
    let mut git = sh::command("git");
    git.args(["ls-files", "*.yaml", "*.md"]);
    let listed = String::from_utf8(sh::output(git)?.stdout)?;
    let mut found = Vec::new();
    for path in listed.lines() {
        let Ok(text) = std::fs::read_to_string(sh::root().join(path)) else {
            continue;
        };
        if path.ends_with(".md") {
            found.extend(blocks(&text).map(str::to_owned));
        } else {
            found.push(text);
        }
    }
    Ok(found)
}

/// What stands between "```yaml" and "```".
fn blocks(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("\n```").next())
}

/// Authority and target of each URL of the WHATWG test data, one to a line.
fn urls() -> Result<Vec<String>> {
    let Some(path) = beside("shared/corpora/whatwg-url/url/tests/urltestdata.json") else {
        return Ok(Vec::new());
    };
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    let input = |case: &Value| {
        let url = case.get("input")?.as_str()?;
        let (_, rest) = url.split_once("//").unwrap_or(("", url));
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        Some(format!("{authority}\n{target}"))
    };
    Ok(cases
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(input)
        .collect())
}

/// A file of the folders that the repository lies in.
fn beside(name: &str) -> Option<PathBuf> {
    let above = sh::root().ancestors();
    let mut paths = above.map(|folder: &Path| folder.join(name));
    paths.find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_is_found_in_documents() {
        let text = "a\n```yaml\nversion: 1\n```\nb\n```sh\nls\n```\n```yaml\nx: 2\n```\n";
        assert_eq!(blocks(text).collect::<Vec<_>>(), ["version: 1", "x: 2"]);
    }
}
