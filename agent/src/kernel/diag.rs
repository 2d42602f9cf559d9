//! What the kernel knows of a network namespace's sockets (`sock_diag(7)`): lists them, and ends one.
use super::aside::{self, Aside, Left};
use super::{bounded, probe};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

/// `SOCK_DIAG_BY_FAMILY`
const BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY`
const DESTROY: u16 = 21;
/// `NLMSG_ERROR`, which is also how success is told.
const ERROR: u16 = 2;
/// `NLMSG_DONE`
const DONE: u16 = 3;
/// `NLM_F_REQUEST`, with `NLM_F_ACK` or `NLM_F_DUMP`.
const REQUEST: u16 = 1;
const ONE: u16 = 1 | 4;
const ALL: u16 = 1 | 0x300;
const HEADER: usize = 16;
/// `struct inet_diag_sockid`
const ID: usize = 48;
/// Where attributes begin behind `struct inet_diag_msg`.
const ATTRIBUTES: usize = 72;
/// `INET_DIAG_CGROUP_ID`
const CGROUP: u16 = 21;
/// The kernel's messages are half of this at most.
const ROOM: usize = 64 << 10;
/// Of an answer about one socket.
const ROOM_OF_ONE: usize = 1 << 10;

/// Times that the kernel is asked for the same, at most.
const READS: usize = 4;

/// The number of the next question. An answer has its question's.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// States that a socket can be in, as bits.
pub(super) const CONNECTED: u32 =
    1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | LISTENING | 1 << 11;
/// `TCP_LISTEN`
pub(super) const LISTENING: u32 = 1 << 10;
/// `TCP_ESTABLISHED`: of UDP those with a peer.
const DATAGRAMS: u32 = 1 << 1;

/// TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub(super) const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    pub(super) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A socket as the kernel tells of it.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    pub(super) protocol: Protocol,
    family: u8,
    /// By which the kernel finds it again; no other socket is ever like it.
    id: [u8; ID],
    /// One bit.
    state: u32,
    /// 0: no descriptor refers to it.
    pub(super) inode: u32,
    /// The user who made it; of one without an inode nobody is meant.
    user: u32,
    /// In which it was made; 0: the kernel does not say.
    pub(super) cgroup: u64,
}

impl Socket {
    /// `AF_INET` or `AF_INET6`.
    pub(super) fn family(&self) -> u8 {
        self.family
    }

    /// Whose it is, if anybody has it.
    pub(super) fn user(&self) -> Option<u32> {
        (self.inode != 0).then_some(self.user)
    }

    pub(super) fn listens(&self) -> bool {
        self.state == LISTENING
    }

    pub(super) fn cookie(&self) -> u64 {
        u64::from(self.word(40)) | u64::from(self.word(44)) << 32
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.address(4, 0)
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.address(20, 2)
    }

    fn address(&self, ip: usize, port: usize) -> SocketAddr {
        let bytes: [u8; 16] = part(&self.id, ip).unwrap_or_default();
        let ip = match i32::from(self.family) {
            libc::AF_INET => {
                let four: [u8; 4] = part(&bytes, 0).unwrap_or_default();
                IpAddr::from(four)
            }
            _ => Ipv6Addr::from(bytes).to_canonical(),
        };
        SocketAddr::new(
            ip,
            u16::from_be_bytes(part(&self.id, port).unwrap_or_default()),
        )
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes(part(&self.id, at).unwrap_or_default())
    }

    /// From a message's body; `None` where it is none.
    fn read(protocol: Protocol, body: &[u8]) -> Option<Self> {
        let (&family, &state) = (body.first()?, body.get(1)?);
        let mut found = Self {
            protocol,
            family,
            id: part(body, 4)?,
            state: 1_u32.checked_shl(state.into())?,
            inode: u32::from_ne_bytes(part(body, 68)?),
            user: u32::from_ne_bytes(part(body, 64)?),
            cgroup: 0,
        };
        let mut rest = body.get(ATTRIBUTES..).unwrap_or_default();
        while let Some(length) = part(rest, 0).map(u16::from_ne_bytes) {
            let length = usize::from(length).max(4);
            if part(rest, 2).map(u16::from_ne_bytes) == Some(CGROUP) {
                found.cgroup = u64::from_ne_bytes(part(rest, 4)?);
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Some(found)
    }
}

/// Whom all questions are put to.
const KERNEL: SocketAddrNetlink = SocketAddrNetlink::new(0, 0);

/// A socket that asks the kernel about sockets, those of the network namespace that it was made in, and does not wait.
///
/// Root of a user namespace that the network namespace belongs to may send to any netlink socket in it. One that is connected to the
/// kernel takes nothing from others.
fn socket() -> io::Result<OwnedFd> {
    let socket = net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(net::netlink::SOCK_DIAG),
    )?;
    net::connect(&socket, &KERNEL)?;
    Ok(socket)
}

/// A message of the kernel's: what somebody else sent before the socket was connected is passed over.
fn receive<'a>(socket: &OwnedFd, room: &'a mut [u8]) -> io::Result<&'a [u8]> {
    loop {
        let (length, _, sender) = net::recvfrom(socket, &mut *room, RecvFlags::DONTWAIT)?;
        let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
        if sender.is_some_and(|sender| sender.pid() == KERNEL.pid()) {
            return Ok(room.get(..length).unwrap_or_default());
        }
    }
}

/// From here on who waits for a socket keeps nobody else's question waiting.
const ONE_BY_ONE: (u32, u32) = (6, 9);

/// Before it, whoever ends one that somebody is in a call on holds up all questions about sockets (`sock_diag_mutex`), be he root of his own
/// user namespace: they are asked by a process of their own.
pub(super) fn is_held_up_by_one() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    *IS.get_or_init(|| probe::release().is_none_or(|release| release < ONE_BY_ONE))
}

/// A way to ask about the sockets of the network namespace that it was opened in.
#[derive(Debug)]
pub(super) struct Diag {
    socket: OwnedFd,
    aside: RefCell<Option<Aside>>,
}

impl AsFd for Diag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Diag {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self::with(socket()?, None))
    }

    pub(super) fn with(socket: OwnedFd, aside: Option<Aside>) -> Self {
        Self {
            socket,
            aside: RefCell::new(aside),
        }
    }

    pub(super) fn into_aside(self) -> Option<Aside> {
        self.aside.into_inner()
    }

    /// Every socket of a protocol that `take` holds for: connected ones, and those that listen. The kernel goes on, page by page, by how
    /// many of a bucket it has told of: where some of those have gone meanwhile it passes over others, so it is asked until it tells of
    /// no more.
    pub(super) fn list(
        &self,
        protocol: Protocol,
        take: impl Fn(&Socket) -> bool,
    ) -> io::Result<Vec<Socket>> {
        let mut found = HashMap::new();
        for read in 0..READS {
            let before = found.len();
            let all = self.list_once(protocol, &take)?.into_iter();
            found.extend(all.map(|socket| (socket.cookie(), socket)));
            if read > 0 && found.len() == before {
                break;
            }
        }
        Ok(found.into_values().collect())
    }

    fn list_once(
        &self,
        protocol: Protocol,
        take: &impl Fn(&Socket) -> bool,
    ) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).unwrap_or_default();
            let states = match protocol {
                Protocol::Tcp => CONNECTED,
                Protocol::Udp => DATAGRAMS,
            };
            let question = question(family, protocol, states, &[0; ID]);
            self.dump(&question, |body| {
                found.extend(Socket::read(protocol, body).filter(take));
            })?;
        }
        Ok(found)
    }

    /// What the kernel says of each socket that is asked for.
    pub(super) fn dump(&self, question: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let number = self.ask(BY_FAMILY, ALL, question)?;
        let mut room = vec![0; ROOM];
        loop {
            let page = match is_held_up_by_one() {
                true => self.page(&mut room)?,
                false => receive(&self.socket, &mut room)?,
            };
            let each = |kind, body: &_| {
                if kind == BY_FAMILY {
                    each(body);
                }
                kind == DONE
            };
            if is_last(page, number, each)? {
                return Ok(());
            }
        }
    }

    /// A page that is read aside, like the question was asked: the kernel goes on with a list as it is read.
    fn page<'r>(&self, room: &'r mut [u8]) -> io::Result<&'r [u8]> {
        let aside = self.aside.take().ok_or_else(aside::held)?;
        let Ok(bytes) = aside.page(room) else {
            aside.leave(Left {
                holds_diag: true,
                ..Left::default()
            });
            return Err(aside::held());
        };
        self.aside.replace(Some(aside));
        Ok(room.get(..bytes).unwrap_or_default())
    }

    /// Ends a connection at once; its process and its peer are told. An error of the kind `NotFound`: it was over already; `TimedOut`:
    /// somebody is in a call on it. `left`: for whose sake that is waited for.
    pub(super) fn destroy(&self, socket: &Socket, left: Left) -> io::Result<()> {
        let question = question(socket.family, socket.protocol, 0, &socket.id);
        let (number, message) = message(DESTROY, ONE, &question)?;
        let left = Left {
            holds_diag: is_held_up_by_one(),
            ..left
        };
        code(self.aside(&message, Some(self.as_fd()), left)?)?;
        self.answers(number, |kind, _| kind == ERROR)
    }

    /// What the kernel says of the TCP socket with these ends, if there is one.
    pub(super) fn one(&self, question: &[u8]) -> io::Result<Option<Socket>> {
        let mut found = None;
        let number = self.ask(BY_FAMILY, REQUEST, question)?;
        let answered = self.answers(number, |_, body| {
            found = Socket::read(Protocol::Tcp, body);
            true
        });
        match answered {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            answered => answered.map(|()| found),
        }
    }

    /// The same of one that nobody else has.
    fn destroy_own(&self, socket: &Socket) -> io::Result<()> {
        let question = question(socket.family, socket.protocol, 0, &socket.id);
        let number = self.ask(DESTROY, ONE, &question)?;
        self.answers(number, |kind, _| kind == ERROR)
    }

    /// The number of the question.
    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<u32> {
        let (number, message) = message(kind, flags, body)?;
        if is_held_up_by_one() {
            let left = Left {
                holds_diag: true,
                ..Left::default()
            };
            code(self.aside(&message, Some(self.as_fd()), left)?)?;
        } else {
            pass_on(&self.socket, &message)?;
        }
        Ok(number)
    }

    /// Has something done aside: the code of that. An error: nothing is known of it.
    pub(super) fn aside(
        &self,
        request: &[u8],
        with: Option<BorrowedFd<'_>>,
        left: Left,
    ) -> io::Result<i32> {
        if aside::is_diag_held() {
            return Err(aside::held());
        }
        let aside = self.aside.take().map_or_else(Aside::start, Ok);
        // However it failed, it is nothing that the kernel says.
        let aside =
            aside.map_err(|error| io::Error::new(io::ErrorKind::TimedOut, error.to_string()))?;
        let begun = Instant::now();
        let Ok((code, _)) = aside.ask(request, with) else {
            aside.leave(left);
            if left.socket.is_some() {
                bounded::was_silent(left.user, begun.elapsed());
            }
            return Err(aside::held());
        };
        if code == Errno::NOTSOCK.raw_os_error() {
            aside.leave(left); // It closes what it got, and may for ever.
        } else {
            self.aside.replace(Some(aside));
        }
        Ok(code)
    }

    /// Reads what is said of one socket, until `last` says so, or an error. The kernel answers while it is asked: nothing is waited for.
    fn answers(&self, number: u32, mut last: impl FnMut(u16, &[u8]) -> bool) -> io::Result<()> {
        let mut room = [0; ROOM_OF_ONE];
        while !is_last(receive(&self.socket, &mut room)?, number, &mut last)? {}
        Ok(())
    }
}

/// Goes through a page's messages until `last` says so of one; whether it did. An error is the kernel's.
fn is_last(page: &[u8], number: u32, mut last: impl FnMut(u16, &[u8]) -> bool) -> io::Result<bool> {
    let mut rest = page;
    while let Some(length) = part(rest, 0).map(u32::from_ne_bytes) {
        let length = usize::try_from(length).unwrap_or(0).max(HEADER);
        let (of, kind) = (part(rest, 8).map(u32::from_ne_bytes), part(rest, 4));
        let (kind, body) = (
            kind.map_or(ERROR, u16::from_ne_bytes),
            rest.get(HEADER..length),
        );
        let body = body.unwrap_or_default();
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if of != Some(number) {
            continue; // Of an earlier question, which nobody waits for any more.
        }
        if matches!(kind, ERROR | DONE) {
            let code = part(body, 0).map_or(0, i32::from_ne_bytes);
            if code != 0 {
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
        }
        if last(kind, body) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads what the kernel says to a question that it has been asked, where that is a list, for another process.
pub(super) fn read_for(
    socket: &OwnedFd,
    question: &[u8],
    mut each: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let flags = part(question, 6).map_or(0, u16::from_ne_bytes);
    let number = part(question, 8).map_or(0, u32::from_ne_bytes);
    if flags != ALL {
        return Ok(());
    }
    let mut room = vec![0; ROOM];
    loop {
        let page = receive(socket, &mut room)?;
        each(page)?;
        // An error is the other's to read.
        if is_last(page, number, |kind, _| kind == DONE).unwrap_or(true) {
            return Ok(());
        }
    }
}

/// `struct nlmsghdr` and what it is of, with its number.
fn message(kind: u16, flags: u16, body: &[u8]) -> io::Result<(u32, Vec<u8>)> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(number.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(body);
    Ok((number, message))
}

/// Has the kernel answer a message of another process's: that one has the socket too.
pub(super) fn pass_on(socket: &OwnedFd, message: &[u8]) -> io::Result<()> {
    net::sendto(socket, message, SendFlags::empty(), &KERNEL)?;
    Ok(())
}

fn code(code: i32) -> io::Result<()> {
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// `struct inet_diag_req_v2`
fn question(family: u8, protocol: Protocol, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut body = vec![family, protocol.number(), 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

pub(super) fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Whether this kernel ends connections when it is told to: tried on this process's own, of either family that the host has.
pub(super) fn can_destroy() -> io::Result<()> {
    let mut has_any = false;
    for at in ["127.0.0.1:0", "[::1]:0"] {
        match TcpListener::bind(at) {
            Ok(listener) => can_destroy_at(&listener)?,
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(error),
        }
        has_any = true;
    }
    has_any.then_some(()).ok_or(io::ErrorKind::NotFound.into())
}

/// Has this host no such family?
fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)
    )
}

fn can_destroy_at(listener: &TcpListener) -> io::Result<()> {
    let at = listener.local_addr()?;
    let stream = TcpStream::connect(at)?;
    ends(Protocol::Tcp, stream.local_addr()?)?;
    let datagrams = UdpSocket::bind((at.ip(), 0))?;
    datagrams.connect(at)?;
    ends(Protocol::Udp, datagrams.local_addr()?)
}

fn ends(protocol: Protocol, local: SocketAddr) -> io::Result<()> {
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", protocol.name()));
    let diag = Diag::open()?;
    let own = |socket: &Socket| socket.local() == local && !socket.listens();
    let found = diag.list(protocol, own).map_err(named)?;
    let one = found.first().ok_or(io::ErrorKind::NotFound)?;
    diag.destroy_own(one).map_err(named)?;
    match diag.list(protocol, |socket| socket.cookie() == one.cookie())?[..] {
        [] => Ok(()),
        _ => Err(named(io::Error::other("it is still there"))),
    }
}

#[cfg(test)]
mod tests;
