//! Containers: which of the host's cgroups are one's, and what its engine says of it. A thread of its own asks, so that an
//! engine that hangs delays nothing; until there is an answer the container is refused.
mod ask;
mod bundle;
mod container;
mod cri;
mod docker;
mod protobuf;

pub(super) use container::{Container, Held};

use super::agent::lock;
use super::cgroups::{Match, is_gone};
use super::selectors::has_process;
use crate::config::ContainerEngine;
use crate::kernel::{Fence, UNSETTLED_NAME};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore, mpsc};
use tollgate_policy::{Policy, Selector};

/// Ids waiting to be asked for; more are asked for with the next walk.
const WAITING: usize = 1024;
/// Asked for at one time.
const AT_ONCE: usize = 16;
/// One that nobody knew is asked for again after this long.
const AGAIN: Duration = Duration::from_secs(2);
/// Digits of a container's id.
const DIGITS: usize = 64;

/// How far one is.
#[derive(Debug, Clone)]
struct State {
    /// What is known of it, or why nothing is; `None`: nobody has answered yet.
    told: Option<Result<Container, String>>,
    /// Since when; `None`: it is being asked for.
    at: Option<Instant>,
}

/// What the policy says of the containers that there are.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Those that are a workload's as a whole.
    pub(super) matches: Vec<Match>,
    /// All that are known, by their cgroups: a rule on processes may ask for them too.
    pub(super) known: HashMap<String, Container>,
    /// Why not all could be looked at: then nothing is let go of.
    pub(super) unread: Option<String>,
    /// Why one that is to be refused is not.
    pub(super) unheld: Option<String>,
    /// Cgroups of which the hooks do not know what conditions they fulfil: no container there is let go of.
    pub(super) untold: Vec<PathBuf>,
    /// Cgroups that are not to be let go of; `None`: there is nothing to let go of.
    stay: Option<HashSet<String>>,
    looks: bool,
}

/// What is known of containers.
#[derive(Debug)]
pub(super) struct Containers {
    states: Arc<Mutex<HashMap<String, State>>>,
    asked: mpsc::Sender<String>,
    /// Told when something became known.
    pub(super) learned: Arc<Notify>,
    /// Cgroups that are refused, and why.
    refused: Mutex<BTreeMap<String, String>>,
    /// The policy looked at last names containers, or an earlier agent's may have.
    looked: AtomicBool,
    thread: JoinHandle<()>,
}

