//! `tollgate ca`: the local CA's certificate, and its rotation; never its key.
use super::decisions::duration;
use super::output::{self, Form, Format};
use super::{Context, Outcome};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Ca, Reply, Request};
use std::path::Path;
use std::time::Duration;

/// Show, export or replace the local CA
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Fingerprint, expiry, and where the trust files are
    Show {
        #[command(flatten)]
        form: Form,
    },
    /// Print the certificate, PEM
    Export {
        /// The one for programs that are not governed: good for no host but those that the policy inspects
        #[arg(long)]
        constrained: bool,
    },
    /// Replace the CA by a new one, whose key is made now; the old key is gone
    ///
    /// What is started from now on trusts the new one. What runs and knows only the old one is served until the overlap
    /// ends. Trust that was installed on the host must be installed again by then.
    Rotate {
        /// For how long programs that started before are served, e.g. 12h, 7d
        #[arg(long, value_name = "TIME", default_value = "7d", value_parser = duration)]
        overlap: Duration,
        #[command(flatten)]
        form: Form,
    },
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let socket = context.socket()?;
    match &args.what {
        What::Export { constrained } => {
            let ca = ask(&socket)?;
            let pem = if *constrained {
                ca.constrained
            } else {
                ca.certificate
            };
            show_text!("{pem}");
        }
        What::Show { form } => print(&ask(&socket)?, form)?,
        What::Rotate { overlap, form } => {
            let overlap = overlap.as_secs();
            print(&asked(&socket, Request::RotateCa { overlap })?, form)?;
        }
    }
    Ok(Outcome::Done)
}

fn print(ca: &Ca, form: &Form) -> anyhow::Result<()> {
    if form.format != Format::Table {
        return output::print_json_one(form.format, ca);
    }
    show!("SHA-256      {}", ca.fingerprint);
    show!("expires      {}", output::local(ca.not_after));
    if let Some(until) = ca.overlap {
        let until = output::local(until);
        show!("overlap      until {until}, for programs that know only the CA before");
    }
    show!("certificate  {}", ca.trust.ca.display());
    show!("bundle       {}", ca.trust.bundle.display());
    show!("for Java     {}", ca.trust.java.display());
    Ok(())
}

/// The running agent's CA.
pub(super) fn ask(socket: &Path) -> Result<Ca, client::Error> {
    asked(socket, Request::Ca)
}

fn asked(socket: &Path, request: Request) -> Result<Ca, client::Error> {
    match client::ask_one(socket, request)? {
        Reply::Ca(ca) => Ok(ca),
        other => Err(client::Error::Broken(format!("unexpected reply {other:?}"))),
    }
}
