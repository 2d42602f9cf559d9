//! `tollgate explain`: a request that is not sent, a decision from the log, or who could make a call.
mod recorded;
mod who;

use super::output::{self, Colour, Form, Format, Paint};
use super::{Context, Outcome};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Answer, Explained, Question, Reply, Request};
use crate::daemon::{self, explain};
use anyhow::{Context as _, bail};
use std::io::Read;
use std::path::PathBuf;
use tollgate_policy::{Mode, Policy};

/// Bytes of a body at most.
const BODY: u64 = 1 << 20;

/// Rules that came near, as a table shows them, unless all are asked for.
const SHOWN: usize = 8;

/// Decide a request without sending it, or show a decision from the log, or who could make a call
///
/// `tollgate explain METHOD URL --workload W` decides without sending: the verdict, the rule, every rule that came near
/// and the first thing that failed in it, what would be stripped, put in and redacted. Exit code 0: it would pass; 1: it
/// would not.
///
/// `tollgate explain DECISION-ID` shows a decision on record, and what the policy on disk (or --policy) says of it now,
/// as far as the record goes: it holds neither headers nor bodies nor the values of query parameters. Exit code 0: it is
/// on record; 1: it is not.
///
/// `tollgate explain --who can 'METHOD URL'` (or `--who-can METHOD URL`) lists the workloads and identities that could
/// make a call under the policy on disk (or --policy), by which rule, until when, and what else would have to hold. Exit
/// code 0: somebody could; 1: nobody.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Method, or the id of a decision; with --who can, method and URL in one
    #[arg(value_name = "METHOD|DECISION-ID")]
    method: String,
    /// The whole URL
    url: Option<String>,
    /// Who asks
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Identity proven
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    /// A header, as `name: value`; may be given more than once
    #[arg(long, value_name = "K:V", value_parser = header)]
    header: Vec<(String, String)>,
    /// The body: text, or @FILE
    #[arg(long, value_name = "@FILE")]
    body: Option<String>,
    /// Decide by these policy files instead of asking the running agent
    #[arg(long, value_name = "FILE")]
    policy: Vec<PathBuf>,
    /// List who could make the call
    #[arg(long, value_name = "can", value_parser = ["can"], conflicts_with_all = ["workload", "identity"])]
    who: Option<String>,
    /// As --who can
    #[arg(long, conflicts_with_all = ["workload", "identity"])]
    who_can: bool,
    /// Read decisions from this log instead of asking the running agent
    #[arg(long, value_name = "DIR")]
    log: Option<PathBuf>,
    /// Show every rule that came near
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    form: Form,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write it as `name: value`")?;
    if name.trim().is_empty() {
        return Err("it has no name".to_owned());
    }
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

pub(super) fn run(context: &Context, args: Args) -> anyhow::Result<Outcome> {
    let format = args.form.format;
    if args.who.is_some() || args.who_can {
        return who::run(context, &args);
    }
    if args.url.is_none() {
        return recorded::run(context, &args);
    }
    let all = args.all;
    let policy = args.policy.clone();
    let question = question(args)?;
    let explained = if policy.is_empty() {
        ask(context, question)?
    } else {
        offline(&policy, &question)?
    };
    match format {
        Format::Table => show_text!("{}", text(&explained, all, Paint::stdout())),
        format => output::print_json_one(format, &explained)?,
    }
    Ok(if passes(&explained) {
        Outcome::Done
    } else {
        Outcome::No
    })
}

fn question(args: Args) -> anyhow::Result<Question> {
    let body = body(&args)?;
    Ok(Question {
        method: args.method,
        url: args.url.unwrap_or_default(),
        workload: args.workload.context("say who asks with --workload")?,
        identity: args.identity,
        headers: args.header,
        body,
    })
}

