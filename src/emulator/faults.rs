//! What goes wrong on purpose. A fault of a *line* depends on the seed and the line only, so that a second round
//! with another seed, or without the fault, answers it. A fault of a *call* is asked for at a commit point: before
//! the server did the thing, or after it did but before the reply. Counted faults count from the start of the process;
//! a [`Schedule`] draws them from a seed.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    calls::{Call, Effect, Lot, Point},
    schedule::Schedule,
    state::{Fate, WHOLE},
};
use crate::{
    error::{Error, Result},
    text::did_you_mean,
    units::parse_duration,
};

/// How a fault is written after its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// `=1%`
    Share,
    /// `=3`, the first three times; nothing: always.
    Count,
    /// `=250ms`
    Time,
    /// `=17`
    Seed,
    /// `=3`, always the same
    Limit,
    Nothing,
}

/// Every fault there is. The order is that of the help, and of the calls when several would fail one.
const TABLE: [(&str, Takes, &str); 38] = [
    ("invalid", Takes::Share, "an answer that no rule accepts"),
    ("blocked", Takes::Share, "error 1301 (content safety) in the error file"),
    ("length", Takes::Share, "finish_reason `length`, text cut off"),
    ("null", Takes::Share, "content null"),
    ("sensitive", Takes::Share, "finish_reason `sensitive`, empty text"),
    ("missing", Takes::Share, "a line in neither file"),
    ("duplicate", Takes::Share, "a line twice in the output"),
    ("foreign", Takes::Share, "one more line, under a custom_id that was not asked for"),
    ("stray", Takes::Share, "one more line, for the row four further on, which another file holds"),
    ("torn", Takes::Share, "a line cut off in the middle"),
    ("bad_key", Takes::Count, "calls get 401, code 1001"),
    ("html_error", Takes::Count, "calls get 502 with a page of HTML"),
    ("rate_limit", Takes::Count, "calls get 429, code 1302"),
    ("server_error", Takes::Count, "calls get 500, code 1234"),
    ("no_balance", Takes::Count, "creates get 429, code 1113"),
    ("lose_create", Takes::Count, "the connection breaks before a create is done"),
    ("drop_create", Takes::Count, "the connection breaks after a create was done"),
    ("deny_create", Takes::Count, "creates get 403 with a page of HTML"),
    ("no_id", Takes::Count, "creates are done, and answered with 200 and no id"),
    ("gone_batch", Takes::Count, "polls get 404, code 1220, as if there were no such batch"),
    ("gone_results", Takes::Count, "downloads get 404, code 1222, as if there were no such file"),
    ("gone_delete", Takes::Count, "files are deleted, and that is answered with 404, code 1221"),
    ("queue", Takes::Limit, "creates are refused while so many batches run (too_many_tasks)"),
    ("failed", Takes::Count, "batches end as `failed`, without files, for their first line"),
    ("full_queue", Takes::Count, "batches end as `failed`, since the account's queue is full"),
    ("expired", Takes::Share, "batches end as `expired` with this share of their lines done"),
    ("truncate", Takes::Count, "downloads end early, in turn within a line and between two lines"),
    ("redirect", Takes::Count, "downloads are redirected to a link that takes no key"),
    ("unknown_status", Takes::Count, "polls show a status that is in no documentation"),
    ("slow", Takes::Time, "every reply takes this much longer"),
    ("list_lag", Takes::Time, "a new batch is not listed for this long"),
    ("late_file", Takes::Time, "a results file is not there for this long after its batch has ended"),
    ("blind_list", Takes::Nothing, "listings never show a batch"),
    ("metadata_dropped", Takes::Nothing, "batches lose their metadata"),
    ("code_number", Takes::Nothing, "error codes are numbers, not strings"),
    ("extra_fields", Takes::Nothing, "objects have fields that are in no documentation"),
    ("fates", Takes::Nothing, "batches end in every way there is, as their content decides"),
    ("schedule", Takes::Seed, "calls go wrong in every way there is, as this seed decides"),
];

/// A fault of one line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFault {
    Invalid,
    Blocked,
    Length,
    Null,
    Sensitive,
    Missing,
    Duplicate,
    Foreign,
    Stray,
    Torn,
}

