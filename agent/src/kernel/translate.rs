//! From the ABI to the domain: names for ids, paths for cgroups, wall-clock for boot time.
use super::{Counters, Process, bounded, cgroup, probe::CgroupRoot, processes};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tollgate_common::flow::{Address, Inode, Owner, Path, Traffic};
use tollgate_common::limits::PATH_PARTS;

/// Entries a cache holds before it starts over.
const CACHED: usize = 2048;

/// `PATHS`
pub(super) type Paths = aya::maps::HashMap<aya::maps::MapData, Inode, Path>;

/// What lookups were made before. Readers take no lock; a miss copies, which is rare.
#[derive(Debug)]
pub(super) struct Cache<K, V>(ArcSwap<HashMap<K, V>>);

impl<K: Eq + Hash + Clone, V: Clone> Cache<K, V> {
    pub(super) fn new() -> Self {
        Self(ArcSwap::from_pointee(HashMap::new()))
    }

    pub(super) fn find(&self, key: &K) -> Option<V> {
        self.0.load().get(key).cloned()
    }

    pub(super) fn keep(&self, key: &K, value: &V) {
        self.0.rcu(|old| {
            let mut new = if old.len() < CACHED {
                HashMap::clone(old)
            } else {
                HashMap::new()
            };
            new.insert(key.clone(), value.clone());
            new
        });
    }
}

/// All that tells one process, running one program, from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct ProcessKey {
    tgid: u32,
    start: u64,
    exe: (u32, u64),
    uid: u32,
    cgroup: u64,
}

/// Names for what the hooks recorded.
#[derive(Debug)]
pub(super) struct Names {
    processes: Cache<ProcessKey, Arc<Process>>,
    cgroups: Cache<u64, Arc<str>>,
    /// Never starts over in practice: there are at most as many workloads as the map holds.
    pub(super) workloads: ArcSwap<HashMap<u32, Arc<str>>>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            processes: Cache::new(),
            cgroups: Cache::new(),
            workloads: ArcSwap::default(),
        }
    }

    /// A workload's name.
    pub(super) fn workload(&self, id: u32) -> Arc<str> {
        let known = self.workloads.load().get(&id).cloned();
        known.unwrap_or_else(|| format!("id:{id}").into())
    }

    /// The process that the hook recorded.
    pub(super) fn process(&self, root: &CgroupRoot, paths: &Paths, owner: &Owner) -> Arc<Process> {
        let key = ProcessKey {
            tgid: owner.tgid,
            start: owner.start,
            exe: (owner.exe_dev, owner.exe_inode),
            uid: owner.uid,
            cgroup: owner.cgroup,
        };
        if let Some(known) = self.processes.find(&key) {
            return known;
        }
        let cgroup = self.cgroup(root, owner.cgroup);
        let process = Arc::new(Process {
            pid: owner.tgid,
            start: owner.start,
            exe: label(owner, paths),
            exe_dev: device(owner.exe_dev),
            exe_inode: owner.exe_inode,
            sha256: None,
            uid: owner.uid,
            unit: cgroup::unit(&cgroup),
            cgroup: cgroup.to_string(),
        });
        self.processes.keep(&key, &process);
        process
    }

    /// A cgroup's path below the root, with a slash before it; `id:N` where it is gone.
    pub(super) fn cgroup(&self, root: &CgroupRoot, id: u64) -> Arc<str> {
        if let Some(known) = self.cgroups.find(&id) {
            return known;
        }
        let Ok(path) = cgroup::path(root, id) else {
            return format!("id:{id}").into();
        };
        let path: Arc<str> = format!("/{}", path.display()).into();
        self.cgroups.keep(&id, &path);
        path
    }
}

/// The device as `stat` gives it; the kernel keeps major and minor another way.
fn device(kernel: u32) -> u64 {
    libc::makedev(kernel >> 20, kernel & 0x000f_ffff)
}

