//! Compression on a thread of its own: a reader that is decoded ahead, a writer that is encoded behind. Either holds a few
//! pieces, no more.

use std::{
    io::{self, Read, Write},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use crate::{error::Result, threads};

/// Bytes that go from thread to thread at a time.
const PIECE: usize = 256 << 10;
/// Pieces between the threads, each way.
const PIECES: usize = 2;

fn died() -> io::Error {
    io::Error::other("the thread that (de)compresses died")
}

/// Reads from another reader before it is asked to.
#[derive(Debug)]
pub struct ReadAhead {
    /// An empty piece is the end; without one the thread died, and that must not look like an end.
    full: Receiver<io::Result<Vec<u8>>>,
    empty: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl ReadAhead {
    /// # Errors
    /// The system gives no thread.
    pub fn new(mut reader: impl Read + Send + 'static) -> Result<Self> {
        let (send, full) = sync_channel(PIECES);
        let (empty, used) = sync_channel::<Vec<u8>>(PIECES);
        threads::spawn(move || {
            loop {
                let mut piece = used.try_recv().unwrap_or_default();
                piece.resize(PIECE, 0);
                let read = reader.read(&mut piece);
                if matches!(&read, Err(e) if e.kind() == io::ErrorKind::Interrupted) {
                    continue;
                }
                let is_last = !matches!(read, Ok(1..));
                let piece = read.map(|read| {
                    piece.truncate(read);
                    piece
                });
                // Nobody reads on: then nothing is decoded either.
                if send.send(piece).is_err() || is_last {
                    return;
                }
            }
        })?;
        Ok(Self { full, empty, piece: Vec::new(), at: 0, ended: false })
    }
}

impl Read for ReadAhead {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            if self.ended {
                return Ok(0);
            }
            let piece = self.full.recv().map_err(|_| died())?;
            self.ended = !matches!(&piece, Ok(piece) if !piece.is_empty());
            // A full channel has enough of them; the thread may have ended.
            let _enough = self.empty.try_send(std::mem::replace(&mut self.piece, piece?));
            self.at = 0;
        }
        let mut rest = self.piece.get(self.at..).unwrap_or_default();
        let read = rest.read(to)?;
        self.at += read;
        Ok(read)
    }
}

/// Hands what is written to an encoder on another thread.
#[derive(Debug)]
pub struct WriteBehind<T> {
    /// `None`: the encoder has ended.
    full: Option<SyncSender<Vec<u8>>>,
    empty: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    thread: Option<JoinHandle<io::Result<T>>>,
}

impl<T: Send + 'static> WriteBehind<T> {
    /// `finish` ends the encoding and gives back what is below it.
    /// # Errors
    /// The system gives no thread.
    pub fn new<E: Write + Send + 'static>(
        mut encoder: E,
        finish: impl FnOnce(E) -> io::Result<T> + Send + 'static,
    ) -> Result<Self> {
        let (full, todo) = sync_channel::<Vec<u8>>(PIECES);
        let (used, empty) = sync_channel(PIECES);
        let thread = threads::spawn(move || {
            for mut piece in todo {
                encoder.write_all(&piece)?;
                piece.clear();
                let _enough = used.try_send(piece);
            }
            finish(encoder)
        })?;
        Ok(Self { full: Some(full), empty, piece: Vec::new(), thread: Some(thread) })
    }

    /// # Errors
    /// What the encoder, or what is below it, failed with.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() < PIECE { Ok(()) } else { self.send() }
    }

    fn send(&mut self) -> io::Result<()> {
        let next = self.empty.try_recv().unwrap_or_default();
        let piece = std::mem::replace(&mut self.piece, next);
        match self.full.as_ref().map(|full| full.send(piece)) {
            Some(Ok(())) => Ok(()),
            _ => self.end().and(Err(died())),
        }
    }

    /// Waits for the encoder's end.
    pub fn finish(mut self) -> io::Result<T> {
        self.send()?;
        self.end()
    }
}

impl<T> WriteBehind<T> {
    fn end(&mut self) -> io::Result<T> {
        self.full = None;
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_else(|| Err(died()))
    }
}

/// A temp file below is removed by its owner: that is the thread, which must not outlive the program.
impl<T> Drop for WriteBehind<T> {
    fn drop(&mut self) {
        if self.thread.is_some() {
            drop(self.end());
        }
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
            let mut writer = WriteBehind::new(Vec::new(), Ok).expect("a thread");
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
        let mut writer = WriteBehind::new(Broken(0), Ok).expect("a thread");
        let error = loop {
            if let Err(error) = writer.put(&[0; PIECE]) {
                break error;
            }
        };
        assert_eq!(error.to_string(), "full");
        assert!(writer.finish().is_err());
        drop(WriteBehind::new(Vec::new(), Ok));
    }
}
