//! From a policy's selectors to what the kernel half recognises by: paths of cgroups, and cases of user, executable
//! and cgroup together.
use super::cgroups::unit_names;
use super::conditions::{Condition, Conditions};
use super::containers::{Container, Held};
use super::executables::Wants;
use super::paths::Paths;
use super::users::Database;
use crate::kernel::{Bits, Case, CgroupPath, Recognition, Runs};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use tollgate_policy::{Policy, Selector};

/// Slices that a unit's cgroup may lie in, one in the other: deeper ones are found by the agent's own walk.
const SLICES: usize = 7;
/// Numbers of selectors: as many as a process's mark has room for, or fewer.
const NUMBERS: u16 = 30_000;

/// A policy's selectors, understood.
#[derive(Debug, Default)]
pub(super) struct Selectors {
    /// All of them, in the order of the workloads' names.
    all: Vec<Numbered>,
    /// Numbers that they have.
    numbers: HashSet<u16>,
    /// Cgroup conditions that stand beside others.
    pub(super) conditions: Conditions,
    /// Executables that are named.
    pub(super) wants: Vec<Wants>,
}

/// A selector, and how it is to be written down for the hooks.
#[derive(Debug)]
struct Numbered {
    /// It comes of what the selector says: a process is marked with it, and policy changes.
    number: u16,
    selector: Selector,
    workload: String,
    rank: u32,
    /// Its place among the conditions.
    condition: Option<usize>,
    wants: Option<usize>,
}

impl Selectors {
    /// `before`: those that the hooks were told of last, or were to be; `bits`: what they have. What a bit means there it means
    /// here, so that nothing that hooks go by while policy changes is taken for something else.
    pub(super) fn of(policy: &Policy, before: &Self, bits: &Bits) -> Self {
        let mut found = Self::default();
        for (rank, workload) in (0..).zip(policy.workloads()) {
            for selector in &workload.selectors {
                let numbered = Numbered {
                    number: found.number(selector),
                    condition: found.conditions.place(selector),
                    wants: found.wants(selector),
                    selector: selector.clone(),
                    workload: workload.name.clone(),
                    rank,
                };
                found.all.push(numbered);
            }
        }
        found.conditions.take_over(&before.conditions);
        found.conditions.give_bits(bits);
        found
    }

    fn number(&mut self, selector: &Selector) -> u16 {
        let digest = Sha256::digest(shown(selector));
        let first = digest
            .iter()
            .take(2)
            .fold(0, |sum, byte| sum * 256 + u16::from(*byte));
        let first = first % NUMBERS;
        let is_full = self.numbers.len() >= NUMBERS.into();
        let mut all = (0..NUMBERS).map(|more| (first + more) % NUMBERS);
        // Where there are more selectors than numbers, some have the same.
        let number = all
            .find(|number| is_full || !self.numbers.contains(number))
            .unwrap_or(first);
        self.numbers.insert(number);
        number
    }

    fn condition_of(&self, one: &Numbered) -> Option<&Condition> {
        self.conditions.at(one.condition?)
    }

    fn wants(&mut self, selector: &Selector) -> Option<usize> {
        if selector.exe.is_none() && selector.sha256.is_none() {
            return None;
        }
        let wants = Wants {
            exe: selector.exe.as_ref().map(Into::into),
            sha256: selector.sha256.clone(),
        };
        let known = self.wants.iter().position(|known| *known == wants);
        Some(known.unwrap_or_else(|| {
            self.wants.push(wants);
            self.wants.len() - 1
        }))
    }

