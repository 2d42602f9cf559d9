//! Names to addresses, by the agent's own resolvers: what a client believes a name to be has no weight.
use super::Error;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use std::net::IpAddr;
use std::time::Duration;
use tollgate_policy::canonical::Host;

/// Addresses of one name that are considered.
const ADDRESSES: usize = 16;

/// A worker's resolver, with its own cache.
pub(crate) struct Resolver {
    inner: Option<hickory_resolver::TokioResolver>,
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
        options.positive_max_ttl = Some(Duration::from_secs(60));
        options.negative_max_ttl = Some(Duration::from_secs(5));
        Self {
            inner: builder.build().ok().filter(|_| known),
        }
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
