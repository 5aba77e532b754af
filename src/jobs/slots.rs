//! Which chunk may begin its way to a batch: the slots that `--max-concurrent-tasks`, the provider's documented limits and
//! the account's own queue leave (`docs/reliability.md` M6).
//!
//! Each model has a line of waiting chunks. The first chunk of a line gets a slot when the limits of its model allow one more
//! batch. A semaphore cannot say this: the account's limit is not known. It is learned from refusals, it falls and rises, and a
//! chunk that was refused waits before all others, since its file is uploaded already.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{flow::chunks::Chunk, journal::ChunkPlace};

/// The longest pause before a full queue is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// A queue that stays full is reported again after this time, and then after twice as long each time.
const REPORT_AGAIN: Duration = Duration::from_secs(120);

/// All slots, and the chunks that wait for one.
#[derive(Debug)]
pub(super) struct Slots {
    most: usize,
    state: RefCell<State>,
    /// A slot was given back, a chunk got its batch, or creates were closed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// A map in order, so that the same state gives the same start.
    models: BTreeMap<String, Line>,
    /// Slots that jobs hold.
    in_use: usize,
    /// Slots whose batches run on after this command (`--no-wait`). Nobody gives them back.
    kept: usize,
    /// Jobs that hold a slot and have no batch yet.
    creating: usize,
    /// No more creates.
    closed: bool,
}

/// The chunks of one model.
#[derive(Debug, Default)]
struct Line {
    /// Places and their requests.
    waiting: VecDeque<(ChunkPlace, u64)>,
    /// Requests at the provider, and the most that it documents.
    queued: u64,
    limit: Option<u64>,
    /// Jobs on their way to a batch, and batches that run.
    creating: usize,
    running: usize,
    learned: Learned,
    /// The model takes no more creates.
    closed: bool,
}

/// What the refusals of one model taught. The provider does not say how many batches it takes.
#[derive(Debug, Default)]
struct Learned {
    /// Batches that ran when the queue was full. One more is a probe.
    most: Option<usize>,
    /// Refusals, less the probes that were taken. The pause grows with them.
    refused: u32,
    /// Refusals since a batch last ran to its end.
    in_vain: u32,
    /// No probe is sent before this.
    probe_at: Option<Instant>,
    /// The pause before the next probe, should this one be taken.
    pause: Duration,
    /// When the full queue is to be reported again, and the pause after that.
    report: Option<(Instant, Duration)>,
    /// How often the queue was found full.
    times_full: u32,
}

/// A queue that was found full.
#[derive(Debug)]
pub(super) struct Full {
    /// Refusals in a row.
    pub times: u32,
    /// Batches of the model that run.
    pub running: usize,
    /// How long no probe is sent.
    pub pause: Duration,
    /// The last report is some time ago.
    pub is_news: bool,
}

/// A slot that a job holds. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Slot<'s> {
    slots: &'s Slots,
    model: String,
    lines: u64,
    has_batch: bool,
    runs_on: bool,
}

impl Slots {
    pub fn new(most: usize) -> Self {
        Self { most, state: RefCell::default(), changed: Notify::new() }
    }

    fn line<T>(&self, model: &str, look: impl FnOnce(&mut Line) -> T) -> T {
        look(self.state.borrow_mut().models.entry(model.to_owned()).or_default())
    }

    /// Puts a chunk at the end of its line. `limit`: the most requests that the provider documents for its model.
    pub fn wait(&self, place: ChunkPlace, chunk: &Chunk, limit: Option<u64>) {
        self.line(&chunk.model, |line| {
            line.limit = limit;
            line.waiting.push_back((place, chunk.lines));
        });
        self.changed.notify_waiters();
    }