impl LineFault {
    fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Blocked => "blocked",
            Self::Length => "length",
            Self::Null => "null",
            Self::Sensitive => "sensitive",
            Self::Missing => "missing",
            Self::Duplicate => "duplicate",
            Self::Foreign => "foreign",
            Self::Stray => "stray",
            Self::Torn => "torn",
        }
    }
}

/// The identity of a request line under a seed: every decision about the line is drawn from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineKey(blake3::Hash);

impl LineKey {
    pub fn hasher(seed: u64) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher
    }

    pub fn finish(hasher: &blake3::Hasher) -> Self {
        Self(hasher.finalize())
    }

    /// A number of its own for each purpose.
    pub fn draw(&self, purpose: &str) -> u64 {
        let hash = blake3::keyed_hash(self.0.as_bytes(), purpose.as_bytes());
        hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    /// A sequence of numbers that belongs to the line.
    pub fn lot(&self) -> Lot {
        Lot::new(self.draw("lot"))
    }

    /// True for this share of all lines, in parts per million.
    pub fn within(&self, purpose: &str, share: u32) -> bool {
        share > 0 && self.draw(purpose) % u64::from(WHOLE) < u64::from(share)
    }
}

/// What was asked for, and how much of it is left.
#[derive(Debug, Default)]
pub struct FaultPlan {
    shares: Vec<(&'static str, u32)>,
    counts: Vec<(&'static str, AtomicU64)>,
    times: Vec<(&'static str, Duration)>,
    switches: Vec<&'static str>,
    /// Most batches that may run at one time.
    queue: Option<u64>,
    cuts: AtomicU64,
    schedule: Option<Schedule>,
}

/// The longest that a fault of a schedule takes over a socket, where time is real.
const LONGEST: Duration = Duration::from_secs(2);

impl FaultPlan {
    /// Reads `name`, `name=value`, also several in one with commas.
    ///
    /// # Errors
    /// [`crate::error::Kind::Usage`], naming the did_you_mean fault there is.
    pub fn parse(specs: &[String]) -> Result<Self> {
        let mut plan = Self::default();
        for spec in specs.iter().flat_map(|spec| spec.split(',')).map(str::trim).filter(|spec| !spec.is_empty()) {
            let (name, value) = match spec.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim())),
                None => (spec, None),
            };
            let Some(&(name, takes, _)) = TABLE.iter().find(|(known, ..)| *known == name) else {
                let names = TABLE.map(|(name, ..)| name);
                return Err(Error::usage(format!("--fault {spec}: there is no such fault"))
                    .fix(format!("{}`zbatch emulate --help` lists them", did_you_mean(name, &names))));
            };
            plan.add(name, takes, value)
                .map_err(|what| Error::usage(format!("--fault {spec}: {what}")).fix("see `zbatch emulate --help`"))?;
        }
        Ok(plan)
    }

    fn add(&mut self, name: &'static str, takes: Takes, value: Option<&str>) -> Result<(), String> {
        match (takes, value) {
            (Takes::Share, Some(value)) => self.shares.push((name, parse_share(value)?)),
            (Takes::Share, None) => return Err(format!("give a share, e.g. {name}=1%")),
            (Takes::Count, None) => self.counts.push((name, AtomicU64::new(u64::MAX))),
            (Takes::Count, Some(value)) => {
                let count = value.parse().map_err(|_| format!("give a number of times, e.g. {name}=3"))?;
                self.counts.push((name, AtomicU64::new(count)));
            }
            (Takes::Time, Some(value)) => self.times.push((name, parse_duration(value)?)),
            (Takes::Time, None) => return Err(format!("give a time, e.g. {name}=250ms")),
            (Takes::Seed, Some(value)) => {
                let seed = value.parse().map_err(|_| format!("give a number, e.g. {name}=17"))?;
                self.schedule = Some(Schedule::new(seed, LONGEST));
            }
            (Takes::Limit, value) => {
                let most = value.and_then(|value| value.parse().ok());
                self.queue = Some(most.ok_or_else(|| format!("give a number, e.g. {name}=3"))?);
            }
            (Takes::Seed, None) => return Err(format!("give a number, e.g. {name}=17")),
            (Takes::Nothing, None) => self.switches.push(name),
            (Takes::Nothing, Some(_)) => return Err(format!("`{name}` takes no value")),
        }
        Ok(())
    }

