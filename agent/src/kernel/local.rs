//! Unix sockets that somebody can speak to by a path, as the kernel lists them for a network namespace (`unix_diag`).
use super::diag::{Diag, part};
use std::io;

/// `UDIAG_SHOW_NAME`, `UDIAG_SHOW_VFS` and `UDIAG_SHOW_UID`
const SHOWN: u32 = 1 | 2 | 0x40;
/// Where attributes begin behind `struct unix_diag_msg`.
const ATTRIBUTES: usize = 16;
/// `UNIX_DIAG_NAME`
const NAME: u16 = 0;
/// `UNIX_DIAG_VFS`
const VFS: u16 = 1;
/// `UNIX_DIAG_UID`
const UID: u16 = 7;
/// `TCP_LISTEN`, which Unix sockets have too.
const LISTENS: u8 = 10;

/// A file, by its filesystem's device and the lower half of its inode's number, which is what the kernel tells of a socket's.
pub type File = (u32, u32);

/// A socket that takes connections or datagrams, and has a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Local {
    /// As it was given to `bind`: what is relative was so to a directory that nobody knows any more.
    pub name: Vec<u8>,
    /// What it lies in, whatever that is called by now.
    pub file: Option<File>,
    /// Who made it; files may say otherwise, on a filesystem that somebody serves himself.
    pub owner: Option<u32>,
}

/// All those of the network namespace that the calling thread is in.
///
/// The kernel goes through them page by page, and finds its place again by counting: where others have ended since, as many are passed over.
/// Who needs all of them asks again.
///
/// # Errors
/// `NotFound` where the kernel has no `unix_diag`.
pub fn listening() -> io::Result<Vec<Local>> {
    let family = u8::try_from(libc::AF_UNIX).unwrap_or_default();
    // `struct unix_diag_req`: family, protocol, padding; states; inode; what to show; cookie
    let mut question = vec![family, 0, 0, 0];
    for word in [u32::MAX, 0, SHOWN, 0, 0] {
        question.extend(word.to_ne_bytes());
    }
    let mut found = Vec::new();
    Diag::open()?.dump(&question, |body| found.extend(read(body)))?;
    Ok(found)
}

/// From a message's body; `None` where it is none, or one of a socket that no path leads to.
fn read(body: &[u8]) -> Option<Local> {
    // `struct unix_diag_msg`: family, type, state, …
    let (kind, state) = (*body.get(1)?, *body.get(2)?);
    if state != LISTENS && i32::from(kind) != libc::SOCK_DGRAM {
        return None;
    }
    let (mut name, mut file, mut owner) = (Vec::new(), None, None);
    let mut rest = body.get(ATTRIBUTES..).unwrap_or_default();
    while let Some(length) = part(rest, 0).map(u16::from_ne_bytes) {
        let length = usize::from(length).max(4);
        let value = rest.get(4..length).unwrap_or_default();
        match part(rest, 2).map(u16::from_ne_bytes) {
            Some(NAME) => name = value.strip_suffix(&[0]).unwrap_or(value).to_vec(),
            Some(VFS) => file = word(value, 4).zip(word(value, 0)),
            Some(UID) => owner = word(value, 0),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    file.is_some().then_some(Local { name, file, owner })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    part(bytes, at).map(u32::from_ne_bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

    #[test]
    fn those_with_a_path_are_listed_with_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let listener = UnixListener::bind(at("a listener\n")).unwrap();
        let _datagrams = UnixDatagram::bind(at("datagrams")).unwrap();
        let client = UnixStream::connect(at("a listener\n")).unwrap();
        let _accepted = listener.accept().unwrap();
        let abstracted =
            SocketAddr::from_abstract_name(at("abstract").as_os_str().as_bytes()).unwrap();
        let _abstract = UnixListener::bind_addr(&abstracted).unwrap();
        std::fs::rename(at("a listener\n"), at("moved")).unwrap();
        drop(client);
        let mut own = listening().unwrap();
        own.retain(|socket| {
            socket
                .name
                .starts_with(folder.path().as_os_str().as_bytes())
        });
        own.sort();
        let expected = ["a listener\n", "datagrams"].map(|name| {
            let file = std::fs::metadata(at(name)).or_else(|_| std::fs::metadata(at("moved")));
            let file = file.unwrap();
            let device = file.dev();
            let device = rustix::fs::major(device) << 20 | rustix::fs::minor(device);
            Local {
                name: at(name).as_os_str().as_bytes().to_vec(),
                file: Some((device, u32::try_from(file.ino() & 0xffff_ffff).unwrap())),
                owner: Some(rustix::process::getuid().as_raw()),
            }
        });
        assert_eq!(own, expected);
    }

    #[test]
    fn what_is_no_answer_is_no_socket() {
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[1, 1, LISTENS, 0]), None);
        // Attributes that say they are longer than the message, that have no length, and that are too short.
        for odd in [&[0xff, 0xff, 1, 0][..], &[0, 0, 1, 0], &[6, 0, 1, 0, 9, 9]] {
            let mut body = vec![1, 1, LISTENS, 0];
            body.resize(ATTRIBUTES, 0);
            body.extend(odd);
            assert_eq!(read(&body), None);
        }
    }
}
