//! The count against the kernel's list of sockets, and the records of connections that are over.

use std::net::SocketAddr;

use anyhow::Result;
use balancer_common::records::{Kind, Tracked};
use log::{error, warn};

use super::{Agent, boot_s};
use crate::{
    count::{
        audit::Present,
        collect,
        sock_diag::{Socket, State as TcpState},
    },
    operator::status::Relays,
};

impl Agent {
    /// Compares the count with the kernel's list of sockets.
    pub(super) fn audit(&mut self, first: bool) -> Result<()> {
        let listed = self.api_sockets()?;
        let present: Vec<Present> = listed
            .iter()
            .map(|socket| Present { cookie: socket.cookie, client: self.is_client(socket) })
            .collect();
        let noted = self.data_path.maps.tracked()?;
        let findings = self.census.audit(&present, &noted, first);
        for socket in &findings.seed {
            let tracked =
                Tracked { since_s: boot_s(), client: u8::from(socket.client), seeded: 1, pad: [0; 2] };
            self.data_path.maps.track(socket.cookie, tracked)?;
        }
        for &cookie in &findings.forget {
            self.data_path.maps.untrack(cookie);
        }
        if findings.drift != 0 {
            self.drift += findings.drift.unsigned_abs();
            error!("the programs' count differed from the kernel's list by {}; corrected", findings.drift);
        }
        self.seeded = (findings.seeded_clients, findings.seeded_exempt);
        let adjust = self.census.adjust(&findings);
        if adjust != self.adjust || first {
            self.adjust = adjust;
            self.write_settings()?;
        }
        Ok(())
    }

    /// Established connections of the API, direct and relayed, of clients and others.
    pub(super) fn api_sockets(&mut self) -> Result<Vec<Socket>> {
        let (port, relay) = (self.config.api.port, self.config.cluster.relay_ports);
        self.sockets.dump(&[port..=port, relay.first..=relay.last], &TcpState::IN_USE)
    }

    pub(super) fn is_client(&self, socket: &Socket) -> bool {
        let address = socket.remote.ip();
        !(address.is_loopback()
            || self
                .config
                .cluster
                .controllers
                .iter()
                .any(|controller| controller.addresses.contains(&address))
            || self.config.cluster.candidates.contains(&address)
            || self.config.api.exempt.iter().any(|network| network.contains(&address)))
    }

    /// Removes the records of connections that are over.
    pub(super) fn collect(&mut self) -> Result<()> {
        let now_s = boot_s();
        let mut relays = Relays::default();
        for pair in self.data_path.maps.flows.pairs()? {
            if collect::is_done(&pair.flow, pair.back.as_ref(), pair.live, now_s) {
                self.data_path.maps.flows.remove(&pair);
            } else if pair.live && pair.flow.is(Kind::Forward) {
                relays.out += 1;
            } else if pair.live && pair.flow.is(Kind::Restore) {
                relays.into += 1;
            }
        }
        self.relays = relays;
        if self.config.policy.per_client_limit.is_some() {
            self.data_path.maps.forget_idle_clients(now_s)?;
        }
        Ok(())
    }

    /// A controller's host is dead: its clients are told, so that they come back in seconds.
    pub(super) fn reset_flows_to(&mut self, index: usize) -> Result<()> {
        let Some(peer) = self.peers.get(index) else { return Ok(()) };
        let (slot, name) = (peer.slot, peer.name.clone());
        let mut ended = 0_u32;
        for pair in self.data_path.maps.flows.pairs()? {
            if usize::from(pair.flow.controller) != slot || !pair.flow.is(Kind::Forward) {
                continue;
            }
            if pair.flow.ack != 0 {
                let dialled = SocketAddr::new(pair.key.local.into(), pair.key.local_port.host());
                let client = SocketAddr::new(pair.key.remote.into(), pair.key.remote_port.host());
                if let Err(error) = self.resets.send(dialled, client, pair.flow.ack) {
                    log::debug!("no RST to {client}: {error:#}");
                }
            }
            self.data_path.maps.flows.remove(&pair);
            ended += 1;
        }
        if ended > 0 {
            warn!(
                "the host of controller {name} does not answer: {ended} connections relayed to it are reset"
            );
        }
        Ok(())
    }
}
