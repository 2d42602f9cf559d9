//! By what the hooks recognise workloads on their own: paths of cgroups as these are made, and rules on users and
//! executables. What is new is written before what is old is taken away, so that nothing is missed in between.
use super::{Case, CgroupPath, Error, Fence, FileState, Recognition, maps::Writers, maps::write};
use aya::maps::{HashMap as Map, MapData, MapError};
use std::collections::{BTreeMap, HashMap, HashSet};
use tollgate_common::recognise::{
    self as abi, ANY_NAME, Arrival, CGROUP_NAME, EXE_NAME, EXEMPT, Executable, File, GENERATIONS,
    MAX_CONDITIONS, NODES, OTHER, Rule, SHAPES, Shape, Step, UNKNOWN, UNSETTLED,
};

/// The tree of paths that the hooks go along.
#[derive(Debug, Default)]
struct Tree {
    names: BTreeMap<String, u32>,
    steps: BTreeMap<Step, Arrival>,
    shapes: Vec<Shape>,
    nodes: u32,
}

/// Could the hooks follow these paths?
///
/// # Errors
/// What is too much for them.
pub fn can_follow(paths: &[CgroupPath]) -> Result<(), Error> {
    Tree::grow(paths, 0, &BTreeMap::new(), &HashMap::new()).map(drop)
}

impl Fence {
    /// Has the hooks recognise exactly this.
    pub(super) fn recognise_by(&self, by: &Recognition) -> Result<(), Error> {
        // Each on its own: one that cannot be told is no reason not to tell the others.
        let all = [
            self.follow_paths(&by.paths),
            self.look_for(&by.exe_names),
            self.ask_by(by),
        ];
        all.into_iter().collect()
    }

    fn follow_paths(&self, paths: &[CgroupPath]) -> Result<(), Error> {
        let mut writers = self.maps.write();
        let workloads = self.ids(
            &mut writers,
            paths.iter().filter_map(|p| p.workload.as_deref()),
        )?;
        let generation = (self.scope.generation() + 1) % GENERATIONS;
        let known: BTreeMap<String, u32> = entries(&writers.names)
            .map(|(name, number)| (super::translate::text(&name), number))
            .collect();
        let tree = Tree::grow(paths, generation, &known, &workloads)?;
        for (name, number) in &tree.names {
            let name = padded(name);
            writers
                .names
                .insert(name, number, 0)
                .map_err(write("NAMES"))?;
        }
        for (step, arrival) in &tree.steps {
            let inserted = writers.steps.insert(step, arrival, 0);
            inserted.map_err(write("STEPS"))?;
        }
        self.scope.set_shapes(&tree.shapes);
        let stale = entries(&writers.steps).filter(|(step, _)| !tree.steps.contains_key(step));
        let stale: Vec<Step> = stale.map(|(step, _)| step).collect();
        stale
            .iter()
            .for_each(|step| drop(writers.steps.remove(step)));
        for name in known.keys().filter(|name| !tree.names.contains_key(*name)) {
            let _ = writers.names.remove(&padded(name));
        }
        Ok(())
    }

    fn look_for(&self, names: &HashSet<String>) -> Result<(), Error> {
        let mut writers = self.maps.write();
        let wanted: HashSet<[u8; EXE_NAME]> = names.iter().map(|name| padded(name)).collect();
        for name in &wanted {
            let inserted = writers.exe_names.insert(name, 1, 0);
            inserted.map_err(write("EXE_NAMES"))?;
        }
        let stale = entries(&writers.exe_names).filter(|(name, _)| !wanted.contains(name));
        let stale: Vec<_> = stale.map(|(name, _)| name).collect();
        stale
            .iter()
            .for_each(|name| drop(writers.exe_names.remove(name)));
        Ok(())
    }

