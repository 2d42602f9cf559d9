//! stub
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
pub struct Gate<IO>(IO);
#[derive(Clone)]
pub struct Handle;
pub struct Violation { pub status: u16, pub code: &'static str, pub detail: String, pub method: Option<String>, pub target: Option<String> }
impl<IO> Gate<IO> { pub fn new(io: IO, _h: usize, _f: usize) -> Self { Self(io) } pub fn handle(&self) -> Handle { Handle } }
impl Handle { pub fn violation(&self, _p: &str) -> Option<Violation> { None } pub fn in_head(&self) -> bool { false } pub fn requests(&self) -> u64 { 0 } }
impl<IO: AsyncRead + Unpin> AsyncRead for Gate<IO> { fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, b: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> { Pin::new(&mut self.0).poll_read(cx, b) } }
impl<IO: AsyncWrite + Unpin> AsyncWrite for Gate<IO> {
 fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, b: &[u8]) -> Poll<std::io::Result<usize>> { Pin::new(&mut self.0).poll_write(cx, b) }
 fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> { Pin::new(&mut self.0).poll_flush(cx) }
 fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> { Pin::new(&mut self.0).poll_shutdown(cx) }
}