    /// This line has this fault.
    pub fn strikes(&self, fault: LineFault, line: &LineKey) -> bool {
        let name = fault.name();
        self.shares.iter().any(|(known, share)| *known == name && line.within(name, *share))
    }

    /// The same plan, and this schedule.
    #[must_use]
    pub fn with_schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = Some(schedule);
        self
    }

    pub fn schedule(&self) -> Option<&Schedule> {
        self.schedule.as_ref()
    }

    /// What goes wrong with a call at a commit point.
    pub fn call(&self, call: Call, point: Point) -> Option<Effect> {
        if let Some(effect) = self.schedule().and_then(|schedule| schedule.call(call, point)) {
            return Some(effect);
        }
        let refuse = |status, code, message| Effect::Refuse { status, code, message, after: None };
        let table: &[(&str, bool, Effect)] = match point {
            Point::Before => &[
                ("bad_key", true, refuse(401, "1001", "the API key is not valid")),
                ("html_error", true, Effect::Html),
                ("rate_limit", true, refuse(429, "1302", "rate limit reached")),
                ("server_error", true, refuse(500, "1234", "network error, try again")),
                ("no_balance", call == Call::Create, refuse(429, "1113", "the account is in arrears")),
                ("lose_create", call == Call::Create, Effect::Break),
                ("deny_create", call == Call::Create, Effect::Deny { status: 403, page: true }),
                ("gone_batch", call == Call::Poll, refuse(404, "1220", "the API is not there")),
                ("gone_results", call == Call::Download, refuse(404, "1222", "the API is not there")),
            ],
            Point::After => &[
                ("drop_create", call == Call::Create, Effect::Break),
                ("no_id", call == Call::Create, Effect::NoId),
                ("gone_delete", call == Call::DeleteFile, refuse(404, "1221", "the API is not there")),
            ],
        };
        table.iter().find(|(name, applies, _)| *applies && self.take(name)).map(|(.., effect)| *effect)
    }

    /// The account's queue takes no more than these that run.
    pub fn is_full(&self, running: usize) -> bool {
        self.queue.is_some_and(|most| running as u64 >= most)
    }

    /// How a new batch of this content will end.
    pub fn fate(&self, content: &str) -> Fate {
        let key = LineKey::finish(LineKey::hasher(0).update(content.as_bytes()));
        match self.shares.iter().find(|(name, _)| *name == "expired") {
            _ if self.take("failed") => Fate::Failed,
            _ if self.take("full_queue") || self.schedule().is_some_and(Schedule::is_full) => Fate::Full,
            Some((_, share)) => Fate::Expired(*share),
            None if self.switches.contains(&"fates") => {
                let share = u32::try_from(key.draw("share") % u64::from(WHOLE)).unwrap_or(0);
                match key.draw("fate") % 10 {
                    0 => Fate::Failed,
                    1 => Fate::Expired(share),
                    2 => Fate::Cancelled(share),
                    3 => Fate::AllErrors,
                    _ => Fate::Completed,
                }
            }
            None => Fate::Completed,
        }
    }

    /// Whether a download is cut short, and if so whether between two lines.
    pub fn cut(&self) -> Option<bool> {
        self.take("truncate").then(|| self.cuts.fetch_add(1, Ordering::Relaxed) % 2 == 1)
    }

    /// A download is sent on to a link.
    pub fn redirects(&self) -> bool {
        self.take("redirect") || self.schedule().is_some_and(Schedule::redirects)
    }

    pub fn unknown_status(&self) -> bool {
        self.take("unknown_status")
    }

    pub fn slow(&self) -> Duration {
        self.time("slow")
    }

    /// How long a batch is not listed.
    pub fn list_lag(&self, batch: &str) -> Duration {
        self.time("list_lag").max(self.schedule().map_or(Duration::ZERO, |schedule| schedule.lag(batch)))
    }

    /// Listings show nothing.
    pub fn hides_batches(&self) -> bool {
        self.switches.contains(&"blind_list") || self.schedule().is_some_and(Schedule::hides_batches)
    }

    /// How long a results file is not there after its batch has ended.
    pub fn late_file(&self, file: &str) -> Duration {
        self.time("late_file").max(self.schedule().map_or(Duration::ZERO, |schedule| schedule.late_file(file)))
    }

    pub fn drops_metadata(&self, batch: &str) -> bool {
        self.switches.contains(&"metadata_dropped")
            || self.schedule().is_some_and(|schedule| schedule.drops_metadata(batch))
    }

    pub fn numbers_codes(&self) -> bool {
        self.switches.contains(&"code_number")
    }

    pub fn adds_fields(&self) -> bool {
        self.switches.contains(&"extra_fields")
    }

    fn time(&self, name: &str) -> Duration {
        self.times.iter().find(|(known, _)| *known == name).map_or(Duration::ZERO, |(_, time)| *time)
    }

    /// One of the times that are left.
    fn take(&self, name: &str) -> bool {
        self.counts.iter().any(|(known, left)| {
            let less = |left: u64| left.checked_sub(1);
            *known == name && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
        })
    }
}

