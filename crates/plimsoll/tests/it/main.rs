//! The command line from outside, without a manager: help, completion, and what is refused.

mod bad_input;
mod help;
mod program;
