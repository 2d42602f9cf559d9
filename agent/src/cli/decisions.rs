//! `tollgate decisions`: the decisions on record, and as they happen.
use super::output::{self, Colour, Form, Format, Paint};
use super::{Context, Outcome};
use crate::audit::{Filter, Record, Verdict};
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

fn duration(text: &str) -> Result<Duration, String> {
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
    for record in records {
        writeln!(out, "{}", text(record, format)?)?;
    }
    out.flush()?;
    Ok(Outcome::Done)
}

fn follow(answer: client::Answer, format: Format) -> anyhow::Result<Outcome> {
    for reply in answer {
        match reply? {
            Reply::Decision(record) => {
                let mut out = std::io::stdout().lock();
                writeln!(out, "{}", text(&record, format)?)?;
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

/// A stream has no closing bracket: `json` is a document a line when following.
fn text(record: &Record, format: Format) -> anyhow::Result<String> {
    Ok(match format {
        Format::Table => line(record, Paint::stdout()),
        Format::Json | Format::Jsonl => serde_json::to_string(record)?,
    })
}

/// A decision as a line: time, verdict, workload, identity, process, method, host and route, status, milliseconds, rule
/// or reason.
pub(super) fn line(record: &Record, paint: Paint) -> String {
    let (name, colour) = match record.verdict {
        Verdict::Allow => ("ALLOW", Colour::Green),
        Verdict::Deny => ("DENY", Colour::Red),
        Verdict::WouldDeny => ("WOULD-DENY", Colour::Yellow),
        Verdict::Limit => ("LIMIT", Colour::Red),
        Verdict::Error => ("ERROR", Colour::Yellow),
    };
    let or_dash = |text: Option<&str>| {
        text.filter(|t| !t.is_empty())
            .map_or("-".to_owned(), output::escape)
    };
    let process = record.process.as_ref().map(|p| {
        let name = p.exe.rsplit('/').next().unwrap_or_default();
        format!("{name}({})", p.pid)
    });
    let status = record.response.map(|r| r.status.to_string());
    [
        paint.paint(Colour::Dim, &output::local(record.time)),
        paint.paint(colour, &format!("{name:<10}")),
        or_dash(record.workload.as_deref()),
        or_dash(record.identity.as_deref()),
        or_dash(process.as_deref()),
        or_dash(record.request.as_ref().map(|r| r.method.as_str())),
        or_dash(record.request.as_ref().map(place).as_deref()),
        or_dash(status.as_deref()),
        format!(
            "{}.{}ms",
            record.timing.total_us / 1000,
            record.timing.total_us % 1000 / 100
        ),
        outcome(record),
    ]
    .join(" ")
}

/// Host and route, or path where no route matched; protocol and address where the kernel refused.
fn place(request: &audit::RequestRecord) -> String {
    let port = match (request.scheme.as_str(), request.port) {
        ("https", 443) | ("http", 80) | (_, 0) => String::new(),
        (_, port) => format!(":{port}"),
    };
    let host = if request.host.contains(':') && !request.host.starts_with('[') {
        format!("[{}]", request.host)
    } else {
        request.host.clone()
    };
    let route = request
        .route
        .as_deref()
        .map(|r| r.split_once(' ').map_or(r, |(_, path)| path));
    let scheme = match request.scheme.as_str() {
        "https" => String::new(),
        other => format!("{other}://"),
    };
    format!("{scheme}{host}{port}{}", route.unwrap_or(&request.path))
}

/// The rule that let it pass, or the reason that it did not.
fn outcome(record: &Record) -> String {
    match (&record.reason, &record.rule) {
        (Some(reason), _) => output::escape(&format!("{}: {}", reason.code, reason.detail)),
        (None, Some(rule)) => output::escape(rule),
        (None, None) => "-".to_owned(),
    }
}