impl Containers {
    /// Starts the thread that asks; it ends with this.
    pub(super) fn start(sources: Vec<ContainerEngine>) -> io::Result<Self> {
        let (asked, mut waiting) = mpsc::channel::<String>(WAITING);
        let (states, learned) = (Arc::default(), Arc::new(Notify::new()));
        let (known, told) = (Arc::clone(&states), Arc::clone(&learned));
        let sources: Arc<[ContainerEngine]> = sources.into();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let ask_all = async move {
            let places = Arc::new(Semaphore::new(AT_ONCE));
            while let Some(id) = waiting.recv().await {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                    return;
                };
                let (sources, states, learned) = (
                    Arc::clone(&sources),
                    Arc::clone(&states),
                    Arc::clone(&learned),
                );
                tokio::spawn(async move {
                    let state = State {
                        told: Some(ask::ask(&sources, &id).await),
                        at: Some(Instant::now()),
                    };
                    keep(&states, id, state);
                    learned.notify_one();
                    drop(place);
                });
            }
        };
        let thread = std::thread::Builder::new()
            .name("containers".to_owned())
            .spawn(move || runtime.block_on(ask_all))?;
        Ok(Self {
            states: known,
            asked,
            learned: told,
            refused: Mutex::default(),
            looked: AtomicBool::new(true),
            thread,
        })
    }

    /// Has the thread ended? Nobody asks it to as long as this is there.
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }

    /// Containers that are refused because nobody could say whose they are: cgroup, and why.
    pub(super) fn refused(&self) -> BTreeMap<String, String> {
        lock(&self.refused).clone()
    }

    /// What the containers among `directories` are by the policy. One that is not known yet stays what it was, or is
    /// refused; none is let go of before [`Self::let_go`]. `taken`: cgroups that the policy names itself; `was`: whose each is now.
    pub(super) fn settle(
        &self,
        fence: &Fence,
        policy: &Policy,
        directories: &[PathBuf],
        taken: &HashSet<String>,
        was: impl Fn(&str) -> Option<String>,
    ) -> Settled {
        let all = policy.workloads().iter().flat_map(|w| &w.selectors);
        let looks = all.clone().any(Selector::is_of_containers);
        let (mut settled, mut refused, mut ids) =
            (Settled::default(), BTreeMap::new(), HashSet::new());
        for directory in directories.iter().filter(|_| looks) {
            let Some((cgroup, id)) = container(fence.cgroup_root(), directory) else {
                continue;
            };
            let meta = match fs::metadata(directory) {
                Ok(meta) => meta,
                Err(error) if is_gone(&error) => continue,
                Err(error) => {
                    settled.unread =
                        Some(format!("cannot look at {}: {error}", directory.display()));
                    continue;
                }
            };
            let is_believed = is_named_by_root(fence.cgroup_root(), directory, &meta);
            if !is_believed || taken.contains(&cgroup) {
                continue;
            }
            ids.insert(id.to_owned());
            let (whose, container) = self.look(policy, &cgroup, id);
            let known = container.map(|container| (cgroup.clone(), container));
            settled.known.extend(known);
            let found = match whose {
                Whose::Nobodys => None,
                Whose::A(workload, by) => Some((workload, Some(by))),
                Whose::Unknown(why) => {
                    let known = was(&cgroup);
                    if known.is_none() {
                        let unheld = hold(fence, &cgroup).err();
                        settled.unheld = unheld.or(settled.unheld);
                        refused.insert(cgroup.clone(), why);
                    }
                    known.map(|workload| (workload, None))
                }
            };
            settled.matches.extend(found.map(|(workload, by)| Match {
                inode: meta.ino(),
                cgroup,
                workload,
                by,
            }));
        }
        lock(&self.states).retain(|id, _| ids.contains(id));
        if settled.unread.is_none() && (looks || self.looked.load(Ordering::Relaxed)) {
            let whole = settled.matches.iter().map(|m| &m.cgroup);
            let stay = whole.chain(refused.keys()).chain(taken);
            settled.stay = Some(stay.cloned().collect());
            settled.looks = looks;
            self.looked.store(looks, Ordering::Relaxed);
            self.tell(refused);
        }
        settled
    }

    /// Lets go of what hooks hold and is known by now to be nobody's, or only looked like a container: once the hooks know
    /// by which rules its processes may be somebody's.
    pub(super) fn let_go(fence: &Fence, settled: &Settled, directories: &[PathBuf]) {
        if let Some(stay) = &settled.stay {
            let walked = settled.looks.then_some(directories);
            release_others(fence, walked, stay, &settled.untold);
        }
    }

    fn tell(&self, refused: BTreeMap<String, String>) {
        let mut old = lock(&self.refused);
        for (cgroup, why) in refused
            .iter()
            .filter(|(cgroup, why)| old.get(*cgroup) != Some(why))
        {
            tracing::warn!(
                cgroup,
                "a container that nobody can tell the owner of is refused: {why}"
            );
        }
        *old = refused;
    }

    /// Whose a container is, and what is known of it, if that says whose. Asked for where it does not.
    fn look(&self, policy: &Policy, cgroup: &str, id: &str) -> (Whose, Option<Container>) {
        // Held until it is noted that this is asked: the answer comes after.
        let mut states = lock(&self.states);
        let state = states.get(id).cloned();
        let is_due = match &state {
            None => true,
            Some(state) => state.at.is_some_and(|at| at.elapsed() > AGAIN),
        };
        let told = state.and_then(|state| state.told);
        let why = match &told {
            None => "its engine was asked".to_owned(),
            Some(Err(why)) => why.clone(),
            Some(Ok(container)) => match whose(policy, cgroup, container) {
                Whose::Unknown(why) => why,
                known => return (known, Some(container.clone())),
            },
        };
        if is_due && self.asked.try_send(id.to_owned()).is_ok() {
            states.insert(id.to_owned(), State { told, at: None });
        }
        (Whose::Unknown(why), None)
    }
}

fn keep(states: &Mutex<HashMap<String, State>>, id: String, state: State) {
    lock(states).insert(id, state);
}

/// What was made after the walk that found `directories` is not let go of.
fn release_others(
    fence: &Fence,
    directories: Option<&[PathBuf]>,
    stay: &HashSet<String>,
    untold: &[PathBuf],
) {
    let root = fence.cgroup_root();
    let walked: Option<HashSet<&Path>> =
        directories.map(|all| all.iter().map(PathBuf::as_path).collect());
    for held in fence.governed() {
        if held.workload != UNSETTLED_NAME {
            continue;
        }
        let is_settled = held.cgroup.as_ref().map_or(held.is_gone, |cgroup| {
            let directory = root.join(cgroup.trim_start_matches('/'));
            let was_seen = |walked: &HashSet<&Path>| walked.contains(directory.as_path());
            let is_told = !untold
                .iter()
                .any(|one| one.starts_with(cgroup) || Path::new(cgroup).starts_with(one));
            is_told && !stay.contains(cgroup) && walked.as_ref().is_none_or(was_seen)
        });
        if is_settled {
            super::enrol::release(fence, held.cgroup_id);
        }
    }
}

