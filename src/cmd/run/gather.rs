//! Results files → answers, as the files come: every row of a fetched chunk goes into the store, every line that is no row of
//! its chunk beside it.

use std::collections::HashSet;

use tokio::sync::mpsc;

use crate::{
    analysis::AnalysisSet,
    cmd::request_settings::RequestSettings,
    drill::{self, Guard},
    error::Result,
    flow::{
        ChunkId, Fault, FaultKind, FaultLine,
        answers::{AnswerReader, Outcome},
        chunks::Chunk,
        rows::{self, RowSet},
        tally::Tally,
    },
    jobs::Fetched,
    journal::{ChunkPlace, Job, Journal, RefusedLine},
    lines::{blocks::Block, spill::AnswerStore},
    text::excerpt,
    workdir::{ResultFile, WorkDir},
};

/// Faults that belong to no row stand behind all posts, in the order of their files and lines.
const UNPLACED: u64 = 1 << 62;

/// Reads the results of every fetched chunk into the store: those that are here first, then the others as they come.
pub fn read_results(
    rendering: &RequestSettings,
    work: &WorkDir,
    journal: &Journal,
    store: AnswerStore,
    mut fetched: mpsc::Receiver<Fetched>,
) -> Result<Gathered> {
    let mut gatherer = Gatherer {
        set: &rendering.set,
        work,
        reader: AnswerReader::new(&rendering.set),
        store,
        tally: Tally::new(rendering.set.list.len()),
        block: Block::default(),
    };
    let here = journal.read(|state| state.fetched())?;
    for place in &here {
        gatherer.read_chunk(*place, &journal.job(*place)?)?;
    }
    let mut came: HashSet<ChunkPlace> = here.into_iter().collect();
    while let Some(chunk) = fetched.blocking_recv() {
        // It may have come before the journal was read.
        if came.insert(chunk.place) {
            gatherer.read_chunk(chunk.place, &journal.job(chunk.place)?)?;
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
    came: HashSet<ChunkPlace>,
}

/// What stands in the store for a row whose batch is not done. No fault has an empty payload.
pub const PENDING: &[u8] = b"";

impl Gathered {
    /// Marks every row of the other chunks as pending.
    pub fn mark_pending(&mut self, set: &AnalysisSet, work: &WorkDir, journal: &Journal) -> Result<()> {
        let others = journal.read(|state| {
            let others = state.placed().filter(|(place, _)| !self.came.contains(place));
            others.map(|(_, job)| job.chunk.id.clone()).collect::<Vec<ChunkId>>()
        })?;
        for id in others {
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
fn rank(place: ChunkPlace, file: ResultFile, line: u64) -> u64 {
    const LINE_BITS: u32 = 27;
    let line = line.min((1 << LINE_BITS) - 1);
    ((place.index() as u64) << (LINE_BITS + 1)) | (u64::from(file == ResultFile::Error) << LINE_BITS) | line
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
    fn add_refused(&mut self, place: ChunkPlace, chunk: &Chunk, rows: &RowSet, refused: &[RefusedLine]) -> Result<()> {
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

    fn read_chunk(&mut self, place: ChunkPlace, job: &Job) -> Result<()> {
        let chunk = &job.chunk;
        let rows = RowSet::read(&self.work.rows(&chunk.id))?;
        if let Some(end) = job.end() {
            self.add_refused(place, chunk, &rows, &end.refused_lines)?;
        }
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
