//! Keeps the kernel's list of governed cgroups true to the policy and to the host.
use super::admin::wire::{Enrolled, Fault, FaultKind, Recognised};
use super::cgroups::{self, Match};
use super::containers::Containers;
use super::rules::Rules;
use super::runs::{RUN_GRACE, RUNS, alive, is_run, left, make_run, remove_tree, sweep_orphans};
use super::troubles::Troubles;
use crate::config::Config;
use crate::kernel::{self, Evidence, Fence, FileState, GovernedProcess, Openings, SocketName};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tollgate_policy::Policy;
use tollgate_policy::syntax::{nearest, quote};

/// Runs at one time at most.
const RUNS_MAX: usize = 1024;

/// What is not known where there are too many cgroups.
const UNSEEN: &str = "there are more cgroups than the agent looks at (65536): of workloads among the others, only those are governed that were made since the policy named them; bound cgroups where users make their own (cgroup.max.descendants)";

/// Why not all cgroups are known.
const CGROUPS: &str = "cgroups of this host";

/// What is governed, and why.
#[derive(Debug)]
pub(super) struct Enrolments {
    fence: Arc<Fence>,
    selected: BTreeMap<String, Selected>,
    runs: HashMap<u64, Run>,
    /// The policy that was settled last.
    settled: Option<String>,
    rules: Rules,
    containers: Arc<Containers>,
    /// What the kernel was told last.
    permitted: Option<Vec<Openings>>,
    /// There were more cgroups than are looked at.
    unseen: bool,
    troubles: Troubles,
    /// By cgroup: why it is not governed.
    ungoverned: Troubles,
}

/// A cgroup that a selector matches.
#[derive(Debug)]
struct Selected {
    inode: u64,
    cgroup_id: u64,
    workload: String,
    /// Of a container: see [`cgroups::Match`].
    by: Option<String>,
}

/// A cgroup made for `tollgate run`.
#[derive(Debug)]
struct Run {
    directory: PathBuf,
    /// Who asked; unknown for runs that an earlier agent made.
    asked_by: Option<i32>,
    seen: Instant,
}

impl Enrolments {
    /// Takes over what an earlier agent governed: runs stay, the rest is settled by the first [`Self::settle`].
    pub(super) fn adopt(fence: Arc<Fence>, containers: Arc<Containers>) -> Self {
        sweep_orphans(fence.cgroup_root());
        let mut selected = BTreeMap::new();
        let mut runs = HashMap::new();
        for governed in fence.governed() {
            let Some(cgroup) = governed.cgroup else {
                if governed.is_gone {
                    release(&fence, governed.cgroup_id);
                }
                continue;
            };
            if governed.workload == kernel::UNSETTLED_NAME {
                continue; // Whose it is will be asked.
            }
            let cgroup = format!("/{}", cgroup.trim_start_matches('/'));
            let directory = directory(fence.cgroup_root(), &cgroup);
            if is_run(&cgroup) {
                runs.insert(
                    governed.cgroup_id,
                    Run {
                        directory,
                        asked_by: None,
                        seen: Instant::now(),
                    },
                );
            } else {
                let entry = Selected {
                    inode: inode(&directory).unwrap_or_default(),
                    cgroup_id: governed.cgroup_id,
                    workload: governed.workload,
                    by: None,
                };
                selected.insert(cgroup, entry);
            }
        }
        Self {
            fence,
            selected,
            runs,
            settled: None,
            rules: Rules::default(),
            containers,
            permitted: None,
            unseen: false,
            troubles: Troubles::default(),
            ungoverned: Troubles::default(),
        }
    }

