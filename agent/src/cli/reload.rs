//! `tollgate reload`: applies policy and secrets as they are on disk.
use super::output::{self, Colour, Paint};
use super::{Context, Outcome};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Reply, Request};

pub(super) fn run(context: &Context) -> anyhow::Result<Outcome> {
    match client::ask_one(&context.socket()?, Request::Reload)? {
        Reply::Reloaded {
            hash,
            changed,
            warnings,
        } => {
            for warning in warnings {
                tell!(
                    "{}: {}",
                    Paint::stderr().paint(Colour::Yellow, "warning"),
                    output::escape(&warning)
                );
            }
            let short: String = hash.chars().take(12).collect();
            let what = if changed {
                "applied: policy"
            } else {
                "policy unchanged, secrets read again:"
            };
            show!("{what} {short}");
            Ok(Outcome::Done)
        }
        other => Err(client::Error::Broken(format!("unexpected reply {other:?}")).into()),
    }
}
