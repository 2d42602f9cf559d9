//! Runtimes that speak Kubernetes' CRI (`runtime.v1.RuntimeService`): gRPC over HTTP/2 on a Unix socket. Numbers of fields are those of
//! its published `api.proto`.
use super::ask::{BYTES, Error};
use super::container::{Container, tagged};
use super::protobuf::{Fields, Malformed, entry, field, text};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::BTreeMap;
use std::path::Path;

/// gRPC's status of what does not exist.
const NOT_FOUND: &str = "5";
/// Of a method or a service that the server has not.
const UNIMPLEMENTED: &str = "12";
/// Bytes before a gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// What the runtime says of a container, or of the one that keeps a pod's namespaces.
pub(super) async fn ask(socket: &Path, id: &str) -> Result<Option<Container>, Error> {
    let mut runtime = Runtime::connect(socket).await?;
    let Some(listed) = runtime.list("ListContainers", id).await? else {
        let pod = runtime.list("ListPodSandbox", id).await?;
        return Ok(pod.map(|pod| Container {
            labels: pod.labels,
            ..Container::default()
        }));
    };
    let asked = field(1, id.as_bytes());
    let Some(status) = runtime.call("ContainerStatus", &asked).await? else {
        return Ok(None);
    };
    let pod = runtime.list("ListPodSandbox", &listed.pod).await?;
    let pod = pod.ok_or("knows the container and not its pod")?;
    let status = status_of(&status, id)?;
    // Whoever makes a pod names its labels; the container's are the kubelet's.
    let mut labels = pod.labels;
    labels.extend(listed.labels);
    Ok(Some(Container {
        name: listed.name,
        images: images(listed.images, status),
        labels,
        unsure: None,
    }))
}

/// Each once.
fn images(mut all: Vec<String>, more: Vec<String>) -> Vec<String> {
    all.extend(more);
    all.retain(|image| !image.is_empty());
    let mut all: Vec<String> = all.into_iter().map(tagged).collect();
    all.sort();
    all.dedup();
    all
}

/// A connection to one; ended when it is dropped.
struct Runtime {
    sender: SendRequest<Full<Bytes>>,
    driven: tokio::task::JoinHandle<()>,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.driven.abort();
    }
}

impl Runtime {
    async fn connect(socket: &Path) -> Result<Self, Error> {
        let stream = tokio::net::UnixStream::connect(socket).await?;
        let builder = Builder::new(TokioExecutor::new());
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let driven = tokio::spawn(async move {
            // Whoever waits for an answer is told.
            let _ = connection.await;
        });
        Ok(Self { sender, driven })
    }

    /// The one thing that a method lists of this id.
    async fn list(&mut self, method: &str, id: &str) -> Result<Option<Listed>, Error> {
        let asked = field(1, &field(1, id.as_bytes()));
        match self.call(method, &asked).await? {
            Some(answer) => listed(&answer, id, method == "ListContainers"),
            None => Ok(None),
        }
    }

    /// The answer's message; `None` where there is no such thing.
    async fn call(&mut self, method: &str, message: &[u8]) -> Result<Option<Bytes>, Error> {
        let length = u32::try_from(message.len())?.to_be_bytes();
        let body = [&[0], &length[..], message].concat();
        let request = Request::post(format!(
            "http://localhost/runtime.v1.RuntimeService/{method}"
        ))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(body.into()))?;
        let answer = self.sender.send_request(request).await?;
        if answer.status() != StatusCode::OK {
            return Err(format!("answers {} to a question of CRI", answer.status()).into());
        }
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, BYTES).collect().await?;
        let ended = body.trailers().unwrap_or(&head.headers);
        if !is_there(ended)? {
            return Ok(None);
        }
        unframed(&body.to_bytes()).map(Some)
    }
}

