//! Which cgroups of this host a policy's workloads are: selectors against the tree below the cgroup2 root.
use super::selectors::has_process;
use crate::kernel::{bounded, is_ended};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use tollgate_policy::{Policy, Selector};

/// Cgroups looked at, at most: a workload that may make cgroups must not be able to stop the watch.
const DIRECTORIES: usize = 1 << 16;
/// Their depth, at most: the hooks look no deeper.
const DEPTH: usize = 64;

/// Controllers of cgroups, the kernel's of both versions and systemd's own: `NAME.` begins their files' names.
const CONTROLLERS: [&str; 22] = [
    "blkio",
    "bpf-bind-network-interface",
    "bpf-devices",
    "bpf-firewall",
    "bpf-foreign",
    "bpf-restrict-network-interfaces",
    "bpf-socket-bind",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "dmem",
    "freezer",
    "hugetlb",
    "io",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

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
    /// Why some that are there could not be looked at.
    pub(super) unread: Option<String>,
    /// Cgroups that a selector means and that the agent runs in, or below which it does: what is governed is all else below them.
    pub(super) own: Vec<String>,
}

/// A cgroup to be looked at.
#[derive(Default)]
struct Due {
    /// Below the root.
    name: String,
    /// The workload that already governs it.
    inherited: Option<String>,
    /// The one that would, if the agent were not in the same.
    beside: Option<String>,
}

/// Walks the tree below `root`. Directories that vanish on the way are left out.
pub(super) fn walk(root: &Path, policy: &Policy) -> Found {
    let own = of_process(std::process::id()).unwrap_or_default();
    walk_at_most(DIRECTORIES, root, policy, &own)
}

/// `own`: the agent's cgroup and those above it.
fn walk_at_most(most: usize, root: &Path, policy: &Policy, own: &[String]) -> Found {
    let selectors = Means::of(policy);
    let mut found = Found::default();
    let mut todo = VecDeque::from([Due::default()]);
    // Level by level: who may make cgroups makes them below others, and hides none.
    while let Some(due) = todo.pop_front() {
        let name = due.name;
        if found.directories.len() >= most {
            found.truncated = true;
            break;
        }
        let directory = root.join(name.trim_start_matches('/'));
        if name.matches('/').count() > DEPTH {
            let cannot = format!(
                "{} is deeper than the agent looks ({DEPTH} levels)",
                directory.display()
            );
            found.unread = Some(cannot);
            continue;
        }
        let looked = std::fs::metadata(&directory)
            .and_then(|meta| Ok((meta.ino(), subdirectories(&directory)?)));
        let (inode, (children, unnamed)) = match looked {
            Ok(looked) => looked,
            Err(error) if is_gone(&error) => continue,
            Err(error) => {
                let cannot = format!("cannot look at {}: {error}", directory.display());
                found.unread = Some(cannot);
                continue;
            }
        };
        if let Some(unnamed) = unnamed {
            let cannot = format!(
                "cannot look at {unnamed:?} in {}: its name is no UTF-8",
                directory.display()
            );
            found.unread = Some(cannot);
        }
        let means = match name.is_empty() {
            true => None,
            false => selectors.workload_of(&name).or(due.beside),
        };
        let (inherited, beside) = if own.contains(&name) {
            if means.is_some() {
                found.own.push(name.clone());
            }
            (None, means)
        } else {
            let other = means.filter(|workload| due.inherited.as_ref() != Some(workload));
            found.matches.extend(other.clone().map(|workload| Match {
                cgroup: name.clone(),
                inode,
                workload,
                by: None,
            }));
            (other.or(due.inherited), None)
        };
        todo.extend(children.into_iter().map(|child| Due {
            name: format!("{name}/{child}"),
            inherited: inherited.clone(),
            beside: beside.clone(),
        }));
        found.directories.push(directory);
    }
    found.matches.sort_by(|a, b| a.cgroup.cmp(&b.cgroup));
    found
}

