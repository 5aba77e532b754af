//! Compression on a thread of its own: a reader that is decoded ahead, a writer that is encoded behind. Either holds a few
//! pieces, no more.

use std::io::{self, Read, Write};

use super::worker::Worker;
use crate::error::Result;

/// Bytes that go from thread to thread at a time.
const PIECE: usize = 256 << 10;
/// Pieces of a reader or writer, the one in hand among them.
const PIECES: usize = 4;

fn died() -> io::Error {
    io::Error::other("the thread that (de)compresses died")
}

/// Reads from another reader before it is asked to.
#[derive(Debug)]
pub struct ReadAhead<R> {
    /// With each reader goes whether it has ended. An empty piece is the end.
    worker: Worker<(R, bool), Vec<u8>, io::Error>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<R: Read + Send + 'static> ReadAhead<R> {
    /// # Errors
    /// The system gives no thread.
    pub fn new(reader: R) -> Result<Self> {
        let worker = Worker::spawn(PIECES, died, (reader, false), |(reader, ended): &mut (R, bool), piece| {
            fill(reader, piece, ended)
        })?;
        Ok(Self { worker, piece: Vec::new(), at: 0, ended: false })
    }
}

/// Reads a piece, unless the reader has ended.
fn fill(reader: &mut impl Read, piece: &mut Vec<u8>, ended: &mut bool) -> io::Result<()> {
    if *ended {
        piece.clear();
        return Ok(());
    }
    piece.resize(PIECE, 0);
    let read = loop {
        match reader.read(piece) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    piece.truncate(read);
    *ended = piece.is_empty();
    Ok(())
}

impl<R> ReadAhead<R> {
    fn next_piece(&mut self) -> io::Result<Vec<u8>> {
        while !self.worker.is_full() && self.worker.send(std::mem::take(&mut self.piece))? {}
        self.worker.take()?.ok_or_else(died)
    }
}

impl<R> Read for ReadAhead<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            if self.ended {
                return Ok(0);
            }
            let piece = self.next_piece();
            self.ended = !matches!(&piece, Ok(piece) if !piece.is_empty());
            (self.piece, self.at) = (piece?, 0);
        }
        let mut rest = self.piece.get(self.at..).unwrap_or_default();
        let read = rest.read(to)?;
        self.at += read;
        Ok(read)
    }
}

/// The thread may wait for a pipe that nobody writes to any more.
impl<R> Drop for ReadAhead<R> {
    fn drop(&mut self) {
        self.worker.detach();
    }
}

/// Hands what is written to an encoder on another thread.
#[derive(Debug)]
pub struct WriteBehind<E> {
    worker: Worker<E, Vec<u8>, io::Error>,
    piece: Vec<u8>,
}

impl<E: Write + Send + 'static> WriteBehind<E> {
    /// # Errors
    /// The system gives no thread.
    pub fn new(encoder: E) -> Result<Self> {
        let worker = Worker::spawn(PIECES - 1, died, encoder, |encoder: &mut E, piece: &mut Vec<u8>| {
            encoder.write_all(piece)?;
            piece.clear();
            Ok(())
        })?;
        Ok(Self { worker, piece: Vec::new() })
    }
}

impl<E> WriteBehind<E> {
    /// # Errors
    /// The encoder, or what is below it, failed.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() >= PIECE {
            let piece = std::mem::take(&mut self.piece);
            self.piece = self.worker.exchange(piece)?.unwrap_or_default();
        }
        Ok(())
    }

    /// Gives the encoder back when it has encoded everything.
    ///
    /// # Errors
    /// As of [`WriteBehind::put`].
    pub fn finish(mut self) -> io::Result<E> {
        self.worker.exchange(self.piece)?;
        self.worker.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_goes_in_comes_out(size in 0usize..2_000_000, step in 1usize..300_000) {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let mut writer = WriteBehind::new(Vec::new()).expect("a thread");
            for piece in bytes.chunks(step) {
                writer.put(piece).expect("put");
            }
            let written = writer.finish().expect("finished");
            prop_assert!(written == bytes);
            let mut reader = ReadAhead::new(io::Cursor::new(bytes.clone())).expect("a thread");
            let mut back = Vec::new();
            io::copy(&mut reader, &mut back).expect("read");
            prop_assert!(back == bytes);
        }
    }

    struct Broken(usize);

    impl Read for Broken {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or_else(|| io::Error::other("torn"))?;
            to[0] = b'x';
            Ok(1)
        }
    }

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("full"))
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn errors_come_through_and_an_end_is_an_end() {
        let mut reader = ReadAhead::new(Broken(3)).expect("a thread");
        let mut back = Vec::new();
        assert_eq!(io::copy(&mut reader, &mut back).expect_err("told").to_string(), "torn");
        assert_eq!(back, b"xxx");
        let mut writer = WriteBehind::new(Broken(0)).expect("a thread");
        let error = loop {
            if let Err(error) = writer.put(&[0; PIECE]) {
                break error;
            }
        };
        assert_eq!(error.to_string(), "full");
        assert!(writer.finish().is_err());
        drop(WriteBehind::new(Vec::new()));
    }
}
