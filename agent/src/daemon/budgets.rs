//! Budgets of the policy, given to the kernel, and kept over a reboot of the host.
use super::admin::wire;
use super::agent::{Agent, lock};
use super::{dirs, vital};
use crate::budget::{self, Holder, Line as Counted, Registry, Unit};
use crate::config::Config;
use crate::kernel::{Allowance, Fence, Usage};
use crate::pipeline::Overspent;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tollgate_policy::{Budget, Policy};

/// What was spent, below the state directory.
const FILE: &str = "usage.json";
/// Bytes of it at most.
const FILE_BYTES: u64 = 16 << 20;
/// Seconds of the longest window.
const DAY: u64 = 86_400;
/// How often it is looked who has spent all.
const LOOK: Duration = Duration::from_secs(1);
/// What was spent since it was last written is forgotten where the host goes down without a word: it is written once in
/// so many looks, if there is news.
const WRITE: u32 = 5;
/// How often the kernel is told the wall clock, in looks: windows begin by it.
const CLOCK: u32 = 30;

/// A workload's line in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    workload: String,
    seconds: u64,
    window: u64,
    spent: u64,
}

/// What is kept of budgets.
#[derive(Debug)]
pub(super) struct Budgets {
    path: PathBuf,
    /// As it was when the agent started; kernel maps that live on know better.
    before: Vec<Line>,
    /// When it was found that what was kept cannot be read.
    damaged: Option<u64>,
    written: Mutex<Vec<Line>>,
    /// What is spent cannot be written.
    failing: AtomicBool,
    /// What the agent counts.
    accounts: Registry,
    /// Why the kernel does not hold the quotas of the policy in force.
    unheld: Mutex<Option<String>>,
}

/// The accounts that an earlier agent left.
pub(super) fn registry(config: &Config) -> std::io::Result<Registry> {
    Registry::open(&config.runtime_dir, &config.state_dir, dirs::publish, now())
}

fn now() -> u64 {
    u64::try_from(crate::pipeline::now()).unwrap_or(0)
}

impl Budgets {
    /// Reads what an earlier agent kept. By a file that cannot be read all is spent until its window ends, if the kernel does not
    /// know better.
    pub(super) fn read(state_dir: &Path, accounts: Registry) -> Self {
        let path = state_dir.join(FILE);
        let (before, damaged) = match read(&path) {
            Ok(lines) => (lines, None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (Vec::new(), None),
            Err(error) => {
                tracing::error!(
                    "{}: {error}: what was spent of quotas of bytes before the host started is not known, and counts as all until their windows end",
                    path.display()
                );
                (Vec::new(), Some(now()))
            }
        };
        Self {
            path,
            before,
            damaged,
            written: Mutex::default(),
            failing: AtomicBool::default(),
            unheld: Mutex::default(),
            accounts,
        }
    }

    /// What `status` says of quotas that are not in force.
    pub(super) fn unheld(&self) -> Option<String> {
        let why = lock(&self.unheld).clone()?;
        Some(format!("quotas of bytes: {why}"))
    }

    /// The accounts that the agent keeps.
    pub(super) fn accounts(&self) -> &Registry {
        &self.accounts
    }

    /// Whether what is spent cannot be written, and whether what was could not be read.
    pub(super) fn troubles(&self) -> [bool; 2] {
        let now = now();
        let is_unknown = self.damaged.is_some_and(|at| at / DAY == now / DAY);
        [
            self.accounts.is_failing() || self.failing.load(Ordering::Relaxed),
            self.accounts.is_unknown(now) || is_unknown,
        ]
    }

    /// Copies what the agent has counted, if that is news.
    pub(super) fn copy(&self) {
        self.accounts.copy(now());
    }

    /// Gives the kernel what the policy says. Where it cannot, what it has stays in force.
    pub(super) fn hold(&self, fence: &Fence, policy: &Policy) {
        let held = fence.set_quotas(&self.allowances(policy));
        if let Err(error) = &held {
            tracing::error!("budgets: {error}");
        }
        *lock(&self.unheld) = held.err().map(|error| error.to_string());
    }

    fn allowances<'p>(&self, policy: &'p Policy) -> Vec<Allowance<'p>> {
        policy
            .budgets()
            .iter()
            .filter_map(Budget::kernel_bytes)
            .flat_map(|(workloads, bytes)| workloads.iter().map(move |workload| (workload, bytes)))
            .map(|(workload, bytes)| {
                let seconds = bytes.window.seconds();
                let known = |line: &&Line| line.workload == *workload && line.seconds == seconds;
                let before = self.before.iter().find(known);
                let before = before.map(|line| (line.window, line.spent));
                let all = || Some((self.damaged?.checked_div(seconds)?, bytes.amount));
                Allowance {
                    workload,
                    bytes: bytes.amount,
                    seconds,
                    before: before.or_else(all),
                }
            })
            .collect()
    }

    /// Writes down what was spent, if that is news.
    pub(super) fn write(&self, usage: &[Usage]) {
        let lines: Vec<Line> = usage
            .iter()
            .map(|usage| Line {
                workload: usage.workload.to_string(),
                seconds: usage.seconds,
                window: usage.window,
                spent: usage.spent,
            })
            .collect();
        let mut written = lock(&self.written);
        if *written == lines {
            return;
        }
        let text = serde_json::to_vec(&lines).map_err(std::io::Error::from);
        match text.and_then(|text| dirs::publish(&self.path, &text, 0o600)) {
            Ok(()) => {
                *written = lines;
                self.failing.store(false, Ordering::Relaxed);
            }
            // It is tried again every few seconds.
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::error!("{}: {error}: make room", self.path.display());
                }
            }
        }
    }
}

