//! `tollgate usage`: budgets, spent and left.
use super::output::{self, Form, Format, Table};
use super::{Context, Outcome};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Amount, Holder, Reply, Request, Usage};

/// Show what is spent and what is left of each budget
///
/// In the window that it is now. Where each identity or workload has an amount of its own, those are shown that spent something.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only what this workload has of its own
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Only what this identity has of its own
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
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
    let is = |wanted: &Option<String>, has: &Option<String>| wanted.is_none() || wanted == has;
    budgets.retain(|b| is(&args.workload, &b.workload) && is(&args.identity, &b.identity));
    if args.form.format != Format::Table {
        output::print_json(args.form.format, &budgets)?;
        return Ok(Outcome::Done);
    }
    let columns = [
        "BUDGET", "HOLDER", "UNIT", "LIMIT", "SPENT", "LEFT", "UNTIL",
    ];
    let mut table = Table::new(&columns);
    for usage in &budgets {
        table.row(row(usage));
    }
    table.print()?;
    Ok(Outcome::Done)
}

fn row(usage: &Usage) -> [String; 7] {
    let holder = match (usage.holder, &usage.workload, &usage.identity) {
        (_, Some(name), _) | (_, _, Some(name)) => name.clone(),
        (Holder::Identity, ..) => "(no identity)".to_owned(),
        _ => "-".to_owned(),
    };
    let show = |amount: &Amount| match amount {
        Amount::Decimal(dollars) => dollars.clone(),
        Amount::Whole(bytes) if usage.unit == "bytes" => output::bytes(*bytes),
        Amount::Whole(count) => count.to_string(),
    };
    [
        usage.budget.clone(),
        holder,
        usage.unit.clone(),
        format!("{}/{}", show(&usage.limit), usage.window),
        show(&usage.spent),
        show(&usage.left),
        output::local(usage.until),
    ]
}
