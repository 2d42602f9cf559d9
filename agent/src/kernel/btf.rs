//! Where the running kernel keeps the fields that the hooks read, from its own description of its
//! types (BTF). Reads only what is needed of it, every index checked.
use super::{Error, probe};
use std::io::{self, Read};
use std::path::Path;
use tollgate_common::settings::Offsets;

/// Where the kernel describes itself.
const PATH: &str = "/sys/kernel/btf/vmlinux";
/// More than any kernel's.
const MAX_BYTES: u64 = 128 << 20;
/// Nesting of anonymous members, and of typedefs and qualifiers.
const MAX_DEPTH: usize = 16;

const MAGIC: u32 = 0xeb9f;
/// Bytes of a type before what depends on its kind.
const HEAD: usize = 12;
const STRUCT: u32 = 4;
const UNION: u32 = 5;

/// The running kernel: new enough, ours to load programs into, and what it says of its types. To read it takes longer
/// than most of a start, so who puts up many fences does it once; to keep it takes megabytes, so an agent does not.
#[derive(Debug)]
pub struct Kernel {
    /// Where it keeps the fields that the hooks read.
    pub(super) offsets: Offsets,
    /// All of its types, to look up what programs are attached to.
    pub(super) types: Option<aya::Btf>,
}

impl Kernel {
    /// Probes it.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn probe() -> Result<Self, Error> {
        probe::kernel()?;
        probe::capabilities()?;
        probe::pid_namespace()?;
        let bytes = read(Path::new(PATH))?;
        let offsets = find(&bytes).map_err(|what| Error::BadBtf {
            path: PATH.into(),
            what,
        })?;
        let types = aya::Btf::parse(&bytes, aya::Endianness::default()).ok();
        Ok(Self { offsets, types })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::NoBtf {
            path: path.to_owned(),
            source,
        },
        _ => Error::Pin {
            action: "read",
            path: path.to_owned(),
            source,
        },
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .map_err(failed)?
        .take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

fn find(bytes: &[u8]) -> Result<Offsets, String> {
    let btf = Btf::parse(bytes).ok_or("its header or a type is damaged")?;
    let at = |structure: &str, path: &[&str]| {
        btf.offset(structure, path)
            .ok_or_else(|| format!("no {structure}.{}", path.join(".")))
    };
    // Linux 6.11 took the time apart, 6.6 had renamed it.
    let changed = |apart: &str, within: &str| {
        at("inode", &[apart])
            .or_else(|_| at("inode", &["__i_ctime", within]))
            .or_else(|_| at("inode", &["i_ctime", within]))
    };
    Ok(Offsets {
        task_group_leader: at("task_struct", &["group_leader"])?,
        task_start: at("task_struct", &["start_boottime"])?,
        task_mm: at("task_struct", &["mm"])?,
        mm_exe_file: at("mm_struct", &["exe_file"])?,
        file_inode: at("file", &["f_inode"])?,
        file_dentry: at("file", &["f_path", "dentry"])?,
        inode_ino: at("inode", &["i_ino"])?,
        inode_sb: at("inode", &["i_sb"])?,
        sb_dev: at("super_block", &["s_dev"])?,
        dentry_parent: at("dentry", &["d_parent"])?,
        dentry_name: at("dentry", &["d_name", "name"])?,
        task_tgid: at("task_struct", &["tgid"])?,
        task_cgroups: at("task_struct", &["cgroups"])?,
        set_cgroup: at("css_set", &["dfl_cgrp"])?,
        cgroup_level: at("cgroup", &["level"])?,
        cgroup_node: at("cgroup", &["kn"])?,
        cgroup_ancestors: at("cgroup", &["ancestors"])?,
        cgroup_root: at("cgroup", &["root"])?,
        root_hierarchy: at("cgroup_root", &["hierarchy_id"])?,
        node_id: at("kernfs_node", &["id"])?,
        node_name: at("kernfs_node", &["name"])?,
        task_namespaces: at("task_struct", &["nsproxy"])?,
        namespaces_net: at("nsproxy", &["net_ns"])?,
        net_cookie: at("net", &["net_cookie"])?,
        inode_changed: changed("i_ctime_sec", "tv_sec")?,
        inode_changed_nanoseconds: changed("i_ctime_nsec", "tv_nsec")?,
        address_pointer: at("bpf_sock_addr_kern", &["uaddr"])?,
        // Came with the hooks for Unix sockets, which are the only ones to read it.
        address_length: at("bpf_sock_addr_kern", &["uaddrlen"]).unwrap_or(0),
        namespaces_mounts: at("nsproxy", &["mnt_ns"])?,
        mounts_user: at("mnt_namespace", &["user_ns"])?,
        task_credentials: at("task_struct", &["cred"])?,
        credentials_user: at("cred", &["user_ns"])?,
        user_level: at("user_namespace", &["level"])?,
        file_private: at("file", &["private_data"])?,
        inode_mode: at("inode", &["i_mode"])?,
        socket_sk: at("socket", &["sk"])?,
        sock_family: at("sock", &["__sk_common", "skc_family"])?,
        sock_state: at("sock", &["__sk_common", "skc_state"])?,
        sock_cgroup: at("sock", &["sk_cgrp_data", "cgroup"])?,
        sock_protocol: at("sock", &["sk_protocol"])?,
        sock_flags: at("sock", &["__sk_common", "skc_flags"])?,
        sock_kernel: btf
            .bits("sock", &["sk_kern_sock"])
            .ok_or("no sock.sk_kern_sock")?,
        sock_port: at("sock", &["__sk_common", "skc_num"])?,
        sock_peer_port: at("sock", &["__sk_common", "skc_dport"])?,
        sock_peer4: at("sock", &["__sk_common", "skc_daddr"])?,
        // Without it there are no sockets to read it of.
        sock_peer6: at("sock", &["__sk_common", "skc_v6_daddr"]).unwrap_or(0),
        socket_file: at("socket", &["file"])?,
        unix_bound: at("unix_sock", &["addr"]).unwrap_or(0),
        unix_peer: at("unix_sock", &["peer"]).unwrap_or(0),
        bound_length: at("unix_address", &["len"]).unwrap_or(0),
        bound_name: at("unix_address", &["name"]).unwrap_or(0),
        sb_magic: at("super_block", &["s_magic"])?,
        mount_sb: at("vfsmount", &["mnt_sb"])?,
        reserved: 0,
    })
}

/// One type: its name, kind, and where its members are.
#[derive(Clone, Copy)]
struct Type {
    name: u32,
    kind: u32,
    members: u32,
    /// Offsets of members carry a bit-field size in their upper byte.
    bit_fields: bool,
    /// Size, or the type that this one refers to.
    refers_to: u32,
    body: usize,
}

struct Btf<'a> {
    types: Vec<Type>,
    /// Places of the structs among the types: they are a small part of them, and looked through for each field.
    structs: Vec<usize>,
    body: &'a [u8],
    names: &'a [u8],
}

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if word(bytes, 0)? & 0xffff != MAGIC {
            return None;
        }
        let header = word(bytes, 4)?;
        let section = |offset: usize| {
            let start = header.checked_add(word(bytes, offset)?)? as usize;
            let end = start.checked_add(word(bytes, offset + 4)? as usize)?;
            bytes.get(start..end)
        };
        let mut btf = Self {
            types: Vec::new(),
            structs: Vec::new(),
            body: section(8)?,
            names: section(16)?,
        };
        btf.index()?;
        Some(btf)
    }

    /// Types are numbered from 1 in the order they stand.
    fn index(&mut self) -> Option<()> {
        let (mut rest, mut at) = (self.body, 0);
        // A kernel has a hundred thousand of them, and the agent's start waits for this.
        while let Some((head, body)) = rest.split_first_chunk() {
            let [name, info, refers_to] = words(head);
            let (kind, members) = ((info >> 24) & 0x1f, info & 0xffff);
            if kind == STRUCT {
                self.structs.push(self.types.len());
            }
            self.types.push(Type {
                name,
                kind,
                members,
                bit_fields: info >> 31 == 1,
                refers_to,
                body: at + HEAD,
            });
            let tail = tail(kind, members)?;
            rest = body.get(tail..)?;
            at += HEAD + tail;
        }
        rest.is_empty().then_some(())
    }

    /// Bytes from the start of a struct to the member that `path` leads to, through structs within.
    fn offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let bits = self.bits(structure, path)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// The same in bits, for a member that is narrower than a byte.
    fn bits(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let mut structs = self.structs.iter().filter_map(|&at| self.types.get(at));
        let mut current = *structs.find(|t| self.is_named(t.name, structure))?;
        let mut bits = 0_u32;
        for name in path {
            let (offset, of) = self.member(&current, name, MAX_DEPTH)?;
            bits = bits.checked_add(offset)?;
            current = self.resolve(of)?;
        }
        Some(bits)
    }

    /// A member's offset in bits and its type; looks into anonymous structs and unions.
    fn member(&self, of: &Type, name: &str, depth: usize) -> Option<(u32, u32)> {
        let depth = depth.checked_sub(1)?;
        if of.kind != STRUCT && of.kind != UNION {
            return None;
        }
        for number in 0..of.members as usize {
            let at = of.body + 12 * number;
            let (its_name, its_type) = (word(self.body, at)?, word(self.body, at + 4)?);
            let mut offset = word(self.body, at + 8)?;
            if of.bit_fields {
                offset &= 0x00ff_ffff;
            }
            if self.is_named(its_name, name) {
                return Some((offset, its_type));
            }
            if self.is_named(its_name, "")
                && let Some((inner, of)) = self.member(&self.resolve(its_type)?, name, depth)
            {
                return Some((offset.checked_add(inner)?, of));
            }
        }
        None
    }

    /// The type itself, behind typedefs and qualifiers.
    fn resolve(&self, id: u32) -> Option<Type> {
        let mut id = id;
        for _ in 0..MAX_DEPTH {
            let found = *self.types.get((id as usize).checked_sub(1)?)?;
            match found.kind {
                8..=11 | 18 => id = found.refers_to, // typedef, volatile, const, restrict, type tag
                _ => return Some(found),
            }
        }
        None
    }

    fn is_named(&self, name: u32, expected: &str) -> bool {
        self.names
            .get(name as usize..)
            .and_then(|rest| rest.strip_prefix(expected.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// Bytes that follow a type's head. A kind that is not known makes all that follow unreadable.
fn tail(kind: u32, members: u32) -> Option<usize> {
    let members = members as usize;
    Some(match kind {
        2 | 7..=12 | 16 | 18 => 0,
        1 | 14 | 17 => 4,
        3 => 12,
        4 | 5 | 15 | 19 => 12 * members,
        6 | 13 => 8 * members,
        _ => return None,
    })
}

/// The three words that each type begins with.
fn words(head: &[u8; HEAD]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *head;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
    ]
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(four.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn damaged_input_is_an_error() {
        assert!(find(b"").is_err());
        assert!(find(&[0; 24]).is_err());
        let bytes = std::fs::read(PATH).expect("this kernel describes its types");
        assert!(find(&bytes).is_ok());
        for cut in [1, 10, 23, 24, 100, bytes.len() / 2, bytes.len() - 1] {
            assert!(find(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let mut unknown_kind = bytes.clone();
        unknown_kind[24 + 7] = 0x1f;
        assert!(find(&unknown_kind).is_err());
    }
}
