//! The words of the agents on everything that is not relayed: `status`, `check` and the log must agree.

use anyhow::Result;
use serde_json::Value;
use tests::cluster::daemon::Daemon;
use tests::cluster::status::controllers;

use crate::contract::Row;

/// A line that operators must read at the controller with this index, by words of it: one in `status`, one in `check` and one
/// in the log.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    pub at: usize,
    pub words: &'static [&'static str],
}

/// The agents' own words, for the reader of a failure, and complaints about them.
#[derive(Debug, Default)]
pub struct Report {
    pub complaints: Vec<String>,
    pub agents: Vec<String>,
}

/// The words of an agent.
pub struct Said {
    name: String,
    status: Vec<String>,
    check: String,
    log: Vec<String>,
    /// For the reader of a failure.
    pub shown: String,
}

impl Said {
    pub fn of(daemon: &Daemon) -> Result<Self> {
        let status = daemon.status()?;
        let relay = |one: &Value| format!("{}: {} {}", one["name"], one["state"], one["relay"]);
        let states: Vec<String> = controllers(&status).map(relay).collect();
        let log = daemon.log_lines();
        let warned = log.iter().filter(|line| line.contains("WARN") || line.contains("ERROR"));
        let warned: Vec<&str> = warned.map(String::as_str).collect();
        let last = warned[warned.len().saturating_sub(8)..].join("\n    ");
        let sentences = status["not_relayed"].as_array().into_iter().flatten();
        let sentences: Vec<String> = sentences.filter_map(Value::as_str).map(str::to_owned).collect();
        let shown = format!(
            "{} sees {states:?}\n  status: {}\n  log:\n    {last}",
            status["controller"],
            sentences.join("\n  status: ")
        );
        // It fails where a check does.
        let (_, check, _) = daemon.cli(&["check"])?;
        Ok(Self { name: status["controller"].to_string(), status: sentences, check, log, shown })
    }

    /// What is wrong about it: `index` is the controller's.
    pub fn complaints(&self, row: &Row, index: usize) -> Vec<String> {
        let Self { name, status, check, log, .. } = self;
        let mut found = Vec::new();
        for sentence in status {
            // The log tells a reason that changes once.
            let subject = sentence.split(": ").next().unwrap_or(sentence);
            if !check.contains(sentence) || !log.iter().any(|line| line.contains(subject)) {
                found.push(format!("only status of {name} says: {sentence}"));
            }
        }
        if row.told.is_empty() && !row.may_tell() {
            found.extend(status.iter().map(|sentence| format!("status of {name}: {sentence}")));
        }
        for Told { words, .. } in row.told.iter().filter(|told| told.at == index) {
            let has_all = |line: &str| words.iter().all(|word| line.contains(word));
            let places = [
                ("status", status.iter().any(|line| has_all(line))),
                ("check", check.lines().any(has_all)),
                ("the log", log.iter().any(|line| has_all(line))),
            ];
            let silent = places.iter().filter(|(_, told)| !told);
            found.extend(silent.map(|(place, _)| format!("{place} of {name} has no line with {words:?}")));
        }
        found
    }
}
