//! `tollgate workloads`: what is governed, and the kernel's account of each workload.
use super::output::{self, Form, Format, Table};
use super::{Context, Outcome};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Earlier, Recognised, Reply, Request};
use crate::kernel::{Governed, WorkloadAccount};
use std::path::Path;

/// Show what is governed, and the kernel's account of each workload
///
/// Each workload's processes, its account, which goes on over restarts of the agent and of the host, connections that its processes had before they were governed: ended
/// since the agent started, or going on; and its governed cgroups. Of packets, those sent stand before those received. With --processes, each process: since
/// when it is governed, and by which evidence. A process stays governed after it has left the cgroup, and so do its children.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// List the processes
    #[arg(long, short)]
    processes: bool,
    #[command(flatten)]
    form: Form,
}

/// A workload, for JSON.
#[derive(Debug, serde::Serialize)]
struct Listed {
    workload: String,
    cgroups: Vec<Governed>,
    processes: Vec<Recognised>,
    account: Option<WorkloadAccount>,
    /// Connections from before.
    earlier: Option<Earlier>,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let listed = listed(&context.socket()?)?;
    if args.form.format != Format::Table {
        output::print_json(args.form.format, &listed)?;
        return Ok(Outcome::Done);
    }
    if args.processes {
        return print_processes(&listed);
    }
    let mut table = Table::new(&[
        "WORKLOAD",
        "PROCESSES",
        "CONNECTIONS",
        "REFUSED",
        "SENT",
        "RECEIVED",
        "PACKETS",
        "FROM BEFORE",
        // The longest last: a line that the terminal breaks is broken there.
        "CGROUPS",
    ]);
    for workload in &listed {
        table.row(row(workload));
    }
    table.print()?;
    Ok(Outcome::Done)
}

fn listed(socket: &Path) -> anyhow::Result<Vec<Listed>> {
    let mut by_name = std::collections::BTreeMap::<String, Listed>::new();
    let empty = |workload: &String| Listed {
        workload: workload.clone(),
        cgroups: Vec::new(),
        processes: Vec::new(),
        account: None,
        earlier: None,
    };
    for reply in
        client::ask(socket, Request::Workloads)?.chain(client::ask(socket, Request::Accounts)?)
    {
        match reply? {
            Reply::Workload(governed) => {
                by_name
                    .entry(governed.workload.clone())
                    .or_insert_with_key(empty)
                    .cgroups
                    .push(governed);
            }
            Reply::Process(process) => {
                by_name
                    .entry(process.process.workload.clone())
                    .or_insert_with_key(empty)
                    .processes
                    .push(process);
            }
            Reply::Earlier(earlier) => {
                let listed = by_name
                    .entry(earlier.workload.clone())
                    .or_insert_with_key(empty);
                listed.earlier = Some(earlier);
            }
            Reply::Account(account) => {
                let listed = by_name
                    .entry(account.workload.clone())
                    .or_insert_with_key(empty);
                listed.account = Some(account);
            }
            _ => {}
        }
    }
    Ok(by_name.into_values().collect())
}

fn print_processes(listed: &[Listed]) -> anyhow::Result<Outcome> {
    let mut table = Table::new(&["WORKLOAD", "PROCESS", "PARENT", "SINCE", "BY"]);
    for Recognised {
        process,
        sha256,
        by,
    } in listed.iter().flat_map(|workload| &workload.processes)
    {
        let inherited = if process.inherited { ", inherited" } else { "" };
        let digest = sha256.as_ref().map(|digest| {
            let start: String = digest.chars().take(12).collect();
            format!(", content {start}…")
        });
        table.row([
            process.workload.clone(),
            format!("{}({})", process.exe, process.pid),
            process.parent.to_string(),
            output::local(process.since),
            format!("{by}{inherited}{}", digest.unwrap_or_default()),
        ]);
    }
    table.print()?;
    Ok(Outcome::Done)
}

fn row(listed: &Listed) -> [String; 9] {
    let cgroups = listed
        .cgroups
        .iter()
        .map(|g| g.cgroup.clone().unwrap_or_else(|| "(gone)".to_owned()));
    let account = listed.account.as_ref();
    let refusals = account.map(|a| {
        let each: Vec<_> = a
            .refusals
            .iter()
            .map(|(reason, n)| format!("{n} {reason}"))
            .collect();
        each.join(", ")
    });
    [
        listed.workload.clone(),
        listed.processes.len().to_string(),
        account.map_or("-".to_owned(), |a| a.connections.to_string()),
        refusals
            .filter(|r| !r.is_empty())
            .unwrap_or_else(|| "-".to_owned()),
        account.map_or("-".to_owned(), |a| output::bytes(a.counters.bytes_out)),
        account.map_or("-".to_owned(), |a| output::bytes(a.counters.bytes_in)),
        account.map_or("-".to_owned(), |a| output::packets(&a.counters)),
        listed.earlier.as_ref().map_or("-".to_owned(), from_before),
        Some(cgroups.collect::<Vec<_>>().join(" "))
            .filter(|c| !c.is_empty())
            .unwrap_or_else(|| "-".to_owned()),
    ]
}

fn from_before(earlier: &Earlier) -> String {
    let told = [
        (earlier.destroyed, "ended"),
        (u64::try_from(earlier.open).unwrap_or(u64::MAX), "open"),
    ];
    let told = told.iter().filter(|(count, _)| *count > 0);
    told.map(|(count, what)| format!("{count} {what}"))
        .collect::<Vec<_>>()
        .join(", ")
}
