//! `[policy]`: how the balance is kept.

use std::fmt;

use serde::Deserialize;

use super::{error::Fault, file::Table};

#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Whether established connections are closed on a controller that has too many.
    pub rebalance: Rebalance,
    /// A controller starts to close connections above this multiple of its share.
    pub threshold: f64,
    /// It also needs more than this many connections above its share to start.
    pub min_excess: u32,
    /// Most connections that a controller closes per second.
    pub max_rate: Option<f64>,
    /// Logins per second that a jujud admits.
    pub login_rate: f64,
    /// How to treat a new client that another controller should serve.
    pub steer: Steer,
    /// With `steer = "refuse"`: refuse this fraction of the new clients at random, regardless of the counts.
    pub refuse_ratio: Option<Ratio>,
    /// Most connections of one client address.
    pub per_client_limit: Option<u32>,
    /// Whether fewer clients are taken when memory runs short.
    pub memory_guard: bool,
    /// Headroom from which memory is short, MiB.
    pub memory_reserve: Option<u32>,
    /// Fraction of the time that tasks wait for memory (PSI, average of 10 s) from which memory is under pressure.
    pub memory_pressure: f64,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Rebalance {
    /// No connection is closed to keep the balance.
    Off,
    /// The connections to close are only logged and shown.
    DryRun,
    /// Connections are closed.
    On,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Steer {
    /// Relay the connection to the controller that should serve it.
    Relay,
    /// Refuse it by RST, so that a client with several addresses tries the next one.
    Refuse,
    /// Serve it here.
    Off,
}

/// `policy.refuse_ratio`: a fraction of at most 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ratio {
    /// Numerator.
    pub part: u32,
    /// Denominator.
    pub whole: u32,
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.part, self.whole)
    }
}

impl Ratio {
    /// As a threshold for 32 random bits.
    pub fn scaled(self) -> u32 {
        let scaled = (u64::from(self.part) << 32) / u64::from(self.whole.max(1));
        u32::try_from(scaled).unwrap_or(u32::MAX)
    }
}

pub(super) fn policy(table: &Table<'_>) -> Result<Policy, Fault> {
    let policy = Policy {
        rebalance: table.get("policy.rebalance")?,
        threshold: table.get("policy.threshold")?,
        min_excess: table.get("policy.min_excess")?,
        max_rate: table.find("policy.max_rate")?,
        login_rate: table.get("policy.login_rate")?,
        steer: table.get("policy.steer")?,
        refuse_ratio: refuse_ratio(table)?,
        per_client_limit: table.find("policy.per_client_limit")?,
        memory_guard: table.get("policy.memory_guard")?,
        memory_reserve: table.find("policy.memory_reserve")?,
        memory_pressure: table.get("policy.memory_pressure")?,
    };
    if policy.refuse_ratio.is_some() && policy.steer != Steer::Refuse {
        let message = "needs policy.steer = \"refuse\"; add that, or remove this key";
        return Err(table.fault("policy.refuse_ratio", message));
    }
    Ok(policy)
}

fn refuse_ratio(table: &Table<'_>) -> Result<Option<Ratio>, Fault> {
    let Some(text) = table.find::<String>("policy.refuse_ratio")? else { return Ok(None) };
    let ratio = text.split_once('/').and_then(|(part, whole)| {
        Some(Ratio { part: part.trim().parse().ok()?, whole: whole.trim().parse().ok()? })
    });
    let message = || format!("{text:?} is not a fraction between 0 and 1; write one such as \"1/3\"");
    let ratio = ratio.filter(|ratio| ratio.part >= 1 && ratio.part < ratio.whole);
    ratio.map(Some).ok_or_else(|| table.fault("policy.refuse_ratio", message()))
}