    /// The slot of a chunk that may have a batch already. It has one whether there is room or not.
    pub fn occupy(&self, chunk: &Chunk, limit: Option<u64>, has_batch: bool) -> Slot<'_> {
        self.line(&chunk.model, |line| {
            line.limit = limit;
            line.queued = line.queued.saturating_add(chunk.lines);
            *(if has_batch { &mut line.running } else { &mut line.creating }) += 1;
        });
        let mut state = self.state.borrow_mut();
        state.in_use += 1;
        state.creating += usize::from(!has_batch);
        self.slot(chunk.model.clone(), chunk.lines, has_batch)
    }

    fn slot(&self, model: String, lines: u64, has_batch: bool) -> Slot<'_> {
        Slot { slots: self, model, lines, has_batch, runs_on: false }
    }

    /// Gives a slot to the first chunk for which there is one.
    pub fn start(&self) -> Option<(ChunkPlace, Slot<'_>)> {
        let state = &mut *self.state.borrow_mut();
        if state.closed || state.in_use + state.kept >= self.most {
            return None;
        }
        let now = Instant::now();
        let open = state.models.iter_mut().filter(|(_, line)| !line.closed);
        let (model, line) =
            open.filter(|(_, line)| line.may_start(now)).min_by_key(|(_, line)| line.waiting.front().copied())?;
        let (place, lines) = line.waiting.pop_front()?;
        line.queued = line.queued.saturating_add(lines);
        line.creating += 1;
        state.in_use += 1;
        state.creating += 1;
        Some((place, self.slot(model.clone(), lines, false)))
    }

    /// When the next probe is due of the models that wait for one.
    pub fn next_probe(&self) -> Option<Instant> {
        let state = self.state.borrow();
        if state.closed || state.in_use + state.kept >= self.most {
            return None;
        }
        let waits = state.models.values().filter(|line| !line.closed && line.fits() && line.creating == 0);
        waits.filter_map(|line| line.learned.probe_at).min()
    }

    /// Chunks that wait for a slot and may get one.
    pub fn waiting(&self) -> usize {
        let state = self.state.borrow();
        if state.closed {
            return 0;
        }
        state.models.values().filter(|line| !line.closed).map(|line| line.waiting.len()).sum()
    }

    /// Some job holds a slot, and will give it back.
    pub fn are_in_use(&self) -> bool {
        self.state.borrow().in_use > 0
    }

    /// Completes at the next change.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Completes when no chunk is on its way to a batch, and none waits.
    pub async fn until_all_created(&self) {
        while self.state.borrow().creating > 0 || self.waiting() > 0 {
            self.changed().await;
        }
    }

    /// No more creates.
    pub fn close(&self) {
        self.state.borrow_mut().closed = true;
        self.changed.notify_waiters();
    }

    /// No more creates under this model.
    pub fn close_model(&self, model: &str) {
        self.line(model, |line| line.closed = true);
        self.changed.notify_waiters();
    }

    pub fn are_closed(&self) -> bool {
        self.state.borrow().closed
    }

    pub fn are_open_for(&self, model: &str) -> bool {
        !self.are_closed() && !self.line(model, |line| line.closed)
    }

    /// Counts that the model's queue was found full: jobs that are on their way to a create turn back.
    pub fn count_full(&self, model: &str) {
        self.line(model, |line| line.learned.times_full += 1);
    }

    pub fn times_full(&self, model: &str) -> u32 {
        self.line(model, |line| line.learned.times_full)
    }
}

impl Slot<'_> {
    /// The job has its batch.
    pub fn created(&mut self) {
        if std::mem::replace(&mut self.has_batch, true) {
            return;
        }
        self.slots.line(&self.model, |line| {
            line.creating = line.creating.saturating_sub(1);
            line.running += 1;
            line.learned.took(line.running);
        });
        self.slots.state.borrow_mut().creating -= 1;
        self.slots.changed.notify_waiters();
    }

    /// The batch ran to its end.
    pub fn ended(self) {
        self.slots.line(&self.model, |line| line.learned.in_vain = 0);
    }

    /// The batch runs on after this command: nobody else gets the slot.
    pub fn keep(mut self) {
        self.runs_on = true;
    }

    /// Gives the slot back and puts the chunk before all others of its line.
    pub fn wait_again(self, place: ChunkPlace) {
        let (slots, model, lines) = (self.slots, self.model.clone(), self.lines);
        drop(self);
        slots.line(&model, |line| line.waiting.push_front((place, lines)));
        slots.changed.notify_waiters();
    }

    /// The same for a chunk that found the provider's queue full. `was_made`: its batch was made, and failed for that.
    pub fn wait_for_queue(self, place: ChunkPlace, was_made: bool, poll_interval: Duration) -> Full {
        let (slots, model) = (self.slots, self.model.clone());
        self.wait_again(place);
        slots.line(&model, |line| line.learned.close(line.running, was_made, poll_interval))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if !self.runs_on {
            self.slots.line(&self.model, |line| {
                line.queued = line.queued.saturating_sub(self.lines);
                let count = if self.has_batch { &mut line.running } else { &mut line.creating };
                *count = count.saturating_sub(1);
            });
        }
        let mut state = self.slots.state.borrow_mut();
        state.in_use -= 1;
        state.kept += usize::from(self.runs_on);
        state.creating -= usize::from(!self.has_batch);
        drop(state);
        self.slots.changed.notify_waiters();
    }
}

