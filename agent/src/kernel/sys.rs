//! The `bpf(2)` commands that aya has no public call for: links that are replaced in place, and
//! asking a cgroup what is attached to it.
use std::ffi::{CStr, CString};
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_MAP_GET_FD_BY_ID: libc::c_int = 14;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_BTF_GET_FD_BY_ID: libc::c_int = 19;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_ITER_CREATE: libc::c_int = 33;
/// `BPF_TRACE_ITER`
const ITERATES: u32 = 28;

/// Programs of one attach type that a cgroup can hold, by the kernel's own limit.
const MAX_ATTACHED: usize = 64;

/// `union bpf_attr` as far as these commands use it: words, the rest zero as the kernel demands.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
struct Attributes([u64; 16]);

/// Gives the calling thread a table of descriptors of its own, with nothing in it: `CLOSE_RANGE_UNSHARE`, Linux 5.9. For one that uses
/// no descriptor that it has not opened itself since.
pub(super) fn without_descriptors() -> io::Result<()> {
    // SAFETY: needed because nobody wraps it without its own `unsafe`. Other threads are there, and keep the table that all had: the
    // descriptors that their values own stay open. This thread gets none of those from anybody, and drops none.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            0,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the kernel says of a socket by an option of `SOL_SOCKET` that is one number.
pub(super) fn socket_option<T: aya::Pod + Default>(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
) -> io::Result<T> {
    let mut value = T::default();
    let mut size = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: needed because nobody wraps these options. The kernel writes at most `size` bytes to `value`, of which any are one
    // (`Pod`); both outlive the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_mut(&mut value).cast(),
            std::ptr::from_mut(&mut size),
        )
    };
    match done {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The process that connected a Unix socket, whoever has its id by now.
///
/// # Errors
/// The kernel is older than 6.5, or the process is gone.
pub(super) fn peer(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SO_PEERPIDFD: libc::c_int = 77;
    let handle: i32 = socket_option(socket, SO_PEERPIDFD)?;
    // SAFETY: needed because the option gives a number. It is a descriptor that the kernel has just opened for this process, and
    // nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(handle) })
}

/// Two 32-bit fields that follow each other, as one word.
fn pair(first: u32, second: u32) -> u64 {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

fn bpf(command: libc::c_int, attributes: &mut Attributes) -> io::Result<libc::c_long> {
    // SAFETY: needed because libc wraps no bpf(2). The attributes outlive the call, their size is
    // given, and every address in them points to a live buffer of the caller.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn bpf_fd(command: libc::c_int, attributes: &mut Attributes) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    let fd = libc::c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`
const SOCK_ADDR: u32 = 18;
/// Room for what the verifier says of a program that it refuses.
const LOG_BYTES: usize = 1 << 20;

/// The functions of a program, of some of which it takes the address.
pub(super) struct Functions<'a> {
    /// What the kernel was told of their types.
    pub(super) types: BorrowedFd<'a>,
    /// `struct bpf_func_info` for each.
    pub(super) records: &'a [u8],
    /// Bytes of one.
    pub(super) size: usize,
}

/// Loads a program for hooks on socket addresses; an error has the verifier's last words, where it had some.
pub(super) fn load_sock_addr(
    name: &str,
    instructions: &[aya_obj::generated::bpf_insn],
    license: &CStr,
    attach: u32,
    functions: &Functions<'_>,
) -> io::Result<OwnedFd> {
    let count = u32::try_from(instructions.len()).map_err(io::Error::other)?;
    let mut short = [0; 16];
    for (to, from) in short.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    let [first, second] = [&short[..8], &short[8..]].map(|half| {
        half.iter()
            .rev()
            .fold(0, |word, &byte| word << 8 | u64::from(byte))
    });
    let mut attributes = Attributes::default();
    // prog_type, insn_cnt; insns; license; log_level, log_size; log_buf; kern_version, prog_flags;
    // prog_name; prog_ifindex, expected_attach_type
    attributes.0[0] = pair(SOCK_ADDR, count);
    attributes.0[1] = instructions.as_ptr().addr() as u64;
    attributes.0[2] = license.as_ptr().addr() as u64;
    attributes.0[6] = u64::from_le(first);
    attributes.0[7] = u64::from_le(second);
    attributes.0[8] = pair(0, attach);
    // prog_btf_fd, func_info_rec_size; func_info; func_info_cnt, …
    let size = u32::try_from(functions.size).map_err(io::Error::other)?;
    let records = functions.records.len().checked_div(functions.size);
    let records = u32::try_from(records.unwrap_or(0)).map_err(io::Error::other)?;
    attributes.0[9] = pair(raw(functions.types), size);
    attributes.0[10] = functions.records.as_ptr().addr() as u64;
    attributes.0[11] = pair(records, 0);
    let error = match bpf_fd(BPF_PROG_LOAD, &mut attributes) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let mut log = vec![0_u8; LOG_BYTES];
    attributes.0[3] = pair(1, LOG_BYTES as u32);
    attributes.0[4] = log.as_mut_ptr().addr() as u64;
    match bpf_fd(BPF_PROG_LOAD, &mut attributes) {
        Ok(program) => Ok(program),
        Err(_) => Err(with_last_words(error, &log)),
    }
}

/// The verifier's last lines, behind the error that they explain.
fn with_last_words(error: io::Error, log: &[u8]) -> io::Error {
    let end = log.iter().position(|&byte| byte == 0);
    let log = String::from_utf8_lossy(log.get(..end.unwrap_or(log.len())).unwrap_or_default());
    let lines: Vec<&str> = log.trim_end_matches('\n').lines().collect();
    let last = lines
        .get(lines.len().saturating_sub(4)..)
        .unwrap_or_default();
    match last.concat().trim().is_empty() {
        true => error,
        false => io::Error::new(error.kind(), format!("{error}: {}", last.join("; "))),
    }
}

/// Has the kernel write what it knows of a program, map or link: as much as `info` has room for.
fn ask<T: aya::Pod>(object: impl AsFd, info: &mut T) -> io::Result<()> {
    let mut attributes = Attributes::default();
    // bpf_fd, info_len; info
    attributes.0[0] = pair(raw(object.as_fd()), size_of::<T>() as u32);
    attributes.0[1] = std::ptr::from_mut(info).addr() as u64;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes).map(drop)
}

/// What the kernel was told of a program's types.
pub(super) fn types_of(program: impl AsFd) -> io::Result<OwnedFd> {
    // The word of `struct bpf_prog_info` that has its BTF's id, and as much as comes before.
    const BTF_ID: usize = 32;
    let mut info = [0_u32; BTF_ID + 2];
    ask(program, &mut info)?;
    by_id(BPF_BTF_GET_FD_BY_ID, info[BTF_ID])
}

/// The kernel's id of a program.
pub(super) fn program_id(program: impl AsFd) -> io::Result<u32> {
    // `struct bpf_prog_info` begins with its type and its id.
    let mut info = [0_u32; 2];
    ask(program, &mut info)?;
    Ok(info[1])
}

/// Is this the program's name, or how it begins where it is longer than those that the kernel keeps?
pub(super) fn is_program_called(program: impl AsFd, name: &str) -> io::Result<bool> {
    // The words of `struct bpf_prog_info` that have it, and as much as comes before.
    const NAME: usize = std::mem::offset_of!(aya_obj::generated::bpf_prog_info, name) / 8;
    const LONGEST: usize = 15;
    let mut info = [0_u64; NAME + 2];
    ask(program, &mut info)?;
    let bytes = info.iter().skip(NAME).flat_map(|word| word.to_ne_bytes());
    Ok(bytes
        .take_while(|&byte| byte != 0)
        .eq(name.bytes().take(LONGEST)))
}

/// How often the kernel has not run a program because it ran on that processor already; 0 where it does not count (before
/// Linux 5.12).
pub(super) fn recursion_misses(program: impl AsFd) -> io::Result<u64> {
    // The word of `struct bpf_prog_info` that has it, and as much as comes before.
    const MISSES: usize =
        std::mem::offset_of!(aya_obj::generated::bpf_prog_info, recursion_misses) / 8;
    let mut info = [0_u64; MISSES + 1];
    ask(program, &mut info)?;
    Ok(info[MISSES])
}

/// The program of this id.
pub(super) fn program(id: u32) -> io::Result<OwnedFd> {
    by_id(BPF_PROG_GET_FD_BY_ID, id)
}

/// Maps that one program can use, by the kernel's own limit.
const MAX_USED: usize = 64;

/// The maps that the program of this id uses, each open.
pub(super) fn maps_used_by(program: u32) -> io::Result<Vec<OwnedFd>> {
    let program = self::program(program)?;
    let mut ids = [0_u32; MAX_USED];
    // `struct bpf_prog_info` up to here; its last words: created_by_uid, nr_map_ids; map_ids
    let mut info = [0_u64; 8];
    info[6] = pair(0, MAX_USED as u32);
    info[7] = ids.as_mut_ptr().addr() as u64;
    ask(program, &mut info)?;
    let [.., a, b, c, d] = info[6].to_ne_bytes();
    let count = u32::from_ne_bytes([a, b, c, d]) as usize;
    let ids = ids.into_iter().take(count);
    ids.map(|id| by_id(BPF_MAP_GET_FD_BY_ID, id)).collect()
}

fn by_id(command: libc::c_int, id: u32) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    attributes.0[0] = pair(id, 0);
    bpf_fd(command, &mut attributes)
}

