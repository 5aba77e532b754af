//! The results files of a work directory: which of them are lost, and all of them in one file.

use std::path::Path;

use super::{ResultFile, WorkDir, results_file};
use crate::{
    console::Console,
    error::Result,
    flow::{
        ChunkId, CustomId,
        results::read_custom_id,
        rows::{RowSet, read_results},
    },
    folder::Folder,
    journal::{Job, State},
    lines::{blocks::Block, output::Output},
};

/// Results whose files are no longer as they were downloaded.
#[derive(Debug, Default)]
pub struct Lost {
    /// The chunks whose results are to be downloaded once more; those that came short are among them.
    pub again: Vec<ChunkId>,
    /// How many chunks have lost results that the provider has deleted, too.
    pub gone: usize,
}

/// Looks for results that came short or are lost, and says which.
pub fn find_lost_results(state: &State, work: &WorkDir, console: &Console) -> Lost {
    let mut lost = Lost::default();
    for job in &state.jobs {
        let id = &job.chunk.id;
        match what_is_lost(job, work.folder()) {
            Some(what) if job.is_cleaned() => {
                lost.gone += 1;
                console.always(format_args!("{what}, and {NO_COPY}: rows that are not in it will be absent"));
            }
            Some(what) => {
                console.note(format_args!("{what}; it is downloaded again"));
                lost.again.push(id.clone());
            }
            None if job.came_short() => {
                console.note(format_args!("{id}: its results came short; they are downloaded again"));
                lost.again.push(id.clone());
            }
            None => {}
        }
    }
    lost
}

/// Why lost results cannot be downloaded again.
pub const NO_COPY: &str = "the provider's copy is deleted";

/// Which results file of a chunk is gone or has another length than the downloaded one. `zbatch verify` also reads the files.
pub fn what_is_lost(job: &Job, dir: &Folder) -> Option<String> {
    let rows = job.rows()?;
    ResultFile::BOTH.into_iter().enumerate().find_map(|(at, file)| {
        let path = results_file(dir, &job.chunk.id, file);
        let now = path.len().ok().flatten();
        let Some(marks) = &rows.files else {
            let counted = [rows.output, rows.error].get(at).copied();
            return (now.is_none() && counted > Some(0)).then(|| format!("{path} is gone"));
        };
        let then = marks.get(at)?.as_ref().map(|mark| mark.bytes);
        match (then, now) {
            _ if then == now => None,
            (_, None) => Some(format!("{path} is gone")),
            (None, Some(_)) => Some(format!("{path} is not what was downloaded: there was no such file")),
            (Some(then), Some(now)) => Some(format!("{path} has {now} bytes, and {then} were downloaded")),
        }
    })
}

/// The results of every chunk in one file, which appears whole.
pub fn write_results(path: &Path, work: &WorkDir, state: &State) -> Result<()> {
    let mut output = Output::create(Some(path))?;
    state.jobs.iter().try_for_each(|job| append_results(job, work, &mut output))?;
    output.commit()
}

/// Appends the results of one chunk. A line for the row of another chunk is left out: `parse` could not recognise it there.
pub fn append_results(job: &Job, work: &WorkDir, output: &mut Output) -> Result<()> {
    let rows = RowSet::read(&work.rows(&job.chunk.id))?;
    let mut block = Block::default();
    for path in ResultFile::BOTH.map(|file| work.results(&job.chunk.id, file)) {
        if !path.exists()? {
            continue;
        }
        let mut reader = read_results(&path)?;
        while reader.fill(&mut block)? {
            for line in block.lines() {
                let id = read_custom_id(line.bytes);
                let id = id.as_deref().map(CustomId::parse);
                let foreign = matches!(id, Some(None))
                    || matches!(id, Some(Some(id)) if id.analysis != job.chunk.analysis || !rows.contains(id.index.0));
                if !foreign && !line.too_long {
                    output.put(line.bytes)?;
                    output.put(b"\n")?;
                }
            }
        }
    }
    output.flush()
}
