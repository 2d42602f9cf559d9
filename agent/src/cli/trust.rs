//! `tollgate trust env`: the variables that make common clients trust the local CA.
use super::{Context, Outcome, ca};
use crate::daemon::admin::wire::Trust;
use std::io::Write;
use std::path::Path;

/// Set up trust in the local CA
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print the variables, for `eval "$(tollgate trust env)"` or an EnvironmentFile
    Env {
        /// Form of the output
        #[arg(short = 'o', long = "output", value_enum, default_value_t)]
        form: Form,
    },
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Form {
    /// `export NAME='value'`
    #[default]
    Sh,
    /// One object.
    Json,
}

/// Variables that replace a client's trust store; each gets the bundle of the system's roots and the local CA.
const REPLACING: [&str; 13] = [
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "CURL_CA_BUNDLE",
    "DENO_CERT",
    "GIT_SSL_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "HTTPLIB2_CA_CERTS",
    "NIX_SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "WEBSOCKET_CLIENT_CA_BUNDLE",
];
/// Variables that add to a client's trust store; each gets the local CA alone.
const ADDING: [&str; 1] = ["NODE_EXTRA_CA_CERTS"];

/// The variables that make clients trust the local CA, in the order of their names.
pub(super) fn variables(trust: &Trust) -> Vec<(&'static str, &Path)> {
    let replacing = REPLACING.iter().map(|name| (*name, trust.bundle.as_path()));
    let adding = ADDING.iter().map(|name| (*name, trust.ca.as_path()));
    let mut all: Vec<_> = replacing.chain(adding).collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let What::Env { form } = args.what;
    let trust = ca::ask(&context.socket()?)?.trust;
    let variables = variables(&trust);
    let mut out = std::io::stdout().lock();
    match form {
        Form::Sh => {
            for (name, path) in variables {
                writeln!(out, "export {name}={}", quote(&path.display().to_string()))?;
            }
        }
        Form::Json => {
            let object: std::collections::BTreeMap<_, _> = variables.into_iter().collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&object)?)?;
        }
    }
    Ok(Outcome::Done)
}

/// For a POSIX shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
