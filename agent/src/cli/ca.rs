//! `tollgate ca`: the local CA's certificate; never its key.
use super::output::{self, Form, Format};
use super::{Context, Outcome};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Ca, Reply, Request};
use std::path::Path;

/// Show or export the local CA's certificate
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
    Export,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let ca = ask(&context.socket()?)?;
    match &args.what {
        What::Export => show_text!("{}", ca.certificate),
        What::Show { form } if form.format != Format::Table => {
            output::print_json_one(form.format, &ca)?
        }
        What::Show { .. } => {
            show!("SHA-256      {}", ca.fingerprint);
            show!("expires      {}", output::local(ca.not_after));
            show!("certificate  {}", ca.trust.ca.display());
            show!("bundle       {}", ca.trust.bundle.display());
        }
    }
    Ok(Outcome::Done)
}

/// The running agent's CA.
pub(super) fn ask(socket: &Path) -> Result<Ca, client::Error> {
    match client::ask_one(socket, Request::Ca)? {
        Reply::Ca(ca) => Ok(ca),
        other => Err(client::Error::Broken(format!("unexpected reply {other:?}"))),
    }
}