fn read(path: &Path) -> std::io::Result<Vec<Line>> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(path)?
        .take(FILE_BYTES)
        .read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Which workloads have nothing left.
fn publish(overspent: &Overspent, usage: &[Usage]) {
    let spent = usage.iter().filter(|usage| usage.spent >= usage.bytes);
    overspent.set(spent.map(|usage| Arc::clone(&usage.workload)).collect());
}

/// Keeps an eye on what is spent, until that panics.
pub(super) async fn watch(agent: Arc<Agent>) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for count in 1_u32.. {
        ticks.tick().await;
        let agent = Arc::clone(&agent);
        let looking = move || {
            if count.is_multiple_of(CLOCK) || agent.budgets.unheld().is_some() {
                agent.apply_budgets();
            }
            let usage = agent.shared.fence.usage();
            publish(&agent.shared.overspent, &usage);
            if count.is_multiple_of(WRITE) {
                agent.write_down();
            }
        };
        if vital::blocking("looking at what is spent", looking)
            .await
            .is_none()
        {
            return;
        }
    }
}

impl Agent {
    /// Gives the kernel the budgets of the policy in force.
    pub(super) fn apply_budgets(&self) {
        let snapshot = self.shared.live.load_full();
        self.budgets.hold(&self.shared.fence, &snapshot.policy);
        // Who had nothing left may have more now.
        publish(&self.shared.overspent, &self.shared.fence.usage());
    }

    /// Writes down what was spent and counted, as far as that is news.
    pub(super) fn write_down(&self) {
        self.budgets.write(&self.shared.fence.usage());
        self.budgets.copy();
        self.counters.write(&self.shared.fence);
    }

    /// What is spent and what is left of each budget.
    pub(super) fn usage(&self) -> Vec<wire::Usage> {
        let snapshot = self.shared.live.load_full();
        let mut all = self.kernel_usage(&snapshot.policy);
        let now = now();
        let lines = snapshot.accounts.all();
        all.extend(lines.filter_map(|line| of_account(line, now)));
        all.sort_by(|one, other| one.place().cmp(&other.place()));
        all
    }

    /// Of those that the kernel counts.
    fn kernel_usage(&self, policy: &Policy) -> Vec<wire::Usage> {
        let spent = self.shared.fence.usage();
        let limits = policy.budgets().iter();
        let limits = limits.filter_map(|budget| Some((budget, budget.kernel_bytes()?)));
        limits
            .flat_map(|(budget, (workloads, bytes))| {
                workloads.iter().map(move |name| (budget, name, bytes))
            })
            .filter_map(|(budget, workload, bytes)| {
                let usage = spent.iter().find(|u| *u.workload == **workload)?;
                let until = usage.window.checked_add(1)?.checked_mul(usage.seconds)?;
                Some(wire::Usage {
                    budget: budget.name.clone(),
                    holder: wire::Holder::Workload,
                    workload: Some(workload.clone()),
                    identity: None,
                    unit: "bytes".to_owned(),
                    limit: wire::Amount::Whole(usage.bytes),
                    window: bytes.window.as_str().to_owned(),
                    spent: wire::Amount::Whole(usage.spent),
                    left: wire::Amount::Whole(usage.bytes.saturating_sub(usage.spent)),
                    until: jiff::Timestamp::from_second(i64::try_from(until).ok()?).ok()?,
                })
            })
            .collect()
    }
}

