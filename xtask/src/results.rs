//! The results of test harnesses, and their sum.

pub mod beside;
pub mod libtest;
pub mod tally;
