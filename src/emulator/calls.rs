//! The calls that a client makes, the effects that a fault may have on one, and the numbers that decide it. [`super::faults`]
//! counts faults that a user asked for; [`super::schedule`] draws faults from a seed; both speak in these words.

use std::time::Duration;

/// What a client calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Upload,
    ListFiles,
    Download,
    DeleteFile,
    Create,
    Poll,
    ListBatches,
    Cancel,
}

/// When a fault strikes: before the server did what was asked, or after, with the reply not yet sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    Before,
    After,
}

/// What a fault of a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// HTTP status, business code (may be none), message, `Retry-After` in seconds.
    Refuse { status: u16, code: &'static str, message: &'static str, after: Option<u64> },
    /// A gateway's page.
    Html,
    /// No reply: a socket is closed; in one process the body of the reply is an I/O error.
    Break,
    /// 200 and something that is no JSON.
    Nonsense,
    /// 200 and nothing.
    Empty,
    /// 200 and an error object.
    ErrorIn200,
    /// The true reply, cut in the middle.
    CutReply,
    /// A page, or nothing, under a status that says no.
    Deny { status: u16, page: bool },
    /// 200 and a batch without its id.
    NoId,
    /// Nothing for this long, then what would have been.
    Stall(Duration),
}

/// A sequence of numbers, the same everywhere: splitmix64.
#[derive(Debug)]
pub struct Lot(u64);

impl Lot {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn turn(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}
