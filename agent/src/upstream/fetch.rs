//! One question of the control plane's own, over a connection of its own: bounded in time and size, no redirect followed.
use super::{Destination, Resolver, Sender};
use crate::pipeline::RequestBody;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt as _, Limited};
use std::net::IpAddr;
use std::time::Duration;

/// What may be answered at most, and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes of the body.
    pub(crate) bytes: usize,
    /// From the look-up of the name to the last byte.
    pub(crate) patience: Duration,
}

/// Asks for `uri` at `destination`, with these headers besides its own.
///
/// # Errors
/// There was no whole answer within the bounds; what happened, for a person.
pub(crate) async fn get(
    destination: &Destination,
    servers: &[IpAddr],
    (uri, headers): (&Uri, HeaderMap),
    bounds: Bounds,
) -> Result<(StatusCode, Bytes), String> {
    let answer = exchange(destination, servers, (uri, headers), bounds);
    let answer = tokio::time::timeout(bounds.patience, answer).await;
    answer.unwrap_or_else(|_| Err(format!("no answer within {:?}", bounds.patience)))
}

async fn exchange(
    destination: &Destination,
    servers: &[IpAddr],
    (uri, headers): (&Uri, HeaderMap),
    bounds: Bounds,
) -> Result<(StatusCode, Bytes), String> {
    let resolver = Resolver::new(servers);
    let dialed = destination.dial(&resolver, bounds.patience).await;
    let mut dialed = dialed.map_err(|error| error.to_string())?;
    let request = request(&dialed.sender, uri, headers)?;
    let answer = match &mut dialed.sender {
        Sender::Http1(sender) => sender.send_request(request).await,
        Sender::Http2(sender) => sender.send_request(request).await,
    };
    let answer = answer.map_err(|error| error.to_string())?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), bounds.bytes).collect();
    let body = body.await.map_err(|error| error.to_string())?;
    Ok((status, body.to_bytes()))
}

fn request(sender: &Sender, uri: &Uri, headers: HeaderMap) -> Result<Request<RequestBody>, String> {
    let mut request = Request::new(RequestBody::Empty);
    *request.headers_mut() = headers;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    if matches!(sender, Sender::Http2(_)) {
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = uri.clone();
    } else {
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        let host =
            HeaderValue::from_str(authority).map_err(|_| "the host cannot be sent".to_owned())?;
        request.headers_mut().insert(header::HOST, host);
        *request.uri_mut() = path
            .parse()
            .map_err(|_| "the path cannot be sent".to_owned())?;
    }
    let json = HeaderValue::from_static("application/json");
    request.headers_mut().insert(header::ACCEPT, json);
    Ok(request)
}
