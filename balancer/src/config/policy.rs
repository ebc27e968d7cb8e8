//! `[policy]`: how the balance is kept.

use serde::Deserialize;
use toml::Spanned;

use super::error::Fault;

/// Most logins a second that `login_rate` may say, which lifts the limit.
const HIGHEST_RATE: f64 = 100_000.0;

/// `[policy]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Whether established connections are closed where there are too many. Default: `on`.
    pub rebalance: Rebalance,
    /// A controller begins to close connections above this multiple of its share. Default: 1.2.
    pub threshold: f64,
    /// And only when it has more than so many above its share. Default: 50.
    pub min_excess: u32,
    /// Most connections that a controller closes per second. Default: as `login_rate` allows.
    pub max_rate: Option<f64>,
    /// Logins per second that a controller admits. Default: 4, as jujud does.
    pub login_rate: f64,
    /// What becomes of a newcomer whom another controller is to serve. Default: `relay`.
    pub steer: Steer,
    /// With `steer = "refuse"`: refuse this part of the newcomers at random, whatever the counts. Default: by the
    /// counts.
    pub refuse_ratio: Option<Ratio>,
    /// Most connections of one client address. Default: no limit.
    pub per_client_limit: Option<u32>,
    /// Whether the limit adapts to memory running out. Default: yes.
    pub memory_guard: bool,
    /// Part of the memory in use above which newcomers are relayed away. Default: 0.80.
    pub memory_relay: f64,
    /// Part of the memory in use above which newcomers are refused. Default: 0.90.
    pub memory_refuse: f64,
    /// Part of the memory in use above which connections are closed. Default: 0.95.
    pub memory_shed: f64,
    /// Part of the time that tasks wait for memory (PSI, average of 10 s) that counts as running short. Default: 0.20.
    pub memory_pressure: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            rebalance: Rebalance::On,
            threshold: 1.2,
            min_excess: 50,
            max_rate: None,
            login_rate: 4.0,
            steer: Steer::Relay,
            refuse_ratio: None,
            per_client_limit: None,
            memory_guard: true,
            memory_relay: 0.80,
            memory_refuse: 0.90,
            memory_shed: 0.95,
            memory_pressure: 0.20,
        }
    }
}

/// `policy.rebalance`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rebalance {
    /// No connection is closed for the balance's sake.
    Off,
    /// What would be closed is logged and shown only.
    DryRun,
    /// Connections are closed.
    On,
}

/// `policy.steer`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Steer {
    /// Relayed to the controller that is to serve it.
    Relay,
    /// Refused by RST, so that a client with several addresses goes elsewhere.
    Refuse,
    /// Served where it dialled.
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

impl Ratio {
    /// As a threshold for 32 random bits.
    pub fn scaled(self) -> u32 {
        let scaled = (u64::from(self.part) << 32) / u64::from(self.whole.max(1));
        u32::try_from(scaled).unwrap_or(u32::MAX)
    }
}

/// What was typed.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPolicy {
    rebalance: Option<Spanned<String>>,
    threshold: Option<Spanned<f64>>,
    min_excess: Option<Spanned<i64>>,
    max_rate: Option<Spanned<f64>>,
    login_rate: Option<Spanned<f64>>,
    steer: Option<Spanned<String>>,
    refuse_ratio: Option<Spanned<String>>,
    per_client_limit: Option<Spanned<i64>>,
    memory_guard: Option<bool>,
    memory_relay: Option<Spanned<f64>>,
    memory_refuse: Option<Spanned<f64>>,
    memory_shed: Option<Spanned<f64>>,
    memory_pressure: Option<Spanned<f64>>,
}

/// Checks what was typed and fills in the defaults.
pub(super) fn policy(raw: RawPolicy) -> Result<Policy, Fault> {
    let default = Policy::default();
    let rebalances = [("off", Rebalance::Off), ("dry-run", Rebalance::DryRun), ("on", Rebalance::On)];
    let steers = [("relay", Steer::Relay), ("refuse", Steer::Refuse), ("off", Steer::Off)];
    let steer = choice("policy.steer", raw.steer.as_ref(), &steers)?.unwrap_or(default.steer);
    if let Some(ratio) = &raw.refuse_ratio
        && steer != Steer::Refuse
    {
        return Err(Fault::at(
            ratio.span(),
            "policy.refuse_ratio: needs policy.steer = \"refuse\"; add that, or remove this key",
        ));
    }
    let policy = Policy {
        rebalance: choice("policy.rebalance", raw.rebalance.as_ref(), &rebalances)?
            .unwrap_or(default.rebalance),
        threshold: number("policy.threshold", raw.threshold.as_ref(), 1.0..=100.0)?
            .unwrap_or(default.threshold),
        min_excess: whole("policy.min_excess", raw.min_excess.as_ref(), 1)?.unwrap_or(default.min_excess),
        max_rate: number("policy.max_rate", raw.max_rate.as_ref(), 0.01..=HIGHEST_RATE)?,
        login_rate: number("policy.login_rate", raw.login_rate.as_ref(), 0.1..=HIGHEST_RATE)?
            .unwrap_or(default.login_rate),
        steer,
        refuse_ratio: raw.refuse_ratio.as_ref().map(ratio).transpose()?,
        per_client_limit: whole("policy.per_client_limit", raw.per_client_limit.as_ref(), 1)?,
        memory_guard: raw.memory_guard.unwrap_or(default.memory_guard),
        memory_relay: number("policy.memory_relay", raw.memory_relay.as_ref(), 0.1..=1.0)?
            .unwrap_or(default.memory_relay),
        memory_refuse: number("policy.memory_refuse", raw.memory_refuse.as_ref(), 0.1..=1.0)?
            .unwrap_or(default.memory_refuse),
        memory_shed: number("policy.memory_shed", raw.memory_shed.as_ref(), 0.1..=1.0)?
            .unwrap_or(default.memory_shed),
        memory_pressure: number("policy.memory_pressure", raw.memory_pressure.as_ref(), 0.01..=1.0)?
            .unwrap_or(default.memory_pressure),
    };
    if !(policy.memory_relay <= policy.memory_refuse && policy.memory_refuse <= policy.memory_shed) {
        let message = format!(
            "policy.memory_relay, memory_refuse, memory_shed: {} / {} / {} do not rise; newcomers are relayed away \
             first, then refused, then connections are closed",
            policy.memory_relay, policy.memory_refuse, policy.memory_shed
        );
        let typed = [raw.memory_relay, raw.memory_refuse, raw.memory_shed];
        return Err(Fault { span: typed.iter().flatten().next().map(Spanned::span), message });
    }
    Ok(policy)
}

