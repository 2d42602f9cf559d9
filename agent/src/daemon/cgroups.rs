//! Which cgroups of this host a policy's workloads are: selectors against the tree below the cgroup2 root.
use super::selectors::has_process;
use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tollgate_policy::{Policy, Selector};

/// Cgroups looked at, at most: a workload that may make cgroups must not be able to stop the watch.
const DIRECTORIES: usize = 1 << 16;
/// Their depth, at most: the hooks look no deeper.
const DEPTH: usize = 64;

/// A cgroup that a selector of the policy matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Match {
    /// Path below the cgroup2 root, starting with `/`.
    pub(super) cgroup: String,
    /// Inode of its directory: tells a cgroup from a later one of the same name.
    pub(super) inode: u64,
    /// The workload.
    pub(super) workload: String,
    /// Of a container: what it was recognised by, for a person.
    pub(super) by: Option<String>,
}

/// What a walk of the tree found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Topmost matches: cgroups inside one of the same workload are governed with it.
    pub(super) matches: Vec<Match>,
    /// Every directory, to be watched for new ones.
    pub(super) directories: Vec<PathBuf>,
    /// There are more than are looked at; those near the root were.
    pub(super) truncated: bool,
}

/// Walks the tree below `root`. Directories that vanish on the way are left out.
pub(super) fn walk(root: &Path, policy: &Policy) -> Found {
    walk_at_most(DIRECTORIES, root, policy)
}

fn walk_at_most(most: usize, root: &Path, policy: &Policy) -> Found {
    let mut found = Found::default();
    // Name below the root, and the workload that already governs it.
    let mut todo = VecDeque::from([(String::new(), None::<String>)]);
    // Level by level: who may make cgroups makes them below others, and hides none.
    while let Some((name, inherited)) = todo.pop_front() {
        if found.directories.len() >= most {
            found.truncated = true;
            break;
        }
        if name.matches('/').count() > DEPTH {
            continue;
        }
        let directory = root.join(name.trim_start_matches('/'));
        let Ok(meta) = std::fs::metadata(&directory) else {
            continue;
        };
        let workload = if name.is_empty() {
            None
        } else {
            workload_of(policy, &name)
        };
        let own = workload.filter(|w| inherited.as_ref() != Some(w));
        if let Some(workload) = own.clone() {
            found.matches.push(Match {
                cgroup: name.clone(),
                inode: meta.ino(),
                workload,
                by: None,
            });
        }
        let governs = own.or(inherited);
        for child in subdirectories(&directory) {
            todo.push_back((format!("{name}/{child}"), governs.clone()));
        }
        found.directories.push(directory);
    }
    found.matches.sort_by(|a, b| a.cgroup.cmp(&b.cgroup));
    found
}

/// The cgroup of a process and those above it, from the root; none where it is gone.
pub(super) fn of_process(process: u32) -> Vec<String> {
    let text = std::fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    let own = text.lines().find_map(|line| line.strip_prefix("0::"));
    let above = Path::new(own.unwrap_or_default()).ancestors();
    above
        .filter_map(|path| Some(path.to_str()?.to_owned()))
        .collect()
}

fn subdirectories(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

/// The first workload, by name, that has a selector for this cgroup.
pub(super) fn workload_of(policy: &Policy, cgroup: &str) -> Option<String> {
    policy
        .workloads()
        .iter()
        .find(|w| {
            let mut selectors = w.selectors.iter();
            selectors.any(|s| !has_process(s) && selects(s, cgroup))
        })
        .map(|w| w.name.clone())
}

/// Whether the conditions on cgroups of `selector` hold for this one (path below the root, starting with `/`); it has
/// some.
pub(super) fn selects(selector: &Selector, cgroup: &str) -> bool {
    let unit = selector.unit.as_deref().map(|unit| is_unit(unit, cgroup));
    let glob = selector.cgroup.as_deref().map(|glob| {
        let pattern: Vec<&str> = glob.trim_start_matches('/').split('/').collect();
        let path: Vec<&str> = cgroup.trim_start_matches('/').split('/').collect();
        glob_matches(&pattern, &path)
    });
    !selector.is_of_containers()
        && (unit.is_some() || glob.is_some())
        && unit.unwrap_or(true)
        && glob.unwrap_or(true)
}

/// Only the system manager's units: below a slice of slices. A user's own manager is a delegated service, and
/// anybody can have a unit of any name there.
fn is_unit(unit: &str, cgroup: &str) -> bool {
    let mut segments = cgroup.trim_start_matches('/').split('/');
    segments.next_back() == Some(unit) && segments.all(|s| s.ends_with(".slice"))
}

/// `**` is any rest, the directory it stands in included, so that its future children are governed before they exist.
fn glob_matches(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (Some((&"**", [])), _) => true,
        (Some((&"**", rest)), _) => {
            glob_matches(rest, path)
                || path
                    .split_first()
                    .is_some_and(|(_, tail)| glob_matches(pattern, tail))
        }
        (None, None) => true,
        (Some((p, pattern)), Some((s, path))) => {
            segment_matches(p, s) && glob_matches(pattern, path)
        }
        _ => false,
    }
}

