//! `tollgate run`: one command, governed.
mod host;
mod summary;
mod wait;

use self::host::Host;
use self::summary::{Decided, Further};
use super::output::{Colour, Paint};
use super::{Context, Outcome, trust};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Enrolled, Reply, Request};
use crate::daemon::users::{self, Database, User};
use anyhow::bail;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// Run one command governed, with trust set up for it
///
/// Runs CMD so that all its connections pass the agent, and exits as it does; then says on stderr what was allowed, and
/// of what was refused each kind once, with why, what to do, and the command that tells more.
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
    let decided = (!args.quiet).then(|| Decided::ask(host.socket(), &enrolled, started));
    let left = host.release(&enrolled);
    if let Some(decided) = decided {
        let further = match &host {
            Host::Running { .. } => Further::OnRecord,
            Host::Private(_) => Further::Gone(policy(context, &args)),
        };
        summary::tell(&enrolled, decided.as_ref(), &further);
    }
    if let (Some(left @ 1..), false) = (left, args.quiet) {
        tell!(
            "tollgate: {left} processes of the command still run; they stay governed until they end"
        );
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

/// What a private agent's policy is read from.
fn policy(context: &Context, args: &Args) -> Vec<PathBuf> {
    match args.policy.is_empty() {
        true => context.config().map(|config| config.policy),
        false => Ok(args.policy.clone()),
    }
    .unwrap_or_default()
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
    for socket in &enrolled.unix {
        command.arg("--unix").arg(socket);
    }
    match enrolled.unix_held {
        Some(true) => command.arg("--unix-held"),
        Some(false) => &mut command,
        None => command.arg("--agent-is-older"),
    };
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