    /// Governs what `policy` selects on this host now, and no longer what it does not; removes runs that are over.
    /// Returns every cgroup directory, to be watched.
    pub(super) fn settle(&mut self, policy: &Policy) -> Vec<PathBuf> {
        self.permit(policy);
        // Before the walk: what is made meanwhile is governed from its birth on.
        self.rules.take_up(&self.fence, policy, &mut self.troubles);
        let beyond = self.fence.beyond();
        let mut found = cgroups::walk(self.fence.cgroup_root(), policy);
        let taken = found.matches.iter().map(|m| m.cgroup.clone()).collect();
        let was = |cgroup: &str| self.selected.get(cgroup).map(|s| s.workload.clone());
        let known = policy.workloads().iter().map(|w| &w.name);
        let was = |cgroup: &str| was(cgroup).filter(|name| known.clone().any(|k| k == name));
        let containers = Arc::clone(&self.containers);
        let mut contained = containers.settle(&self.fence, policy, &found.directories, &taken, was);
        found.matches.extend(contained.matches.iter().cloned());
        found.unread = found.unread.or_else(|| contained.unread.clone());
        self.look_over(&found);
        for wanted in found.matches.iter().filter(|m| !is_run(&m.cgroup)) {
            self.govern(wanted);
        }
        let wanted = found.matches.iter();
        let wanted: HashMap<&str, &str> = wanted.map(|m| (&*m.cgroup, &*m.workload)).collect();
        self.ungoverned.keep(|cgroup| wanted.contains_key(cgroup));
        let untold = self
            .rules
            .settle(&self.fence, &found.directories, &contained.known);
        // While the hooks do not know what its processes may be by, it stays held.
        contained.untold = untold.iter().map(|(cgroup, _)| cgroup.into()).collect();
        Containers::let_go(&self.fence, &contained, &found.directories);
        // Anybody may make cgroups deeper than hooks look: those are as the ones above them.
        let mut untold = untold.into_iter();
        let first = untold.find(|(_, e)| !matches!(e, kernel::Error::TooDeep { .. }));
        let first = first.map(|(cgroup, why)| format!("{cgroup}: {why}"));
        self.troubles.note(
            "who rules recognise in a cgroup (containers there stay refused)",
            first.map_or(Ok(()), Err),
        );
        let held = contained.unheld.clone().map_or(Ok(()), Err);
        self.troubles.note("containers to be refused", held);
        let made = self.fence.enrol_missed();
        self.troubles
            .note("processes that governed ones have made", made);
        // What was not looked at may well be there.
        let stays = |cgroup: &String| self.unseen || wanted.contains_key(&**cgroup);
        let gone: Vec<String> = self
            .selected
            .keys()
            .filter(|c| !stays(c))
            .cloned()
            .collect();
        for cgroup in gone {
            if let Some(old) = self.selected.remove(&cgroup) {
                tracing::info!(cgroup, workload = old.workload, "no longer governed");
                release(&self.fence, old.cgroup_id);
            }
        }
        self.release_strays(policy, &wanted);
        self.part_with_others(policy);
        let enrolled = self.rules.enrol_running(&self.fence);
        self.troubles
            .note("processes that ran before a rule", enrolled);
        self.sweep_runs();
        self.fence.forget_gone();
        if !self.unseen {
            self.fence.let_in(&beyond);
        }
        found.directories
    }

    /// No longer governs what hooks did by the names of an earlier policy, while the agent took up this one: no walk saw it.
    fn release_strays(&mut self, policy: &Policy, wanted: &HashMap<&str, &str>) {
        if self.settled.as_deref() == Some(policy.hash()) || !self.rules.are_told() {
            return;
        }
        let names = names(policy);
        let all: Vec<kernel::Governed> = self.not_of_runs().collect();
        for stray in all {
            let Some(cgroup) = &stray.cgroup else {
                if stray.is_gone {
                    release(&self.fence, stray.cgroup_id);
                }
                continue;
            };
            let above = Path::new(cgroup).ancestors();
            let mut above = above.filter_map(|path| wanted.get(path.to_str()?));
            // Itself, or the one that it is governed with.
            let is_wanted = wanted.contains_key(&**cgroup)
                || above.next().is_some_and(|name| **name == *stray.workload);
            let is_unseen = self.unseen && names.contains(&*stray.workload);
            if !is_wanted && !is_unseen {
                tracing::info!(cgroup, workload = stray.workload, "no longer governed");
                release(&self.fence, stray.cgroup_id);
                self.selected.remove(cgroup);
            }
        }
    }

    /// What the kernel governs, but for runs, which end when they do, and what is not anybody's yet.
    fn not_of_runs(&self) -> impl Iterator<Item = kernel::Governed> {
        let is_run = |one: &kernel::Governed| {
            one.cgroup.as_deref().is_some_and(is_run) || self.runs.contains_key(&one.cgroup_id)
        };
        let all = self.fence.governed().into_iter();
        all.filter(move |one| one.workload != kernel::UNSETTLED_NAME && !is_run(one))
    }

    /// Begins to let go of workloads that `policy` has no more: whom another workload has now becomes that one's. Not while the
    /// hooks still recognise by an earlier policy, which may name them.
    fn part_with_others(&mut self, policy: &Policy) {
        if self.settled.as_deref() != Some(policy.hash()) && self.rules.are_told() {
            let names = names(policy);
            self.fence.part_with(|name| names.contains(name));
            self.rules.scan();
        }
    }

