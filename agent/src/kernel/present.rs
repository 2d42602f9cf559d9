//! Whether a program still holds its end of a connection on this host.
//!
//! A peer that has closed its sending half looks, in what arrives, just like one that has closed all and is gone. On one
//! host the kernel can be asked about the peer's own socket (`sock_diag(7)`): one that no descriptor refers to has no inode.
//! It is asked in the network namespace that both are in.
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{self, SendFlags};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// `NETLINK_SOCK_DIAG` request for one socket.
const BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
/// The socket is named by its addresses, not by a cookie.
const NO_COOKIE: [u8; 8] = [0xff; 8];
const HEADER: usize = 16;
/// Where `idiag_inode` stands in the answer.
const INODE: std::ops::Range<usize> = HEADER + 68..HEADER + 72;

/// A way to ask about the network namespace that it was opened in.
#[derive(Debug)]
pub struct Witness(OwnedFd);

impl Witness {
    /// Of the namespace that the calling thread is in.
    ///
    /// # Errors
    /// No descriptor is left, or this kernel has no `sock_diag`.
    pub fn here() -> io::Result<Self> {
        super::diag::socket().map(Self)
    }

    /// Whether a program holds the socket that is bound to `local` and connected to `remote`. What cannot be said is no.
    pub fn is_held(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        let inode = self.inode(local, remote);
        inode.is_ok_and(|inode| inode.is_some_and(|inode| inode != 0))
    }

    /// The socket's inode; `None` where there is no such socket.
    fn inode(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
        if super::aside::is_diag_held() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let kernel = SocketAddrNetlink::new(0, 0);
        let question = question(local, remote);
        net::sendto(&self.0, &question, SendFlags::empty(), &kernel)?;
        let mut answer = [0; 512];
        // The kernel answers while it is asked.
        let answer = super::diag::receive(&self.0, &mut answer)?;
        if answer.get(4..6) != Some(&BY_FAMILY.to_ne_bytes()[..]) {
            // An error message: most likely that there is none.
            return Ok(None);
        }
        let inode = answer.get(INODE).and_then(|inode| inode.try_into().ok());
        Ok(inode.map(u32::from_ne_bytes))
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    const LENGTH: u32 = 16 + 56;
    let family = match local {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let mut bytes = Vec::with_capacity(72);
    bytes.extend(LENGTH.to_ne_bytes());
    bytes.extend(BY_FAMILY.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend([0; 8]);
    let narrow = |number: libc::c_int| u8::try_from(number).unwrap_or_default();
    bytes.extend([narrow(family), narrow(libc::IPPROTO_TCP), 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    bytes.extend(padded(local.ip()));
    bytes.extend(padded(remote.ip()));
    bytes.extend([0; 4]);
    bytes.extend(NO_COOKIE);
    bytes
}

fn padded(address: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match address {
        IpAddr::V4(v4) => {
            let octets = v4.octets();
            if let Some(place) = bytes.get_mut(..octets.len()) {
                place.copy_from_slice(&octets);
            }
        }
        IpAddr::V6(v6) => bytes = v6.octets(),
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::net::{Shutdown, TcpListener, TcpStream};

    #[test]
    fn a_half_closed_socket_is_held_and_a_closed_one_is_not() {
        for bound in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(bound) else {
                continue;
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, peer) = listener.accept().unwrap();
            let own = server.local_addr().unwrap();
            let witness = Witness::here().unwrap();
            let is_held = |client, own| witness.is_held(client, own);
            assert!(is_held(peer, own), "{bound}");
            client.shutdown(Shutdown::Write).unwrap();
            assert!(is_held(peer, own), "half-closed, {bound}");
            drop(client);
            assert!(!is_held(peer, own), "closed, {bound}");
        }
    }
}
