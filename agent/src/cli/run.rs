//! `tollgate run`: one command, governed.
mod host;
mod wait;

use self::host::Host;
use super::output::{self, Colour, Paint};
use super::{Context, Outcome, decisions, trust};
use crate::audit::{Coverage, Filter, Record, Verdict};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{DECISIONS, Enrolled, Reply, Request};
use crate::daemon::users::{self, Database, User};
use anyhow::bail;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Run one command governed, with trust set up for it
///
/// Runs CMD so that all its connections pass the agent, and exits as it does; then sums up its decisions on stderr.
///
/// Where an agent runs, it governs the command by its policy. Otherwise, or with --policy, an agent is started for this
/// command alone and ends with it. CMD finds the trust variables of common clients set (`tollgate trust env` lists
/// them) and HTTP_PROXY, HTTPS_PROXY and ALL_PROXY unset: its connections are steered without them. It has no
/// capabilities, cannot gain privileges, and inherits no descriptor but standard input, output and error. In its own
/// mount namespace it sees no cgroup but its own, and neither the fence nor the agent's secrets and state.
///
/// Users and their groups are looked up in /etc/passwd and /etc/group alone; give the number of one that is elsewhere.
///
/// Exit codes besides the command's own: 2 policy, configuration or usage is at fault, 125 the command could not be set
/// up, 126 it cannot be executed, 127 it was not found; 128 and a signal's number if that ended it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Policy file or directory; starts an agent for this command alone
    #[arg(long, value_name = "FILE")]
    policy: Vec<PathBuf>,
    /// Where `file:NAME` secrets are, for an agent for this command alone [default: the configuration's]
    #[arg(long, value_name = "DIR")]
    secrets_dir: Option<PathBuf>,
    /// Workload to govern the command as [default: the only one in the policy]
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// User to run the command as, by a name in /etc/passwd or by number [default: who called sudo, else the caller,
    /// root included]
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Record denials and let them pass; needs --policy or no running agent
    #[arg(long)]
    observe: bool,
    /// Print no summary, and no warning of root
    #[arg(long, short)]
    quiet: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Denials shown in the summary.
const SHOWN: usize = 5;
/// For what the kernel reported last to reach the log.
const REPORTED: Duration = Duration::from_millis(100);

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<Outcome> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "putting a command under governance needs root: run this with sudo; the command itself runs as you"
        );
    }
    let user = Database::open().choose(args.user.as_deref(), users::sudo_caller()?)?;
    let started = jiff::Timestamp::now();
    let Some((host, enrolled)) = enrol(context, &args)? else {
        return Ok(Outcome::Fault);
    };
    if !args.quiet {
        warn_of_root(&user);
    }
    let ended = wait::run(&mut command(&args, &user, &enrolled));
    let decided = decided(&host, &enrolled, started);
    let left = host.release(&enrolled);
    if !args.quiet {
        summarise(&enrolled, decided.as_ref(), left);
    }
    host.end(Some(&enrolled), left);
    Ok(Outcome::Command(ended?))
}

/// Root without capabilities still owns the host's files and may signal its processes.
fn warn_of_root(user: &User) {
    if user.uid == 0 {
        tell!(
            "{}: the command runs as root: it can change what ungoverned programs run, and end the agent; \
             choose another with --user",
            Paint::stderr().paint(Colour::Yellow, "tollgate")
        );
    }
}

/// Asks the running agent for a governed cgroup; without one, or with a policy of its own, starts an agent first.
/// `None`: the private agent did not come up, and said why.
fn enrol(context: &Context, args: &Args) -> anyhow::Result<Option<(Host, Enrolled)>> {
    let own = !args.policy.is_empty() || args.secrets_dir.is_some();
    let socket = context.socket()?;
    if !own {
        if args.observe && client::ask_one(&socket, Request::Status).is_ok() {
            bail!(
                "the running agent's mode is its policy's to say: give --policy to observe with an agent of its own"
            );
        }
        match ask(&socket, args) {
            Ok(enrolled) => return Ok(Some((Host::Running { socket }, enrolled))),
            Err(client::Error::NoAgent { .. }) if context.socket.is_none() => {}
            Err(e) => return Err(e.into()),
        }
    }
    let Some(host) = Host::start(context, args)? else {
        return Ok(None);
    };
    match ask(host.socket(), args) {
        Ok(enrolled) => Ok(Some((host, enrolled))),
        Err(e) => {
            host.end(None, Some(0));
            Err(e.into())
        }
    }
}

fn ask(socket: &std::path::Path, args: &Args) -> Result<Enrolled, client::Error> {
    match client::ask_one(
        socket,
        Request::Enrol {
            workload: args.workload.clone(),
        },
    )? {
        Reply::Enrolled(enrolled) => Ok(enrolled),
        other => Err(client::Error::Broken(format!("unexpected reply {other:?}"))),
    }
}

