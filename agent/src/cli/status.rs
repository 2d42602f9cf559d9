//! `tollgate status`: health, layers, fail modes.
use super::output::{self, Colour, Form, Format, Paint};
use super::{Context, Outcome};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Namespace, Reply, Request, Status, Verdict};
use crate::kernel::{self, Left, Standing};
use std::path::Path;
use tollgate_policy::Mode;

/// Show health, the layers in force, and what happens when a part fails
///
/// Exit code 0: enforcing, or observing as configured; 1: not enforcing, or a part has failed; 3: no agent runs. Then the kernel is
/// asked which hooks are in force: in JSON `fence` says whether all that keep something in are, `in_force` names those that are, and of
/// the others `missing`, `without` (they keep nothing in) and `beyond` (this kernel has them not) have name and `leaves_open`. `unseen`:
/// some were away, and what was opened then has not been looked for yet; `fence` is false as long.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    form: Form,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let status = match client::ask_one(&context.socket()?, Request::Status) {
        Ok(Reply::Status(status)) => *status,
        Ok(other) => {
            return Err(client::Error::Broken(format!("unexpected reply {other:?}")).into());
        }
        Err(
            e @ (client::Error::NoAgent { .. }
            | client::Error::Silent { .. }
            | client::Error::Stopped { .. }
            | client::Error::Broken(_)),
        ) => {
            return without_agent(&context.config()?.pin_dir, &e, args.form.format);
        }
        Err(e) => return Err(e.into()),
    };
    match args.form.format {
        Format::Table => show_text!("{}", text(&status, Paint::stdout())),
        format => output::print_json_one(format, &status)?,
    }
    Ok(if healthy(&status) {
        Outcome::Done
    } else {
        Outcome::No
    })
}

/// A failed part that refuses is unhealthy, though nothing gets past.
fn healthy(status: &Status) -> bool {
    matches!(status.verdict, Verdict::Enforcing | Verdict::Observing)
        && !status.fail_modes.iter().any(|m| m.now)
}

/// What is true without an agent.
#[derive(Debug, serde::Serialize)]
struct Dead {
    agent: Option<()>,
    /// All that keeps in what is governed is in force, and was it since that was looked at.
    fence: bool,
    #[serde(flatten)]
    hooks: Standing,
    pin_dir: String,
}

fn without_agent(pin_dir: &Path, error: &client::Error, format: Format) -> anyhow::Result<Outcome> {
    let left = kernel::left(pin_dir);
    let pin_dir = pin_dir.display().to_string();
    if format != Format::Table {
        let (fence, hooks) = match left {
            Left::Stands(hooks) => (hooks.is_whole(), hooks),
            _ => (false, Standing::default()),
        };
        let dead = Dead {
            agent: None,
            fence,
            hooks,
            pin_dir,
        };
        output::print_json_one(format, &dead)?;
        return Ok(Outcome::NoAgent);
    }
    let paint = Paint::stdout();
    let is_there = matches!(
        error,
        client::Error::Silent { .. } | client::Error::Stopped { .. }
    );
    let (headline, become_of) = match is_there {
        true => (
            "NO ANSWER",
            "governed connections go to the agent, which holds them for as long as it is stopped",
        ),
        false => (
            "NO AGENT",
            "governed connections are refused at once until an agent runs",
        ),
    };
    show!("{}", paint.paint(Colour::Red, headline));
    match left {
        Left::Stands(hooks) => show!("{}", standing(&hooks, &pin_dir, become_of, paint)),
        Left::Nothing => show!(
            "  fence   {} ({pin_dir} has no pins): nothing is governed",
            paint.paint(Colour::Red, "none")
        ),
        Left::Unknown(error) => show!(
            "  fence   not known ({pin_dir}: {error}): run this as root to have the kernel asked"
        ),
    }
    tell!("tollgate: {error}");
    Ok(Outcome::NoAgent)
}

/// Of a fence whose hooks are all in force again.
pub(super) const UNSEEN: &str =
    "hooks were away, and what was opened meanwhile may go on: start the agent, which looks for it";

