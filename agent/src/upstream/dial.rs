//! One connection to an upstream: resolved, allowed, dialled and verified here, in that order.
use super::{Error, Resolver, address};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tollgate_policy::canonical::Host;

use crate::pipeline::{LocalExecutor, RequestBody};

/// Time for one address, so that a dead first one does not use up all of it.
const PER_ADDRESS: Duration = Duration::from_secs(3);

/// Where to connect, and what must hold there.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    /// Verified in the certificate.
    pub(crate) host: Host,
    /// TCP port.
    pub(crate) port: u16,
    /// Ranges that the api allows though they are not public.
    pub(crate) allowed: Vec<IpNet>,
    /// How to speak there.
    pub(crate) via: Via,
    /// The agent's own listeners, never dialled.
    pub(crate) own: Arc<[SocketAddr]>,
}

/// What a connection is made through.
#[derive(Debug, Clone)]
pub(crate) enum Via {
    /// TLS, with these roots.
    Tls(Arc<ClientConfig>),
    /// Nothing: HTTP/1.1 in clear.
    Clear,
}

impl Via {
    /// The same, with sessions to resume of its own: an upstream could otherwise tell by one whose it was.
    pub(super) fn with_own_sessions(&self) -> Self {
        /// An upstream gives some for each connection; few are needed at a time.
        const SESSIONS: usize = 8;
        match self {
            Self::Tls(config) => {
                let mut own = (**config).clone();
                own.resumption = rustls::client::Resumption::in_memory_sessions(SESSIONS);
                Self::Tls(Arc::new(own))
            }
            Self::Clear => Self::Clear,
        }
    }

    /// The same, for HTTP/1.1 only.
    pub(super) fn http1_only(&self) -> Self {
        match self {
            Self::Tls(config) => {
                let mut own = (**config).clone();
                own.alpn_protocols = vec![b"http/1.1".to_vec()];
                Self::Tls(Arc::new(own))
            }
            Self::Clear => Self::Clear,
        }
    }
}

/// A connection ready for requests.
pub(crate) struct Dialed {
    /// Sends requests.
    pub(crate) sender: Sender,
    /// Where it went and how, for records.
    pub(crate) facts: Arc<crate::audit::UpstreamRecord>,
}

/// The protocol that the upstream chose by ALPN.
pub(crate) enum Sender {
    /// One request at a time.
    Http1(hyper::client::conn::http1::SendRequest<RequestBody>),
    /// Many at once.
    Http2(hyper::client::conn::http2::SendRequest<RequestBody>),
}

/// Connects to an address that a policy names, which is why it may be any but the agent's own.
pub(crate) async fn reach(
    address: SocketAddr,
    own: &[SocketAddr],
    limit: Duration,
) -> Result<(TcpStream, SocketAddr), Error> {
    if address::leads_to(address, own) {
        return Err(Error::Forbidden {
            host: address.to_string(),
            address: address.ip(),
            class: "the agent itself",
        });
    }
    let what = match tokio::time::timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            // What the client sends at once arrives at once.
            let _ = stream.set_nodelay(true);
            return Ok((stream, address));
        }
        Ok(Err(e)) => e.to_string(),
        Err(_) => format!("no answer within {limit:?}"),
    };
    Err(Error::Connect {
        host: address.ip().to_string(),
        address: address.to_string(),
        what,
    })
}

impl Destination {
    /// Connects within `limit`.
    pub(crate) async fn dial(&self, resolver: &Resolver, limit: Duration) -> Result<Dialed, Error> {
        tokio::time::timeout(limit, self.steps(resolver))
            .await
            .unwrap_or_else(|_| {
                Err(Error::Timeout {
                    host: self.host.as_str().into(),
                    what: "connect",
                    after: limit,
                })
            })
    }

    /// Connects within `limit`, and leaves it to the client to speak TLS.
    pub(crate) async fn reach(
        &self,
        resolver: &Resolver,
        limit: Duration,
    ) -> Result<(TcpStream, SocketAddr), Error> {
        tokio::time::timeout(limit, self.open(resolver))
            .await
            .unwrap_or_else(|_| {
                Err(Error::Timeout {
                    host: self.host.as_str().into(),
                    what: "connect",
                    after: limit,
                })
            })
    }

    async fn open(&self, resolver: &Resolver) -> Result<(TcpStream, SocketAddr), Error> {
        let addresses = self.allowed_of(resolver.addresses(&self.host).await?)?;
        self.connect(&addresses).await
    }

    async fn steps(&self, resolver: &Resolver) -> Result<Dialed, Error> {
        let (stream, address) = self.open(resolver).await?;
        match &self.via {
            Via::Tls(config) => {
                let stream = self.verify(config, stream, address).await?;
                self.secured(stream, address).await
            }
            Via::Clear => self.plain(stream, address).await,
        }
    }

