//! Help that every fixture needs: waiting, processes, lines of text, reproducible noise, limits of a process.

pub mod eventually;
pub mod limits;
pub mod lines;
pub mod noise;
pub mod process;
