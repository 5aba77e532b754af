//! Result lines → answers.

/// The rung of the ladder that read an answer: how much had to be taken away before it was JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// As asked for: nothing but the value.
    Strict,
    /// After taking away `<think>…</think>`.
    Thinking,
    /// In a code fence.
    Fenced,
    /// The first balanced value, or the one label, among other words.
    Embedded,
    /// After light fixes: trailing comma, quotes, full-width signs, raw line breaks.
    Mended,
}

impl Rung {
    pub const ALL: [Self; 5] = [Self::Strict, Self::Thinking, Self::Fenced, Self::Embedded, Self::Mended];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Thinking => "thinking",
            Self::Fenced => "fenced",
            Self::Embedded => "embedded",
            Self::Mended => "mended",
        }
    }
}
