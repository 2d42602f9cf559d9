//! TLS, ended: the client's first bytes decide what it speaks; its server name decides what it is shown.
use super::attribute::Attributed;
use super::hello::{HANDSHAKE_RECORD, Kept, hides_name};
use super::splice::{self, Ruling};
use super::worker::Worker;
use crate::audit::Verdict;
use crate::kernel::Flow;
use std::borrow::Cow;
use std::io;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::{StartHandshake, TlsStream};
use tollgate_policy::canonical::Host;

/// A connection in clear on the agent's side.
pub(super) enum Terminated {
    /// TLS was ended here.
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        /// The server name; none was sent by a client that connects to an address.
        name: Option<Host>,
        h2: bool,
        flow: Flow,
    },
    /// TLS is not ended here: the policy knows the name as one that is not inspected.
    Uninspected {
        stream: TcpStream,
        name: Host,
        /// What was read of the stream.
        hello: Vec<u8>,
        ruling: Box<Ruling>,
        flow: Flow,
    },
    /// The client did not use TLS.
    Clear { stream: TcpStream, flow: Flow },
}

/// Why a connection ended before a request could be read.
pub(super) struct Failure {
    pub(super) flow: Flow,
    pub(super) verdict: Verdict,
    pub(super) code: &'static str,
    pub(super) detail: Cow<'static, str>,
    /// Reset the connection so that the client does not wait.
    pub(super) reset: Option<TcpStream>,
}

/// Ends TLS within `limits.handshake`.
pub(super) async fn terminate(
    worker: &Worker,
    attributed: Attributed,
) -> Result<Terminated, Failure> {
    let Attributed { stream, flow, .. } = attributed;
    let limit = worker.shared.limits.handshake;
    match tokio::time::timeout(limit, steps(worker, stream, flow.clone())).await {
        Ok(done) => done,
        Err(_) => Err(Failure {
            flow,
            verdict: Verdict::Limit,
            code: "handshake_timeout",
            detail: format!(
                "the client sent no complete TLS handshake or HTTP request within {limit:?}"
            )
            .into(),
            reset: None,
        }),
    }
}

async fn steps(worker: &Worker, stream: TcpStream, flow: Flow) -> Result<Terminated, Failure> {
    let mut first = [0_u8; 1];
    match stream.peek(&mut first).await {
        Ok(0) => {
            return Err(fail(
                flow,
                "closed_early",
                "the client closed the connection without sending anything",
            ));
        }
        Ok(_) => {}
        Err(_) => {
            return Err(fail(
                flow,
                "closed_early",
                "the client reset the connection without sending anything",
            ));
        }
    }
    match first {
        [HANDSHAKE_RECORD] => handshake(worker, stream, flow).await,
        [b'A'..=b'Z' | b'a'..=b'z'] => Ok(Terminated::Clear { stream, flow }),
        _ => Err(Failure {
            flow,
            verdict: Verdict::Deny,
            code: "not_http",
            detail: "neither TLS nor HTTP: only HTTP APIs can be reached".into(),
            reset: Some(stream),
        }),
    }
}

async fn handshake(worker: &Worker, stream: TcpStream, flow: Flow) -> Result<Terminated, Failure> {
    let kept = Kept::new(stream);
    let started = match LazyConfigAcceptor::new(rustls::server::Acceptor::default(), kept).await {
        Ok(started) => started,
        Err(error) => return Err(tls_failure(flow, "the TLS ClientHello", &error)),
    };
    let name = match started.client_hello().server_name().map(Host::parse) {
        None => None,
        Some(Ok(name)) => Some(name),
        Some(Err(ambiguity)) => {
            return Err(fail(
                flow,
                "server_name",
                format!("the TLS server name is not one plain host: {ambiguity}"),
            ));
        }
    };
    if let Some(host) = &name
        && let Some(ruling) = splice::decide(worker, &flow, Some(host))
    {
        // Only by a name that nothing can hide behind: with an encrypted hello inside, the one in clear says little.
        if hides_name(&started.io.bytes) {
            return Err(name_encrypted(flow, host, started.io.stream));
        }
        return Ok(Terminated::Uninspected {
            name: host.clone(),
            hello: started.io.bytes,
            stream: started.io.stream,
            ruling: Box::new(ruling),
            flow,
        });
    }
    let started = StartHandshake::from_parts(started.accepted, started.io.stream);
    // Without a name the client is shown its address, so that it can be told what is missing; nothing is let through.
    let shown = match &name {
        Some(name) => Ok(name.clone()),
        None => Host::parse(&bracketed(flow.destination.ip())),
    };
    let config = match shown
        .map_err(|e| e.to_string())
        .and_then(|host| worker.leaves.config(&host).map_err(|e| e.to_string()))
    {
        Ok(config) => config,
        Err(what) => return Err(fail(flow, "leaf", what)),
    };
    match started.into_stream(config).await {
        Ok(stream) => {
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok(Terminated::Tls {
                stream: Box::new(stream),
                name,
                h2,
                flow,
            })
        }
        Err(error) => Err(tls_failure(flow, "the TLS handshake", &error)),
    }
}

fn name_encrypted(flow: Flow, name: &Host, stream: TcpStream) -> Failure {
    Failure {
        verdict: Verdict::Deny,
        reset: Some(stream),
        ..fail(
            flow,
            "server_name_encrypted",
            format!(
                "{} is not inspected, and the TLS hello may mean another name: switch ECH off in the client",
                name.as_str()
            ),
        )
    }
}

fn bracketed(address: std::net::IpAddr) -> String {
    match address {
        std::net::IpAddr::V4(v4) => v4.to_string(),
        std::net::IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

fn fail(flow: Flow, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Failure {
    Failure {
        flow,
        verdict: Verdict::Error,
        code,
        detail: detail.into(),
        reset: None,
    }
}

fn tls_failure(flow: Flow, during: &str, error: &io::Error) -> Failure {
    use rustls::AlertDescription as Alert;
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate,
        )) => fail(
            flow,
            "client_distrust",
            "the client does not trust the agent's CA: start it with `tollgate run`, or give it the variables of `tollgate trust env`",
        ),
        Some(tls) => fail(flow, "client_tls", format!("{during} failed: {tls}")),
        None if error.kind() == io::ErrorKind::UnexpectedEof => fail(
            flow,
            "client_tls",
            format!("the client closed the connection in the middle of {during}"),
        ),
        None => fail(flow, "client_tls", format!("{during} failed: {error}")),
    }
}
