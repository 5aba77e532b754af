//! Chunk files on their way to the disk, on a thread of its own: requests are rendered on while the kernel copies and
//! syncs. All is done in the order in which it was asked for, so chunks are yielded in the order in which they end.

use std::{
    collections::HashMap,
    io::Write as _,
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Chunk, InputMark};
use crate::{
    error::{Error, Result},
    flow::rows::RowSet,
    lines::output::{AtomicFile, write_private},
};

/// Pieces between the threads, each way.
const PIECES: usize = 4;

/// What the thread is asked for; the number is the group's.
enum Todo {
    Write(usize, Vec<u8>),
    Close(usize, Box<Closing>),
}

/// A chunk whose last bytes were sent.
struct Closing {
    chunk: Chunk,
    rows: RowSet,
    input: InputMark,
}

/// The way to the thread that writes.
#[derive(Debug)]
pub struct ChunkWriter {
    todo: SyncSender<Todo>,
    /// Written pieces, to be filled again.
    empty: Receiver<Vec<u8>>,
}

impl ChunkWriter {
    /// Appends to the open chunk of a group, and leaves an empty piece.
    pub(super) fn write(&mut self, group: usize, piece: &mut Vec<u8>) -> Result<()> {
        let next = self.empty.try_recv().unwrap_or_default();
        self.ask(Todo::Write(group, std::mem::replace(piece, next)))
    }

    /// Ends the open chunk of a group.
    pub(super) fn close(&mut self, group: usize, chunk: Chunk, rows: RowSet, input: InputMark) -> Result<()> {
        self.ask(Todo::Close(group, Box::new(Closing { chunk, rows, input })))
    }

    fn ask(&mut self, todo: Todo) -> Result<()> {
        // It has failed, or died: `write_behind` knows with what.
        self.todo.send(todo).map_err(|_| Error::input("no more chunks are written"))
    }
}

/// Runs `cut` beside a thread that writes its chunks into a work directory. `yield_chunk` gets each when it is durable.
///
/// # Errors
/// What the thread failed with, else what `cut` failed with.
pub fn write_behind<T>(
    dir: &Path,
    yield_chunk: impl FnMut(Chunk, InputMark) -> Result<()> + Send,
    cut: impl FnOnce(&mut ChunkWriter) -> Result<T>,
) -> Result<T> {
    raise_open_files();
    let (todo, asked) = sync_channel(PIECES);
    let (used, empty) = sync_channel(PIECES);
    thread::scope(|scope| {
        let thread = scope.spawn(move || write_all(dir, &asked, &used, yield_chunk));
        let mut writer = ChunkWriter { todo, empty };
        let cut = cut(&mut writer);
        drop(writer);
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

fn write_all(
    dir: &Path,
    asked: &Receiver<Todo>,
    used: &SyncSender<Vec<u8>>,
    mut yield_chunk: impl FnMut(Chunk, InputMark) -> Result<()>,
) -> Result<()> {
    let requests = dir.join("requests/chunk");
    let mut open: HashMap<usize, AtomicFile> = HashMap::new();
    for todo in asked {
        match todo {
            Todo::Write(group, mut piece) => {
                let mut file = match open.remove(&group) {
                    Some(file) => file,
                    None => AtomicFile::create_private(&requests)?,
                };
                file.write_all(&piece).map_err(|e| Error::io("write", &requests, &e))?;
                open.insert(group, file);
                piece.clear();
                // A full channel has enough of them.
                let _enough = used.try_send(piece);
            }
            Todo::Close(group, closing) => {
                let Closing { chunk, rows, input } = *closing;
                write_private(&dir.join("rows").join(format!("{}.txt", chunk.id)), rows.to_text().as_bytes())?;
                let Some(file) = open.remove(&group) else { continue };
                file.commit_as(&dir.join(&chunk.path))?;
                yield_chunk(chunk, input)?;
            }
        }
    }
    Ok(())
}