/// What the status at the end of an answer says.
fn is_there(ended: &HeaderMap) -> Result<bool, Error> {
    let said = |name: &str| ended.get(name).and_then(|value| value.to_str().ok());
    match said("grpc-status") {
        Some("0") => Ok(true),
        Some(NOT_FOUND) => Ok(false),
        Some(UNIMPLEMENTED) => Err("it does not speak CRI (runtime.v1)".into()),
        Some(other) => {
            let why: String = said("grpc-message")
                .unwrap_or_default()
                .chars()
                .take(200)
                .collect();
            Err(format!("answers with gRPC status {other:.8} ({why})").into())
        }
        None => Err("an answer broke off".into()),
    }
}

/// The one message of an answer.
fn unframed(body: &Bytes) -> Result<Bytes, Error> {
    let Some((&[compressed, length @ ..], message)) = body.split_first_chunk::<PREFIX>() else {
        return Err("an answer has no message".into());
    };
    let is_whole = usize::try_from(u32::from_be_bytes(length)) == Ok(message.len());
    if compressed != 0 || !is_whole {
        return Err("an answer is not one message as it was asked for".into());
    }
    Ok(body.slice(PREFIX..))
}

/// Of a `Container` or a `PodSandbox`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Listed {
    id: String,
    pod: String,
    name: Option<String>,
    images: Vec<String>,
    labels: BTreeMap<String, String>,
}

/// Of a `ListContainersResponse` or a `ListPodSandboxResponse`.
fn listed(answer: &[u8], id: &str, of_containers: bool) -> Result<Option<Listed>, Error> {
    let mut found = None;
    for one in Fields::of(answer) {
        let (1, Some(one)) = one? else {
            continue;
        };
        let one = match of_containers {
            true => container(one)?,
            false => pod(one)?,
        };
        if one.id != id || found.is_some() {
            return Err("answers for another container".into());
        }
        found = Some(one);
    }
    Ok(found)
}

fn container(message: &[u8]) -> Result<Listed, Malformed> {
    let mut found = Listed::default();
    for one in Fields::of(message) {
        match one? {
            (1, Some(bytes)) => found.id = text(bytes)?,
            (2, Some(bytes)) => found.pod = text(bytes)?,
            (3, Some(bytes)) => found.name = name(bytes)?,
            (4, Some(bytes)) => found.images.extend(image(bytes)?),
            (5, Some(bytes)) => found.images.push(text(bytes)?),
            (8, Some(bytes)) => found.labels.extend([entry(bytes)?]),
            _ => {}
        }
    }
    Ok(found)
}

fn pod(message: &[u8]) -> Result<Listed, Malformed> {
    let mut found = Listed::default();
    for one in Fields::of(message) {
        match one? {
            (1, Some(bytes)) => found.id = text(bytes)?,
            (5, Some(bytes)) => found.labels.extend([entry(bytes)?]),
            _ => {}
        }
    }
    Ok(found)
}

/// Of a `ContainerMetadata`.
fn name(message: &[u8]) -> Result<Option<String>, Malformed> {
    let mut found = None;
    for one in Fields::of(message) {
        if let (1, Some(bytes)) = one? {
            found = Some(text(bytes)?);
        }
    }
    Ok(found)
}

/// Of an `ImageSpec`: what the runtime calls it, and what the pod does.
fn image(message: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut found = Vec::new();
    for one in Fields::of(message) {
        if let (1 | 18, Some(bytes)) = one? {
            found.push(text(bytes)?);
        }
    }
    Ok(found)
}

/// The images of a `ContainerStatusResponse`: where the list has a digest alone, this has the name.
fn status_of(answer: &[u8], id: &str) -> Result<Vec<String>, Error> {
    let (mut images, mut is_it) = (Vec::new(), false);
    for status in Fields::of(answer) {
        let (1, Some(status)) = status? else {
            continue;
        };
        for one in Fields::of(status) {
            match one? {
                (1, Some(bytes)) => is_it = bytes == id.as_bytes(),
                (8, Some(bytes)) => images.extend(image(bytes)?),
                (9, Some(bytes)) => images.push(text(bytes)?),
                _ => {}
            }
        }
    }
    match is_it {
        true => Ok(images),
        false => Err("answers for another container".into()),
    }
}

#[cfg(test)]
mod tests;
