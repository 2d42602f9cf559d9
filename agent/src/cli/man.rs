//! `tollgate man`: the manual pages.
use super::Outcome;
use anyhow::Context as _;
use std::path::PathBuf;

/// Print the manual page
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Write a page per verb into this directory instead
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args, command: clap::Command) -> anyhow::Result<Outcome> {
    match &args.dir {
        Some(directory) => {
            clap_mangen::generate_to(command, directory)
                .with_context(|| directory.display().to_string())?;
        }
        None => clap_mangen::Man::new(command).render(&mut std::io::stdout())?,
    }
    Ok(Outcome::Done)
}
