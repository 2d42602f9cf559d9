//! `tollgate trust`: what makes clients trust the local CA: variables for those that are governed, and the host's store.
mod install;

use super::{Context, Outcome, ca};
use crate::daemon::admin::wire::Trust;
use std::ffi::{OsStr, OsString};
use std::io::Write;

/// Set up trust in the local CA
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Print the variables, for `eval "$(tollgate trust env)"` or, with `-o env`, an EnvironmentFile of systemd
    Env {
        /// Form of the output
        #[arg(short = 'o', long = "output", value_enum, default_value_t)]
        form: Form,
    },
    /// Make every program of this host trust the CA, for the hosts that the policy inspects and no other
    ///
    /// Puts a name-constrained certificate of the CA into the system's store, which Debian's and Red Hat's tools hand on
    /// to OpenSSL, GnuTLS and Java, and into the policies of Chromium, Chrome and Edge where they are installed. It is
    /// meant for services that are governed and cannot be given variables; under `tollgate run` nothing needs it. Does
    /// what is missing, and nothing where nothing is: run it again after the policy inspects another host.
    Install(install::Args),
    /// Take out again what `install` put in; needs no agent
    Uninstall(install::Args),
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Form {
    /// `export NAME='value'`
    #[default]
    Sh,
    /// `NAME="value"`
    Env,
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

/// Java reads its options from here, in any of its launchers; it says so on stderr.
const JAVA: &str = "JAVA_TOOL_OPTIONS";

/// The variables that make clients trust the local CA, in the order of their names. What the caller has Java do
/// besides stays.
pub(super) fn variables(trust: &Trust) -> Vec<(&'static str, OsString)> {
    let replacing = REPLACING
        .iter()
        .map(|name| (*name, trust.bundle.clone().into_os_string()));
    let adding = ADDING
        .iter()
        .map(|name| (*name, trust.ca.clone().into_os_string()));
    let java = (JAVA, java(trust, std::env::var_os(JAVA)));
    let mut all: Vec<_> = replacing.chain(adding).chain([java]).collect();
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

fn java(trust: &Trust, already: Option<OsString>) -> OsString {
    let mut options = already.unwrap_or_default();
    if !options.is_empty() {
        options.push(" ");
    }
    options.push("-Djavax.net.ssl.trustStoreType=PKCS12 -Djavax.net.ssl.trustStore=");
    options.push(&trust.java);
    options
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let form = match &args.what {
        What::Env { form } => *form,
        What::Install(args) => return install::install(context, args),
        What::Uninstall(args) => return install::uninstall(args),
    };
    let trust = ca::ask(&context.socket()?)?.trust;
    let variables = variables(&trust);
    let mut out = std::io::stdout().lock();
    let text = |value: &OsStr| value.to_string_lossy().into_owned();
    match form {
        Form::Sh => {
            for (name, value) in variables {
                writeln!(out, "export {name}={}", quote(&text(&value)))?;
            }
        }
        Form::Env => {
            for (name, value) in variables {
                let value = text(&value).replace('\\', "\\\\").replace('"', "\\\"");
                writeln!(out, "{name}=\"{value}\"")?;
            }
        }
        Form::Json => {
            let object: std::collections::BTreeMap<_, _> = variables
                .iter()
                .map(|(name, value)| (*name, text(value)))
                .collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&object)?)?;
        }
    }
    Ok(Outcome::Done)
}

/// For a POSIX shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
