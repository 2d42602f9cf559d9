//! `tollgate explain`: a request that is not sent, or a decision from the log.
use super::output::{self, Colour, Form, Format, Paint};
use super::{Context, Outcome, decisions};
use crate::audit::{Filter, Record};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Answer, Explained, Question, Reply, Request};
use crate::daemon::{self, explain};
use anyhow::{Context as _, bail};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use tollgate_policy::Mode;

/// Bytes of a body at most.
const BODY: u64 = 1 << 20;

/// Decide a request without sending it, or show a decision from the log
///
/// `tollgate explain METHOD URL --workload W` decides without sending; `tollgate explain DECISION-ID` shows a decision.
/// Exit code 0: it would pass; 1: it would not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Method, or the id of a decision
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
    if args.url.is_none() {
        return show_decision(context, &args.method, format);
    }
    let policy = args.policy.clone();
    let question = question(args)?;
    let explained = if policy.is_empty() {
        ask(context, question)?
    } else {
        offline(&policy, &question)?
    };
    match format {
        Format::Table => show_text!("{}", text(&explained, Paint::stdout())),
        format => output::print_json_one(format, &explained)?,
    }
    Ok(if passes(&explained) {
        Outcome::Done
    } else {
        Outcome::No
    })
}

fn question(args: Args) -> anyhow::Result<Question> {
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
    Ok(Question {
        method: args.method,
        url: args.url.unwrap_or_default(),
        workload: args.workload.context("say who asks with --workload")?,
        identity: args.identity,
        headers: args.header,
        body,
    })
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

fn text(explained: &Explained, paint: Paint) -> String {
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
    if !explained.near.is_empty() {
        lines.push("  near misses:".to_owned());
    }
    for near in &explained.near {
        let told = format!(
            "{} ({}): {}: {}",
            near.rule.label, near.rule.at, near.failed.code, near.failed.detail
        );
        lines.push(format!("    {}", output::escape(&told)));
    }
    lines.join("\n") + "\n"
}

fn show_decision(context: &Context, id: &str, format: Format) -> anyhow::Result<Outcome> {
    let Ok(id) = id.parse() else {
        bail!("{id}: neither a decision's id, nor a method with a URL after it");
    };
    let filter = Filter {
        id: Some(id),
        ..Filter::default()
    };
    let mut found: Option<Arc<Record>> = None;
    match client::ask(
        &context.socket()?,
        Request::Decisions {
            filter: filter.clone(),
            follow: false,
        },
    ) {
        Ok(answer) => {
            for reply in answer {
                if let Reply::Decision(record) = reply? {
                    found = Some(record);
                }
            }
        }
        Err(client::Error::NoAgent { .. }) => {
            let directory = daemon::decisions_dir(&context.config()?.state_dir);
            found = crate::audit::read(&directory, &filter)?.into_iter().next();
        }
        Err(e) => return Err(e.into()),
    }
    let Some(record) = found else {
        tell!("tollgate: no decision {id} in the log: it may be older than the segments kept");
        return Ok(Outcome::No);
    };
    if format == Format::Table {
        for line in decisions::lines([record.as_ref()], Paint::stdout(), None) {
            show!("{line}");
        }
    }
    output::print_json_one(format, &record)?;
    Ok(Outcome::Done)
}
