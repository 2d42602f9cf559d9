//! Why an agent does not start, or does not take a change. Each says what to do.
use tollgate_policy::syntax::Faults;

/// Everything that keeps an agent from starting or a change from being applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A process could not harden itself.
    #[error("cannot harden the process: {0}: run outside the sandbox that forbids it")]
    Harden(std::io::Error),
    /// It would run out of descriptors.
    #[error(
        "the agent may open {files} files and needs {fewest}: too many open files would keep it from serving; raise LimitNOFILE= of its unit, or `ulimit -Hn`"
    )]
    FewFiles {
        /// What it may open.
        files: u64,
        /// What it needs.
        fewest: u64,
    },
    /// Not root.
    #[error("the agent needs root: start it with `systemctl start tollgate` or with sudo")]
    NotRoot,
    /// A directory cannot be made or used.
    #[error(
        "{key} {path}: {source}: make it writable for root, or name another in the configuration"
    )]
    Directory {
        /// Key of the configuration.
        key: &'static str,
        /// Path.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// A directory belongs to someone who could swap its files.
    #[error(
        "{key} {path} belongs to user {owner}, who could swap its files: `chown root {path}`, or name another"
    )]
    ForeignDirectory {
        /// Key of the configuration.
        key: &'static str,
        /// Path.
        path: String,
        /// Its owner.
        owner: u32,
    },
    /// Another agent holds the lock.
    #[error(
        "another agent (pid {pid}) uses {runtime_dir}: stop it, or give this one its own runtime_dir"
    )]
    AlreadyRunning {
        /// The holder, as it wrote itself.
        pid: String,
        /// The directory.
        runtime_dir: String,
    },
    /// A policy file or directory cannot be read.
    #[error("policy {path}: {source}: {}", unread(source))]
    PolicyUnreadable {
        /// Path.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// A policy file is over the bound.
    #[error("policy {path}: larger than {max} bytes: split it")]
    PolicyTooLarge {
        /// Path.
        path: String,
        /// The bound.
        max: u64,
    },
    /// All policy files together are over the bound.
    #[error("the policy files are larger than {max} bytes together")]
    PoliciesTooLarge {
        /// The bound.
        max: u64,
    },
    /// No policy at all.
    #[error(
        "no policy: no `*.yaml` in {0}: write one (README, \"a first policy\"), or name it with --policy"
    )]
    PolicyMissing(String),
    /// The policy is wrong.
    #[error(
        "{0}the policy is refused whole: mend what is marked above (`tollgate check` shows it again)"
    )]
    PolicyFaults(Faults),
    /// More budgets than can be counted.
    #[error(transparent)]
    Accounts(#[from] crate::budget::TooMany),
    /// What is spent cannot be written down.
    #[error(
        "the ledger of budgets: {0}: make room in the runtime directory, and mend who may write there"
    )]
    Ledger(std::io::Error),
    /// Secrets could not be had.
    #[error("{}", join(.0))]
    Secrets(Vec<crate::secrets::Error>),
    /// Secrets could not be had from Vault.
    #[error("{}", join(.0))]
    Vault(Vec<crate::secrets::Error>),
    /// The list of revoked tokens is there and cannot be read: any token might be on it.
    #[error(
        "{path}: {source}: mend the list of revoked tokens, one `tgi_…` on each line, or remove it"
    )]
    Revoked {
        /// The list.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The CA.
    #[error(transparent)]
    Tls(#[from] crate::tls::Error),
    /// The decision log.
    #[error("decision log: {0}")]
    Audit(String),
    /// The listeners.
    #[error("{0}")]
    Listen(std::io::Error),
    /// Nobody who is governed gets the agent's port.
    #[error(
        "the agent is governed itself, by the fence of an earlier one, which keeps the agent's port from it: start it in a cgroup that the policy does not mean (Slice= of its unit), or first have the earlier one apply a policy that does not"
    )]
    Governed,
    /// A private agent was told to stop before its run was over.
    #[error(
        "processes of the run are left ({left}): the fence stays up and refuses them everything; once they ended, remove {pins}"
    )]
    Left {
        /// How many.
        left: usize,
        /// What holds the fence.
        pins: String,
    },
    /// The kernel half.
    #[error(transparent)]
    Fence(#[from] crate::kernel::Error),
    /// The admin socket.
    #[error("admin socket {path}: {source}: make its directory writable for root")]
    Admin {
        /// Path.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// A thread or runtime.
    #[error("cannot start the agent's threads: {0}: raise the limits on processes and memory")]
    Threads(std::io::Error),
    /// The control plane lacks something that it cannot be without.
    #[error("{what}: {source}: raise LimitNOFILE= of the agent's unit and fs.file-max")]
    Control {
        /// What cannot be had.
        what: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
    /// A part of a running agent ended that is never to, and the agent with it: what is governed is refused until it is up again.
    #[error(
        "{0}: that is a fault of the agent's, its log says more; it is to be started again, as its service is by itself"
    )]
    Ended(&'static str),
    /// A file for others.
    #[error("cannot write {path}: {source}: make room or mend its directory")]
    Publish {
        /// Path.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
}

fn join(errors: &[crate::secrets::Error]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}

impl Error {
    /// The first line, for places that have room for one.
    pub fn first_line(&self) -> String {
        match self {
            Self::PolicyFaults(faults) => match faults.0.first() {
                Some(f) => format!("{}:{}:{}: {}", f.at.file, f.at.line, f.at.column, f.message),
                None => "the policy is refused".to_owned(),
            },
            other => other
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
        }
    }
}

/// What to do where a policy cannot be read for this reason.
fn unread(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::InvalidData => "a policy is text, in UTF-8",
        _ => "name policy files under `policy:` in the configuration, or with --policy",
    }
}
