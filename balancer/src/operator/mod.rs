//! The operator's tools: the control socket, `status`, `check` and `uninstall`.

pub mod all;
pub mod bundle;
pub mod bypass;
pub mod check;
pub mod cli;
pub mod clients;
pub mod control;
pub mod drain;
pub mod events;
pub mod exit;
pub mod explain;
pub mod flows;
pub mod journal;
pub mod keygen;
pub mod loud;
pub mod metrics;
pub mod minute;
mod redact;
pub mod repeated;
pub mod status;
pub mod top;
pub mod uninstall;
