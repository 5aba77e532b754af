//! results (to come)
