//! A chunk's way to a batch that exists: upload, intent, create; and where a create may have been made already, the listing
//! that tells (`docs/reliability.md` M1, M7).

use std::time::Duration;

use tokio::time::sleep;

use super::{
    ChunkPlace, Class, CreateError, Driver, Event, FileId, FileMark, Gate, Gave, Goal, Job, REFUSAL_PAUSE, Reached,
    RowSet, Scope, State, Step, check_caps, file_id, is_gone,
    listed::{CONTENT, Evidence, Sighted, StraySearch, Strays, best_first, mark},
    scope_of,
};
use crate::{
    blocking,
    cli::OnAmbiguous,
    drill::{self, Guard},
    error::{Error, Kind, Result},
    flow::ChunkId,
    provider::{ApiError, Batch, MARK},
};

/// Complete listings that must not show a batch before its create counts as lost.
const LISTINGS: u32 = 3;
/// Creates of a chunk that may go without an answer, and be looked for in vain, before it is held: the second one may have
/// been paid for as the first.
const LOST_CREATES: u32 = 1;
/// Creates refused for the moment (rate, overload) before the chunk is given up.
const REFUSALS: u32 = 30;
const REFUSALS_NO_WAIT: u32 = 2;
const LONGEST_REFUSAL_PAUSE: Duration = Duration::from_secs(60);

/// What became of a create.
#[derive(PartialEq, Eq)]
enum Sent {
    /// The journal says what.
    Once,
    /// It was refused, since the account's queue is full.
    QueueFull,
}

/// What a listing says of a create without an answer.
#[derive(PartialEq, Eq)]
enum Listed {
    Adopted,
    Absent {
        /// The listing would show the batch if there were one.
        is_proof: bool,
    },
}

