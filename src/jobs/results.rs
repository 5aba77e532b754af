//! From a terminal batch to verified results, and no trace left at the provider.

use std::{cell::Cell, fmt, sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    Fetched, Jobs, TOLD_CHUNKS,
    give_up::{Closes, Halt},
    patience::is_unreachable,
    poll::{LATEST, batch_of, describe_end, end_of, has_vanished, is_vague, seconds_now},
};
use crate::{
    blocking,
    drill::{self, Guard},
    error::{Error, Kind, Result},
    flow::rows::{RowBalance, RowSet, verify},
    journal::{BatchEnd, ChunkPlace, Event, Job},
    provider::{ApiError, Class},
    units::count,
    workdir::ResultFile,
};

/// Seconds between downloads of a file that the provider does not have yet: its batch may have ended a moment ago.
const LATE_FILE: [u64; 7] = [2, 5, 10, 20, 40, 80, 120];
/// From the pause of this length on the wait is reported: a file that is late by seconds is no news.
const TOLD_FROM: u64 = 10;
/// Downloads of a file that came short, and the pause between them.
const DOWNLOADS: u32 = 3;
const SHORT_PAUSE: Duration = Duration::from_secs(1);

/// Whether a results file that the provider does not have may come.
enum Late {
    After(Duration),
    /// The next command asks for it.
    NextTime,
    Never,
}

/// How a download of a batch's files ended.
struct Downloaded {
    balance: RowBalance,
    /// The first rows that are absent.
    absent: Vec<u64>,
    /// The answer for a file that the provider does not have, or not yet.
    missing: Option<ApiError>,
}

