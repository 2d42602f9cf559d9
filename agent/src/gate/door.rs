//! The gate as hyper holds it, and as it is taken back when a connection is HTTP no more.
use super::Gate;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A gate that is lent to hyper. hyper gives streams back only where they may leave their thread, and this one may not.
#[derive(Debug)]
pub struct Door<IO>(Rc<RefCell<Gate<IO>>>);

impl<IO> Door<IO> {
    /// One to lend, and one to take the gate back by.
    pub fn new(gate: Gate<IO>) -> (Self, Self) {
        let gate = Rc::new(RefCell::new(gate));
        (Self(Rc::clone(&gate)), Self(gate))
    }

    /// The gate, once the other door is dropped.
    pub fn into_gate(self) -> Option<Gate<IO>> {
        Rc::into_inner(self.0).map(RefCell::into_inner)
    }
}

// One thread, and no call that reaches the other door: a borrow never meets another.
impl<IO: AsyncRead + Unpin> AsyncRead for Door<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_read(context, out)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Door<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.borrow_mut()).poll_shutdown(context)
    }
}