    fn ask_by(&self, by: &Recognition) -> Result<(), Error> {
        let mut writers = self.maps.write();
        let workloads = self.ids(&mut writers, by.cases.iter().map(|case| &*case.workload))?;
        let mut wanted: HashMap<abi::Case, Rule> = HashMap::new();
        for case in &by.cases {
            let id = workloads.get(&*case.workload).copied().unwrap_or_default();
            for (key, rule) in written(case, id) {
                let best = wanted.entry(key).or_insert(rule);
                if rule.rank < best.rank {
                    *best = rule;
                }
            }
        }
        for (case, rule) in &wanted {
            let inserted = writers.rules.insert(case, rule, 0);
            inserted.map_err(write("RULES"))?;
        }
        self.scope.set_rules(flags(by));
        let stale = entries(&writers.rules).filter(|(case, _)| !wanted.contains_key(case));
        let stale: Vec<abi::Case> = stale.map(|(case, _)| case).collect();
        stale
            .iter()
            .for_each(|case| drop(writers.rules.remove(case)));
        // Again: a hook may have asked, and remembered the answer, while the old ones were there.
        self.scope.set_rules(flags(by));
        Ok(())
    }

    /// Ids of workloads by their names, made where there are none.
    fn ids<'a>(
        &self,
        writers: &mut Writers,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<HashMap<String, u32>, Error> {
        let names: HashSet<&str> = names.collect();
        self.workload_ids(writers, names.into_iter())
    }

    /// Says of which classes files are. Each that can be told is.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn know_all(&self, files: &HashMap<FileState, Option<u16>>) -> Result<(), Error> {
        let of_run = self.know_all_run(files);
        let told = files.iter();
        let told = told.map(|(file, class)| self.know_file(file, *class));
        // Whatever came of one, the next is told.
        told.fold(of_run, |all, one| all.and(one))
    }

    /// Tells the hooks what class a file is of.
    fn know_file(&self, file: &FileState, class: Option<u16>) -> Result<(), Error> {
        let known = Executable {
            seconds: file.changed.0,
            nanoseconds: file.changed.1,
            class: told(class),
        };
        let key = key(file);
        let mut writers = self.maps.write();
        match writers.executables.insert(key, known, 0) {
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::E2BIG) =>
            {
                // Full of files that were seen once: start over. What is in use of them is asked for again, unless it is called as no
                // rule has it: what is of a class, and what waits for a look, goes last.
                let class = |known: &Executable| known.class & u32::from(u16::MAX);
                forget(&mut writers, |known| class(known) == u32::from(OTHER));
                if writers.executables.insert(key, known, 0).is_ok() {
                    return Ok(());
                }
                forget(&mut writers, |known| {
                    class(known) < u32::from(abi::FIRST_CLASS)
                });
                if writers.executables.insert(key, known, 0).is_ok() {
                    return Ok(());
                }
                forget(&mut writers, |_| true);
                writers.executables.insert(key, known, 0)
            }
            result => result,
        }
        .map_err(write("EXECUTABLES"))
    }

    /// Do the hooks recognise by rules, be it an earlier agent's?
    pub fn has_rules(&self) -> bool {
        self.maps.write().rules.keys().next().is_some()
    }

    /// The files of which the hooks were told, each with its class, if it is of one.
    pub fn known_executables(&self) -> Vec<(FileState, Option<u16>)> {
        let writers = self.maps.write();
        let all = entries(&writers.executables).filter_map(|(file, known)| {
            // The upper half is of those that nobody has told of yet.
            let class = u16::try_from(known.class).ok()?;
            let state = FileState {
                device: file.device,
                inode: file.inode,
                changed: (known.seconds, known.nanoseconds),
            };
            (class != UNKNOWN).then_some((state, class.checked_sub(abi::FIRST_CLASS)))
        });
        all.collect()
    }

    /// Says of these that their classes are not known any more: who runs one is refused until that is told again. A file that is not
    /// there at all would be taken for one that no rule can mean.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn know_no_more(&self, files: &[(FileState, Option<u16>)]) -> Result<(), Error> {
        let mut writers = self.maps.write();
        for (file, _) in files {
            let unknown = Executable {
                seconds: file.changed.0,
                nanoseconds: file.changed.1,
                class: u32::from(UNKNOWN),
            };
            let told = writers.executables.insert(key(file), unknown, 0);
            told.map_err(write("EXECUTABLES"))?;
        }
        drop(writers);
        self.forget_run();
        let classes: HashSet<u16> = files.iter().filter_map(|(_, class)| *class).collect();
        self.forget_classes_if(|class| classes.contains(&class));
        Ok(())
    }

    /// Forgets of which classes the programs are that processes run: files are asked for that again.
    pub fn forget_classes(&self) {
        self.forget_classes_if(|_| true);
    }

    fn forget_classes_if(&self, is_meant: impl Fn(u16) -> bool) {
        self.marks.clear(|mark| {
            let class = mark.class();
            let is_known = mark.workload() == 0 && class != UNKNOWN && mark.awaits().is_none();
            is_known && is_meant(class.wrapping_sub(abi::FIRST_CLASS))
        });
    }
}

