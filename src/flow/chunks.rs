//! chunks (to come)
