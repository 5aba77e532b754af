//! Blocks of whole lines.
