//! Bodies under a bound: compressed ones are decoded as a stream, and stop at a size and at a ratio
//! (`docs/reliability.md` N6). Compression is not asked for; a server may still send it.

use std::io::{self, Write};

use http::{HeaderMap, header};

use crate::drill::{self, Guard};

/// What may come out of one byte of a compressed body, beyond [`SLACK`].
const MOST_RATIO: u64 = 500;
const SLACK: u64 = 1 << 20;

/// Passes on at most `most` bytes.
#[derive(Debug)]
pub(super) struct Capped<W> {
    pub inner: W,
    pub bytes: u64,
    most: u64,
    /// The cap was met.
    over: bool,
}

impl<W: Write> Write for Capped<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.saturating_add(bytes.len() as u64) > self.most && !drill::without(Guard::Caps) {
            self.over = true;
            return Err(io::Error::other("too large"));
        }
        self.inner.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes what a body says, whatever its `Content-Encoding`.
pub(super) struct Decoder<W: Write> {
    form: Form<W>,
    /// Bytes that came over the wire.
    pub wire: u64,
    most: u64,
}

/// That of `zstd::stream::write` does not tell whether its frame has ended.
type ZstdWriter<W> = zstd::stream::zio::Writer<W, zstd::stream::raw::Decoder<'static>>;

enum Form<W: Write> {
    Plain(Capped<W>),
    Gzip(Box<flate2::write::MultiGzDecoder<Capped<W>>>),
    Zstd(Box<ZstdWriter<Capped<W>>>),
}

impl<W: Write> Decoder<W> {
    /// # Errors
    /// The name of an encoding that was not asked for and is not known.
    pub fn new(headers: &HeaderMap, inner: W, most: u64) -> Result<Self, String> {
        let capped = Capped { inner, bytes: 0, most, over: false };
        let encoding = headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes().to_ascii_lowercase());
        let form = match encoding.as_deref() {
            None | Some(b"" | b"identity") => Form::Plain(capped),
            Some(b"gzip" | b"x-gzip") => Form::Gzip(Box::new(flate2::write::MultiGzDecoder::new(capped))),
            Some(b"zstd") => {
                let decoder = zstd::stream::raw::Decoder::new().map_err(|e| e.to_string())?;
                Form::Zstd(Box::new(ZstdWriter::new(capped, decoder)))
            }
            Some(other) => return Err(String::from_utf8_lossy(other).into_owned()),
        };
        Ok(Self { form, wire: 0, most })
    }

    pub fn is_plain(&self) -> bool {
        matches!(self.form, Form::Plain(_))
    }

    pub fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.wire += bytes.len() as u64;
        if !self.is_plain() {
            self.capped_mut().most = self.most.min(self.wire.saturating_mul(MOST_RATIO).saturating_add(SLACK));
        }
        match &mut self.form {
            Form::Plain(out) => out.write_all(bytes),
            Form::Gzip(out) => out.write_all(bytes),
            Form::Zstd(out) => out.write_all(bytes),
        }
    }

    /// Ends a compressed body; one that was cut is an error.
    pub fn finish(&mut self) -> io::Result<()> {
        match &mut self.form {
            Form::Plain(out) => out.flush(),
            Form::Gzip(out) => out.try_finish(),
            Form::Zstd(_) if self.wire == 0 => Ok(()),
            Form::Zstd(out) => {
                let mut before = None;
                while before.replace(out.writer().bytes) != Some(out.writer().bytes) {
                    // Nothing more to read: what is left inside comes out, and whether the frame ended.
                    #[expect(clippy::disallowed_methods, reason = "there is nothing to be written short")]
                    let _nothing = out.write(&[])?;
                }
                out.finish()
            }
        }
    }

    /// The reason why a `put` failed was a cap.
    pub fn is_over(&mut self) -> bool {
        self.capped_mut().over
    }

    /// What a plain body was written to, or a compressed one that has ended.
    pub fn into_inner(self) -> Option<W> {
        match self.form {
            Form::Plain(out) => Some(out.inner),
            Form::Gzip(out) => out.finish().ok().map(|out| out.inner),
            Form::Zstd(out) => Some(out.into_inner().0.inner),
        }
    }

    pub fn capped_mut(&mut self) -> &mut Capped<W> {
        match &mut self.form {
            Form::Plain(out) => out,
            Form::Gzip(out) => out.get_mut(),
            Form::Zstd(out) => out.writer_mut(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(encoding: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_ENCODING, http::HeaderValue::from_static(encoding))])
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(bytes).expect("compressed");
        out.finish().expect("compressed")
    }

    fn decode(encoding: &'static str, body: &[u8], most: u64) -> Result<Vec<u8>, bool> {
        let mut decoder = Decoder::new(&headers(encoding), Vec::new(), most).expect("known");
        match body.chunks(7).try_for_each(|piece| decoder.put(piece)).and_then(|()| decoder.finish()) {
            Ok(()) => Ok(std::mem::take(&mut decoder.capped_mut().inner)),
            Err(_) => Err(decoder.is_over()),
        }
    }

    #[test]
    fn every_encoding_says_the_same() {
        let text = "一行\n".repeat(1000).into_bytes();
        let zstd = zstd::encode_all(text.as_slice(), 3).expect("compressed");
        for (encoding, body) in [("identity", text.clone()), ("gzip", gzip(&text)), ("zstd", zstd)] {
            assert_eq!(decode(encoding, &body, 1 << 20).as_ref(), Ok(&text), "{encoding}");
            assert_eq!(decode(encoding, &body, text.len() as u64).as_ref(), Ok(&text), "{encoding}");
            assert_eq!(decode(encoding, &body, text.len() as u64 - 1), Err(true), "{encoding}");
        }
        assert!(Decoder::new(&headers("br"), Vec::new(), 1).is_err());
    }

    #[test]
    fn r3_a_cut_zstd_body_is_refused_and_a_whole_one_comes_whole() {
        let mut text = Vec::new();
        for n in 0..60_000_u64 {
            text.extend_from_slice(format!("{} ", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).as_bytes());
        }
        for most in [0, 1, 100, 131_072, 131_073, 200_000, text.len()] {
            let text = &text[..most];
            let whole = zstd::encode_all(text, 3).expect("compressed");
            for size in [1 << 10, 1 << 18, 1 << 24] {
                let decode = |body: &[u8]| {
                    let mut decoder = Decoder::new(&headers("zstd"), Vec::new(), u64::MAX).expect("known");
                    let done = body.chunks(size).try_for_each(|piece| decoder.put(piece));
                    done.and_then(|()| decoder.finish()).ok().and_then(|()| decoder.into_inner())
                };
                assert!(decode(&whole).as_deref() == Some(text), "{most} bytes in pieces of {size}");
                let two = [whole.as_slice(), whole.as_slice()].concat();
                assert!(decode(&two) == Some([text, text].concat()), "{most} bytes twice in pieces of {size}");
                for cut in [1, whole.len() / 2, whole.len() - 1] {
                    assert!(decode(&whole[..cut]).is_none(), "{most} bytes cut at {cut} in pieces of {size}");
                }
            }
        }
    }

    #[test]
    fn a_bomb_and_a_cut_body_are_refused() {
        let bomb = gzip(&vec![0; 8 << 20]);
        assert_eq!(decode("gzip", &bomb, u64::MAX), Err(true));
        let whole = gzip(b"some text");
        assert_eq!(decode("gzip", &whole[..whole.len() - 4], u64::MAX), Err(false));
        assert_eq!(decode("gzip", b"not gzip at all", u64::MAX), Err(false));
    }
}
