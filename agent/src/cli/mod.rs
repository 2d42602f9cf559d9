//! The command line: one file per verb. `main` parses, dispatches and turns the outcome into an exit code.

/// A line on stderr. Unlike `eprintln!` it does not panic when its reader has left: the verb ends as it would have.
macro_rules! tell {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}\n", format_args!($($text)*)));
    }};
}
/// A line on stdout, as [`tell`].
macro_rules! show {
    ($($text:tt)*) => { show_text!("{}\n", format_args!($($text)*)) };
}
/// Text on stdout, as [`tell`].
macro_rules! show_text {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!($($text)*));
    }};
}

mod agent;
mod aside;
mod ca;
mod check;
mod completions;
mod content;
mod decisions;
mod diff;
mod doctor;
mod explain;
mod flows;
mod launch;
mod man;
mod output;
mod reload;
mod run;
mod status;
mod test;
#[cfg(test)]
mod tests;
mod token;
mod trust;
mod usage;
mod workloads;

use crate::config::{self, Config};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::FaultKind;
use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Gives API calls exactly the permissions they need.
#[derive(Debug, Parser)]
#[command(
    name = "tollgate",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    /// The agent's configuration [default: $TOLLGATE_CONFIG, else /etc/tollgate/config.yaml if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The running agent's admin socket [default: admin.sock in the configuration's runtime_dir]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Agent(agent::Args),
    Run(run::Args),
    Check(check::Args),
    Explain(explain::Args),
    Test(test::Args),
    Diff(diff::Args),
    Decisions(decisions::Args),
    Flows(flows::Args),
    Workloads(workloads::Args),
    Usage(usage::Args),
    Status(status::Args),
    /// Apply policy and secrets as they are on disk now
    Reload,
    Token(token::Args),
    Ca(ca::Args),
    Trust(trust::Args),
    Doctor(doctor::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(hide = true)]
    Launch(launch::Args),
    #[command(hide = true)]
    Content(content::Args),
    /// Does for the agent what may take for ever
    #[command(hide = true)]
    Aside,
}

/// Where the caller's configuration and agent are.
#[derive(Debug)]
struct Context {
    config: Option<PathBuf>,
    socket: Option<PathBuf>,
}

impl Context {
    /// The configuration.
    fn config(&self) -> Result<Config, config::Error> {
        Config::load(self.config.as_deref())
    }

    /// The running agent's socket.
    fn socket(&self) -> Result<PathBuf, config::Error> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => Ok(client::socket_path(&self.config()?.runtime_dir)),
        }
    }
}

/// How a verb ended, as the exit code tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// 0
    Done,
    /// 1: denied, drift, unhealthy.
    No,
    /// 2: usage or configuration.
    Fault,
    /// 3
    NoAgent,
    /// As the command ended that was run.
    Command(u8),
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Done => 0,
            Outcome::No => 1,
            Outcome::Fault => 2,
            Outcome::NoAgent => 3,
            Outcome::Command(code) => code,
        })
    }
}

/// Runs the verb that the arguments name; its exit code is 0 done, 1 the answer is no, 2 usage or configuration fault,
/// 3 no agent.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let context = Context {
        config: cli
            .config
            .or_else(|| std::env::var_os("TOLLGATE_CONFIG").map(PathBuf::from))
            .filter(|path| !path.as_os_str().is_empty()),
        socket: cli.socket,
    };
    match dispatch(&context, cli.verb) {
        Ok(outcome) => outcome.into(),
        Err(e) if output::is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            tell!("tollgate: {}", output::escape_lines(&told(&e)));
            outcome_of(&e).into()
        }
    }
}

fn dispatch(context: &Context, verb: Verb) -> anyhow::Result<Outcome> {
    match verb {
        Verb::Agent(args) => agent::run(context, args),
        Verb::Run(args) => run::run(context, args),
        Verb::Check(args) => check::run(context, &args),
        Verb::Explain(args) => explain::run(context, args),
        Verb::Test(args) => test::run(context, &args),
        Verb::Diff(args) => diff::run(&args),
        Verb::Decisions(args) => decisions::run(context, &args),
        Verb::Flows(args) => flows::run(context, &args),
        Verb::Workloads(args) => workloads::run(context, &args),
        Verb::Usage(args) => usage::run(context, &args),
        Verb::Status(args) => status::run(context, &args),
        Verb::Reload => reload::run(context),
        Verb::Token(args) => token::run(context, &args),
        Verb::Ca(args) => ca::run(context, &args),
        Verb::Trust(args) => trust::run(context, &args),
        Verb::Doctor(args) => doctor::run(context, &args),
        Verb::Completions(args) => completions::run(&args, Cli::command()),
        Verb::Man(args) => man::run(&args, Cli::command()),
        Verb::Content(args) => Ok(content::run(&args)),
        Verb::Aside => Ok(aside::run()),
        Verb::Launch(args) => Ok(launch::run(&args)),
    }
}

/// An error and its causes, each said once: many say their cause themselves.
fn told(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |told, next| match told {
            told if told.is_empty() => next,
            told if told.contains(&next) => told,
            told => format!("{told}: {next}"),
        })
}

/// An agent that is not there is 3; everything else that stops a verb is for the caller to mend.
fn outcome_of(error: &anyhow::Error) -> Outcome {
    match error.downcast_ref::<client::Error>() {
        Some(
            client::Error::NoAgent { .. }
            | client::Error::Silent { .. }
            | client::Error::Stopped { .. }
            | client::Error::Broken(_),
        ) => Outcome::NoAgent,
        Some(client::Error::Fault(fault)) if fault.kind == FaultKind::NotFound => Outcome::No,
        _ => Outcome::Fault,
    }
}