    /// What the hooks are told. `classes`: each class of executables, and which of `wants` it fulfils. `own`: the agent's cgroup.
    pub(super) fn recognition(
        &self,
        users: &Database,
        classes: &BTreeMap<u16, Vec<usize>>,
        own: &str,
    ) -> Recognition {
        let mut told = Recognition::default();
        let own: Vec<&str> = own.split('/').filter(|name| !name.is_empty()).collect();
        for one in &self.all {
            let condition = self.condition_of(one);
            let found = one.paths(condition);
            let beside: Vec<CgroupPath> = found
                .iter()
                .flat_map(|path| beside_the_agent(path, &own))
                .collect();
            told.paths.extend(found.into_iter().chain(beside));
            if has_process(&one.selector) {
                told.cases.extend(one.cases(condition, users, classes));
            }
        }
        let named = self
            .wants
            .iter()
            .filter_map(|wants| wants.exe.as_ref()?.file_name());
        told.exe_names = named
            .map(|name| name.to_string_lossy().into_owned())
            .collect();
        told.by_container = self.all.iter().any(|one| one.selector.is_of_containers());
        told.by_executable = !self.wants.is_empty();
        told.by_digest = self.wants.iter().any(|wants| wants.exe.is_none());
        told
    }

    /// The first selector with whose paths the hooks have more than they can follow, and why.
    pub(super) fn unfollowed(&self) -> Option<(&Selector, crate::kernel::Error)> {
        let mut all = Vec::new();
        let fails = |all: &[CgroupPath]| crate::kernel::can_follow(all).err();
        let each: Vec<usize> = (self.all.iter())
            .map(|one| {
                all.extend(one.paths(self.condition_of(one)));
                all.len()
            })
            .collect();
        let first =
            each.partition_point(|end| fails(all.get(..*end).unwrap_or_default()).is_none());
        let error = fails(all.get(..*each.get(first)?)?)?;
        Some((&self.all.get(first)?.selector, error))
    }

    /// Conditions that a cgroup itself fulfils; `container`: what is known of it, where it is one's.
    pub(super) fn fulfilled(&self, cgroup: &str, container: Option<&Container>) -> u64 {
        let holds = |condition: &Selector| {
            super::cgroups::selects(condition, cgroup)
                || container.is_some_and(|one| one.is_selected(condition, cgroup) == Held::Yes)
        };
        self.conditions.that(holds)
    }

    /// The first that recognises a process by what is known of it, and its number.
    pub(super) fn process(
        &self,
        uid: u32,
        runs: &[usize],
        conditions: u64,
        users: &Database,
    ) -> Option<(u16, &str)> {
        let holds = |one: &Numbered| {
            has_process(&one.selector)
                && (self.condition_of(one))
                    .is_none_or(|condition| conditions & condition.mask() != 0)
                && one.wants.is_none_or(|wants| runs.contains(&wants))
                && one
                    .selector
                    .user
                    .as_ref()
                    .is_none_or(|user| users.uid(user) == Some(uid))
        };
        let one = self.all.iter().find(|one| holds(one))?;
        Some((one.number, &one.workload))
    }

    /// Selectors by which nobody is recognised on this host now, or not all the time, and why.
    pub(super) fn unresolved(&self, users: &Database, paths: &Paths) -> Vec<String> {
        let unknown = |user: &String| {
            users.uid(user).is_none().then(|| "no such user is in /etc/passwd: mend the name, or give the number of one that only other sources (LDAP, sssd) know".to_owned())
        };
        let of = |one: &Numbered| {
            let selector = &one.selector;
            let user = selector.user.as_ref().and_then(unknown);
            let exe = selector.exe.as_ref().map(Path::new);
            let why = user.or_else(|| paths.trouble(exe?))?;
            Some(format!(
                "{} of workload {}: {why}",
                shown(selector),
                one.workload
            ))
        };
        self.all.iter().filter_map(of).collect()
    }

    /// Does any selector look at processes themselves?
    pub(super) fn has_rules(&self) -> bool {
        self.all.iter().any(|one| has_process(&one.selector))
    }

    /// Does any name a user?
    pub(super) fn names_users(&self) -> bool {
        self.all.iter().any(|one| one.selector.user.is_some())
    }

