//! `status --all`: every controller, as it sees itself.

use std::{fmt, process::ExitCode};

use serde::{Deserialize, Serialize};

use super::{
    exit,
    status::{age, text::wrap},
};
use crate::cluster::peers::OwnView;

/// The answer of `status --all`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct All {
    pub controllers: Vec<Told>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Told {
    pub name: String,
    /// As it sees itself.
    pub view: Option<OwnView>,
    /// Why nothing is known, else empty.
    pub why_not: String,
}

impl Told {
    fn is_well(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.line == "OK")
    }
}

impl All {
    /// 0 if all is well everywhere.
    pub fn code(&self) -> ExitCode {
        if self.controllers.iter().all(Told::is_well) {
            ExitCode::SUCCESS
        } else {
            exit::Code::Degraded.into()
        }
    }
}

impl fmt::Display for All {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |is: fn(&Told) -> bool| self.controllers.iter().filter(|one| is(one)).count();
        let (all, well, silent) =
            (self.controllers.len(), count(Told::is_well), count(|one| one.view.is_none()));
        writeln!(
            f,
            "{all} controllers: {well} OK, {} degraded, {silent} without an answer\n",
            all - well - silent
        )?;
        writeln!(f, "{:<24} {:>11} {:>9} {:>8}  VERSION", "CONTROLLER", "CONNECTIONS", "LIMIT", "UP")?;
        for Told { name, view, why_not } in &self.controllers {
            if let Some(OwnView { line, connections, limit, version, uptime_s }) = view {
                let up = age(uptime_s.saturating_mul(1_000));
                writeln!(f, "{name:<24} {connections:>11} {limit:>9} {up:>8}  {version}")?;
                writeln!(f, "{}", wrap(&format!("- {line}"), 2))?;
            } else {
                writeln!(f, "{name:<24} {:>11} {:>9} {:>8}  -", "-", "-", "-")?;
                writeln!(f, "{}", wrap(&format!("- {why_not}"), 2))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str, line: Option<&str>) -> Told {
        let view =
            line.map(|line| OwnView { line: line.into(), version: "0.1.0".into(), ..OwnView::default() });
        Told { name: name.into(), view, why_not: "does not answer (older version)".into() }
    }

    #[test]
    fn all_is_well_only_where_every_controller_says_so() {
        let rows = [
            (
                vec![told("a", Some("OK")), told("b", Some("OK"))],
                true,
                "2 controllers: 2 OK, 0 degraded, 0 without an answer",
            ),
            (
                vec![told("a", Some("OK")), told("b", None)],
                false,
                "2 controllers: 1 OK, 0 degraded, 1 without an answer",
            ),
            (
                vec![told("a", Some("DEGRADED: hook missing"))],
                false,
                "1 controllers: 0 OK, 1 degraded, 0 without an answer",
            ),
        ];
        for (controllers, is_well, line) in rows {
            let all = All { controllers };
            let expected = if is_well { ExitCode::SUCCESS } else { exit::Code::Degraded.into() };
            assert_eq!(format!("{:?}", all.code()), format!("{expected:?}"), "{all}");
            let text = all.to_string();
            assert_eq!(text.lines().next(), Some(line));
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        }
    }
}
