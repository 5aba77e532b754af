//! How far a job is, on stderr: a bar on a terminal, now and then a line elsewhere, JSON for programs.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::{
    cli,
    console::Console,
    journal::{State, Step},
    units::count,
};

/// Between two plain lines.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Progress {
    console: Console,
    bar: Option<ProgressBar>,
    last: Mutex<Instant>,
}

impl Progress {
    /// `chunks`: how many there will be, if that is known.
    pub fn new(console: Console, chunks: Option<u64>) -> Self {
        let bar = console.has_bars().then(|| {
            let bar = ProgressBar::with_draw_target(chunks, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{elapsed_precise} {bar:30} chunks {pos}/{len}  {msg}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { console, bar, last: Mutex::new(Instant::now()) }
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

    /// Something happened to a chunk.
    pub fn update(&self, state: &State) {
        let chunks = state.jobs.len() as u64;
        let waiting = state.below(Step::Created);
        let (running, ended, fetched) = (state.at(Step::Created), state.at(Step::Ended), state.at(Step::Fetched));
        if let Some(bar) = &self.bar {
            if bar.length().is_none_or(|len| len < chunks) {
                bar.set_length(chunks);
            }
            bar.set_position(fetched);
            bar.set_message(format!("{waiting} waiting, {running} running, {ended} ended"));
        }
        if self.console.progress == cli::Progress::Json {
            self.console.raw(json!({
                "event": "progress", "chunks": chunks, "waiting": waiting, "running": running, "ended": ended,
                "fetched": fetched,
            }));
        } else if self.bar.is_none() && self.console.progress != cli::Progress::None {
            let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            if last.elapsed() >= QUIET {
                *last = Instant::now();
                self.console.note(format_args!(
                    "{}: {waiting} waiting, {running} running, {ended} ended, {fetched} fetched",
                    count(chunks, "chunk")
                ));
            }
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
