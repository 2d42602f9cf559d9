//! Queries over UDP: each is taken together with the hook's record of who asked, before the next is read.
use super::message::{Over, QUERY};
use super::{Begun, Responder};
use crate::kernel::{Namespace, since_boot};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::UdpSocket;

/// Queries answered before other tasks get a turn.
const BATCH: usize = 64;
/// How often it is shown that nothing waits, where nothing comes.
const TICK: Duration = Duration::from_secs(1);

/// Answers what comes to `socket`, for ever. `read_up_to` is when nothing was waiting last, in nanoseconds since boot.
pub(crate) async fn serve(
    responder: Rc<Responder>,
    socket: std::net::UdpSocket,
    read_up_to: Arc<AtomicU64>,
) -> io::Result<()> {
    let namespace = Namespace::of(&socket)?;
    let socket = Rc::new(UdpSocket::from_std(socket)?);
    // One byte more than a query may have: what fills it was cut.
    let mut buffer = [0; QUERY + 1];
    loop {
        // A socket that is broken is not readable either: it is asked again, and shows nothing.
        let _ = tokio::time::timeout(TICK, socket.readable()).await;
        for _ in 0..BATCH {
            let before = since_boot();
            match socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => {
                    let message = buffer.get(..length).unwrap_or_default();
                    take(&responder, &socket, namespace, message, from);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    read_up_to.store(before, Ordering::Relaxed);
                    break;
                }
                // Of an answer that could not be delivered: its client has left.
                Err(_) => {}
            }
        }
        tokio::task::yield_now().await;
    }
}

/// What no hook has entered is nobody's, and what was cut no query: neither is answered.
fn take(
    responder: &Rc<Responder>,
    socket: &Rc<UdpSocket>,
    namespace: Namespace,
    message: &[u8],
    from: std::net::SocketAddr,
) {
    let Some(id) = message.first_chunk() else {
        return;
    };
    let Some(flow) = responder.shared.fence.asker_of(namespace, from, *id) else {
        return;
    };
    if message.len() > QUERY {
        return;
    }
    match responder.begin(&flow, message, Over::Udp) {
        // Where the buffer is full the client asks again.
        Begun::Answered(bytes) => drop(socket.try_send_to(&bytes, from)),
        Begun::Lookup(lookup) => {
            let (responder, socket) = (Rc::clone(responder), Rc::clone(socket));
            tokio::task::spawn_local(async move {
                if let Some(bytes) = responder.finish(*lookup).await {
                    let _ = socket.try_send_to(&bytes, from);
                }
            });
        }
        Begun::Ignored => {}
    }
}
