//! The SYN that opened an accepted connection, as the kernel keeps it for who asks.
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use tollgate_common::flow::{SYN_CLOCK, SYN_SEQUENCE, Syn};

// Of `<linux/tcp.h>`.
const TCP_SAVE_SYN: libc::c_int = 27;
const TCP_SAVED_SYN: libc::c_int = 28;
/// The longest headers that there are: of IPv6, or of IPv4 with options, and of TCP.
const MOST: usize = 60 + 60;

/// Has the kernel keep the SYN of each connection that `listener` accepts from now on, and take no data with it (fast open,
/// which a setting of the host gives to every listener): the answer then comes from a socket that stands for no listener.
pub(super) fn keep(listener: BorrowedFd<'_>) -> io::Result<()> {
    set(listener, libc::TCP_FASTOPEN, 0)?;
    set(listener, TCP_SAVE_SYN, 1)
}

fn set(listener: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(4);
    // SAFETY: needed because nobody wraps these options. The kernel reads `size` bytes of `value`, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            std::ptr::from_ref(&value).cast(),
            size,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the SYN said that opened `accepted`. The kernel tells it once. `None`: it has not kept it, or it was told.
pub(super) fn of(accepted: BorrowedFd<'_>) -> Option<Syn> {
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
    let size = usize::try_from(size).ok().filter(|_| done == 0)?;
    read(headers.get(..size)?)
}

/// What a SYN says: an IP packet of TCP (RFC 9293, 3.1) without extension headers. What would be behind its end is zero.
fn read(packet: &[u8]) -> Option<Syn> {
    let first = packet.first()?;
    let tcp = match first >> 4 {
        4 => usize::from(first & 0x0f) * 4,
        6 => 40,
        _ => return None,
    };
    let at = |place: usize| packet.get(tcp + place..)?.first_chunk::<4>().copied();
    Some(Syn {
        sequence: at(SYN_SEQUENCE)?,
        clock: at(SYN_CLOCK).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    #[test]
    fn what_it_says_is_behind_either_headers() {
        let tcp: Vec<u8> = (0..40).collect();
        let packet = |first: u8, length: usize, tcp: &[u8]| {
            let mut packet = vec![first];
            packet.resize(length, 0xff);
            packet.extend(tcp);
            read(&packet)
        };
        for (first, length) in [(0x45, 20), (0x46, 24), (0x60, 40)] {
            let said = Syn {
                sequence: [4, 5, 6, 7],
                clock: [28, 29, 30, 31],
            };
            assert_eq!(packet(first, length, &tcp), Some(said));
            let short = Syn {
                clock: [0; 4],
                ..said
            };
            assert_eq!(packet(first, length, &tcp[..31]), Some(short));
            assert_eq!(packet(first, length, &tcp[..7]), None);
        }
        assert_eq!(packet(0x55, 20, &tcp), None);
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn the_kernel_tells_it_once() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            keep(listener.as_fd()).unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let said = of(accepted.as_fd()).unwrap();
            assert!(said.sequence != [0; 4] && said.clock != [0; 4]);
            assert_eq!(of(accepted.as_fd()), None);
        }
    }
}
