//! Results file → result lines.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The custom_id of a result line, if it has one that can be read.
pub fn read_custom_id(line: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct IdOnly<'a> {
        #[serde(borrow)]
        custom_id: Cow<'a, str>,
    }
    serde_json::from_slice(line).ok().map(|line: IdOnly<'_>| line.custom_id)
}

/// Tokens that a request was billed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
}
