//! What fuzzing found interesting (`make fuzz`), and what it once broke, through the same laws again.

use crate::{laws, workdir::repository};

type Law = fn(&[u8]);

/// The name of a target, and its law.
const TARGETS: [(&str, Law); 7] = [
    ("posts", laws::posts::check),
    ("result_lines", laws::result_lines::check),
    ("answer_ladder", laws::answer_ladder::check),
    ("journal_replay", laws::journal_replay::check),
    ("custom_id", laws::custom_id::check),
    ("api_bodies", laws::api_bodies::check),
    ("config", laws::config::check),
];

#[test]
#[expect(clippy::disallowed_methods, reason = "the corpus is small")]
fn h1_the_kept_corpus_breaks_no_law() {
    for (target, law) in TARGETS {
        let folder = repository().join("tests/fuzz/corpus").join(target);
        let mut paths: Vec<_> =
            std::fs::read_dir(&folder).expect(target).map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        assert!(paths.len() >= 5, "{target}: {} files", paths.len());
        for path in paths {
            let data = std::fs::read(&path).expect("read");
            let _shown_on_failure = path.display();
            law(&data);
        }
    }
}
