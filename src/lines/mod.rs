//! Bytes ⇄ whole lines, in bounded memory.

pub mod blocks;
pub mod input;
pub mod output;
