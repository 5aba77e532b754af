//! Batches that may exist already: of a create without an answer, and of another copy of the directory. The provider's list
//! shows them, if it can (`docs/reliability.md` M1, M7).

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
};

use tokio::{sync::OnceCell, time::sleep};

use super::{
    Jobs,
    give_up::{Closes, Halt, closes_after},
    listed::{Evidence, Sighted, StraySearch, Strays, best_first, mark},
};
use crate::{
    cli::OnAmbiguous,
    drill::{self, Guard},
    error::{Error, Kind, Result},
    journal::{Event, Job},
    provider::{ApiError, Batch, BatchId, Class, FileId, MARK},
};

/// Complete listings that must not show a batch before its create counts as lost.
const LISTINGS: u32 = 3;
/// Creates of a chunk that may go without an answer, and be looked for in vain, before the chunk is held: the second one may
/// have been paid for as the first.
const LOST_CREATES: u32 = 1;

/// What is known of the account's batches.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// Batches that the journal knew at the start, and whether this key has shown one of them.
    pub before: RefCell<HashSet<BatchId>>,
    pub sees_ours: Cell<bool>,
    /// Batches that another copy of the directory made; `None`: the list failed, for the reason in `why_unknown`.
    strays: OnceCell<Option<Strays>>,
    why_unknown: RefCell<Option<Error>>,
}

/// What a listing says of a create without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listed {
    Adopted,
    Absent {
        /// The listing would show the batch if there were one.
        is_proof: bool,
    },
}

