//! The settings, and this controller's own record, as the programs read them.

use std::{collections::HashMap, net::IpAddr, time::Instant};

use anyhow::Result;
use balancer_common::{
    records::{Controller, Settings, State, Steer as Steering},
    wire::Port,
};
use bytemuck::Zeroable;

use super::{Agent, boot_ns, boot_s, pace::TICK};
use crate::{
    balance::Orders,
    cluster::views::{fixed_rate, fixed_weight},
    config::{Config, Steer},
    count::{self, sock_diag::Socket},
};

/// New flows per second and CPU above which SYNs are served locally: ten times the logins that
/// a controller can handle, a tenth of the SYNs that the programs can decide.
const FLOOD_PER_CPU: u32 = 20_000;
/// Fewest handshakes in progress that are given places at once.
const HANDSHAKES: u32 = 256;

#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    pub(super) config: &'a Config,
    pub(super) limit: u32,
    pub(super) orders: Orders,
    pub(super) own_slot: usize,
    /// The highest slot that a controller has, this one included.
    pub(super) last_slot: usize,
    pub(super) adjust: i64,
    pub(super) tag_key: [u64; 2],
    pub(super) netns: u64,
    pub(super) grace_until_s: u32,
    pub(super) upgraded: bool,
    pub(super) epoch: u32,
    pub(super) only_way: u32,
    /// The relay ports that the other controllers have announced to this one.
    pub(super) relay_out: &'a [Port],
}

pub(super) fn settings(inputs: &Inputs) -> Settings {
    let Inputs { config, limit, orders, .. } = *inputs;
    let (policy, relay_ports) = (&config.policy, config.cluster.relay_ports);
    let announced = inputs.relay_out.iter().map(|port| port.host()).filter(|&port| port != 0);
    let (peer_first, peer_last) = announced
        .fold((relay_ports.first, relay_ports.last), |range, port| (range.0.min(port), range.1.max(port)));
    let mut settings = Settings {
        tag_key: inputs.tag_key,
        netns: inputs.netns,
        adjust: inputs.adjust,
        grace_until_s: inputs.grace_until_s,
        upgraded: inputs.upgraded.into(),
        epoch: inputs.epoch,
        only_way: inputs.only_way,
        limit,
        handshake_cap: (limit / 4).max(HANDSHAKES),
        flood_per_cpu: FLOOD_PER_CPU,
        report_ms: TICK.as_millis() as u32,
        steer: match policy.steer {
            Steer::Relay => Steering::Relay,
            Steer::Refuse => Steering::Refuse,
            Steer::Off => Steering::Off,
        } as u8,
        refuse_share: policy.refuse_ratio.map_or(0, |ratio| ratio.scaled().max(1)),
        per_client_limit: policy.per_client_limit.unwrap_or(0),
        operator_limit: orders.limit,
        drain_from_s: orders.drain_from_s,
        drain_until_s: orders.drain_until_s,
        api_port: Port::new(config.api.port),
        relay_first: Port::new(relay_ports.first),
        relay_last: Port::new(relay_ports.last),
        peer_first: Port::new(peer_first),
        peer_last: Port::new(peer_last),
        own: inputs.own_slot as u8,
        slots: inputs.last_slot as u8 + 1,
        active: 1,
        ..Settings::zeroed()
    };
    orders.bypass.apply(&mut settings);
    settings
}

impl Agent {
    pub(super) fn write_settings(&mut self) -> Result<()> {
        let before = self.programs.data_path.maps.settings()?;
        self.follow_bypass(&before);
        let maps = &self.programs.data_path.maps;
        let relay_out = self.cluster.peers().iter().map(|peer| Ok(maps.controller(peer.slot)?.relay_out));
        let relay_out = relay_out.collect::<Result<Vec<_>>>()?;
        let own_slot = self.cluster.own_slot();
        let settings = settings(&Inputs {
            config: &self.config.running,
            limit: self.balance.admit(),
            orders: self.balance.orders(),
            own_slot,
            last_slot: self.cluster.peers().iter().map(|peer| peer.slot).fold(own_slot, usize::max),
            adjust: self.count.adjust(),
            tag_key: self.cluster.tag_key(),
            netns: self.programs.netns,
            // Once it is over, packets need no clock for it.
            grace_until_s: Some(self.programs.grace_until_s)
                .filter(|&until_s| boot_s() < until_s)
                .unwrap_or(0),
            upgraded: self.programs.upgraded,
            epoch: self.programs.network.epoch,
            only_way: self.programs.network.only_way,
            relay_out: &relay_out,
        });
        if before != settings {
            self.programs.data_path.maps.set_settings(&settings)?;
        }
        let counts = settings.per_client_limit != 0;
        if counts != (before.per_client_limit != 0) {
            self.count_clients(counts)?;
        }
        Ok(())
    }

