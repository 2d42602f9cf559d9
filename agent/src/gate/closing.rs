//! The end of a connection on which the client may be sending still.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// How long at most what a client still sends is thrown away after its answer. Closing a socket with unread bytes
/// resets it, the reset overtakes the answer, and a client that sends all before it reads would never see why.
const LINGER: Duration = Duration::from_secs(30);
/// A client that sends nothing for this long has had its answer, or will not read it.
const LINGER_QUIET: Duration = Duration::from_secs(2);

/// How far the end of a connection has come.
#[derive(Debug)]
pub(super) enum Closing {
    /// Not begun.
    No,
    /// The client was told that no more comes; what it still sends is thrown away.
    Lingers {
        whole: Pin<Box<Sleep>>,
        quiet: Pin<Box<Sleep>>,
    },
    /// Over.
    Done,
}

impl Closing {
    /// Closes; with `lingers`, waits for the client's end after telling it ours, up to [`LINGER`].
    pub(super) fn poll<IO: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &mut IO,
        lingers: bool,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if let Self::No = self {
            ready!(Pin::new(&mut *io).poll_shutdown(context))?;
            *self = match lingers {
                true => Self::Lingers {
                    whole: Box::pin(tokio::time::sleep(LINGER)),
                    quiet: Box::pin(tokio::time::sleep(LINGER_QUIET)),
                },
                false => Self::Done,
            };
        }
        if let Self::Lingers { whole, quiet } = self {
            if whole.as_mut().poll(context).is_pending() {
                ready!(discard(io, quiet.as_mut(), context));
            }
            *self = Self::Done;
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads to the end, however it comes, and keeps nothing.
fn discard<IO: AsyncRead + Unpin>(
    io: &mut IO,
    mut quiet: Pin<&mut Sleep>,
    context: &mut Context<'_>,
) -> Poll<()> {
    let mut scratch = [0; 16 * 1024];
    loop {
        let mut waste = ReadBuf::new(&mut scratch);
        match Pin::new(&mut *io).poll_read(context, &mut waste) {
            Poll::Ready(Ok(())) if !waste.filled().is_empty() => {
                quiet.as_mut().reset(Instant::now() + LINGER_QUIET)
            }
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => return quiet.poll(context),
        }
    }
}