impl Line {
    /// The first chunk in line may begin.
    fn may_start(&self, now: Instant) -> bool {
        self.fits() && self.learned.takes(self.running, self.creating, now)
    }

    /// The documented limit leaves room for the first chunk in line. A chunk that is larger than the limit goes alone.
    fn fits(&self) -> bool {
        let fits = |(_, lines): &(ChunkPlace, u64)| {
            self.limit.is_none_or(|limit| self.queued == 0 || self.queued.saturating_add(*lines) <= limit)
        };
        self.waiting.front().is_some_and(fits)
    }
}

impl Learned {
    /// As many as were taken before may be sent again; beyond that one probe at a time, when its pause is over.
    fn takes(&self, running: usize, creating: usize, now: Instant) -> bool {
        self.most.is_none_or(|most| running + creating < most)
            || creating == 0 && self.probe_at.is_none_or(|probe_at| probe_at <= now)
    }

    /// A batch was made. One beyond the limit was a probe: the limit rises, and the next probe waits half as long.
    fn took(&mut self, running: usize) {
        if self.most.is_some_and(|most| running > most) {
            self.most = Some(running);
            self.probe_at = Some(Instant::now() + self.pause);
            self.pause /= 2;
            self.refused = self.refused.saturating_sub(1);
        }
    }

    fn close(&mut self, running: usize, was_made: bool, poll_interval: Duration) -> Full {
        let now = Instant::now();
        self.most = Some(running);
        self.in_vain = self.in_vain.saturating_add(1);
        // A probe that was made counted as taken.
        self.refused = self.refused.saturating_add(1 + u32::from(was_made));
        let pause = poll_interval.saturating_mul(1 << self.refused.min(16)).min(LONGEST_PAUSE);
        // Another process on the same account may have been refused at the same moment.
        let pause = pause.mul_f64(0.75 + fastrand::f64() / 2.0);
        (self.probe_at, self.pause) = (Some(now + pause), pause / 2);
        let is_news = self.report.is_none_or(|(at, _)| at <= now);
        if is_news {
            let pause = self.report.map_or(REPORT_AGAIN, |(_, pause)| pause.saturating_mul(2));
            self.report = Some((now + pause, pause));
        }
        Full { times: self.in_vain, running, pause, is_news }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::ChunkId;

    fn place(at: usize) -> ChunkPlace {
        ChunkPlace::new(at).expect("small")
    }

    fn chunk(model: &str, lines: u64) -> Chunk {
        Chunk {
            id: ChunkId { analysis: "a".to_owned(), vision: false, part: 1 },
            path: String::new(),
            analysis: "a".to_owned(),
            model: model.to_owned(),
            lines,
            bytes: 1,
            first_index: 0,
            last_index: 0,
            blake3: String::new(),
        }
    }

    /// The next chunk to start, which must be this one.
    fn starts(slots: &Slots, at: usize) -> Slot<'_> {
        let (started, slot) = slots.start().expect("a slot");
        assert_eq!(started, place(at));
        slot
    }

    fn starts_none(slots: &Slots) -> bool {
        slots.start().is_none()
    }

