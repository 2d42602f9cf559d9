//! The data plane's listeners: on loopback, one set per worker, one port for all. In the agent's own network namespace,
//! and in each other one that something governed is in.
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

/// Connections the kernel holds for a worker that is busy.
const BACKLOG: i32 = 1024;

/// One worker's listeners: `SO_REUSEPORT`, on 127.0.0.1 and, where the host has it, ::1.
#[derive(Debug)]
pub struct Listeners {
    /// 127.0.0.1
    pub v4: TcpListener,
    /// ::1
    pub v6: Option<TcpListener>,
}

impl Listeners {
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
    let first = pair(port)?;
    let port = first.port()?;
    let mut all = vec![first];
    for _ in 1..workers.max(1) {
        all.push(pair(port)?);
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

fn pair(port: u16) -> io::Result<Listeners> {
    let v4 = listener((Ipv4Addr::LOCALHOST, port).into(), true)?;
    let port = v4.local_addr()?.port();
    let v6 = match listener((Ipv6Addr::LOCALHOST, port).into(), true) {
        Ok(v6) => Some(v6),
        // A host without IPv6 has no ::1; there, the hooks refuse IPv6.
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)
            ) =>
        {
            None
        }
        Err(e) => return Err(e),
    };
    Ok(Listeners { v4, v6 })
}

fn listener(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket
        .bind(&address.into())
        .map_err(|e| describe(e, address))?;
    socket.listen(BACKLOG).map_err(|e| describe(e, address))?;
    Ok(socket.into())
}

fn describe(error: io::Error, address: SocketAddr) -> io::Error {
    let what = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => format!(
            "port {} on {} is taken: `ss -tlnp sport = :{}` shows by whom; stop it or set another `port`",
            address.port(),
            address.ip(),
            address.port()
        ),
        _ => return error,
    };
    io::Error::new(error.kind(), what)
}