fn standing(hooks: &Standing, pin_dir: &str, become_of: &str, paint: Paint) -> String {
    let incomplete = paint.paint(Colour::Red, "INCOMPLETE");
    let mut lines = Lines(vec![match hooks.missing.is_empty() {
        true if hooks.unseen => format!("  fence   {incomplete} ({pin_dir}): {UNSEEN}"),
        true => format!("  fence   stands ({pin_dir}): {become_of}"),
        false => format!(
            "  fence   {incomplete} ({pin_dir}): start the agent, which puts back what is missing"
        ),
    }]);
    lines.in_force(hooks.in_force.iter().copied(), paint);
    for open in hooks.missing.iter().chain(&hooks.without) {
        lines.missing(open.name, open.leaves_open, None, paint);
    }
    for open in &hooks.beyond {
        let why = Some("the last agent found that this kernel has it not");
        lines.missing(open.name, open.leaves_open, why, paint);
    }
    lines.0.join("\n")
}

fn text(status: &Status, paint: Paint) -> String {
    let mut lines = Lines(Vec::new());
    lines.0.push(match &status.verdict {
        Verdict::Enforcing => paint.paint(Colour::Green, "enforcing"),
        Verdict::Observing => {
            paint.paint(Colour::Yellow, "observing: denials are recorded and pass")
        }
        Verdict::Refusing { why } => format!(
            "{}: {}",
            paint.paint(Colour::Red, "REFUSING ALL"),
            output::escape(why)
        ),
        Verdict::NotEnforcing { why } => {
            format!(
                "{}: {}",
                paint.paint(Colour::Red, "NOT ENFORCING"),
                output::escape(&why.join("; "))
            )
        }
    });
    agent_and_policy(status, &mut lines);
    layers(status, &mut lines, paint);
    fail_modes(status, &mut lines, paint);
    lines.0.join("\n") + "\n"
}

/// Lines of a name and its facts.
struct Lines(Vec<String>);

impl Lines {
    fn fact(&mut self, name: &str, value: &str) {
        self.0.push(format!("  {name:<10} {value}"));
    }

    /// Those in force on one line.
    fn in_force<'a>(&mut self, names: impl Iterator<Item = &'a str>, paint: Paint) {
        let names: Vec<String> = names.map(output::escape).collect();
        self.0.push("layers".to_owned());
        self.state(Colour::Green, "in force", &names.join(" "), paint);
    }

    /// Of each other what it leaves open, which is what matters.
    fn missing(&mut self, name: &str, leaves_open: &str, why: Option<&str>, paint: Paint) {
        let mut told = format!("{}: {}", output::escape(name), output::escape(leaves_open));
        if let Some(why) = why {
            told += &format!(" ({})", output::escape(why));
        }
        self.state(Colour::Yellow, "missing", &told, paint);
    }

    fn state(&mut self, colour: Colour, state: &str, told: &str, paint: Paint) {
        let state = paint.paint(colour, &format!("{state:<10}"));
        self.0.push(format!("  {state} {told}"));
    }
}