/// The launcher, which becomes the command.
fn command(args: &Args, user: &User, enrolled: &Enrolled) -> Command {
    let groups: Vec<String> = user.groups.iter().map(u32::to_string).collect();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("launch")
        .arg("--cgroup")
        .arg(&enrolled.directory)
        .args([
            "--uid",
            &user.uid.to_string(),
            "--gid",
            &user.gid.to_string(),
            "--groups",
            &groups.join(","),
        ])
        .arg("--trust")
        .arg(&enrolled.trust.bundle)
        .arg("--trust")
        .arg(&enrolled.trust.ca)
        .arg("--trust")
        .arg(&enrolled.trust.java)
        .arg("--bundle")
        .arg(&enrolled.trust.bundle)
        .arg("--browsers")
        .arg(&enrolled.trust.browsers);
    for directory in &enrolled.hidden {
        command.arg("--hide").arg(directory);
    }
    command
        .arg("--")
        .args(&args.command)
        .envs(trust::variables(&enrolled.trust));
    for proxy in ["http_proxy", "https_proxy", "all_proxy"] {
        command
            .env_remove(proxy)
            .env_remove(proxy.to_ascii_uppercase());
    }
    if user.uid != rustix::process::getuid().as_raw() {
        let name = user.name.clone().unwrap_or_else(|| user.uid.to_string());
        command.env("USER", &name).env("LOGNAME", &name);
        command.env(
            "HOME",
            user.home.as_deref().unwrap_or(std::path::Path::new("/")),
        );
        if let Some(shell) = &user.shell {
            command.env("SHELL", shell);
        }
    }
    command
}

/// What was decided for processes of a run.
struct Decided {
    /// Oldest first.
    records: Vec<Arc<Record>>,
    /// There were more than the agent sends at once.
    cut: bool,
}

fn decided(host: &Host, enrolled: &Enrolled, started: jiff::Timestamp) -> Option<Decided> {
    std::thread::sleep(REPORTED);
    let filter = Filter {
        since: Some(started),
        workload: Some(enrolled.workload.clone()),
        limit: Some(DECISIONS),
        ..Filter::default()
    };
    let answer = client::ask(
        host.socket(),
        Request::Decisions {
            filter,
            follow: false,
        },
    )
    .ok()?;
    let inside = |record: &Record| {
        let cgroup = record
            .process
            .as_ref()
            .map(|p| p.cgroup.trim_matches('/').to_owned())
            .unwrap_or_default();
        let rest = cgroup.strip_prefix(enrolled.cgroup.trim_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut sent = 0;
    let records = answer
        .filter_map(Result::ok)
        .filter_map(|reply| match reply {
            Reply::Decision(record) => {
                sent += 1;
                inside(&record).then_some(record)
            }
            _ => None,
        })
        .collect();
    Some(Decided {
        records,
        cut: sent >= DECISIONS,
    })
}

fn summarise(enrolled: &Enrolled, decided: Option<&Decided>, left: Option<usize>) {
    let paint = Paint::stderr();
    let workload = output::escape(&enrolled.workload);
    let Some(Decided { records, cut }) = decided else {
        return tell!(
            "tollgate: the agent is gone: what {workload} tried since was refused by the kernel"
        );
    };
    let count = |verdict: Verdict| records.iter().filter(|r| r.verdict == verdict).count();
    let mut counts = vec![format!("{} allowed", count(Verdict::Allow))];
    let refused = count(Verdict::Deny) + count(Verdict::Limit);
    counts.push(format!("{refused} denied"));
    for (verdict, noun) in [
        (Verdict::WouldDeny, "would be denied"),
        (Verdict::Error, "failed"),
    ] {
        if count(verdict) > 0 {
            counts.push(format!("{} {noun}", count(verdict)));
        }
    }
    let among = if *cut {
        format!(" (among the newest {DECISIONS} decisions)")
    } else {
        String::new()
    };
    tell!("tollgate: {workload}: {}{among}", counts.join(", "));
    let mut denials: Vec<_> = records
        .iter()
        .filter(|r| r.verdict != Verdict::Allow)
        .collect();
    // A browser tries names and sockets of its own accord: what was asked of apis comes first.
    denials.sort_by_key(|record| record.coverage != Coverage::Request);
    let shown = denials.iter().take(SHOWN).map(|record| record.as_ref());
    // Indented by two.
    let terminal = output::width_of_stderr().map(|width| width.saturating_sub(2));
    for line in decisions::lines(shown, paint, terminal) {
        tell!("  {line}");
    }
    if denials.len() > SHOWN {
        tell!(
            "  and {} more: `tollgate decisions --denied --workload {workload}`",
            denials.len() - SHOWN
        );
    }
    if let Some(left @ 1..) = left {
        tell!(
            "tollgate: {left} processes of the command still run; they stay governed until they end"
        );
    }
}
