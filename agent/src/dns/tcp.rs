//! Queries over TCP: two bytes of length before each message (RFC 7766), one after the other.
use super::Responder;
use super::message::{Over, QUERY};
use crate::kernel::Flow;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A client that is silent for longer has forgotten the connection.
const IDLE: Duration = Duration::from_secs(10);

/// Answers the queries of a connection until its client ends it, is silent, or sends what is no query.
pub(crate) async fn converse<IO: AsyncRead + AsyncWrite + Unpin>(
    responder: &Rc<Responder>,
    mut stream: IO,
    flow: &Flow,
) {
    while let Ok(Some(query)) = tokio::time::timeout(IDLE, next(&mut stream)).await {
        let Some(answer) = responder.answer(flow, &query, Over::Tcp).await else {
            return;
        };
        let Ok(length) = u16::try_from(answer.len()) else {
            return;
        };
        let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
        match tokio::time::timeout(IDLE, stream.write_all(&framed)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}

/// The next query; `None`: the end, or more than a query has.
async fn next(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let length = usize::from(stream.read_u16().await.ok()?);
    if length > QUERY {
        return None;
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await.ok()?;
    Some(query)
}
