//! `tollgate check`: validates policy without an agent.
use super::output::{self, Colour, Form, Format, Paint};
use super::{Context, Outcome};
use crate::daemon;
use std::path::PathBuf;
use tollgate_policy::syntax::{Faults, Severity};

/// Validate policy: every fault with its place, and how to mend it
///
/// Exit code 0: valid, perhaps with warnings; 2: faults.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Policy files and directories [default: the configuration's]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print a JSON Schema of policy documents instead, for editors
    #[arg(long, conflicts_with = "files")]
    schema: bool,
    #[command(flatten)]
    form: Form,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    if args.schema {
        show_text!("{}", tollgate_policy::SCHEMA);
        return Ok(Outcome::Done);
    }
    let paths = if args.files.is_empty() {
        context.config()?.policy
    } else {
        args.files.clone()
    };
    let sources = daemon::read_policy(&paths)?;
    let files = sources.len();
    let (summary, faults, valid) = match daemon::compile(&sources) {
        Ok(compiled) => (describe(&compiled.policy, files), compiled.warnings, true),
        Err(faults) => (String::new(), faults, false),
    };
    match args.form.format {
        Format::Table => print_people(&summary, &faults, valid),
        format => output::print_json(format, &faults.0)?,
    }
    Ok(if valid { Outcome::Done } else { Outcome::Fault })
}

fn print_people(summary: &str, faults: &Faults, valid: bool) {
    let paint = Paint::stderr();
    if !faults.is_empty() {
        tell!("{}", output::escape_lines(&faults.to_string()));
    }
    let count = |severity| faults.iter().filter(|f| f.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if valid {
        let noted = if warnings == 0 {
            String::new()
        } else {
            format!(", {}", plural(warnings, "warning"))
        };
        show!(
            "{} {summary}{noted}",
            Paint::stdout().paint(Colour::Green, "valid:")
        );
    } else {
        let more = if warnings == 0 {
            String::new()
        } else {
            format!(" and {}", plural(warnings, "warning"))
        };
        let told = format!("{}{more}: refused", plural(errors, "error"));
        tell!("{}", paint.paint(Colour::Red, &told));
    }
}

fn describe(policy: &tollgate_policy::Policy, files: usize) -> String {
    let hash: String = policy.hash().chars().take(12).collect();
    format!(
        "{}, {}, {}, {}, policy {hash}",
        plural(files, "file"),
        plural(policy.workloads().len(), "workload"),
        plural(policy.apis().len(), "api"),
        plural(policy.credentials().len(), "credential"),
    )
}

fn plural(count: usize, noun: &str) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{s}")
}
