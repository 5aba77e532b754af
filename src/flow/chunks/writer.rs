//! Chunk files on their way to the disk, on a thread of its own: requests are rendered on while the kernel copies and
//! syncs. All is done in the order in which it was asked for, so chunks are yielded in the order in which they end.

use std::{
    collections::HashMap,
    io::Write as _,
    num::NonZeroUsize,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Chunk, InputMark};
use crate::{
    error::{Error, Result},
    flow::{
        chunks::{request_file, rows_file},
        rows::RowSet,
    },
    folder::Folder,
    lines::{output::AtomicFile, pool::workers},
    threads,
};

/// Pieces between the threads, each way.
const PIECES: usize = 4;

/// What is asked for; the number is the group's.
enum Todo {
    Write(usize, Vec<u8>),
    Close(usize, Box<Closing>),
}

/// A chunk's end, and what was not sent before of its bytes.
pub(super) struct Closing {
    /// `None`: its requests are not needed any more, and only its rows are written.
    pub last: Option<Vec<u8>>,
    pub chunk: Chunk,
    pub rows: RowSet,
    /// `None`: it is in the journal, and its files are made again.
    pub input: Option<InputMark>,
}

/// The way to the files.
pub struct ChunkWriter<'w>(Way<'w>);

enum Way<'w> {
    Thread {
        todo: SyncSender<Todo>,
        /// Written pieces, to be filled again.
        empty: Receiver<Vec<u8>>,
    },
    Here(&'w mut dyn FnMut(Todo) -> Result<Vec<u8>>),
}

impl std::fmt::Debug for ChunkWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkWriter").finish_non_exhaustive()
    }
}

impl ChunkWriter<'_> {
    /// Appends to the open chunk of a group, and leaves an empty piece.
    pub(super) fn write(&mut self, group: usize, piece: &mut Vec<u8>) -> Result<()> {
        *piece = self.ask(Todo::Write(group, std::mem::take(piece)))?;
        Ok(())
    }

    /// Ends the open chunk of a group with its last piece.
    pub(super) fn close(&mut self, group: usize, end: Closing) -> Result<()> {
        self.ask(Todo::Close(group, Box::new(end))).map(|_| ())
    }

    fn ask(&mut self, asked: Todo) -> Result<Vec<u8>> {
        match &mut self.0 {
            Way::Here(take) => take(asked),
            Way::Thread { todo, empty } => {
                // It has failed, or died: `write_behind` knows with what.
                todo.send(asked).map_err(|_| Error::input("no more chunks are written"))?;
                Ok(empty.try_recv().unwrap_or_default())
            }
        }
    }
}

/// Runs `cut` beside a thread that writes its chunks into a work directory. `yield_chunk` gets each when it is durable.
/// On one core there is no such thread.
///
/// # Errors
/// What the thread failed with, else what `cut` failed with.
pub fn write_behind<T>(
    dir: &Folder,
    yield_chunk: impl FnMut(Chunk, InputMark) -> Result<()> + Send,
    cut: impl FnOnce(&mut ChunkWriter<'_>) -> Result<T>,
) -> Result<T> {
    raise_open_files();
    let mut files = Files { dir, open: HashMap::new(), yield_chunk };
    if workers() == NonZeroUsize::MIN {
        return cut(&mut ChunkWriter(Way::Here(&mut |todo| files.take(todo))));
    }
    let (todo, asked) = sync_channel(PIECES);
    let (used, empty) = sync_channel(PIECES);
    thread::scope(|scope| {
        let thread = threads::spawn_scoped(scope, move || {
            for todo in asked {
                // A full channel has enough of them.
                let _enough = used.try_send(files.take(todo)?);
            }
            Ok(())
        })?;
        let cut = cut(&mut ChunkWriter(Way::Thread { todo, empty }));
        let died = |_| Err(Error::input("the thread that writes chunks died; run the same command again"));
        thread.join().unwrap_or_else(died).and(cut)
    })
}

/// A chunk is open for each analysis and model, and many systems give a process 256 or 1,024 open files unless it asks for
/// more. Where that is refused, opening the file that is one too many says so.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let _refused = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

struct Files<'d, F> {
    dir: &'d Folder,
    /// By the number of its group.
    open: HashMap<usize, AtomicFile>,
    yield_chunk: F,
}

impl<F: FnMut(Chunk, InputMark) -> Result<()>> Files<'_, F> {
    /// Does it, and gives back what can be filled again.
    fn take(&mut self, todo: Todo) -> Result<Vec<u8>> {
        match todo {
            Todo::Write(group, mut piece) => {
                let file = self.append(group, &piece)?;
                self.open.insert(group, file);
                piece.clear();
                Ok(piece)
            }
            Todo::Close(group, end) => {
                let Closing { last, chunk, rows, input } = *end;
                let file = last.as_ref().map(|last| self.append(group, last)).transpose()?;
                rows_file(self.dir, &chunk.id).write(rows.to_text().as_bytes())?;
                file.map_or(Ok(()), |file| file.commit_as(&request_file(self.dir, &chunk.id).path()))?;
                input.map_or(Ok(()), |input| (self.yield_chunk)(chunk, input))?;
                let mut last = last.unwrap_or_default();
                last.clear();
                Ok(last)
            }
        }
    }

    fn append(&mut self, group: usize, piece: &[u8]) -> Result<AtomicFile> {
        let unnamed = self.dir.file("requests/chunk");
        let mut file = match self.open.remove(&group) {
            Some(file) => file,
            None => AtomicFile::within(&unnamed)?,
        };
        file.write_all(piece).map_err(|e| Error::io("write", unnamed.path(), &e))?;
        Ok(file)
    }
}
