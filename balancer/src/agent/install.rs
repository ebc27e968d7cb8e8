//! Filling the maps and attaching the programs, packets last: until then nothing refuses or relays a client.

use anyhow::Result;
use balancer_common::records::{HANDSHAKE_WINDOW_S, Settings};
use log::{info, warn};

use super::{Agent, boot_s};
use crate::{balance::Orders, count::sock_diag::Listener, datapath::PreviousDataPath};

/// Attaching everything takes no longer than this, seconds.
const ATTACH_S: u32 = 30;
/// For so many seconds after attaching, handshakes exist that the programs did not see begin.
const GRACE_S: u32 = HANDSHAKE_WINDOW_S as u32 + 1;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Beginning {
    /// The programs have counted nothing before: every connection that is there is seeded.
    first: bool,
    orders: Orders,
    adjust: i64,
    /// The programs take the place of another version's.
    upgraded: bool,
    grace_until_s: u32,
}

impl Beginning {
    /// After the data path `found` with its `settings`. The count is made anew after another version's; the
    /// operator's orders go on after either.
    fn of(found: PreviousDataPath, settings: &Settings, boot_s: u32) -> Self {
        let first = Self {
            first: true,
            orders: Orders::default(),
            adjust: 0,
            upgraded: false,
            grace_until_s: boot_s + ATTACH_S,
        };
        match found {
            PreviousDataPath::Nothing => first,
            PreviousDataPath::Older => Self { orders: Orders::of(settings), upgraded: true, ..first },
            PreviousDataPath::Same => Self {
                first: false,
                orders: Orders::of(settings),
                adjust: settings.adjust,
                upgraded: settings.upgraded != 0,
                grace_until_s: settings.grace_until_s,
            },
        }
    }
}

/// The consequence where there is no mute listener.
pub(super) const WITHOUT_MUTE: &str =
    "if somebody removes the programs, some relayed connections are reset before the agent has put them back";

impl Agent {
    pub(super) fn install(&mut self, listeners: &[Listener]) -> Result<()> {
        // Checked before anything is attached.
        let api = self.programs.api_interfaces(&self.config.running)?;
        let settings = self.programs.data_path.maps.settings()?;
        let beginning = Beginning::of(self.programs.data_path.found, &settings, boot_s());
        let Beginning { first, orders, adjust, upgraded, grace_until_s } = beginning;
        self.balance.resume_orders(orders);
        let maps = &self.programs.data_path.maps;
        self.count.resume(adjust, &maps.tracked()?, &maps.budget()?);
        (self.programs.upgraded, self.programs.grace_until_s) = (upgraded, grace_until_s);
        self.write_addresses()?;
        self.write_devices(&api)?;
        self.programs.network.epoch = settings.epoch;
        self.look_at_network();
        self.write_views();
        self.programs.data_path.attach_sockets(&self.config.running.paths.cgroup)?;
        // A listener may be missing from the map: one that began to listen in this very moment, or one that the map
        // does not take, as MPTCP's. The programs hand relayed connections to it one by one.
        for listener in listeners {
            if let Err(error) = self.programs.data_path.maps.set_listener(listener) {
                info!("{error:#}");
            }
        }
        if let Some(mute) = &self.sockets.mute
            && let Err(error) = self.programs.data_path.maps.set_mute(mute)
        {
            warn!("{error:#}; {WITHOUT_MUTE}");
        }
        self.audit(first)?;
        self.programs.data_path.continue_upgrade()?;
        self.programs.attach(&api, self.config.running.api.hook)?;
        self.programs.data_path.detach_others(&self.programs.devices);
        self.write_devices(&api)?;
        self.look_for_obstacles();
        self.programs.data_path.finish_upgrade()?;
        if first {
            self.programs.grace_until_s = boot_s() + GRACE_S;
            self.write_settings()?;
        }
        self.say_installed(first);
        Ok(())
    }

    fn say_installed(&self, first: bool) {
        let config = &self.config.running;
        let hooks = &self.programs.data_path.hooks;
        let hooks: Vec<_> =
            hooks.iter().map(|(name, attached)| format!("{name} ({})", attached.name())).collect();
        info!(
            "controller {} of {}, API port {} on {}, limit {}, {} client connections{}",
            config.cluster.name,
            config.cluster.controllers.len(),
            config.api.port,
            hooks.join(", "),
            self.balance.admit(),
            self.load(),
            if first { " were there before" } else { " go on" },
        );
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;
    use crate::balance::Bypass;

    #[test]
    fn an_agent_goes_on_from_the_data_path_that_it_finds() {
        let settings = Settings {
            adjust: 7,
            operator_limit: 500,
            drain_from_s: 90,
            drain_until_s: 190,
            bypass_until_s: 300,
            bypass_all: 1,
            upgraded: 1,
            grace_until_s: 95,
            ..Settings::zeroed()
        };
        let orders = Orders {
            limit: 500,
            drain_from_s: 90,
            drain_until_s: 190,
            bypass: Bypass { until_s: 300, all: true },
        };
        let none = Orders::default();
        let rows = [
            (PreviousDataPath::Nothing, (true, none, 0, false, 130)),
            (PreviousDataPath::Older, (true, orders, 0, true, 130)),
            (PreviousDataPath::Same, (false, orders, 7, true, 95)),
        ];
        for (found, (first, orders, adjust, upgraded, grace_until_s)) in rows {
            let expected = Beginning { first, orders, adjust, upgraded, grace_until_s };
            assert_eq!(Beginning::of(found, &settings, 100), expected, "{found:?}");
        }
    }
}
