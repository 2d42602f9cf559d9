//! What was read of a client's stream and is not given out yet.
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes a connection holds to begin with.
const FIRST_BUFFER: usize = 2048;
/// Bytes it holds at most once a long head has passed.
const KEPT_BUFFER: usize = 16 * 1024;

/// Bytes from the client: `[released | good | waiting to be judged | room]`. At most a head's worth.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    released: usize,
    good: usize,
    end: usize,
    most: usize,
}

impl Buffer {
    pub(super) fn new(most: usize) -> Self {
        Self {
            bytes: Vec::new(),
            released: 0,
            good: 0,
            end: 0,
            most,
        }
    }

    /// Bytes that it takes.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn waiting(&self) -> &[u8] {
        self.bytes.get(self.good..self.end).unwrap_or_default()
    }

    pub(super) fn has_good(&self) -> bool {
        self.good > self.released
    }

    pub(super) fn judged(&mut self, count: usize) {
        self.good = self.end.min(self.good + count);
    }

    /// Gives out good bytes; false where there are none.
    pub(super) fn release(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let good = self.bytes.get(self.released..self.good).unwrap_or_default();
        let count = good.len().min(out.remaining());
        out.put_slice(good.get(..count).unwrap_or_default());
        self.released += count;
        count > 0
    }

    /// Reads once. All good bytes have been released before.
    pub(super) fn poll_fill<IO: AsyncRead>(
        &mut self,
        io: Pin<&mut IO>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.bytes.copy_within(self.good..self.end, 0);
        self.end -= self.good;
        (self.released, self.good) = (0, 0);
        if self.end == 0 && self.bytes.len() > KEPT_BUFFER {
            self.bytes = Vec::new();
        }
        if self.end == self.bytes.len() {
            let grown = (self.bytes.len() * 2).max(FIRST_BUFFER).min(self.most);
            self.bytes.resize(grown, 0);
        }
        let mut room = ReadBuf::new(self.bytes.get_mut(self.end..).unwrap_or_default());
        ready!(io.poll_read(context, &mut room))?;
        let count = room.filled().len();
        self.end += count;
        Poll::Ready(Ok(count))
    }
}
