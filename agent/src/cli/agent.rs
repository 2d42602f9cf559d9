//! `tollgate agent`: the daemon.
use super::{Context, Outcome};
use crate::config::Config;
use crate::daemon::{self, Lifetime, PRIVATE_PREFIX};
use crate::telemetry;
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use tollgate_policy::Mode;

/// Run the agent; this is what the systemd unit starts
///
/// Runs until SIGTERM or SIGINT; SIGHUP reloads. What it governs stays fenced in when it stops: a governed workload can
/// then reach nothing until an agent runs again.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Policy file or directory, instead of the configuration's
    #[arg(long, value_name = "PATH")]
    policy: Vec<PathBuf>,
    /// Where `file:NAME` secrets are, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    secrets_dir: Option<PathBuf>,
    /// Record denials and let them pass
    #[arg(long)]
    observe: bool,
    /// Serve one `tollgate run` from this directory, then lift the fence
    #[arg(long, value_name = "DIR", hide = true)]
    private: Option<PathBuf>,
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<Outcome> {
    telemetry::init(if args.private.is_some() {
        "warn"
    } else {
        "info"
    });
    let mut config = context.config()?;
    let configured = [config.state_dir.clone(), config.secrets_dir.clone()];
    if !args.policy.is_empty() {
        config.policy = args
            .policy
            .iter()
            .map(|p| absolute(p))
            .collect::<anyhow::Result<_>>()?;
    }
    if let Some(directory) = &args.secrets_dir {
        config.secrets_dir = absolute(directory)?;
    }
    if args.observe {
        config.mode = Mode::Observe;
    }
    let lifetime = match args.private {
        None => Lifetime::Service,
        Some(directory) => {
            make_private(&mut config, &directory)?;
            config.hidden.extend(configured);
            Lifetime::Private { directory }
        }
    };
    daemon::run(config, lifetime)?;
    Ok(Outcome::Done)
}

/// Policy is read again at each reload, wherever the agent's working directory is by then.
fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

/// Nothing of a private agent is where another looks.
fn make_private(config: &mut Config, directory: &Path) -> anyhow::Result<()> {
    let name = directory
        .file_name()
        .and_then(|n| n.to_str())
        .filter(|n| n.starts_with(PRIVATE_PREFIX));
    let name =
        name.with_context(|| format!("{}: not named {PRIVATE_PREFIX}…", directory.display()))?;
    config.port = 0;
    config.state_dir = directory.join("state");
    config.runtime_dir = directory.join("run");
    config.pin_dir = private_pin_dir(&config.pin_dir, name);
    config.workers = config.workers.min(2);
    // What is refused is told on the terminal.
    config.journal = false;
    Ok(())
}

/// Where the pins of a private agent are whose directory has this name: beside those of the configured one.
pub(super) fn private_pin_dir(configured: &Path, name: &str) -> PathBuf {
    configured.with_file_name(name)
}
