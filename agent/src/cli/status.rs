//! `tollgate status`: health, layers, fail modes.
use super::output::{self, Colour, Form, Format, Paint};
use super::{Context, Outcome};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Namespace, Reply, Request, Status, Verdict};
use crate::kernel::{self, Left};
use std::path::Path;
use tollgate_policy::Mode;

/// Show health, the layers in force, and what happens when a part fails
///
/// Exit code 0: enforcing, or observing as configured; 1: not enforcing, or a part has failed; 3: no agent runs.
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
        Err(e @ (client::Error::NoAgent { .. } | client::Error::Broken(_))) => {
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
    /// All that keeps in what is governed is in force.
    fence: bool,
    /// Hooks that do, and are not in force, of a fence that is there.
    missing: Vec<&'static str>,
    /// Likewise, of the hooks that keep nothing in.
    without: Vec<&'static str>,
    pin_dir: String,
}

fn without_agent(pin_dir: &Path, error: &client::Error, format: Format) -> anyhow::Result<Outcome> {
    let left = kernel::left(pin_dir);
    let pin_dir = pin_dir.display().to_string();
    if format != Format::Table {
        let (stands, missing, without) = match left {
            Left::Stands { missing, without } => (true, missing, without),
            _ => (false, Vec::new(), Vec::new()),
        };
        output::print_json_one(
            format,
            &Dead {
                agent: None,
                fence: stands && missing.is_empty(),
                missing,
                without,
                pin_dir,
            },
        )?;
        return Ok(Outcome::NoAgent);
    }
    let paint = Paint::stdout();
    show!("{}", paint.paint(Colour::Red, "NO AGENT"));
    match left {
        Left::Stands { missing, without } => {
            match missing.is_empty() {
                true => show!(
                    "  fence   stands ({pin_dir}): governed connections are refused at once until an agent runs"
                ),
                false => show!(
                    "  fence   {} ({pin_dir}): {} not in force; start the agent, which puts back what is missing",
                    paint.paint(Colour::Red, "INCOMPLETE"),
                    missing.join(", ")
                ),
            }
            if !without.is_empty() {
                show!(
                    "          not in force, of the hooks that keep nothing in: {}",
                    without.join(", ")
                );
            }
        }
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

/// Those in force on one line; of each other what it leaves open, which is what matters.
fn layers(status: &Status, lines: &mut Lines, paint: Paint) {
    lines.0.push("layers".to_owned());
    let (on, off): (Vec<_>, Vec<_>) = status.layers.iter().partition(|l| l.enforcing);
    let names: Vec<String> = on.iter().map(|l| output::escape(&l.name)).collect();
    let state = |colour, text: &str| paint.paint(colour, &format!("{text:<10}"));
    lines.0.push(format!(
        "  {} {}",
        state(Colour::Green, "in force"),
        names.join(" ")
    ));
    for layer in off {
        let why = layer
            .why
            .as_deref()
            .map(|w| format!(" ({})", output::escape(w)));
        lines.0.push(format!(
            "  {} {}: {}{}",
            state(Colour::Yellow, "missing"),
            output::escape(&layer.name),
            output::escape(&layer.leaves_open),
            why.unwrap_or_default(),
        ));
    }
    if !status.put_back.is_empty() {
        lines.0.push(format!(
            "  {} {}: another hand took them away since the start; the agent's log says when",
            state(Colour::Red, "put back"),
            counted(&status.put_back),
        ));
    }
    if !status.skipped.is_empty() {
        lines.0.push(format!(
            "  {} {}: this kernel did not call them, so that processes were not seen for up to a second; then all were enrolled again",
            state(Colour::Yellow, "skipped"),
            counted(&status.skipped),
        ));
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
