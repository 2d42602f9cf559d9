//! The upstream: sends bodies, and digests those it is sent, over HTTP/1.1 or HTTP/2.
use crate::pattern::{Blocks, Digesting};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Serves until it is killed.
pub(crate) fn run(address: &str, protocol: &str, certificate: &str, key: &str) -> Result<()> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let alpn: &[u8] = if protocol == "HTTP/2" {
        b"h2"
    } else {
        b"http/1.1"
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((address, 443)).await?;
        println!("ready");
        loop {
            let (stream, _) = listener.accept().await?;
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Err(error) = serve(acceptor, stream).await {
                    eprintln!("{error:#}");
                }
            });
        }
    })
}

async fn serve(acceptor: TlsAcceptor, stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await.context("the TLS handshake")?;
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(stream);
    if h2 {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(1 << 20);
        builder.initial_connection_window_size(4 << 20);
        builder.serve_connection(io, service_fn(answer)).await?;
    } else {
        let builder = hyper::server::conn::http1::Builder::new();
        builder.serve_connection(io, service_fn(answer)).await?;
    }
    Ok(())
}

async fn answer(request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    let length = request.uri().path().strip_prefix("/bytes/");
    let length = length.and_then(|length| length.parse().ok());
    let (status, body) = match (request.method(), length) {
        (&Method::GET, Some(bytes)) => (StatusCode::OK, Answer::Made(Blocks::new(bytes), bytes)),
        (&Method::POST, Some(_)) => match digest(request.into_body()).await {
            Ok(text) => (StatusCode::OK, Answer::said(text)),
            Err(error) => (StatusCode::BAD_REQUEST, Answer::said(error.to_string())),
        },
        _ => (
            StatusCode::NOT_FOUND,
            Answer::said("GET or POST /bytes/N".into()),
        ),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    Ok(response)
}

async fn digest(mut body: Incoming) -> Result<String, hyper::Error> {
    let mut digesting = Digesting::default();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            digesting.add(&data);
        }
    }
    Ok(digesting.done().to_string())
}

enum Answer {
    Said(Option<Bytes>),
    /// Blocks, and bytes still to come.
    Made(Blocks, u64),
}

impl Answer {
    fn said(text: String) -> Self {
        Self::Said(Some(text.into()))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let part = match self.get_mut() {
            Self::Said(text) => text.take(),
            Self::Made(blocks, left) => blocks.next().map(|block| {
                *left -= block.len() as u64;
                Bytes::copy_from_slice(block)
            }),
        };
        Poll::Ready(part.map(|part| Ok(Frame::data(part))))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Said(text) => SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64),
            Self::Made(_, left) => SizeHint::with_exact(*left),
        }
    }
}
