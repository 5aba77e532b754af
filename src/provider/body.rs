//! The body of a reply, unpacked under bounds (`docs/reliability.md` N6). No request asks for compression, but a server may
//! compress all the same. What is unpacked has a largest size and a largest ratio to what came over the wire; a body that is
//! cut short is an error. Everything runs in place: no thread is started.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use bytes::{Bytes, BytesMut};
use futures::stream::{BoxStream, TryStreamExt as _};
use http::{HeaderMap, header};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, BufReader},
    time::timeout,
};
use tokio_util::io::{InspectReader, StreamReader};

use super::transport::Broken;
use crate::drill::{self, Guard};

/// Bytes that one byte of a compressed body may become, beyond [`SLACK`].
const MOST_RATIO: u64 = 500;
const SLACK: u64 = 1 << 20;

/// Why a body has no further piece although it is not whole.
#[derive(Debug)]
pub(super) enum BodyError {
    /// The network or the server ended it too early.
    Broken(Broken),
    /// It is not what its `Content-Encoding` says.
    Damaged(io::Error),
    /// It is larger than its bound, or unpacks to too much.
    TooLarge,
}

/// The unpacked bytes of a reply, read piece by piece.
pub(super) struct Body {
    reader: Pin<Box<dyn AsyncRead + Send>>,
    /// Bytes that came over the wire, and their number as the server announced it.
    wire: Arc<AtomicU64>,
    announced: Option<u64>,
    /// Bytes that were unpacked, and their bound.
    unpacked: u64,
    most: u64,
    is_plain: bool,
    /// The error that follows the pieces that were given.
    error: Option<BodyError>,
}

