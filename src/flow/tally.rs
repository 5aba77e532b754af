//! What was seen, counted. Every number is the same whatever order the rows came in.

use std::collections::BTreeMap;

use super::{
    FaultKind, FaultLine,
    answers::{Outcome, Rung},
    results::Usage,
};

/// Faults of one kind shown in a report.
const SAMPLES: usize = 5;

/// Faults by kind, with the first few by index.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultCounts {
    kinds: BTreeMap<FaultKind, (u64, Vec<FaultLine>)>,
}

impl FaultCounts {
    pub fn add(&mut self, fault: &FaultLine) {
        let (count, samples) = self.kinds.entry(fault.kind).or_default();
        *count += 1;
        // The smallest by place, so that arrival order does not show.
        let place = |line: &FaultLine| (line.index.unwrap_or(u64::MAX), line.file.clone(), line.line);
        let at = samples.partition_point(|known| place(known) <= place(fault));
        if at < SAMPLES {
            samples.insert(at, fault.clone());
            samples.truncate(SAMPLES);
        }
    }

    pub fn total(&self) -> u64 {
        self.kinds.values().map(|(count, _)| count).sum()
    }

    pub fn count(&self, kind: FaultKind) -> u64 {
        self.kinds.get(&kind).map_or(0, |(count, _)| *count)
    }

    pub fn iter(&self) -> impl Iterator<Item = (FaultKind, u64, &[FaultLine])> {
        self.kinds.iter().map(|(kind, (count, samples))| (*kind, *count, samples.as_slice()))
    }
}

/// What was seen of one analysis. A verb fills the part that it sees.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnalysisTally {
    /// Requests rendered, or result lines read.
    pub rows: u64,
    /// Answers accepted.
    pub answers: u64,
    /// Rows whose batch is not done.
    pub pending: u64,
    pub faults: FaultCounts,
    /// Accepted answers by the rung of the ladder that read them; indexed like [`Rung::ALL`].
    pub rungs: [u64; Rung::ALL.len()],
    /// Labels left out of answers that were accepted for the rest.
    pub unknown_labels: u64,
    pub usage: Usage,
    /// Posts that have a value in the output.
    pub filled: u64,
    /// Posts that have none, and the first of them.
    pub missing: u64,
    pub first_missing: Vec<u64>,
}

/// Missing posts that a report names.
const FIRST_MISSING: usize = 20;

impl AnalysisTally {
    /// Notes, in index order, whether a post has a value in the output.
    pub fn note_post(&mut self, index: u64, filled: bool) {
        if filled {
            self.filled += 1;
            return;
        }
        self.missing += 1;
        if self.first_missing.len() < FIRST_MISSING {
            self.first_missing.push(index);
        }
    }
}

/// What was seen, per analysis in the order of the set, and of rows that belong to none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    pub analyses: Vec<AnalysisTally>,
    pub unplaced: FaultCounts,
    /// Lone surrogates that became U+FFFD.
    pub surrogates: u64,
}

impl Tally {
    pub fn new(analyses: usize) -> Self {
        Self { analyses: vec![AnalysisTally::default(); analyses], ..Self::default() }
    }

    /// Counts a result line: its row, its answer, its tokens. A fault is counted by [`Tally::add_fault`], with its place.
    pub fn count(&mut self, outcome: &Outcome<'_>) {
        let (analysis, judged, usage, surrogates) = match outcome {
            Outcome::Answer { analysis, judged, usage, surrogates, .. } => {
                (Some(*analysis), Some(judged), usage, surrogates)
            }
            Outcome::Fault { analysis, usage, surrogates, .. } => (*analysis, None, usage, surrogates),
        };
        let Some(counts) = analysis.and_then(|at| self.analyses.get_mut(at)) else { return };
        self.surrogates += surrogates;
        counts.rows += 1;
        // The provider also bills for rows that went wrong.
        usage.iter().for_each(|usage| counts.usage.add(*usage));
        if let Some(judged) = judged {
            counts.answers += 1;
            if let Some(count) = counts.rungs.get_mut(judged.rung as usize) {
                *count += 1;
            }
            counts.unknown_labels += u64::from(judged.unknown_labels);
        }
    }

    /// Adds what another thread read. Faults are not among it: they are counted where they are put in order.
    pub fn add(&mut self, other: &Self) {
        self.surrogates += other.surrogates;
        for (tally, other) in self.analyses.iter_mut().zip(&other.analyses) {
            tally.rows += other.rows;
            tally.answers += other.answers;
            tally.unknown_labels += other.unknown_labels;
            tally.usage.add(other.usage);
            tally.rungs.iter_mut().zip(other.rungs).for_each(|(count, more)| *count += more);
        }
    }

    /// Counts a fault under its analysis, or under none.
    pub fn add_fault(&mut self, analysis: Option<usize>, fault: &FaultLine) {
        match analysis.and_then(|at| self.analyses.get_mut(at)) {
            Some(tally) => tally.faults.add(fault),
            None => self.unplaced.add(fault),
        }
    }

    pub fn pending(&self) -> u64 {
        self.analyses.iter().map(|tally| tally.pending).sum()
    }

    pub fn faults(&self) -> u64 {
        self.unplaced.total() + self.analyses.iter().map(|tally| tally.faults.total()).sum::<u64>()
    }
}
