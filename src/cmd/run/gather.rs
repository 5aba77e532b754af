//! Results files → answers, as the files come: every row of a fetched chunk goes into the store, every line that is no row of
//! its chunk beside it.

use std::{collections::HashSet, sync::Mutex};

use tokio::sync::mpsc;

use crate::{
    analysis::AnalysisSet,
    cmd::setup::Rendering,
    drill::{self, Guard},
    error::Result,
    flow::{
        ChunkId, Fault, FaultKind, FaultLine,
        answers::{AnswerReader, Outcome},
        chunks::Chunk,
        rows::{self, RowSet},
        tally::Tally,
    },
    journal::{Job, Journal, RefusedLine, Step, locked},
    lines::{blocks::Block, spill::AnswerStore},
    text::excerpt,
    workdir::{ResultFile, WorkDir},
};

/// Faults that belong to no row stand behind all posts, in the order of their files and lines.
const UNPLACED: u64 = 1 << 62;

/// Reads the results of every fetched chunk into the store: those that are here first, then the others as they come.
pub fn read_results(
    rendering: &Rendering,
    work: &WorkDir,
    journal: &Mutex<Journal>,
    store: AnswerStore,
    mut fetched: mpsc::Receiver<usize>,
) -> Result<Gathered> {
    let mut gatherer = Gatherer {
        set: &rendering.set,
        work,
        reader: AnswerReader::new(&rendering.set),
        store,
        tally: Tally::new(rendering.set.list.len()),
        block: Block::default(),
    };
    let job = |place: usize| -> Result<Option<(Chunk, Vec<RefusedLine>)>> {
        let state = &locked(journal)?.state;
        let refused = |job: &Job| job.end.as_ref().map(|end| end.refused_lines.clone()).unwrap_or_default();
        Ok(state.jobs.get(place).map(|job| (job.chunk.clone(), refused(job))))
    };
    let here: Vec<usize> = {
        let jobs = &locked(journal)?.state.jobs;
        let fetched = jobs.iter().enumerate().filter(|(_, job)| job.step == Step::Fetched);
        fetched.map(|(place, _)| place).collect()
    };
    for place in &here {
        if let Some((chunk, refused)) = job(*place)? {
            gatherer.read_chunk(*place, &chunk, &refused)?;
        }
    }
    let mut came: HashSet<usize> = here.iter().copied().collect();
    while let Some(place) = fetched.blocking_recv() {
        match job(place)? {
            Some((chunk, refused)) if came.insert(place) => gatherer.read_chunk(place, &chunk, &refused)?,
            _ => {}
        }
    }
    Ok(Gathered { store: gatherer.store, tally: gatherer.tally, came })
}

/// Answers that wait for their posts.
#[derive(Debug)]
pub struct Gathered {
    pub store: AnswerStore,
    /// What was counted on the way.
    pub tally: Tally,
    /// Places of the chunks whose results were read.
    came: HashSet<usize>,
}

/// What stands in the store for a row whose batch is not done. No fault has an empty payload.
pub const PENDING: &[u8] = b"";

impl Gathered {
    /// Marks every row of the other chunks as pending.
    pub fn mark_pending(&mut self, set: &AnalysisSet, work: &WorkDir, journal: &Mutex<Journal>) -> Result<()> {
        let chunks: Vec<(usize, ChunkId)> = {
            let jobs = &locked(journal)?.state.jobs;
            let all = jobs.iter().map(|job| job.chunk.id.clone()).enumerate();
            all.filter(|(place, _)| !self.came.contains(place)).collect()
        };
        for (_, id) in chunks {
            let Some(analysis) = set.find(&id.analysis) else { continue };
            for index in RowSet::read(&work.rows(&id))?.indexes() {
                // After every answer and fault that may be there.
                self.store.push_fault(index, analysis, u64::MAX, PENDING)?;
            }
        }
        Ok(())
    }
}

/// Precedence among answers for one row: chunk order, then output before error file, then line.
fn rank(place: usize, file: ResultFile, line: u64) -> u64 {
    const LINE_BITS: u32 = 27;
    let line = line.min((1 << LINE_BITS) - 1);
    ((place as u64) << (LINE_BITS + 1)) | (u64::from(file == ResultFile::Error) << LINE_BITS) | line
}