fn forget(writers: &mut Writers, is_meant: impl Fn(&Executable) -> bool) {
    let all = entries(&writers.executables).filter(|(_, known)| is_meant(known));
    let all: Vec<File> = all.map(|(file, _)| file).collect();
    all.iter()
        .for_each(|file| drop(writers.executables.remove(file)));
}

/// A file as the hooks have it.
fn key(file: &FileState) -> File {
    File {
        inode: file.inode,
        device: file.device,
        reserved: 0,
    }
}

/// What the hooks are told of a file; `None`: it is of no class.
pub(super) fn told(class: Option<u16>) -> u32 {
    u32::from(class.map_or(OTHER, class_of))
}

/// A class of the domain, which counts from 0, as the hooks have it.
fn class_of(number: u16) -> u16 {
    number.saturating_add(abi::FIRST_CLASS)
}

/// What the hooks are told of a case. Where it names executables, files that are not known yet may be of it.
fn written(case: &Case, workload: u32) -> impl Iterator<Item = (abi::Case, Rule)> {
    let (uid, any_user) = case.uid.map_or((0, 1), |uid| (uid, 0));
    let key = move |class: u16| abi::Case {
        condition: case.condition.map_or(0, |bit| bit + 1),
        class: u32::from(class),
        uid,
        any_user,
    };
    let unsettled = Rule {
        workload: u32::from(UNSETTLED),
        rank: case.rank,
        number: case.number,
        meaning: case.condition.map_or(0, |_| case.meaning),
    };
    let rule = match case.is_held {
        true => unsettled,
        false => Rule {
            workload,
            ..unsettled
        },
    };
    match case.executable {
        super::Runs::Anything => [Some((key(OTHER), rule)), None],
        super::Runs::Unknown => [Some((key(UNKNOWN), unsettled)), None],
        super::Runs::Class(class) => [Some((key(class_of(class)), rule)), None],
    }
    .into_iter()
    .flatten()
}

fn flags(by: &Recognition) -> u64 {
    let flag = |is, bit| if is { bit } else { 0 };
    flag(!by.cases.is_empty(), abi::ANY_RULE)
        | flag(by.by_executable, abi::BY_EXECUTABLE)
        | flag(by.by_digest, abi::BY_DIGEST)
        | flag(by.by_container, abi::BY_CONTAINER)
}

pub(super) fn entries<K: aya::Pod, V: aya::Pod>(
    map: &Map<MapData, K, V>,
) -> impl Iterator<Item = (K, V)> + '_ {
    map.iter().filter_map(Result::ok)
}

/// A name as the hooks have it: zeros behind it, cut where it is too long.
fn padded<const N: usize>(name: &str) -> [u8; N] {
    let mut padded = [0; N];
    for (to, from) in padded.iter_mut().take(N - 1).zip(name.bytes()) {
        *to = from;
    }
    padded
}

impl Tree {
    fn grow(
        paths: &[CgroupPath],
        generation: u32,
        known: &BTreeMap<String, u32>,
        workloads: &HashMap<String, u32>,
    ) -> Result<Self, Error> {
        let mut tree = Self::default();
        let mut next_name = known.values().max().map_or(1, |last| last + 1);
        for path in paths {
            tree.add_shape(path, generation)?;
            let mut node = generation * NODES;
            for (depth, name) in (1..).zip(&path.names) {
                let number = match name {
                    None => ANY_NAME,
                    Some(name) => *tree.names.entry(name.clone()).or_insert_with(|| {
                        known.get(name).copied().unwrap_or_else(|| {
                            next_name += 1;
                            next_name - 1
                        })
                    }),
                };
                let step = Step { node, name: number };
                node = tree.arrive(step, generation)?;
                if depth == path.names.len()
                    && let Some(arrival) = tree.steps.get_mut(&step)
                {
                    arrival.takes(path, workloads);
                }
            }
        }
        Ok(tree)
    }

