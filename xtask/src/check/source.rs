//! Rust sources as tokens: comments, strings and layout cannot fool a rule.
use crate::sh;
use anyhow::{Context as _, Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::path::{Path, PathBuf};

/// One file's tokens in order, groups flattened; literals and comments are left out.
pub(super) struct Source {
    /// Below the repository's root, with `/`.
    pub(super) path: String,
    tokens: Vec<Token>,
}

struct Token {
    text: String,
    line: usize,
}

impl Source {
    fn parse(path: String, text: &str) -> Result<Self> {
        let stream: TokenStream = text.parse().map_err(|e| anyhow!("{path}: not Rust: {e}"))?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        Ok(Self { path, tokens })
    }

    /// Lines where these tokens stand one after the other.
    pub(super) fn lines_with<'a>(&'a self, wanted: &'a [&str]) -> impl Iterator<Item = usize> + 'a {
        self.tokens
            .windows(wanted.len())
            .filter(move |window| {
                window
                    .iter()
                    .zip(wanted)
                    .all(|(token, want)| token.text == *want)
            })
            .filter_map(|window| window.first().map(|token| token.line))
    }

    /// `path:line` of each place where these tokens stand.
    pub(super) fn places<'a>(&'a self, wanted: &'a [&str]) -> impl Iterator<Item = String> + 'a {
        self.lines_with(wanted)
            .map(move |line| format!("{}:{line}: {}", self.path, wanted.concat()))
    }
}

fn flatten(stream: TokenStream, into: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Ident(ident) => into.push(Token {
                text: ident.to_string(),
                line,
            }),
            TokenTree::Punct(punct) => {
                into.push(Token {
                    text: punct.as_char().to_string(),
                    line,
                });
            }
            TokenTree::Literal(_) => into.push(Token {
                text: "\"\"".to_owned(),
                line,
            }),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                into.push(Token {
                    text: open.to_owned(),
                    line,
                });
                flatten(group.stream(), into);
                let line = group.span_close().start().line;
                into.push(Token {
                    text: close.to_owned(),
                    line,
                });
            }
        }
    }
}

/// Files that git knows or would take (not ignored), that exist, below the root.
pub(super) fn tracked() -> Result<Vec<String>> {
    let mut git = sh::command("git");
    git.args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]);
    let output = sh::output(git)?;
    let listed = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let mut files: Vec<_> = listed
        .split('\0')
        .filter(|path| !path.is_empty() && sh::root().join(path).is_file())
        .map(str::to_owned)
        .collect();
    files.sort();
    files.dedup();
    if files.is_empty() {
        return Err(anyhow!(
            "git lists no files: run this in a clone of the repository"
        ));
    }
    Ok(files)
}

/// Every Rust source below one of these directories.
pub(super) fn below(directories: &[&str]) -> Result<Vec<Source>> {
    tracked()?
        .into_iter()
        .filter(|path| path.ends_with(".rs") && directories.iter().any(|d| path.starts_with(d)))
        .map(|path| {
            let text = read(&path)?;
            Source::parse(path, &text)
        })
        .collect()
}

/// A tracked file's text.
pub(super) fn read(path: &str) -> Result<String> {
    let full: PathBuf = Path::new(sh::root()).join(path);
    std::fs::read_to_string(&full).with_context(|| format!("cannot read {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str, wanted: &[&str]) -> Vec<usize> {
        Source::parse("a.rs".to_owned(), text)
            .unwrap()
            .lines_with(wanted)
            .collect()
    }

    #[test]
    fn code_is_found_however_it_is_laid_out() {
        assert_eq!(
            lines("fn a(s: S) {\n s\n .reveal ( ) }", &[".", "reveal", "("]),
            [3]
        );
        assert_eq!(lines("fn a() { un!(unsafe { b() }) }", &["unsafe"]), [1]);
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        let text = "//! unsafe\n/// unsafe\nfn a() { /* unsafe */ let _ = \"unsafe\"; }";
        assert!(lines(text, &["unsafe"]).is_empty());
    }

    #[test]
    fn longer_names_are_other_names() {
        assert!(lines("#![deny(unsafe_code)]", &["unsafe"]).is_empty());
    }
}