/// `*` is any run of characters within the segment.
pub(super) fn segment_matches(pattern: &str, segment: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| segment.strip_prefix(first)) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_the_system_managers_only() {
        let unit = Selector {
            unit: Some("report.service".to_owned()),
            ..Selector::default()
        };
        for (cgroup, expected) in [
            ("/system.slice/report.service", true),
            ("/report.service", true),
            ("/a.slice/a-b.slice/report.service", true),
            (
                "/user.slice/user-1.slice/user@1.service/app.slice/report.service",
                false,
            ),
            ("/system.slice/report.service/child", false),
            ("/system.slice/xreport.service", false),
            ("/docker/report.service", false),
        ] {
            assert_eq!(selects(&unit, cgroup), expected, "{cgroup}");
        }
    }

    fn below(glob: &str) -> Selector {
        Selector {
            cgroup: Some(glob.to_owned()),
            ..Selector::default()
        }
    }

    #[test]
    fn every_condition_must_hold() {
        let both = Selector {
            unit: Some("report.service".to_owned()),
            ..below("/system.slice/**")
        };
        assert!(selects(&both, "/system.slice/report.service"));
        assert!(!selects(&both, "/other.slice/report.service"));
        assert!(!selects(&both, "/system.slice/other.service"));
    }

    /// Who may make cgroups makes them below others: those near the root are seen, and it is said that others are not.
    #[test]
    fn where_there_are_too_many_those_near_the_root_are_seen() {
        let root = tempfile::tempdir().expect("a directory");
        for name in ["a/1/deep", "a/2", "a/3", "b"] {
            std::fs::create_dir_all(root.path().join(name)).expect("made");
        }
        let text = "version: 1\nworkloads: { near: { match: { cgroup: /b } }, far: { match: { cgroup: /a/1/deep } } }\n";
        let source = tollgate_policy::syntax::Source {
            name: "p".into(),
            text: text.into(),
        };
        let policy = tollgate_policy::compile(&[source])
            .expect("a policy")
            .policy;
        let seen = |most| {
            let found = walk_at_most(most, root.path(), &policy);
            let workloads = found.matches.into_iter().map(|m| m.workload);
            (workloads.collect::<Vec<_>>(), found.truncated)
        };
        assert_eq!(seen(7), (vec!["far".to_owned(), "near".to_owned()], false));
        assert_eq!(seen(6), (vec!["near".to_owned()], true));
        assert_eq!(seen(3), (vec!["near".to_owned()], true));
    }

    #[test]
    fn globs() {
        for (glob, cgroup, expected) in [
            ("/user.slice/**", "/user.slice", true),
            ("/user.slice/**", "/user.slice/a/b", true),
            ("/user.slice/**", "/user.slicex", false),
            ("/user.slice", "/user.slice/a", false),
            ("/a/*/c", "/a/b/c", true),
            ("/a/*/c", "/a/b/b/c", false),
            ("/a/**/c", "/a/b/b/c", true),
            ("/a/**/c", "/a/c", true),
            ("/a/run-*", "/a/run-1", true),
            ("/a/run-*-x", "/a/run-1-x", true),
            ("/a/run-*-x", "/a/run-x", false),
            ("/*", "/a", true),
            ("/*", "/a/b", false),
            ("/**", "/anything/at/all", true),
        ] {
            assert_eq!(selects(&below(glob), cgroup), expected, "{glob} {cgroup}");
        }
    }
}
