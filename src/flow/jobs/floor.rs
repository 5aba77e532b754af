//! Which chunk may go on its way to a batch: the room that `--max-concurrent-tasks`, the provider's documented limits and
//! the account's own queue leave (`docs/reliability.md` M6).

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::{Chunk, ChunkPlace, Gate};

/// The longest pause before a full queue is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// A queue that stays full is told again after this long, and then after twice as long each time.
const TELL_AGAIN: Duration = Duration::from_secs(120);

/// Who waits for room and who has it.
#[derive(Default)]
pub(super) struct Floor {
    /// A map in order, so that the same state gives the same start.
    models: BTreeMap<String, Queue>,
    /// Jobs that have room: on their way to a batch, or with one that runs.
    pub live: usize,
    /// Those of them that are on their way to a batch.
    pub creating: usize,
}

/// The jobs of one model.
#[derive(Default)]
pub(super) struct Queue {
    /// Places and their requests.
    waiting: VecDeque<(ChunkPlace, u64)>,
    /// Requests at the provider, and the most there may be.
    queued: u64,
    limit: Option<u64>,
    /// Jobs on their way to a batch, and batches that run.
    creating: usize,
    running: usize,
    room: Room,
}

/// What the refusals of one model taught. The provider does not say how many batches it takes.
#[derive(Default)]
struct Room {
    /// Batches that ran when the queue was full; one more is a probe.
    most: Option<usize>,
    /// Refusals, less the probes that were taken: the pause grows with them.
    refused: u32,
    /// Refusals since a batch last ran to its end.
    in_vain: u32,
    /// No probe is sent before this.
    probe_at: Option<Instant>,
    /// The pause before the next probe, should this one be taken.
    pause: Duration,
    /// When the full queue is to be told again, and the pause after that.
    tell: Option<(Instant, Duration)>,
}

/// A queue that was found full.
pub(super) struct Full {
    /// Refusals in a row.
    pub times: u32,
    /// Batches of the model that run.
    pub running: usize,
    /// How long no probe is sent.
    pub pause: Duration,
    /// It was not told a moment ago.
    pub is_news: bool,
}

impl Floor {
    /// The queue of a chunk's model; `limit`: requests that the provider documents as the most.
    pub fn queue(&mut self, chunk: &Chunk, limit: Option<u64>) -> &mut Queue {
        self.models.entry(chunk.model.clone()).or_insert_with(|| Queue { limit, ..Queue::default() })
    }

    /// Chunks that could start if there were room.
    pub fn waiting(&self, gate: &Gate) -> usize {
        self.models.iter().filter(|(model, _)| !gate.bars(model)).map(|(_, queue)| queue.waiting.len()).sum()
    }

    /// Gives room to the first chunk for which there is some.
    pub fn start(&mut self, gate: &Gate, most: usize) -> Option<ChunkPlace> {
        if self.live >= most {
            return None;
        }
        let now = Instant::now();
        let open = self.models.iter_mut().filter(|(model, _)| !gate.bars(model));
        let (_, queue) =
            open.filter_map(|(_, queue)| Some((queue.next(now)?, queue))).min_by_key(|(place, _)| *place)?;
        let (place, lines) = queue.waiting.pop_front()?;
        queue.queued = queue.queued.saturating_add(lines);
        queue.creating += 1;
        self.live += 1;
        self.creating += 1;
        Some(place)
    }

    /// When the next probe is due of those that wait for one.
    pub fn next_probe(&self, gate: &Gate, most: usize) -> Option<Instant> {
        let open = self.models.iter().filter(|(model, _)| self.live < most && !gate.bars(model));
        let waits = open.filter(|(_, queue)| queue.first().is_some() && queue.creating == 0);
        waits.filter_map(|(_, queue)| queue.room.probe_at).min()
    }

    /// A job of the journal may have a batch: it has room whether there is some or not.
    pub fn enter(&mut self, chunk: &Chunk, limit: Option<u64>, is_running: bool) {
        let queue = self.queue(chunk, limit);
        queue.queued = queue.queued.saturating_add(chunk.lines);
        if is_running {
            queue.running += 1
        } else {
            queue.creating += 1
        }
        self.live += 1;
        self.creating += usize::from(!is_running);
    }

    /// A job on its way has its batch.
    pub fn arrive(&mut self, chunk: &Chunk) {
        self.creating = self.creating.saturating_sub(1);
        if let Some(queue) = self.models.get_mut(&chunk.model) {
            queue.creating = queue.creating.saturating_sub(1);
            queue.running += 1;
            queue.room.took(queue.running);
        }
    }

    /// A job gives its room back; `was_running`: it had a batch.
    pub fn leave(&mut self, chunk: &Chunk, was_running: bool) {
        self.live = self.live.saturating_sub(1);
        self.creating = self.creating.saturating_sub(usize::from(!was_running));
        if let Some(queue) = self.models.get_mut(&chunk.model) {
            queue.queued = queue.queued.saturating_sub(chunk.lines);
            let count = if was_running { &mut queue.running } else { &mut queue.creating };
            *count = count.saturating_sub(1);
        }
    }

    /// A batch of this model ran to its end.
    pub fn ran(&mut self, chunk: &Chunk) {
        if let Some(queue) = self.models.get_mut(&chunk.model) {
            queue.room.in_vain = 0;
        }
    }

    /// The provider's queue had no room for this chunk, which has left and waits again.
    /// `was_made`: its batch was made, and failed for that.
    pub fn found_full(
        &mut self,
        place: ChunkPlace,
        chunk: &Chunk,
        was_made: bool,
        poll_interval: Duration,
    ) -> Option<Full> {
        let queue = self.models.get_mut(&chunk.model)?;
        queue.wait_first(place, chunk);
        Some(queue.room.close(queue.running, was_made, poll_interval))
    }
}

