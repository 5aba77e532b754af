//! zbatch labels posts with a language model through a Batch API.

pub mod analysis;
pub mod cli;
pub mod cmd;
pub mod emulator;
pub mod error;
pub mod flow;
pub mod journal;
pub mod lines;
pub mod progress;
pub mod provider;
pub mod report;
pub mod settings;
pub mod snapshots;
pub mod workdir;
