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
            unheld,
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
            for why in &unheld {
                let not = Paint::stderr().paint(Colour::Red, "not in force");
                tell!("{not}: {}", output::escape(why));
            }
            Ok(match unheld.is_empty() {
                true => Outcome::Done,
                false => Outcome::No,
            })
        }
        other => Err(client::Error::Broken(format!("unexpected reply {other:?}")).into()),
    }
}
