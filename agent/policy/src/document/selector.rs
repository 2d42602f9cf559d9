//! How a workload is recognised: the conditions of one selector.
use super::Reading;
use crate::model::Selector;
use crate::syntax::{Node, Value, quote};

/// Labels of one selector at most.
const MAX_LABELS: usize = 32;

/// One alternative of `match`: all of its conditions must hold.
pub(super) fn selector(reading: &mut Reading<'_>, node: &Node) -> Option<Selector> {
    let mut fields = reading.decoder.fields(node, "the selector")?;
    let span = fields.span();
    let keys = ["cgroup", "unit", "container", "user", "exe", "sha256"];
    let given = keys.map(|key| fields.take(key));
    let labelled = fields.take("labels");
    fields.finish(reading.decoder);
    if given.iter().all(Option::is_none) && labelled.is_none() {
        reading
            .decoder
            .error(span, "the selector has no condition")
            .help("give one or more of `unit`, `cgroup`, `container`, `labels`, `user`, `exe` and `sha256`; all must hold");
        return None;
    }
    let readers = [
        cgroup_glob,
        unit_name,
        container_name,
        user_name,
        exe_path,
        digest,
    ];
    let mut wrong = false;
    let values = std::array::from_fn::<_, 6, _>(|index| {
        let (node, read) = (given.get(index).copied().flatten()?, readers.get(index)?);
        let value = read(reading, node);
        wrong |= value.is_none();
        value
    });
    let [cgroup, unit, container, user, exe, sha256] = values;
    let labels = match labelled {
        None => Vec::new(),
        Some(node) => labels(reading, node).unwrap_or_else(|| {
            wrong = true;
            Vec::new()
        }),
    };
    let at = reading.decoder.location(span);
    (!wrong).then_some(Selector {
        cgroup,
        unit,
        container,
        labels,
        user,
        exe,
        sha256,
        at,
    })
}

/// A string that `good` accepts.
fn checked(
    reading: &mut Reading<'_>,
    node: &Node,
    good: impl Fn(&str) -> bool,
    [what, help]: [&str; 2],
) -> Option<String> {
    let fault = match &node.value {
        // A number is a name too where it is one.
        Value::Scalar(scalar) if !scalar.is_null() && good(&scalar.text) => {
            return Some(scalar.text.as_ref().into());
        }
        Value::Scalar(scalar) if !scalar.is_null() => {
            let message = format!("{} is not {what}", quote(&scalar.text));
            reading.decoder.error(node.span, message)
        }
        _ => reading.decoder.expected(node, what),
    };
    fault.help(help);
    None
}

fn container_name(reading: &mut Reading<'_>, node: &Node) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:*@".contains(&byte);
    let good = |text: &str| (1..=255).contains(&text.len()) && text.bytes().all(allowed);
    let what = [
        "a container's name",
        "for example `report-builder` or `worker-*`",
    ];
    checked(reading, node, good, what)
}

/// Each with its one value. Engines let almost any text be one; a name is what Kubernetes allows.
fn labels(reading: &mut Reading<'_>, node: &Node) -> Option<Vec<(String, String)>> {
    let entries = reading.decoder.mapping(node)?;
    if entries.is_empty() || entries.len() > MAX_LABELS {
        let message = format!("a selector has 1 to {MAX_LABELS} labels");
        reading.decoder.error(node.span, message);
        return None;
    }
    let mut found = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = &*entry.key.text;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        if !(1..=317).contains(&name.len()) || !name.bytes().all(allowed) {
            let message = format!("{} is not a label's name", quote(name));
            reading.decoder.error(entry.key.span, message).help(
                "for example `app` or `io.kubernetes.pod.namespace`; `*` may only stand in values",
            );
            continue;
        }
        let good = |text: &str| text.len() <= 255 && !text.chars().any(char::is_control);
        let what = [
            "a label's one value",
            "at most 255 bytes, for example `payments` or `eu-*`",
        ];
        let value = checked(reading, &entry.value, good, what);
        found.extend(value.map(|value| (name.to_owned(), value)));
    }
    found.sort();
    (found.len() == entries.len()).then_some(found)
}

