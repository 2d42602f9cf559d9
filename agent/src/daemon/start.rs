//! The ordered start. What a person can get wrong comes first, what changes the host last.
use super::agent::{Agent, Applied};
use super::budgets::{self, Budgets};
use super::containers::Containers;
use super::counters::{self, Counters};
use super::enrol::Enrolments;
use super::error::Error;
use super::events::Seen;
use super::mend::Watched;
use super::namespaces::Namespaces;
use super::{Lifetime, admin, decisions_dir, kept, notify, policy, trust};
use crate::audit;
use crate::budget::Registry;
use crate::config::Config;
use crate::identity::Published;
use crate::kernel::{self, Fence, Options};
use crate::pipeline::{self, Listeners, Overspent, Plane, Room, Shared};
use crate::secrets::vault::{Reach, Values};
use crate::snapshot::{Live, Snapshot};
use crate::tls::{Authority, Issuing};
use rustix::io::Errno;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use tollgate_policy::Reason;
use tollgate_policy::syntax::Source;

/// An agent that is up, and the socket it is to be asked on.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) agent: Arc<Agent>,
    pub(super) admin: UnixListener,
}

/// Brings an agent up, from configuration to a data plane that answers.
pub(super) fn bring_up(config: Config, lifetime: Lifetime) -> Result<Up, Error> {
    let published = Published::default();
    let dns_servers = resolvers(&config);
    let accounts = budgets::registry(&config).map_err(Error::Ledger)?;
    let with = (&published, &accounts);
    let (snapshot, mut applied) = first_snapshot(&config, &lifetime, with, &dns_servers)?;
    let authority = Authority::open(&config.state_dir)?;
    trust::publish(&config, &authority)?;
    let journal = config.journal.then(audit::Journal::open).flatten();
    let decisions = decisions_dir(&config.state_dir);
    let (sink, log) = audit::Writer::start(&decisions, &config.audit, journal)
        .map_err(|e| Error::Audit(e.to_string()))?;
    let listeners = pipeline::bind(config.port, config.workers).map_err(unbound)?;
    let addresses = addresses(&listeners)?;
    let fence = Arc::new(stand_fence(&config, &listeners, &addresses)?);
    let budgets = Budgets::read(&config.state_dir, accounts);
    budgets.hold(&fence, &snapshot.policy);
    let counters = Counters::open(&config.state_dir, &fence);
    let containers = Containers::start(config.container_engines.clone()).map_err(Error::Threads)?;
    let containers = Arc::new(containers);
    let mut enrolments = Enrolments::adopt(Arc::clone(&fence), Arc::clone(&containers));
    notify::starting();
    enrolments.settle(&snapshot.policy);
    if lifetime == Lifetime::Service && snapshot.policy.refusing().is_none() {
        applied.unkept = kept::keep(&config.state_dir, &applied.sources);
    }
    let was_open = fence.was_open();
    let shared = Arc::new(Shared {
        live: Live::new(snapshot),
        fence,
        issuing: Arc::new(Issuing::new(authority)),
        sink,
        limits: config.limits.clone(),
        published,
        room: Room::new(config.limits.held_bytes),
        overspent: Overspent::default(),
        unrecorded: AtomicU64::new(0),
        dns_servers,
        own: addresses.all().into(),
    });
    let plane = Plane::start(Arc::clone(&shared), listeners).map_err(Error::Threads)?;
    let namespaces = Namespaces::start(
        Arc::clone(&shared.fence),
        plane.doors(),
        addresses.v4.port(),
    )
    .map_err(Error::Threads)?;
    let admin = admin::server::bind(&config.runtime_dir)?;
    let agent = Agent {
        started: jiff::Timestamp::now(),
        port: addresses.v4.port(),
        config,
        lifetime,
        shared,
        log,
        seen: Arc::new(Seen::default()),
        plane: Mutex::new(Some(plane)),
        changes: Mutex::new(()),
        applied: Mutex::new(applied),
        enrolments: Mutex::new(enrolments),
        earlier: Mutex::default(),
        watched: Mutex::new(Watched::new(was_open)),
        unwatched: AtomicBool::default(),
        containers,
        namespaces,
        budgets,
        counters,
    };
    notify::starting();
    agent.look_at_earlier();
    Ok(Up {
        agent: Arc::new(agent),
        admin,
    })
}

