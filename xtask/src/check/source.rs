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
    /// Modules in other files that are declared under `#[cfg(test)]`.
    test_modules: Vec<String>,
}

struct Token {
    text: String,
    line: usize,
    /// Under `#[cfg(test)]`.
    test: bool,
}

impl Source {
    fn parse(path: String, text: &str) -> Result<Self> {
        let stream: TokenStream = text.parse().map_err(|e| anyhow!("{path}: not Rust: {e}"))?;
        let mut source = Self {
            path,
            tokens: Vec::new(),
            test_modules: Vec::new(),
        };
        source.read(stream, false);
        Ok(source)
    }

    /// Lines where these tokens stand one after the other.
    pub(super) fn lines_with(&self, wanted: &[&str]) -> Vec<usize> {
        self.found(wanted).map(|token| token.line).collect()
    }

    /// `path:line` of each place where these tokens stand.
    pub(super) fn places(&self, wanted: &[&str]) -> Vec<String> {
        self.found(wanted)
            .map(|token| self.place(token, wanted))
            .collect()
    }

    /// As [`Source::places`], without what is compiled for tests only.
    pub(super) fn places_outside_tests(&self, wanted: &[&str]) -> Vec<String> {
        let found = self.found(wanted).filter(|token| !token.test);
        found.map(|token| self.place(token, wanted)).collect()
    }

    fn place(&self, token: &Token, wanted: &[&str]) -> String {
        format!("{}:{}: {}", self.path, token.line, wanted.concat())
    }

    /// The first token of each place where these stand one after the other.
    fn found<'a>(&'a self, wanted: &'a [&str]) -> impl Iterator<Item = &'a Token> {
        let stands = |window: &&[Token]| window.iter().map(|t| &t.text).eq(wanted.iter());
        self.tokens
            .windows(wanted.len())
            .filter(stands)
            .filter_map(<[Token]>::first)
    }

    fn read(&mut self, stream: TokenStream, test: bool) {
        let mut trees = stream.into_iter().peekable();
        while let Some(tree) = trees.next() {
            let attribute = is_punct(&tree, '#') && trees.peek().is_some_and(is_cfg_test);
            self.push(tree, test || attribute);
            if attribute {
                self.read_item(&mut trees);
            }
        }
    }

    /// The item behind `#[cfg(test)]`: up to its body or its semicolon.
    fn read_item(&mut self, trees: &mut impl Iterator<Item = TokenTree>) {
        let start = self.tokens.len();
        for tree in trees {
            let is_body = matches!(&tree, TokenTree::Group(g) if g.delimiter() == Delimiter::Brace);
            let ends = is_punct(&tree, ';');
            self.push(tree, true);
            if ends {
                let words: Vec<_> = self.tokens.iter().skip(start).map(|t| &*t.text).collect();
                if let [.., "mod", name, ";"] = words.as_slice() {
                    self.test_modules.push((*name).to_owned());
                }
            }
            if ends || is_body {
                return;
            }
        }
    }

    fn push(&mut self, tree: TokenTree, test: bool) {
        let line = tree.span().start().line;
        let text = match tree {
            TokenTree::Ident(ident) => ident.to_string(),
            TokenTree::Punct(punct) => punct.as_char().to_string(),
            TokenTree::Literal(_) => "\"\"".to_owned(),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                self.tokens.push(Token {
                    text: open.to_owned(),
                    line,
                    test,
                });
                self.read(group.stream(), test);
                let line = group.span_close().start().line;
                self.tokens.push(Token {
                    text: close.to_owned(),
                    line,
                    test,
                });
                return;
            }
        };
        self.tokens.push(Token { text, line, test });
    }
}

fn is_punct(tree: &TokenTree, wanted: char) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

fn is_cfg_test(tree: &TokenTree) -> bool {
    matches!(tree, TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket
        && group.stream().to_string().replace(' ', "") == "cfg(test)")
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
    let mut sources = tracked()?
        .into_iter()
        .filter(|path| path.ends_with(".rs") && directories.iter().any(|d| path.starts_with(d)))
        .map(|path| {
            let text = read(&path)?;
            Source::parse(path, &text)
        })
        .collect::<Result<Vec<_>>>()?;
    mark_test_files(&mut sources);
    Ok(sources)
}

/// A file is for tests if a file above it declares its module, or one that it is in, under `#[cfg(test)]`.
fn mark_test_files(sources: &mut [Source]) {
    let declared: Vec<String> = sources
        .iter()
        .flat_map(|source| {
            let inside = module_directory(&source.path);
            source
                .test_modules
                .iter()
                .map(move |name| format!("{inside}{name}"))
        })
        .collect();
    for source in sources {
        let module = source.path.trim_end_matches(".rs").to_owned();
        let is_inside = |test: &String| {
            module
                .strip_prefix(test.as_str())
                .is_some_and(|r| r.is_empty() || r.starts_with('/'))
        };
        if declared.iter().any(is_inside) {
            source.tokens.iter_mut().for_each(|token| token.test = true);
        }
    }
}

/// Where the files of a file's modules are: `a/mod.rs` and `a.rs` both have theirs in `a/`.
fn module_directory(path: &str) -> String {
    let stem = path.trim_end_matches(".rs");
    match stem.rsplit_once('/') {
        Some((directory, "mod" | "lib" | "main")) => format!("{directory}/"),
        _ => format!("{stem}/"),
    }
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

    #[test]
    fn what_is_for_tests_is_told_apart() {
        let text = "use a;\n#[cfg(test)]\nmod tests { fn b() { a() } }\nfn c() { a() }\n#[cfg(test)] mod more;";
        let source = Source::parse("x/lib.rs".to_owned(), text).unwrap();
        assert_eq!(source.lines_with(&["a"]), [1, 3, 4]);
        assert_eq!(
            source.places_outside_tests(&["a"]),
            ["x/lib.rs:1: a", "x/lib.rs:4: a"]
        );
        let more = Source::parse("x/more/deep.rs".to_owned(), "a").unwrap();
        let other = Source::parse("x/moreover.rs".to_owned(), "a").unwrap();
        let mut sources = [source, more, other];
        mark_test_files(&mut sources);
        let found = sources.iter().flat_map(|s| s.places_outside_tests(&["a"]));
        assert_eq!(
            found.collect::<Vec<_>>(),
            ["x/lib.rs:1: a", "x/lib.rs:4: a", "x/moreover.rs:1: a"]
        );
    }
}
