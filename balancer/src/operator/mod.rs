//! The operator's tools: the control socket, `status` and `check`.

pub mod check;
pub mod control;
pub mod status;
