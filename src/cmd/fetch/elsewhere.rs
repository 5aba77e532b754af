//! `fetch --batch`: the results of batches that were made elsewhere, by another program or by a work directory that is lost.
//! The provider is only read: nothing is created, cancelled or deleted, and no state is kept here.

use std::{cell::RefCell, path::Path, time::Duration};

use tokio::time::sleep;

use crate::{
    cli::FetchArgs,
    cmd::{
        Ended,
        outputs::refuse_in_work_dir,
        remote::{client, runtime},
    },
    console::Console,
    error::{Error, Kind, Result},
    flow::rows::read_results,
    folder::{Entry, directory},
    lines::{
        blocks::Block,
        output::{Output, is_stdout, is_stream},
    },
    provider::{Batch, BatchId, Client},
    settings::Config,
    stop::{Stop, StopReason},
    units::count,
};

/// What came of the batches so far.
#[derive(Default)]
struct Came {
    lines: u64,
    /// Rows that are in no file, lines that cannot be read, and batches that failed.
    faults: u64,
    /// Batches whose files were cut short on the way.
    short: u64,
}

struct Fetcher<'a> {
    client: &'a Client,
    console: &'a Console,
    /// Where a file lands before its lines go on.
    landing: tempfile::TempDir,
    output: Output,
    came: Came,
    /// The last trouble that was told.
    told: RefCell<String>,
}

pub fn run(args: &FetchArgs, console: &Console) -> Result<Ended> {
    let config = Config::load(args.source.config.as_deref(), console)?;
    let mut waiting: Vec<BatchId> = Vec::new();
    for id in &args.batch {
        let id: BatchId = id.trim().parse().map_err(|e: Error| Error::usage(format!("--batch: {}", e.line())))?;
        if !waiting.contains(&id) {
            waiting.push(id);
        }
    }
    let path = args.output.as_deref().unwrap_or(Path::new("-"));
    refuse_in_work_dir("-o", path, None)?;
    Output::probe(path)?;
    let client = client(&config, &args.provider, &args.remote, console)?;
    let runtime = runtime()?;
    let stop = Stop::listen(&runtime, config.timeout(args.remote.timeout).map(|timeout| timeout.value))?;
    let poll_interval = (!args.remote.no_wait).then(|| config.poll_interval(args.remote.poll_interval).value);
    let mut fetcher = Fetcher {
        client: &client,
        console,
        landing: landing(path)?,
        output: Output::create(Some(path))?,
        came: Came::default(),
        told: RefCell::default(),
    };
    let fetched = runtime.block_on(stop.run(fetcher.fetch(&mut waiting, poll_interval)));
    match fetched {
        Ok(fetched) => fetched?,
        Err(StopReason::Signal(number)) => {
            return Err(Error::new(Kind::Interrupted(number), "interrupted; the batches run on"));
        }
        Err(StopReason::TimedOut) => {}
    }
    let Fetcher { output, came, .. } = fetcher;
    console.note(count(came.lines, "result line"));
    if !waiting.is_empty() || came.short > 0 {
        let names: Vec<&str> = waiting.iter().map(BatchId::as_str).collect();
        if !names.is_empty() {
            console.always(format_args!("not ended yet: {}", names.join(", ")));
        }
        if !is_stdout(path) {
            console.always(format_args!("{} appears when all of them are there", path.display()));
        }
        return Ok(Ended::Remains);
    }
    output.commit()?;
    Ok(if came.faults > 0 { Ended::WithFaults } else { Ended::Finished })
}

/// Beside the output, which holds as much; for a pipe where temporary files go.
fn landing(output: &Path) -> Result<tempfile::TempDir> {
    let made = if is_stdout(output) || is_stream(output) {
        tempfile::tempdir()
    } else {
        tempfile::tempdir_in(directory(output))
    };
    made.map_err(|e| Error::io("create", "a temporary directory", &e))
}

impl Fetcher<'_> {
    /// Asks for every batch until none of `waiting` is left, or once without `poll_interval`.
    async fn fetch(&mut self, waiting: &mut Vec<BatchId>, poll_interval: Option<Duration>) -> Result<()> {
        let mut told = false;
        loop {
            for id in waiting.clone() {
                if let Some(batch) = self.ended(&id).await? {
                    self.take(&batch).await?;
                    waiting.retain(|waiting| *waiting != id);
                }
            }
            let (Some(pause), false) = (poll_interval, waiting.is_empty()) else { return Ok(()) };
            if !std::mem::replace(&mut told, true) {
                let open = count(waiting.len(), "batch");
                self.console.note(format_args!("{open} not ended yet: asked for again until then"));
            }
            sleep(pause).await;
        }
    }

    /// The batch, if nothing changes any more.
    async fn ended(&self, id: &BatchId) -> Result<Option<Batch>> {
        match self.client.batch(id).await {
            Ok(batch) => Ok(Some(batch).filter(|batch| batch.status.is_terminal())),
            // A look that fails says nothing of the batch.
            Err(error) if error.is_retryable() => {
                let told = format!("{id}: {error}");
                // A server may be gone for hours. The same error is printed once.
                if self.told.replace(told.clone()) != told {
                    self.console.always(format_args!("{told}; asked again until it answers"));
                }
                Ok(None)
            }
            Err(error) => Err(Error::from(error).fix(format!("check the id {id}, --provider and --base-url"))),
        }
    }

    /// Writes the lines of both files of a batch, each file whole or not at all.
    async fn take(&mut self, batch: &Batch) -> Result<()> {
        let mut lines = 0;
        for (name, file) in [("output", &batch.output_file_id), ("error", &batch.error_file_id)] {
            let Some(file) = file else { continue };
            let path = Entry::of(&self.landing.path().join(name))?;
            if !self.client.download(file, &path).await?.complete {
                self.came.short += 1;
                self.console.always(format_args!("{}: its {name} file was cut short; run it again", batch.id));
                return Ok(());
            }
            lines += self.put(&path)?;
            path.remove()?;
        }
        let total = batch.request_counts.total;
        let absent = total.saturating_sub(lines);
        self.came.lines += lines;
        let faults = absent.saturating_add(u64::from(total == 0 && lines == 0));
        self.came.faults = self.came.faults.saturating_add(faults);
        let why = if batch.errors.is_empty() { String::new() } else { format!(": {}", batch.errors.join("; ")) };
        let lines = count(lines, "line");
        self.console.note(format_args!("{}: {}, {lines}, {absent} absent{why}", batch.id, batch.status));
        Ok(())
    }

    fn put(&mut self, path: &Entry) -> Result<u64> {
        let mut lines = 0;
        let mut reader = read_results(path)?;
        let mut block = Block::default();
        while reader.fill(&mut block)? {
            for line in block.lines() {
                if line.too_long {
                    self.came.faults += 1;
                    continue;
                }
                self.output.put(line.bytes)?;
                self.output.put(b"\n")?;
                lines += 1;
            }
        }
        self.output.flush()?;
        Ok(lines)
    }
}