/// `struct bpf_map_info` up to the map's name: its type, its id, how large what is in it, its flags. Of a link or a program
/// the kernel says something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapInfo([u32; 10]);

impl MapInfo {
    pub(super) fn id(&self) -> u32 {
        let [_, id, ..] = self.0;
        id
    }

    pub(super) fn is_called(&self, name: &str) -> bool {
        let bytes = self.0.iter().skip(6).flat_map(|word| word.to_ne_bytes());
        bytes.take_while(|&byte| byte != 0).eq(name.bytes())
    }
}

/// Asks the kernel about a map.
pub(super) fn map_info(map: impl AsFd) -> io::Result<MapInfo> {
    let mut info = [0_u32; 10];
    ask(map, &mut info)?;
    Ok(MapInfo(info))
}

/// Takes an entry out of a map, in one step for the kernel.
pub(super) fn take<K: aya::Pod, V: aya::Pod>(map: impl AsFd, key: &K) -> io::Result<V> {
    let mut value = MaybeUninit::<V>::uninit();
    let mut attributes = Attributes::default();
    // map_fd; key; value; flags
    attributes.0[0] = pair(raw(map.as_fd()), 0);
    attributes.0[1] = std::ptr::from_ref(key).addr() as u64;
    attributes.0[2] = value.as_mut_ptr().addr() as u64;
    bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attributes)?;
    // SAFETY: needed to let the kernel write the value. It did, whole: the sizes of the pinned maps were compared
    // with those of the ABI (`Pins::check`), and any bytes are a valid `Pod`.
    Ok(unsafe { value.assume_init() })
}