    pub(super) fn write_own(&mut self, now: Instant) -> Result<()> {
        let weight = self.balance.weight(now, self.config.running.cluster.this().weight);
        let state: State = self.balance.state(self.is_ready());
        let (slot, arrivals) = (self.cluster.own_slot(), self.arrivals_here());
        let maps = &mut self.programs.data_path.maps;
        let own = Controller {
            state: state as u8,
            limit: self.balance.admit(),
            weight: fixed_weight(weight),
            arrivals_milli: fixed_rate(arrivals),
            reported_ns: boot_ns(),
            ..maps.controller(slot)?
        };
        maps.set_controller(slot, &own)
    }

    /// The programs begin, or end, to count by client address.
    fn count_clients(&mut self, counts: bool) -> Result<()> {
        let sockets: Vec<Socket> = if counts { self.api_sockets()? } else { Vec::new() };
        let clients: HashMap<IpAddr, u32> = count::by_client(&sockets, |address| self.is_client(address));
        self.programs.data_path.maps.set_clients(&clients)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Host;

    fn made(policy: &str, admit: u32, relay_out: &[u16]) -> Settings {
        let text = format!(
            "[cluster]\nname = \"a\"\nkey_file = \"/k\"\n\
             [[cluster.controllers]]\nname = \"a\"\naddresses = [\"10.0.0.1\"]\n[policy]\n{policy}"
        );
        let host = Host { cgroup2: Some("/cgroup".into()), ..Host::default() };
        let config = Config::parse(Path::new("balancer.toml"), &text, &host).unwrap();
        let relay_out: Vec<Port> = relay_out.iter().map(|&port| Port::new(port)).collect();
        settings(&Inputs {
            config: &config,
            limit: admit,
            orders: Orders { limit: 9, drain_from_s: 1, drain_until_s: 2, ..Orders::default() },
            own_slot: 3,
            last_slot: 5,
            adjust: -4,
            tag_key: [5, 6],
            netns: 7,
            grace_until_s: 8,
            upgraded: true,
            epoch: 10,
            only_way: 11,
            relay_out: &relay_out,
        })
    }

    #[test]
    fn settings_hold_all_that_the_programs_need() {
        let expected = Settings {
            tag_key: [5, 6],
            netns: 7,
            adjust: -4,
            limit: 4_000,
            handshake_cap: 1_000,
            flood_per_cpu: FLOOD_PER_CPU,
            report_ms: 100,
            operator_limit: 9,
            drain_from_s: 1,
            drain_until_s: 2,
            api_port: Port::new(17_070),
            relay_first: Port::new(17_080),
            relay_last: Port::new(17_095),
            peer_first: Port::new(17_080),
            peer_last: Port::new(17_095),
            own: 3,
            slots: 6,
            active: 1,
            steer: Steering::Relay as u8,
            upgraded: 1,
            grace_until_s: 8,
            epoch: 10,
            only_way: 11,
            ..Settings::zeroed()
        };
        assert_eq!(made("", 4_000, &[0, 17_081]), expected);
    }

    #[test]
    fn settings_follow_policy_limits_and_announced_ports() {
        assert_eq!(made("", 400, &[]).handshake_cap, HANDSHAKES, "a small limit");
        let range = |ports| {
            let made = made("", 400, ports);
            (made.peer_first.host(), made.peer_last.host())
        };
        assert_eq!(range(&[17_070, 18_000]), (17_070, 18_000), "the others' relay ports are elsewhere");
        assert_eq!(range(&[0, 0]), (17_080, 17_095), "none announced");
        let rows = [
            ("steer = \"refuse\"\nrefuse_ratio = \"1/2\"", Steering::Refuse, 0x8000_0000, 0),
            ("steer = \"off\"", Steering::Off, 0, 0),
            ("per_client_limit = 12", Steering::Relay, 0, 12),
        ];
        for (policy, steer, refuse_share, per_client_limit) in rows {
            let made = made(policy, 400, &[]);
            assert_eq!(
                (made.steer, made.refuse_share, made.per_client_limit),
                (steer as u8, refuse_share, per_client_limit),
                "{policy}"
            );
        }
    }
}