/// Of one that the agent counts. Of those with a holder of their own there can be many: only what was spent is shown.
fn of_account(line: &Counted, now: u64) -> Option<wire::Usage> {
    let (account, limit) = (&line.account, line.quota.amount);
    let (window, spent) = account.state(now);
    if spent == 0 && account.holder != Holder::Shared {
        return None;
    }
    let amount = |amount| match account.unit {
        Unit::Usd => wire::Amount::Decimal(budget::dollars(amount)),
        _ => wire::Amount::Whole(amount),
    };
    let until = i64::try_from(account.end_of(window)).ok()?;
    let (holder, workload, identity) = match &account.holder {
        Holder::Shared => (wire::Holder::Shared, None, None),
        Holder::Workload(name) => (wire::Holder::Workload, Some(name.to_string()), None),
        Holder::Identity(name) => (wire::Holder::Identity, None, Some(name.to_string())),
        Holder::Nobody => (wire::Holder::Identity, None, None),
    };
    Some(wire::Usage {
        budget: account.budget.to_string(),
        holder,
        workload,
        identity,
        unit: account.unit.as_str().to_owned(),
        limit: amount(limit),
        window: line.quota.window.as_str().to_owned(),
        spent: amount(spent),
        left: amount(limit.saturating_sub(spent)),
        until: jiff::Timestamp::from_second(until).ok()?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tollgate_policy::syntax::Source;

    fn read_from(folder: &Path) -> Budgets {
        let accounts = Registry::open(folder, folder, dirs::publish, now()).unwrap();
        Budgets::read(folder, accounts)
    }

    #[test]
    fn what_cannot_be_read_counts_as_spent_and_is_told() {
        let text = "version: 1\nworkloads: { job: {} }\nbudgets:\n  small: { for: { workload: job }, limits: { bytes: 300/day } }\n";
        let (name, text) = ("p".to_owned(), text.to_owned());
        let policy = tollgate_policy::compile(&[Source { name, text }]).unwrap();
        let policy = policy.policy;
        let before = |budgets: &Budgets| budgets.allowances(&policy)[0].before;
        let folder = tempfile::tempdir().unwrap();
        let none = read_from(folder.path());
        assert_eq!((before(&none), none.troubles()), (None, [false, false]));
        let file = folder.path().join(FILE);
        for damaged in ["", "[{", "[]]"] {
            std::fs::write(&file, damaged).unwrap();
            let mut budgets = read_from(folder.path());
            let (window, spent) = before(&budgets).unwrap();
            assert!(now() / DAY - window <= 1 && spent == 300, "{window}");
            assert_eq!(budgets.troubles(), [false, true]);
            // By another day all is there again.
            budgets.damaged = Some(now() - DAY);
            assert_eq!(budgets.troubles(), [false, false]);
        }
        let line = r#"[{"workload":"job","seconds":86400,"window":7,"spent":5}]"#;
        std::fs::write(&file, line).unwrap();
        assert_eq!(before(&read_from(folder.path())), Some((7, 5)));
    }

    #[test]
    fn what_cannot_be_written_is_told_until_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let budgets = read_from(folder.path());
        let usage = [Usage {
            workload: "job".into(),
            bytes: 300,
            seconds: DAY,
            window: 7,
            spent: 5,
        }];
        std::fs::create_dir(folder.path().join(FILE)).unwrap();
        for _ in 0..2 {
            budgets.write(&usage);
            assert_eq!(budgets.troubles(), [true, false]);
        }
        std::fs::remove_dir(folder.path().join(FILE)).unwrap();
        budgets.write(&usage);
        assert_eq!(budgets.troubles(), [false, false]);
    }
}
