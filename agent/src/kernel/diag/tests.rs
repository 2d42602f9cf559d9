#![allow(clippy::unwrap_used)]
use super::*;
use std::io::{ErrorKind, Read};

#[test]
fn a_connection_is_found_and_ended() {
    for bound in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(bound).unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        let diag = Diag::open().unwrap();
        let local = stream.local_addr().unwrap();
        let peer = listener.local_addr().unwrap();
        // Others on this host may have the same port, to somebody else.
        let is_it = |s: &Socket| (s.local(), s.peer()) == (local, peer);
        let found = diag.list(Protocol::Tcp, is_it).unwrap();
        let [one] = &found[..] else {
            panic!("{found:?}")
        };
        assert!(one.inode != 0 && one.cookie() != 0 && !one.listens());
        diag.destroy_own(one).unwrap();
        let ended = stream.read(&mut [0]).unwrap_err().kind();
        assert_eq!(ended, ErrorKind::ConnectionAborted);
        let told = accepted.read(&mut [0]).unwrap_err().kind();
        assert_eq!(told, ErrorKind::ConnectionReset);
        let again = diag.destroy_own(one);
        assert_eq!(again.unwrap_err().kind(), ErrorKind::NotFound);
    }
    can_destroy().unwrap();
}

/// A thread may ask, and not end, without the capability; it alone has lost it.
#[test]
fn the_probe_says_no_where_destroying_is_refused() {
    can_destroy().unwrap();
    let probed = || {
        caps::drop(
            None,
            caps::CapSet::Effective,
            caps::Capability::CAP_NET_ADMIN,
        )
        .unwrap();
        ["127.0.0.1:0", "[::1]:0"]
            .map(|at| can_destroy_at(&TcpListener::bind(at).unwrap()))
            .map(|told| told.unwrap_err().kind())
    };
    let told = std::thread::spawn(probed).join().unwrap();
    assert_eq!(told, [ErrorKind::PermissionDenied; 2]);
    can_destroy().unwrap();
}

/// Who may send to it: whoever has CAP_NET_ADMIN where the network namespace is his.
#[test]
fn nobody_but_the_kernel_answers() {
    let stranger = || {
        let kind = Some(net::netlink::SOCK_DIAG);
        net::socket(AddressFamily::NETLINK, SocketType::DGRAM, kind).unwrap()
    };
    let named =
        |socket: &OwnedFd| SocketAddrNetlink::try_from(net::getsockname(socket).unwrap()).unwrap();
    // One that says that an error ended the question, one that nothing is left.
    let forged = |kind: u16, code: i32, number: u32| {
        let mut message = 20_u32.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 2]);
        message.extend(number.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(code.to_ne_bytes());
        message
    };
    let diag = Diag::open().unwrap();
    let number = NEXT.load(Ordering::Relaxed);
    for message in [forged(ERROR, -libc::EIO, number), forged(DONE, 0, number)] {
        let to = named(&diag.socket);
        let sent = net::sendto(stranger(), &message, SendFlags::empty(), &to);
        assert_eq!(sent, Err(Errno::CONNREFUSED));
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = listener.local_addr().unwrap();
    // What came before it was connected.
    let open = stranger();
    net::bind(&open, &KERNEL).unwrap();
    let next = NEXT.load(Ordering::Relaxed);
    for number in next..next + 64 {
        for message in [forged(ERROR, -libc::EIO, number), forged(DONE, 0, number)] {
            let to = named(&open);
            net::sendto(stranger(), &message, SendFlags::empty(), &to).unwrap();
        }
    }
    net::connect(&open, &KERNEL).unwrap();
    let found = Diag::with(open, None).list(Protocol::Tcp, |s| s.local() == local);
    assert_eq!(found.unwrap().len(), 1);
}

#[test]
fn what_was_left_of_another_question_is_no_answer() {
    let diag = Diag::open().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = listener.local_addr().unwrap();
    // The kernel says of this one that it has no such socket.
    let none = question(2, Protocol::Tcp, 0, &[1; ID]);
    diag.ask(DESTROY, ONE, &none).unwrap();
    let found = diag.list(Protocol::Tcp, |s| s.local() == local);
    assert_eq!(found.unwrap().len(), 1);
}

#[test]
fn it_tells_the_namespace_that_it_was_opened_in() {
    let here = UdpSocket::bind("127.0.0.1:0").unwrap();
    let expected = crate::kernel::namespaces::cookie(here.as_fd()).unwrap();
    let own = crate::kernel::namespaces::cookie(Diag::open().unwrap().as_fd()).unwrap();
    assert!(own != 0 && own == expected, "{own} {expected}");
}

#[test]
fn what_is_no_answer_is_no_socket() {
    assert!(Socket::read(Protocol::Tcp, &[]).is_none());
    assert!(Socket::read(Protocol::Tcp, &[2; 71]).is_none());
    // An attribute that says it is longer than the message, and one that says it has no length.
    for odd in [[0xff, 0xff, 21, 0], [0, 0, 21, 0]] {
        let mut body = vec![1; ATTRIBUTES];
        body.extend(odd);
        assert!(Socket::read(Protocol::Tcp, &body).is_none_or(|s| s.cgroup == 0));
    }
}
