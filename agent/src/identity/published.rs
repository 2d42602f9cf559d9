//! Keys that issuers publish (OpenID Connect Discovery 1.0, section 4): fetched by the control plane over verified TLS,
//! read by the workers.
use super::Unproven;
use super::jwt::Keys;
use crate::pipeline::Shared;
use crate::upstream::{Destination, Via, fetch};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use tollgate_policy::canonical::Host;

/// Bytes of an answer at most.
const ANSWER_BYTES: usize = 256 << 10;
/// One answer may take so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Keys are fetched anew this often.
const EVERY: Duration = Duration::from_secs(600);
/// And no more often than this, whatever is asked for.
const LEAST: Duration = Duration::from_secs(10);
/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_millis(200);

/// The published keys of every issuer that a policy ever named; outlives the snapshots.
#[derive(Debug, Default)]
pub struct Published(Mutex<HashMap<Box<str>, Arc<Source>>>);

impl Published {
    /// The place of an issuer's keys; empty until they were fetched.
    pub(super) fn of(&self, issuer: &str) -> Arc<Source> {
        // Locked by the control plane alone: workers hold what is in it.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(issuer.into()).or_default())
    }
}

/// One issuer's keys, as far as they are there.
#[derive(Debug, Default)]
pub(super) struct Source {
    keys: ArcSwapOption<Keys>,
    trouble: ArcSwapOption<Arc<str>>,
    wanted: AtomicBool,
}

impl Source {
    pub(super) fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.load_full()
    }

    /// A key was named that is not there: there may be newer ones.
    pub(super) fn ask(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    pub(super) fn unavailable(&self, issuer: &str) -> Unproven {
        let trouble = self.trouble.load();
        let why = trouble.as_ref().map(|why| Arc::clone(&**why));
        Unproven::NoKeys {
            issuer: issuer.into(),
            why: why.unwrap_or_else(|| "they are being fetched".into()),
        }
    }
}

/// Fetches what is due, for as long as the agent is there.
pub(crate) async fn refresh(shared: Weak<Shared>) {
    let mut tried: HashMap<Box<str>, Instant> = HashMap::new();
    loop {
        let Some(due) = due(&shared, &tried) else {
            return;
        };
        for Due {
            issuer,
            source,
            fetch,
        } in due
        {
            tried.insert(issuer.clone(), Instant::now());
            source.wanted.store(false, Ordering::Relaxed);
            match fetch.keys(&issuer).await {
                Ok(keys) => {
                    source.keys.store(Some(Arc::new(keys)));
                    source.trouble.store(None);
                    tracing::info!(issuer = &*issuer, "the issuer's keys were fetched");
                }
                Err(why) => {
                    // Old keys stay: an issuer that is down for a while has not taken them back.
                    tracing::warn!(
                        issuer = &*issuer,
                        "the issuer's keys could not be fetched: {why}"
                    );
                    source.trouble.store(Some(Arc::new(why.into())));
                }
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// An issuer whose keys are to be fetched.
struct Due {
    issuer: Box<str>,
    source: Arc<Source>,
    fetch: Fetch,
}

/// What is to be fetched now. `None`: the agent is gone.
fn due(shared: &Weak<Shared>, tried: &HashMap<Box<str>, Instant>) -> Option<Vec<Due>> {
    let shared = shared.upgrade()?;
    let snapshot = shared.live.load();
    let mut due = Vec::new();
    for issuer in snapshot.identities.issuers_to_ask() {
        let source = shared.published.of(issuer);
        let is_wanted = source.keys.load().is_none() || source.wanted.load(Ordering::Relaxed);
        let wait = if is_wanted { LEAST } else { EVERY };
        if tried.get(issuer).is_none_or(|last| last.elapsed() >= wait) {
            let Some(via) = snapshot.secrets.via(None) else {
                continue;
            };
            let fetch = Fetch {
                via,
                own: Arc::clone(&shared.own),
                servers: shared.dns_servers.clone(),
            };
            due.push(Due {
                issuer: issuer.into(),
                source,
                fetch,
            });
        }
    }
    Some(due)
}

/// What it takes to fetch.
struct Fetch {
    via: Via,
    own: Arc<[std::net::SocketAddr]>,
    servers: Vec<std::net::IpAddr>,
}

/// `issuer` must be repeated (OpenID Connect Discovery 1.0, section 4.3).
#[derive(serde::Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Fetch {
    async fn keys(&self, issuer: &str) -> Result<Keys, String> {
        let at = format!(
            "{}/.well-known/openid-configuration",
            issuer.trim_end_matches('/')
        );
        let found = self.get(&at).await?;
        let found: Discovery = serde_json::from_slice(&found)
            .map_err(|_| format!("{at} is not a discovery document"))?;
        if found.issuer != issuer {
            return Err(format!("{at} is another issuer's"));
        }
        let keys = self.get(&found.jwks_uri).await?;
        Keys::of_set(&keys).map_err(|what| format!("{}: {what}", found.jwks_uri))
    }

    async fn get(&self, url: &str) -> Result<Bytes, String> {
        let uri: Uri = url.parse().map_err(|_| format!("{url} is no URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(format!("{url} does not begin with https://"));
        }
        let host =
            Host::parse(uri.host().unwrap_or_default()).map_err(|what| format!("{url}: {what}"))?;
        let destination = Destination {
            host,
            port: uri.port_u16().unwrap_or(443),
            allowed: Vec::new(),
            via: self.via.clone(),
            own: Arc::clone(&self.own),
        };
        let bounds = fetch::Bounds {
            bytes: ANSWER_BYTES,
            patience: PATIENCE,
        };
        let asked = (&uri, HeaderMap::new());
        match fetch::get(&destination, &self.servers, asked, bounds).await {
            Ok((StatusCode::OK, body)) => Ok(body),
            Ok((status, _)) => Err(format!("{url}: answered {status}")),
            Err(what) => Err(format!("{url}: {what}")),
        }
    }
}
