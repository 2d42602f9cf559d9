//! What clients are shown: one TLS configuration per host, kept per worker.
use super::{Authority, Error, Issuing};
use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::sign::SingleCertAndKey;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollgate_policy::canonical::Host;

/// Hosts kept; beyond it all are dropped and made again, which costs about 50 µs each.
const HOSTS: usize = 1024;
/// A leaf is used for half its life, so that a client never sees one about to end.
const RENEW: Duration = Duration::from_secs(super::authority::LEAF_HOURS as u64 * 3600 / 2);

/// A worker's TLS configurations by host. Not shared, so it needs no lock.
#[derive(Debug)]
pub(crate) struct LeafCache {
    issuing: Arc<Issuing>,
    /// Who issued what is kept here.
    issuer: RefCell<Arc<Authority>>,
    /// Shared by all hosts: a ticket is bound to its server name by rustls.
    tickets: Option<Arc<dyn ProducesTickets>>,
    hosts: RefCell<HashMap<Host, (Arc<ServerConfig>, Instant)>>,
}

impl LeafCache {
    pub(crate) fn new(issuing: Arc<Issuing>) -> Self {
        // Without a ticketer clients do a full handshake each time: slower, never less safe.
        let tickets = rustls::crypto::aws_lc_rs::Ticketer::new().ok();
        Self {
            issuer: RefCell::new(issuing.current()),
            issuing,
            tickets,
            hosts: RefCell::default(),
        }
    }

    /// The configuration that shows a leaf for `host`.
    pub(crate) fn config(&self, host: &Host) -> Result<Arc<ServerConfig>, Error> {
        let current = self.issuing.current();
        if !Arc::ptr_eq(&current, &self.issuer.borrow()) {
            self.hosts.borrow_mut().clear();
            self.issuer.replace(Arc::clone(&current));
        }
        if let Some((config, made)) = self.hosts.borrow().get(host)
            && made.elapsed() < RENEW
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.make(&current, host)?);
        let mut hosts = self.hosts.borrow_mut();
        if hosts.len() >= HOSTS {
            hosts.clear();
        }
        hosts.insert(host.clone(), (Arc::clone(&config), Instant::now()));
        Ok(config)
    }

    fn make(&self, issuer: &Authority, host: &Host) -> Result<ServerConfig, Error> {
        let leaf = issuer.leaf(host)?;
        let mut config = ServerConfig::builder_with_provider(super::upstream::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|e| Error::Issue {
                host: host.as_str().into(),
                what: e.to_string(),
            })?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if let Some(tickets) = &self.tickets {
            config.ticketer = Arc::clone(tickets);
        }
        config.send_tls13_tickets = 1;
        // 0-RTT data can be replayed, and a replayed call is a second call (RFC 8446, section 8).
        config.max_early_data_size = 0;
        Ok(config)
    }
}
