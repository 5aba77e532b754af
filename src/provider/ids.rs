//! Ids that a provider gives to files and batches. They are opaque; each kind is its own type.

use std::{fmt, marker::PhantomData, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Key;
use crate::{
    error::{Error, Result},
    text::escape_control,
};

const MAX_ID_BYTES: usize = 256;
/// Characters of a refused id that its error message shows.
const SHOWN_CHARS: usize = 40;

/// The id of a file at the provider.
pub type FileId = Id<OfFile>;
/// The id of a batch at the provider.
pub type BatchId = Id<OfBatch>;

/// An id that can stand in a URL (escaped), in the journal and in a message without harm.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String", bound = "K: IdKind")]
pub struct Id<K>(String, PhantomData<K>);

/// What an id names.
pub trait IdKind: Clone {
    /// As error messages call it.
    const NAME: &'static str;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OfFile;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OfBatch;

impl IdKind for OfFile {
    const NAME: &'static str = "file id";
}

impl IdKind for OfBatch {
    const NAME: &'static str = "batch id";
}

impl<K> Id<K> {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<K> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<K: IdKind> TryFrom<String> for Id<K> {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        // `.` and `..` change a path even when they are percent-encoded.
        let is_dots = text == "." || text == "..";
        if text.is_empty() || text.len() > MAX_ID_BYTES || is_dots || escape_control(&text) != text {
            let shown: String = escape_control(&text).chars().take(SHOWN_CHARS).collect();
            return Err(Error::input(format!("{shown:?} cannot be a {}", K::NAME)));
        }
        Ok(Self(text, PhantomData))
    }
}

impl<K: IdKind> FromStr for Id<K> {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.to_owned().try_into()
    }
}

impl<K> From<Id<K>> for String {
    fn from(id: Id<K>) -> Self {
        id.0
    }
}

/// The id in a server's reply. An id that holds a part of the key is refused, because ids go into the journal.
pub(super) fn parse_id<K: IdKind>(value: Option<&Value>, key: &Key) -> Option<Id<K>> {
    value?.as_str().filter(|id| !key.is_in(id))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_round_trip_or_are_refused() {
        let id: FileId = "1788419253_0123/é".parse().expect("an id");
        assert_eq!(id.to_string().parse::<FileId>().expect("an id"), id);
        let text = serde_json::to_string(&id).expect("written");
        assert_eq!(serde_json::from_str::<FileId>(&text).expect("read"), id);
        for bad in ["", ".", "..", "a\nb", "a\u{1b}", "a\u{202e}b", "x".repeat(257).as_str()] {
            assert!(bad.parse::<BatchId>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<FileId>(json!(bad)).is_err(), "{bad:?}");
        }
    }
}
