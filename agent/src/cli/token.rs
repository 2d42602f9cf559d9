//! `tollgate token`: tokens by which callers prove an identity. The agent keeps none: a policy holds the public half.
use super::output::{self, Form, Format};
use super::{Context, Outcome};
use crate::daemon;
use crate::identity::{self, REVOKED, Revoked};
use anyhow::{Context as _, bail};
use serde::Serialize;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use tollgate_policy::{Identity, Policy, Proof};

/// Make, list and revoke tokens that prove an identity
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Make a token: prints it once, and what to write into the policy
    Issue {
        /// The identity that it is for
        #[arg(value_name = "IDENTITY")]
        name: String,
        #[command(flatten)]
        form: Form,
    },
    /// The identities of the policy and how each is proven
    List {
        /// Policy file or directory [default: the configuration's]
        #[arg(long, value_name = "FILE")]
        policy: Vec<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Take a token no longer, from now on, whatever the policy says
    Revoke {
        /// The public half, `tgi_…`, or an identity of the policy that is proven by a token
        #[arg(value_name = "TOKEN")]
        token: String,
        /// Policy file or directory [default: the configuration's]
        #[arg(long, value_name = "FILE")]
        policy: Vec<PathBuf>,
    },
}

/// What `issue -o json` prints.
#[derive(Serialize)]
struct Made<'a> {
    identity: &'a str,
    token: &'a str,
    public: &'a str,
}

/// A line of `list`.
#[derive(Serialize)]
struct Listed {
    identity: String,
    proof: &'static str,
    of: String,
    revoked: bool,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    match &args.what {
        What::Issue { name, form } => issue(name, form),
        What::List { policy, form } => list(context, policy, form),
        What::Revoke { token, policy } => revoke(context, token, policy),
    }
}

fn issue(name: &str, form: &Form) -> anyhow::Result<Outcome> {
    let made = identity::issue().context("the system gives no random bytes")?;
    if form.format != Format::Table {
        let made = Made {
            identity: name,
            token: &made.secret,
            public: &made.public,
        };
        output::print_json_one(form.format, &made)?;
        return Ok(Outcome::Done);
    }
    show!("{}", *made.secret);
    tell!(
        "This is the only time that it is shown. The caller sends it as `Tollgate-Identity`, or where it would send the api's key.\n\
         In the policy:\n\nidentities:\n  {}: {{ token: {} }}",
        output::escape(name),
        made.public
    );
    Ok(Outcome::Done)
}

fn list(context: &Context, files: &[PathBuf], form: &Form) -> anyhow::Result<Outcome> {
    let revoked = Revoked::read(&revoked_list(context)?)?;
    let policy = read(context, files)?;
    let all = policy
        .identities()
        .iter()
        .map(|identity| listed(identity, &revoked));
    let all: Vec<Listed> = all.collect();
    if form.format != Format::Table {
        output::print_json(form.format, &all)?;
        return Ok(Outcome::Done);
    }
    let mut table = output::Table::new(&["IDENTITY", "PROOF", "OF", "STATE"]);
    for one in all {
        let state = if one.revoked { "revoked" } else { "taken" };
        table.row([one.identity, one.proof.to_owned(), one.of, state.to_owned()]);
    }
    table.print()?;
    Ok(Outcome::Done)
}

fn listed(identity: &Identity, revoked: &Revoked) -> Listed {
    let (proof, of, revoked) = match &identity.proof {
        Proof::Token(public) => ("token", public.clone(), revoked.has(public)),
        Proof::Jwt {
            issuer,
            audience,
            claims,
            ..
        } => {
            let claims = claims
                .iter()
                .map(|(name, value)| format!(" {name}={value}"));
            let of = format!("{issuer} for {audience}{}", claims.collect::<String>());
            ("jwt", of, false)
        }
    };
    Listed {
        identity: identity.name.clone(),
        proof,
        of,
        revoked,
    }
}

fn revoke(context: &Context, token: &str, files: &[PathBuf]) -> anyhow::Result<Outcome> {
    if token.starts_with("tgt_") {
        bail!(
            "this is the secret half, which now stands in your shell's history: give the public half, `tgi_…`, or the identity"
        );
    }
    let public = if token.starts_with("tgi_") {
        token.to_owned()
    } else {
        public_of(&read(context, files)?, token)?
    };
    if !identity::is_public_half(&public) {
        bail!(
            "this is not the public half of a token, which is `tgi_` and 43 characters: give the whole of it, nothing is revoked"
        );
    }
    let path = revoked_list(context)?;
    if Revoked::read(&path)?.has(&public) {
        tell!("{public} was revoked before");
        return Ok(Outcome::Done);
    }
    let append = || {
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
        }
        let mut list = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)?;
        list.write_all(format!("{public}\n").as_bytes())?;
        list.sync_all()
    };
    append().with_context(|| format!("cannot write {}", path.display()))?;
    tell!("{public} is revoked: a running agent takes it no longer within a second");
    Ok(Outcome::Done)
}

fn public_of(policy: &Policy, name: &str) -> anyhow::Result<String> {
    match policy
        .identities()
        .iter()
        .find(|identity| identity.name == name)
    {
        Some(Identity {
            proof: Proof::Token(public),
            ..
        }) => Ok(public.clone()),
        Some(_) => {
            bail!("{name} is proven by JWTs: its issuer revokes them, or the policy drops it")
        }
        None => bail!("no identity {name} in the policy: `tollgate token list` shows them"),
    }
}

fn read(context: &Context, files: &[PathBuf]) -> anyhow::Result<Policy> {
    let sources = match files {
        [] => daemon::read_policy(&context.config()?.policy)?,
        files => daemon::read_policy(files)?,
    };
    Ok(daemon::compile(&sources)
        .map_err(daemon::Error::PolicyFaults)?
        .policy)
}

fn revoked_list(context: &Context) -> anyhow::Result<PathBuf> {
    Ok(context.config()?.state_dir.join(REVOKED))
}
