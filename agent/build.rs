//! Embeds the eBPF object that `cargo xtask build` makes, and refuses one that is missing or stale.
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Names another object, e.g. one from a package's build; it is taken as it is.
const OVERRIDE: &str = "TOLLGATE_BPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    match object() {
        Ok(path) => {
            println!("cargo::rerun-if-changed={}", path.display());
            println!("cargo::rustc-env={OVERRIDE}={}", path.display());
        }
        Err(fault) => println!("cargo::error={fault}"),
    }
}

fn object() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os(OVERRIDE) {
        let path = std::path::absolute(&path).map_err(|error| format!("{OVERRIDE}: {error}"))?;
        return match path.is_file() {
            true => Ok(path),
            false => Err(format!(
                "{OVERRIDE} names {}, which is not a file",
                path.display()
            )),
        };
    }
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .unwrap_or_default();
    let root = here.parent().unwrap_or(Path::new("..")).to_owned();
    let object = root.join("target/bpf/tollgate.o");
    let sources = [
        root.join("ebpf/src"),
        root.join("ebpf/Cargo.toml"),
        root.join("common/src"),
        root.join("common/Cargo.toml"),
    ];
    for source in &sources {
        println!("cargo::rerun-if-changed={}", source.display());
    }
    println!("cargo::rerun-if-changed={}", object.display());
    let Some(built) = modified(&object) else {
        return Err(format!(
            "the eBPF object {} is missing: run `cargo xtask build`",
            object.display()
        ));
    };
    match sources.iter().filter_map(|source| newest(source)).max() {
        Some(changed) if changed > built => Err(format!(
            "the eBPF object {} is older than its sources in ebpf/ and common/: run `cargo xtask build`",
            object.display()
        )),
        _ => Ok(object),
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}

/// When the newest file at or below `path` changed.
fn newest(path: &Path) -> Option<SystemTime> {
    if path.is_dir() {
        let entries = std::fs::read_dir(path).ok()?;
        return entries
            .flatten()
            .filter_map(|entry| newest(&entry.path()))
            .max();
    }
    modified(path)
}
