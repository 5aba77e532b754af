//! The files of chunks. Bytes are hashed as they come and go to the disk in pieces, on a thread of its own: the next requests are
//! made while the kernel copies and syncs. With one core, and in the simulator, the same is done in place.
//!
//! Everything is done in the order in which it was asked for, so chunks come back in the order in which they ended.

use std::{
    collections::{HashMap, VecDeque},
    io::Write,
    num::NonZeroUsize,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Chunk, Group, InputMark, PIECE, cutter::differs, request_file, rows_file};
use crate::{
    error::{Error, Result},
    flow::rows::RowSet,
    folder::Folder,
    lines::{output::AtomicFile, pool::workers, worker::Worker},
};

/// Pieces on their way to the disk.
const PIECES: usize = 4;
/// Bytes of all open chunks that wait for their piece to be full; with many groups pieces are smaller.
const PENDING: usize = 8 << 20;
const SMALLEST_PIECE: usize = 4 << 10;

/// The open files of a work directory's chunks, one for each group at most.
#[derive(Debug)]
pub struct ChunkFiles {
    worker: Worker<Disk, Piece, Error>,
    /// By group.
    open: Vec<OpenFile>,
    /// Chunks that are durable, each with the place in the input where it ended.
    done: VecDeque<(Chunk, InputMark)>,
}

/// The bytes of a chunk that is not whole yet.
#[derive(Debug, Default)]
struct OpenFile {
    /// On its way to the hash and the file.
    pending: Vec<u8>,
    hasher: blake3::Hasher,
}

/// How a chunk ends.
#[derive(Debug)]
pub struct Closing {
    pub chunk: Chunk,
    pub rows: RowSet,
    /// `None`: the journal has the chunk, and its files are written again.
    pub input: Option<InputMark>,
}

/// Bytes for the file of a group, and how the chunk ends if they are its last.
#[derive(Debug)]
struct Piece {
    group: usize,
    /// `None`: the chunk's requests are not needed any more, only its rows.
    bytes: Option<Vec<u8>>,
    end: Option<Box<Closing>>,
}

impl ChunkFiles {
    pub fn new(dir: Folder) -> Result<Self> {
        raise_open_files();
        let disk = Disk { dir, open: HashMap::new() };
        let died = || Error::input("the thread that writes chunks died; run the same command again");
        let worker = match workers() {
            NonZeroUsize::MIN => Worker::here(died, disk, Disk::take),
            _ => Worker::spawn(PIECES, died, disk, Disk::take)?,
        };
        Ok(Self { worker, open: Vec::new(), done: VecDeque::new() })
    }

    /// Makes room for a group, if it is new.
    pub fn add_group(&mut self, group: Group) {
        if self.open.len() <= group.0 {
            self.open.resize_with(group.0 + 1, OpenFile::default);
        }
    }

    /// Appends to the open chunk of a group. `to_disk`: not only its hash is needed.
    pub fn write(
        &mut self,
        group: Group,
        to_disk: bool,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        write(&mut Pieces { files: self, group: group.0, to_disk })
    }

    /// Ends the open chunk of a group.
    pub fn close(&mut self, group: Group, mut end: Closing) -> Result<()> {
        let (bytes, hash) = self.take_last(group);
        end.chunk.blake3 = hash;
        self.give(Piece { group: group.0, bytes: Some(bytes), end: Some(Box::new(end)) }).map(drop)
    }

    /// Ends a chunk of the journal that was written again. `to_disk` as in [`ChunkFiles::write`].
    ///
    /// # Errors
    /// Its requests are not those of the chunk.
    pub fn close_again(&mut self, group: Group, to_disk: bool, end: Closing) -> Result<()> {
        let (bytes, hash) = self.take_last(group);
        if hash != end.chunk.blake3 {
            return Err(differs("requests", &end.chunk));
        }
        self.give(Piece { group: group.0, bytes: to_disk.then_some(bytes), end: Some(Box::new(end)) }).map(drop)
    }