    /// Lets go of those: after what their processes have open was looked at.
    pub(super) fn let_go_of_others(&mut self, policy: &Policy) {
        if self.settled.as_deref() == Some(policy.hash()) || !self.rules.are_told() {
            return;
        }
        let names = names(policy);
        let forgotten = self.fence.forget_workloads(|name| names.contains(name));
        let is_left = |one: kernel::Governed| !names.contains(&*one.workload);
        match forgotten {
            // What has a cgroup still was kept.
            Ok(()) if self.not_of_runs().any(is_left) => {}
            Ok(()) => self.settled = Some(policy.hash().to_owned()),
            Err(e) => tracing::error!("what is no workload's any more stays held: {e}"),
        }
    }

    /// Notes what could not be looked at. What was not seen may well be there.
    fn look_over(&mut self, found: &cgroups::Found) {
        self.unseen = found.truncated || found.unread.is_some();
        let beside = cgroups::sharing_with_the_agent(self.fence.cgroup_root(), &found.own);
        let all = found.unread.clone().map_or(Ok(()), Err);
        self.troubles.note(CGROUPS, all);
        let few = if found.truncated { Err(UNSEEN) } else { Ok(()) };
        self.troubles.note("too many cgroups", few);
        let alone = match beside.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "{beside:?} are not governed, since they are in {}, where it runs itself: give it a cgroup of its own, as its service has",
                found.own.join(" or ")
            )),
        };
        self.troubles.note("processes beside the agent", alone);
    }

    /// Why not all of the host is known to be held to its policy.
    pub(super) fn gaps(&self) -> Vec<String> {
        let mut all = self.troubles.all();
        all.extend(self.ungoverned.all());
        all
    }

    /// Selectors by which nobody is recognised now, or not all the time, and why.
    pub(super) fn unresolved(&self) -> Vec<String> {
        self.rules.unresolved()
    }

    /// Looks at a file that `process` runs.
    pub(super) fn meet(&mut self, process: u32, file: FileState) {
        self.rules.meet(&self.fence, process, file);
    }

    /// Tells when [`Self::settle`] has more to take up.
    pub(super) fn learned(&self) -> Arc<tokio::sync::Notify> {
        self.rules.learned()
    }

    /// A governed process, with why it is governed.
    pub(super) fn recognised(&self, process: GovernedProcess) -> Recognised {
        let by = match process.evidence {
            Evidence::Cgroup => {
                let above = cgroups::of_process(process.pid).unwrap_or_default();
                let known = |cgroup: &String| self.selected.get_key_value(cgroup);
                match above.iter().find_map(known) {
                    Some((_, Selected { by: Some(by), .. })) => by.clone(),
                    Some((cgroup, _)) => format!("cgroup {cgroup}"),
                    None => "cgroup".to_owned(),
                }
            }
            Evidence::Rule(rule) => self
                .rules
                .describe(rule)
                .unwrap_or_else(|| format!("rule {rule} of an earlier policy")),
        };
        Recognised {
            sha256: self.rules.digest_of(process.pid),
            by,
            process,
        }
    }

    /// Tells the kernel what workloads may do besides, before it governs any that it did not. What cannot be told stays
    /// refused, and is tried again with the next walk.
    fn permit(&mut self, policy: &Policy) {
        let wanted: Vec<Openings> = policy.workloads().iter().map(openings).collect();
        if self.permitted.as_ref() == Some(&wanted) {
            return;
        }
        let done = self.fence.permit(&wanted);
        let done = self.troubles.note("`listen` and `unix` of workloads", done);
        self.permitted = done.map(|()| wanted);
    }

    fn govern(&mut self, wanted: &Match) {
        let old = self.selected.get_mut(&wanted.cgroup);
        if let Some(old) = old
            && (old.inode, &old.workload) == (wanted.inode, &wanted.workload)
        {
            old.by.clone_from(&wanted.by);
            // It may have been another's meanwhile, which could not be told.
            self.ungoverned
                .note(&wanted.cgroup, Ok::<_, kernel::Error>(()));
            return;
        }
        let old = self.selected.get(&wanted.cgroup);
        let done = self
            .fence
            .govern(Path::new(&wanted.cgroup), &wanted.workload);
        if done.as_ref().is_err_and(kernel::Error::is_of_a_cgroup_gone) {
            return;
        }
        // Where it fails, the next walk tries again.
        let enrolled = self.ungoverned.note(&wanted.cgroup, done);
        if let Some(kernel::Enrolled { cgroup_id, .. }) = enrolled {
            tracing::info!(
                cgroup = wanted.cgroup,
                workload = wanted.workload,
                "governed"
            );
            if let Some(old) = old.filter(|s| s.cgroup_id != cgroup_id) {
                release(&self.fence, old.cgroup_id);
            }
            let entry = Selected {
                inode: wanted.inode,
                cgroup_id,
                workload: wanted.workload.clone(),
                by: wanted.by.clone(),
            };
            self.selected.insert(wanted.cgroup.clone(), entry);
        }
    }

    /// Enrols the trees of all cgroups that are governed again: hooks that were away have not seen who was born meanwhile. Whether
    /// all are.
    pub(super) fn again(&mut self) -> bool {
        let mut all = true;
        let known = self.fence.governed().into_iter();
        for governed in known.filter(|governed| governed.workload != kernel::UNSETTLED_NAME) {
            let Some(cgroup) = governed.cgroup else {
                continue;
            };
            let done = self.fence.govern(Path::new(&cgroup), &governed.workload);
            if let Err(e) = done.map(drop)
                && !e.is_of_a_cgroup_gone()
                && !matches!(e, kernel::Error::GovernsItself { .. })
            {
                tracing::error!(cgroup, "not enrolled again: {e}");
                all = false;
            }
        }
        all
    }

    /// Makes and governs a cgroup for `tollgate run`, asked for by process `pid`.
    pub(super) fn start_run(
        &mut self,
        policy: &Policy,
        workload: Option<&str>,
        pid: Option<i32>,
        config: &Config,
    ) -> Result<Enrolled, Fault> {
        let workload = choose(policy, workload)?;
        if self.runs.len() >= RUNS_MAX {
            return Err(failed(format!(
                "{RUNS_MAX} runs are under way: end some first"
            )));
        }
        let cgroup = format!("{RUNS}/run-{}", uuid::Uuid::now_v7().simple());
        let root = self.fence.cgroup_root();
        let directory = directory(root, &cgroup);
        let made = make_run(root, &directory);
        made.map_err(|e| failed(format!("cannot make cgroup {}: {e}", directory.display())))?;
        match self.fence.govern(Path::new(&cgroup), &workload) {
            Ok(kernel::Enrolled { cgroup_id, .. }) => {
                let run = Run {
                    directory: directory.clone(),
                    asked_by: pid,
                    seen: Instant::now(),
                };
                self.runs.insert(cgroup_id, run);
                Ok(Enrolled {
                    cgroup_id,
                    directory,
                    cgroup,
                    trust: super::trust(&config.runtime_dir),
                    hidden: hidden(config),
                    unix: unix(policy, &workload),
                    unix_held: Some(self.fence.holds_unix_sockets()),
                    workload,
                })
            }
            Err(e) => {
                let _ = std::fs::remove_dir(&directory);
                Err(failed(format!("cannot govern {cgroup}: {e}")))
            }
        }
    }

    /// Ends a run if its cgroup is empty; returns how many processes are left in it.
    pub(super) fn end_run(&mut self, cgroup_id: u64) -> Result<usize, Fault> {
        if !self.runs.contains_key(&cgroup_id) {
            return Err(Fault {
                kind: FaultKind::NotFound,
                message: format!("no run has cgroup {cgroup_id}"),
            });
        }
        Ok(self.end_if_over(cgroup_id))
    }

    /// Ends all runs whose cgroups are empty; returns how many processes are left in those of others, or have left theirs. None are,
    /// and none can come, only where the kernel has removed every one of those cgroups.
    pub(super) fn end_runs(&mut self) -> usize {
        let all: Vec<u64> = self.runs.keys().copied().collect();
        let inside: usize = all.into_iter().map(|id| self.end_if_over(id)).sum();
        inside.saturating_add(self.fence.strays())
    }

    /// How many processes are left in a run: one at least where it has not ended.
    fn end_if_over(&mut self, cgroup_id: u64) -> usize {
        let run = self.runs.get(&cgroup_id);
        let counted = run.map_or(0, |run| left(&run.directory));
        if counted == 0 {
            self.forget_run(cgroup_id);
        }
        match self.runs.contains_key(&cgroup_id) {
            true => counted.max(1),
            false => 0,
        }
    }

    fn sweep_runs(&mut self) {
        let over = |run: &Run| {
            let waited =
                run.asked_by.is_none_or(|pid| !alive(pid)) && run.seen.elapsed() > RUN_GRACE;
            let is_gone = run.directory.try_exists().is_ok_and(|there| !there);
            is_gone || (waited && left(&run.directory) == 0)
        };
        let ended: Vec<u64> = self
            .runs
            .iter()
            .filter(|(_, run)| over(run))
            .map(|(id, _)| *id)
            .collect();
        for cgroup_id in ended {
            self.forget_run(cgroup_id);
        }
    }

    /// Removes the directory first: only a cgroup that nobody can enter any more stops being governed.
    fn forget_run(&mut self, cgroup_id: u64) {
        let Some(run) = self.runs.get(&cgroup_id) else {
            return;
        };
        match remove_tree(&run.directory) {
            Ok(()) => {
                // The last run takes the directory of all runs with it.
                if let Some(parent) = run.directory.parent() {
                    let _ = std::fs::remove_dir(parent);
                }
                self.runs.remove(&cgroup_id);
                release(&self.fence, cgroup_id);
                // Its workload may have been kept for it alone.
                self.settled = None;
            }
            Err(e) => tracing::debug!("{}: {e}: kept and governed", run.directory.display()),
        }
    }
}

