//! Whether all is well: the reasons why it is not, each with a remedy. `status`, `check` and the log use the same ones.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Bypassed, ControllerStatus, LastMinute, Status, text};

/// Something that is not as it should be.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Reason {
    pub cause: Cause,
    /// A few words, for the first line of `status`.
    pub short: String,
    /// The fault, its consequence and its remedy.
    pub sentence: String,
}

/// The kind of a [`Reason`], for programs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The operator has the balancer bypassed.
    Bypass,
    /// jujud on this host is not ready.
    Jujud,
    /// Memory runs short.
    Memory,
    /// The limit is reached.
    Limit,
    /// No other controller is heard.
    Alone,
    /// A controller is not heard.
    PeerAbsent,
    /// A controller does not hear this one.
    OneWay,
    /// jujud on another controller is not ready.
    PeerNotReady,
    /// A program was not at its place.
    Hook,
    /// Clients are not relayed.
    NotRelayed,
    /// Datagrams were sealed with another key.
    WrongKey,
    /// A controller runs another version.
    OtherVersion,
    /// Hosts have different times.
    Clock,
    /// A new configuration was refused.
    Reload,
    /// Clients have as many connections as they may.
    ClientLimit,
    /// More clients arrive than are relayed.
    Flood,
    /// A bound of the balancer's own tables is met.
    Bound,
    /// The metrics are not served.
    Metrics,
    /// One that a newer agent knows.
    #[serde(other)]
    Other,
}

impl Cause {
    /// Those that this version knows.
    #[rustfmt::skip]
    pub const ALL: [Self; 18] = [
        Self::Bypass, Self::Jujud, Self::Memory, Self::Limit, Self::Alone, Self::PeerAbsent, Self::OneWay, Self::PeerNotReady, Self::Hook,
        Self::NotRelayed, Self::WrongKey, Self::OtherVersion, Self::Clock, Self::Reload, Self::ClientLimit, Self::Flood,
        Self::Bound, Self::Metrics,
    ];

