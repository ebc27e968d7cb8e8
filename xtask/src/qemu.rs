//! Virtual machines: their kernels, their file system, QEMU itself, and the report of a run inside.

pub mod archive;
pub mod bench;
pub mod controllers;
pub mod initramfs;
pub mod kernels;
pub mod machine;
pub mod matrix;
pub mod report;
