//! Tests that run the program in a fresh directory and show input and expected output.

mod chunk;
mod config;
mod data;
mod docs;
mod doctor;
mod emulate;
mod r#gen;
mod jobs;
mod merge;
mod outputs;
mod parse;
mod run;
mod secrets;
mod server;
mod signals;
mod verify;
mod workdir;
