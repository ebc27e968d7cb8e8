//! One packet: frames, the host around it, the decisions on the host and the programs in the kernel.

pub mod cost;
pub mod frame;
pub mod hop;
pub mod host;
pub mod kernel;
pub mod scene;
pub mod testrun;
