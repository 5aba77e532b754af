//! The waits of a job: a kind of call waits from its first failure that may pass until a call of this kind succeeds.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::ApiError;
use crate::progress::Waiting;

/// A wait of this length is worth a message.
const LONG: Duration = Duration::from_secs(60);

/// The waits by name of the call.
#[derive(Debug, Default)]
pub(super) struct Waits(Mutex<BTreeMap<&'static str, Wait>>);

#[derive(Debug)]
struct Wait {
    since: Instant,
    /// The last error, with its code and words.
    error: String,
    said: bool,
}

impl Wait {
    fn so_far(&self) -> Waiting {
        Waiting { what: self.error.clone(), since: self.since.elapsed() }
    }
}

impl Waits {
    pub fn note<T>(&self, call: &'static str, outcome: &Result<T, ApiError>) {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Err(error) if error.is_retryable() => {
                let wait = Wait { since: Instant::now(), error: String::new(), said: false };
                waits.entry(call).or_insert(wait).error = error.to_string();
            }
            // The caller reports a final error.
            _ => drop(waits.remove(call)),
        }
    }

    /// The waits now.
    pub fn list(&self) -> Vec<Waiting> {
        let waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waits.values().map(Wait::so_far).collect()
    }

    /// The waits that are longer than [`LONG`], each wait once.
    pub fn long(&self) -> Vec<Waiting> {
        let mut waits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let long = waits.values_mut().filter(|wait| !wait.said && wait.since.elapsed() >= LONG);
        long.map(|wait| {
            wait.said = true;
            wait.so_far()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::Class;

    #[tokio::test(start_paused = true)]
    async fn r10_16_a_wait_is_said_once_and_ends_with_a_success() {
        let waits = Waits::default();
        let slow = |why: &str| Err::<(), _>(ApiError::new("create a batch", Class::RateLimited, why));
        waits.note("create a batch", &slow("first"));
        tokio::time::advance(LONG / 2).await;
        waits.note("create a batch", &slow("second"));
        assert_eq!(waits.long(), []);
        assert_eq!(waits.list().iter().map(|wait| wait.what.as_str()).collect::<Vec<_>>(), ["create a batch: second"]);
        tokio::time::advance(LONG).await;
        waits.note("list the batches", &Ok(()));
        let long: Vec<String> = waits.long().iter().map(ToString::to_string).collect();
        assert_eq!(long, ["after 1 minute: create a batch: second"]);
        assert_eq!((waits.long().len(), waits.list().len()), (0, 1), "it is said once, and goes on");
        waits.note("create a batch", &Ok(()));
        waits.note("create a batch", &slow("anew"));
        assert_eq!(waits.long().len(), 0);
        waits.note("create a batch", &Err::<(), _>(ApiError::new("create a batch", Class::Account, "broke")));
        assert_eq!(waits.list().len(), 0, "that one is told where it ends the job");
    }
}
