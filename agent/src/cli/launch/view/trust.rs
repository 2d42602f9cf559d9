//! Trust for programs that keep to no variable, seen by the command alone: the system's bundle, and browsers' policies.
use rustix::io::Errno;
use rustix::mount::{self, MountFlags};
use std::ffi::CString;
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// What GnuTLS, and whatever was built for this host, reads: of Debian, Fedora, SUSE and Alpine.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where Chromium, Chrome, Edge and Brave look for `policies/managed`.
const SETTINGS: [&str; 4] = [
    "/etc/chromium",
    "/etc/opt/chrome",
    "/etc/opt/edge",
    "/etc/brave",
];

/// Lays trust in the agent over the host's own. Where that fails, some program does not trust the agent, and that is
/// all: the command need not be one.
pub(super) fn lay_over(bundle: &Path, browsers: &Path) {
    let mut done: Vec<PathBuf> = Vec::new();
    // Some of them are links to others.
    for at in BUNDLES
        .iter()
        .filter_map(|at| Path::new(at).canonicalize().ok())
    {
        if !done.contains(&at) {
            if let Err(e) = super::bind(bundle, &at) {
                untrusting("programs that read", &at, e);
            }
            done.push(at);
        }
    }
    for settings in SETTINGS.map(Path::new).into_iter().filter(|s| s.is_dir()) {
        if let Err(e) = merge(browsers, settings) {
            untrusting("browsers with settings in", settings, e);
        }
    }
}

fn untrusting(who: &str, at: &Path, why: impl Display) {
    tell!(
        "tollgate: {who} {} will not trust the agent: {why}",
        at.display()
    );
}

/// Shows `ours` and the host's settings as one directory, read-only.
fn merge(ours: &Path, settings: &Path) -> Result<(), Errno> {
    // Separators of the mount's options.
    if ours
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .any(|byte| b":,\\".contains(byte))
    {
        return Err(Errno::INVAL);
    }
    let layers = format!("lowerdir={}:{}", ours.display(), settings.display());
    let layers = CString::new(layers).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    mount::mount(
        "overlay",
        settings,
        "overlay",
        flags,
        Some(layers.as_c_str()),
    )
}