    fn add_shape(&mut self, path: &CgroupPath, generation: u32) -> Result<(), Error> {
        let any = (1..).zip(&path.names).filter(|(_, name)| name.is_none());
        let stars = any.fold(0, |stars, (depth, _)| stars | 1_u32.wrapping_shl(depth));
        let depth = u32::try_from(path.names.len()).unwrap_or(u32::MAX);
        let shape = Shape::new(depth, stars, path.slices, generation);
        if !self.shapes.contains(&shape) {
            self.shapes.push(shape);
        }
        match self.shapes.len() <= SHAPES {
            true => Ok(()),
            false => Err(Error::TooMany {
                what: "shapes of cgroup paths (so many names deep, with `*` at these places)",
                limit: SHAPES as u32,
            }),
        }
    }

    fn arrive(&mut self, step: Step, generation: u32) -> Result<u32, Error> {
        if let Some(arrival) = self.steps.get(&step) {
            return Ok(arrival.node);
        }
        self.nodes += 1;
        if self.nodes >= NODES.min(abi::MAX_STEPS / 2) {
            return Err(Error::TooMany {
                what: "names in the cgroup paths of the policy",
                limit: abi::MAX_STEPS / 2,
            });
        }
        let node = generation * NODES + self.nodes;
        let arrival = Arrival {
            node,
            rank: u32::MAX,
            ..Arrival::default()
        };
        self.steps.insert(step, arrival);
        Ok(node)
    }
}

/// What a path gives to a cgroup that has it.
trait Takes {
    fn takes(&mut self, path: &CgroupPath, workloads: &HashMap<String, u32>);
}

impl Takes for Arrival {
    fn takes(&mut self, path: &CgroupPath, workloads: &HashMap<String, u32>) {
        if let Some(bit) = path.condition.filter(|bit| *bit < MAX_CONDITIONS) {
            self.conditions |= 1 << bit;
        }
        let id = match path.is_own {
            true => Some(u32::from(EXEMPT)),
            false => path
                .workload
                .as_ref()
                .and_then(|name| workloads.get(name))
                .copied(),
        };
        if let Some(id) = id.filter(|_| path.rank < self.rank) {
            self.rank = path.rank;
            self.workload = id;
        }
    }
}

const _: () = assert!(
    CGROUP_NAME > 255,
    "the kernel's own limit fits, with its NUL"
);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn path(text: &str, workload: &str, rank: u32) -> CgroupPath {
        CgroupPath {
            names: text
                .split('/')
                .map(|name| (name != "*").then(|| name.to_owned()))
                .collect(),
            slices: false,
            workload: Some(workload.to_owned()),
            rank,
            is_own: false,
            condition: None,
        }
    }

    #[test]
    fn paths_share_their_beginnings_and_keep_their_names_numbers() {
        let ids = HashMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let known = BTreeMap::from([("x".to_owned(), 7)]);
        let paths = [
            path("x/y", "b", 1),
            path("x/*", "a", 0),
            path("x/y", "a", 0),
        ];
        let tree = Tree::grow(&paths, 3, &known, &ids).unwrap();
        assert_eq!(tree.names["x"], 7);
        assert_eq!(tree.names["y"], 8);
        assert_eq!(tree.steps.len(), 3, "{tree:?}");
        assert_eq!(tree.shapes.len(), 2);
        let root = 3 * NODES;
        let first = tree.steps[&Step {
            node: root,
            name: 7,
        }];
        assert_eq!(first.workload, 0);
        let end = tree.steps[&Step {
            node: first.node,
            name: 8,
        }];
        assert_eq!((end.workload, end.rank), (1, 0), "the lowest rank has it");
    }

    #[test]
    fn too_many_shapes_are_an_error() {
        let ids = HashMap::new();
        let paths: Vec<_> = (0..=SHAPES)
            .map(|n| path(&format!("{}x", "*/".repeat(n)), "a", 0))
            .collect();
        assert!(Tree::grow(&paths[..SHAPES - 2], 0, &BTreeMap::new(), &ids).is_ok());
        assert!(Tree::grow(&paths, 0, &BTreeMap::new(), &ids).is_err());
    }
}