fn agent_and_policy(status: &Status, lines: &mut Lines) {
    let (agent, policy) = (&status.agent, &status.policy);
    let mode = if status.mode == Mode::Enforce {
        "enforce"
    } else {
        "observe"
    };
    lines.fact(
        "agent",
        &format!(
            "{} pid {} up {} port {} workers {} connections {} mode {mode}",
            output::escape(&agent.version),
            agent.pid,
            uptime(agent.started),
            agent.port,
            agent.workers,
            status.connections,
        ),
    );
    let hash: String = policy.hash.chars().take(12).collect();
    lines.fact(
        "policy",
        &format!(
            "{hash} version {} change {} applied {}",
            policy.version,
            policy.generation,
            output::local(policy.applied)
        ),
    );
    lines.fact("", &output::escape(&policy.files.join(" ")));
    if let Some(fault) = &policy.stale {
        lines.fact("", &format!("stale: {}", output::escape(fault)));
    }
    if let Some(fault) = &policy.secrets_stale {
        lines.fact("", &format!("secrets stale: {}", output::escape(fault)));
    }
    let idle = match status.idle_workloads.join(", ") {
        none if none.is_empty() => String::new(),
        idle => format!("; not on this host now: {}", output::escape(&idle)),
    };
    let governed = format!(
        "{} cgroups, {} processes{idle}",
        status.governed, status.processes
    );
    lines.fact("governed", &governed);
    for selector in &status.unresolved {
        lines.fact("selector", &output::escape(selector));
    }
    for namespace in &status.namespaces {
        lines.fact("namespace", &of_namespace(namespace));
    }
    for (cgroup, why) in &status.containers {
        let told = format!(
            "{} REFUSED: {}",
            output::escape(cgroup),
            output::escape(why)
        );
        lines.fact("container", &told);
    }
    lines.fact(
        "ca",
        &format!(
            "{} expires {}",
            short(&status.ca.fingerprint),
            output::local(status.ca.not_after)
        ),
    );
    let audit = &status.audit;
    let trouble = match (&audit.failing_since, &audit.last_error) {
        (Some(since), Some(error)) => format!(
            "; FAILING since {}: {}",
            output::local(*since),
            output::escape(error)
        ),
        _ => String::new(),
    };
    let untold = match audit.untold {
        0 => String::new(),
        lines => format!(", {lines} lines lost to the journal"),
    };
    lines.fact(
        "decisions",
        &format!(
            "{} written, {} lost, {} queued{untold}{trouble}",
            audit.written, audit.dropped, audit.queued
        ),
    );
    let (lost, unrecorded) = (status.lost_events, status.unrecorded_refusals);
    lines.fact(
        "events",
        &format!("{lost} lost; {unrecorded} refusals counted without a record each"),
    );
}

fn of_namespace(namespace: &Namespace) -> String {
    let served = match (namespace.port, &namespace.refused) {
        (Some(port), _) if namespace.ipv6 => format!("port {port}"),
        (Some(port), _) => format!("port {port}, IPv4 only: it has no ::1"),
        (None, Some(why)) => format!("REFUSED: {}", output::escape(why)),
        (None, None) => "REFUSED".to_owned(),
    };
    let workloads = output::escape(&namespace.workloads.join(", "));
    format!("net:[{}] {workloads}: {served}", namespace.inode)
}

fn short(fingerprint: &str) -> String {
    fingerprint.chars().take(16).collect()
}

fn layers(status: &Status, lines: &mut Lines, paint: Paint) {
    let (on, off): (Vec<_>, Vec<_>) = status.layers.iter().partition(|l| l.enforcing);
    lines.in_force(on.iter().map(|layer| &*layer.name), paint);
    for layer in off {
        lines.missing(&layer.name, &layer.leaves_open, layer.why.as_deref(), paint);
    }
    if !status.put_back.is_empty() {
        let told = format!(
            "{}: another hand took them away since the start; the agent's log says when",
            counted(&status.put_back)
        );
        lines.state(Colour::Red, "put back", &told, paint);
    }
    if !status.skipped.is_empty() {
        let told = format!(
            "{}: this kernel did not call them, so that processes were not seen for up to a second; then all were enrolled again",
            counted(&status.skipped)
        );
        lines.state(Colour::Yellow, "skipped", &told, paint);
    }
}

/// Layers, and how often.
fn counted(layers: &std::collections::BTreeMap<String, u64>) -> String {
    let each = layers.iter();
    let each: Vec<String> = each
        .map(|(layer, times)| format!("{} ({times})", output::escape(layer)))
        .collect();
    each.join(" ")
}

fn fail_modes(status: &Status, lines: &mut Lines, paint: Paint) {
    lines.0.push("when something fails".to_owned());
    for mode in &status.fail_modes {
        let now = if mode.now {
            paint.paint(Colour::Red, " NOW")
        } else {
            String::new()
        };
        lines
            .0
            .push(format!("  {:<19} {}{now}", mode.when, mode.then));
    }
}

fn uptime(started: jiff::Timestamp) -> String {
    let seconds = jiff::Timestamp::now()
        .duration_since(started)
        .as_secs()
        .max(0);
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h{minutes}m"),
        (days, hours, _) => format!("{days}d{hours}h"),
    }
}
