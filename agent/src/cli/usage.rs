//! `tollgate usage`: budgets, spent and left.
use super::output::{self, Form, Format, Table};
use super::{Context, Outcome};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Reply, Request, Usage};

/// Show what is spent and what is left of each budget
///
/// As the kernel counts it, in the window that it is now.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only of this workload
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    #[command(flatten)]
    form: Form,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let mut budgets = Vec::new();
    for reply in client::ask(&context.socket()?, Request::Usage)? {
        if let Reply::Usage(usage) = reply? {
            budgets.push(usage);
        }
    }
    budgets.retain(|b| args.workload.as_ref().is_none_or(|w| b.workload == *w));
    if args.form.format != Format::Table {
        output::print_json(args.form.format, &budgets)?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(&["BUDGET", "WORKLOAD", "LIMIT", "SPENT", "LEFT", "UNTIL"]);
    for usage in &budgets {
        table.row(row(usage));
    }
    table.print()?;
    Ok(Outcome::Done)
}

fn row(usage: &Usage) -> [String; 6] {
    [
        usage.budget.clone(),
        usage.workload.clone(),
        format!("{}/{}", output::bytes(usage.limit), usage.window),
        output::bytes(usage.spent),
        output::bytes(usage.left),
        output::local(usage.until),
    ]
}
