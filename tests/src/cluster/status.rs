//! Reading `balancer status --json`.

use anyhow::{Context, Result};
use serde_json::Value;

pub fn controllers(status: &Value) -> impl Iterator<Item = &Value> {
    status["controllers"].as_array().into_iter().flatten()
}

/// The entry of the controller called `name`.
pub fn seen<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    controllers(status).find(|one| one["name"] == name).with_context(|| format!("{name} in {status}"))
}

/// The entry of the controller itself.
pub fn own(status: &Value) -> Result<&Value> {
    seen(status, status["controller"].as_str().context("status names the controller")?)
}

pub fn counter(status: &Value, name: &str) -> Result<u64> {
    status["counters"][name].as_u64().with_context(|| format!("counter {name} in {status}"))
}

/// The connections of all controllers, as a status counts them.
pub fn connections(status: &Value) -> u64 {
    controllers(status).filter_map(|one| one["connections"].as_u64()).sum()
}
