//! Decides what may be had.
