//! The operator's tools: the control socket, `status`, `check` and `uninstall`.

pub mod check;
pub mod control;
pub mod exit;
pub mod explain;
pub mod journal;
pub mod loud;
pub mod metrics;
pub mod minute;
pub mod status;
pub mod top;
pub mod uninstall;