    /// The bytes of the open chunk that went nowhere yet, and the hash of all.
    fn take_last(&mut self, group: Group) -> (Vec<u8>, String) {
        let Some(open) = self.open.get_mut(group.0) else { return Default::default() };
        let OpenFile { pending, mut hasher } = std::mem::take(open);
        hasher.update(&pending);
        (pending, hasher.finalize().to_hex().to_string())
    }

    /// Hands a piece to the disk, and gives back an empty buffer.
    fn give(&mut self, piece: Piece) -> Result<Vec<u8>> {
        match self.worker.exchange(piece)? {
            Some(piece) => Ok(self.take_back(piece)),
            None => Ok(Vec::new()),
        }
    }

    fn take_back(&mut self, piece: Piece) -> Vec<u8> {
        if let Some(Closing { chunk, input: Some(input), .. }) = piece.end.map(|end| *end) {
            self.done.push_back((chunk, input));
        }
        let mut bytes = piece.bytes.unwrap_or_default();
        bytes.clear();
        bytes
    }

    /// The next chunk that is known to be durable.
    pub fn next_done(&mut self) -> Option<(Chunk, InputMark)> {
        self.done.pop_front()
    }

    /// Waits for one piece on its way to the disk; `false` if there is none.
    pub fn wait(&mut self) -> Result<bool> {
        let piece = self.worker.take()?;
        let came = piece.is_some();
        piece.into_iter().for_each(|piece| drop(self.take_back(piece)));
        Ok(came)
    }
}

/// A chunk is open for each analysis and model, and many systems give a process 256 or 1,024 open files unless it asks for
/// more. Where that is refused, the error comes with the first file that cannot be opened.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _refused = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Cuts what is written into pieces for the hash and the file.
struct Pieces<'f> {
    files: &'f mut ChunkFiles,
    group: usize,
    to_disk: bool,
}

/// Takes all bytes or fails. The contract of `Write` allows less, but not every writer of a request handles that.
impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let size = (PENDING / self.files.open.len().max(1)).clamp(SMALLEST_PIECE, PIECE);
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(open) = self.files.open.get_mut(self.group) else { break };
            let room = size.saturating_sub(open.pending.len());
            let (fits, after) = rest.split_at_checked(room).unwrap_or((rest, &[]));
            open.pending.extend_from_slice(fits);
            rest = after;
            if !rest.is_empty() {
                self.send()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Pieces<'_> {
    fn send(&mut self) -> Result<()> {
        let Self { files, group, to_disk } = self;
        let Some(open) = files.open.get_mut(*group) else { return Ok(()) };
        open.hasher.update(&open.pending);
        if !*to_disk {
            open.pending.clear();
            return Ok(());
        }
        let piece = Piece { group: *group, bytes: Some(std::mem::take(&mut open.pending)), end: None };
        let empty = files.give(piece)?;
        if let Some(open) = files.open.get_mut(*group) {
            open.pending = empty;
        }
        Ok(())
    }
}

/// What the thread has: the directory, and the files that are not whole yet by the number of their group.
#[derive(Debug)]
struct Disk {
    dir: Folder,
    open: HashMap<usize, AtomicFile>,
}

impl Disk {
    fn take(&mut self, piece: &mut Piece) -> Result<()> {
        let mut file = self.open.remove(&piece.group);
        if let Some(bytes) = &piece.bytes {
            let unnamed = self.dir.file("requests/chunk");
            let open = match &mut file {
                Some(open) => open,
                None => file.insert(AtomicFile::within(&unnamed)?),
            };
            open.write_all(bytes).map_err(|e| Error::io("write", unnamed.path(), &e))?;
        }
        let Some(Closing { chunk, rows, .. }) = piece.end.as_deref() else {
            self.open.extend(file.map(|file| (piece.group, file)));
            return Ok(());
        };
        rows_file(&self.dir, &chunk.id).write(rows.to_text().as_bytes())?;
        file.map_or(Ok(()), |file| file.commit_as(&request_file(&self.dir, &chunk.id).path()))
    }
}