/// Agents' own files, which a run is not to find.
fn hidden(config: &Config) -> Vec<PathBuf> {
    let mut hidden = vec![config.secrets_dir.clone(), config.state_dir.clone()];
    hidden.extend(config.vault.as_ref().map(|vault| vault.token_file.clone()));
    hidden.extend(config.hidden.iter().cloned());
    hidden
}

/// Local daemons that a run may speak to: it is to find no others.
fn unix(policy: &Policy, workload: &str) -> Vec<String> {
    let mut all = policy.workloads().iter();
    let own = all.find(|w| w.name == workload);
    own.map_or_else(Vec::new, |w| {
        w.unix.iter().map(ToString::to_string).collect()
    })
}

fn names(policy: &Policy) -> HashSet<&str> {
    policy.workloads().iter().map(|w| &*w.name).collect()
}

/// A workload's, as the kernel half has it.
fn openings(workload: &tollgate_policy::Workload) -> Openings {
    let unix = workload.unix.iter();
    Openings {
        workload: workload.name.clone(),
        listen: workload.listen.clone(),
        unix: unix
            .map(|socket| SocketName {
                name: socket.name.clone(),
                any_rest: socket.any_rest,
            })
            .collect(),
    }
}

/// The workload asked for, or the only one there is.
fn choose(policy: &Policy, asked: Option<&str>) -> Result<String, Fault> {
    let names: Vec<&str> = policy.workloads().iter().map(|w| w.name.as_str()).collect();
    let usage = |message| Fault {
        kind: FaultKind::Usage,
        message,
    };
    match (asked, names.as_slice()) {
        (Some(name), _) if names.contains(&name) => Ok(name.to_owned()),
        (None, [only]) => Ok((*only).to_owned()),
        (_, []) => Err(usage(
            "the policy has no workloads: define one, as in `workloads: { job: {} }`".to_owned(),
        )),
        (Some(name), _) => Err(usage(match nearest(name, names.iter().copied()) {
            Some(near) => format!(
                "no workload {} in the policy: did you mean `{near}`?",
                quote(name)
            ),
            None => format!(
                "no workload {} in the policy: it has {}",
                quote(name),
                names.join(", ")
            ),
        })),
        (None, _) => Err(usage(format!(
            "say which workload with --workload: {}",
            names.join(", ")
        ))),
    }
}

fn failed(message: String) -> Fault {
    Fault {
        kind: FaultKind::Failed,
        message,
    }
}

fn directory(root: &Path, cgroup: &str) -> PathBuf {
    root.join(cgroup.trim_start_matches('/'))
}

fn inode(directory: &Path) -> Option<u64> {
    std::fs::metadata(directory)
        .ok()
        .map(|m| std::os::unix::fs::MetadataExt::ino(&m))
}

pub(super) fn release(fence: &Fence, cgroup_id: u64) {
    let released: Result<(), kernel::Error> = fence.release(cgroup_id);
    if let Err(e) = released {
        tracing::warn!(cgroup_id, "not released: {e}");
    }
}
