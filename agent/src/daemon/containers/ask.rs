//! Asks for one container, of all who may know it.
use super::container::Container;
use super::{bundle, cri, docker};
use crate::config::ContainerEngine;
use std::os::unix::fs::FileTypeExt as _;
use std::time::Duration;

/// One engine's answer may take so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of an answer or a file at most.
pub(super) const BYTES: usize = 1 << 20;

pub(super) type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the first of `sources` that knows it whole says, or the first that knows it at all; else why none does.
pub(super) async fn ask(sources: &[ContainerEngine], id: &str) -> Result<Container, String> {
    let (mut why, mut gone, mut partly) = (Vec::new(), Vec::new(), None);
    for source in sources {
        let path = source.path().display();
        let Ok(meta) = std::fs::metadata(source.path()) else {
            gone.push(format!("{path} is not there"));
            continue;
        };
        match told(source, meta.file_type().is_socket(), id).await {
            Ok(Some(container)) => match &container.unsure {
                None => return Ok(container),
                Some(unsure) => {
                    why.push(format!("{path}: {unsure}"));
                    partly.get_or_insert(container);
                }
            },
            Ok(None) => why.push(format!("{path} does not know it")),
            Err(error) => why.push(format!("{path}: {error}")),
        }
    }
    let why = why.join("; ");
    match partly {
        Some(mut container) => {
            // Who is not there may have been the one to say the rest.
            gone.insert(0, why);
            container.unsure = Some(gone.join("; "));
            Ok(container)
        }
        None if why.is_empty() => Err(
            "no container engine is there to be asked: see `container_engines` in the configuration"
                .to_owned(),
        ),
        None => Err(why),
    }
}

async fn told(
    source: &ContainerEngine,
    is_socket: bool,
    id: &str,
) -> Result<Option<Container>, Error> {
    let told = async {
        match source {
            ContainerEngine::Cri(path) => cri::ask(path, id).await,
            ContainerEngine::Path(path) if is_socket => docker::ask(path, id).await,
            ContainerEngine::Path(path) => bundle::ask(path, id),
        }
    };
    let told = tokio::time::timeout(PATIENCE, told).await;
    told.unwrap_or_else(|_| Err(format!("no answer in {} s", PATIENCE.as_secs()).into()))
}
