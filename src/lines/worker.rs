//! One thread that works beside the thread that made it: it does jobs in the order in which they are sent, and gives each back.
//!
//! A job is a buffer that is used again. The number of jobs under way has a bound, and no channel is shorter than that: so the
//! two threads never wait for each other.

use std::{
    fmt,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::JoinHandle,
};

use crate::{error::Result as Outcome, threads};

/// Does jobs of type `J` with a state `S`, on a thread of its own or in place.
pub struct Worker<S, J, E> {
    hands: Hands<S, J, E>,
    done: Receiver<Result<J, E>>,
    /// Jobs that were sent and not taken, and the most of them.
    under_way: usize,
    most: usize,
    /// A job failed, and its error was taken. The jobs behind it do not come back.
    has_failed: bool,
    /// The error for a thread that panicked, and for jobs that are sent after one that failed.
    died: fn() -> E,
}

enum Hands<S, J, E> {
    Here { state: Option<S>, work: Work<S, J, E>, back: SyncSender<Result<J, E>> },
    Thread { todo: Option<SyncSender<J>>, handle: Option<JoinHandle<S>> },
}

type Work<S, J, E> = fn(&mut S, &mut J) -> Result<(), E>;

impl<S, J, E> fmt::Debug for Worker<S, J, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("under_way", &self.under_way).finish_non_exhaustive()
    }
}

impl<S: Send + 'static, J: Send + 'static, E: Send + 'static> Worker<S, J, E> {
    /// Starts a thread. After a job that fails no other is done.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn spawn(most: usize, died: fn() -> E, mut state: S, work: Work<S, J, E>) -> Outcome<Self> {
        let (todo, jobs) = sync_channel::<J>(most);
        let (back, done) = sync_channel(most);
        let handle = threads::spawn(move || {
            for mut job in jobs {
                let outcome = work(&mut state, &mut job).map(|()| job);
                let failed = outcome.is_err();
                if back.send(outcome).is_err() || failed {
                    break;
                }
            }
            state
        })?;
        let hands = Hands::Thread { todo: Some(todo), handle: Some(handle) };
        Ok(Self { hands, done, under_way: 0, most, has_failed: false, died })
    }
}

impl<S, J, E> Worker<S, J, E> {
    /// Does each job when it is sent.
    pub fn here(died: fn() -> E, state: S, work: Work<S, J, E>) -> Self {
        let (back, done) = sync_channel(1);
        let hands = Hands::Here { state: Some(state), work, back };
        Self { hands, done, under_way: 0, most: 1, has_failed: false, died }
    }

    /// A job must be taken before another is sent.
    pub fn is_full(&self) -> bool {
        self.under_way == self.most
    }

    /// Sends a job on its way. `false`: the thread has ended, and the reason is among the jobs that come back.
    ///
    /// # Errors
    /// The thread has ended, and its reason was taken.
    pub fn send(&mut self, mut job: J) -> Result<bool, E> {
        if self.has_failed {
            return Err((self.died)());
        }
        let is_sent = match &mut self.hands {
            Hands::Here { state: Some(state), work, back } => {
                let outcome = work(state, &mut job).map(|()| job);
                back.send(outcome).is_ok()
            }
            Hands::Thread { todo: Some(todo), .. } => todo.send(job).is_ok(),
            _ => false,
        };
        if !is_sent && self.under_way == 0 {
            return Err((self.died)());
        }
        self.under_way += usize::from(is_sent);
        Ok(is_sent)
    }

    /// Sends a job, and takes one that is done, if there is one. Waits for one if too many are under way.
    ///
    /// # Errors
    /// A job failed.
    pub fn exchange(&mut self, job: J) -> Result<Option<J>, E> {
        if self.is_full() {
            let back = self.take()?;
            return self.send(job).map(|_| back);
        }
        self.send(job)?;
        match self.done.try_recv() {
            Ok(done) => self.receive(done).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Waits for the next job that is done; `None` if none is under way, or if one failed before.
    ///
    /// # Errors
    /// That job failed.
    pub fn take(&mut self) -> Result<Option<J>, E> {
        if self.under_way == 0 || self.has_failed {
            return Ok(None);
        }
        let done = self.done.recv().unwrap_or_else(|_| Err((self.died)()));
        self.receive(done).map(Some)
    }

    fn receive(&mut self, done: Result<J, E>) -> Result<J, E> {
        self.under_way -= 1;
        self.has_failed |= done.is_err();
        done
    }

    /// Waits for all jobs, and gives back the state.
    ///
    /// # Errors
    /// A job failed.
    pub fn finish(mut self) -> Result<S, E> {
        while self.take()?.is_some() {}
        if self.has_failed {
            return Err((self.died)());
        }
        self.end().ok_or_else(self.died)
    }

    /// Lets the thread end on its own: it may be waiting for something that never comes.
    pub fn detach(&mut self) {
        if let Hands::Thread { handle, .. } = &mut self.hands {
            *handle = None;
        }
    }

    fn end(&mut self) -> Option<S> {
        match &mut self.hands {
            Hands::Here { state, .. } => state.take(),
            Hands::Thread { todo, handle } => {
                *todo = None;
                handle.take()?.join().ok()
            }
        }
    }
}

/// The state may own a temp file: the thread removes it, so the thread must not outlive the program.
impl<S, J, E> Drop for Worker<S, J, E> {
    fn drop(&mut self) {
        drop(self.end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Sum = Worker<u64, u64, String>;

    fn add(sum: &mut u64, job: &mut u64) -> Result<(), String> {
        if *job == 2013 {
            return Err("refused".to_owned());
        }
        *sum += *job;
        *job = *sum;
        Ok(())
    }

    fn both() -> [Sum; 2] {
        let died = || "it died".to_owned();
        [Worker::here(died, 0, add), Worker::spawn(3, died, 0, add).expect("a thread")]
    }

    #[test]
    fn jobs_come_back_in_order_and_the_state_at_the_end() {
        for mut worker in both() {
            let mut back = Vec::new();
            for job in 1..=2000 {
                back.extend(worker.exchange(job).expect("done"));
            }
            while let Some(job) = worker.take().expect("done") {
                back.push(job);
            }
            assert!(back.iter().copied().eq((1..=2000).map(|job| job * (job + 1) / 2)), "none is lost");
            assert_eq!(worker.finish(), Ok(2_001_000));
        }
    }

    #[test]
    fn a_job_that_fails_is_the_last() {
        for mut worker in both() {
            let failed = (2012..2040).find_map(|job| worker.exchange(job).err());
            let error = failed.or_else(|| worker.finish().err());
            assert_eq!(error.as_deref(), Some("refused"));
        }
    }

    /// Whoever then waited for the jobs behind it was told that the thread had died, in the place of the reason.
    #[test]
    fn jobs_behind_one_that_failed_are_not_waited_for() {
        for mut worker in both() {
            let failed = (2013..2040).find_map(|job| worker.exchange(job).err());
            assert_eq!(failed.as_deref(), Some("refused"));
            assert_eq!(worker.take(), Ok(None));
            assert_eq!(worker.exchange(1), Err("it died".to_owned()));
            assert_eq!(worker.finish(), Err("it died".to_owned()));
        }
    }

    #[test]
    fn a_thread_that_panics_is_an_error() {
        let mut worker: Worker<(), (), String> =
            Worker::spawn(2, || "it died".to_owned(), (), |(), ()| panic!("on purpose")).expect("a thread");
        assert_eq!((0..9).find_map(|_| worker.exchange(()).err()), Some("it died".to_owned()));
    }
}
