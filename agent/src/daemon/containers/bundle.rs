//! What OCI runtimes' own files say, in which implementations of CRI (containerd, CRI-O) leave names and images.
use super::ask::{BYTES, Error};
use super::container::{Container, tagged};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Of an OCI bundle's `config.json`.
#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

const NAMES: [&str; 2] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.container.name",
];
const IMAGES: [&str; 3] = [
    "io.kubernetes.cri.image-name",
    "io.kubernetes.cri-o.ImageName",
    "org.opencontainers.image.ref.name",
];
/// Bytes of an annotation that may be a label: engines keep whole documents in others.
const LABEL: usize = 255;

/// `DIRECTORY/ID/config.json`, or the same below `userdata`.
pub(super) fn ask(directory: &Path, id: &str) -> Result<Option<Container>, Error> {
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
    read(&text).map(Some)
}

fn read(text: &[u8]) -> Result<Container, Error> {
    let Bundle { annotations } = serde_json::from_slice(text)?;
    let first = |keys: &[&str]| keys.iter().find_map(|key| annotations.get(*key)).cloned();
    let (name, image) = (first(&NAMES), first(&IMAGES));
    let mut labels = annotations;
    labels.retain(|_, value| value.len() <= LABEL);
    Ok(Container {
        name,
        images: image.map(tagged).into_iter().collect(),
        labels,
        // Labels are the engine's affair: what is no annotation may be one.
        unsure: Some(
            "its files say no labels but annotations: name the socket of its engine or its CRI in `container_engines`"
                .to_owned(),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_labels_and_may_not_be_all() {
        let long = "x".repeat(LABEL + 1);
        let text = format!(
            r#"{{"annotations":{{"io.kubernetes.cri.container-name":"main","app":"web","long":"{long}","io.kubernetes.cri-o.ImageName":"r/a"}}}}"#
        );
        let told = read(text.as_bytes()).unwrap();
        assert_eq!(told.name.as_deref(), Some("main"));
        assert_eq!(told.images, ["r/a:latest"]);
        assert_eq!(told.labels.get("app").unwrap(), "web");
        assert!(!told.labels.contains_key("long") && told.unsure.is_some());
        assert!(read(b"{}").unwrap().unsure.is_some());
        assert!(read(br#"{"annotations":[]}"#).is_err());
    }
}