    /// A selector by its number, for a person.
    pub(super) fn describe(&self, number: u16) -> Option<String> {
        let one = self.all.iter().find(|one| one.number == number)?;
        Some(shown(&one.selector))
    }
}

/// A selector, for a person.
fn shown(selector: &Selector) -> String {
    let labels = selector.shown_labels();
    let parts = [
        ("user", &selector.user),
        ("exe", &selector.exe),
        ("sha256", &selector.sha256),
        ("unit", &selector.unit),
        ("cgroup", &selector.cgroup),
        ("container", &selector.container),
        ("labels", &labels),
    ];
    let given = parts.into_iter().filter_map(|(key, value)| {
        let value: String = value.as_ref()?.chars().take(64).collect();
        Some(format!("{key} {value}"))
    });
    given.collect::<Vec<_>>().join(", ")
}

impl Numbered {
    /// Of cgroups that are governed, or looked at by rules, from their birth on.
    fn paths(&self, condition: Option<&Condition>) -> Vec<CgroupPath> {
        let workload = condition.is_none().then(|| self.workload.clone());
        let condition = condition.and_then(|one| one.bit);
        let is_any = workload.is_some() || condition.is_some();
        if !has_cgroup(&self.selector)
            || !is_any
            || workload.is_some() && has_process(&self.selector)
        {
            return Vec::new();
        }
        let of = |(names, slices)| CgroupPath {
            names,
            slices,
            workload: workload.clone(),
            is_own: false,
            // Below all is the agent's own.
            rank: self.rank.saturating_add(1),
            condition,
        };
        paths(&self.selector).map(of).collect()
    }

    fn cases(
        &self,
        condition: Option<&Condition>,
        users: &Database,
        classes: &BTreeMap<u16, Vec<usize>>,
    ) -> Vec<Case> {
        let uid = match &self.selector.user {
            None => None,
            // Nobody's yet: there is no such user for as long as the host says so.
            Some(user) => match users.uid(user) {
                None => return Vec::new(),
                known => known,
            },
        };
        let case = |executable| Case {
            condition: condition.and_then(|one| one.bit),
            meaning: condition.map_or(0, |one| one.meaning),
            is_held: condition.is_some_and(|one| one.bit.is_none()),
            uid,
            executable,
            workload: self.workload.clone(),
            rank: self.rank,
            number: self.number.into(),
        };
        let Some(wants) = self.wants else {
            return vec![case(Runs::Anything)];
        };
        let fulfilling = classes
            .iter()
            .filter(|(_, fulfilled)| fulfilled.contains(&wants));
        fulfilling
            .map(|(class, _)| case(Runs::Class(*class)))
            .chain(std::iter::once(case(Runs::Unknown)))
            .collect()
    }
}

/// Is there a condition on the cgroup?
pub(super) fn has_cgroup(selector: &Selector) -> bool {
    selector.cgroup.is_some() || selector.unit.is_some() || selector.is_of_containers()
}

/// Is there a condition on the process itself?
pub(super) fn has_process(selector: &Selector) -> bool {
    selector.user.is_some() || selector.exe.is_some() || selector.sha256.is_some()
}

type Names = Vec<Option<String>>;

/// The cgroup paths that a selector means, and whether all but the last name must be slices. None where only the agent
/// can tell.
fn paths(selector: &Selector) -> impl Iterator<Item = (Names, bool)> {
    let mut found: Vec<(Names, bool)> = Vec::new();
    let literal = |name: &str| (name != "*").then(|| name.to_owned());
    let glob = selector.cgroup.as_deref().map(|glob| {
        let glob = glob.trim_start_matches('/');
        let (names, open) = match glob.strip_suffix("**") {
            Some(above) => (above.trim_end_matches('/'), true),
            None => (glob, false),
        };
        let names: Names = names
            .split('/')
            .filter(|name| !name.is_empty())
            .map(literal)
            .collect();
        (names, open)
    });
    match (selector.is_of_containers(), &selector.unit, glob) {
        (false, Some(unit), None) => {
            found.extend(unit_names(unit).flat_map(|unit| below(&[], &unit)));
        }
        (false, None, Some((names, _))) if !names.is_empty() => found.push((names, false)),
        (false, None, Some(_)) => found.push((vec![None], false)),
        (false, Some(unit), Some((names, open))) => {
            for unit in unit_names(unit) {
                if open {
                    found.extend(below(&names, &unit));
                }
                found.extend(at_the_end(names.clone(), unit).map(|names| (names, true)));
            }
        }
        _ => {}
    }
    found.into_iter()
}