struct Gatherer<'a> {
    set: &'a AnalysisSet,
    work: &'a WorkDir,
    reader: AnswerReader<'a>,
    store: AnswerStore,
    tally: Tally,
    block: Block,
}

impl Gatherer<'_> {
    /// The rows of the lines for which the provider refused the whole batch; it does not say so anywhere else.
    fn add_refused(&mut self, place: usize, chunk: &Chunk, rows: &RowSet, refused: &[RefusedLine]) -> Result<()> {
        let Some(at) = self.set.find(&chunk.analysis) else { return Ok(()) };
        for RefusedLine { line, why } in refused {
            let nth = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
            let Some(index) = rows.indexes().nth(nth) else { continue };
            let detail = format!("the batch failed, since the provider refused line {line} of {}: {why}", chunk.id);
            let fault = FaultLine {
                index: Some(index),
                analysis: Some(chunk.analysis.clone()),
                ..FaultLine::new(Fault::new(FaultKind::BadRequest, detail))
            };
            let mut payload = Vec::new();
            fault.write_to(&mut payload);
            // Behind all lines of the files, should the batch have some.
            self.store.push_fault(index, at, rank(place, ResultFile::Error, u64::MAX), &payload)?;
        }
        Ok(())
    }

    fn read_chunk(&mut self, place: usize, chunk: &Chunk, refused: &[RefusedLine]) -> Result<()> {
        let rows = RowSet::read(&self.work.rows(&chunk.id))?;
        self.add_refused(place, chunk, &rows, refused)?;
        let asked = self.set.find(&chunk.analysis);
        let is_row = |index: u64, analysis: Option<usize>| {
            (asked == analysis && rows.contains(index)) || drill::without(Guard::Rows)
        };
        for file in ResultFile::BOTH {
            let path = self.work.results(&chunk.id, file);
            if !path.exists()? {
                continue;
            }
            // The name within the directory: the same wherever that lies.
            let name = path.name().display().to_string();
            let mut lines = rows::read_results(&path)?;
            while lines.fill(&mut self.block)? {
                for line in self.block.lines() {
                    let rank = rank(place, file, line.number);
                    let outcome = if line.too_long {
                        let fault = Fault::new(FaultKind::BadLine, "the line is longer than a result can be");
                        Outcome::unplaced(fault)
                    } else {
                        self.reader.read(line.bytes)
                    };
                    self.tally.count(&outcome);
                    let (index, analysis, fault, text) = match outcome {
                        Outcome::Answer { index, analysis, value, .. } if is_row(index.0, Some(analysis)) => {
                            self.store.push_value(index.0, analysis, rank, value)?;
                            continue;
                        }
                        Outcome::Answer { index, analysis, .. } => (Some(index.0), Some(analysis), None, None),
                        Outcome::Fault { index, analysis, fault, text, .. } => {
                            (index.map(|index| index.0), analysis, Some(fault), text)
                        }
                    };
                    let is_own = index.is_some_and(|index| is_row(index, analysis));
                    let fault = fault
                        .filter(|_| is_own || analysis.is_none())
                        .unwrap_or_else(|| Fault::new(FaultKind::Foreign, format!("{} has no such row", chunk.id)));
                    let fault = FaultLine {
                        index,
                        analysis: analysis.and_then(|at| self.set.list.get(at)).map(|a| a.name.clone()),
                        file: Some(name.clone()),
                        line: Some(line.number),
                        offset: Some(line.offset),
                        excerpt: Some(excerpt(text.map_or(line.bytes, str::as_bytes))),
                        ..FaultLine::new(fault)
                    };
                    let mut payload = Vec::new();
                    fault.write_to(&mut payload);
                    match (index, analysis) {
                        (Some(index), Some(at)) if is_own => self.store.push_fault(index, at, rank, &payload)?,
                        // Beside the row, not in it: it says nothing about the row's own answer.
                        (Some(index), Some(at)) if index < UNPLACED => {
                            self.store.push_fault(index, self.set.list.len() + at, rank, &payload)?;
                        }
                        _ => self.store.push_fault(UNPLACED + rank, 0, rank, &payload)?,
                    }
                }
            }
        }
        Ok(())
    }
}
