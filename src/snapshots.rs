//! The three files that tools made for the old scripts read. They are folds of the journal, written whole at the end of
//! a step and never read by us.

use std::{
    collections::BTreeMap,
    io::{BufWriter, Write as _},
};

use serde::Serialize;

use crate::{
    error::{Error, Result},
    journal::{Job, State, Step},
    lines::output::AtomicFile,
    workdir::{ResultFile, WorkDir},
};

#[derive(Serialize)]
struct FilesInfo<'s> {
    generation_time: String,
    total_files: usize,
    total_size_bytes: u64,
    total_size_mb: f64,
    analysis_types: BTreeMap<&'s str, TypeFiles>,
}

#[derive(Default, Serialize)]
struct TypeFiles {
    file_count: usize,
    files: Vec<FileInfo>,
}

#[derive(Serialize)]
struct FileInfo {
    path: String,
    size_bytes: u64,
    size_mb: f64,
}

/// After cutting: `jsonl_files_info.json`.
pub fn write_files_info(work: &WorkDir, state: &State) -> Result<()> {
    let total = state.jobs.iter().map(|job| job.chunk.bytes).sum();
    let mut analysis_types = BTreeMap::<&str, TypeFiles>::new();
    for Job { chunk, .. } in &state.jobs {
        let of_type = analysis_types.entry(&chunk.analysis).or_default();
        of_type.file_count += 1;
        of_type.files.push(FileInfo {
            path: work.join(&chunk.path).display().to_string(),
            size_bytes: chunk.bytes,
            size_mb: megabytes(chunk.bytes),
        });
    }
    let info = FilesInfo {
        generation_time: now(),
        total_files: state.jobs.len(),
        total_size_bytes: total,
        total_size_mb: megabytes(total),
        analysis_types,
    };
    write(work, "jsonl_files_info.json", &info)
}

#[derive(Default, Serialize)]
struct TypeBatches<'s> {
    status: &'static str,
    upload_results: Vec<Upload<'s>>,
    batch_results: Vec<Batch<'s>>,
    successful_batches: Vec<Batch<'s>>,
}

#[derive(Serialize)]
struct Upload<'s> {
    file_path: String,
    file_id: Option<&'s str>,
    status: &'static str,
}

#[derive(Clone, Serialize)]
struct Batch<'s> {
    file_path: String,
    file_id: &'s str,
    batch_id: Option<&'s str>,
    description: String,
    status: &'static str,
}

/// After submitting: `batch_results.json`.
pub fn write_batch_results(work: &WorkDir, state: &State) -> Result<()> {
    let status = |there: bool| if there { "success" } else { "failed" };
    let mut types = BTreeMap::<&str, TypeBatches<'_>>::new();
    for job in &state.jobs {
        let of_type = types.entry(&job.chunk.analysis).or_default();
        let file_path = work.join(&job.chunk.path).display().to_string();
        let (file_id, batch_id) = (job.file_id.as_deref(), job.batch_id.as_deref());
        if let Some(file_id) = file_id {
            let file_path = file_path.clone();
            let description = job.chunk.id.to_string();
            let batch = Batch { file_path, file_id, batch_id, description, status: status(batch_id.is_some()) };
            of_type.successful_batches.extend(batch_id.map(|_| batch.clone()));
            of_type.batch_results.push(batch);
        }
        of_type.upload_results.push(Upload { file_path, file_id, status: status(file_id.is_some()) });
    }
    for of_type in types.values_mut() {
        of_type.status = match (of_type.batch_results.is_empty(), of_type.successful_batches.is_empty()) {
            (true, _) => "all_uploads_failed",
            (false, true) => "all_batches_failed",
            (false, false) => "batches_created",
        };
    }
    write(work, "batch_results.json", &types)
}

#[derive(Serialize)]
struct DownloadInfo<'s> {
    completed_tasks: BTreeMap<String, Ended<'s>>,
    failed_tasks: BTreeMap<String, Ended<'s>>,
    downloaded_files: BTreeMap<String, Vec<String>>,
    download_time: String,
}

#[derive(Serialize)]
struct Ended<'s> {
    batch_id: &'s str,
    status: &'s str,
    created_at: Option<u64>,
    completed_at: Option<u64>,
    request_counts: RequestCounts,
    output_file_id: Option<&'s str>,
    error_file_id: Option<&'s str>,
}

#[derive(Serialize)]
struct RequestCounts {
    total: u64,
    completed: u64,
    failed: u64,
}

/// After fetching: `download_info.json`.
pub fn write_download_info(work: &WorkDir, state: &State) -> Result<()> {
    let (mut completed_tasks, mut failed_tasks) = (BTreeMap::new(), BTreeMap::new());
    let mut downloaded_files = BTreeMap::new();
    for job in state.jobs.iter().filter(|job| job.step >= Step::Ended) {
        let (Some(end), Some(batch_id)) = (&job.end, &job.batch_id) else { continue };
        let key = format!("{}_{}", job.chunk.analysis, job.chunk.id);
        let ended = Ended {
            batch_id,
            status: &end.status,
            created_at: end.created_at,
            completed_at: end.completed_at,
            request_counts: RequestCounts { total: end.total, completed: end.completed, failed: end.failed },
            output_file_id: end.output_file_id.as_deref(),
            error_file_id: end.error_file_id.as_deref(),
        };
        let side = if end.status == "completed" { &mut completed_tasks } else { &mut failed_tasks };
        side.insert(key.clone(), ended);
        if job.step == Step::Fetched {
            let paths = ResultFile::BOTH.map(|file| work.results(&job.chunk.id, file));
            let paths = paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string());
            downloaded_files.insert(key, paths.collect());
        }
    }
    let info = DownloadInfo { completed_tasks, failed_tasks, downloaded_files, download_time: now() };
    write(work, "download_info.json", &info)
}

#[expect(clippy::cast_precision_loss, reason = "megabytes for people to read")]
fn megabytes(bytes: u64) -> f64 {
    (bytes as f64 / 10_000.0).round() / 100.0
}

/// RFC 3339, UTC.
pub fn now() -> String {
    jiff::Timestamp::now().round(jiff::Unit::Second).unwrap_or_else(|_| jiff::Timestamp::now()).to_string()
}

fn write(work: &WorkDir, name: &str, snapshot: &impl Serialize) -> Result<()> {
    let path = work.join(name);
    let mut file = BufWriter::new(AtomicFile::create_private(&path)?);
    serde_json::to_writer_pretty(&mut file, snapshot)
        .map_err(Into::into)
        .and_then(|()| file.write_all(b"\n"))
        .map_err(|e| Error::io("write", &path, &e))?;
    file.into_inner().map_err(|e| Error::io("write", &path, e.error()))?.commit()
}