/// The body that was given, as text or in a file.
fn body(args: &Args) -> anyhow::Result<Option<String>> {
    let body = match args.body.as_deref().map(|b| b.strip_prefix('@').ok_or(b)) {
        None => None,
        Some(Err(text)) => Some(text.to_owned()),
        Some(Ok(path)) => {
            let mut text = String::new();
            let file = std::fs::File::open(path).with_context(|| format!("body {path}"))?;
            file.take(BODY + 1)
                .read_to_string(&mut text)
                .with_context(|| format!("body {path}"))?;
            Some(text)
        }
    };
    if body.as_ref().is_some_and(|b| b.len() as u64 > BODY) {
        bail!("the body is larger than {BODY} bytes: explain a smaller one");
    }
    Ok(body)
}

fn ask(context: &Context, question: Question) -> anyhow::Result<Explained> {
    match client::ask_one(&context.socket()?, Request::Explain(question))? {
        Reply::Explained(explained) => Ok(*explained),
        other => Err(client::Error::Broken(format!("unexpected reply {other:?}")).into()),
    }
}

fn offline(policy: &[PathBuf], question: &Question) -> anyhow::Result<Explained> {
    let sources = daemon::read_policy(policy)?;
    let compiled = daemon::compile(&sources).map_err(daemon::Error::PolicyFaults)?;
    Ok(explain::explain(&compiled.policy, question)?)
}

fn passes(explained: &Explained) -> bool {
    explained.verdict == Answer::Allow || explained.mode == Mode::Observe
}

fn text(explained: &Explained, all: bool, paint: Paint) -> String {
    let mut lines = vec![match (explained.verdict, explained.mode) {
        (Answer::Allow, _) => paint.paint(Colour::Green, "ALLOW"),
        (Answer::Deny, Mode::Observe) => {
            paint.paint(Colour::Yellow, "WOULD-DENY (it passes: observe mode)")
        }
        (Answer::Deny, Mode::Enforce) => paint.paint(Colour::Red, "DENY"),
    }];
    let mut fact = |name: &str, value: &str| {
        if !value.is_empty() {
            lines.push(format!("  {name:<10} {}", output::escape(value)));
        }
    };
    if let Some(rule) = &explained.rule {
        fact("rule", &format!("{} ({})", rule.label, rule.at));
    }
    if let Some(reason) = &explained.reason {
        fact("reason", &format!("{}: {}", reason.code, reason.detail));
        fact("next", &reason.hint);
    }
    fact("api", explained.api.as_deref().unwrap_or_default());
    fact(
        "credential",
        explained.credential.as_deref().unwrap_or_default(),
    );
    fact("injected", &explained.injected.join(", "));
    fact("stripped", &explained.stripped.join(", "));
    let mut response = Vec::new();
    if !explained.response_stripped.is_empty() {
        response.push(format!(
            "without {}",
            explained.response_stripped.join(", ")
        ));
    }
    if !explained.response_redacted.is_empty() {
        response.push(format!(
            "redacted {}",
            explained.response_redacted.join(", ")
        ));
    }
    response.extend(
        explained
            .response_max
            .map(|max| format!("at most {}", output::bytes(max))),
    );
    fact("response", &response.join("; "));
    fact("budgets", &explained.budgets.join(", "));
    if !explained.near.is_empty() {
        lines.push("  near misses:".to_owned());
    }
    let most = if all { explained.near.len() } else { SHOWN };
    for near in explained.near.iter().take(most) {
        let told = format!(
            "{} ({}): {}: {}",
            near.rule.label, near.rule.at, near.failed.code, near.failed.detail
        );
        lines.push(format!("    {}", output::escape(&told)));
    }
    if explained.near.len() > most {
        let more = explained.near.len() - most;
        lines.push(format!("    and {more} more: --all shows them"));
    }
    lines.join("\n") + "\n"
}

/// The policy of `--policy`, or of the configuration.
fn policy_on_disk(context: &Context, args: &Args) -> anyhow::Result<Policy> {
    let paths = match args.policy.is_empty() {
        true => context.config()?.policy,
        false => args.policy.clone(),
    };
    let sources = daemon::read_policy(&paths)?;
    let compiled = daemon::compile(&sources).map_err(daemon::Error::PolicyFaults)?;
    Ok(compiled.policy)
}