impl Body {
    /// `idle` is the longest pause between two pieces.
    ///
    /// # Errors
    /// The name of an encoding that is not known.
    pub fn new(
        headers: &HeaderMap,
        pieces: BoxStream<'static, Result<Bytes, Broken>>,
        idle: Duration,
        most: u64,
    ) -> Result<Self, String> {
        let pieces = futures::stream::try_unfold(pieces, move |mut pieces| async move {
            match timeout(idle, pieces.try_next()).await {
                Ok(piece) => Ok(piece?.map(|piece| (piece, pieces))),
                Err(_) => Err(Broken::new("the reply stopped half way".to_owned())),
            }
        });
        let wire = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&wire);
        let raw = InspectReader::new(StreamReader::new(Box::pin(pieces)), move |bytes: &[u8]| {
            count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        });
        let encoding = headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes().to_ascii_lowercase());
        let is_plain = matches!(encoding.as_deref(), None | Some(b"" | b"identity"));
        let reader: Pin<Box<dyn AsyncRead + Send>> = match encoding.as_deref() {
            _ if is_plain => Box::pin(raw),
            Some(b"gzip" | b"x-gzip") => {
                let mut decoder = GzipDecoder::new(BufReader::new(raw));
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
            Some(b"zstd") => {
                let mut decoder = ZstdDecoder::new(BufReader::new(raw));
                decoder.multiple_members(true);
                Box::pin(decoder)
            }
            other => return Err(String::from_utf8_lossy(other.unwrap_or_default()).into_owned()),
        };
        let announced = content_length(headers);
        Ok(Self { reader, wire, announced, unpacked: 0, most, is_plain, error: None })
    }

    /// What came before an error is of use: half of a compressed body is not.
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// The next piece, of at most `size` bytes; `None` at the end. What came before an error is given before the error.
    pub async fn next(&mut self, size: usize) -> Result<Option<Bytes>, BodyError> {
        let mut piece = BytesMut::with_capacity(size);
        while piece.len() < size && self.error.is_none() {
            match self.read(&mut piece).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => self.error = Some(error),
            }
        }
        match (piece.is_empty(), self.error.take()) {
            (true, Some(error)) => Err(error),
            (true, None) => Ok(None),
            (false, error) => {
                self.error = error;
                Ok(Some(piece.freeze()))
            }
        }
    }

    /// Reads to the end. After an error `into` holds what came before it.
    pub async fn read_to_end(&mut self, into: &mut BytesMut) -> Result<(), BodyError> {
        while self.read(into).await? > 0 {}
        Ok(())
    }

    /// One read, checked against the bounds; 0 at the end.
    async fn read(&mut self, into: &mut BytesMut) -> Result<usize, BodyError> {
        let read = match self.reader.read_buf(into).await {
            Ok(read) => read,
            Err(error) => match error.downcast::<Broken>() {
                Ok(broken) => return Err(BodyError::Broken(broken)),
                // An empty body is whole in every encoding.
                Err(_) if self.wire() == 0 => 0,
                Err(damage) => {
                    if damage.kind() == io::ErrorKind::UnexpectedEof {
                        self.check_length()?;
                    }
                    return Err(BodyError::Damaged(damage));
                }
            },
        };
        if read == 0 {
            self.check_length()?;
        }
        self.unpacked += read as u64;
        let explodes = !self.is_plain && self.unpacked > self.wire().saturating_mul(MOST_RATIO).saturating_add(SLACK);
        if (explodes || self.unpacked > self.most) && !drill::without(Guard::Caps) {
            return Err(BodyError::TooLarge);
        }
        Ok(read)
    }

    /// All has come that the server announced.
    fn check_length(&self) -> Result<(), BodyError> {
        match self.announced {
            Some(announced) if announced != self.wire() => {
                let why = format!("it is cut short: {} of {announced} bytes came", self.wire());
                Err(BodyError::Broken(Broken::new(why)))
            }
            _ => Ok(()),
        }
    }

    fn wire(&self) -> u64 {
        self.wire.load(Ordering::Relaxed)
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(bytes).expect("compressed");
        out.finish().expect("compressed")
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).expect("compressed")
    }

    fn body(encoding: &'static str, bytes: &[u8], size: usize, most: u64) -> Result<Body, String> {
        let headers = HeaderMap::from_iter([(header::CONTENT_ENCODING, http::HeaderValue::from_static(encoding))]);
        let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Body::new(&headers, Box::pin(futures::stream::iter(pieces)), Duration::from_secs(1), most)
    }

    /// `bytes` come in pieces of `size`.
    async fn unpack_pieces(encoding: &'static str, bytes: &[u8], size: usize, most: u64) -> Result<Vec<u8>, BodyError> {
        let mut unpacked = BytesMut::new();
        body(encoding, bytes, size, most).expect("known").read_to_end(&mut unpacked).await?;
        Ok(unpacked.to_vec())
    }

    /// The error tells whether the bound was met.
    async fn unpack(encoding: &'static str, bytes: &[u8], most: u64) -> Result<Vec<u8>, bool> {
        unpack_pieces(encoding, bytes, 7, most).await.map_err(|error| matches!(error, BodyError::TooLarge))
    }

    #[tokio::test]
    async fn every_encoding_says_the_same() {
        let text = "一行\n".repeat(1000).into_bytes();
        for (encoding, packed) in [("identity", text.clone()), ("gzip", gzip(&text)), ("zstd", zstd(&text))] {
            assert_eq!(unpack(encoding, &packed, 1 << 20).await.as_ref(), Ok(&text), "{encoding}");
            assert_eq!(unpack(encoding, &packed, text.len() as u64).await.as_ref(), Ok(&text), "{encoding}");
            assert_eq!(unpack(encoding, &packed, text.len() as u64 - 1).await, Err(true), "{encoding}");
            assert_eq!(unpack(encoding, &[], 1).await, Ok(Vec::new()), "{encoding}");
        }
        assert_eq!(body("br", &[], 1, 1).err().as_deref(), Some("br"));
    }

    #[tokio::test]
    async fn r3_a_cut_body_is_refused_and_a_whole_one_comes_whole() {
        let mut text = Vec::new();
        for n in 0..60_000_u64 {
            text.extend_from_slice(format!("{} ", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).as_bytes());
        }
        for most in [0, 1, 100, 131_072, 131_073, 200_000, text.len()] {
            let text = &text[..most];
            for (encoding, whole) in [("gzip", gzip(text)), ("zstd", zstd(text))] {
                let two = [whole.as_slice(), whole.as_slice()].concat();
                for size in [1 << 10, 1 << 18, 1 << 24] {
                    let what = format!("{encoding}: {most} bytes in pieces of {size}");
                    let unpack = async |bytes: &[u8]| unpack_pieces(encoding, bytes, size, u64::MAX).await.ok();
                    assert!(unpack(&whole).await.as_deref() == Some(text), "{what}");
                    assert!(unpack(&two).await == Some([text, text].concat()), "{what}, twice");
                    for cut in [1, whole.len() / 2, whole.len() - 1] {
                        assert!(unpack(&whole[..cut]).await.is_none(), "{what}, cut at {cut}");
                        assert!(unpack(&two[..whole.len() + cut]).await.is_none(), "{what}, second cut at {cut}");
                    }
                    let mut corrupt = two.clone();
                    corrupt[whole.len() + 1] ^= 0xff;
                    assert!(unpack(&corrupt).await.is_none(), "{what}, second corrupt");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_bomb_and_a_cut_body_are_refused() {
        let bomb = gzip(&vec![0; 8 << 20]);
        assert_eq!(unpack("gzip", &bomb, u64::MAX).await, Err(true));
        let whole = gzip(b"some text");
        assert_eq!(unpack("gzip", &whole[..whole.len() - 4], u64::MAX).await, Err(false));
        assert_eq!(unpack("gzip", b"not gzip at all", u64::MAX).await, Err(false));
    }

    #[tokio::test]
    async fn what_came_before_an_error_is_given_before_it() {
        let pieces =
            [Ok(Bytes::from_static(b"abc")), Ok(Bytes::from_static(b"de")), Err(Broken::new("gone".to_owned()))];
        let pieces = Box::pin(futures::stream::iter(pieces));
        let mut body = Body::new(&HeaderMap::new(), pieces, Duration::from_secs(1), 100).expect("plain");
        assert_eq!(body.next(4).await.expect("a piece").as_deref(), Some(&b"abcd"[..]));
        assert_eq!(body.next(4).await.expect("a piece").as_deref(), Some(&b"e"[..]));
        assert!(matches!(body.next(4).await, Err(BodyError::Broken(broken)) if broken.why == "gone"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_is_left_and_one_that_moves_is_not() {
        for (pause, whole) in [(Duration::from_millis(900), true), (Duration::from_millis(1100), false)] {
            let pieces = futures::stream::unfold(0, move |n| async move {
                tokio::time::sleep(pause).await;
                (n < 5).then(|| (Ok(Bytes::from_static(b"x")), n + 1))
            });
            let mut body = Body::new(&HeaderMap::new(), Box::pin(pieces), Duration::from_secs(1), 100).expect("plain");
            assert_eq!(body.read_to_end(&mut BytesMut::new()).await.is_ok(), whole, "{pause:?}");
        }
    }
}
