//! From a request as it came to its one canonical meaning, or a refusal.
use super::refuse::Refusal;
use super::serve::Peer;
use super::websocket::{self, Handshake};
use crate::config::Limits;
use crate::gate::{Kind, TARGET_BYTES};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version, header};
use http_body::Body as _;
use hyper::body::Incoming;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use tollgate_policy::Scheme;
use tollgate_policy::canonical::{Host, Target};

/// A request whose host, method and target have one meaning.
pub(super) struct Parsed {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) host: Rc<Host>,
    pub(super) port: u16,
    /// Who was proven to call.
    pub(super) identity: Option<Arc<str>>,
    raw: PathAndQuery,
    /// Where the canonical form differs from `raw`.
    canonical: Option<Target<'static>>,
    /// There is no body to come.
    pub(super) bodiless: bool,
    /// The client may be answered with trailers.
    pub(super) h2: bool,
    /// It asks for a WebSocket.
    pub(super) websocket: Option<Handshake>,
}

impl Parsed {
    /// The canonical target.
    pub(super) fn target(&self) -> Target<'_> {
        match &self.canonical {
            Some(target) => target.borrowed(),
            None => Target::canonical(self.raw.path(), self.raw.query()),
        }
    }

    /// Host and port as they are sent: without the port where it is the `usual` one.
    pub(super) fn authority(&self, usual: u16) -> Cow<'_, str> {
        match self.port == usual {
            true => self.host.as_str().into(),
            false => format!("{}:{}", self.host.as_str(), self.port).into(),
        }
    }

    /// The target as it came, where that is canonical.
    pub(super) fn raw_if_canonical(&self) -> Option<&PathAndQuery> {
        self.canonical.is_none().then_some(&self.raw)
    }
}

/// Reads a request's meaning; the body stays unread beside it.
pub(super) fn parse(
    peer: &Peer,
    limits: &Limits,
    request: Request<Incoming>,
) -> Result<(Parsed, Incoming), Refusal> {
    let (parts, body) = request.into_parts();
    let h2 = parts.version == Version::HTTP_2;
    if h2 {
        bounded(&parts.uri, &parts.headers, limits)?;
        bodiless(&parts.method, &body)?;
    }
    method(&parts.method)?;
    let websocket = websocket::handshake(&parts.method, parts.version, &parts.headers)?;
    let (host, port) = authority(peer, &parts.uri, &parts.headers, h2)?;
    let raw = match parts.uri.path_and_query() {
        Some(raw) if raw.path().starts_with('/') => raw.clone(),
        _ => {
            return Err(Refusal::ambiguous(
                "target",
                "the request target is not a path: only `/path?query` is accepted",
            ));
        }
    };
    let target = Target::parse(raw.as_str())?;
    let same = target.path == raw.path() && target.query.as_deref() == raw.query();
    let canonical = if same {
        None
    } else {
        Some(target.into_owned())
    };
    let parsed = Parsed {
        method: parts.method,
        headers: parts.headers,
        host,
        port,
        identity: None,
        raw,
        canonical,
        bodiless: body.is_end_stream(),
        h2,
        websocket,
    };
    Ok((parsed, body))
}

/// HTTP/2 heads do not come through the gate, which bounds those of HTTP/1.1. Sizes as RFC 9113, section 6.5.2, counts them.
fn bounded(uri: &Uri, headers: &HeaderMap, limits: &Limits) -> Result<(), Refusal> {
    const PER_FIELD: usize = 32;
    let target = uri
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    let (fields, bytes) = headers
        .iter()
        .fold((0, target), |(fields, bytes), (name, value)| {
            (
                fields + 1,
                bytes + name.as_str().len() + value.len() + PER_FIELD,
            )
        });
    let (kind, detail) = if target > TARGET_BYTES {
        (
            Kind::TargetTooLong,
            format!("the request target has more than {TARGET_BYTES} bytes"),
        )
    } else if fields > limits.head_fields {
        (
            Kind::TooManyFields,
            format!(
                "the request has more than {} header fields",
                limits.head_fields
            ),
        )
    } else if bytes > limits.head_bytes {
        (
            Kind::HeadTooLarge,
            format!(
                "the request's header fields have more than {} bytes",
                limits.head_bytes
            ),
        )
    } else {
        return Ok(());
    };
    let status = StatusCode::from_u16(kind.status()).unwrap_or(StatusCode::BAD_REQUEST);
    Err(Refusal {
        status,
        ..Refusal::ambiguous(kind.code(), detail)
    })
}

