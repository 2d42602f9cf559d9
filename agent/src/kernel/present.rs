//! Whether a program still holds its end of a connection on this host.
//!
//! A peer that has closed its sending half looks, in what arrives, just like one that has closed all and is gone. On one
//! host the kernel can be asked about the peer's own socket (`sock_diag(7)`): one that no descriptor refers to has no inode.
//! It is asked in the network namespace that both are in.
use super::diag::{self, Diag};
use rustix::io::fcntl_dupfd_cloexec;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

/// The socket is named by its addresses, not by a cookie.
const NO_COOKIE: [u8; 8] = [0xff; 8];
/// Questions that wait for their answers where that may take long.
const WAITING: usize = 1024;

/// A way to ask about the network namespace that it was opened in.
#[derive(Debug)]
pub struct Witness(Diag);

/// A question that may have to wait for others', and its answer.
#[derive(Debug)]
struct Question {
    socket: OwnedFd,
    body: Vec<u8>,
    answer: Arc<AtomicU8>,
}

/// Nobody has asked, or there is no answer yet.
const UNASKED: u8 = 0;
const ASKED: u8 = 1;
const HELD: u8 = 2;
const GONE: u8 = 3;

impl Witness {
    /// Of the namespace that the calling thread is in.
    ///
    /// # Errors
    /// No descriptor is left, or this kernel has no `sock_diag`.
    pub fn here() -> io::Result<Self> {
        Diag::open().map(Self)
    }

    /// Tells, each time that it is called, whether a program holds the socket that is bound to `local` and connected to `remote`. What
    /// cannot be said is no. It does not wait: before Linux 6.9 the kernel may have it do so, and it is yes until there is an answer.
    pub fn asks(
        witness: std::rc::Rc<Option<Self>>,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Box<dyn Fn() -> bool> {
        if diag::is_held_up_by_one() {
            let answer = Arc::new(AtomicU8::new(UNASKED));
            return Box::new(move || {
                let witness = witness.as_ref().as_ref();
                witness.is_some_and(|witness| witness.is_held_as_known(local, remote, &answer))
            });
        }
        Box::new(move || {
            let witness = witness.as_ref().as_ref();
            witness.is_some_and(|witness| is_held(&witness.0, &question(local, remote)))
        })
    }

    fn is_held_as_known(
        &self,
        local: SocketAddr,
        remote: SocketAddr,
        answer: &Arc<AtomicU8>,
    ) -> bool {
        match answer.load(Ordering::Acquire) {
            GONE => return false,
            ASKED => return true,
            _ => {}
        }
        let Ok(socket) = fcntl_dupfd_cloexec(self.0.as_fd(), 0) else {
            return true; // Who asks again may find one.
        };
        answer.store(ASKED, Ordering::Release);
        let asked = Question {
            socket,
            body: question(local, remote),
            answer: Arc::clone(answer),
        };
        let is_taken = asking().is_some_and(|asking| asking.try_send(asked).is_ok());
        if !is_taken {
            answer.store(UNASKED, Ordering::Release);
        }
        true
    }
}

/// A thread that asks, one question after the other.
fn asking() -> Option<&'static SyncSender<Question>> {
    static ASKING: OnceLock<Option<SyncSender<Question>>> = OnceLock::new();
    let started = ASKING.get_or_init(|| {
        let (give, given): (_, Receiver<Question>) = sync_channel(WAITING);
        let answers = move || {
            let mut aside = None;
            for one in given {
                let diag = Diag::with(one.socket, aside.take());
                let is_held = is_held(&diag, &one.body);
                aside = diag.into_aside();
                let answer = if is_held { HELD } else { GONE };
                one.answer.store(answer, Ordering::Release);
            }
        };
        let thread = std::thread::Builder::new().name("witness".to_owned());
        thread.spawn(answers).is_ok().then_some(give)
    });
    started.as_ref()
}

fn is_held(diag: &Diag, question: &[u8]) -> bool {
    match diag.one(question) {
        Ok(found) => found.is_some_and(|socket| socket.inode != 0),
        // Nobody is answered: it is asked again.
        Err(error) => error.kind() == io::ErrorKind::TimedOut,
    }
}

/// `struct inet_diag_req_v2`.
fn question(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = match local {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let mut bytes = Vec::with_capacity(56);
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
            let witness = std::rc::Rc::new(Witness::here().ok());
            let is_held = Witness::asks(witness, peer, own);
            assert!(is_held(), "{bound}");
            client.shutdown(Shutdown::Write).unwrap();
            assert!(is_held(), "half-closed, {bound}");
            drop(client);
            assert!(!is_held(), "closed, {bound}");
        }
    }
}
