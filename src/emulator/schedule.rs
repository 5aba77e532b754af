//! Faults by seed: a seed decides which kinds of trouble a server is in, how often, and which call meets which. The same
//! calls in the same order under the same seed meet the same faults.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use super::calls::{Call, Effect, Lot, Point};

/// How often a call goes wrong, in thousandths; a seed has one of these.
const RATES: [u64; 6] = [2, 10, 30, 80, 200, 400];
/// A new batch is listed after this long at the latest, whatever the seed.
const LONGEST_LAG: Duration = Duration::from_secs(90);

/// What may go wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Refused for the moment, with the codes that say so.
    Busy,
    /// 5xx, in words or in HTML.
    Broken,
    /// 200, and an error or nonsense in the body.
    Liar,
    /// No reply, the thing done or not.
    Reset,
    /// No reply for a long time.
    Stall,
    /// A create that is done long after its connection broke.
    Late,
    /// 401 in the middle of everything.
    Key,
    /// Creates refused for good: money, quota, parameters.
    Account,
    /// Uploads whose file is gone when it is needed.
    Dropped,
    /// Downloads that end early, or pause.
    Short,
    /// Polls that show strange, old or half-empty objects.
    View,
    /// Listings in pages that are small, shift, and lag.
    List,
    /// Creates refused by a gateway, in no words of the API.
    Denied,
    /// Creates that are done, and answered without an id.
    NoId,
    /// Batches that find the account's queue full.
    Full,
    /// Results files that are not there for a while after the end.
    LateFile,
    /// Listings that never show a batch.
    Blind,
    /// Downloads that are redirected to a link.
    Elsewhere,
}

const KINDS: [Kind; 18] = [
    Kind::Busy,
    Kind::Broken,
    Kind::Liar,
    Kind::Reset,
    Kind::Stall,
    Kind::Late,
    Kind::Key,
    Kind::Account,
    Kind::Dropped,
    Kind::Short,
    Kind::View,
    Kind::List,
    Kind::Denied,
    Kind::NoId,
    Kind::Full,
    Kind::LateFile,
    Kind::Blind,
    Kind::Elsewhere,
];

/// Shorter than a client waits for a results file of a batch that has ended.
const LATEST_FILE: Duration = Duration::from_secs(200);

const BUSY: [(u16, &str); 8] =
    [(429, "1302"), (429, "1303"), (429, "1305"), (429, "1312"), (429, ""), (408, ""), (409, ""), (425, "")];
const BROKEN: [(u16, &str); 6] = [(500, "500"), (500, "1234"), (502, ""), (503, "1120"), (503, ""), (504, "1230")];
const DENIED: [(u16, bool); 8] =
    [(400, true), (400, false), (401, true), (403, true), (404, true), (413, true), (302, false), (307, true)];
const KEY: [(u16, &str); 3] = [(401, "1001"), (401, "1003"), (403, "")];
const ACCOUNT: [(u16, &str); 7] =
    [(429, "1113"), (429, "1308"), (429, "1310"), (429, "1304"), (403, "1112"), (400, "1210"), (400, "1311")];

/// How a look at a batch deceives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirage {
    /// A status that is in no documentation.
    Unknown,
    /// The first status again.
    Backwards,
    /// File ids that are null, empty or not there; the status is true.
    NoFiles(u8),
    /// Counts that are null or not there.
    NoCounts(bool),
}

/// How a download goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoiled {
    /// Ends half-way, within a line or between two, with the length of the whole announced or not.
    Cut { between_lines: bool, announced: bool },
    /// Says nothing for a while.
    Slow(Duration),
}

#[derive(Debug)]
pub struct Schedule {
    seed: u64,
    /// The longest that anything takes.
    longest: Duration,
    rate: u64,
    kinds: Vec<Kind>,
    /// A download that ends between two lines always has the length of the whole.
    announces: bool,
    /// Decisions made so far; each has a number of its own.
    drawn: AtomicU64,
    met: AtomicU64,
    calm: AtomicBool,
}