/// `1%`, `0.5%`: parts per million.
fn parse_share(text: &str) -> Result<u32, String> {
    let percent = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
    match percent {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to a million")]
        Some(percent) if (0.0..=100.0).contains(&percent) => Ok((percent * 10_000.0).round() as u32),
        _ => Err("a share is from 0% to 100%, e.g. 1%".to_owned()),
    }
}

/// The table, for `zbatch emulate --help`.
pub fn help() -> String {
    let mut text = "Faults (--fault NAME=VALUE; N: the first N times, always without; several with commas):".to_owned();
    for (name, takes, what) in TABLE {
        let form = match takes {
            Takes::Share => format!("{name}=1%"),
            Takes::Count => format!("{name}[=N]"),
            Takes::Time => format!("{name}=250ms"),
            Takes::Seed => format!("{name}=17"),
            Takes::Limit => format!("{name}=3"),
            Takes::Nothing => name.to_owned(),
        };
        let _infallible = write!(text, "\n  {form:<20} {what}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn plan(specs: &[&str]) -> FaultPlan {
        FaultPlan::parse(&specs.iter().map(|&spec| spec.to_owned()).collect::<Vec<_>>()).expect("a plan")
    }

    fn key(line: &str) -> LineKey {
        LineKey::finish(LineKey::hasher(0).update(line.as_bytes()))
    }

    #[test]
    fn wrong_specs_are_usage_errors() {
        for (spec, says) in [
            ("rate_limits=2", "did you mean `rate_limit`?"),
            ("invalid", "give a share"),
            ("invalid=101%", "a share is from"),
            ("invalid=1", "a share is from"),
            ("rate_limit=x", "give a number of times"),
            ("slow", "give a time"),
            ("extra_fields=1", "takes no value"),
            ("schedule", "give a number"),
            ("schedule=x", "give a number"),
        ] {
            let error = FaultPlan::parse(&[spec.to_owned()]).expect_err(spec);
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_share_of_lines_whatever_their_order() {
        let plan = plan(&["invalid=10%, torn=50%"]);
        let struck = |fault| (0..1000).filter(|n| plan.strikes(fault, &key(&n.to_string()))).count();
        assert!((60..140).contains(&struck(LineFault::Invalid)), "{}", struck(LineFault::Invalid));
        assert!((430..570).contains(&struck(LineFault::Torn)));
        assert_eq!(struck(LineFault::Blocked), 0);
    }

    #[test]
    fn counted_faults_strike_at_their_point() {
        let plan = plan(&["rate_limit=1,drop_create=1", "lose_create=1"]);
        assert!(matches!(plan.call(Call::Poll, Point::Before), Some(Effect::Refuse { status: 429, code: "1302", .. })));
        assert_eq!(plan.call(Call::Poll, Point::Before), None);
        assert_eq!(plan.call(Call::Create, Point::Before), Some(Effect::Break));
        assert_eq!(plan.call(Call::Create, Point::Before), None);
        assert_eq!(plan.call(Call::Upload, Point::After), None);
        assert_eq!(plan.call(Call::Create, Point::After), Some(Effect::Break));
        assert_eq!(plan.call(Call::Create, Point::After), None);
    }

    #[test]
    fn the_help_names_every_fault() {
        let help = help();
        assert!(TABLE.iter().all(|(name, ..)| help.contains(name)));
    }
}
