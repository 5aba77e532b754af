//! Signals and the deadline (`--timeout`), as one value under which calls are made: [`Stop`].
//!
//! The first signal, or the deadline, asks for the end: calls that can be repeated are given up. A create that was sent may
//! take [`LAST_CALL`] longer, since its answer says whether a batch exists. The second signal ends the process at once.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Error, Kind, Result},
    lines::{input::read_small, output::stop_waiting},
};

/// How long the answer to a create is waited for after the end was asked for. The next process finds a later one in the
/// provider's list of batches.
pub const LAST_CALL: Duration = Duration::from_secs(10);

/// Why to stop before the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    Signal(i32),
    TimedOut,
}

/// Whether, and why, this process is to stop. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    asked: CancellationToken,
    /// Cancelled [`LAST_CALL`] after `asked`.
    last_call_over: CancellationToken,
    signal: Arc<OnceLock<i32>>,
}

impl Stop {
    /// Listens for signals on `runtime`, and for the deadline.
    ///
    /// # Errors
    /// The system does not let us listen.
    pub fn listen(runtime: &Runtime, timeout: Option<Duration>) -> Result<Self> {
        let stop = Self::default();
        let _context = runtime.enter();
        let signals = Signals::listen()?;
        runtime.spawn(stop.clone().hear(signals, timeout));
        runtime.spawn({
            let stop = stop.clone();
            async move { stop.end_last_call().await }
        });
        Ok(stop)
    }

    async fn hear(self, mut signals: Signals, timeout: Option<Duration>) {
        let deadline = async {
            match timeout {
                Some(timeout) => sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(deadline);
        loop {
            let number = tokio::select! {
                number = signals.next() => number,
                () = &mut deadline, if !self.asked.is_cancelled() => {
                    self.ask(StopReason::TimedOut);
                    continue;
                }
            };
            if self.signal().is_some() {
                // Asked for twice. The journal is whole at any instant.
                std::process::exit(128 + number);
            }
            self.ask(StopReason::Signal(number));
            stop_waiting(number);
        }
    }

    /// Asks for the end. A signal after the deadline takes its place as the reason.
    pub fn ask(&self, reason: StopReason) {
        if let StopReason::Signal(number) = reason {
            self.signal.get_or_init(|| number);
        }
        self.asked.cancel();
    }

    /// Ends the last call [`LAST_CALL`] after the end was asked for.
    pub async fn end_last_call(&self) {
        self.asked.cancelled().await;
        sleep(LAST_CALL).await;
        self.last_call_over.cancel();
    }

    /// Completes when the end is asked for.
    pub async fn asked(&self) {
        self.asked.cancelled().await;
    }

    /// The signal that asked for the end.
    pub fn signal(&self) -> Option<i32> {
        self.signal.get().copied()
    }

    /// The reason, once the end was asked for.
    pub fn reason(&self) -> Option<StopReason> {
        match self.signal() {
            Some(number) => Some(StopReason::Signal(number)),
            None => self.asked.is_cancelled().then_some(StopReason::TimedOut),
        }
    }

    /// Runs a call unless the end is asked for; an answer that has come by then counts. `Err` holds the reason.
    pub async fn run<T>(&self, call: impl Future<Output = T>) -> std::result::Result<T, StopReason> {
        self.asked.run_until_cancelled(call).await.ok_or_else(|| self.reason_it_ended())
    }

    /// Runs a call that costs money: it is given up [`LAST_CALL`] after the end was asked for.
    pub async fn run_last_call<T>(&self, call: impl Future<Output = T>) -> std::result::Result<T, StopReason> {
        self.last_call_over.run_until_cancelled(call).await.ok_or_else(|| self.reason_it_ended())
    }

    fn reason_it_ended(&self) -> StopReason {
        self.reason().unwrap_or(StopReason::TimedOut)
    }
}

/// SIGINT, SIGTERM and SIGHUP. A signal that was ignored when this process was started (`nohup`, a script's background job)
/// stays ignored.
#[derive(Debug)]
pub struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Option<Signal>,
}

impl Signals {
    /// Within a runtime.
    ///
    /// # Errors
    /// The system does not let us listen.
    pub fn listen() -> Result<Self> {
        let ignored = ignored_signals();
        let listen = |kind: SignalKind| {
            let is_heard = ignored & (1 << (kind.as_raw_value() - 1)) == 0;
            let listened = is_heard.then(|| signal(kind)).transpose();
            listened.map_err(|e| Error::new(Kind::Io, format!("listen for signals: {e}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The number of the next signal.
    pub async fn next(&mut self) -> i32 {
        tokio::select! {
            () = receive(&mut self.interrupt) => 2,
            () = receive(&mut self.terminate) => 15,
            () = receive(&mut self.hangup) => 1,
        }
    }
}

async fn receive(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// The signals that this process ignores, one bit each from signal 1; none where the system does not say.
fn ignored_signals() -> u64 {
    let status = read_small(Path::new("/proc/self/status"), 1 << 16).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_last_call_outlives_the_stop_and_not_for_ever() {
        let stop = Stop::default();
        assert_eq!((stop.run(async { 1 }).await, stop.reason()), (Ok(1), None));
        stop.ask(StopReason::TimedOut);
        assert_eq!(stop.run(async { 1 }).await, Err(StopReason::TimedOut));
        let began = Instant::now();
        let create = stop.run_last_call(async {
            sleep(LAST_CALL / 2).await;
            "made"
        });
        let (created, ()) = tokio::join!(create, stop.end_last_call());
        assert_eq!((created, began.elapsed()), (Ok("made"), LAST_CALL));
        assert_eq!(stop.run_last_call(async { 1 }).await, Err(StopReason::TimedOut));
    }

    /// What the provider has answered is not thrown away because a signal comes in the same instant.
    #[tokio::test]
    async fn m5_an_answer_that_is_there_beats_a_stop() {
        let stop = Stop::default();
        let answered = stop.run(async {
            stop.ask(StopReason::Signal(15));
            "answer"
        });
        assert_eq!(answered.await, Ok("answer"));
        assert_eq!(stop.run(std::future::pending::<()>()).await, Err(StopReason::Signal(15)));
    }

    #[test]
    fn a_signal_after_the_deadline_is_the_reason() {
        let stop = Stop::default();
        stop.ask(StopReason::TimedOut);
        stop.ask(StopReason::Signal(2));
        stop.ask(StopReason::Signal(15));
        assert_eq!(stop.clone().reason(), Some(StopReason::Signal(2)));
    }
}
