//! The records of chunks that `gen -d` and `chunk` print.

use crate::{
    error::{Kind, Result},
    flow::chunks::{Chunk, Chunks, Source},
    lines::output::Output,
};

/// Chunk records on stdout. They only tell of the job, which goes on when nobody reads them any more.
#[derive(Debug)]
pub struct ChunkRecords(Option<Output>);

impl ChunkRecords {
    pub fn create() -> Result<Self> {
        Output::create(None).map(|stdout| Self(Some(stdout)))
    }

    /// Prints the record of each chunk when it is durable.
    ///
    /// # Errors
    /// The chunks cannot be cut, or stdout cannot be written.
    pub fn print_all(&mut self, chunks: &mut Chunks<impl Source>) -> Result<()> {
        while let Some(chunk) = chunks.next()? {
            self.print(&chunk)?;
        }
        Ok(())
    }

    fn print(&mut self, chunk: &Chunk) -> Result<()> {
        let Some(stdout) = &mut self.0 else { return Ok(()) };
        let mut line = serde_json::to_vec(chunk).unwrap_or_default();
        line.push(b'\n');
        match stdout.put(&line).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == Kind::ClosedPipe => {
                self.0 = None;
                Ok(())
            }
            done => done,
        }
    }
}
