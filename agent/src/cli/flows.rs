//! `tollgate flows`: the kernel's accounts of flows.
use super::output::{self, Form, Format, Table};
use super::{Context, Outcome};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Flow, Reply, Request};

/// Show the kernel's accounts of flows, live and just ended
///
/// Live flows, and the last 1024 that ended. Bytes are those of whole packets, with their headers; of packets, those sent stand
/// before those received.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only of this workload
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
    /// Only live ones
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    form: Form,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let mut flows = Vec::new();
    for reply in client::ask(&context.socket()?, Request::Flows)? {
        if let Reply::Flow(flow) = reply? {
            flows.push(flow);
        }
    }
    flows.retain(|f| args.workload.as_ref().is_none_or(|w| f.workload == *w));
    flows.retain(|f| !args.live || f.ended.is_none());
    if args.form.format != Format::Table {
        output::print_json(args.form.format, &flows)?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(&[
        "STATE",
        "SINCE",
        "WORKLOAD",
        "PROCESS",
        "DESTINATION",
        "SENT",
        "RECEIVED",
        "PACKETS",
    ]);
    for flow in &flows {
        table.row(row(flow));
    }
    table.print()?;
    Ok(Outcome::Done)
}

fn row(flow: &Flow) -> [String; 8] {
    let name = flow.process.exe.rsplit('/').next().unwrap_or_default();
    let state = if flow.ended.is_some() {
        "ended"
    } else {
        "live"
    };
    [
        state.to_owned(),
        flow.ended
            .or(flow.opened)
            .map(output::local)
            .unwrap_or_default(),
        flow.workload.clone(),
        format!("{name}({})", flow.process.pid),
        flow.destination.to_string(),
        output::bytes(flow.counters.bytes_out),
        output::bytes(flow.counters.bytes_in),
        output::packets(&flow.counters),
    ]
}
