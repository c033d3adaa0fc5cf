//! nano