    #[tokio::test]
    async fn a_full_model_waits_and_others_go_on() {
        let slots = Slots::new(3);
        let (full, free) = (chunk("full", 6), chunk("free", 1_000_000));
        (0..3).for_each(|at| slots.wait(place(at), &full, Some(10)));
        (3..5).for_each(|at| slots.wait(place(at), &free, None));
        let (mut first, _second, _third) = (starts(&slots, 0), starts(&slots, 3), starts(&slots, 4));
        assert!(starts_none(&slots) && slots.waiting() == 2);
        first.created();
        first.ended();
        let _next = starts(&slots, 1);
        assert!(starts_none(&slots));
        slots.close_model("full");
        assert!(!slots.are_open_for("full") && slots.are_open_for("free"));
        drop(_second);
        assert!(slots.waiting() == 0 && starts_none(&slots));
    }

    /// The batch of a chunk that `--no-wait` leaves running counts against the limits until the command ends.
    #[tokio::test]
    async fn a_slot_whose_batch_runs_on_is_given_to_nobody() {
        let slots = Slots::new(1);
        (0..2).for_each(|at| slots.wait(place(at), &chunk("m", 1), None));
        let mut slot = starts(&slots, 0);
        slot.created();
        slot.keep();
        assert!(starts_none(&slots) && slots.waiting() == 1 && !slots.are_in_use());
    }

    #[tokio::test]
    async fn all_are_created_once_none_waits_or_is_on_its_way() {
        let slots = Slots::new(2);
        let running = slots.occupy(&chunk("m", 1), None, true);
        slots.until_all_created().await;
        slots.wait(place(0), &chunk("m", 1), None);
        let mut slot = starts(&slots, 0);
        let waits = async {
            slots.until_all_created().await;
            assert!(slots.are_in_use());
        };
        tokio::join!(waits, async { slot.created() });
        drop((running, slot));
        assert!(!slots.are_in_use());
    }

    /// A probe that is due and does not fit into the documented limit made the driver spin until a batch ended.
    #[tokio::test(start_paused = true)]
    async fn r11_9d_a_probe_that_the_documented_limit_forbids_is_not_due() {
        let slots = Slots::new(9);
        (0..3).for_each(|at| slots.wait(place(at), &chunk("m", 6), Some(10)));
        let full = starts(&slots, 0).wait_for_queue(place(0), false, Duration::from_secs(1));
        assert!(slots.next_probe().is_some());
        tokio::time::sleep(full.pause).await;
        let mut probe = starts(&slots, 0);
        probe.created();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(starts_none(&slots) && slots.next_probe().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn r11_9d_a_limit_is_learned_and_probed_one_at_a_time() {
        let slots = Slots::new(100);
        let poll = Duration::from_secs(1);
        (0..100).for_each(|at| slots.wait(place(at), &chunk("m", 1), None));
        let mut running: Vec<Slot<'_>> = (0..3).map(|at| starts(&slots, at)).collect();
        let refused = starts(&slots, 3);
        running.iter_mut().for_each(Slot::created);
        // The fourth is refused: three are the most.
        let full = refused.wait_for_queue(place(3), false, poll);
        assert_eq!((full.times, full.running, full.is_news), (1, 3, true));
        assert!(starts_none(&slots));
        // One batch ends: another chunk goes, the one that was refused, and only one.
        running.pop().expect("a batch").ended();
        let mut next = starts(&slots, 3);
        assert!(starts_none(&slots));
        next.created();
        // A probe at a time, after its pause.
        assert!(starts_none(&slots));
        tokio::time::sleep_until(slots.next_probe().expect("a probe")).await;
        let probe = starts(&slots, 4);
        assert!(starts_none(&slots));
        let again = probe.wait_for_queue(place(4), false, poll);
        assert!(again.pause > Duration::from_secs(2) && !again.is_news, "{:?}", again.pause);
        tokio::time::sleep(again.pause).await;
        // It is taken: four are the most, and the next probe waits half as long.
        let mut probe = starts(&slots, 4);
        probe.created();
        assert!(starts_none(&slots));
        tokio::time::sleep(again.pause / 2).await;
        let mut probe = starts(&slots, 5);
        assert!(starts_none(&slots));
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            longest = probe.wait_for_queue(place(5), false, poll).pause;
            tokio::time::sleep(longest).await;
            probe = starts(&slots, 5);
        }
        assert!(longest >= LONGEST_PAUSE.mul_f64(0.75) && longest <= LONGEST_PAUSE.mul_f64(1.25), "{longest:?}");
    }
}
