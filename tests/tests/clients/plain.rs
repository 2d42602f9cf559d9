//! What programs print, without what differs from run to run: times, ids, places, versions, stacks.
use regex::Regex;
use std::sync::LazyLock;

/// A pattern, and what stands for what it finds.
static CHANGING: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "DECISION"),
        (
            r"\d{4}-\d\d-\d\d[T ]\d\d[:_]\d\d[:_]\d\d([._]\d+)?Z?(-debug-0)?",
            "TIME",
        ),
        (r"Node\.js v[0-9.]+", "Node.js VERSION"),
        (r#"created_time:\s*"[^"]*",?\s*"#, ""),
        (r"\(node:\d+\)", "(node:PID)"),
        // What `tollgate run` says at its end.
        (r"(?m)^  \d\d:\d\d:\d\d ", "  TIME "),
        (r"(?P<program>[a-z0-9.]+)\(\d+\)", "$program(PID)"),
        (r"date: '[^']*'|'date' => \[ '[^']*' \]", "date: TIME"),
        (r"'content-length': '\d+'", "'content-length': N"),
        // Debian's wrapper looks at the size of shared memory, and trips where there are two.
        (r"(?m)^/usr/bin/chromium: \d+: .*\n?", ""),
        // A stack: Python's and Node's.
        (
            r"(?m)^(?P<head> *(\| )?Traceback \(most recent call last\):\n)(^(\s|[|+]).*\n)+",
            "$head  ...\n",
        ),
        (r"(?m)^ +at .*\n?", ""),
        (r"(?m)^node:internal/\S+:\d+\n(?s:.*?\n\n)", ""),
        (r"[ \t]+\n", "\n"),
    ]
    .into_iter()
    .map(|(pattern, by)| (Regex::new(pattern).unwrap(), by))
    .collect()
});

/// `text` as it is every time.
pub(crate) fn plain(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, by) in CHANGING.iter() {
        text = pattern.replace_all(&text, *by).into_owned();
    }
    text.trim_end().to_owned()
}

#[test]
fn what_changes_is_taken_out() {
    let text = "Traceback (most recent call last):\n  File \"x.py\", line 1\n    boom\nKeyError: 'a'\n\
                2026-11-25 18:00:00 ERROR 403: tollgate explain 01890a5d-ac96-774b-bcce-b302099a8057.\n\
                Error: no\n    at main (/x.js:1:2)\n    at y\n\nNode.js v20.1.0\n";
    let expected = "Traceback (most recent call last):\n  ...\nKeyError: 'a'\n\
                    TIME ERROR 403: tollgate explain DECISION.\nError: no\n\nNode.js VERSION";
    assert_eq!(plain(text), expected);
}