/// Attaches a program to a cgroup; it stays while the link has a descriptor or a pin.
pub(super) fn link_create(
    program: impl AsFd,
    cgroup: impl AsFd,
    attach: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    // prog_fd, target_fd; attach_type, flags
    attributes.0[0] = pair(raw(program.as_fd()), raw(cgroup.as_fd()));
    attributes.0[1] = pair(attach, 0);
    bpf_fd(BPF_LINK_CREATE, &mut attributes)
}

/// Attaches a program to the security hook or the tracepoint that it was loaded for; it stays while the link has a descriptor or
/// a pin.
pub(super) fn typed(program: impl AsFd) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    // no name; prog_fd
    attributes.0[1] = pair(raw(program.as_fd()), 0);
    bpf_fd(BPF_RAW_TRACEPOINT_OPEN, &mut attributes)
}

/// Attaches a program to a tracepoint; it stays while the link has a descriptor or a pin.
pub(super) fn tracepoint(program: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let name = CString::new(name).map_err(io::Error::other)?;
    let mut attributes = Attributes::default();
    // name; prog_fd
    attributes.0[0] = name.as_ptr().addr() as u64;
    attributes.0[1] = pair(raw(program.as_fd()), 0);
    bpf_fd(BPF_RAW_TRACEPOINT_OPEN, &mut attributes)
}

/// What a program writes that goes through a map, or through what it was loaded for: values, each whole.
pub(super) fn list<V: aya::Pod>(
    program: impl AsFd,
    map: Option<BorrowedFd<'_>>,
) -> io::Result<Vec<V>> {
    let of = map.map_or(0, |map| pair(raw(map), 0));
    let mut attributes = Attributes::default();
    // prog_fd, target_fd; attach_type, flags; iter_info; iter_info_len
    attributes.0[0] = pair(raw(program.as_fd()), 0);
    attributes.0[1] = pair(ITERATES, 0);
    if map.is_some() {
        attributes.0[2] = std::ptr::from_ref(&of).addr() as u64;
        attributes.0[3] = pair(4, 0);
    }
    let link = bpf_fd(BPF_LINK_CREATE, &mut attributes)?;
    let mut attributes = Attributes::default();
    // link_fd, flags
    attributes.0[0] = pair(raw(link.as_fd()), 0);
    let mut values = std::fs::File::from(bpf_fd(BPF_ITER_CREATE, &mut attributes)?);
    let mut bytes = Vec::new();
    values.read_to_end(&mut bytes)?;
    let whole = bytes.chunks_exact(size_of::<V>());
    // SAFETY: needed to make values of bytes. There are as many as a value has, and any are a valid `Pod`.
    let value = |bytes: &[u8]| unsafe { bytes.as_ptr().cast::<V>().read_unaligned() };
    Ok(whole.map(value).collect())
}

