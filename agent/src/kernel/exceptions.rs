//! What policy lets workloads do besides connecting through the agent.
use super::{
    Error, Fence, Openings,
    maps::{Writers, read, write},
};
use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use std::collections::HashSet;
use tollgate_common::limits::SOCKET_NAME_BYTES;
use tollgate_common::openings::{Listen, Named};

/// A key of `UNIX` in parts that can be compared: how many bits count, and the bits.
type Name = (u32, Named);

impl Fence {
    /// What is allowed anew comes first, and only what is allowed no longer goes: whoever keeps a permission is never
    /// without it.
    pub(super) fn permit_exactly(&self, all: &[Openings]) -> Result<(), Error> {
        let mut writers = self.maps.write();
        let some = all
            .iter()
            .filter(|openings| !openings.listen.is_empty() || !openings.unix.is_empty());
        let ids = self.workload_ids(&mut writers, some.clone().map(|o| o.workload.as_str()))?;
        let mut listen = HashSet::new();
        let mut names = HashSet::new();
        for openings in some {
            let Some(&workload) = ids.get(&openings.workload) else {
                continue;
            };
            listen.extend(openings.listen.iter().map(|&port| Listen {
                workload,
                port,
                reserved: 0,
            }));
            let unix = openings.unix.iter();
            names.extend(unix.filter_map(|socket| name(workload, &socket.name, socket.any_rest)));
        }
        let ports = set_ports(&mut writers, &listen);
        ports.and(set_names(&mut writers, &names))
    }
}

fn set_ports(writers: &mut Writers, wanted: &HashSet<Listen>) -> Result<(), Error> {
    let found: Result<HashSet<Listen>, MapError> = writers.listen.keys().collect();
    let found = found.map_err(read("LISTEN"))?;
    // What there is no room for does not keep what is allowed no longer.
    let added: Result<(), MapError> = wanted
        .difference(&found)
        .try_for_each(|port| writers.listen.insert(port, 1, 0));
    for port in found.difference(wanted) {
        writers.listen.remove(port).map_err(write("LISTEN"))?;
    }
    added.map_err(write("LISTEN"))
}

fn set_names(writers: &mut Writers, wanted: &HashSet<Name>) -> Result<(), Error> {
    let found: Result<HashSet<Name>, MapError> = writers
        .unix
        .keys()
        .map(|key| key.map(|key| (key.prefix_len(), key.data())))
        .collect();
    let found = found.map_err(read("UNIX"))?;
    let added: Result<(), MapError> = wanted
        .difference(&found)
        .try_for_each(|&(bits, name)| writers.unix.insert(&Key::new(bits, name), 1, 0));
    for &(bits, name) in found.difference(wanted) {
        let removed = writers.unix.remove(&Key::new(bits, name));
        removed.map_err(write("UNIX"))?;
    }
    added.map_err(write("UNIX"))
}

/// A name as the kernel has it: NUL stands where policy writes `@`, since a path may begin with `@` and not with NUL.
/// `None`: longer than any socket's name, which the policy does not let through.
fn name(workload: u32, text: &str, any_rest: bool) -> Option<Name> {
    let mut name = [0; SOCKET_NAME_BYTES];
    name.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    if let [first @ b'@', ..] = &mut name {
        *first = 0;
    }
    // The NUL after a whole name counts too.
    let bytes = text.len() + usize::from(!any_rest);
    if bytes > SOCKET_NAME_BYTES {
        return None;
    }
    let bits = u32::try_from(8 * (size_of::<u32>() + bytes)).ok()?;
    Some((bits, Named { workload, name }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_is_an_abstract_name() {
        let bytes = |text: &str, any_rest| {
            let (bits, named) = name(7, text, any_rest).unwrap();
            let length = usize::try_from(bits).unwrap() / 8 - size_of::<u32>();
            named.name[..length].to_vec()
        };
        assert_eq!(bytes("@x@", false), b"\0x@\0");
        assert_eq!(bytes("@x/", true), b"\0x/");
        assert_eq!(bytes("/@x", false), b"/@x\0");
    }

    #[test]
    fn a_whole_name_ends_and_a_beginning_does_not() {
        let bits = |text: &str, any_rest| name(7, text, any_rest).map(|(bits, _)| bits);
        assert_eq!(bits("/dev/log", false), Some(8 * (4 + 9)));
        assert_eq!(bits("/run/", true), Some(8 * (4 + 5)));
        assert_eq!(bits(&"x".repeat(107), false), Some(8 * 112));
        assert_eq!(bits(&"x".repeat(108), false), None);
        assert_eq!(bits(&"x".repeat(109), true), None);
    }
}
