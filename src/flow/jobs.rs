//! jobs (to come)
