//! Bytes ⇄ whole lines, in bounded memory.

mod ahead;
pub mod array;
pub mod blocks;
pub mod flaw;
pub mod form;
pub mod input;
pub mod output;
pub mod place;
pub mod pool;
pub mod worker;
