//! requests (to come)
