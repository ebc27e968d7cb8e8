//! Hostile input: for everything that reads what others wrote, a function that feeds it any bytes and judges the rest.
//!
//! The seeds in `fuzz/seeds` are tried by every test run.
#![allow(clippy::missing_panics_doc, reason = "a finding is a panic")]

mod agent_conf;
mod bytes;
mod config;
mod control;
mod datagram;
mod packet;
mod report;

/// What is fed.
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

/// All that is fed.
pub const TARGETS: [Target; 6] = [
    Target { name: "packet", feed: packet::feed },
    Target { name: "datagram", feed: datagram::feed },
    Target { name: "report", feed: report::feed },
    Target { name: "config", feed: config::feed },
    Target { name: "agent-conf", feed: agent_conf::feed },
    Target { name: "control", feed: control::feed },
];

/// The bytes of a seed's file: of `NAME.hex` what its digits say, `#` beginning a comment; of others the text itself.
///
/// # Errors
/// Says which word is not of two digits.
pub fn seed(name: &str, text: &str) -> Result<Vec<u8>, String> {
    if std::path::Path::new(name).extension().is_none_or(|extension| extension != "hex") {
        return Ok(text.as_bytes().to_vec());
    }
    let words = text.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    let byte = |word: &str| u8::from_str_radix(word, 16).map_err(|error| format!("{word:?}: {error}"));
    words.map(byte).collect()
}
