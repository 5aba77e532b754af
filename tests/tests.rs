//! Tests that run the program in a fresh directory and show input and expected output.

mod emulate;
mod server;
mod workdir;
