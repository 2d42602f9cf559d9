//! Asks for one container: engines at their sockets (the API of Docker, which Podman has too), then runtimes' files.
use super::Container;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One engine's answer may take so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer or a file at most.
const BYTES: usize = 1 << 20;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the first of `sources` that knows it says; else why none does.
pub(super) async fn ask(sources: &[PathBuf], id: &str) -> Result<Container, String> {
    let mut why = Vec::new();
    for source in sources {
        let Ok(meta) = std::fs::metadata(source) else {
            continue;
        };
        let told = match meta.file_type().is_socket() {
            true => match tokio::time::timeout(PATIENCE, engine(source, id)).await {
                Ok(told) => told,
                Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs()).into()),
            },
            false => files(source, id),
        };
        match told {
            Ok(Some(container)) => return Ok(container),
            Ok(None) => why.push(format!("{} does not know it", source.display())),
            Err(error) => why.push(format!("{}: {error}", source.display())),
        }
    }
    Err(match why.is_empty() {
        true => {
            "no container engine is there to be asked: see `container_engines` in the configuration"
                .to_owned()
        }
        false => why.join("; "),
    })
}

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
}

async fn engine(socket: &Path, id: &str) -> Result<Option<Container>, Error> {
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
    Ok(Container {
        name: Some(told.name.trim_start_matches('/').to_owned()),
        image: Some(tagged(told.config.image)),
    })
}

/// Of an OCI bundle's `config.json`.
#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Where CRI implementations (containerd, CRI-O) write a container's name and image.
const NAMES: [&str; 2] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.container.name",
];
const IMAGES: [&str; 3] = [
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri-o.ImageName",
    "org.opencontainers.image.ref.name",
];

/// What an OCI runtime's own files say: `DIRECTORY/ID/config.json`, or the same below `userdata`.
fn files(directory: &Path, id: &str) -> Result<Option<Container>, Error> {
    let below = directory.join(id);
    let places = [
        below.join("config.json"),
        below.join("userdata/config.json"),
    ];
    let Some(path) = places.iter().find(|path| path.exists()) else {
        return Ok(None);
    };
    let file = std::fs::File::open(path)?;
    if file.metadata()?.uid() != 0 {
        return Err(format!("{} is not root's", path.display()).into());
    }
    let mut text = Vec::new();
    file.take(BYTES as u64 + 1).read_to_end(&mut text)?;
    if text.len() > BYTES {
        return Err(format!("{} is larger than {BYTES} bytes", path.display()).into());
    }
    let bundle: Bundle = serde_json::from_slice(&text)?;
    let first = |keys: &[&str]| {
        keys.iter()
            .find_map(|key| bundle.annotations.get(*key))
            .cloned()
    };
    Ok(Some(Container {
        name: first(&NAMES),
        image: first(&IMAGES).map(tagged),
    }))
}

/// An image's name without a tag means the one called `latest`.
fn tagged(image: String) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.contains([':', '@']) {
        true => image,
        false => format!("{image}:latest"),
    }
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
        assert_eq!(told.image.as_deref(), Some("nginx:latest"));
        assert!(inspected(good.as_bytes(), &"cd".repeat(32)).is_err());
        for bad in ["", "{}", "[]", r#"{"Id":1}"#] {
            assert!(inspected(bad.as_bytes(), &id).is_err(), "{bad}");
        }
        assert_eq!(tagged("r:5000/a/b".to_owned()), "r:5000/a/b:latest");
        assert_eq!(tagged("a/b@sha256:1".to_owned()), "a/b@sha256:1");
    }
}