impl Jobs<'_> {
    /// A create was sent, and nobody knows whether it made a batch: adopts the batch, or gives the create up as lost, or
    /// holds the chunk.
    pub(super) async fn look_up(&self, job: &Job) -> Result<(), Halt> {
        let (chunk, id) = (&job.chunk, &job.chunk.id);
        // A listing shows a batch late; the batch of a held chunk was looked for long enough.
        let Some(is_proof) = self.is_listed(job, if job.is_held() { 1 } else { LISTINGS }).await? else {
            return Ok(());
        };
        if self.settings.on_ambiguous == OnAmbiguous::Hold {
            let made = job.unclear().is_some_and(|unclear| unclear.made);
            let error = Error::new(Kind::TryAgain, format!("{id}: whether its batch was created is not known"));
            let error = error.fix(if made {
                "the provider said that it made a batch, and not which: look for it at the provider's console"
            } else {
                "look at the provider's console; the same command without --on-ambiguous hold creates it anew"
            });
            return Err(self.give_up(chunk, Closes::Nothing, error));
        }
        if let Some(why) = self.why_held(job, is_proof)? {
            return Err(self.hold(job, why)?);
        }
        // Without its input a create that is still on its way cannot become a batch.
        if let Some(file) = job.file().filter(|_| !drill::without(Guard::Fence)) {
            let fence = self.client.delete(file).await;
            fence.map_err(|error| self.give_up(chunk, Closes::Nothing, error))?;
        }
        // A batch that was made just before is listed as late as any other.
        if self.is_listed(job, LISTINGS).await?.is_none() {
            return Ok(());
        }
        self.progress
            .note(format_args!("{id}: {LISTINGS} listings do not show its batch; uploading and creating anew"));
        Ok(self.append(&Event::Lost { chunk: id.clone(), why: "no listing shows the batch".to_owned() })?)
    }

    /// Looks for the batch of this chunk until it must be listed if it exists. `None`: it is there, and adopted; else
    /// whether the listings prove that it does not exist.
    async fn is_listed(&self, job: &Job, listings: u32) -> Result<Option<bool>, Halt> {
        let mut is_proof = false;
        for listing in 0..listings {
            if listing > 0 && !drill::without(Guard::Settle) {
                sleep(self.settings.settle / (LISTINGS - 1)).await;
            }
            match self.adopt(job).await? {
                Listed::Adopted => return Ok(None),
                Listed::Absent { is_proof: proof } => is_proof |= proof,
            }
        }
        Ok(Some(is_proof))
    }

    /// Why a create that no listing shows is not sent again; `None`: it may be, once.
    fn why_held(&self, job: &Job, is_proof: bool) -> Result<Option<&'static str>> {
        let holds_another = self.journal.read(|state| state.holds_another(&job.chunk.id))?;
        let made = job.unclear().is_some_and(|unclear| unclear.made);
        Ok(match self.settings.on_ambiguous {
            OnAmbiguous::Again if job.is_held() => None,
            _ if made => Some("the provider said that it made a batch, and not which"),
            _ if job.lost >= LOST_CREATES && !drill::without(Guard::Once) => {
                Some("it is the second create without a clear answer")
            }
            _ if !is_proof && !drill::without(Guard::Evidence) => {
                Some("the provider's list of batches cannot show that there is none")
            }
            _ if holds_another => Some("another chunk is held already"),
            _ => None,
        })
    }

    /// Gives a chunk up until the user says whether its create made a batch.
    fn hold(&self, job: &Job, why: &str) -> Result<Halt> {
        let id = &job.chunk.id;
        let answer = job.unclear().map(|unclear| format!(" ({})", unclear.why)).unwrap_or_default();
        if !job.is_held() {
            self.append(&Event::Held { chunk: id.clone(), why: format!("{why}{answer}") })?;
        }
        // A refusal that repeats in the provider's own words is the provider's trouble, not ours.
        let refused = job.unclear().and_then(|unclear| unclear.status).is_some_and(|status| status >= 300);
        let kind = if refused && job.lost >= LOST_CREATES { Kind::Unavailable } else { Kind::TryAgain };
        let what =
            format!("{id}: whether its batch was created is not known{answer}, and it is not created again: {why}");
        let (mark, file) = (self.mark(job)?, job.file().map(FileId::as_str).unwrap_or_default());
        let error = Error::new(kind, what).fix(format!(
            "look for a batch with the metadata `{MARK}: {mark}` or the input file {file} at the provider's console. \
             If there is one, run the same command later: it is adopted as soon as the list shows it. \
             If there is none, run the same command with --on-ambiguous again"
        ));
        let closes = if job.is_held() { Closes::Nothing } else { Closes::AllCreates };
        Ok(self.give_up(&job.chunk, closes, error))
    }

    /// Takes the batch of this chunk from a complete listing, if it is there.
    pub(super) async fn adopt(&self, job: &Job) -> Result<Listed, Halt> {
        let (mark, file) = (self.mark(job)?, job.file());
        let evidence = self.journal.read(Evidence::of)?;
        let ours = |batch: &Batch| {
            evidence.look_at(batch);
            let same_file = file.is_some() && batch.input_file_id.as_ref() == file;
            let sighted = Sighted::of(batch);
            // An earlier attempt that came late found its input deleted: it did nothing and cost nothing.
            let same_mark = batch.metadata.get(MARK).is_some_and(|it| *it == mark);
            same_file || !sighted.failed && same_mark && sighted.may_hold(&job.chunk)
        };
        let listing = self.client.find_batches(ours).await;
        let listing = listing.map_err(|error| self.give_up(&job.chunk, closes_after(&error), error))?;
        let mut found: Vec<Sighted> = listing.found.iter().map(Sighted::of).collect();
        best_first(&mut found);
        if found.is_empty() {
            return Ok(Listed::Absent { is_proof: listing.complete && evidence.shows_ours() });
        }
        self.take(job, found, "was created after all").await?;
        Ok(Listed::Adopted)
    }

    /// Adopts a batch of this chunk that another copy of the directory made, if the account shows one.
    pub(super) async fn adopt_stray(&self, job: &Job) -> Result<(), Halt> {
        let account = &self.account;
        let listed = account.strays.get_or_init(async || match self.list_strays().await {
            Ok(strays) => Some(strays),
            Err(error) => {
                self.slots.close();
                account.why_unknown.replace(Some(error));
                None
            }
        });
        let found = match listed.await {
            Some(strays) => strays.of(&job.chunk),
            // One job reports it. The others find the creates closed.
            None => match account.why_unknown.take() {
                Some(error) => return Err(self.give_up(&job.chunk, Closes::AllCreates, error)),
                None => return Ok(()),
            },
        };
        if found.is_empty() {
            return Ok(());
        }
        self.take(job, found, "was created before, and this journal does not know it").await
    }

    /// Lists the account's batches, all pages, once in the life of the process (`docs/reliability.md` M7).
    async fn list_strays(&self) -> Result<Strays> {
        let search = self.journal.read(StraySearch::of)?;
        let listing = self.client.find_batches(|batch| {
            search.look_at(batch);
            false
        });
        let listing = listing.await;
        if search.is_full() {
            let what = "the list of batches shows more of this directory than it can have";
            return Err(Error::new(Kind::Unavailable, what).fix("check --base-url"));
        }
        match listing {
            Ok(_) if search.evidence.hides_ours() => self.progress.note(
                "the provider's list does not show the batches that this directory has: what another copy of it may have \
                 created is not found",
            ),
            Ok(_) => {}
            Err(error) if lacks_lists(&error) || self.settings.on_ambiguous == OnAmbiguous::Again => {
                self.progress.note(format_args!("what another copy of this directory may have created is not found: {error}"));
            }
            // These errors say what to do, and creates would fail in the same way.
            Err(error)
                if matches!(
                    error.class,
                    Class::Key | Class::Account | Class::Io | Class::Redirect | Class::Certificate | Class::Proxy
                ) =>
            {
                return Err(error.into());
            }
            Err(error) => {
                return Err(Error::from(error).fix(
                    "the list shows whether another copy of this directory has created batches. Run the same command again \
                     later, or with --on-ambiguous again if there is no other copy",
                ));
            }
        }
        Ok(search.into_found())
    }

    /// Takes the first of these batches as the chunk's own. The others, of the same content, are cancelled.
    async fn take(&self, job: &Job, found: Vec<Sighted>, how: &str) -> Result<(), Halt> {
        let id = &job.chunk.id;
        let mut found = found.into_iter();
        let Some(kept) = found.next() else { return Ok(()) };
        self.progress.note(format_args!("{id}: its batch {how}: {}", kept.id));
        // Before the journal forgets that there may be others.
        for other in found.filter(|other| other.is_live) {
            let outcome = self.client.cancel(&other.id).await;
            let outcome =
                outcome.map_or_else(|e| format!("could not be cancelled: {e}"), |_| "is cancelled".to_owned());
            self.progress.always(format_args!("{id}: a second batch {} {outcome}", other.id));
        }
        if let Some(unused) = job.file().filter(|file| kept.file.as_ref().is_some_and(|input| input != *file)) {
            // If this delete fails, an unused file is left there.
            let _left_there = self.client.delete(unused).await;
        }
        let (batch_id, file_id) = (kept.id, kept.file);
        Ok(self.append(&Event::Created { chunk: id.clone(), batch_id, adopted: true, file_id })?)
    }

    /// What all attempts of a chunk carry, and no other directory's chunk.
    pub(super) fn mark(&self, job: &Job) -> Result<String> {
        self.journal.read(|state| mark(state, &job.chunk))
    }

    /// The account's list shows a batch of this directory.
    pub(super) async fn lists_ours(&self) -> bool {
        let account = &self.account;
        // A list that fails shows nothing.
        let _listing = self
            .client
            .find_batches(|batch| {
                account.sees_ours.set(account.sees_ours.get() || account.before.borrow().contains(&batch.id));
                false
            })
            .await;
        account.sees_ours.get()
    }
}

/// The server has no list of batches, or none that can be read.
fn lacks_lists(error: &ApiError) -> bool {
    matches!(error.class, Class::NotFound | Class::BadRequest | Class::Reply) || matches!(error.status, Some(405 | 501))
}