    /// Its name in the JSON.
    pub fn name(self) -> String {
        let name = serde_json::to_value(self);
        name.ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

impl Reason {
    fn new(cause: Cause, short: impl Into<String>, sentence: impl Into<String>) -> Self {
        Self { cause, short: short.into(), sentence: sentence.into() }
    }

    /// A sentence of the agent's own, which names its subject before the colon.
    fn told(cause: Cause, sentence: &str) -> Self {
        let subject = sentence.split([':', ';', ',']).next().unwrap_or(sentence);
        Self::new(cause, subject, sentence)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// Everything that is not as it should be, the worst first.
pub fn reasons(status: &Status) -> Vec<Reason> {
    let mut found = host(status);
    found.extend(peers(status));
    found.extend(not_relayed(status));
    found.extend(last_minute(status));
    let unserved = status.metrics_fault.iter();
    found.extend(unserved.map(|why| Reason::new(Cause::Metrics, "metrics are not served", why)));
    found.extend(status.bounds.iter().map(|sentence| Reason::told(Cause::Bound, sentence)));
    found.sort_by_key(|reason| reason.cause);
    found
}

/// The first line of `status`, at most 80 columns.
pub fn headline(reasons: &[Reason]) -> String {
    if reasons.is_empty() {
        return "OK".into();
    }
    let alone = reasons.iter().any(|reason| reason.cause == Cause::Alone);
    // Each controller has a sentence, but all of them are one reason.
    let is_told = |reason: &&Reason| !(alone && reason.cause == Cause::PeerAbsent);
    let mut shorts: Vec<&str> = Vec::new();
    for reason in reasons.iter().filter(is_told) {
        if !shorts.contains(&reason.short.as_str()) {
            shorts.push(&reason.short);
        }
    }
    text::fit("DEGRADED: ", &shorts)
}

fn host(status: &Status) -> Vec<Reason> {
    let mut found = Vec::new();
    if let Some(Bypassed { all, left_s }) = status.balance.bypass {
        let left = left_s.map_or_else(
            || "until `balancer on`".to_owned(),
            |left_s| format!("{} left", text::age(u64::from(left_s) * 1_000)),
        );
        let limits = if all { "no limit holds" } else { "the limits hold" };
        let sentence = format!(
            "the balancer is bypassed on this host, {left}: each new client is served where it dials, and none is closed; \
             relayed connections go on, and {limits}; `balancer on` ends it"
        );
        found.push(Reason::new(Cause::Bypass, format!("bypassed, {left}"), sentence));
    }
    let lifted = status.balance.bypass.is_some_and(|bypass| bypass.all);
    if !status.ready {
        let sentence = format!(
            "jujud on this host is not ready: {}; new clients are relayed to other controllers that have room; see its \
             unit, such as `systemctl status jujud-machine-0`, and its log",
            status.health
        );
        found.push(Reason::new(Cause::Jujud, "jujud is not ready", sentence));
    }
    let stage = status.balance.memory_stage.as_str();
    if !matches!(stage, "normal" | "") && !lifted {
        let short = if refuses_for_memory(stage) { "no memory for new clients" } else { "memory runs short" };
        found.push(Reason::new(Cause::Memory, short, format!("memory: {}", status.balance.memory)));
    }
    let connections = status.connections_here();
    let limit = u64::from(status.hard_limit);
    if connections >= limit && !lifted && !refuses_for_memory(stage) && status.balance.drain_left_s.is_none()
    {
        found.push(Reason::new(Cause::Limit, format!("limit of {limit} reached"), limit_reached(limit)));
    }
    found.extend(status.displaced.iter().map(|line| Reason::new(Cause::Hook, "hook missing", line)));
    if let Some(why) = &status.configuration.refused {
        let sentence = format!("the configuration stays as it was: {why}");
        found.push(Reason::new(Cause::Reload, "new configuration refused", sentence));
    }
    found
}

fn refuses_for_memory(stage: &str) -> bool {
    matches!(stage, "refuse" | "close")
}

/// The sentence about clients that no controller has room for.
pub fn limit_reached(limit: u64) -> String {
    format!(
        "the limit of {limit} connections is reached: new clients are relayed to controllers that have room, and refused if \
         none has; add a controller, or raise api.hard_limit (`balancer limit` does at once)"
    )
}

fn peers(status: &Status) -> Vec<Reason> {
    let mut found = Vec::new();
    let others: Vec<_> = status.controllers.iter().filter(|one| one.name != status.controller).collect();
    let udp = status.sync_port;
    if !others.is_empty() && others.iter().all(|one| one.state == "absent") {
        let sentence = format!(
            "no other controller is heard: this one is alone and serves every client that dials it, up to its limit; is \
             this host cut off, or does its firewall block UDP {udp}?"
        );
        found.push(Reason::new(Cause::Alone, "alone, no other controller is heard", sentence));
    }
    for ControllerStatus { name, state, version, hears, silence, age_ms, .. } in others {
        match state.as_str() {
            "absent" => {
                let of = format!("no client is relayed to {name}: ");
                let sentence = status.not_relayed.iter().find(|sentence| sentence.starts_with(&of));
                let sentence = sentence.cloned().unwrap_or_else(|| format!("controller {name} is not heard"));
                let short = match silence.as_deref() {
                    Some("stopped") => format!("the agent on {name} is stopped"),
                    Some("crashed") => format!("the agent on {name} has crashed or hangs"),
                    Some("cut-off") => format!("{name} is down or cut off"),
                    _ => format!("{name} is not heard"),
                };
                found.push(Reason::new(Cause::PeerAbsent, short, sentence));
                continue;
            }
            "not-ready" => {
                let sentence = format!(
                    "jujud on {name} is not ready: the other controllers take its new clients; `balancer status` there \
                     says why"
                );
                found.push(Reason::new(
                    Cause::PeerNotReady,
                    format!("jujud on {name} is not ready"),
                    sentence,
                ));
            }
            _ => {}
        }
        if *hears == Some(false) {
            let sentence = format!(
                "{name} does not hear this controller, but is heard here: it relays no client here; does a firewall on \
                 the way to {name} block UDP {udp}?"
            );
            found.push(Reason::new(Cause::OneWay, format!("{name} does not hear this controller"), sentence));
        }
        let theirs = match version {
            Some(version) if *version == status.version => continue,
            Some(version) => format!("balancer {version}"),
            // It has yet to report to this agent, which may be younger than the programs.
            None if age_ms.is_none() => continue,
            None => "an earlier version".into(),
        };
        let sentence = format!(
            "{name} runs {theirs} and this controller balancer {}: upgrade all controllers, one after the other",
            status.version
        );
        found.push(Reason::new(Cause::OtherVersion, format!("{name} runs {theirs}"), sentence));
    }
    found
}

/// Those of the sentences that are not about a controller that is not heard.
fn not_relayed(status: &Status) -> impl Iterator<Item = Reason> {
    let absent = status.controllers.iter().filter(|one| one.state == "absent");
    let absent: Vec<_> = absent.map(|one| format!("no client is relayed to {}: ", one.name)).collect();
    let others = status.not_relayed.iter();
    // The bypass has a reason of its own.
    let bypassed = status.balance.bypass.is_some();
    let is_told = move |sentence: &str| {
        absent.iter().any(|of| sentence.starts_with(of))
            || (bypassed && sentence.starts_with("no client is relayed over "))
    };
    let others = others.filter(move |sentence| !is_told(sentence));
    others.map(|sentence| Reason::told(Cause::NotRelayed, sentence))
}

fn last_minute(status: &Status) -> Vec<Reason> {
    let LastMinute { client_full, flood, wrong_key, malformed, clock_skew, .. } = status.last_minute;
    let rows = [
        (
            Cause::ClientLimit,
            client_full,
            "clients above the per-client limit",
            "clients were refused in the last minute because their address has as many connections as \
             policy.per_client_limit allows; look for a client that runs wild, or raise it",
        ),
        (
            Cause::Flood,
            flood,
            "flood of new clients",
            "new clients of the last minute came faster than the flood guard relays; they were served where they dialled; \
             if it is an attack, api.deny keeps its networks out",
        ),
        (
            Cause::WrongKey,
            wrong_key,
            "a controller has another key",
            "datagrams of the last minute were sealed with another key, and dropped: give every controller \
             the same key",
        ),
        (
            Cause::OtherVersion,
            malformed,
            "messages of another version",
            "datagrams of the last minute cannot be read, and are dropped: does every controller run the same \
             version?",
        ),
        (
            Cause::Clock,
            clock_skew,
            "clocks differ",
            "datagrams of the last minute came from hosts whose clock is more than 30 s off: they are not heard; is the \
             time of every host synchronised?",
        ),
    ];
    let found = rows.into_iter().filter(|(_, count, ..)| *count > 0);
    found.map(|(cause, count, short, text)| Reason::new(cause, short, format!("{count} {text}"))).collect()
}

#[cfg(test)]
mod tests;