/// Whoever may make cgroups may give them any name: only root's are believed. Theirs is the name of whom the directories above
/// let write, since none is given another later; the cgroup itself may have been given to the container's user by then. Where
/// others may make some, those that root made and kept are its.
fn is_named_by_root(root: &Path, directory: &Path, own: &Metadata) -> bool {
    // One that cannot be looked at is not known to be another's.
    let is_roots = |one: &Path| fs::metadata(one).map_or(true, |meta| is_roots(&meta));
    let mut above = directory.ancestors().skip(1);
    own.uid() == 0 || above.all(|one| !one.starts_with(root) || is_roots(one))
}

/// May nobody but root write there?
fn is_roots(meta: &Metadata) -> bool {
    meta.uid() == 0 && meta.mode() & 0o022 == 0
}

/// It is tried again with the next walk.
fn hold(fence: &Fence, cgroup: &str) -> Result<(), String> {
    match fence.hold(Path::new(cgroup)) {
        Err(error) if !error.is_of_a_cgroup_gone() => Err(format!("{cgroup} is not held: {error}")),
        _ => Ok(()),
    }
}

/// The cgroup of a directory, and the container's id that is in its name. Within a container, a name says nothing: the
/// container itself may have given it.
fn container<'d>(root: &Path, directory: &'d Path) -> Option<(String, &'d str)> {
    let below = directory.strip_prefix(root).ok()?.to_str()?;
    let (above, name) = below.rsplit_once('/').unwrap_or(("", below));
    let id = id_of(name)?;
    let is_within = above.split('/').any(|part| id_of(part).is_some());
    (!is_within).then(|| (format!("/{below}"), id))
}

/// As engines name them: the id, with the engine's name before it, as a scope of systemd's or not.
fn id_of(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let at = name.len().checked_sub(DIGITS)?;
    let (prefix, id) = (name.get(..at)?, name.get(at..)?);
    let is_id = id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    // What watches a container is not it.
    let is_engine = prefix.is_empty() || (prefix.ends_with('-') && !prefix.contains("conmon"));
    (is_id && is_engine).then_some(id)
}

/// What the policy says of a container by what is known of it.
enum Whose {
    Nobodys,
    /// A workload's as a whole, and by what.
    A(String, String),
    /// Nobody can tell; why.
    Unknown(String),
}

/// The first workload, by name, that has a selector for this container as a whole. It is nobody's only if no selector may
/// mean it, also of those that name its processes besides.
fn whose(policy: &Policy, cgroup: &str, container: &Container) -> Whose {
    let held = |selector: &Selector| container.is_selected(selector, cgroup);
    let unknown = || Whose::Unknown(container.unsure.clone().unwrap_or_default());
    for workload in policy.workloads() {
        let whole = workload.selectors.iter().filter(|one| !has_process(one));
        if let Some(selector) = whole.clone().find(|one| held(one) == Held::Yes) {
            let evidence = container.evidence(selector);
            return Whose::A(workload.name.clone(), evidence);
        }
        if whole.clone().any(|one| held(one) == Held::Unknown) {
            return unknown();
        }
    }
    let mut all = policy.workloads().iter().flat_map(|w| &w.selectors);
    match all.any(|one| held(one) == Held::Unknown) {
        true => unknown(),
        false => Whose::Nobodys,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_found_as_engines_name_their_cgroups() {
        let id = "0123456789abcdef".repeat(4);
        let root = Path::new("/cg");
        for (name, is) in [
            (format!("system.slice/docker-{id}.scope"), true),
            (format!("docker/{id}"), true),
            (
                format!("kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
                true,
            ),
            (format!("kubepods/besteffort/pod1/{id}"), true),
            (format!("machine.slice/libpod-{id}.scope"), true),
            (format!("crio-{id}"), true),
            (format!("crio-conmon-{id}.scope"), false),
            (format!("x{id}"), false),
            (format!("docker-{}.scope", &id[1..]), false),
            (format!("docker-{}.scope", id.to_uppercase()), false),
            (format!("docker/{id}/docker/{id}"), false),
            (format!("docker/{id}/init"), false),
            ("é".repeat(40), false),
        ] {
            let directory = root.join(&name);
            let found = container(root, &directory);
            let expected = is.then(|| (format!("/{name}"), id.as_str()));
            assert_eq!(found, expected, "{name}");
        }
    }
}