/// As the gate holds it over HTTP/1.1: a body that its method gives no meaning is one that the upstream may leave on the
/// connection and read as the next request (RFC 9110, section 9.3.1).
fn bodiless(method: &Method, body: &Incoming) -> Result<(), Refusal> {
    let none = body.is_end_stream() || body.size_hint().exact() == Some(0);
    if none || !(*method == Method::GET || *method == Method::HEAD) {
        return Ok(());
    }
    Err(Refusal::ambiguous(
        Kind::UnexpectedBody.code(),
        format!("a body with {method}"),
    ))
}

/// CONNECT would open a tunnel past every rule, and TRACE would show the credential that was put in.
fn method(method: &Method) -> Result<(), Refusal> {
    if *method == Method::CONNECT || *method == Method::TRACE {
        return Err(Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            ..Refusal::ambiguous("method", format!("{method} is never passed on"))
        });
    }
    if method
        .as_str()
        .bytes()
        .all(|b| b.is_ascii_uppercase() || b == b'-')
    {
        Ok(())
    } else {
        Err(Refusal::ambiguous(
            "method",
            "the method is not in upper case",
        ))
    }
}

/// One host for all: server name, `Host` and `:authority`, and the port that was connected to.
fn authority(
    peer: &Peer,
    uri: &Uri,
    headers: &HeaderMap,
    h2: bool,
) -> Result<(Rc<Host>, u16), Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let first = hosts.next().map(|value| value.to_str()).transpose();
    let (Ok(in_header), None) = (first, hosts.next()) else {
        return Err(Refusal::ambiguous(
            "host",
            "more than one Host header, or one that is not plain text",
        ));
    };
    let in_uri = uri.authority().map(http::uri::Authority::as_str);
    let raw = match (h2, in_uri, in_header) {
        (true, Some(authority), None) => authority,
        (true, Some(authority), Some(host)) if authority.eq_ignore_ascii_case(host) => authority,
        (true, Some(_), Some(_)) => {
            return Err(Refusal::ambiguous("host", ":authority and Host differ"));
        }
        (true, None, _) => return Err(Refusal::ambiguous("host", "no :authority")),
        (false, Some(_), _) => {
            return Err(Refusal::ambiguous(
                "target",
                "an absolute request target: only `/path?query` is accepted",
            ));
        }
        (false, None, Some(host)) => host,
        (false, None, None) => return Err(Refusal::ambiguous("host", "no Host header")),
    };
    if h2 && uri.scheme_str() != Some(peer.scheme_name()) {
        return Err(Refusal::ambiguous(
            "scheme",
            ":scheme is not that of the connection",
        ));
    }
    let default = if peer.scheme == Scheme::Https {
        443
    } else {
        80
    };
    let connected = peer.flow.destination.port();
    // The usual case costs nothing: the very name that TLS was ended for, on its default port.
    if connected == default
        && let Some(name) = peer.name.as_ref().filter(|name| name.as_str() == raw)
    {
        return Ok((Rc::clone(name), default));
    }
    let (host, port) = Host::parse_authority(raw)?;
    let port = port.unwrap_or(default);
    if port != connected {
        return Err(Refusal::misdirected(format!(
            "the request is for port {port}, the connection was made to port {connected}"
        )));
    }
    match (&peer.name, peer.scheme) {
        (Some(name), _) if **name == host => Ok((Rc::clone(name), port)),
        (Some(name), _) => Err(Refusal::misdirected(format!(
            "the request is for {}, the TLS server name was {}",
            host.as_str(),
            name.as_str()
        ))),
        (None, Scheme::Http) => Ok((Rc::new(host), port)),
        (None, Scheme::Https) => Err(Refusal {
            code: "no_server_name".into(),
            hint: "connect to the API by its host name, with a client that sends it (SNI)".into(),
            ..Refusal::misdirected("the TLS connection named no server".into())
        }),
    }
}
