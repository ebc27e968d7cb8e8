//! `balancer check`: can this host run the balancer, and what is missing?

mod config;
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
    host::{interfaces::Interfaces, privileges},
};

/// One thing looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    grade: Grade,
    what: &'static str,
    text: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Grade {
    Good,
    Doubtful,
    Fatal,
}

impl Finding {
    fn good(what: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Good, what, text: text.into() }
    }

    fn doubtful(what: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Doubtful, what, text: text.into() }
    }

    fn fatal(what: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Fatal, what, text: text.into() }
    }

    /// Whether `balancer run` would fail for it.
    pub fn is_fatal(&self) -> bool {
        self.grade == Grade::Fatal
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Good => "ok  ",
            Grade::Doubtful => "look",
            Grade::Fatal => "FAIL",
        };
        write!(f, "{grade}  {:<12} {}", self.what, self.text)
    }
}

/// Looks at everything that the daemon needs; changes nothing.
///
/// # Errors
/// Something could not even be looked at.
pub async fn check(path: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let missing = privileges::check()?;
    if missing.is_empty() {
        findings.push(Finding::good("privileges", "all capabilities that the daemon needs"));
    }
    findings.extend(missing.iter().map(|missing| Finding::fatal("privileges", missing.to_string())));
    findings.push(host::kernel());
    let links = Interfaces::open()?;
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
        findings.push(Finding::good("limit", limits::derive().1));
    }
    findings.extend(host::devices(&config, &links).await?);
    findings.push(jujud::listener(&config));
    findings.extend(jujud::jujud(&config).await);
    findings.push(relay_ports::relay_ports(&config));
    findings.extend(peers::peers(&config, &links).await);
    findings.extend(peers::sync(&config).await);
    Ok(findings)
}
