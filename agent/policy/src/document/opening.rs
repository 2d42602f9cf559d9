//! What a workload may do besides calling apis: ports it serves, sockets of this host it may speak to.
use super::Reading;
use crate::model::SocketName;
use crate::syntax::{Fields, Node, quote};

/// Ports, and names of sockets, of one workload at most.
const MAX: usize = 64;
/// Bytes of a socket's name at most, as the kernel has it: one less for the NUL, or for the one before an abstract name.
const MAX_NAME: usize = 107;
/// Where there is no `unix`: what the C library and systemd's clients log to.
const LOGS: [&str; 4] = [
    "/dev/log",
    "/run/systemd/journal/dev-log",
    "/run/systemd/journal/socket",
    "/run/systemd/journal/stdout",
];

/// The openings of a workload.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    pub(crate) listen: Vec<u16>,
    pub(crate) unix: Vec<SocketName>,
}

pub(super) fn openings(reading: &mut Reading<'_>, fields: &mut Fields<'_>) -> Openings {
    let (listen, unix) = (fields.take("listen"), fields.take("unix"));
    let listen = listen.map(|node| list(reading, node, "ports", port));
    let unix = unix.map(|node| list(reading, node, "sockets", socket_name));
    Openings {
        listen: listen.unwrap_or_default(),
        unix: unix.unwrap_or_else(|| LOGS.map(exactly).to_vec()),
    }
}

fn exactly(name: &str) -> SocketName {
    SocketName {
        name: name.to_owned(),
        any_rest: false,
    }
}

/// Each once, in order; an empty list is one.
fn list<T: Ord>(
    reading: &mut Reading<'_>,
    node: &Node,
    what: &str,
    read: impl Fn(&mut Reading<'_>, &Node) -> Option<T>,
) -> Vec<T> {
    let items = reading.decoder.list(node).unwrap_or_default();
    if items.len() > MAX {
        reading
            .decoder
            .error(
                node.span,
                format!(
                    "a workload has at most {MAX} {what}, these are {}",
                    items.len()
                ),
            )
            .help("write a directory and `/**` for all in it, or make two workloads");
        return Vec::new();
    }
    let mut all: Vec<T> = items
        .iter()
        .filter_map(|item| read(reading, item))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn port(reading: &mut Reading<'_>, node: &Node) -> Option<u16> {
    reading.decoder.integer(node, 1..=u16::MAX)
}

fn socket_name(reading: &mut Reading<'_>, node: &Node) -> Option<SocketName> {
    let text = reading.decoder.string(node)?;
    let (name, any_rest) = match text.strip_suffix("**") {
        Some(before) => (before, true),
        None => (text, false),
    };
    let help = match fault(name, any_rest) {
        None => {
            return Some(SocketName {
                name: name.to_owned(),
                any_rest,
            });
        }
        Some(help) => help,
    };
    reading
        .decoder
        .error(node.span, format!("{} is no socket's name", quote(text)))
        .help(help);
    None
}

/// What is wrong with a name: the kernel half compares it letter by letter with what a program asks for.
fn fault(name: &str, any_rest: bool) -> Option<&'static str> {
    if name.len() > MAX_NAME || name.contains('*') || name.chars().any(char::is_control) {
        return Some("at most 107 bytes, no control characters, and `**` at the end only");
    }
    if let Some(rest) = name.strip_prefix('@') {
        return rest
            .is_empty()
            .then_some("write `@` and the name of an abstract socket");
    }
    let Some(path) = name.strip_prefix('/') else {
        return Some(
            "write the absolute path that programs use, such as `/run/postgresql/**`, or `@` and an abstract name",
        );
    };
    let mut parts: Vec<&str> = path.split('/').collect();
    if any_rest {
        // What is before `**` may be the beginning of a file's name, or none of it.
        parts.pop();
        if parts.is_empty() {
            return Some("name a directory before `**`: all sockets of the host are too many");
        }
    }
    let odd = parts.iter().any(|part| ["", ".", ".."].contains(part));
    odd.then_some("no empty part, `.` or `..` in it, and a file at its end")
}