impl Jobs<'_> {
    /// Downloads the results of a terminal batch and verifies them.
    pub(super) async fn to_results(&self, place: ChunkPlace) -> Result<Fetched, Halt> {
        // The semaphore is never closed.
        let unread = Arc::clone(&self.unread).acquire_owned().await.map_err(|_| Halt::Left)?;
        let mut turn = self.downloads.acquire().await;
        let job = self.with_whole_end(self.journal.job(place)?).await?;
        let chunk = &job.chunk;
        let rows = self.work.rows(&chunk.id);
        if !rows.exists()? {
            return Err(self.give_up(chunk, Closes::Nothing, RowSet::gone(&rows)));
        }
        if let Some(end) = job.end().filter(|end| end.status != "completed") {
            self.progress.always(format_args!("{}: {}", chunk.id, describe_end(&batch_of(&job)?.batch, end)));
        }
        let (mut tries, mut pauses) = (0, LATE_FILE.iter());
        let (balance, absent, gone) = loop {
            let Downloaded { mut balance, absent, missing } = self.download(&job).await?;
            let gone = match missing {
                Some(error) => match self.wait_for_file(&job, &error, pauses.next())? {
                    Late::NextTime => return Err(Halt::Left),
                    Late::After(pause) => {
                        drop(turn);
                        sleep(pause).await;
                        turn = self.downloads.acquire().await;
                        continue;
                    }
                    Late::Never => Some(format!("the provider does not have its file: {error}")),
                },
                None => has_vanished(&job).then(|| "the provider does not have its batch".to_owned()),
            };
            if gone.is_some() {
                // Another download would not bring more.
                (balance.short, balance.missing) = (false, true);
                break (balance, absent, gone);
            }
            tries += 1;
            let has_files = job.end().is_some_and(|end| end.files().iter().any(Option::is_some));
            if !balance.short || !has_files || tries >= DOWNLOADS {
                break (balance, absent, None);
            }
            sleep(SHORT_PAUSE).await;
        };
        if let Some(gone) = gone.as_ref().filter(|_| job.made().is_some_and(|made| made.adopted)) {
            return Err(self.hold_gone(&job, gone)?);
        }
        self.report_rows(&job, &balance, &absent, gone.as_deref());
        self.append(&Event::Fetched { chunk: chunk.id.clone(), rows: balance })?;
        Ok(Fetched { place, _unread: unread })
    }

    /// A job whose batch has ended. A batch that did not say where its results are is asked once more.
    async fn with_whole_end(&self, job: Job) -> Result<Job> {
        if !has_vanished(&job) && !job.end().is_some_and(is_vague) {
            return Ok(job);
        }
        // A batch that cannot be asked now is not there, as before.
        if let Ok(batch) = self.client.batch(&batch_of(&job)?.batch).await
            && batch.status.is_terminal()
            && !is_vague(&end_of(&batch))
        {
            self.append(&Event::Ended { chunk: job.chunk.id.clone(), end: end_of(&batch) })?;
            let changed = self.journal.read(|state| state.job(&job.chunk.id).cloned())?;
            return Ok(changed.unwrap_or(job));
        }
        Ok(job)
    }

    /// Downloads a batch's files and counts their rows.
    async fn download(&self, job: &Job) -> Result<Downloaded, Halt> {
        let chunk = &job.chunk;
        let end = job.end().cloned().unwrap_or_default();
        let files = ResultFile::BOTH.map(|file| self.work.results(&chunk.id, file));
        let (mut whole, mut missing) = (true, None);
        for (to, id) in files.iter().zip(end.files()) {
            let Some(id) = id else {
                to.remove()?;
                continue;
            };
            match self.patiently(is_unreachable, async || self.client.download(id, to).await).await? {
                Ok(download) => whole &= download.complete,
                // Some say in other words that it is not there yet; no request of ours for a file is a bad one.
                Err(error) if matches!(error.class, Class::NotFound | Class::BadRequest) => missing = Some(error),
                Err(error) => {
                    // Results that cannot be fetched need not be paid for: the provider keeps all files at the same place.
                    let closes = if error.class == Class::Redirect { Closes::AllCreates } else { Closes::Nothing };
                    return Err(self.give_up(chunk, closes, error));
                }
            }
        }
        let (analysis, rows) = (chunk.analysis.clone(), self.work.rows(&chunk.id));
        drill::step("verify", "results");
        let (mut balance, absent) = blocking::run(move || verify(&files, &analysis, &RowSet::read(&rows)?)).await?;
        // The provider's copy was deleted when it had come: the journal may have lost that, the directory has not.
        let missing = missing.filter(|_| balance.absent > 0);
        balance.short |= !whole || missing.is_some() || is_short(&balance, &end, chunk.lines);
        balance.short &= !drill::without(Guard::Counts);
        Ok(Downloaded { balance, absent, missing })
    }

    /// Whether a file that the provider does not have may still come: a batch may say that it has ended before its files can be
    /// read.
    fn wait_for_file(&self, job: &Job, error: &ApiError, pause: Option<&u64>) -> Result<Late> {
        let (id, now) = (&job.chunk.id, seconds_now());
        let is_late = job.missing.is_some_and(|since| now.saturating_sub(since) > LATEST);
        if self.settings.no_wait && !is_late {
            self.append(&Event::Missing { chunk: id.clone(), why: error.to_string(), at: now })?;
            self.tell_few(&self.late, format_args!("{id}: {error}; it is asked for again next time"));
            return Ok(Late::NextTime);
        }
        let Some(seconds) = pause.filter(|_| !self.settings.no_wait && !is_late && !job.is_held()) else {
            return Ok(Late::Never);
        };
        let pause = Duration::from_secs(*seconds);
        if *seconds == TOLD_FROM {
            self.tell_few(&self.late, format_args!("{id}: {error}; it is asked for again for some minutes"));
        }
        self.progress.detail(format_args!("{id}: {error}; asking again in {pause:?}"));
        Ok(Late::After(pause))
    }

    /// Says something of the first chunks that it is true of, and of the others only with `--verbose`.
    fn tell_few(&self, told: &Cell<u32>, text: fmt::Arguments<'_>) {
        told.set(told.get().saturating_add(1));
        match told.get() {
            ..TOLD_CHUNKS => self.progress.note(text),
            TOLD_CHUNKS => self.progress.note(format_args!("{text} (more chunks like this are told with --verbose)")),
            _ => self.progress.detail(text),
        }
    }

    /// Gives up a chunk whose batch was found in a listing and whose results are gone. It is not created again until the user
    /// says so.
    fn hold_gone(&self, job: &Job, gone: &str) -> Result<Halt> {
        let id = &job.chunk.id;
        if !job.is_held() {
            self.append(&Event::Held { chunk: id.clone(), why: gone.to_owned() })?;
        }
        let what = format!(
            "{id}: its batch {} was made and its results are gone from the provider: another copy of this directory has \
             probably fetched and deleted them ({gone}). It is not created again",
            batch_of(job)?.batch
        );
        let error = Error::new(Kind::TryAgain, what).fix(format!(
            "look for results/{id}.output.jsonl in other copies of this directory, and go on in the one that has it. If there \
             is none, `submit` or `run` of this directory with --on-ambiguous again creates it once more, and it is paid once more"
        ));
        let closes = if job.is_held() { Closes::Nothing } else { Closes::AllCreates };
        Ok(self.give_up(&job.chunk, closes, error))
    }

    /// Says which rows are absent, and whether the results look like another format.
    fn report_rows(&self, job: &Job, balance: &RowBalance, first: &[u64], gone: Option<&str>) {
        let id = &job.chunk.id;
        if balance.absent > 0 {
            let named: Vec<String> = first.iter().map(ToString::to_string).collect();
            let more = if first.len() as u64 == balance.absent { "" } else { ", …" };
            let is_first = gone.is_some() && self.gone.replace(1) == 0;
            let advice = "; if another copy of this directory has fetched them, they are there; else `zbatch run --missing` \
                          asks for them again";
            let gone = gone.map(|gone| format!("; {gone}{}", if is_first { advice } else { "" })).unwrap_or_default();
            let again = if balance.short { "; the next fetch or run tries once more" } else { "" };
            self.progress.note(format_args!(
                "{id}: {} of {} absent: {}{more}{gone}{again}",
                balance.absent,
                count(job.chunk.lines, "row"),
                named.join(", ")
            ));
        }
        if balance.textless {
            self.progress.note(format_args!(
                "{id}: no line of its results has text where an answer stands; this looks like another format, not like \
                 bad answers, so the provider's files are kept"
            ));
        }
    }

    /// Deletes the files that nobody needs any more, here and at the provider. A file that cannot be deleted now is deleted by
    /// the next command.
    pub(super) async fn clean(&self, place: ChunkPlace) -> Result<()> {
        let job = self.journal.job(place)?;
        if !self.settings.keep_requests {
            self.work.request(&job.chunk.id).remove()?;
        }
        // The provider's files of a chunk that came short may be downloaded again.
        let short = job.rows().is_some_and(|rows| rows.short || rows.textless || rows.missing);
        if self.settings.keep_remote || job.is_cleaned() || short {
            return Ok(());
        }
        let _turn = self.downloads.acquire().await;
        for id in job.remote_files() {
            if let Err(error) = self.client.delete(id).await {
                self.progress.detail(format_args!("{}: {error}; it is tried again next time", job.chunk.id));
                return Ok(());
            }
        }
        self.append(&Event::Cleaned { chunk: job.chunk.id.clone() })
    }
}

/// A batch promised more rows than its files hold. One that has completed and counts nothing promised all.
fn is_short(rows: &RowBalance, end: &BatchEnd, lines: u64) -> bool {
    // A line that cannot be read stands for a row; a foreign one does not.
    let output = rows.output.saturating_add(rows.bad);
    if end.status == "completed" && end.counts_nothing() {
        return output.saturating_add(rows.error) < lines;
    }
    output < end.completed || rows.error < end.failed
}
