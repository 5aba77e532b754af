//! The stages, in the order a post meets them. A stage owns its loop and is asked for the next thing. The one async stage is
//! [`crate::jobs`].

pub mod answers;
pub mod chunks;
pub mod columns;
pub mod enhanced;
pub mod faults;
pub mod images;
pub mod kept_faults;
pub mod posts;
pub mod refusals;
pub mod requests;
pub mod results;
pub mod rows;
pub mod shards;
pub mod tally;

use std::{fmt, str::FromStr};

pub use faults::{Fault, FaultKind, FaultLine};

/// Place of a post in the input, from 0: the join key. Given in [`posts`] and nowhere else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PostIndex(pub u64);

impl fmt::Display for PostIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `{analysis}_{index:04}`: the only thing that must survive the trip through the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CustomId<'a> {
    pub analysis: &'a str,
    pub index: PostIndex,
}

impl<'a> CustomId<'a> {
    /// Splits at the last `_`; any zero padding is read, a sign, a space or an overflow is not.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (analysis, digits) = text.rsplit_once('_')?;
        let all_digits = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        (all_digits && !analysis.is_empty())
            .then(|| digits.parse().ok())
            .flatten()
            .map(|index| Self { analysis, index: PostIndex(index) })
    }
}

impl fmt::Display for CustomId<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{:04}", self.analysis, self.index.0)
    }
}

/// Name of a chunk and of its files: `{analysis}_batch_part{N}` or `{analysis}_vision_batch_part{N}`, N from 1.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChunkId {
    pub analysis: String,
    pub vision: bool,
    pub part: u32,
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vision = if self.vision { "_vision" } else { "" };
        write!(f, "{}{vision}_batch_part{}", self.analysis, self.part)
    }
}

impl ChunkId {
    /// Its file within a work directory.
    pub fn path(&self) -> String {
        format!("requests/{self}.jsonl")
    }
}

impl FromStr for ChunkId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{}` is not a chunk name (NAME_batch_partN)", crate::text::short(text));
        let (stem, part) = text.rsplit_once("_batch_part").ok_or_else(bad)?;
        let plain = !part.starts_with('0') && part.bytes().all(|b| b.is_ascii_digit());
        let part = part.parse().ok().filter(|_| plain).ok_or_else(bad)?;
        let (analysis, vision) = match stem.strip_suffix("_vision") {
            Some(analysis) => (analysis, true),
            None => (stem, false),
        };
        if !crate::analysis::is_name(analysis) {
            return Err(bad());
        }
        Ok(Self { analysis: analysis.to_owned(), vision, part })
    }
}

impl TryFrom<String> for ChunkId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ChunkId> for String {
    fn from(id: ChunkId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn custom_ids_round_trip(analysis in "[a-z][a-z0-9_]{0,20}", index: u64, pad in 0usize..8) {
            let id = CustomId { analysis: &analysis, index: PostIndex(index) };
            let text = id.to_string();
            prop_assert_eq!(CustomId::parse(&text), Some(id));
            let padded = format!("{analysis}_{}{index}", "0".repeat(pad));
            prop_assert_eq!(CustomId::parse(&padded), Some(id));
        }

        #[test]
        fn chunk_ids_round_trip(analysis in "[a-z]{1,10}", vision: bool, part in 1u32..) {
            let id = ChunkId { analysis, vision, part };
            prop_assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn custom_ids_that_are_none() {
        for text in ["", "_", "a_", "_7", "a_-1", "a_+1", "a_ 1", "a_1 ", "a_1.0", "a_99999999999999999999", "a"] {
            assert_eq!(CustomId::parse(text), None, "{text}");
        }
    }
}
