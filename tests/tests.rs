//! Tests that run the program in a fresh directory and show input and expected output.

mod data;
mod docs;
mod merge;
mod parse;
mod workdir;