/// Where such a path is the agent's cgroup or one above it, nothing is governed by being below that: what is beside the agent has
/// paths of its own, and the agent's own path is nobody's when its service is started again.
fn beside_the_agent(path: &CgroupPath, own: &[&str]) -> Vec<CgroupPath> {
    let Some(above) = own.get(..path.names.len()) else {
        return Vec::new();
    };
    let is_it =
        |(name, own): (&Option<String>, &&str)| name.as_ref().is_none_or(|name| name == own);
    let slices = above
        .split_last()
        .is_none_or(|(_, slices)| slices.iter().all(|name| name.ends_with(".slice")));
    if path.workload.is_none() || !path.names.iter().zip(above).all(is_it) || path.slices && !slices
    {
        return Vec::new();
    }
    let literal = |depth: usize| -> Names {
        let names = own.iter().take(depth);
        names.map(|name| Some((*name).to_owned())).collect()
    };
    let found = (path.names.len()..=own.len()).flat_map(|depth| {
        let agents = CgroupPath {
            names: literal(depth),
            is_own: true,
            ..CgroupPath::default()
        };
        let mut names = literal(depth);
        names.push(None);
        let beside = CgroupPath {
            names,
            slices: false,
            ..path.clone()
        };
        [Some(agents), (depth < own.len()).then_some(beside)]
    });
    found.flatten().collect()
}

/// A path of which the last name may be a unit's: with that.
fn at_the_end(mut names: Names, unit: String) -> Option<Names> {
    let last = names.last_mut()?;
    if last.as_ref().is_some_and(|last| *last != unit) {
        return None;
    }
    *last = Some(unit);
    Some(names)
}

