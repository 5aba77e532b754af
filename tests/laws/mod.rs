//! What must hold for any bytes at all, one file for each kind of input. The fuzz targets (`tests/fuzz`) search for bytes that
//! break a law; the tests here put the kept ones through the same laws again.

pub mod answer_ladder;
pub mod api_bodies;
pub mod config;
pub mod custom_id;
pub mod journal_replay;
pub mod posts;
pub mod result_lines;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use zbatch::{
    analysis::{AnalysisSet, Sources},
    text::escape_control,
};

/// The built-in analyses with the embedded reference files.
pub fn set() -> &'static Arc<AnalysisSet> {
    static SET: LazyLock<Arc<AnalysisSet>> =
        LazyLock::new(|| Arc::new(AnalysisSet::load(&Sources::default()).expect("the built-in set")));
    &SET
}

/// A file of this thread's own for bytes that can only be read from disk; in memory, where that is possible.
pub fn scratch(name: &str) -> PathBuf {
    thread_local! {
        static DIR: Arc<tempfile::TempDir> = Arc::new(
            tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a fresh directory")
        );
    }
    DIR.with(|dir| dir.path().join(name))
}

#[expect(clippy::disallowed_methods, reason = "a test's file may be torn by nobody")]
pub fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("written");
}

/// Nothing that a terminal would obey.
#[track_caller]
pub fn is_harmless(text: &str) {
    for line in text.split('\n') {
        assert_eq!(escape_control(line), line);
    }
}
