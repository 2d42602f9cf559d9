//! Budgets of the policy, given to the kernel, and kept over a reboot of the host.
use super::admin::wire;
use super::agent::{Agent, lock};
use super::dirs;
use crate::kernel::{Allowance, Error, Fence, Usage};
use crate::pipeline::Overspent;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tollgate_policy::{Budget, Policy};

/// What was spent, below the state directory.
const FILE: &str = "usage.json";
/// Bytes of it at most.
const FILE_BYTES: u64 = 16 << 20;
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
    written: Mutex<Vec<Line>>,
}

impl Budgets {
    /// Reads what an earlier agent kept. A file that cannot be read is nothing that was kept, and is said so.
    pub(super) fn read(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let before = match read(&path) {
            Ok(lines) => lines,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::error!(
                    "{}: {error}: what was spent of budgets before the host started is not known",
                    path.display()
                );
                Vec::new()
            }
        };
        Self {
            path,
            before,
            written: Mutex::default(),
        }
    }

    /// Gives the kernel what the policy says.
    pub(super) fn apply(&self, fence: &Fence, policy: &Policy) -> Result<(), Error> {
        let allowances: Vec<Allowance<'_>> = policy
            .budgets()
            .iter()
            .filter_map(Budget::kernel_bytes)
            .flat_map(|(workloads, bytes)| workloads.iter().map(move |workload| (workload, bytes)))
            .map(|(workload, bytes)| {
                let seconds = bytes.window.seconds();
                let known = |line: &&Line| line.workload == *workload && line.seconds == seconds;
                let before = self.before.iter().find(known);
                Allowance {
                    workload,
                    bytes: bytes.amount,
                    seconds,
                    before: before.map(|line| (line.window, line.spent)),
                }
            })
            .collect();
        fence.set_quotas(&allowances)
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
            Ok(()) => *written = lines,
            Err(error) => tracing::error!("{}: {error}: make room", self.path.display()),
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

/// Keeps an eye on what is spent, for ever.
pub(super) async fn watch(agent: Arc<Agent>) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for count in 1_u32.. {
        ticks.tick().await;
        let agent = Arc::clone(&agent);
        let looking = move || {
            if count.is_multiple_of(CLOCK) {
                agent.apply_budgets();
            }
            let usage = agent.shared.fence.usage();
            publish(&agent.shared.overspent, &usage);
            if count.is_multiple_of(WRITE) {
                agent.budgets.write(&usage);
            }
        };
        if let Err(e) = tokio::task::spawn_blocking(looking).await {
            tracing::error!("looking at what is spent failed: {e}");
        }
    }
}

impl Agent {
    /// Gives the kernel the budgets of the policy in force. Where it cannot, what it has stays in force.
    pub(super) fn apply_budgets(&self) {
        let snapshot = self.shared.live.load_full();
        if let Err(error) = self.budgets.apply(&self.shared.fence, &snapshot.policy) {
            tracing::error!("budgets: {error}");
        }
        // Who had nothing left may have more now.
        publish(&self.shared.overspent, &self.shared.fence.usage());
    }

    /// What is spent and what is left of each budget.
    pub(super) fn usage(&self) -> Vec<wire::Usage> {
        let snapshot = self.shared.live.load_full();
        let spent = self.shared.fence.usage();
        let budgets = snapshot.policy.budgets().iter();
        let limits = budgets.filter_map(|budget| Some((budget, budget.kernel_bytes()?)));
        limits
            .flat_map(|(budget, (workloads, bytes))| {
                workloads.iter().map(move |name| (budget, name, bytes))
            })
            .filter_map(|(budget, workload, bytes)| {
                let usage = spent.iter().find(|u| *u.workload == **workload)?;
                let until = usage.window.checked_add(1)?.checked_mul(usage.seconds)?;
                Some(wire::Usage {
                    budget: budget.name.clone(),
                    workload: workload.clone(),
                    unit: "bytes".to_owned(),
                    limit: usage.bytes,
                    window: bytes.window.as_str().to_owned(),
                    spent: usage.spent,
                    left: usage.bytes.saturating_sub(usage.spent),
                    until: jiff::Timestamp::from_second(i64::try_from(until).ok()?).ok()?,
                })
            })
            .collect()
    }
}
