//! Who connected: what the kernel recorded when the connection was made, and nothing the client says.
use super::worker::Worker;
use crate::kernel::Flow;
use tokio::net::TcpStream;

/// A connection whose owner is known.
pub(super) struct Attributed {
    pub(super) stream: TcpStream,
    pub(super) flow: Flow,
    _made_here: (),
}

/// Reads the kernel's record; without one the connection was not steered here by a hook and is reset.
pub(super) fn attribute(worker: &Worker, stream: TcpStream) -> Result<Attributed, TcpStream> {
    match worker.shared.fence.flow_of(&stream) {
        Some(flow) => Ok(Attributed {
            stream,
            flow,
            _made_here: (),
        }),
        None => Err(stream),
    }
}
