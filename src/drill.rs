//! Emergencies, rehearsed. With the feature `drill` a test can end the program at any durable step, and can take a guard
//! away to see which test misses it. Without the feature, as it is shipped, all of this compiles to nothing.
//!
//! | in the environment | does |
//! |---|---|
//! | `ZBATCH_KILL=journal:created` | SIGKILL at the first such step; `journal:created#3` at the third |
//! | `ZBATCH_WITHOUT=intent,settle` | these guards are gone |
//! | `ZBATCH_HEARTBEAT=200ms` | the time between two lines that say that a job goes on |
//!
//! The simulator does the same within its process, for its own thread: see `Drill`.

/// What keeps a promise. Named as in `ZBATCH_WITHOUT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The intent is in the journal before the create is sent.
    Intent,
    /// A create is sent once.
    CreateOnce,
    /// A listing is read to its end.
    Paging,
    /// An unknown create is looked for over a while.
    Settle,
    /// The input is deleted before a create is given up as lost.
    Fence,
    /// A create without an answer is sent again once.
    Once,
    /// It is sent again only if the listing would show its batch.
    Evidence,
    /// A create that was answered with yes is never sent again.
    Made,
    /// A file is written aside and renamed.
    Rename,
    /// A file is synced before it is renamed.
    FileSync,
    /// The directory is synced after a rename.
    DirectorySync,
    /// An event is synced before what it announces.
    JournalSync,
    /// A torn last line of the journal is dropped.
    TornTail,
    /// Downloads are counted against what the batch promised.
    Counts,
    /// An answer belongs to a row of its own chunk.
    Rows,
    /// A body may not be larger than a bound.
    Caps,
    /// The key is taken out of what a server says.
    Redaction,
    /// One process a work directory.
    Lock,
    /// A chunk file is the one that was cut.
    ChunkHash,
    /// Who goes on with a directory looks for batches that its journal lacks.
    History,
    /// Nothing is created in a directory that was moved or replaced.
    Place,
}

impl Guard {
    pub const ALL: [(Self, &'static str); 21] = [
        (Self::Intent, "intent"),
        (Self::CreateOnce, "create-once"),
        (Self::Paging, "paging"),
        (Self::Settle, "settle"),
        (Self::Fence, "fence"),
        (Self::Once, "once"),
        (Self::Evidence, "evidence"),
        (Self::Made, "made"),
        (Self::Rename, "rename"),
        (Self::FileSync, "file-sync"),
        (Self::DirectorySync, "directory-sync"),
        (Self::JournalSync, "journal-sync"),
        (Self::TornTail, "torn-tail"),
        (Self::Counts, "counts"),
        (Self::Rows, "rows"),
        (Self::Caps, "caps"),
        (Self::Redaction, "redaction"),
        (Self::Lock, "lock"),
        (Self::ChunkHash, "chunk-hash"),
        (Self::History, "history"),
        (Self::Place, "place"),
    ];
}

#[cfg(not(feature = "drill"))]
mod real {
    use super::Guard;

    /// A durable step is about to be taken, or was.
    #[inline]
    pub fn step(_place: &str, _what: &str) {}

    /// The step is one that writes; half of it may be done.
    #[inline]
    pub fn tears(_place: &str, _what: &str) -> bool {
        false
    }

    /// Dies here, after half a step.
    #[inline]
    pub fn die() {}

    /// This thread is drilled.
    #[inline]
    pub const fn is_on() -> bool {
        false
    }

    #[inline]
    pub const fn without(_guard: Guard) -> bool {
        false
    }

    /// The time between two lines that say that a job goes on.
    #[inline]
    pub const fn heartbeat(usual: std::time::Duration) -> std::time::Duration {
        usual
    }

    /// Work of the server, which is not what is drilled.
    #[inline]
    pub fn spared<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
}

#[cfg(feature = "drill")]
mod real {
    use std::{
        cell::RefCell,
        env,
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    use super::Guard;

    /// The payload of the panic that ends a simulated process.
    #[derive(Clone, Copy, Debug)]
    pub struct Killed;

    /// What one thread rehearses.
    #[derive(Debug, Default)]
    pub struct Drill {
        /// Die at this step, counted from 1.
        pub kill_at: Option<u64>,
        /// Steps taken so far.
        pub taken: u64,
        /// Their names, if somebody wants to know.
        pub names: Option<Vec<String>>,
        /// It is the server that works now.
        pub spared: bool,
    }

    thread_local! {
        static DRILL: RefCell<Option<Drill>> = const { RefCell::new(None) };
    }

    /// Begins a drill on this thread, or ends it.
    pub fn set(drill: Option<Drill>) -> Option<Drill> {
        DRILL.replace(drill)
    }

    /// Name and number of the step at which the environment wants the process killed.
    fn wanted() -> Option<&'static (String, u64)> {
        static WANTED: OnceLock<Option<(String, u64)>> = OnceLock::new();
        WANTED
            .get_or_init(|| {
                let wanted = env::var("ZBATCH_KILL").ok()?;
                let (name, number) = wanted.split_once('#').unwrap_or((&wanted, "1"));
                Some((name.to_owned(), number.parse().ok()?))
            })
            .as_ref()
    }

    /// This is the step at which the process dies.
    pub fn tears(place: &str, what: &str) -> bool {
        let drilled = DRILL.with_borrow_mut(|drill| {
            let drill = drill.as_mut()?;
            if drill.spared {
                return Some(false);
            }
            drill.taken += 1;
            if let Some(names) = &mut drill.names {
                names.push(format!("{place}:{what}"));
            }
            Some(drill.kill_at == Some(drill.taken))
        });
        static COUNT: AtomicU64 = AtomicU64::new(0);
        drilled.unwrap_or_else(|| {
            wanted().is_some_and(|(step, number)| {
                *step == format!("{place}:{what}") && COUNT.fetch_add(1, Ordering::Relaxed) + 1 == *number
            })
        })
    }

    pub fn step(place: &str, what: &str) {
        if tears(place, what) {
            die();
        }
    }

    pub fn is_on() -> bool {
        DRILL.with_borrow(Option::is_some)
    }

    pub fn die() {
        if is_on() {
            std::panic::resume_unwind(Box::new(Killed));
        }
        let _never_fails = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }

    pub fn spared<T>(work: impl FnOnce() -> T) -> T {
        let set = |spared| {
            DRILL.with_borrow_mut(|drill| drill.as_mut().map(|drill| std::mem::replace(&mut drill.spared, spared)))
        };
        let before = set(true);
        let done = work();
        if let Some(before) = before {
            set(before);
        }
        done
    }

    pub fn heartbeat(usual: std::time::Duration) -> std::time::Duration {
        let told = env::var("ZBATCH_HEARTBEAT").ok();
        told.and_then(|time| crate::units::parse_duration(&time).ok()).unwrap_or(usual)
    }

    pub fn without(guard: Guard) -> bool {
        static GONE: OnceLock<Vec<Guard>> = OnceLock::new();
        GONE.get_or_init(|| {
            let named = env::var("ZBATCH_WITHOUT").unwrap_or_default();
            let named: Vec<&str> = named.split(',').collect();
            Guard::ALL.iter().filter(|(_, name)| named.contains(name)).map(|(guard, _)| *guard).collect()
        })
        .contains(&guard)
    }
}

pub use real::*;
