//! `tollgate decisions`: the decisions on record, and as they happen.
mod line;

pub(super) use self::line::lines;
use self::line::{Columns, Row};
use super::output::{self, Form, Format, Paint};
use super::{Context, Outcome};
use crate::audit::{Filter, Record};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{self, Reply, Request};
use crate::{audit, daemon};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;
use tollgate_policy::syntax::parse_duration;

/// Show decisions, from the log or live
///
/// Newest last. Without a running agent, reads the log of the configuration's state_dir.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on with new ones as they happen
    #[arg(short, long)]
    follow: bool,
    /// Only what was refused, or would have been
    #[arg(long)]
    denied: bool,
    /// Only of this workload
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Only of this identity
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    /// Only to this host; `*.example.com` for all below it
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Only the last while, e.g. 30s, 10m, 2h, 1d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    since: Option<Duration>,
    /// The last so many at most, up to 10000 [default: 1000, with --follow 10]
    #[arg(long, value_name = "N", value_parser = limit)]
    limit: Option<usize>,
    #[command(flatten)]
    form: Form,
}

/// More than the agent sends at once would be cut without a word.
fn limit(text: &str) -> Result<usize, String> {
    let most = wire::DECISIONS;
    text.parse()
        .ok()
        .filter(|limit| *limit <= most)
        .ok_or_else(|| {
            format!("write a number up to {most}; `--since` and the other filters narrow the rest")
        })
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write a number and a unit: 30s, 10m, 2h, 1d".to_owned())
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let filter = filter(args);
    let request = Request::Decisions {
        filter: filter.clone(),
        follow: args.follow,
    };
    match client::ask(&context.socket()?, request) {
        Ok(answer) if args.follow => follow(answer, args.form.format),
        Ok(answer) => {
            let mut records = Vec::new();
            for reply in answer {
                if let Reply::Decision(record) = reply? {
                    records.push(record);
                }
            }
            print(&records, args.form.format)
        }
        Err(client::Error::NoAgent { path, source }) => {
            if args.follow || context.socket.is_some() {
                return Err(client::Error::NoAgent { path, source }.into());
            }
            let directory = daemon::decisions_dir(&context.config()?.state_dir);
            tell!("tollgate: no agent runs: reading {}", directory.display());
            let mut records = audit::read(&directory, &filter)?;
            records.reverse();
            print(&records, args.form.format)
        }
        Err(e) => Err(e.into()),
    }
}

fn filter(args: &Args) -> Filter {
    let since = args
        .since
        .and_then(|d| jiff::SignedDuration::try_from(d).ok());
    Filter {
        since: since.map(|d| {
            jiff::Timestamp::now()
                .saturating_sub(d)
                .unwrap_or(jiff::Timestamp::MIN)
        }),
        denied: args.denied,
        workload: args.workload.clone(),
        identity: args.identity.clone(),
        host: args.host.clone(),
        limit: args.limit.or(Some(if args.follow { 10 } else { 1000 })),
        ..Filter::default()
    }
}

fn print(records: &[Arc<Record>], format: Format) -> anyhow::Result<Outcome> {
    if format == Format::Json {
        output::print_json(format, records)?;
        return Ok(Outcome::Done);
    }
    let mut out = std::io::stdout().lock();
    if format == Format::Jsonl {
        for record in records {
            writeln!(out, "{}", serde_json::to_string(record)?)?;
        }
    } else {
        let records = records.iter().map(Arc::as_ref);
        for line in lines(records, Paint::stdout(), output::width_of_stdout()) {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()?;
    Ok(Outcome::Done)
}

/// A stream has no closing bracket: `json` is a document a line when following.
fn follow(answer: client::Answer, format: Format) -> anyhow::Result<Outcome> {
    let mut columns = Columns::of_a_stream();
    for reply in answer {
        match reply? {
            Reply::Decision(record) => {
                let text = if format == Format::Table {
                    let row = Row::of(&record);
                    columns.widen(&row);
                    columns.line(&row, Paint::stdout(), output::width_of_stdout())
                } else {
                    serde_json::to_string(&record)?
                };
                let mut out = std::io::stdout().lock();
                writeln!(out, "{text}")?;
                out.flush()?;
            }
            Reply::Missed(count) => {
                tell!("tollgate: {count} decisions passed too fast to show; they are in the log")
            }
            _ => {}
        }
    }
    Ok(Outcome::Done)
}
