//! Engines with the API of Docker, which Podman has too.
use super::ask::{BYTES, Error};
use super::container::{Container, tagged};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Of the answer to `GET /containers/{id}/json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: String,
    config: InspectedConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    image: String,
    /// The image's among them.
    labels: Option<BTreeMap<String, String>>,
}

/// On what runs for Kubernetes; the labels of its pod are elsewhere.
const IN_POD: &str = "io.kubernetes.pod.name";

pub(super) async fn ask(socket: &Path, id: &str) -> Result<Option<Container>, Error> {
    let stream = tokio::net::UnixStream::connect(socket).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driven = tokio::spawn(connection);
    let request = Request::get(format!("/containers/{id}/json"))
        .header(header::HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let told = match answer.status() {
        StatusCode::NOT_FOUND => Ok(None),
        StatusCode::OK => {
            let body = Limited::new(answer.into_body(), BYTES).collect().await?;
            inspected(&body.to_bytes(), id).map(Some)
        }
        other => Err(format!("answers {other}").into()),
    };
    driven.abort();
    told
}

fn inspected(body: &[u8], id: &str) -> Result<Container, Error> {
    let told: Inspected = serde_json::from_slice(body)?;
    if told.id != id {
        return Err("answers for another container".into());
    }
    let labels = told.config.labels.unwrap_or_default();
    let unsure = labels.contains_key(IN_POD).then(|| {
        "does not say the labels of its pod: name the socket of its CRI as `cri:PATH`".to_owned()
    });
    Ok(Container {
        name: Some(told.name.trim_start_matches('/').to_owned()),
        images: vec![tagged(told.config.image)],
        labels,
        unsure,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_strictly() {
        let id = "ab".repeat(32);
        let good =
            format!(r#"{{"Id":"{id}","Name":"/web","Config":{{"Image":"nginx"}},"More":1}}"#);
        let told = inspected(good.as_bytes(), &id).unwrap();
        assert_eq!(told.name.as_deref(), Some("web"));
        assert_eq!(told.images, ["nginx:latest"]);
        assert!(told.labels.is_empty() && told.unsure.is_none());
        assert!(inspected(good.as_bytes(), &"cd".repeat(32)).is_err());
        for bad in ["", "{}", "[]", r#"{"Id":1}"#] {
            assert!(inspected(bad.as_bytes(), &id).is_err(), "{bad}");
        }
        let with = |labels: &str| {
            let config = format!(r#""nginx","Labels":{labels}"#);
            inspected(good.replace("\"nginx\"", &config).as_bytes(), &id)
        };
        assert!(with("null").unwrap().labels.is_empty());
        let told = with(r#"{"app":"web"}"#).unwrap();
        assert_eq!(told.labels.get("app").unwrap(), "web");
        assert_eq!(told.unsure, None);
        assert!(
            with(r#"{"io.kubernetes.pod.name":"p"}"#)
                .unwrap()
                .unsure
                .is_some()
        );
        assert!(with(r#"{"app":1}"#).is_err());
    }
}
