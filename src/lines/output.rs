//! Whole files or nothing.
