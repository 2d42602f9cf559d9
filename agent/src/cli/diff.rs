//! `tollgate diff`: what a change of policy lets in and shuts out.
use super::Outcome;
use super::output::{self, Colour, Form, Format, Paint};
use crate::daemon;
use anyhow::Context as _;
use std::path::PathBuf;
use tollgate_policy::Compiled;
use tollgate_policy::tools::diff::{Change, Difference, Kind, Side, Witness, diff};

/// Changes of one kind that a table shows, unless all are asked for.
const SHOWN: usize = 50;

/// Show what a change of policy lets in and shuts out
///
/// Compares what two policies mean, by workload and place, and not how they are written: names of roles, files, apis
/// and places in a path, and the order of anything are no difference. Each line names a request that the two decide
/// differently. A change for which none was found is told as such: it may have no effect, or one that only some body
/// shows.
///
/// Exit code 0: no difference; 1: some; 2: a policy is wrong.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The policy as it was: a file or directory
    old: PathBuf,
    /// The policy as it is to be
    new: PathBuf,
    /// Decide as of this time, e.g. 2026-06-01T00:00:00Z [default: now]
    #[arg(long, value_name = "TIME")]
    now: Option<jiff::Timestamp>,
    /// Show every difference, and every request that shows it
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    form: Form,
}

pub(super) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let [old, new] = [&args.old, &args.new].map(load);
    let now = args.now.unwrap_or_else(jiff::Timestamp::now);
    let difference = diff(&old?.policy, &new?.policy, now.as_second());
    match args.form.format {
        Format::Table => print(&difference, args.all),
        Format::Jsonl => output::print_json(Format::Jsonl, &difference.changes)?,
        Format::Json => output::print_json_one(Format::Json, &difference)?,
    }
    Ok(if difference.is_empty() {
        Outcome::Done
    } else {
        Outcome::No
    })
}

fn load(path: &PathBuf) -> anyhow::Result<Compiled> {
    let sources = daemon::read_policy(std::slice::from_ref(path))?;
    let compiled = daemon::compile(&sources).map_err(daemon::Error::PolicyFaults);
    compiled.with_context(|| path.display().to_string())
}

fn print(difference: &Difference, all: bool) {
    if difference.is_empty() {
        show!("no difference");
    }
    let kinds = [
        (Kind::LetsIn, "lets in", Colour::Yellow),
        (Kind::ShutsOut, "shuts out", Colour::Red),
        (
            Kind::Both,
            "lets in some and shuts out some",
            Colour::Yellow,
        ),
        (Kind::Changes, "changes", Colour::Green),
        (
            Kind::Unproven,
            "is written otherwise; no request was found that shows it",
            Colour::Dim,
        ),
    ];
    let paint = Paint::stdout();
    for (kind, heading, colour) in kinds {
        let of_kind = difference
            .changes
            .iter()
            .filter(|change| change.kind == kind);
        let count = of_kind.clone().count();
        if count == 0 {
            continue;
        }
        show!("{}", paint.paint(colour, heading));
        let most = if all { count } else { SHOWN };
        for change in of_kind.take(most) {
            print_change(change, all, paint);
        }
        if count > most {
            show!("  and {} more: --all shows them", count - most);
        }
    }
    if difference.limited {
        show!("the policies are so large that not every request was tried");
    }
}

fn print_change(change: &Change, all: bool, paint: Paint) {
    let list = |names: &[String]| {
        let shown = names.iter().take(if all { names.len() } else { 4 });
        let mut text = shown.cloned().collect::<Vec<_>>().join(", ");
        if !all && names.len() > 4 {
            text += &format!(" and {} more", names.len() - 4);
        }
        text
    };
    let subject = [&change.workloads, &change.identities].map(|names| list(names));
    let subject: Vec<String> = subject
        .into_iter()
        .filter(|names| !names.is_empty())
        .collect();
    let told = format!(
        "  {}  {}  {}",
        subject.join(" as "),
        change.what,
        list(&change.places)
    );
    show!("{}", output::escape(told.trim_end()));
    let sides = [
        ("-", &change.old, Colour::Red),
        ("+", &change.new, Colour::Green),
    ];
    for (sign, sides, colour) in sides {
        for side in sides {
            let told = format!("    {sign} {}", output::escape(&says(side)));
            show!("{}", paint.paint(colour, &told));
        }
    }
    let witnesses = change.witnesses.iter();
    for witness in witnesses.take(if all { usize::MAX } else { 2 }) {
        show!(
            "    {}",
            paint.paint(Colour::Dim, &output::escape(&shown_by(witness)))
        );
    }
}

fn says(side: &Side) -> String {
    match &side.at {
        Some(at) => format!("{} ({}:{})", side.says, at.file, at.line),
        None => side.says.clone(),
    }
}

/// `GET https://… as alice: DENY → ALLOW`.
fn shown_by(witness: &Witness) -> String {
    let mut told = format!("e.g. {}", witness.request);
    if let Some(identity) = &witness.identity {
        told += &format!(" as {identity}");
    }
    for (name, value) in &witness.headers {
        told += &format!(" with {name}: {value}");
    }
    if let Some(body) = &witness.body {
        told += &format!(" with {body}");
    }
    told + &format!(": {} → {}", witness.old, witness.new)
}
