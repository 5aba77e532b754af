//! Tests that run the program in a fresh directory and show input and expected output.

mod data;
mod docs;
mod emulate;
mod jobs;
mod merge;
mod parse;
mod run;
mod server;
mod workdir;
