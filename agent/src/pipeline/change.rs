//! A response's body changed on its way: read in clear, values taken out of it piece by piece, echoes of a secret overwritten.
//! Nothing is held longer than until it can be told what it is.
use super::body::BodyError;
use super::framed::Framed;
use crate::secrets::Masker;
use bytes::{Bytes, BytesMut};
use flate2::write::{MultiGzDecoder, ZlibDecoder};
use std::io::Write as _;
use std::sync::Arc;

/// Compressed bytes that are read at once: what comes of them is a thousand times as much at most.
pub(super) const AT_ONCE: usize = 4096;

/// What is done to a body, in this order.
#[derive(Default)]
pub(super) struct Change {
    pub(super) inflate: Option<Inflate>,
    pub(super) redact: Option<Framed>,
    pub(super) mask: Option<Masking>,
    /// What has come since it was last taken, in clear, where somebody wants to read it.
    pub(super) heard: Option<Vec<Bytes>>,
}

impl Change {
    /// What may go on of the body so far.
    pub(super) fn feed(&mut self, data: Bytes) -> Result<Bytes, BodyError> {
        let Some(inflate) = &mut self.inflate else {
            return self.rest(data, false);
        };
        let clear = inflate.feed(&data)?;
        self.rest(clear, false)
    }

    /// What is left at the body's end.
    pub(super) fn end(&mut self) -> Result<Bytes, BodyError> {
        let clear = match self.inflate.take() {
            Some(inflate) => inflate.end()?,
            None => Bytes::new(),
        };
        self.rest(clear, true)
    }

    fn rest(&mut self, clear: Bytes, last: bool) -> Result<Bytes, BodyError> {
        if let Some(heard) = &mut self.heard {
            heard.push(clear.clone());
        }
        let mut data = match &mut self.redact {
            Some(framed) => framed.feed(&clear)?,
            None => clear,
        };
        if last && let Some(framed) = &mut self.redact {
            framed.end()?;
        }
        if let Some(mask) = &mut self.mask {
            data = mask.feed(data, last);
        }
        Ok(data)
    }

    /// Whether what comes of it is of another length.
    pub(super) fn resizes(&self) -> bool {
        self.inflate.is_some() || self.redact.is_some()
    }

    /// What was taken out, by name.
    pub(super) fn taken(&self) -> Vec<String> {
        let redacted = self.redact.as_ref().map_or(Vec::new(), Framed::taken);
        let masked = self.mask.as_ref().is_some_and(|mask| mask.found);
        let masked = masked.then(|| MASKED.to_owned());
        redacted.into_iter().chain(masked).collect()
    }
}

/// How an overwritten credential is named in a record.
pub(super) const MASKED: &str = "credential";

/// A compressed body, read as it comes.
pub(super) enum Inflate {
    Gzip(MultiGzDecoder<Vec<u8>>),
    Deflate(ZlibDecoder<Vec<u8>>),
}

impl Inflate {
    /// Of this coding; none where it is not known here.
    pub(super) fn of(coding: &[u8]) -> Option<Self> {
        match coding {
            b"gzip" | b"x-gzip" => Some(Self::Gzip(MultiGzDecoder::new(Vec::new()))),
            b"deflate" => Some(Self::Deflate(ZlibDecoder::new(Vec::new()))),
            _ => None,
        }
    }

    fn feed(&mut self, data: &[u8]) -> Result<Bytes, BodyError> {
        let mut clear = BytesMut::new();
        for part in data.chunks(AT_ONCE) {
            let out = match self {
                Self::Gzip(decoder) => decoder.write_all(part).map(|()| decoder.get_mut()),
                Self::Deflate(decoder) => decoder.write_all(part).map(|()| decoder.get_mut()),
            };
            clear.extend_from_slice(&std::mem::take(out.map_err(|_| BodyError::Inflate)?));
        }
        Ok(clear.freeze())
    }

    fn end(self) -> Result<Bytes, BodyError> {
        let rest = match self {
            Self::Gzip(decoder) => decoder.finish(),
            Self::Deflate(decoder) => decoder.finish(),
        };
        rest.map(Bytes::from).map_err(|_| BodyError::Inflate)
    }
}

/// Echoes of one secret overwritten, also where they come in parts.
pub(super) struct Masking {
    masker: Arc<Masker>,
    /// What may be the beginning of an echo.
    held: Vec<u8>,
    found: bool,
}

impl Masking {
    pub(super) fn new(masker: Arc<Masker>) -> Self {
        Self {
            masker,
            held: Vec::new(),
            found: false,
        }
    }

    fn feed(&mut self, data: Bytes, last: bool) -> Bytes {
        let mut data = if self.held.is_empty() {
            data
        } else {
            let mut joined = BytesMut::with_capacity(self.held.len() + data.len());
            joined.extend_from_slice(&std::mem::take(&mut self.held));
            joined.extend_from_slice(&data);
            joined.freeze()
        };
        if let Some(masked) = self.masker.mask(&data) {
            self.found = true;
            data = masked.into();
        }
        if !last {
            let keep = self.masker.may_begin(&data);
            self.held = data.split_off(data.len() - keep).to_vec();
        }
        data
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::{GzEncoder, ZlibEncoder};

    fn change() -> Change {
        Change {
            mask: Some(Masking::new(Arc::new(Masker::for_test(b"hunter22-secret")))),
            ..Change::default()
        }
    }

    /// The whole of what comes of `body`, sent in parts of `size`.
    fn through(mut change: Change, body: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for part in body.chunks(size) {
            out.extend_from_slice(&change.feed(Bytes::copy_from_slice(part)).unwrap());
        }
        out.extend_from_slice(&change.end().unwrap());
        out
    }

    const TEXT: &[u8] = b"a hunter22-secret, hunter22-secre and hunthunter22-secret!";
    const CLEAN: &[u8] = b"a ***************, hunter22-secre and hunt***************!";

    #[test]
    fn an_echo_is_found_wherever_it_is_split() {
        for size in 1..=TEXT.len() {
            assert_eq!(through(change(), TEXT, size), CLEAN, "{size}");
        }
        let mut change = change();
        let first = change.feed(Bytes::from_static(b"data: hunter")).unwrap();
        assert_eq!(&first[..], b"data: ", "held no longer than what may be one");
        assert_eq!(
            &change.feed(Bytes::from_static(b"s\n\n")).unwrap()[..],
            b"hunters\n\n"
        );
        assert!(change.taken().is_empty());
    }

    #[test]
    fn what_is_compressed_is_read() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(TEXT).unwrap();
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::fast());
        zlib.write_all(TEXT).unwrap();
        for (coding, bytes) in [
            ("gzip", gzip.finish().unwrap()),
            ("deflate", zlib.finish().unwrap()),
        ] {
            for size in [1, 7, 1000] {
                let inflate = Inflate::of(coding.as_bytes());
                let change = Change {
                    inflate,
                    ..change()
                };
                assert_eq!(through(change, &bytes, size), CLEAN, "{coding} {size}");
            }
            let inflate = Inflate::of(coding.as_bytes());
            let mut cut = Change {
                inflate,
                ..change()
            };
            let half = bytes.len() / 2;
            let ended = cut
                .feed(Bytes::copy_from_slice(&bytes[..half]))
                .and_then(|_| cut.end());
            assert!(ended.is_err(), "{coding}: half of it looks whole");
        }
        assert!(Inflate::of(b"br").is_none());
    }
}
