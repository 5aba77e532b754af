//! Ids: what is read is what was printed.

use zbatch::{
    flow::{ChunkId, CustomId},
    provider::{BatchId, FileId},
};

/// # Panics
/// When a law is broken.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match CustomId::parse(text) {
        Some(id) => {
            let printed = id.to_string();
            assert_eq!(CustomId::parse(&printed), Some(id));
            let digits = printed.len() - id.analysis.len() - 1;
            assert!(digits >= 4, "{printed}");
            // Only the zero padding may differ.
            let (analysis, number) = text.rsplit_once('_').expect("it was split there");
            assert_eq!(analysis, id.analysis);
            assert_eq!(number.trim_start_matches('0'), id.index.to_string().trim_start_matches('0'));
        }
        None => {
            let number = text.rsplit_once('_').filter(|(analysis, _)| !analysis.is_empty()).map(|(_, number)| number);
            let fits = |number: &str| {
                let significant = number.trim_start_matches('0');
                number.bytes().all(|byte| byte.is_ascii_digit()) && significant.len() < 20 && !number.is_empty()
            };
            assert!(!number.is_some_and(fits), "{text}");
        }
    }
    if let Ok(id) = text.parse::<ChunkId>() {
        assert_eq!(id.to_string(), text, "a chunk has one name");
        assert!(!text.contains(['/', '\0', '.']), "{text}");
    }
    if let Ok(id) = text.parse::<FileId>() {
        assert_eq!(id.as_str(), text);
        super::is_harmless(text);
        assert!(!text.is_empty() && text != "." && text != "..");
    }
    assert_eq!(text.parse::<FileId>().is_ok(), text.parse::<BatchId>().is_ok());
}