    /// Only the addresses that may be dialled; the check is on the address itself, after resolution, so that no
    /// name can get around it and a second answer cannot replace the first.
    fn allowed_of(&self, addresses: Vec<IpAddr>) -> Result<Vec<SocketAddr>, Error> {
        let mut refused = None;
        let mut allowed = Vec::with_capacity(addresses.len());
        for address in addresses {
            let target = SocketAddr::new(address, self.port);
            let class = if address::leads_to(target, &self.own) {
                Some("the agent itself")
            } else {
                address::reserved(address)
                    .filter(|_| !self.allowed.iter().any(|range| range.contains(&address)))
            };
            match class {
                None => allowed.push(target),
                Some(class) => refused = Some((address, class)),
            }
        }
        match refused {
            Some((address, class)) if allowed.is_empty() => Err(Error::Forbidden {
                host: self.host.as_str().into(),
                address,
                class,
            }),
            _ => Ok(allowed),
        }
    }

    async fn connect(&self, addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), Error> {
        let mut last = Error::Dns {
            host: self.host.as_str().into(),
            what: "it has no addresses".into(),
        };
        for &address in addresses {
            let what = match tokio::time::timeout(PER_ADDRESS, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Without it a small request waits for the peer's delayed acknowledgement.
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, address));
                }
                Ok(Err(e)) => e.to_string(),
                Err(_) => format!("no answer within {PER_ADDRESS:?}"),
            };
            last = Error::Connect {
                host: self.host.as_str().into(),
                address: address.to_string(),
                what,
            };
        }
        Err(last)
    }

    async fn verify(
        &self,
        config: &Arc<ClientConfig>,
        stream: TcpStream,
        address: SocketAddr,
    ) -> Result<TlsStream<TcpStream>, Error> {
        let tls = |what: String| Error::Tls {
            host: self.host.as_str().into(),
            address: address.to_string(),
            what,
        };
        let name = match self.host.ip() {
            Some(ip) => ServerName::from(ip),
            None => ServerName::try_from(self.host.as_str().to_owned())
                .map_err(|e| tls(e.to_string()))?,
        };
        TlsConnector::from(Arc::clone(config))
            .connect(name, stream)
            .await
            .map_err(|e| tls(e.to_string()))
    }

    async fn secured(
        &self,
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
    ) -> Result<Dialed, Error> {
        let session = stream.get_ref().1;
        let version = match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        };
        let h2 = session.alpn_protocol() == Some(b"h2");
        let alpn = if h2 { "h2" } else { "http/1.1" };
        let resumed = match session.handshake_kind() {
            Some(rustls::HandshakeKind::Resumed) => " resumed",
            _ => "",
        };
        let facts = Arc::new(crate::audit::UpstreamRecord {
            address: address.to_string(),
            tls: Some(format!("{version} {alpn}{resumed}")),
        });
        let io = TokioIo::new(stream);
        let sender = match h2 {
            true => self.http2(io).await?,
            false => self.http1(io).await?,
        };
        Ok(Dialed { sender, facts })
    }

    async fn plain(&self, stream: TcpStream, address: SocketAddr) -> Result<Dialed, Error> {
        let facts = Arc::new(crate::audit::UpstreamRecord {
            address: address.to_string(),
            tls: None,
        });
        let sender = self.http1(TokioIo::new(stream)).await?;
        Ok(Dialed { sender, facts })
    }

    fn http_error(&self, error: &hyper::Error) -> Error {
        Error::Http {
            host: self.host.as_str().into(),
            what: error.to_string(),
        }
    }

    async fn http2<IO: Io>(&self, io: IO) -> Result<Sender, Error> {
        let (sender, connection) = hyper::client::conn::http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_header_list_size(64 * 1024)
            .keep_alive_interval(Duration::from_secs(30))
            .handshake(io)
            .await
            .map_err(|e| self.http_error(&e))?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        Ok(Sender::Http2(sender))
    }

    /// Also for a request that makes a WebSocket of the connection.
    async fn http1<IO: Io + Send>(&self, io: IO) -> Result<Sender, Error> {
        let (sender, connection) = hyper::client::conn::http1::Builder::new()
            .handshake(io)
            .await
            .map_err(|e| self.http_error(&e))?;
        tokio::task::spawn_local(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(Sender::Http1(sender))
    }
}

/// What hyper speaks over.
trait Io: hyper::rt::Read + hyper::rt::Write + Unpin + 'static {}

impl<T: hyper::rt::Read + hyper::rt::Write + Unpin + 'static> Io for T {}