/// A port below 1024 without the capability is EACCES: EPERM is the fence's.
fn unbound(error: std::io::Error) -> Error {
    match Errno::from_io_error(&error) {
        Some(Errno::PERM) => Error::Governed,
        _ => Error::Listen(error),
    }
}

/// What is decided by first. Where an agent has governed before, no fault of policy or secrets keeps the fence from standing: the
/// host may have been started anew, and then nothing else holds its workloads.
fn first_snapshot(
    config: &Config,
    lifetime: &Lifetime,
    with: (&Published, &Registry),
    dns_servers: &[IpAddr],
) -> Result<(Snapshot, Applied), Error> {
    let (kept, has_governed) = match lifetime {
        Lifetime::Service => last_good(config),
        Lifetime::Private { .. } => (None, false),
    };
    let from_disk = from_disk(config, with, dns_servers, has_governed);
    match (from_disk, kept) {
        (Err(fault), Some(kept)) => refusing_all(config, with, kept, fault),
        (from_disk, _) => from_disk,
    }
}

/// The last good policy, and whether there was one: it may be damaged.
fn last_good(config: &Config) -> (Option<Vec<Source>>, bool) {
    match kept::read(&config.state_dir) {
        Ok(kept) => {
            let has_governed = kept.is_some();
            (kept, has_governed)
        }
        Err(error) => {
            let path = kept::path(&config.state_dir);
            tracing::error!(
                "{}: {error}: the last good policy is not known: the one on disk is taken up without the secrets that are not there",
                path.display()
            );
            (None, true)
        }
    }
}

/// By the policy on disk. `lacking`: also without the secrets that are not there.
fn from_disk(
    config: &Config,
    (published, accounts): (&Published, &Registry),
    dns_servers: &[IpAddr],
    lacking: bool,
) -> Result<(Snapshot, Applied), Error> {
    let loaded = policy::compile(policy::read(&config.policy)?)?;
    for warning in &loaded.warnings {
        tracing::warn!("policy: {warning}");
    }
    let secret_files = policy::SecretFiles::of(&loaded.policy, config);
    let reach = Reach {
        dns_servers,
        // Nothing of the agent's listens yet.
        own: Arc::new([]),
    };
    let (vault, not_given) = match policy::ask_vault(&loaded.policy, config, &reach) {
        (_, Some(fault)) if !lacking => return Err(fault),
        asked => asked,
    };
    let with = (published, &vault, accounts);
    let (snapshot, not_read) = policy::snapshot(loaded.policy, config, with, 1, &|_| lacking)?;
    let mut applied = Applied::new(loaded.sources, secret_files, Arc::new(vault));
    applied.lacks(not_given.as_ref(), not_read.as_ref());
    Ok((snapshot, applied))
}

/// By the workloads of the last good policy, of which nothing is allowed.
fn refusing_all(
    config: &Config,
    (published, accounts): (&Published, &Registry),
    kept: Vec<Source>,
    fault: Error,
) -> Result<(Snapshot, Applied), Error> {
    let loaded = match policy::compile(kept) {
        Ok(loaded) => loaded,
        Err(error) => {
            let first = error.first_line();
            tracing::error!("the last good policy cannot be used either: {first}");
            return Err(fault);
        }
    };
    let first = fault.first_line();
    tracing::error!(
        "{fault}\nthe fence stands by the last good policy's workloads, and all that they ask for is refused until a reload is good"
    );
    let why = Reason {
        code: "policy_fault",
        detail: format!(
            "the policy on this host cannot be taken up, so nothing is allowed: {first}"
        ),
        hint: "mend the policy (`tollgate check` shows every fault), then `tollgate reload`".into(),
    };
    let (policy, vault) = (loaded.policy.refuse_all(why), Values::default());
    let with = (published, &vault, accounts);
    let (snapshot, _) = policy::snapshot(policy, config, with, 1, &|_| true)?;
    let mut applied = Applied::new(loaded.sources, Default::default(), Arc::default());
    applied.stale = Some(first);
    Ok((snapshot, applied))
}