/// The cgroup of a process and those above it, from the deepest on; none where it is gone.
///
/// # Errors
/// Nobody can say now: descriptors or memory are short.
pub(super) fn of_process(process: u32) -> io::Result<Vec<String>> {
    match std::fs::read(format!("/proc/{process}/cgroup")) {
        Ok(text) => Ok(with_above(&text)),
        Err(error) if is_ended(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The same by what `/proc` says. Its name may be any bytes: those above it are seen all the same.
fn with_above(text: &[u8]) -> Vec<String> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let own = lines.find_map(|line| line.strip_prefix(b"0::"));
    let above = own.map(|own| Path::new(OsStr::from_bytes(own)).ancestors());
    let above = above.into_iter().flatten();
    above
        .filter_map(|path| Some(path.to_str()?.to_owned()))
        .collect()
}

/// Processes that run where the agent does, of which a selector means all, and are neither it nor another verb of its program, as
/// the one is by which its service is reloaded.
pub(super) fn sharing_with_the_agent(root: &Path, own: &[String]) -> Vec<u32> {
    let program = program(std::process::id());
    let listed = own.iter().map(|cgroup| {
        let directory = root.join(cgroup.trim_start_matches('/'));
        std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default()
    });
    let listed = listed.flat_map(|text| {
        text.lines()
            .filter_map(|line| line.parse().ok())
            .collect::<Vec<u32>>()
    });
    let all: Vec<u32> = listed.collect();
    let programs = bounded::each(all.clone(), self::program).into_iter();
    // None is left of who has ended meanwhile.
    let is_anothers = programs.map(|one| one.flatten().is_some_and(|one| Some(one) != program));
    let each = all.into_iter().zip(is_anothers);
    each.filter_map(|(process, is)| is.then_some(process))
        .collect()
}

/// What a process runs, by its name: an upgrade replaces the file.
fn program(process: u32) -> Option<String> {
    let path = crate::kernel::program(process)?;
    let name = path.to_str()?;
    Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}

/// All cgroups below `root` that can be looked at, or as many as [`walk`] looks at: those near it come first.
pub(super) fn all(root: &Path) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut next = 0;
    while let Some(name) = found.get(next).filter(|_| found.len() < DIRECTORIES) {
        let directory = root.join(name.trim_start_matches('/'));
        let (below, _) = subdirectories(&directory).unwrap_or_default();
        let below: Vec<String> = below.iter().map(|one| format!("{name}/{one}")).collect();
        found.extend(below);
        next += 1;
    }
    found.split_off(1)
}

/// The names of those that a policy could name, and one that it could not.
fn subdirectories(directory: &Path) -> io::Result<(Vec<String>, Option<OsString>)> {
    let (mut found, mut unnamed) = (Vec::new(), None);
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match entry.file_name().into_string() {
                Ok(name) => found.push(name),
                Err(name) => unnamed = Some(name),
            }
        }
    }
    Ok((found, unnamed))
}

/// Is it none any more? All else that fails says nothing of what is there.
pub(super) fn is_gone(error: &io::Error) -> bool {
    [Errno::NOENT, Errno::NODEV].contains(&Errno::from_io_error(error).unwrap_or(Errno::IO))
}

/// The selectors of a policy that are about cgroups alone, taken apart once for a walk: there are many cgroups.
struct Means<'p>(Vec<(&'p str, Pattern<'p>)>);

/// A selector's conditions on cgroups.
struct Pattern<'p> {
    unit: Option<&'p str>,
    glob: Option<Vec<&'p str>>,
}

impl<'p> Means<'p> {
    fn of(policy: &'p Policy) -> Self {
        let all = policy.workloads().iter().flat_map(|workload| {
            let own = workload.selectors.iter().filter(|s| !has_process(s));
            own.filter_map(|s| Some((&*workload.name, Pattern::of(s)?)))
        });
        Self(all.collect())
    }

    /// The first workload, by name, that has a selector for this cgroup.
    fn workload_of(&self, cgroup: &str) -> Option<String> {
        let path = segments(cgroup);
        let mut all = self.0.iter();
        let found = all.find(|(_, pattern)| pattern.fits(&path));
        found.map(|(workload, _)| (*workload).to_owned())
    }
}

