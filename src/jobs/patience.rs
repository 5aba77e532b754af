//! A provider that does not answer, or is in trouble, is waited for while batches run: they are paid for, and it comes back.

use tokio::time::{Instant, sleep};

use super::Jobs;
use crate::{
    error::Result,
    journal::Step,
    provider::{ApiError, Class},
};

impl Jobs<'_> {
    /// Makes a call; again after each failure that `may_pass`, while batches run and `--patience` lasts.
    pub(super) async fn patiently<T>(
        &self,
        may_pass: impl Fn(&ApiError) -> bool,
        call: impl AsyncFn() -> Result<T, ApiError>,
    ) -> Result<Result<T, ApiError>> {
        let mut since = None;
        loop {
            let error = match call().await {
                Err(error) if may_pass(&error) => error,
                outcome => return Ok(outcome),
            };
            let since = *since.get_or_insert_with(Instant::now);
            if self.settings.no_wait || since.elapsed() >= self.settings.patience || !self.has_batches()? {
                return Ok(Err(error));
            }
            self.progress.detail(format_args!("{error}; it is tried again"));
            self.progress.polls_in(self.settings.poll_interval);
            sleep(self.settings.poll_interval).await;
        }
    }

    /// A batch runs, or has ended and its results are not here.
    fn has_batches(&self) -> Result<bool> {
        self.journal.read(|state| state.at(Step::Created) + state.at(Step::Ended) > 0)
    }
}

/// No answer comes, whatever is asked for.
pub(super) fn is_unreachable(error: &ApiError) -> bool {
    error.class == Class::Unreachable
}
