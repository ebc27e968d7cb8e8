//! Hostile input: for each reader of foreign input, a function that feeds it any bytes and judges the outcome.
//!
//! The seeds in `fuzz/seeds`, past findings among them, are tried by every test run; `cargo xtask fuzz` looks for more.

mod agent_conf;
mod bytes;
mod config;
mod control;
mod datagram;
mod packet;
mod redirect;
mod report;
mod seed;

pub use self::seed::seed;

#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its directory of seeds.
    pub name: &'static str,
    /// Feeds it.
    ///
    /// # Panics
    /// The input is a finding.
    pub feed: fn(&[u8]),
}

pub const TARGETS: [Target; 7] = [
    Target { name: "packet", feed: packet::feed },
    Target { name: "datagram", feed: datagram::feed },
    Target { name: "report", feed: report::feed },
    Target { name: "config", feed: config::feed },
    Target { name: "agent-conf", feed: agent_conf::feed },
    Target { name: "control", feed: control::feed },
    Target { name: "redirect", feed: redirect::feed },
];
