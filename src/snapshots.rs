//! The three files that tools made for the old scripts read. They are folds of the journal, written whole at the end of
//! a step; nothing of the job is read back from them. The scripts themselves write files of these names: one that does not
//! say that zbatch wrote it is moved aside, never overwritten.

use std::{
    collections::BTreeMap,
    io::{BufWriter, Read as _, Write as _},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::{
    console::Console,
    error::{Error, Result},
    folder::Entry,
    journal::{Job, State, Step},
    lines::output::AtomicFile,
    provider::{BatchId, FileId},
    units::sum,
    workdir::{ResultFile, WorkDir},
};

/// The first key of each snapshot, or of each type in it: whoever reads them passes over a key that it does not know.
#[derive(Clone, Copy, Default, Serialize)]
enum Writer {
    #[default]
    #[serde(rename = "zbatch")]
    Zbatch,
}
/// What a snapshot of ours begins with, somewhere in its first bytes.
const MARK: &[u8] = br#""written_by": "zbatch""#;
const HEAD: u64 = 4096;

#[derive(Serialize)]
struct FilesInfo<'s> {
    written_by: Writer,
    /// Unix seconds.
    generation_time: u64,
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
pub fn write_files_info(work: &WorkDir, state: &State, console: &Console) -> Result<()> {
    let total = sum(state.jobs.iter().map(|job| job.chunk.bytes));
    let mut analysis_types = BTreeMap::<&str, TypeFiles>::new();
    for Job { chunk, .. } in &state.jobs {
        let of_type = analysis_types.entry(&chunk.analysis).or_default();
        of_type.file_count += 1;
        of_type.files.push(FileInfo {
            path: chunk.path.clone(),
            size_bytes: chunk.bytes,
            size_mb: megabytes(chunk.bytes),
        });
    }
    let info = FilesInfo {
        written_by: Writer::Zbatch,
        generation_time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        total_files: state.jobs.len(),
        total_size_bytes: total,
        total_size_mb: megabytes(total),
        analysis_types,
    };
    write(work, "jsonl_files_info.json", &info, console)
}

#[derive(Default, Serialize)]
struct TypeBatches<'s> {
    written_by: Writer,
    status: &'static str,
    upload_results: Vec<Upload<'s>>,
    batch_results: Vec<Batch<'s>>,
    successful_batches: Vec<Batch<'s>>,
    /// What the scripts wrote of a type that failed, beside its status.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    results: Vec<Failed<'s>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Failed<'s> {
    Upload(Upload<'s>),
    Batch(Batch<'s>),
}

#[derive(Clone, Serialize)]
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
pub fn write_batch_results(work: &WorkDir, state: &State, console: &Console) -> Result<()> {
    let status = |there: bool| if there { "success" } else { "failed" };
    let mut types = BTreeMap::<&str, TypeBatches<'_>>::new();
    for (job, description) in state.jobs.iter().zip(descriptions(&state.jobs)) {
        let of_type = types.entry(&job.chunk.analysis).or_default();
        let file_path = absolute(&work.request(&job.chunk.id).path());
        let (file_id, batch_id) = (job.file().map(FileId::as_str), job.batch().map(BatchId::as_str));
        if let Some(file_id) = file_id {
            let file_path = file_path.clone();
            let batch = Batch { file_path, file_id, batch_id, description, status: status(batch_id.is_some()) };
            of_type.successful_batches.extend(batch_id.map(|_| batch.clone()));
            of_type.batch_results.push(batch);
        }
        of_type.upload_results.push(Upload { file_path, file_id, status: status(file_id.is_some()) });
    }
    for of_type in types.values_mut() {
        (of_type.status, of_type.results) =
            match (of_type.batch_results.as_slice(), of_type.successful_batches.as_slice()) {
                ([], _) => ("all_uploads_failed", of_type.upload_results.iter().cloned().map(Failed::Upload).collect()),
                (batches, []) => ("all_batches_failed", batches.iter().cloned().map(Failed::Batch).collect()),
                _ => ("batches_created", Vec::new()),
            };
    }
    write(work, "batch_results.json", &types, console)
}

/// For each chunk, in order: `TYPE analysis`, with ` (Part N)` where its type has several.
fn descriptions(jobs: &[Job]) -> Vec<String> {
    let mut parts = BTreeMap::<&str, (u64, u64)>::new();
    jobs.iter().for_each(|job| parts.entry(&job.chunk.analysis).or_default().1 += 1);
    let mut describe = |job: &Job| {
        let name = job.chunk.analysis.as_str();
        match parts.get_mut(name) {
            Some((part, all)) if *all > 1 => {
                *part += 1;
                format!("{name} analysis (Part {part})")
            }
            _ => format!("{name} analysis"),
        }
    };
    jobs.iter().map(&mut describe).collect()
}

#[derive(Serialize)]
struct DownloadInfo<'s> {
    written_by: Writer,
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
pub fn write_download_info(work: &WorkDir, state: &State, console: &Console) -> Result<()> {
    let (mut completed_tasks, mut failed_tasks) = (BTreeMap::new(), BTreeMap::new());
    let mut downloaded_files = BTreeMap::new();
    let described = state.jobs.iter().zip(descriptions(&state.jobs));
    for (job, description) in described.filter(|(job, _)| job.step() >= Step::Ended) {
        let (Some(end), Some(batch_id)) = (job.end(), job.batch().map(BatchId::as_str)) else { continue };
        let key = format!("{}_{description}", job.chunk.analysis);
        let ended = Ended {
            batch_id,
            status: &end.status,
            created_at: end.created_at,
            completed_at: end.completed_at,
            request_counts: RequestCounts { total: end.total, completed: end.completed, failed: end.failed },
            output_file_id: end.output_file_id.as_ref().map(FileId::as_str),
            error_file_id: end.error_file_id.as_ref().map(FileId::as_str),
        };
        let side = if end.status == "completed" { &mut completed_tasks } else { &mut failed_tasks };
        side.insert(key.clone(), ended);
        if job.step() == Step::Fetched {
            let paths = ResultFile::BOTH.map(|file| work.results(&job.chunk.id, file));
            let there = paths.iter().filter(|file| file.exists().unwrap_or_default());
            downloaded_files.insert(key, there.map(|file| absolute(&file.path())).collect());
        }
    }
    let download_time = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S").to_string();
    let written_by = Writer::Zbatch;
    let info = DownloadInfo { written_by, completed_tasks, failed_tasks, downloaded_files, download_time };
    write(work, "download_info.json", &info, console)
}

/// The scripts run in another directory than we do.
fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

#[expect(clippy::cast_precision_loss, reason = "megabytes, as the scripts wrote them")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn write(work: &WorkDir, name: &str, snapshot: &impl Serialize, console: &Console) -> Result<()> {
    let entry = work.file(name);
    let path = entry.path();
    if !may_overwrite(&entry)? {
        let old = (1u32..).map(|n| format!("{name}.old-{n}"));
        let old = old.map(|old| work.file(old)).find(|old| !old.exists().unwrap_or(true));
        let old = old.unwrap_or_else(|| work.file(format!("{name}.old")));
        entry.rename(old.name().as_os_str())?;
        console.always(format_args!("{entry} was not written by zbatch: it is now {old}"));
    }
    let mut file = BufWriter::new(AtomicFile::within(&entry)?);
    serde_json::to_writer_pretty(&mut file, snapshot)
        .map_err(Into::into)
        .and_then(|()| file.write_all(b"\n"))
        .map_err(|e| Error::io("write", &path, &e))?;
    file.into_inner().map_err(|e| Error::io("write", &path, e.error()))?.commit()
}

/// There is no such file, it is ours, or it holds no type.
fn may_overwrite(entry: &Entry) -> Result<bool> {
    let Some(file) = entry.find()? else { return Ok(true) };
    let mut head = Vec::new();
    #[expect(clippy::disallowed_methods, reason = "no more than the head")]
    file.take(HEAD).read_to_end(&mut head).map_err(|e| Error::io("read", entry.path(), &e))?;
    Ok(memchr::memmem::find(&head, MARK).is_some() || head.trim_ascii() == b"{}")
}
