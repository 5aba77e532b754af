//! What is in force: flags over environment over config file over defaults, checked.

/// The candidate that looks most like `word`.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> &'a str {
    let score = |candidate: &str| strsim::jaro_winkler(word, candidate);
    candidates.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b))).unwrap_or_default()
}
