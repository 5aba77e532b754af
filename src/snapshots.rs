//! The three files that tools made for the old scripts read. They are folds of the journal, written whole at the end of
//! a step and never read by us.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    error::Result,
    journal::{Job, State, Step},
    lines::output::write_private,
    workdir::{ResultFile, WorkDir},
};

/// After cutting: `jsonl_files_info.json`.
pub fn write_files_info(work: &WorkDir, state: &State) -> Result<()> {
    let mut types: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    let mut total = 0;
    for Job { chunk, .. } in &state.jobs {
        total += chunk.bytes;
        let path = work.join(&chunk.path).display().to_string();
        types.entry(&chunk.analysis).or_default().push(json!({
            "path": path, "size_bytes": chunk.bytes, "size_mb": megabytes(chunk.bytes),
        }));
    }
    let types: Map<String, Value> = types
        .into_iter()
        .map(|(name, files)| (name.to_owned(), json!({ "file_count": files.len(), "files": files })))
        .collect();
    write(
        work,
        "jsonl_files_info.json",
        &json!({
            "generation_time": now(), "total_files": state.jobs.len(), "total_size_bytes": total,
            "total_size_mb": megabytes(total), "analysis_types": types,
        }),
    )
}

/// After submitting: `batch_results.json`.
pub fn write_batch_results(work: &WorkDir, state: &State) -> Result<()> {
    let mut types: BTreeMap<&str, Vec<&Job>> = BTreeMap::new();
    for job in &state.jobs {
        types.entry(&job.chunk.analysis).or_default().push(job);
    }
    let types: Map<String, Value> = types
        .into_iter()
        .map(|(name, jobs)| {
            let entry = |job: &Job| {
                let path = work.join(&job.chunk.path).display().to_string();
                json!({ "file_path": path, "file_id": job.file_id })
            };
            let uploads: Vec<Value> = jobs
                .iter()
                .map(|job| {
                    with(entry(job), [("status", if job.file_id.is_some() { "success" } else { "failed" }.into())])
                })
                .collect();
            let batches: Vec<Value> = jobs
                .iter()
                .filter(|job| job.file_id.is_some())
                .map(|job| {
                    let status = if job.batch_id.is_some() { "success" } else { "failed" };
                    let more = [
                        ("batch_id", json!(job.batch_id)),
                        ("description", job.chunk.id.to_string().into()),
                        ("status", status.into()),
                    ];
                    with(entry(job), more)
                })
                .collect();
            let successful: Vec<&Value> = batches.iter().filter(|batch| batch["status"] == "success").collect();
            let status = match (batches.is_empty(), successful.is_empty()) {
                (true, _) => "all_uploads_failed",
                (false, true) => "all_batches_failed",
                (false, false) => "batches_created",
            };
            let value = json!({
                "status": status, "upload_results": uploads, "successful_batches": successful, "batch_results": batches,
            });
            (name.to_owned(), value)
        })
        .collect();
    write(work, "batch_results.json", &Value::Object(types))
}

/// After fetching: `download_info.json`.
pub fn write_download_info(work: &WorkDir, state: &State) -> Result<()> {
    let (mut completed, mut failed, mut files) = (Map::new(), Map::new(), Map::new());
    for job in state.jobs.iter().filter(|job| job.step >= Step::Ended) {
        let (Some(end), Some(batch_id)) = (&job.end, &job.batch_id) else { continue };
        let key = format!("{}_{}", job.chunk.analysis, job.chunk.id);
        let task = json!({
            "batch_id": batch_id, "status": end.status, "created_at": end.created_at, "completed_at": end.completed_at,
            "request_counts": { "total": end.total, "completed": end.completed, "failed": end.failed },
            "output_file_id": end.output_file_id, "error_file_id": end.error_file_id,
        });
        let side = if end.status == "completed" { &mut completed } else { &mut failed };
        side.insert(key.clone(), task);
        if job.step == Step::Fetched {
            let paths = ResultFile::BOTH.map(|file| work.results(&job.chunk.id, file));
            let paths = paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string());
            files.insert(key, paths.collect::<Vec<_>>().into());
        }
    }
    write(
        work,
        "download_info.json",
        &json!({
            "completed_tasks": completed, "failed_tasks": failed, "downloaded_files": files, "download_time": now(),
        }),
    )
}

fn with<const N: usize>(mut object: Value, more: [(&str, Value); N]) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.extend(more.map(|(key, value)| (key.to_owned(), value)));
    }
    object
}

#[expect(clippy::cast_precision_loss, reason = "megabytes for people to read")]
fn megabytes(bytes: u64) -> f64 {
    (bytes as f64 / 10_000.0).round() / 100.0
}

/// RFC 3339, UTC.
pub fn now() -> String {
    jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| jiff::Timestamp::now()).to_string()
}

fn write(work: &WorkDir, name: &str, value: &Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    write_private(&work.join(name), text.as_bytes())
}