fn user_name(reading: &mut Reading<'_>, node: &Node) -> Option<String> {
    let good = |text: &str| {
        (1..=64).contains(&text.len())
            && !text.starts_with('-')
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"._-$@\\".contains(&byte))
    };
    let what = [
        "a user's name or number",
        "as in `/etc/passwd`, e.g. `intern` or `1001`",
    ];
    // The greatest number is nobody's: it says that a call has failed.
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exists = |text: &str| text.parse::<u32>().is_ok_and(|uid| uid != u32::MAX);
    checked(
        reading,
        node,
        |text| good(text) && (!is_number(text) || exists(text)),
        what,
    )
}

/// Of one file: with a wildcard it would be that of a file whose name has a star, and nobody governed.
fn exe_path(reading: &mut Reading<'_>, node: &Node) -> Option<String> {
    let good = |text: &str| {
        text.len() <= 4_095
            && !text.chars().any(|c| c.is_control() || "*?".contains(c))
            && text.strip_prefix('/').is_some_and(|rest| {
                rest.split('/')
                    .all(|segment| !matches!(segment, "" | "." | ".."))
            })
    };
    let what = [
        "the path of an executable",
        "write it whole, without wildcards, e.g. `/usr/bin/python3.11`; for more than one, list a selector of each",
    ];
    checked(reading, node, good, what)
}

fn digest(reading: &mut Reading<'_>, node: &Node) -> Option<String> {
    let good = |text: &str| {
        text.len() == 64
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let what = [
        "a SHA-256 digest",
        "64 lower-case hexadecimal digits, as `sha256sum` prints them, in quotes",
    ];
    checked(reading, node, good, what)
}

/// The path without a slash at its end.
fn cgroup_glob(reading: &mut Reading<'_>, node: &Node) -> Option<String> {
    let text = reading.decoder.string(node)?;
    let path = text.strip_suffix('/').unwrap_or(text);
    if let Some(wrong) = cgroup_fault(path) {
        reading
            .decoder
            .error(node.span, wrong)
            .help("for example `/system.slice/report-builder.service` or `/user.slice/**`");
        return None;
    }
    Some(path.into())
}

fn cgroup_fault(path: &str) -> Option<&'static str> {
    if path.len() > 4_096 || path.chars().any(char::is_control) {
        return Some("the cgroup path is too long or has control characters");
    }
    let Some(rest) = path.strip_prefix('/') else {
        return Some("a cgroup path begins with `/`, the cgroup2 root, and names a group below it");
    };
    let mut segments: Vec<&str> = rest.split('/').collect();
    if segments
        .iter()
        .any(|segment| matches!(*segment, "" | "." | ".."))
    {
        return Some("a cgroup path has no empty, `.` or `..` segment");
    }
    if segments
        .iter()
        .any(|segment| segment.contains('*') && !matches!(*segment, "*" | "**"))
    {
        return Some("`*` is a whole segment of a cgroup path");
    }
    segments.pop();
    segments
        .contains(&"**")
        .then_some("`**` may only stand last in a cgroup path")
}

fn unit_name(reading: &mut Reading<'_>, node: &Node) -> Option<String> {
    let text = reading.decoder.string(node)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.@\\".contains(&byte);
    let kinds = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];
    let named = kinds
        .iter()
        .any(|kind| text.strip_suffix(kind).is_some_and(|stem| !stem.is_empty()));
    if text.len() > 255 || !text.bytes().all(allowed) || !named {
        reading
            .decoder
            .error(
                node.span,
                format!(
                    "{} is not the name of a systemd unit with processes",
                    quote(text)
                ),
            )
            .help("write it in full, e.g. `report-builder.service`");
        return None;
    }
    Some(text.into())
}
