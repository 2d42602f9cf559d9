//! A source of server-sent events, one at a time: what comes next is sent when the test says so.
use crate::netns::Holder;
use anyhow::{Context as _, Result};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Where nginx finds it.
pub const PORT: u16 = 8081;

#[derive(Debug, Default)]
struct Shared {
    streams: Mutex<Vec<TcpStream>>,
    stop: AtomicBool,
}

/// The running source; dropping it ends every stream.
#[derive(Debug)]
pub struct Events {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Events {
    /// Starts it on 127.0.0.1:[`PORT`] in the holder's network namespace.
    ///
    /// # Errors
    /// The port cannot be bound there.
    pub fn start(holder: &Holder) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let for_thread = shared.clone();
        let thread = holder.enter(move || -> Result<JoinHandle<()>> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))
                .context("the event source cannot bind its port")?;
            listener.set_nonblocking(true)?;
            Ok(std::thread::spawn(move || serve(&listener, &for_thread)))
        })??;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Streams open now.
    pub fn streams(&self) -> usize {
        self.shared
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Sends one event to every open stream; how many took it.
    pub fn emit(&self, data: &str) -> usize {
        let event = format!("data: {data}\n\n");
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        let mut streams = self
            .shared
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        streams.retain_mut(|stream| stream.write_all(chunk.as_bytes()).is_ok());
        streams.len()
    }

    /// Ends every open stream as a server does.
    pub fn end(&self) {
        let mut streams = self
            .shared
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for mut stream in streams.drain(..) {
            let _ = stream.write_all(b"0\r\n\r\n");
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Ok(stream) = open(stream) {
                    let mut streams = shared
                        .streams
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    streams.push(stream);
                }
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Reads the request's head and answers with that of a stream without an end.
fn open(mut stream: TcpStream) -> Result<TcpStream> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 * 1024 {
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    stream.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n\
          transfer-encoding: chunked\r\n\r\n",
    )?;
    Ok(stream)
}
