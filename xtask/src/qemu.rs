//! Virtual machines: their kernels and file systems, QEMU itself, and reports of the tests inside.

pub mod archive;
pub mod controllers;
pub mod emulator;
pub mod initramfs;
mod install;
pub mod kernels;
pub mod machine;
pub mod matrix;
pub mod report;
