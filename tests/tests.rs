//! Tests that run the program in a fresh directory and show input and expected output.

mod bombs;
mod chunk;
mod config;
mod data;
mod docs;
mod doctor;
mod emulate;
mod envelopes;
mod fuzzed;
mod r#gen;
mod hostile;
mod jobs;
mod laws;
mod merge;
mod money;
mod outputs;
mod parse;
mod run;
mod scripts;
mod secrets;
mod server;
mod signals;
mod verify;
mod workdir;