/// The executable's path for a person: what `/proc` says while that is still the recorded file, or
/// else what the hook read, which knows nothing of mount points.
fn label(owner: &Owner, paths: &Paths) -> String {
    if owner.tgid == 0 {
        return "unknown".to_owned(); // No hook saw who: a packet's socket tells its cgroup only.
    }
    let ask = |process| (processes::executable(process), processes::program(process));
    // A connection is waiting for this.
    let (runs, program) = bounded::briefly(owner.tgid, ask).unwrap_or_default();
    let is_same = runs == Some((device(owner.exe_dev), owner.exe_inode));
    match program {
        Some(path) if is_same => path.to_string_lossy().into_owned(),
        _ => recorded_path(owner, paths),
    }
}

fn recorded_path(owner: &Owner, paths: &Paths) -> String {
    // A kernel thread, or gone before anybody looked.
    path_within(owner.exe_inode, owner.exe_dev, paths).unwrap_or_else(|| "unknown".to_owned())
}

/// Where a file was within its filesystem, as the hook read it.
pub(super) fn path_within(number: u64, device: u32, paths: &Paths) -> Option<String> {
    let inode = Inode {
        number,
        device,
        reserved: 0,
    };
    let recorded = paths.get(&inode, 0).ok();
    let recorded = recorded.filter(|path| path.parts != 0)?;
    let parts = recorded.parts as usize;
    let mut path = String::from(if parts > PATH_PARTS { "…" } else { "" });
    for part in recorded.names.iter().take(parts).rev() {
        path.push('/');
        path.push_str(&text(part));
    }
    Some(path)
}

/// Text up to NUL.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// A Unix socket's name as policy writes it: `@` and an abstract one. A path that begins with `@` is told from that by `./`.
pub(super) fn socket_name(bytes: &[u8]) -> String {
    match bytes.split_first() {
        Some((0, rest)) if rest.iter().any(|&byte| byte != 0) => format!("@{}", text(rest)),
        Some((b'@', _)) => format!("./{}", text(bytes)),
        _ => text(bytes),
    }
}

/// An address of the domain.
pub(super) fn address(abi: &Address) -> SocketAddr {
    let mut octets = [0; 16];
    for (four, word) in octets.chunks_exact_mut(4).zip(abi.ip) {
        four.copy_from_slice(&word.to_ne_bytes());
    }
    SocketAddr::new(IpAddr::V6(Ipv6Addr::from(octets)).to_canonical(), abi.port)
}

/// A socket's address of the ABI.
pub(super) fn abi(domain: SocketAddr) -> Address {
    Address {
        ip: ip(domain.ip()),
        port: domain.port(),
        reserved: [0; 3],
    }
}

/// An address of the ABI.
pub(super) fn ip(domain: IpAddr) -> [u32; 4] {
    let octets = match domain {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let mut words = [0; 4];
    for (word, four) in words.iter_mut().zip(octets.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*four);
    }
    words
}

/// Counters of the domain.
pub(super) fn counters(abi: &Traffic) -> Counters {
    Counters {
        bytes_out: abi.bytes_out,
        bytes_in: abi.bytes_in,
        packets_out: abi.packets_out,
        packets_in: abi.packets_in,
    }
}

/// Wall-clock time of a moment given in nanoseconds since boot.
pub(super) fn time(since_boot: u64) -> SystemTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let now = Duration::new(
        now.tv_sec.unsigned_abs(),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    );
    SystemTime::now() - now.saturating_sub(Duration::from_nanos(since_boot))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_go_both_ways() {
        for text in ["1.2.3.4:5", "[2001:db8::1]:65535", "0.0.0.0:0", "[::1]:53"] {
            let domain: SocketAddr = text.parse().unwrap();
            assert_eq!(address(&abi(domain)), domain);
        }
    }

    #[test]
    fn devices_are_as_stat_has_them() {
        assert_eq!(device((254 << 20) | 1), libc::makedev(254, 1));
        assert_eq!(
            device((1 << 20) | 0x000f_ffff),
            libc::makedev(1, 0x000f_ffff)
        );
    }
}