/// Puts another program in a link's place, in one step for the kernel.
pub(super) fn link_update(link: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attributes = Attributes::default();
    // link_fd, new_prog_fd; flags, old_prog_fd
    attributes.0[0] = pair(raw(link.as_fd()), raw(program.as_fd()));
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Pins an object below a bpffs.
pub(super) fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = Attributes::default();
    // pathname; bpf_fd, file_flags
    attributes.0[0] = path.as_ptr().addr() as u64;
    attributes.0[1] = pair(raw(object.as_fd()), 0);
    bpf(BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Where a pin is made that is about to take another's place. A bpffs takes no name with a dot in it.
pub(super) fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("_next");
    name.into()
}

/// Pins an object in the place of what may be pinned there.
pub(super) fn pin_over(object: impl AsFd, path: &Path) -> io::Result<()> {
    let beside = beside(path);
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    pin(object, &beside)?;
    std::fs::rename(&beside, path)
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attributes = Attributes::default();
    attributes.0[0] = path.as_ptr().addr() as u64;
    bpf_fd(BPF_OBJ_GET, &mut attributes)
}

/// Did a call fail for want of descriptors or memory, whatever it asked about?
#[must_use]
pub fn is_shortage(error: &io::Error) -> bool {
    let codes = [libc::EMFILE, libc::ENFILE, libc::ENOMEM];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Its id.
    pub(super) id: u32,
    /// `enum bpf_link_type`
    pub(super) kind: u32,
    /// Its program's id.
    pub(super) program: u32,
    /// For a cgroup link: the cgroup's id, 0 once that is gone.
    pub(super) cgroup: u64,
    /// For a cgroup link: the attach type.
    pub(super) attach: u32,
}

/// `struct bpf_link_info` up to the cgroup's part.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    cgroup: u64,
    attach: u32,
    tail: [u32; 9],
}

/// `BPF_LINK_TYPE_RAW_TRACEPOINT`
pub(super) const LINK_TRACEPOINT: u32 = 1;
/// `BPF_LINK_TYPE_TRACING`, which a security hook's is too.
pub(super) const LINK_TRACING: u32 = 2;
/// `BPF_LINK_TYPE_CGROUP`
pub(super) const LINK_CGROUP: u32 = 3;

/// Asks the kernel about a link.
pub(super) fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::default();
    let mut attributes = Attributes::default();
    // bpf_fd, info_len; info
    attributes.0[0] = pair(raw(link.as_fd()), size_of::<RawLinkInfo>() as u32);
    attributes.0[1] = std::ptr::from_mut(&mut info).addr() as u64;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(LinkInfo {
        id: info.id,
        kind: info.kind,
        program: info.program,
        cgroup: info.cgroup,
        attach: info.attach,
    })
}

/// Ids of the programs attached to a cgroup itself, of one attach type.
pub(super) fn attached(cgroup: impl AsFd, attach: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MAX_ATTACHED];
    let mut attributes = Attributes::default();
    // target_fd, attach_type; query_flags, attach_flags; prog_ids; prog_cnt
    attributes.0[0] = pair(raw(cgroup.as_fd()), attach);
    attributes.0[2] = ids.as_mut_ptr().addr() as u64;
    attributes.0[3] = pair(MAX_ATTACHED as u32, 0);
    bpf(BPF_PROG_QUERY, &mut attributes)?;
    let count = attributes.0[3].to_ne_bytes();
    let count = u32::from_ne_bytes([count[0], count[1], count[2], count[3]]) as usize;
    Ok(ids.into_iter().take(count).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_known_by_its_whole_name() {
        let mut info = [7; 10];
        let word = |text: &[u8; 4]| u32::from_ne_bytes(*text);
        (info[6], info[7], info[8], info[9]) = (word(b"GOVE"), word(b"RNED"), 0, word(b"rest"));
        let info = MapInfo(info);
        assert!(info.is_called("GOVERNED"));
        assert!(!info.is_called("GOVERNE") && !info.is_called("GOVERNEDS"));
        assert!(!MapInfo([0; 10]).is_called("GOVERNED"));
    }
}