/// The data plane's addresses; the same port for all workers.
struct Addresses {
    v4: SocketAddr,
    v6: Option<SocketAddr>,
}

impl Addresses {
    fn all(&self) -> Vec<SocketAddr> {
        std::iter::once(self.v4).chain(self.v6).collect()
    }
}

fn addresses(listeners: &[Listeners]) -> Result<Addresses, Error> {
    let first = listeners
        .first()
        .ok_or_else(|| Error::Listen(std::io::Error::other("no listeners")))?;
    let v4 = first.v4.local_addr().map_err(Error::Listen)?;
    let v6 = first
        .v6
        .as_ref()
        .map(std::net::TcpListener::local_addr)
        .transpose()
        .map_err(Error::Listen)?;
    Ok(Addresses { v4, v6 })
}

fn stand_fence(
    config: &Config,
    listeners: &[Listeners],
    addresses: &Addresses,
) -> Result<Fence, Error> {
    let options = Options {
        pin_dir: config.pin_dir.clone(),
        cgroup_root: config.cgroup_root.clone(),
        counts: true,
    };
    let fence = Fence::open(&options).inspect_err(|error| {
        if matches!(error, kernel::Error::Incompatible { .. }) {
            counters::keep_anothers(&config.state_dir, &config.pin_dir);
        }
    })?;
    let sockets: Vec<BorrowedFd<'_>> = listeners.iter().flat_map(Listeners::sockets).collect();
    fence.admit(
        &sockets,
        addresses.v4.port(),
        addresses.v6.map(|a| a.port()),
    )?;
    Ok(fence)
}

/// The resolvers of the configuration, else those of `/etc/resolv.conf`.
fn resolvers(config: &Config) -> Vec<IpAddr> {
    if !config.dns_servers.is_empty() {
        return config.dns_servers.clone();
    }
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let found: Vec<IpAddr> = parse_resolv_conf(&text);
    if found.is_empty() {
        tracing::warn!(
            "no resolver in /etc/resolv.conf: names of upstreams cannot be resolved; set `dns_servers:`"
        );
    }
    found
}

/// `nameserver` lines; at most three count, as in the C library. Zones of link-local addresses are dropped.
fn parse_resolv_conf(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_whitespace().next())
        .filter_map(|address| address.split('%').next()?.parse().ok())
        .take(3)
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const POLICY: &str = "version: 1
workloads: { job: {} }
apis: { api: { hosts: [api.example.test] } }
credentials: { key: { secret: \"file:key\", header: { authorization: \"{secret}\" }, to: [api] } }
roles: { reader: [{ api: api, credential: key, allow: [{ route: GET /v1/things }] }] }
grants: [{ role: reader, to: { workload: job } }]
";

    #[test]
    fn a_kept_policy_that_is_damaged_was_kept() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("policy.yaml"), POLICY).unwrap();
        let config = Config {
            policy: vec![at("policy.yaml")],
            secrets_dir: at("secrets"),
            state_dir: folder.path().to_owned(),
            runtime_dir: folder.path().to_owned(),
            ..Config::default()
        };
        let accounts = budgets::registry(&config).unwrap();
        let published = Published::default();
        let first = |lifetime| first_snapshot(&config, &lifetime, (&published, &accounts), &[]);
        assert!(first(Lifetime::Service).is_err());
        std::fs::write(kept::path(&config.state_dir), "[{").unwrap();
        let (snapshot, applied) = first(Lifetime::Service).unwrap();
        assert!(snapshot.policy.refusing().is_none() && !snapshot.absent.is_empty());
        assert!(applied.secrets_trouble().unwrap().contains("key"));
        let directory = folder.path().to_owned();
        assert!(first(Lifetime::Private { directory }).is_err());
    }

    #[test]
    fn resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch corp\nnameserver 10.0.0.1 # first\n nameserver\tfe80::1%eth0\nnameserverx 1.1.1.1\nnameserver junk\n";
        let expected: Vec<IpAddr> = ["10.0.0.1", "fe80::1"]
            .iter()
            .filter_map(|a| a.parse().ok())
            .collect();
        assert_eq!(parse_resolv_conf(text), expected);
    }
}
