//! Local daemons' sockets, as the kernel lists them: what a command under `tollgate run` is not to find.
//!
//! Where the kernel has hooks for Unix sockets these hold by themselves. Covering the sockets too leaves nothing to
//! look up by another name, and is all there is where the kernel has no such hooks.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tollgate_policy::SocketName;

const TABLE: &str = "/proc/net/unix";
/// Sockets covered at most: each is a mount.
const MAX: usize = 512;
/// Bits of a listener's flags: it accepts connections.
const ACCEPTS: &str = "00010000";
/// `SOCK_DGRAM`
const DATAGRAM: &str = "0002";

/// Every socket of this host that has a path and that `allowed` does not name.
pub(super) fn closed(allowed: &[SocketName]) -> Vec<PathBuf> {
    let table = std::fs::read(TABLE).unwrap_or_else(|error| {
        tracing::warn!("{TABLE}: {error}: local daemons' sockets are not covered");
        Vec::new()
    });
    let mut all = listed(&String::from_utf8_lossy(&table), allowed);
    if all.len() > MAX {
        tracing::warn!(
            "{} sockets of local daemons are left uncovered: {MAX} are covered at most",
            all.len() - MAX
        );
        all.truncate(MAX);
    }
    all
}

/// `address: references protocol flags type state inode path`
fn listed(table: &str, allowed: &[SocketName]) -> Vec<PathBuf> {
    let paths: BTreeSet<&str> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.splitn(8, ' ').skip(3);
            let (flags, kind) = (fields.next()?, fields.next()?);
            let path = line.split_once(" /").map(|(before, _)| before.len() + 1)?;
            (flags == ACCEPTS || kind == DATAGRAM).then(|| line.get(path..))?
        })
        .collect();
    let open = |path: &str| {
        allowed.iter().any(|socket| match socket.any_rest {
            true => path.starts_with(&socket.name),
            false => path == socket.name,
        })
    };
    paths
        .into_iter()
        .filter(|path| !open(path))
        .map(|path| Path::new(path).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_and_datagram_sockets_with_a_path() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 100 /run/docker.sock\n\
            0000000000000000: 00000002 00000000 00000000 0002 01   101 /dev/log\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 102 /run/docker.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 103\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 104 @/tmp/.X11-unix/X0\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 105 /run/my dir/s\n";
        let name = |name: &str, any_rest| SocketName {
            name: name.to_owned(),
            any_rest,
        };
        let found = |allowed: &[SocketName]| {
            let paths = listed(table, allowed);
            let texts: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
            texts.join("|")
        };
        assert_eq!(found(&[]), "/dev/log|/run/docker.sock|/run/my dir/s");
        assert_eq!(
            found(&[name("/dev/log", false)]),
            "/run/docker.sock|/run/my dir/s"
        );
        assert_eq!(found(&[name("/run/", true)]), "/dev/log");
        assert_eq!(found(&[name("/run/docker", false)]), found(&[]));
    }
}
