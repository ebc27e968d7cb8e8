//! The results of test harnesses, and their sum.

pub mod background;
pub mod failures;
pub mod libtest;
pub mod summary;
