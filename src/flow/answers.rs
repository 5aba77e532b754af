//! answers (to come)
