//! enhanced (to come)