/// A unit in so many slices below `above`.
fn below(above: &[Option<String>], unit: &str) -> Vec<(Names, bool)> {
    let within = |slices| {
        let stars = std::iter::repeat_n(None, slices);
        let names = above.iter().cloned().chain(stars);
        (names.chain([Some(unit.to_owned())]).collect(), true)
    };
    (0..=SLICES.saturating_sub(above.len()))
        .map(within)
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shown(selector: &Selector) -> Vec<String> {
        let text = |(names, slices): (Names, bool)| {
            let names: Vec<String> = names.into_iter().map(|n| n.unwrap_or("*".into())).collect();
            format!("{}{}", names.join("/"), if slices { " slices" } else { "" })
        };
        paths(selector).map(text).collect()
    }

    fn selector(cgroup: Option<&str>, unit: Option<&str>) -> Selector {
        Selector {
            cgroup: cgroup.map(str::to_owned),
            unit: unit.map(str::to_owned),
            ..Selector::default()
        }
    }

    #[test]
    fn paths_of_selectors() {
        assert_eq!(shown(&selector(Some("/a/*/c"), None)), ["a/*/c"]);
        assert_eq!(shown(&selector(Some("/a/**"), None)), ["a"]);
        assert_eq!(shown(&selector(Some("/**"), None)), ["*"]);
        let unit = shown(&selector(None, Some("x.service")));
        assert_eq!(unit.len(), SLICES + 1);
        assert_eq!(unit.first().unwrap(), "x.service slices");
        assert_eq!(unit.get(2).unwrap(), "*/*/x.service slices");
        let both = shown(&selector(Some("/user.slice/**"), Some("n.scope")));
        assert_eq!(both.first().unwrap(), "user.slice/n.scope slices");
        assert_eq!(both.get(1).unwrap(), "user.slice/*/n.scope slices");
        assert_eq!(
            shown(&selector(Some("/a.slice/*"), Some("n.scope"))),
            ["a.slice/n.scope slices"]
        );
        assert!(shown(&selector(Some("/a.slice/b"), Some("n.scope"))).is_empty());
        // As systemd calls their cgroups.
        let both = shown(&selector(None, Some("io.service")));
        assert_eq!(both.len(), 2 * (SLICES + 1));
        for name in ["io.service slices", "*/_io.service slices"] {
            assert!(both.iter().any(|path| path == name), "{both:?}");
        }
        assert_eq!(
            shown(&selector(Some("/a.slice/*"), Some("_x.service"))),
            ["a.slice/__x.service slices"]
        );
        assert_eq!(
            shown(&selector(Some("/a.slice/_io.service"), Some("io.service"))),
            ["a.slice/_io.service slices"]
        );
    }

    #[test]
    fn what_the_hooks_are_told() {
        let text = "version: 1\nworkloads:\n  a: { match: { user: root, cgroup: /x/** } }\n  b: { match: { exe: /bin/sh } }\n  c: { match: { unit: c.service } }\n  d: { match: { user: nobody-there } }\n";
        let source = tollgate_policy::syntax::Source {
            name: "p".into(),
            text: text.to_owned(),
        };
        let policy = tollgate_policy::compile(&[source]).unwrap().policy;
        let bits = Bits::default();
        let selectors = Selectors::of(&policy, &Selectors::default(), &bits);
        let users = Database::of("root:x:0:0::/:/bin/sh\n", "");
        let unknown = selectors.unresolved(&users, &Paths::default());
        let told: Vec<_> = unknown
            .iter()
            .filter_map(|line| line.split_once(": "))
            .map(|(selector, _)| selector)
            .collect();
        assert_eq!(
            told,
            [
                "exe /bin/sh of workload b",
                "user nobody-there of workload d"
            ]
        );
        let bit = selectors.conditions.at(0).unwrap().bit;
        let held = selectors.conditions.bits();
        let classes = BTreeMap::from([(9, vec![0])]);
        let told = selectors.recognition(&users, &classes, "/");
        assert!(told.by_executable && !told.by_digest && told.exe_names.contains("sh"));
        let cases: Vec<_> = told
            .cases
            .iter()
            .map(|c| (&*c.workload, c.executable, c.uid, c.condition))
            .collect();
        assert_eq!(
            cases,
            [
                ("a", Runs::Anything, Some(0), bit),
                ("b", Runs::Class(9), None, None),
                ("b", Runs::Unknown, None, None)
            ]
        );
        let first = told.paths.first().unwrap();
        assert_eq!((first.condition, first.workload.as_deref()), (bit, None));
        assert_eq!(selectors.fulfilled("/x/y", None), held);
        assert_eq!(selectors.fulfilled("/y", None), 0);
        let (number, workload) = selectors.process(0, &[], held, &users).unwrap();
        assert_eq!(workload, "a");
        assert_eq!(
            selectors.describe(number).unwrap(),
            "user root, cgroup /x/**"
        );
        // It stays that selector's in another policy, where others come before it.
        let text = text.replace(
            "workloads:\n",
            "workloads:\n  'A': { match: { user: root } }\n",
        );
        let source = tollgate_policy::syntax::Source {
            name: "p".into(),
            text,
        };
        let policy = tollgate_policy::compile(&[source]).unwrap().policy;
        let others = Selectors::of(&policy, &Selectors::default(), &bits);
        assert_eq!(others.describe(number), selectors.describe(number));
        assert_eq!(selectors.process(0, &[], 0, &users), None);
        assert_eq!(selectors.process(5, &[0], 0, &users).unwrap().1, "b");
    }
}
