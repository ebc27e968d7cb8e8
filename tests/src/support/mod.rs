//! Help that every fixture needs: waiting, processes, lines of text, reproducible noise, limits, cleaning up.

pub mod bpffs;
pub mod chance;
pub mod cleanup;
pub mod document;
pub mod drawing;
pub mod eventually;
pub mod files;
pub mod limits;
pub mod lines;
pub mod noise;
pub mod process;
pub mod schema;
pub mod terminal;
