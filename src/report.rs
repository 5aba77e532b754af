//! What a verb says at its end: a short table for people, JSON for programs.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use serde_json::{Value, json};

use crate::{
    analysis::AnalysisSet,
    error::Result,
    flow::{
        FaultKind,
        answers::Rung,
        tally::{AnalysisTally, FaultCounts, Tally},
    },
    lines::output::Output,
    units::count,
};

/// A field under this share of posts is an issue.
const LOW: f64 = 50.0;
/// A field from this share of posts on is complete.
const COMPLETE: f64 = 90.0;

/// Percent, to two places; all of nothing is complete.
#[expect(clippy::cast_precision_loss, reason = "a share for people to read")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 100.0 } else { (part as f64 * 10_000.0 / whole as f64).round() / 100.0 }
}

fn faults_json(counts: &FaultCounts) -> Value {
    let kinds = counts
        .iter()
        .map(|(kind, count, samples)| (kind.as_str().to_owned(), json!({ "count": count, "samples": samples })));
    Value::Object(kinds.collect())
}

impl AnalysisTally {
    /// `posts`: how many the output holds, if the verb writes posts.
    fn to_json(&self, posts: Option<u64>) -> Value {
        let rungs = Rung::ALL.iter().zip(self.rungs).map(|(rung, count)| (rung.as_str().to_owned(), count.into()));
        let mut json = json!({
            "rows": self.rows,
            "answers": self.answers,
            "faults": faults_json(&self.faults),
            "rungs": Value::Object(rungs.collect()),
            "unknown_labels": self.unknown_labels,
            "tokens": self.usage,
        });
        if let (Some(posts), Some(map)) = (posts, json.as_object_mut()) {
            let rate = percent(self.filled, posts);
            let status = match self.filled {
                0 if posts > 0 => "not_processed",
                _ if rate >= COMPLETE => "completed",
                _ => "incomplete",
            };
            map.insert("pending".to_owned(), self.pending.into());
            map.insert("total_posts".to_owned(), posts.into());
            map.insert("processed_posts".to_owned(), self.filled.into());
            map.insert("missing_posts".to_owned(), self.missing.into());
            map.insert("completeness_rate".to_owned(), rate.into());
            map.insert("missing_indices".to_owned(), self.first_missing.clone().into());
            map.insert("status".to_owned(), status.into());
        }
        json
    }
}

/// What a verb has to say at its end.
#[derive(Debug)]
pub struct Report<'a> {
    /// Name and field of each analysis.
    pub analyses: Vec<(&'a str, &'a str)>,
    pub tally: &'a Tally,
    /// Places in the input and posts among them, of a verb that writes posts.
    pub posts: Option<(u64, u64)>,
    pub batches: Option<Value>,
    pub times: Option<Value>,
    /// The complete command to run next.
    pub next: Option<String>,
}

impl Report<'_> {
    /// A short table, for stderr.
    pub fn table(&self) -> String {
        let places = self.posts.map(|(places, _)| places);
        let width = self.analyses.iter().map(|(name, _)| name.len()).max().unwrap_or_default().max(8);
        let mut text = match places {
            Some(_) => {
                format!("{:width$}  {:>10} {:>10} {:>10} {:>10}", "analysis", "posts", "filled", "missing", "faults")
            }
            None => format!("{:width$}  {:>10} {:>10} {:>10}", "analysis", "rows", "answers", "faults"),
        };
        for ((name, _), tally) in self.analyses.iter().zip(&self.tally.analyses) {
            let faults = tally.faults.total();
            let _infallible = match places {
                Some(posts) => {
                    write!(text, "\n{name:width$}  {posts:>10} {:>10} {:>10} {faults:>10}", tally.filled, tally.missing)
                }
                None => write!(text, "\n{name:width$}  {:>10} {:>10} {faults:>10}", tally.rows, tally.answers),
            };
        }
        let mut kinds: BTreeMap<FaultKind, u64> = BTreeMap::new();
        let counts = self.tally.analyses.iter().map(|tally| &tally.faults).chain([&self.tally.unplaced]);
        counts.flat_map(FaultCounts::iter).for_each(|(kind, count, _)| *kinds.entry(kind).or_default() += count);
        if !kinds.is_empty() {
            let list: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {}", kind.as_str())).collect();
            let _infallible = write!(text, "\nfaults: {}", list.join(", "));
        }
        let pending = self.tally.pending();
        if pending > 0 {
            let _infallible = write!(text, "\npending: {}, of batches that are not done", count(pending, "row"));
        }
        if let Some(next) = &self.next {
            let _infallible = write!(text, "\nnext: {next}");
        }
        text
    }

    pub fn to_json(&self) -> Value {
        let places = self.posts.map(|(places, _)| places);
        let analyses = self.analyses.iter().zip(&self.tally.analyses);
        let mut stats = json!({
            "analyses": Value::Object(analyses.clone().map(|((name, _), t)| ((*name).to_owned(), t.to_json(places))).collect()),
            "unplaced_faults": faults_json(&self.tally.unplaced),
        });
        let mut report = json!({ "report_text": self.table() });
        let Some(map) = report.as_object_mut() else { return report };
        if let Some((places, good)) = self.posts {
            if let Some(stats) = stats.as_object_mut() {
                stats.insert("total_posts".to_owned(), places.into());
            }
            let fields: Vec<(&str, f64)> =
                analyses.map(|((_, field), tally)| (*field, percent(tally.filled, places))).collect();
            let low = fields.iter().filter(|(_, rate)| *rate < LOW);
            let issues: Vec<String> =
                low.map(|(field, rate)| format!("`{field}` is there in {rate} % of the posts only")).collect();
            let completeness = fields.iter().map(|(field, rate)| ((*field).to_owned(), (*rate).into()));
            map.insert(
                "validation_result".to_owned(),
                json!({
                    "field_completeness": Value::Object(completeness.collect()),
                    "data_quality": {
                        "total_posts": places,
                        "readable_posts": good,
                        "faults": self.tally.faults(),
                        "lone_surrogates": self.tally.surrogates,
                    },
                    "issues": issues,
                }),
            );
        }
        map.insert("integration_stats".to_owned(), stats);
        for (key, value) in [("batches", &self.batches), ("times", &self.times)] {
            if let Some(value) = value {
                map.insert(key.to_owned(), value.clone());
            }
        }
        if let Some(next) = &self.next {
            map.insert("next_command".to_owned(), next.clone().into());
        }
        report
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let mut output = Output::create(Some(path))?;
        output.put(&self.to_text())?;
        output.commit()
    }

    pub fn to_text(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(&self.to_json()).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

/// The report of a verb that reads rows and writes no posts.
pub fn write_filter_report(path: &Path, set: &AnalysisSet, tally: &Tally) -> Result<()> {
    let analyses = set.list.iter().map(|a| (a.name.as_str(), a.field.as_str())).collect();
    Report { analyses, tally, posts: None, batches: None, times: None, next: None }.write(path)
}
