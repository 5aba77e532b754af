//! How far a job is, on stderr: a bar on a terminal, now and then a line elsewhere, JSON for programs. A job that waits says
//! so every ten minutes.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::{cli, console::Console, units::count};

/// Between two plain lines.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Progress {
    console: Console,
    bar: Option<ProgressBar>,
    seen: Mutex<Seen>,
}

/// What was seen last, and when.
#[derive(Debug)]
struct Seen {
    /// The last plain line.
    said: Instant,
    counts: Counts,
    changed: Instant,
    next_poll: Instant,
}

/// Chunks by state, and rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub chunks: u64,
    pub waiting: u64,
    pub running: u64,
    pub ended: u64,
    pub fetched: u64,
    pub rows: u64,
    /// Rows of fetched chunks.
    pub rows_fetched: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { chunks, waiting, running, ended, fetched, .. } = self;
        let chunks = count(*chunks, "chunk");
        write!(f, "{chunks}: {waiting} waiting, {running} running, {ended} ended, {fetched} fetched")
    }
}

/// A call that has failed since, and its last error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub what: String,
    pub since: Duration,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {}: {}", lasting(self.since), self.what)
    }
}

/// Whole minutes, or seconds where that is less than one.
fn lasting(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..60 => count(seconds, "second"),
        seconds => count(seconds / 60, "minute"),
    }
}

impl Progress {
    /// `chunks`: how many there will be, if that is known.
    pub fn new(console: Console, chunks: Option<u64>) -> Self {
        let bar = console.has_bars().then(|| {
            let bar = ProgressBar::with_draw_target(chunks, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{elapsed_precise} {bar:30} chunks {pos}/{len}  {msg}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        let seen = Seen { said: now, counts: Counts::default(), changed: now, next_poll: now };
        Self { console, bar, seen: Mutex::new(seen) }
    }

    pub fn note(&self, text: impl fmt::Display) {
        self.aside(|| self.console.note(&text));
    }

    /// What went wrong.
    pub fn always(&self, text: impl fmt::Display) {
        self.aside(|| self.console.always(&text));
    }

    pub fn detail(&self, text: impl fmt::Display) {
        self.aside(|| self.console.detail(&text));
    }

    fn aside(&self, say: impl Fn()) {
        match &self.bar {
            Some(bar) => bar.suspend(say),
            None => say(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened to a chunk.
    pub fn update(&self, counts: Counts) {
        let mut seen = self.seen();
        if counts != seen.counts {
            (seen.counts, seen.changed) = (counts, Instant::now());
        }
        let Counts { chunks, waiting, running, ended, fetched, .. } = counts;
        if let Some(bar) = &self.bar {
            if bar.length().is_none_or(|len| len < chunks) {
                bar.set_length(chunks);
            }
            bar.set_position(fetched);
            bar.set_message(format!("{waiting} waiting, {running} running, {ended} ended"));
        }
        if self.console.is_json() {
            let told = json!({
                "chunks": chunks, "waiting": waiting, "running": running, "ended": ended, "fetched": fetched,
            });
            self.console.event("progress", &told);
        } else if self.bar.is_none() && self.console.progress != cli::Progress::None && seen.said.elapsed() >= QUIET {
            seen.said = Instant::now();
            self.console.note(counts);
        }
    }

    /// A batch is looked at after this time.
    pub fn polls_in(&self, time: Duration) {
        let now = Instant::now();
        let Some(at) = now.checked_add(time) else { return };
        let mut seen = self.seen();
        if seen.next_poll <= now || at < seen.next_poll {
            seen.next_poll = at;
        }
    }

    /// The job goes on, and nothing else may say so. A bar does.
    pub fn heartbeat(&self, counts: Counts, waits: &[Waiting]) {
        let (changed, next) = {
            let seen = self.seen();
            (seen.changed.elapsed(), seen.next_poll.saturating_duration_since(Instant::now()).as_secs())
        };
        if self.console.is_json() {
            let Counts { chunks, waiting, running, ended, fetched, rows, rows_fetched } = counts;
            let waits: Vec<_> =
                waits.iter().map(|wait| json!({"what": wait.what, "seconds": wait.since.as_secs()})).collect();
            let told = json!({
                "chunks": chunks, "waiting": waiting, "running": running, "ended": ended, "fetched": fetched,
                "rows": rows, "rows_done": rows_fetched, "unchanged_seconds": changed.as_secs(), "next_poll_seconds": next,
                "waits": waits,
            });
            self.console.event("heartbeat", &told);
        } else if self.bar.is_none() && self.console.progress != cli::Progress::None {
            let waits: String = waits.iter().map(|wait| format!("; still waiting {wait}")).collect();
            self.console.note(format_args!(
                "{} of {} done; {counts}; nothing has changed for {}; next look in {}{waits}",
                counts.rows_fetched,
                count(counts.rows, "row"),
                lasting(changed),
                count(next, "second")
            ));
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
