//! The SYN that opened an accepted connection, as the kernel keeps it for who asks.
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

// Of `<linux/tcp.h>`.
const TCP_SAVE_SYN: libc::c_int = 27;
const TCP_SAVED_SYN: libc::c_int = 28;
/// The longest headers that there are: of IPv6, or of IPv4 with options, and of TCP.
const MOST: usize = 60 + 60;

/// Has the kernel keep the SYN of each connection that `listener` accepts from now on.
pub(super) fn keep(listener: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(4);
    // SAFETY: needed because nobody wraps this option. The kernel reads `size` bytes of `on`, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_SAVE_SYN,
            std::ptr::from_ref(&on).cast(),
            size,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The sequence number of the SYN that opened `accepted`. The kernel tells it once. `None`: it has not kept it, or it was told.
pub(super) fn sequence(accepted: BorrowedFd<'_>) -> Option<u32> {
    let mut headers = [0_u8; MOST];
    let mut size = libc::socklen_t::try_from(MOST).ok()?;
    // SAFETY: needed because nobody wraps this option. The kernel writes at most `size` bytes to `headers`; both outlive the
    // call.
    let done = unsafe {
        libc::getsockopt(
            accepted.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_SAVED_SYN,
            headers.as_mut_ptr().cast(),
            std::ptr::from_mut(&mut size),
        )
    };
    let size = usize::try_from(size).ok()?;
    (done == 0)
        .then(|| headers.get(..size).and_then(sequence_of))
        .flatten()
}

/// The sequence number in an IP packet of TCP (RFC 9293, 3.1) without extension headers.
fn sequence_of(packet: &[u8]) -> Option<u32> {
    let first = packet.first()?;
    let tcp = match first >> 4 {
        4 => usize::from(first & 0x0f) * 4,
        6 => 40,
        _ => return None,
    };
    let bytes = packet.get(tcp + 4..tcp + 8)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    #[test]
    fn the_number_is_behind_either_headers() {
        let tcp = [0, 1, 0, 2, 0xde, 0xad, 0xbe, 0xef];
        let packet = |first: u8, length: usize| {
            let mut packet = vec![first];
            packet.resize(length, 0);
            packet.extend(tcp);
            packet
        };
        for (first, length) in [(0x45, 20), (0x46, 24), (0x60, 40)] {
            let packet = packet(first, length);
            assert_eq!(sequence_of(&packet), Some(0xdead_beef));
            assert_eq!(sequence_of(&packet[..packet.len() - 1]), None);
        }
        assert_eq!(sequence_of(&packet(0x55, 20)), None);
        assert_eq!(sequence_of(&[]), None);
    }

    #[test]
    fn the_kernel_tells_it_once() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            keep(listener.as_fd()).unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert!(sequence(accepted.as_fd()).is_some());
            assert_eq!(sequence(accepted.as_fd()), None);
        }
    }
}
