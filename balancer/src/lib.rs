//! The balancer's agent: loads the data path, exchanges counts with its peers, keeps the hard limit
//! true, and tells operators what happens.
//!
//! The way of a setting: [`cli`] → [`config`] → [`daemon`] → [`datapath`]. The way of a count:
//! [`datapath`] (the programs' own) and [`sockets`] (the kernel's list) → [`census`] → [`peers`] →
//! [`views`] → [`datapath`].

pub mod agent_conf;
pub mod census;
pub mod check;
pub mod cli;
pub mod collect;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod health;
pub mod interfaces;
pub mod introspection;
pub mod key;
pub mod limit;
pub mod membership;
pub mod memory;
pub mod notify;
pub mod peers;
pub mod privileges;
pub mod reset;
pub mod slots;
pub mod sockets;
pub mod status;
pub mod views;
pub mod xdp;