impl<'p> Pattern<'p> {
    /// `None`: it has none, or what it says of them is about containers.
    fn of(selector: &'p Selector) -> Option<Self> {
        let (unit, glob) = (selector.unit.as_deref(), selector.cgroup.as_deref());
        let is_of_cgroups = (unit.is_some() || glob.is_some()) && !selector.is_of_containers();
        is_of_cgroups.then(|| Self {
            unit,
            glob: glob.map(segments),
        })
    }

    fn fits(&self, path: &[&str]) -> bool {
        self.unit.is_none_or(|unit| is_unit(unit, path))
            && (self.glob.as_ref()).is_none_or(|glob| glob_matches(glob, path))
    }
}

fn segments(path: &str) -> Vec<&str> {
    path.trim_start_matches('/').split('/').collect()
}

/// Whether the conditions on cgroups of `selector` hold for this one (path below the root, starting with `/`); it has
/// some.
pub(super) fn selects(selector: &Selector, cgroup: &str) -> bool {
    Pattern::of(selector).is_some_and(|pattern| pattern.fits(&segments(cgroup)))
}

/// Only the system manager's units: below a slice of slices. A user's own manager is a delegated service, and
/// anybody can have a unit of any name there.
fn is_unit(unit: &str, path: &[&str]) -> bool {
    path.split_last().is_some_and(|(last, above)| {
        unit_names(unit).any(|name| name == *last)
            && above.iter().all(|segment| segment.ends_with(".slice"))
    })
}

/// What systemd calls the cgroup of a unit: by its name, with `_` before one that could clash with the kernel's files or looks as
/// if it had that. Which controllers it knows differs with its versions: both are that unit's, since nobody else's has such a name.
pub(super) fn unit_names(unit: &str) -> impl Iterator<Item = String> {
    let kind = unit.split_once('.').map_or("", |(first, _)| first);
    let is_escaped = unit.starts_with(['_', '.']) || kind == "cgroup";
    let may_be = is_escaped || CONTROLLERS.contains(&kind);
    let plain = (!is_escaped).then(|| unit.to_owned());
    let escaped = may_be.then(|| format!("_{unit}"));
    plain.into_iter().chain(escaped)
}

