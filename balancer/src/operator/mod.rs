//! The operator's tools: the control socket, `status`, `check` and `uninstall`.

pub mod check;
pub mod control;
pub mod status;
pub mod uninstall;
