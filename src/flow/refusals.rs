//! What a provider's codes and words about a row mean (`data/fault_kinds.json`): one table, each entry with its source.

use std::sync::LazyLock;

use serde::Deserialize;

use super::FaultKind;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(rename = "about")]
    _about: String,
    finish_reasons: Vec<Finish>,
    errors: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Finish {
    /// `None`: the model had finished.
    kind: Option<FaultKind>,
    reasons: Vec<String>,
    #[serde(rename = "source")]
    _source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    kind: FaultKind,
    #[serde(default)]
    codes: Vec<String>,
    #[serde(default)]
    phrases: Vec<String>,
    #[serde(default)]
    statuses: Vec<u64>,
    #[serde(default)]
    only_statuses: Vec<u64>,
    #[serde(rename = "source")]
    _source: String,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../data/fault_kinds.json"))
        .unwrap_or_else(|e| unreachable!("data/fault_kinds.json, which is part of the program: {e}"))
});

/// The kind of an error: `codes` are its code and its type.
pub fn error_kind(codes: &[&str], message: &str, status: Option<u64>) -> FaultKind {
    let message = message.to_lowercase();
    let has_code = |known: &String| codes.iter().any(|code| code.eq_ignore_ascii_case(known));
    let is_it = |entry: &&Entry| {
        let says = entry.codes.iter().any(has_code)
            || entry.phrases.iter().any(|phrase| message.contains(&phrase.to_lowercase()))
            || status.is_some_and(|status| entry.statuses.contains(&status));
        let may = entry.only_statuses.is_empty() || status.is_some_and(|status| entry.only_statuses.contains(&status));
        says && may
    };
    TABLE.errors.iter().find(is_it).map_or(FaultKind::Provider, |entry| entry.kind)
}

/// The kind of the fault that a `finish_reason` is: `Ok` if it is none, `provider` if nobody knows it.
///
/// # Errors
/// Any reason but a regular end.
pub fn finish_kind(reason: &str) -> Result<(), FaultKind> {
    // Nearly every line says so.
    if reason == "stop" {
        return Ok(());
    }
    let known = |finish: &&Finish| finish.reasons.iter().any(|known| known.eq_ignore_ascii_case(reason));
    match TABLE.finish_reasons.iter().find(known) {
        Some(Finish { kind: None, .. }) => Ok(()),
        Some(Finish { kind: Some(kind), .. }) => Err(*kind),
        None => Err(FaultKind::Provider),
    }
}
