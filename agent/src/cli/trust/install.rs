//! `tollgate trust install` and `uninstall`: trust of the whole host in the CA, for the hosts that the policy inspects.
use super::super::{Context, Outcome, ca};
use crate::tls::browser_policy;
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How to go about it.
#[derive(Debug, clap::Args)]
pub(in super::super) struct Args {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// A distribution's store: where additions lie, and what takes them up.
struct Store {
    additions: &'static str,
    /// The program that builds the store of additions, and its argument where something was taken out.
    update: (&'static str, &'static [&'static str]),
}

const STORES: [Store; 2] = [
    Store {
        additions: "/usr/local/share/ca-certificates",
        // Without --fresh Debian's leaves the link of what is gone.
        update: ("update-ca-certificates", &["--fresh"]),
    },
    Store {
        additions: "/etc/pki/ca-trust/source/anchors",
        update: ("update-ca-trust", &["extract"]),
    },
];
/// Directories of browsers' settings; a browser that is not installed has none.
const BROWSERS: [&str; 3] = ["/etc/chromium", "/etc/opt/chrome", "/etc/opt/edge"];
/// Ours, in a store and in a browser's settings.
const CERTIFICATE: &str = "tollgate.crt";
const POLICY: &str = "policies/managed/tollgate.json";

/// What is to be done, or was.
struct Work {
    dry_run: bool,
    changed: bool,
}

impl Work {
    fn tell(&mut self, done: &str, would: &str, what: &str) {
        self.changed = true;
        show!("{} {what}", if self.dry_run { would } else { done });
    }

    /// Puts a file there, unless it is there and `same` holds of it.
    fn put(
        &mut self,
        path: &Path,
        text: &str,
        same: impl Fn(&str) -> bool,
    ) -> anyhow::Result<bool> {
        if std::fs::read_to_string(path).is_ok_and(|there| same(&there)) {
            show!("is there        {}", path.display());
            return Ok(false);
        }
        self.tell(
            "written        ",
            "would write    ",
            &path.display().to_string(),
        );
        if !self.dry_run {
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)
                    .with_context(|| format!("cannot make {}", directory.display()))?;
            }
            crate::daemon::publish(path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(true)
    }

    fn remove(&mut self, path: &Path) -> anyhow::Result<bool> {
        if !path.exists() {
            return Ok(false);
        }
        self.tell(
            "removed        ",
            "would remove   ",
            &path.display().to_string(),
        );
        if !self.dry_run {
            std::fs::remove_file(path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(true)
    }

    fn update(&mut self, store: &Store) -> anyhow::Result<()> {
        let (program, arguments) = store.update;
        let line = format!("{program} {}", arguments.join(" "));
        self.tell("run            ", "would run      ", &line);
        if self.dry_run {
            return Ok(());
        }
        let ran = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .with_context(|| format!("cannot run {program}"))?;
        if !ran.status.success() {
            let said = String::from_utf8_lossy(&ran.stderr);
            bail!("`{line}` failed ({}): {}", ran.status, said.trim());
        }
        Ok(())
    }
}

pub(super) fn install(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let ca = ca::ask(&context.socket()?)?;
    let mut work = begin(args)?;
    let Some(store) = STORES.iter().find(|s| Path::new(s.additions).is_dir()) else {
        bail!(
            "this host's trust store is not known: add the output of `tollgate ca export --constrained` to it by hand"
        );
    };
    let file = Path::new(store.additions).join(CERTIFICATE);
    // Signed anew each time it is asked for: what it says is compared.
    let same = |there: &str| says(there).is_some_and(|there| Some(there) == says(&ca.constrained));
    if work.put(&file, &ca.constrained, same)? {
        work.update(store)?;
    }
    let policy = browser_policy(&ca.constrained);
    for settings in browsers() {
        work.put(&settings.join(POLICY), &policy, |there| {
            in_policy(there).is_some_and(|pem| same(&pem))
        })?;
    }
    if work.changed {
        show!(
            "the CA is good for: {}",
            match ca.names.as_slice() {
                [] => "nothing, since the policy inspects no host".to_owned(),
                names => names.join(", "),
            }
        );
        show!("programs that are running keep the trust they started with");
    }
    Ok(Outcome::Done)
}

pub(super) fn uninstall(args: &Args) -> anyhow::Result<Outcome> {
    let mut work = begin(args)?;
    for store in &STORES {
        if work.remove(&Path::new(store.additions).join(CERTIFICATE))? {
            work.update(store)?;
        }
    }
    for settings in browsers() {
        work.remove(&settings.join(POLICY))?;
    }
    if !work.changed {
        show!("nothing is installed");
    }
    Ok(Outcome::Done)
}

fn begin(args: &Args) -> anyhow::Result<Work> {
    if !args.dry_run && !rustix::process::geteuid().is_root() {
        bail!("the host's trust store is root's: run this with sudo, or with --dry-run");
    }
    Ok(Work {
        dry_run: args.dry_run,
        changed: false,
    })
}

fn browsers() -> impl Iterator<Item = PathBuf> {
    BROWSERS.iter().map(PathBuf::from).filter(|s| s.is_dir())
}

/// What a certificate says, without its signature and the moment it was made.
fn says(pem: &str) -> Option<(Vec<u8>, Vec<u8>, Vec<u8>)> {
    let der = pem::parse(pem).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(der.contents()).ok()?;
    let constraints = parsed.extensions().iter().find(|extension| {
        extension.oid == x509_parser::oid_registry::OID_X509_EXT_NAME_CONSTRAINTS
    })?;
    Some((
        parsed.subject().as_raw().to_vec(),
        parsed.public_key().raw.to_vec(),
        constraints.value.to_vec(),
    ))
}

/// The certificate in a browser's policy of ours, PEM.
fn in_policy(text: &str) -> Option<String> {
    let policy: serde_json::Value = serde_json::from_str(text).ok()?;
    let base64 = policy.get("CACertificates")?.get(0)?.as_str()?;
    Some(format!(
        "-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n"
    ))
}