impl Schedule {
    pub fn new(seed: u64, longest: Duration) -> Self {
        let mut lot = Lot::new(seed);
        let rate = pick(&RATES, lot.turn());
        // Half of all kinds: a seed with everything rarely gets far enough to meet the rare.
        let one_in = |kind| if kind == Kind::Blind { 8 } else { 2 };
        let kinds = KINDS.into_iter().filter(|kind| lot.turn().is_multiple_of(one_in(*kind))).collect();
        Self {
            seed,
            longest,
            rate,
            kinds,
            announces: false,
            drawn: AtomicU64::new(0),
            met: AtomicU64::new(0),
            calm: AtomicBool::new(false),
        }
    }

    /// For files with lines that no count promises: nobody could know that one of these is lost.
    #[must_use]
    pub fn that_announces(self) -> Self {
        Self { announces: true, ..self }
    }

    /// From here on nothing goes wrong any more.
    pub fn calm(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    /// Faults so far.
    pub fn met(&self) -> u64 {
        self.met.load(Ordering::Relaxed)
    }

    /// A sequence for one decision, if it is one for trouble of this kind.
    fn strikes(&self, kind: Kind) -> Option<Lot> {
        if self.calm.load(Ordering::Relaxed) || !self.kinds.contains(&kind) {
            return None;
        }
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        let mut lot = Lot::new(self.seed ^ number.wrapping_mul(0x9fb2_1c65_1e98_df25));
        let strikes = lot.turn() % 1000 < self.rate;
        self.met.fetch_add(u64::from(strikes), Ordering::Relaxed);
        strikes.then_some(lot)
    }

    fn time(&self, lot: &mut Lot) -> Duration {
        let most = u64::try_from(self.longest.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(lot.turn() % most.max(1))
    }

    pub fn call(&self, call: Call, point: Point) -> Option<Effect> {
        let refuse = |(status, code): (u16, &'static str), lot: &mut Lot| {
            let after = (status == 429 && lot.turn().is_multiple_of(2)).then(|| lot.turn() % 30);
            Effect::Refuse { status, code, message: "trouble by schedule", after }
        };
        let creates = call == Call::Create;
        for kind in KINDS {
            // What comes after the thing was done says nothing about it.
            let applies = match (kind, point) {
                (Kind::Busy | Kind::Key, Point::Before) => true,
                // Some servers say nothing when they have deleted: nothing must then mean that.
                (Kind::Liar, Point::Before) => call != Call::DeleteFile,
                (Kind::Broken | Kind::Liar | Kind::Reset | Kind::Stall, _) => true,
                (Kind::Account | Kind::Denied, Point::Before) => creates,
                (Kind::NoId, Point::After) => creates,
                _ => false,
            };
            if !applies {
                continue;
            }
            let Some(mut lot) = self.strikes(kind) else { continue };
            return Some(match kind {
                Kind::Busy => refuse(pick(&BUSY, lot.turn()), &mut lot),
                Kind::Key => refuse(pick(&KEY, lot.turn()), &mut lot),
                Kind::Account => refuse(pick(&ACCOUNT, lot.turn()), &mut lot),
                Kind::Broken if lot.turn() % 3 == 0 => Effect::Html,
                Kind::Broken => refuse(pick(&BROKEN, lot.turn()), &mut lot),
                Kind::Liar => {
                    pick(&[Effect::Nonsense, Effect::Empty, Effect::ErrorIn200, Effect::CutReply], lot.turn())
                }
                Kind::Denied => {
                    let (status, page) = pick(&DENIED, lot.turn());
                    Effect::Deny { status, page }
                }
                Kind::NoId => Effect::NoId,
                Kind::Stall => Effect::Stall(self.time(&mut lot)),
                _ => Effect::Break,
            });
        }
        None
    }

    /// A create whose connection breaks now, and that is done this much later.
    pub fn late(&self) -> Option<Duration> {
        let mut lot = self.strikes(Kind::Late)?;
        Some(self.time(&mut lot))
    }

    /// The file of an upload is gone after it was accepted.
    pub fn drops_input(&self) -> bool {
        self.strikes(Kind::Dropped).is_some()
    }

    /// A new batch finds the queue full.
    pub fn is_full(&self) -> bool {
        self.strikes(Kind::Full).is_some()
    }

    /// A download is sent on to a link.
    pub fn redirects(&self) -> bool {
        self.strikes(Kind::Elsewhere).is_some()
    }

    pub fn hides_batches(&self) -> bool {
        self.kinds.contains(&Kind::Blind) && !self.calm.load(Ordering::Relaxed)
    }

    /// Its listings never show a batch, so that a create without an answer may have been made, and be made once more.
    pub fn is_blind(&self) -> bool {
        self.kinds.contains(&Kind::Blind)
    }

    /// Its listings show each batch with its mark, if late.
    pub fn keeps_marks(&self) -> bool {
        !self.is_blind() && !self.kinds.contains(&Kind::View)
    }

    /// How long a results file is not there after its batch has ended, the same at each call.
    pub fn late_file(&self, file: &str) -> Duration {
        if self.calm.load(Ordering::Relaxed) || !self.kinds.contains(&Kind::LateFile) {
            return Duration::ZERO;
        }
        let most = u64::try_from(self.longest.min(LATEST_FILE).as_millis()).unwrap_or(u64::MAX);
        // Most files are there at once.
        if self.of(file).is_multiple_of(4) {
            Duration::from_millis(self.of(file) / 4 % most.max(1))
        } else {
            Duration::ZERO
        }
    }

    pub fn mirage(&self, terminal: bool) -> Option<Mirage> {
        let mut lot = self.strikes(Kind::View)?;
        let which = lot.turn() % 4;
        Some(match (terminal, which) {
            (true, 0 | 1) => Mirage::NoFiles((lot.turn() % 3) as u8),
            (false, 0) => Mirage::Unknown,
            (false, 1) => Mirage::Backwards,
            _ => Mirage::NoCounts(lot.turn() % 2 == 0),
        })
    }

    pub fn spoil(&self) -> Option<Spoiled> {
        let mut lot = self.strikes(Kind::Short)?;
        Some(match lot.turn() % 5 {
            0 => Spoiled::Slow(self.time(&mut lot)),
            shape => Spoiled::Cut { between_lines: shape % 2 == 0, announced: self.announces || shape > 2 },
        })
    }

    /// How long a batch is not listed, the same at each look.
    pub fn lag(&self, batch: &str) -> Duration {
        if self.calm.load(Ordering::Relaxed) || !self.kinds.contains(&Kind::List) {
            return Duration::ZERO;
        }
        let most = u64::try_from(self.longest.min(LONGEST_LAG).as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(self.of(batch) % most.max(1))
    }

    /// Where a batch stands in a listing, if not by its age.
    pub fn order(&self, batch: &str) -> u64 {
        let shuffled = self.kinds.contains(&Kind::List) && self.seed.is_multiple_of(2);
        if shuffled { self.of(batch) } else { 0 }
    }

    /// The most that a page of a listing holds, and how many elements of the last one it shows again.
    pub fn page(&self, asked: usize) -> (usize, usize) {
        if !self.kinds.contains(&Kind::List) {
            return (asked, 0);
        }
        let again = self.strikes(Kind::List).map_or(0, |mut lot| 1 + (lot.turn() % 2) as usize);
        (asked.min(3 + (self.seed % 4) as usize), again)
    }

    /// Batches that lose their metadata.
    pub fn drops_metadata(&self, batch: &str) -> bool {
        self.kinds.contains(&Kind::View) && self.of(batch).is_multiple_of(3)
    }

    fn of(&self, batch: &str) -> u64 {
        let hash = blake3::hash(format!("{} {batch}", self.seed).as_bytes());
        hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }
}

#[expect(clippy::indexing_slicing, reason = "the remainder is below the length")]
fn pick<T: Copy, const N: usize>(list: &[T; N], number: u64) -> T {
    list[(number % N as u64) as usize]
}
