//! `balancer check`: whether this host can run the balancer, and how to repair it.

mod config;
mod firewall;
mod host;
mod jujud;
mod peers;
mod redirect;
mod relay_ports;

use std::{
    fmt::{self, Display},
    path::Path,
};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    balance::limits,
    config::Config,
    host::{
        interfaces::{Interfaces, Routes},
        privileges,
    },
    operator::exit::Code,
};

#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    grade: Grade,
    subject: &'static str,
    text: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
enum Grade {
    #[serde(rename = "ok")]
    Good,
    /// No agent runs, which is right before the installation is complete.
    #[serde(rename = "no-agent")]
    NoAgent,
    #[serde(rename = "warn")]
    Doubtful,
    #[serde(rename = "fail")]
    Fatal,
}

/// The version of [`json()`].
const SCHEMA: u32 = 1;

impl Finding {
    fn good(subject: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Good, subject, text: text.into() }
    }

    fn no_agent(text: impl Into<String>) -> Self {
        Self { grade: Grade::NoAgent, subject: "agent", text: text.into() }
    }

    fn doubtful(subject: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Doubtful, subject, text: text.into() }
    }

    fn fatal(subject: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Fatal, subject, text: text.into() }
    }
}

/// The exit code of `check`; `None` is success.
pub fn code(findings: &[Finding]) -> Option<Code> {
    let has = |grade| findings.iter().any(|finding| finding.grade == grade);
    if has(Grade::Fatal) || has(Grade::Doubtful) {
        Some(Code::Degraded)
    } else {
        has(Grade::NoAgent).then_some(Code::NoAgent)
    }
}

/// The findings for programs.
pub fn json(findings: &[Finding]) -> Value {
    let verdict = if code(findings).is_none() { "ok" } else { "degraded" };
    json!({ "schema": SCHEMA, "verdict": verdict, "findings": findings })
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Good => "ok  ",
            Grade::Doubtful | Grade::NoAgent => "WARN",
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
            let errors = Config::errors(path, error);
            findings.extend(errors.iter().map(|error| Finding::fatal("config", error.to_string())));
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
    findings.extend(redirect::redirect(&config));
    findings.extend(peers::peers(&config, &mut routes).await);
    findings.extend(peers::sync(path, &config).await);
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_well_exits_with_success() {
        let [good, doubtful, fatal] =
            [Finding::good, Finding::doubtful, Finding::fatal].map(|of| of("it", "words"));
        let no_agent = Finding::no_agent("words");
        let rows: [(&[&Finding], Option<Code>); 6] = [
            (&[], None),
            (&[&good], None),
            (&[&good, &no_agent], Some(Code::NoAgent)),
            (&[&no_agent, &doubtful], Some(Code::Degraded)),
            (&[&good, &fatal], Some(Code::Degraded)),
            (&[&doubtful, &good], Some(Code::Degraded)),
        ];
        for (findings, expected) in rows {
            let findings: Vec<_> = findings.iter().map(|&finding| finding.clone()).collect();
            assert_eq!(code(&findings), expected, "{findings:?}");
        }
        let expected = json!({
            "schema": 1,
            "verdict": "degraded",
            "findings": [
                { "grade": "ok", "subject": "it", "text": "words" },
                { "grade": "no-agent", "subject": "agent", "text": "words" },
            ],
        });
        assert_eq!(json(&[good, no_agent]), expected);
    }
}
