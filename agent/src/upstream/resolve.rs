//! Names to addresses, by the agent's own resolvers: what a client believes a name to be has no weight.
use super::Error;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use std::net::IpAddr;
use std::time::Duration;
use tollgate_policy::canonical::Host;

/// Addresses of one name that are considered.
const ADDRESSES: usize = 16;
/// An answer is kept for its TTL, and for so many seconds at most.
const KEPT: u32 = 60;
/// How long it is remembered that there is none.
const NONE_KEPT: Duration = Duration::from_secs(5);

/// A worker's resolver, with its own cache.
pub(crate) struct Resolver {
    inner: Option<hickory_resolver::TokioResolver>,
}

/// Which addresses are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// What a name turned out to be.
#[derive(Debug)]
pub(crate) enum Named {
    /// It has these addresses of the family, maybe none, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// It does not exist.
    NoName,
    /// Nobody said.
    Failed,
}

/// Whether the answer was that there are no such records.
fn is_empty(error: &NetError) -> bool {
    use hickory_resolver::net::DnsError;
    use hickory_resolver::proto::op::ResponseCode;
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            none.response_code == ResponseCode::NoError
        }
        _ => false,
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// Asks `servers` on port 53, UDP then TCP; answers are kept for their TTL, at most a minute.
    pub(crate) fn new(servers: &[IpAddr]) -> Self {
        let servers = servers
            .iter()
            .map(|&ip| NameServerConfig::udp_and_tcp(ip))
            .collect::<Vec<_>>();
        let known = !servers.is_empty();
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let mut builder = hickory_resolver::TokioResolver::builder_with_config(
            config,
            TokioRuntimeProvider::default(),
        );
        let options = builder.options_mut();
        options.timeout = Duration::from_secs(2);
        options.attempts = 2;
        options.use_hosts_file = ResolveHosts::Always;
        options.positive_max_ttl = Some(Duration::from_secs(KEPT.into()));
        options.negative_max_ttl = Some(NONE_KEPT);
        Self {
            inner: builder.build().ok().filter(|_| known),
        }
    }

    /// The addresses of one family of `host`, for who asked for them.
    pub(crate) async fn named(&self, host: &Host, family: Family) -> Named {
        let Some(resolver) = &self.inner else {
            return Named::Failed;
        };
        let kind = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        let name = format!("{}.", host.as_str());
        let found = match resolver.lookup(name, kind).await {
            Ok(found) => found,
            Err(error) if error.is_nx_domain() => return Named::NoName,
            // As far as the server says so: one that could not answer has no records either.
            Err(error) if is_empty(&error) => return Named::Addresses(Vec::new(), 0),
            Err(_) => return Named::Failed,
        };
        let (mut addresses, mut kept) = (Vec::new(), KEPT);
        for record in found.answers() {
            let address: IpAddr = match (&record.data, family) {
                (RData::A(a), Family::V4) => a.0.into(),
                (RData::AAAA(aaaa), Family::V6) => aaaa.0.into(),
                _ => continue,
            };
            kept = kept.min(record.ttl);
            if addresses.len() < ADDRESSES && !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        Named::Addresses(addresses, kept)
    }

    /// The addresses of `host`: itself if it is one.
    pub(crate) async fn addresses(&self, host: &Host) -> Result<Vec<IpAddr>, Error> {
        if let Some(address) = host.ip() {
            return Ok(vec![address]);
        }
        let dns = |what: String| Error::Dns {
            host: host.as_str().into(),
            what,
        };
        let resolver = self.inner.as_ref().ok_or_else(|| {
            dns("the agent has no resolvers: set `dns_servers` in its configuration".into())
        })?;
        // The final dot keeps the name from being tried below a search domain.
        let found = resolver
            .lookup_ip(format!("{}.", host.as_str()))
            .await
            .map_err(|e| dns(e.to_string()))?;
        let addresses: Vec<IpAddr> = found.iter().take(ADDRESSES).collect();
        if addresses.is_empty() {
            Err(dns("it has no addresses".into()))
        } else {
            Ok(addresses)
        }
    }
}