/// `**` is any rest, the directory it stands in included, so that its future children are governed before they exist. Only the
/// last one met is gone back to: what stands before it is as near as can be, so that nothing would be found by going further.
fn glob_matches(mut pattern: &[&str], mut path: &[&str]) -> bool {
    let mut back = None;
    loop {
        match (pattern.split_first(), path.split_first()) {
            (Some((&"**", [])), _) => return true,
            (Some((&"**", rest)), _) => {
                pattern = rest;
                back = Some((rest, path));
                continue;
            }
            (None, None) => return true,
            (Some((p, rest)), Some((s, tail))) if segment_matches(p, s) => {
                (pattern, path) = (rest, tail);
                continue;
            }
            _ => {}
        }
        match back {
            Some((rest, [_, tail @ ..])) => {
                (pattern, path) = (rest, tail);
                back = Some((rest, tail));
            }
            _ => return false,
        }
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
    use tollgate_policy::syntax::Source;

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

    #[test]
    fn units_whose_names_systemd_escapes_are_found() {
        for (unit, cgroup, expected) in [
            ("memory.service", "/system.slice/_memory.service", true),
            ("memory.service", "/system.slice/memory.service", true),
            ("io.x.service", "/_io.x.service", true),
            ("bpf-firewall.socket", "/_bpf-firewall.socket", true),
            ("cgroup.service", "/_cgroup.service", true),
            ("cgroup.service", "/cgroup.service", false),
            ("_x.service", "/__x.service", true),
            // That is x.service's.
            ("_x.service", "/_x.service", false),
            ("x.service", "/_x.service", false),
            ("memory-1.service", "/_memory-1.service", false),
        ] {
            let selector = Selector {
                unit: Some(unit.to_owned()),
                ..Selector::default()
            };
            assert_eq!(selects(&selector, cgroup), expected, "{unit} {cgroup}");
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

    fn policy(text: &str) -> Policy {
        let source = Source {
            name: "p".into(),
            text: text.into(),
        };
        let compiled = tollgate_policy::compile(&[source]);
        compiled.expect("a policy").policy
    }

    /// Who may make cgroups makes them below others: those near the root are seen, and it is said that others are not.
    #[test]
    fn where_there_are_too_many_those_near_the_root_are_seen() {
        let root = tempfile::tempdir().expect("a directory");
        for name in ["a/1/deep", "a/2", "a/3", "b"] {
            std::fs::create_dir_all(root.path().join(name)).expect("made");
        }
        let text = "version: 1\nworkloads: { near: { match: { cgroup: /b } }, far: { match: { cgroup: /a/1/deep } } }\n";
        let policy = policy(text);
        let seen = |most| {
            let found = walk_at_most(most, root.path(), &policy, &[]);
            let workloads = found.matches.into_iter().map(|m| m.workload);
            (workloads.collect::<Vec<_>>(), found.truncated)
        };
        assert_eq!(seen(7), (vec!["far".to_owned(), "near".to_owned()], false));
        assert_eq!(seen(6), (vec!["near".to_owned()], true));
        assert_eq!(seen(3), (vec!["near".to_owned()], true));
    }

    /// What the agent cannot look at may be a workload's.
    #[test]
    fn names_and_depths_that_are_not_looked_at_are_said() {
        let root = tempfile::tempdir().expect("a directory");
        let text = "version: 1\nworkloads: { near: { match: { cgroup: /b } } }\n";
        let policy = policy(text);
        let unread = || walk_at_most(1000, root.path(), &policy, &[]).unread;
        let mut deep = root.path().to_owned();
        deep.extend(["d"; DEPTH]);
        std::fs::create_dir_all(&deep).expect("made");
        assert_eq!(unread(), None);
        let deeper = deep.join("one-more");
        std::fs::create_dir(&deeper).expect("made");
        let said = unread().expect("said");
        assert!(
            said.contains("deeper") && said.contains("one-more"),
            "{said}"
        );
        std::fs::remove_dir(&deeper).expect("removed");
        let unnamed = root.path().join(OsStr::from_bytes(b"n\xff"));
        std::fs::create_dir(&unnamed).expect("made");
        let said = unread().expect("said");
        assert!(said.contains("UTF-8") && said.contains("n\\xFF"), "{said}");
    }

    /// The agent cannot hold itself: where a selector means its cgroup as well, all else is governed one by one.
    #[test]
    fn what_is_beside_the_agent_is_governed() {
        let root = tempfile::tempdir().expect("a directory");
        for name in ["s/agent/own", "s/one/below", "s/two", "t"] {
            std::fs::create_dir_all(root.path().join(name)).expect("made");
        }
        let own = ["/s/agent", "/s", "/"].map(str::to_owned);
        for glob in ["/s/**", "/s", "/**"] {
            let text =
                format!("version: 1\nworkloads: {{ w: {{ match: {{ cgroup: \"{glob}\" }} }} }}\n");
            let name = "p".into();
            let policy = tollgate_policy::compile(&[Source { name, text }])
                .expect("a policy")
                .policy;
            let found = walk_at_most(100, root.path(), &policy, &own);
            let cgroups: Vec<_> = found.matches.into_iter().map(|m| m.cgroup).collect();
            let others: &[&str] = match glob {
                "/**" => &["/s/agent/own", "/s/one", "/s/two", "/t"],
                _ => &["/s/agent/own", "/s/one", "/s/two"],
            };
            assert_eq!(cgroups, others, "{glob}");
            assert_eq!(found.own, ["/s", "/s/agent"], "{glob}");
        }
    }

    #[test]
    fn what_cannot_be_looked_at_is_told_from_what_is_gone() {
        for (errno, gone) in [
            (Errno::NOENT, true),
            (Errno::NODEV, true),
            (Errno::MFILE, false),
            (Errno::NOMEM, false),
        ] {
            assert_eq!(is_gone(&errno.into()), gone, "{errno}");
        }
    }

    #[test]
    fn what_is_above_a_name_that_is_no_text_is_seen() {
        let all = with_above(b"1:net_cls:/\n0::/a/b\xff/c\n");
        assert_eq!(all, ["/a", "/"]);
        assert_eq!(with_above(b"0::/a/b\n"), ["/a/b", "/a", "/"]);
        assert!(with_above(b"").is_empty());
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