fn choice<T: Copy>(
    key: &str,
    raw: Option<&Spanned<String>>,
    choices: &[(&str, T)],
) -> Result<Option<T>, Fault> {
    let Some(raw) = raw else { return Ok(None) };
    if let Some((_, chosen)) = choices.iter().find(|(word, _)| word == raw.get_ref()) {
        return Ok(Some(*chosen));
    }
    let words: Vec<String> = choices.iter().map(|(word, _)| format!("{word:?}")).collect();
    Err(Fault::at(raw.span(), format!("{key}: {:?} is unknown; write {}", raw.get_ref(), words.join(" or "))))
}

fn number(
    key: &str,
    raw: Option<&Spanned<f64>>,
    range: std::ops::RangeInclusive<f64>,
) -> Result<Option<f64>, Fault> {
    let Some(raw) = raw else { return Ok(None) };
    let value = *raw.get_ref();
    if range.contains(&value) {
        return Ok(Some(value));
    }
    let message = format!("{key}: {value} is out of range; write {} to {}", range.start(), range.end());
    Err(Fault::at(raw.span(), message))
}

fn whole(key: &str, raw: Option<&Spanned<i64>>, least: u32) -> Result<Option<u32>, Fault> {
    let Some(raw) = raw else { return Ok(None) };
    match u32::try_from(*raw.get_ref()).ok().filter(|value| *value >= least) {
        Some(value) => Ok(Some(value)),
        None => Err(Fault::at(
            raw.span(),
            format!("{key}: {} is out of range; write {least} to {}", raw.get_ref(), u32::MAX),
        )),
    }
}

fn ratio(raw: &Spanned<String>) -> Result<Ratio, Fault> {
    let parsed = raw.get_ref().split_once('/').and_then(|(part, whole)| {
        Some(Ratio { part: part.trim().parse().ok()?, whole: whole.trim().parse().ok()? })
    });
    parsed.filter(|ratio| ratio.part >= 1 && ratio.part < ratio.whole).ok_or_else(|| {
        let message = format!(
            "policy.refuse_ratio: {:?} is not a part of the newcomers; write one like \"1/3\"",
            raw.get_ref()
        );
        Fault::at(raw.span(), message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Policy, String> {
        let raw: RawPolicy = toml::from_str(text).map_err(|error| error.to_string())?;
        policy(raw).map_err(|fault| fault.message)
    }

    #[test]
    fn what_is_left_out_is_the_default() {
        assert_eq!(parse("").unwrap(), Policy::default());
        let policy = parse(
            "rebalance = \"dry-run\"\nthreshold = 1.5\nmin_excess = 500\nmax_rate = 2\nlogin_rate = 1000\n\
             steer = \"refuse\"\nrefuse_ratio = \"1/3\"\nper_client_limit = 20\nmemory_guard = false",
        );
        let expected = Policy {
            rebalance: Rebalance::DryRun,
            threshold: 1.5,
            min_excess: 500,
            max_rate: Some(2.0),
            login_rate: 1000.0,
            steer: Steer::Refuse,
            refuse_ratio: Some(Ratio { part: 1, whole: 3 }),
            per_client_limit: Some(20),
            memory_guard: false,
            ..Policy::default()
        };
        assert_eq!(policy.unwrap(), expected);
        assert_eq!(Ratio { part: 1, whole: 4 }.scaled(), 1 << 30);
    }

    #[test]
    fn errors_say_what_to_do() {
        let rows = [
            (
                "rebalance = \"yes\"",
                "policy.rebalance: \"yes\" is unknown; write \"off\" or \"dry-run\" or \"on\"",
            ),
            ("threshold = 0.9", "policy.threshold: 0.9 is out of range; write 1 to 100"),
            ("min_excess = 0", "policy.min_excess: 0 is out of range; write 1 to 4294967295"),
            ("login_rate = 0.0", "policy.login_rate: 0 is out of range; write 0.1 to 100000"),
            (
                "steer = \"proxy\"",
                "policy.steer: \"proxy\" is unknown; write \"relay\" or \"refuse\" or \"off\"",
            ),
            ("refuse_ratio = \"1/3\"", "policy.refuse_ratio: needs policy.steer = \"refuse\""),
            ("steer = \"refuse\"\nrefuse_ratio = \"3/3\"", "\"3/3\" is not a part of the newcomers"),
            ("per_client_limit = -1", "policy.per_client_limit: -1 is out of range"),
            ("memory_relay = 0.99", "0.99 / 0.9 / 0.95 do not rise"),
            ("stear = \"off\"", "unknown field `stear`"),
        ];
        for (text, expected) in rows {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
