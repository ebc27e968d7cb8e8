//! The balancer's agent: it loads the data path, exchanges counts with its peers, enforces the hard limit, and reports
//! to operators.
//!
//! A setting goes from [`operator::cli`] through [`config`] and [`agent`] to [`datapath`]. A count goes from [`datapath`] (the
//! programs' own) and [`count::sock_diag`] (the kernel's list) through [`count::audit`] and [`cluster::peers`] to
//! [`cluster::views`], and from there into the maps of [`datapath`].

pub mod agent;
pub mod balance;
pub mod cluster;
pub mod config;
pub mod count;
pub mod datapath;
pub mod host;
pub mod juju;
pub mod operator;
pub mod redirect;
