//! Tests that run the program in a fresh directory and show input and expected output.

mod merge;
mod parse;
mod data;
mod docs;
mod workdir;
