//! The data plane's listeners, and the sockets that are asked for names: on loopback, one set per worker, one port for all. In
//! the agent's own network namespace, and in each other one that something governed is in.
use crate::kernel::present::Witness;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

/// Connections the kernel holds for a worker that is busy.
const BACKLOG: i32 = 1024;
/// Bytes of queries that the kernel holds for a worker that is busy.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Ports of the kernel's choice that are tried.
const RETRIES: usize = 16;

/// One worker's listeners: `SO_REUSEPORT`, on 127.0.0.1 and, where the host has it, ::1.
#[derive(Debug)]
pub struct Listeners {
    /// 127.0.0.1
    pub v4: TcpListener,
    /// ::1
    pub v6: Option<TcpListener>,
    /// 127.0.0.1, for DNS.
    pub dns4: UdpSocket,
    /// ::1, for DNS.
    pub dns6: Option<UdpSocket>,
    /// Asked about clients there, where the kernel can be.
    pub witness: Option<Witness>,
}

impl Listeners {
    /// All of them, to be admitted.
    pub fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let four = [self.v4.as_fd(), self.dns4.as_fd()];
        let six = self.v6.as_ref().map(AsFd::as_fd);
        four.into_iter()
            .chain(six)
            .chain(self.dns6.as_ref().map(AsFd::as_fd))
    }

    /// The port that all of them listen on.
    ///
    /// # Errors
    /// The socket is gone.
    pub fn port(&self) -> io::Result<u16> {
        Ok(self.v4.local_addr()?.port())
    }
}

/// Binds `workers` sets of listeners to one port (0: the kernel chooses; the same for all).
///
/// # Errors
/// The port is taken or may not be bound; says how to find the holder.
pub fn bind(port: u16, workers: usize) -> io::Result<Vec<Listeners>> {
    // Without SO_REUSEPORT first: with it alone, a second agent of the same user would bind beside this one.
    drop(listener((Ipv4Addr::LOCALHOST, port).into(), false)?);
    drop(datagrams((Ipv4Addr::LOCALHOST, port).into(), false)?);
    let six = (Ipv6Addr::LOCALHOST, port).into();
    drop(where_there_is_ipv6(listener(six, false))?);
    drop(where_there_is_ipv6(datagrams(six, false))?);
    let first = first(port)?;
    let port = first.port()?;
    let mut all = vec![first];
    for _ in 1..workers.max(1) {
        all.push(set(port)?);
    }
    Ok(all)
}

/// The same in another network namespace, where the calling thread is for now: at `port` if it is free there, else
/// wherever the kernel chooses.
///
/// # Errors
/// Nothing can be bound there.
pub fn bind_here(port: u16, workers: usize) -> io::Result<Vec<Listeners>> {
    match bind(port, workers) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => bind(0, workers),
        result => result,
    }
}

/// The first set. A port of the kernel's choice may be free for connections and taken for datagrams: another is tried.
fn first(port: u16) -> io::Result<Listeners> {
    let mut tried = set(port);
    for _ in 0..RETRIES {
        match &tried {
            Err(error) if port == 0 && error.kind() == io::ErrorKind::AddrInUse => tried = set(0),
            _ => break,
        }
    }
    tried
}

fn set(port: u16) -> io::Result<Listeners> {
    let v4 = listener((Ipv4Addr::LOCALHOST, port).into(), true)?;
    let port = v4.local_addr()?.port();
    let dns4 = datagrams((Ipv4Addr::LOCALHOST, port).into(), true)?;
    let v6 = where_there_is_ipv6(listener((Ipv6Addr::LOCALHOST, port).into(), true))?;
    let dns6 = where_there_is_ipv6(datagrams((Ipv6Addr::LOCALHOST, port).into(), true))?;
    Ok(Listeners {
        v4,
        v6,
        dns4,
        dns6,
        witness: Witness::here().ok(),
    })
}

/// A host without IPv6 has no ::1; there, the hooks refuse IPv6.
fn where_there_is_ipv6<T>(bound: io::Result<T>) -> io::Result<Option<T>> {
    match bound {
        Ok(socket) => Ok(Some(socket)),
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn listener(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Where connections of an earlier agent are still about to end. Of datagrams it would let anybody share the port.
    socket.set_reuse_address(true)?;
    bound(&socket, address, shared)?;
    socket
        .listen(BACKLOG)
        .map_err(|e| describe(e, address, "-tlnp"))?;
    Ok(socket.into())
}

fn datagrams(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    bound(&socket, address, shared)?;
    // Beyond the host's usual limit; without the right to that, the usual is as good but in a flood.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
    Ok(socket.into())
}

fn bound(socket: &Socket, address: SocketAddr, shared: bool) -> io::Result<()> {
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    let show = match socket.r#type()? {
        Type::DGRAM => "-ulnp",
        _ => "-tlnp",
    };
    socket
        .bind(&address.into())
        .map_err(|e| describe(e, address, show))
}

fn describe(error: io::Error, address: SocketAddr, show: &str) -> io::Error {
    let what = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => format!(
            "port {} on {} is taken: `ss {show} sport = :{}` shows by whom; stop it or set another `port`",
            address.port(),
            address.ip(),
            address.port()
        ),
        _ => return error,
    };
    io::Error::new(error.kind(), what)
}
