//! `balancer check`: whether this host can run the balancer, and how to repair it.

mod config;
mod firewall;
mod host;
mod jujud;
mod peers;
mod relay_ports;

use std::{
    fmt::{self, Display},
    path::Path,
};

use anyhow::Result;

use crate::{
    balance::limits,
    config::Config,
    host::{
        interfaces::{Interfaces, Routes},
        privileges,
    },
};

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    grade: Grade,
    subject: &'static str,
    text: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Grade {
    Good,
    Doubtful,
    Fatal,
}

impl Finding {
    fn good(subject: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Good, subject, text: text.into() }
    }

    fn doubtful(subject: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Doubtful, subject, text: text.into() }
    }

    fn fatal(subject: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Fatal, subject, text: text.into() }
    }

    /// Whether `balancer run` would fail.
    pub fn is_fatal(&self) -> bool {
        self.grade == Grade::Fatal
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Good => "ok  ",
            Grade::Doubtful => "WARN",
            Grade::Fatal => "FAIL",
        };
        write!(f, "{grade}  {:<12} {}", self.subject, self.text)
    }
}

/// Checks everything that the agent needs. Changes nothing on the host.
pub async fn check(path: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let missing = privileges::check()?;
    if missing.is_empty() {
        findings.push(Finding::good("privileges", "the agent gets all capabilities that it needs"));
    }
    findings.extend(missing.iter().map(|missing| Finding::fatal("privileges", missing.to_string())));
    findings.push(host::kernel());
    let links = Interfaces::open()?;
    let mut routes = Routes::open()?;
    let config = match Config::load(path, &links.host_addresses().await?) {
        Ok(config) => config,
        Err(error) => {
            findings.push(Finding::fatal("config", error.to_string()));
            return Ok(findings);
        }
    };
    findings.extend(config::configuration(path, &config));
    findings.push(match config.cluster.key.load() {
        Ok(_) => Finding::good("key", config.cluster.key.to_string()),
        Err(error) => Finding::fatal("key", format!("{error:#}")),
    });
    if config.api.hard_limit.is_none() {
        findings.push(Finding::good("limit", limits::derive(jujud::open_files(&config)).1));
    }
    findings.extend(host::devices(&config, &links, &mut routes).await?);
    findings.push(jujud::listener(&config));
    findings.extend(jujud::jujud(&config).await);
    findings.push(relay_ports::relay_ports(&config));
    findings.extend(firewall::firewall(&config, &links, &mut routes).await);
    findings.extend(peers::peers(&config, &mut routes).await);
    findings.extend(peers::sync(&config).await);
    Ok(findings)
}
