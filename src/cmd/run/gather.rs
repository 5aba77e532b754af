//! Results files → answers, as the files come: every row of a fetched chunk goes into the store, every line that is no row of
//! its chunk beside it.

use std::{collections::HashSet, path::Path};

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
        enhanced::{ABSENT, PENDING, stray_key},
        rows::{self, RowSet, Unanswered},
        shards::{Key, Shards, field},
        tally::Tally,
    },
    jobs::Fetched,
    journal::{ChunkPlace, Job, Journal, RefusedLine},
    lines::blocks::Block,
    text::excerpt,
    workdir::{ResultFile, WorkDir},
};

/// Where answers wait for their posts.
#[derive(Debug)]
pub struct Store {
    /// Answers and faults of rows.
    pub answers: Shards,
    /// Faults of lines that are no row of their chunk.
    pub strays: Shards,
}

impl Store {
    /// Of the budget the strays have this share.
    const STRAYS: u64 = 8;

    pub fn new(analyses: usize, memory: u64, tmp_dir: &Path) -> Result<Self> {
        let share = memory / Self::STRAYS;
        let answers = Shards::new(analyses, memory - share, tmp_dir)?;
        Ok(Self { answers, strays: Shards::new(analyses, share, tmp_dir)? })
    }

    fn add_fault(
        &mut self,
        rows: &mut ChunkRows<'_>,
        (index, analysis, rank): (Option<u64>, Option<usize>, u64),
        is_own: bool,
        fault: &FaultLine,
    ) -> Result<()> {
        let mut payload = Vec::new();
        fault.write_to(&mut payload);
        match index.zip(analysis).filter(|_| is_own) {
            Some((index, at)) => {
                rows.unanswered.remove(index);
                self.answers.push(fault_key(index, at, rank), &payload)
            }
            // It says nothing about the answer of the row.
            None => self.strays.push(stray_key(index, analysis, rank), &payload),
        }
    }
}

/// Reads the results of every fetched chunk into the store: those that are here first, then the others as they come.
pub fn read_results(
    rendering: &RequestSettings,
    work: &WorkDir,
    journal: &Journal,
    store: Store,
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
    pub store: Store,
    /// What was counted on the way.
    pub tally: Tally,
    /// Places of the chunks whose results were read.
    came: HashSet<ChunkPlace>,
}

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
                self.store.answers.push(fault_key(index, analysis, PENDING_RANK), PENDING)?;
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

/// Behind all lines, so that any answer or fault of a row comes first.
const ABSENT_RANK: u64 = u64::MAX - 1;
pub const PENDING_RANK: u64 = u64::MAX;

pub fn fault_key(index: u64, at: usize, rank: u64) -> Key {
    Key { index, field: field(at), is_fault: true, rank }
}

struct Gatherer<'a> {
    set: &'a AnalysisSet,
    work: &'a WorkDir,
    reader: AnswerReader<'a>,
    store: Store,
    tally: Tally,
    block: Block,
}

/// The rows of the chunk whose results are read.
struct ChunkRows<'c> {
    place: ChunkPlace,
    chunk: &'c Chunk,
    analysis: Option<usize>,
    rows: RowSet,
    unanswered: Unanswered,
}

impl ChunkRows<'_> {
    fn has(&self, index: u64, analysis: Option<usize>) -> bool {
        (self.analysis == analysis && self.rows.contains(index)) || drill::without(Guard::Rows)
    }
}

impl Gatherer<'_> {
    fn read_chunk(&mut self, place: ChunkPlace, job: &Job) -> Result<()> {
        let chunk = &job.chunk;
        let rows = RowSet::read(&self.work.rows(&chunk.id))?;
        let (analysis, unanswered) = (self.set.find(&chunk.analysis), Unanswered::of(&rows));
        let mut rows = ChunkRows { place, chunk, analysis, rows, unanswered };
        if let Some(end) = job.end() {
            self.add_refused(&rows, &end.refused_lines)?;
        }
        ResultFile::BOTH.into_iter().try_for_each(|file| self.read_file(&mut rows, file))?;
        let Some(at) = analysis else { return Ok(()) };
        let absent = |index| self.store.answers.push(fault_key(index, at, ABSENT_RANK), ABSENT);
        rows.unanswered.indexes().try_for_each(absent)
    }

    /// The rows of the lines for which the provider refused the whole batch; it does not say so anywhere else.
    fn add_refused(&mut self, rows: &ChunkRows<'_>, refused: &[RefusedLine]) -> Result<()> {
        let (Some(at), chunk) = (rows.analysis, rows.chunk) else { return Ok(()) };
        for RefusedLine { line, why } in refused {
            let nth = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
            let Some(index) = rows.rows.indexes().nth(nth) else { continue };
            let detail = format!("the batch failed, since the provider refused line {line} of {}: {why}", chunk.id);
            let fault = FaultLine {
                index: Some(index),
                analysis: Some(chunk.analysis.clone()),
                ..FaultLine::new(Fault::new(FaultKind::BadRequest, detail))
            };
            let mut payload = Vec::new();
            fault.write_to(&mut payload);
            // Behind all lines of the files, should the batch have some.
            let rank = rank(rows.place, ResultFile::Error, u64::MAX);
            self.store.answers.push(fault_key(index, at, rank), &payload)?;
        }
        Ok(())
    }

    fn read_file(&mut self, rows: &mut ChunkRows<'_>, file: ResultFile) -> Result<()> {
        let path = self.work.results(&rows.chunk.id, file);
        if !path.exists()? {
            return Ok(());
        }
        // The name within the directory: the same wherever that lies.
        let name = path.name().display().to_string();
        let Self { set, reader, store, tally, block, .. } = self;
        let mut lines = rows::read_results(&path)?;
        while lines.fill(block)? {
            for line in block.lines() {
                let rank = rank(rows.place, file, line.number);
                let outcome = if line.too_long {
                    let fault = Fault::new(FaultKind::BadLine, "the line is longer than a result can be");
                    Outcome::unplaced(fault)
                } else {
                    reader.read(line.bytes)
                };
                tally.count(&outcome);
                let (index, analysis, fault, text) = match outcome {
                    Outcome::Answer { index, analysis, value, .. } if rows.has(index.0, Some(analysis)) => {
                        let key = Key { index: index.0, field: field(analysis), is_fault: false, rank };
                        rows.unanswered.remove(index.0);
                        store.answers.push(key, value)?;
                        continue;
                    }
                    Outcome::Answer { index, analysis, .. } => (Some(index.0), Some(analysis), None, None),
                    Outcome::Fault { index, analysis, fault, text, .. } => {
                        (index.map(|index| index.0), analysis, Some(fault), text)
                    }
                };
                let is_own = index.is_some_and(|index| rows.has(index, analysis));
                let foreign = || Fault::new(FaultKind::Foreign, format!("{} has no such row", rows.chunk.id));
                let fault = FaultLine {
                    index,
                    analysis: analysis.and_then(|at| set.list.get(at)).map(|a| a.name.clone()),
                    file: Some(name.clone()),
                    line: Some(line.number),
                    offset: Some(line.offset),
                    excerpt: Some(excerpt(text.map_or(line.bytes, str::as_bytes))),
                    ..FaultLine::new(fault.filter(|_| is_own || analysis.is_none()).unwrap_or_else(foreign))
                };
                store.add_fault(rows, (index, analysis, rank), is_own, &fault)?;
            }
        }
        Ok(())
    }
}