impl Queue {
    pub fn wait(&mut self, place: ChunkPlace, chunk: &Chunk) {
        self.waiting.push_back((place, chunk.lines));
    }

    /// Before all others: its upload is at the provider already.
    pub fn wait_first(&mut self, place: ChunkPlace, chunk: &Chunk) {
        self.waiting.push_front((place, chunk.lines));
    }

    /// The first in line, if the provider's queue has room for it.
    fn next(&self, now: Instant) -> Option<ChunkPlace> {
        self.first().filter(|_| self.room.takes(self.running, self.creating, now))
    }

    /// The first in line, if the documented limit leaves room for it.
    fn first(&self) -> Option<ChunkPlace> {
        let (place, lines) = self.waiting.front()?;
        // A chunk that is larger than the queue goes alone; the provider will say what it thinks of it.
        let fits = self.limit.is_none_or(|limit| self.queued == 0 || self.queued.saturating_add(*lines) <= limit);
        fits.then_some(*place)
    }
}

impl Room {
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
        let is_news = self.tell.is_none_or(|(at, _)| at <= now);
        if is_news {
            let pause = self.tell.map_or(TELL_AGAIN, |(_, pause)| pause.saturating_mul(2));
            self.tell = Some((now + pause, pause));
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

    #[tokio::test]
    async fn a_full_model_waits_and_others_go_on() {
        let gate = Gate::new(None);
        let mut floor = Floor::default();
        let (full, free) = (chunk("full", 6), chunk("free", 1_000_000));
        for at in 0..3 {
            floor.queue(&full, Some(10)).wait(place(at), &full);
        }
        floor.queue(&free, None).wait(place(3), &free);
        floor.queue(&free, None).wait(place(4), &free);
        let started: Vec<ChunkPlace> = std::iter::from_fn(|| floor.start(&gate, 9)).collect();
        assert_eq!(started, [0, 3, 4].map(place));
        assert_eq!((floor.live, floor.waiting(&gate)), (3, 2));
        floor.arrive(&full);
        floor.leave(&full, true);
        assert_eq!((floor.start(&gate, 3), floor.start(&gate, 3)), (Some(place(1)), None));
        gate.bar("full".to_owned());
        assert_eq!((floor.waiting(&gate), floor.start(&gate, 9)), (0, None));
    }

    /// A probe that is due and does not fit into the documented limit made the driver spin until a batch ended.
    #[tokio::test(start_paused = true)]
    async fn r11_9d_a_probe_that_the_documented_limit_forbids_is_not_due() {
        let gate = Gate::new(None);
        let mut floor = Floor::default();
        let chunk = chunk("m", 6);
        for at in 0..3 {
            floor.queue(&chunk, Some(10)).wait(place(at), &chunk);
        }
        assert_eq!(floor.start(&gate, 9), Some(place(0)));
        floor.leave(&chunk, false);
        let full = floor.found_full(place(0), &chunk, false, Duration::from_secs(1)).expect("known");
        assert!(floor.next_probe(&gate, 9).is_some());
        tokio::time::sleep(full.pause).await;
        assert_eq!(floor.start(&gate, 9), Some(place(0)));
        floor.arrive(&chunk);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!((floor.start(&gate, 9), floor.next_probe(&gate, 9)), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn r11_9d_a_limit_is_learned_and_probed_one_at_a_time() {
        let gate = Gate::new(None);
        let mut floor = Floor::default();
        let chunk = chunk("m", 1);
        let poll = Duration::from_secs(1);
        for at in 0..100 {
            floor.queue(&chunk, None).wait(place(at), &chunk);
        }
        for _ in 0..4 {
            floor.start(&gate, 100).expect("room");
        }
        for _ in 0..3 {
            floor.arrive(&chunk);
        }
        // The fourth is refused: three are the most.
        floor.leave(&chunk, false);
        let full = floor.found_full(place(3), &chunk, false, poll).expect("known");
        assert_eq!((full.times, full.running, full.is_news), (1, 3, true));
        assert_eq!(floor.start(&gate, 100), None);
        // One of ours ends: another one goes, the one that was refused, and only one.
        floor.leave(&chunk, true);
        assert_eq!((floor.start(&gate, 100), floor.start(&gate, 100)), (Some(place(3)), None));
        floor.arrive(&chunk);
        // A probe at a time, after its pause.
        assert_eq!(floor.start(&gate, 100), None);
        tokio::time::sleep_until(floor.next_probe(&gate, 100).expect("a probe")).await;
        assert_eq!((floor.start(&gate, 100), floor.start(&gate, 100)), (Some(place(4)), None));
        floor.leave(&chunk, false);
        let again = floor.found_full(place(4), &chunk, false, poll).expect("known");
        assert!(again.pause > Duration::from_secs(2) && !again.is_news, "{:?}", again.pause);
        tokio::time::sleep(again.pause).await;
        assert_eq!(floor.start(&gate, 100), Some(place(4)));
        // It is taken: four are the most, and the next probe waits half as long.
        floor.arrive(&chunk);
        assert_eq!(floor.start(&gate, 100), None);
        tokio::time::sleep(again.pause / 2).await;
        assert_eq!((floor.start(&gate, 100), floor.start(&gate, 100)), (Some(place(5)), None));
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            floor.leave(&chunk, false);
            longest = floor.found_full(place(5), &chunk, false, poll).expect("known").pause;
            tokio::time::sleep(longest).await;
            floor.start(&gate, 100).expect("a probe");
        }
        assert!(longest >= LONGEST_PAUSE.mul_f64(0.75) && longest <= LONGEST_PAUSE.mul_f64(1.25), "{longest:?}");
    }
}
