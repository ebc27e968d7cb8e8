//! `balancer bypass`: the operator's kill switch. Each new client is served where it dials, and none is closed; relayed
//! connections go on, and so do the limits unless the operator lifts them.

use std::time::Duration;

use balancer_common::records::{Settings, Steer};

use super::{Balance, Inputs};

/// A bypass that is in force, or none. It lies in the settings, and so outlives the agent.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Bypass {
    /// Boot clock, seconds: when it ends by itself; `FOR_GOOD`: when the operator ends it; 0: there is none.
    pub until_s: u32,
    /// The limits are lifted too.
    pub all: bool,
}

impl Bypass {
    const FOR_GOOD: u32 = u32::MAX;

    /// One that begins at `boot_s`.
    pub fn new(boot_s: u32, lasts: Option<Duration>, all: bool) -> Self {
        let end = |lasts: Duration| boot_s.saturating_add(u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX));
        Self { until_s: lasts.map_or(Self::FOR_GOOD, end).max(1), all }
    }

    pub fn of(settings: &Settings) -> Self {
        Self { until_s: settings.bypass_until_s, all: settings.bypass_all != 0 }
    }

    pub fn is_on(self) -> bool {
        self.until_s != 0
    }

    /// Seconds until it ends by itself.
    pub fn left_s(self, boot_s: u32) -> Option<u32> {
        (self.until_s != Self::FOR_GOOD).then(|| self.until_s.saturating_sub(boot_s))
    }

    /// The settings by which the programs carry it out.
    pub fn apply(self, settings: &mut Settings) {
        (settings.bypass_until_s, settings.bypass_all) = (self.until_s, self.all.into());
        if self.is_on() {
            (settings.steer, settings.refuse_share) = (Steer::Off as u8, 0);
            if self.all {
                (settings.limit, settings.per_client_limit) = (u32::MAX, 0);
            }
        }
    }
}

impl Balance {
    pub fn bypass(&self) -> Bypass {
        self.orders.bypass
    }

    /// `bypass`. It ends a drain, which the bypass would keep from its end.
    pub fn begin_bypass(&mut self, lasts: Option<Duration>, all: bool, inputs: &Inputs) -> String {
        let drained = self.orders.drain_until_s != 0;
        self.end_drain();
        self.orders.bypass = Bypass::new(inputs.boot_s, lasts, all);
        let limits = if all { "no limit holds" } else { "the limits hold (`--all` lifts them)" };
        let drain = if drained { "; the drain is over" } else { "" };
        let end =
            lasts.map_or_else(String::new, |lasts| format!(" by itself in {} s, or", lasts.as_secs().max(1)));
        format!(
            "bypassed: each new client is served where it dials, and none is closed; relayed connections go on;\n\
             {limits}{drain};\n\
             it ends{end} by `balancer on`"
        )
    }

    /// `on`. `None`: there is no bypass.
    pub fn end_bypass(&mut self) -> Option<&'static str> {
        std::mem::take(&mut self.orders.bypass).is_on().then_some(
            "the balancer is at work again: new clients are spread as soon as a relay of the agent's own has worked",
        )
    }

    /// Takes over a bypass from the settings: the command line writes it there while the agent hangs. Ends a bypass when its
    /// time is over, and returns whether it did.
    pub fn follow_bypass(&mut self, found: Bypass, boot_s: u32) -> bool {
        if found != self.written {
            self.orders.bypass = found;
        }
        let ends = self.orders.bypass.is_on() && self.orders.bypass.left_s(boot_s) == Some(0);
        if ends {
            self.orders.bypass = Bypass::default();
        }
        self.written = self.orders.bypass;
        ends
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytemuck::Zeroable as _;

    use super::*;
    use crate::balance::{Limit, Orders};

    const HOUR: Option<Duration> = Some(Duration::from_hours(1));

    #[test]
    fn the_programs_serve_clients_here_and_lift_limits_only_if_asked() {
        let configured = Settings {
            limit: 400,
            per_client_limit: 5,
            refuse_share: 9,
            steer: Steer::Refuse as u8,
            ..Settings::zeroed()
        };
        let (off, refuse) = (Steer::Off as u8, Steer::Refuse as u8);
        // The bypass; how clients are steered, share refused, limit, limit of an address.
        let rows = [
            (Bypass::default(), (refuse, 9, 400, 5)),
            (Bypass::new(100, HOUR, false), (off, 0, 400, 5)),
            (Bypass::new(100, None, true), (off, 0, u32::MAX, 0)),
        ];
        for (bypass, expected) in rows {
            let mut settings = configured;
            bypass.apply(&mut settings);
            let made = (settings.steer, settings.refuse_share, settings.limit, settings.per_client_limit);
            assert_eq!(made, expected, "{bypass:?}");
            assert_eq!(Bypass::of(&settings), bypass, "it is read back");
        }
    }

    #[test]
    fn a_bypass_ends_by_itself_or_never() {
        // The end asked for, then seconds later: time left, and whether it has ended by then.
        let rows = [
            (HOUR, 0, Some(3_600), false),
            (HOUR, 3_599, Some(1), false),
            (HOUR, 3_600, Some(0), true),
            (None, 1 << 31, None, false),
            (Some(Duration::from_secs(u64::MAX)), 1 << 31, None, false),
        ];
        for (lasts, later_s, left_s, ended) in rows {
            let bypass = Bypass::new(100, lasts, false);
            assert_eq!(bypass.left_s(100 + later_s), left_s, "{lasts:?}");
            let mut balance = Balance::new(Instant::now(), Limit { connections: 10, is_set: true });
            balance.resume_orders(Orders { bypass, ..Orders::default() });
            assert_eq!(balance.follow_bypass(bypass, 100 + later_s), ended, "{lasts:?}");
            assert_eq!(balance.bypass().is_on(), !ended);
        }
    }

    #[test]
    fn an_order_that_went_past_the_agent_is_taken_in_and_one_of_its_own_is_kept() {
        let mut balance = Balance::new(Instant::now(), Limit { connections: 10, is_set: true });
        let (none, past) = (Bypass::default(), Bypass::new(100, HOUR, true));
        assert!(!balance.follow_bypass(none, 100));
        // The settings still hold the one before.
        balance.orders.bypass = Bypass::new(100, None, false);
        balance.follow_bypass(none, 100);
        assert_eq!(balance.bypass(), Bypass::new(100, None, false));
        balance.follow_bypass(past, 100);
        assert_eq!(balance.bypass(), past);
        assert!(balance.end_bypass().is_some() && balance.end_bypass().is_none());
        balance.follow_bypass(past, 100);
        assert_eq!(balance.bypass(), none, "`on` holds");
    }
}