impl Driver<'_> {
    /// To a batch that exists.
    pub(super) async fn to_batch(&self, place: ChunkPlace, gate: &Gate) -> std::result::Result<Reached, Gave> {
        let (mut refusals, mut is_looked_for) = (0, !self.journal.resumed || drill::without(Guard::History));
        let mut turn = None;
        let model = self.job(place)?.chunk.model;
        let times_full = gate.times_full(&model);
        loop {
            let job = self.job(place)?;
            let may_create = self.settings.goal != Goal::Fetched && !gate.bars(&model);
            match job.step() {
                Step::Cut | Step::Uploaded if self.stop.reason().is_some() => return Err(Gave::Stopped),
                Step::Cut | Step::Uploaded if !may_create => return Ok(Reached::Left(place)),
                // Another chunk has just learned it. An upload that no batch can use now would only lie there.
                Step::Cut | Step::Uploaded if gate.times_full(&model) > times_full => return Ok(Reached::Back(place)),
                Step::Cut | Step::Uploaded if !is_looked_for => {
                    self.adopt_stray(place, &job, gate).await?;
                    is_looked_for = true;
                }
                Step::Cut | Step::Uploaded if turn.is_none() => {
                    turn = Some(self.unless_stopped(gate.creates.acquire()).await?);
                }
                Step::Cut => self.upload(place, &job, gate).await?,
                Step::Uploaded => {
                    if self.create(place, &job, &mut refusals, gate).await? == Sent::QueueFull {
                        return Ok(Reached::Full(place));
                    }
                }
                Step::Intended if self.settings.goal == Goal::Fetched => {
                    if self.adopt(place, &job).await? != Listed::Adopted {
                        return Ok(Reached::Left(place));
                    }
                }
                Step::Intended => {
                    // It may take minutes.
                    turn = None;
                    self.look_up(place, &job).await?;
                }
                Step::Created | Step::Ended | Step::Fetched => return Ok(Reached::Created(place)),
            }
        }
    }

    async fn upload(&self, place: ChunkPlace, job: &Job, gate: &Gate) -> std::result::Result<(), Gave> {
        let path = self.work.request(&job.chunk.id);
        let give_up = |scope, error| Gave::Up { place, scope, error };
        if !path.exists()? {
            return Err(give_up(Scope::Chunk, RowSet::gone(&path)));
        }
        let (hash, file) = (job.chunk.blake3.clone(), path.clone());
        let now = blocking::run(move || FileMark::of(&file)).await.map_err(|error| give_up(Scope::Chunk, error))?;
        if now.blake3 != hash && !drill::without(Guard::ChunkHash) {
            let error = Error::input(format!("{} is not the file that was cut: its hash differs", path))
                .fix("begin again with --new, or in another work directory");
            return Err(give_up(Scope::Chunk, error));
        }
        let name = format!("{}.jsonl", job.chunk.id);
        let file_id = self
            .patiently(is_gone, async || self.client.upload(&path, &name).await)
            .await?
            .map_err(|error| give_up(gate.scope_of(&error, &job.chunk), error.into()))?;
        self.append(&Event::Uploaded { chunk: job.chunk.id.clone(), file_id })?;
        Ok(())
    }

    async fn create(
        &self,
        place: ChunkPlace,
        job: &Job,
        refusals: &mut u32,
        gate: &Gate,
    ) -> std::result::Result<Sent, Gave> {
        let id = &job.chunk.id;
        let file_id = file_id(job)?;
        // A create that counted as lost may be listed by now.
        let repaired = self.journal.read(|state| state.repaired)?;
        if job.lost > 0 || repaired {
            match self.adopt(place, job).await? {
                Listed::Adopted => return Ok(Sent::Once),
                Listed::Absent { is_proof: false } if repaired => return Err(cannot_know(place, id)),
                Listed::Absent { .. } => {}
            }
        }
        let error = match self.send_create(place, job, &file_id).await? {
            Ok(batch) => {
                gate.refused.set(0);
                self.append(&Event::Created { chunk: id.clone(), batch_id: batch.id, adopted: false, file_id: None })?;
                return Ok(Sent::Once);
            }
            Err(CreateError::Ambiguous(error) | CreateError::Made(error)) => {
                self.progress.note(format_args!("{id}: no clear answer to its create ({error}); looking it up"));
                return Ok(Sent::Once);
            }
            // A page in the place of an answer is a no, unless the batch is there all the same.
            Err(CreateError::Denied(_)) if self.adopt(place, job).await? == Listed::Adopted => return Ok(Sent::Once),
            Err(CreateError::Refused(error) | CreateError::NotSent(error) | CreateError::Denied(error)) => error,
        };
        self.append(&Event::Refused { chunk: id.clone(), why: error.to_string() })?;
        if error.says_full_queue() {
            gate.found_full(&job.chunk.model);
            return Ok(Sent::QueueFull);
        }
        *refusals += 1;
        // The uploaded file may be gone, or too old: once, a fresh one is tried.
        if matches!(error.class, Class::NotFound | Class::BadRequest) && *refusals == 1 {
            // As good as gone, whether this succeeds or not.
            let _deleted = self.unless_stopped(self.client.delete(&file_id)).await?;
            self.append(&Event::Lost { chunk: id.clone(), why: error.to_string() })?;
            return Ok(Sent::Once);
        }
        let most = if self.settings.no_wait { REFUSALS_NO_WAIT } else { REFUSALS };
        if !error.is_retryable() || *refusals > most {
            return Err(Gave::Up { place, scope: gate.scope_of(&error, &job.chunk), error: error.into() });
        }
        let pause = REFUSAL_PAUSE.saturating_mul(1 << refusals.saturating_sub(1).min(6));
        let pause = pause.max(error.retry_after.unwrap_or_default()).min(LONGEST_REFUSAL_PAUSE);
        self.progress.detail(format_args!("{id}: {error}; trying again in {pause:?}"));
        self.unless_stopped(sleep(pause)).await?;
        Ok(Sent::Once)
    }

    /// Sends a create, once, between the event that announces it and the event that says what came of it.
    async fn send_create(
        &self,
        place: ChunkPlace,
        job: &Job,
        file_id: &FileId,
    ) -> std::result::Result<std::result::Result<Batch, CreateError>, Gave> {
        let id = &job.chunk.id;
        let attempt = job.attempt.saturating_add(1);
        let blake3 = job.chunk.blake3.clone();
        // An intent is a create that may have been sent: the provider's pause comes before it.
        self.unless_stopped(self.client.turn()).await?;
        self.work.check_place()?;
        // Nothing is awaited between this and the intent, so that no other create comes in between.
        if let Some(error) = self.over_the_cap(job)? {
            return Err(Gave::Up { place, scope: Scope::Creates, error });
        }
        let intent = Event::Intent { chunk: id.clone(), file_id: file_id.clone(), attempt, blake3 };
        if !drill::without(Guard::Intent) {
            self.append(&intent)?;
        }
        let metadata = [
            (MARK, self.mark(job)?),
            ("analysis", job.chunk.analysis.clone()),
            ("chunk", id.to_string()),
            ("attempt", attempt.to_string()),
            (CONTENT, job.chunk.blake3.clone()),
        ];
        let create = self.client.create(file_id, &metadata);
        let answer = self.stop.run_last_call(create).await.map_err(|_| Gave::Stopped)?;
        if drill::without(Guard::Intent) {
            self.append(&intent)?;
        }
        if let Err(unclear @ (CreateError::Ambiguous(error) | CreateError::Made(error))) = &answer {
            let made = matches!(unclear, CreateError::Made(_)) && !drill::without(Guard::Made);
            let why = error.to_string();
            self.append(&Event::Unclear { chunk: id.clone(), why, status: error.status, made })?;
        }
        Ok(answer)
    }

    /// A create was sent, and whether it happened is not known: the listing tells, if it can (`docs/reliability.md` M1).
    async fn look_up(&self, place: ChunkPlace, job: &Job) -> std::result::Result<(), Gave> {
        let id = &job.chunk.id;
        // A listing shows a batch late; a chunk that is held was looked for long enough.
        let Some(is_proof) = self.is_listed(place, job, if job.is_held() { 1 } else { LISTINGS }).await? else {
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
            return Err(Gave::Up { place, scope: Scope::Chunk, error });
        }
        if let Some(why) = self.why_held(job, is_proof)? {
            return Err(self.hold(place, job, why)?);
        }
        // Without its input a create that is still on its way cannot become a batch.
        if !drill::without(Guard::Fence) {
            let fence = self.unless_stopped(self.client.delete(&file_id(job)?)).await?;
            fence.map_err(|error| Gave::Up { place, scope: Scope::Chunk, error: error.into() })?;
        }
        // One that came just before is listed as late as any other.
        if self.is_listed(place, job, LISTINGS).await?.is_none() {
            return Ok(());
        }
        self.progress
            .note(format_args!("{id}: {LISTINGS} listings do not show its batch; uploading and creating anew"));
        self.append(&Event::Lost { chunk: id.clone(), why: "no listing shows the batch".to_owned() })?;
        Ok(())
    }

    /// Looks for the batch of this chunk until it must be listed if it exists. `None`: it is there, and adopted; else
    /// whether the listings prove that it does not exist.
    async fn is_listed(&self, place: ChunkPlace, job: &Job, listings: u32) -> std::result::Result<Option<bool>, Gave> {
        let mut is_proof = false;
        for listing in 0..listings {
            if listing > 0 && !drill::without(Guard::Settle) {
                self.unless_stopped(sleep(self.settings.settle / (LISTINGS - 1))).await?;
            }
            match self.adopt(place, job).await? {
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

    /// Gives a chunk up until the user says what to do.
    fn hold(&self, place: ChunkPlace, job: &Job, why: &str) -> Result<Gave> {
        let id = &job.chunk.id;
        let answer = job.unclear().map(|unclear| format!(" ({})", unclear.why)).unwrap_or_default();
        if !job.is_held() {
            self.append(&Event::Held { chunk: id.clone(), why: format!("{why}{answer}") })?;
        }
        // A refusal that repeats in the provider's own words is the provider's trouble, not a doubt of ours.
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
        let scope = if job.is_held() { Scope::Chunk } else { Scope::Creates };
        Ok(Gave::Up { place, scope, error })
    }

    /// Takes the batch of this chunk from a complete listing, if it is there.
    async fn adopt(&self, place: ChunkPlace, job: &Job) -> std::result::Result<Listed, Gave> {
        let (mark, file) = (self.mark(job)?, file_id(job)?);
        let evidence = self.journal.read(Evidence::of)?;
        let ours = |batch: &Batch| {
            evidence.look_at(batch);
            let same_file = batch.input_file_id.as_ref() == Some(&file);
            let sighted = Sighted::of(batch);
            // An earlier attempt that came late found its input deleted: it did nothing and cost nothing.
            let same_mark = batch.metadata.get(MARK).is_some_and(|it| *it == mark);
            same_file || !sighted.failed && same_mark && sighted.may_hold(&job.chunk)
        };
        let listing = self.unless_stopped(self.client.find_batches(ours)).await?;
        let listing =
            listing.map_err(|error| Gave::Up { place, scope: scope_of(&error, &job.chunk), error: error.into() })?;
        let mut found: Vec<Sighted> = listing.found.iter().map(Sighted::of).collect();
        best_first(&mut found);
        if found.is_empty() {
            return Ok(Listed::Absent { is_proof: listing.complete && evidence.shows_ours() });
        }
        self.take(job, found, "was created after all").await?;
        Ok(Listed::Adopted)
    }

    /// Adopts a batch of this chunk that another copy of the directory made, if the account shows one.
    async fn adopt_stray(&self, place: ChunkPlace, job: &Job, gate: &Gate) -> std::result::Result<(), Gave> {
        let listed = gate.strays.get_or_init(async || match self.list_strays().await {
            Ok(strays) => Some(strays),
            Err(error) => {
                gate.halt();
                gate.untold.replace(Some(error));
                None
            }
        });
        let found = match self.unless_stopped(listed).await? {
            Some(strays) => strays.of(&job.chunk),
            // One job tells of it. The others find the gate closed.
            None => match gate.untold.take() {
                Some(error) => return Err(Gave::Up { place, scope: Scope::Creates, error }),
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
            // Those say themselves what to do, and creates would fail in the same way.
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
    async fn take(&self, job: &Job, found: Vec<Sighted>, how: &str) -> std::result::Result<(), Gave> {
        let id = &job.chunk.id;
        let mut found = found.into_iter();
        let Some(kept) = found.next() else { return Ok(()) };
        self.progress.note(format_args!("{id}: its batch {how}: {}", kept.id));
        // Before the journal forgets that there may be others.
        for other in found.filter(|other| other.is_live) {
            let outcome = self.unless_stopped(self.client.cancel(&other.id)).await?;
            let outcome =
                outcome.map_or_else(|e| format!("could not be cancelled: {e}"), |_| "is cancelled".to_owned());
            self.progress.always(format_args!("{id}: a second batch {} {outcome}", other.id));
        }
        if let Some(unused) = job.file().filter(|file| kept.file.as_ref().is_some_and(|input| input != *file)) {
            // If this delete fails, an unused file is left there.
            let _left_there = self.unless_stopped(self.client.delete(unused)).await?;
        }
        let (batch_id, file_id) = (kept.id, kept.file);
        Ok(self.append(&Event::Created { chunk: id.clone(), batch_id, adopted: true, file_id })?)
    }

    /// What all attempts of a chunk carry, and no other directory's chunk.
    fn mark(&self, job: &Job) -> Result<String> {
        self.journal.read(|state| mark(state, &job.chunk))
    }

    fn over_the_cap(&self, job: &Job) -> Result<Option<Error>> {
        let (batches, requests) = self.journal.read(State::spent)?;
        Ok(check_caps(&self.settings, batches.saturating_add(1), requests.saturating_add(job.chunk.lines)))
    }
}

/// The server has no list of batches, or none that can be read.
fn lacks_lists(error: &ApiError) -> bool {
    matches!(error.class, Class::NotFound | Class::BadRequest | Class::Reply) || matches!(error.status, Some(405 | 501))
}

/// The journal has lost events, and the list does not show what they may have told.
fn cannot_know(place: ChunkPlace, id: &ChunkId) -> Gave {
    let what = format!(
        "{id}: the journal was repaired, and the provider's list cannot show whether the chunk has a batch: none is created"
    );
    let error = Error::new(Kind::TryAgain, what).fix("look at the provider's console, and run the same command later");
    Gave::Up { place, scope: Scope::Creates, error }
}
