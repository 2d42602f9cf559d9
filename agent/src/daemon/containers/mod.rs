//! Containers: which of the host's cgroups are one's, and what its engine says of it. A thread of its own asks, so that an
//! engine that hangs delays nothing; until there is an answer the container is refused.
mod ask;

use super::agent::lock;
use super::cgroups::{self, Match};
use super::selectors::has_process;
use crate::kernel::{Fence, UNSETTLED_NAME};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
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

/// What an engine says of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Container {
    name: Option<String>,
    image: Option<String>,
}

/// How far one is.
#[derive(Debug, Clone)]
enum State {
    Asked,
    Found(Container),
    Lost { why: String, at: Instant },
}

/// What the policy says of the containers that there are.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// Those that are a workload's as a whole.
    pub(super) matches: Vec<Match>,
    /// All that are known, by their cgroups: a rule on processes may ask for them too.
    pub(super) known: HashMap<String, Container>,
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
}

impl Containers {
    /// Starts the thread that asks; it ends with this.
    pub(super) fn start(sources: Vec<PathBuf>) -> io::Result<Self> {
        let (asked, mut waiting) = mpsc::channel::<String>(WAITING);
        let (states, learned) = (Arc::default(), Arc::new(Notify::new()));
        let found = Self {
            states: Arc::clone(&states),
            asked,
            learned: Arc::clone(&learned),
            refused: Mutex::default(),
            looked: AtomicBool::new(true),
        };
        let sources: Arc<[PathBuf]> = sources.into();
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
                    let state = match ask::ask(&sources, &id).await {
                        Ok(container) => State::Found(container),
                        Err(why) => State::Lost {
                            why,
                            at: Instant::now(),
                        },
                    };
                    keep(&states, id, state);
                    learned.notify_one();
                    drop(place);
                });
            }
        };
        std::thread::Builder::new()
            .name("containers".to_owned())
            .spawn(move || runtime.block_on(ask_all))?;
        Ok(found)
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
        let looks = all.clone().any(|selector| selector.container.is_some());
        let (mut settled, mut refused, mut ids) =
            (Settled::default(), BTreeMap::new(), HashSet::new());
        for directory in directories.iter().filter(|_| looks) {
            let Some((cgroup, id)) = container(fence.cgroup_root(), directory) else {
                continue;
            };
            let Ok(meta) = std::fs::metadata(directory) else {
                continue;
            };
            // Whoever may make cgroups may give them any name: only root's are believed.
            if meta.uid() != 0 || taken.contains(&cgroup) {
                continue;
            }
            ids.insert(id.to_owned());
            let workload = match self.state(id) {
                State::Found(container) => {
                    let workload = workload_of(policy, &cgroup, &container);
                    settled.known.insert(cgroup.clone(), container);
                    workload
                }
                state => {
                    let why = match state {
                        State::Lost { why, .. } => why,
                        _ => "its engine was asked".to_owned(),
                    };
                    let known = was(&cgroup);
                    if known.is_none() {
                        hold(fence, &cgroup);
                        refused.insert(cgroup.clone(), why);
                    }
                    known
                }
            };
            settled.matches.extend(workload.map(|workload| Match {
                inode: meta.ino(),
                cgroup,
                workload,
            }));
        }
        lock(&self.states).retain(|id, _| ids.contains(id));
        if looks || self.looked.load(Ordering::Relaxed) {
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
            release_others(fence, settled.looks.then_some(directories), stay);
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

    /// How far a container is; asked for if it is not known.
    fn state(&self, id: &str) -> State {
        let mut states = lock(&self.states);
        match states.get(id) {
            Some(State::Lost { at, .. }) if at.elapsed() > AGAIN => {}
            Some(known) => return known.clone(),
            None => {}
        }
        let before = states.get(id).cloned();
        if self.asked.try_send(id.to_owned()).is_ok() {
            states.insert(id.to_owned(), State::Asked);
        }
        before.unwrap_or(State::Asked)
    }
}

fn keep(states: &Mutex<HashMap<String, State>>, id: String, state: State) {
    lock(states).insert(id, state);
}

/// What was made after the walk that found `directories` is not let go of.
fn release_others(fence: &Fence, directories: Option<&[PathBuf]>, stay: &HashSet<String>) {
    let root = fence.cgroup_root();
    let walked: Option<HashSet<&Path>> =
        directories.map(|all| all.iter().map(PathBuf::as_path).collect());
    for held in fence.governed() {
        if held.workload != UNSETTLED_NAME {
            continue;
        }
        let is_settled = held.cgroup.as_ref().is_none_or(|cgroup| {
            let directory = root.join(cgroup.trim_start_matches('/'));
            let was_seen = |walked: &HashSet<&Path>| walked.contains(directory.as_path());
            !stay.contains(cgroup) && walked.as_ref().is_none_or(was_seen)
        });
        if is_settled {
            super::enrol::release(fence, held.cgroup_id);
        }
    }
}

fn hold(fence: &Fence, cgroup: &str) {
    if let Err(error) = fence.hold(Path::new(cgroup)) {
        // Gone, or it is looked at again with the next walk.
        tracing::debug!(cgroup, "not held: {error}");
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

/// The first workload, by name, that has a selector for this container as a whole.
fn workload_of(policy: &Policy, cgroup: &str, container: &Container) -> Option<String> {
    let mut all = policy.workloads().iter();
    let holds =
        |selector: &Selector| !has_process(selector) && container.is_selected(selector, cgroup);
    let found = all.find(|workload| workload.selectors.iter().any(holds));
    found.map(|workload| workload.name.clone())
}

impl Container {
    /// Does a selector mean this container, which has this cgroup, whatever it says of processes?
    pub(super) fn is_selected(&self, selector: &Selector, cgroup: &str) -> bool {
        let rest = Selector {
            container: None,
            ..selector.clone()
        };
        let in_cgroup = rest.unit.is_none() && rest.cgroup.is_none();
        let pattern = selector.container.as_deref();
        pattern.is_some_and(|pattern| self.fits(pattern))
            && (in_cgroup || cgroups::selects(&rest, cgroup))
    }

    /// With a `/`, `:` or `@` it is an image that is meant, else a name.
    fn fits(&self, pattern: &str) -> bool {
        let text = match pattern.contains(['/', ':', '@']) {
            true => &self.image,
            false => &self.name,
        };
        text.as_deref()
            .is_some_and(|text| cgroups::segment_matches(pattern, text))
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

    #[test]
    fn names_and_images_are_told_from_each_other() {
        let container = Container {
            name: Some("web-1".to_owned()),
            image: Some("registry.example:5000/app:2".to_owned()),
        };
        for (pattern, fits) in [
            ("web-*", true),
            ("web", false),
            ("registry.example:5000/app:*", true),
            ("*/app:2", true),
            ("app:2", false),
        ] {
            assert_eq!(container.fits(pattern), fits, "{pattern}");
        }
    }
}
