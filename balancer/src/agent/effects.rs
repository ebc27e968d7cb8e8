//! Carrying out the effects that the steps return.

use std::{net::SocketAddr, time::Duration, time::Instant};

use anyhow::Result;
use balancer_common::records::Kind;
use log::{debug, log, warn};

use super::{Agent, boot_ns, boot_s};
use crate::{
    balance, cluster, count,
    host::rst::{self, ProbeResult},
};

/// How long a silent controller's host has to answer a probe.
const PROBE: Duration = Duration::from_millis(400);

impl Agent {
    pub(super) fn carry_out_cluster(&mut self, now: Instant, effects: Vec<cluster::Effect>) {
        for effect in effects {
            match effect {
                cluster::Effect::WriteController { slot, controller } => {
                    if let Err(error) = self.programs.data_path.maps.set_controller(slot, &controller) {
                        warn!("failed to write the record of the controller in slot {slot}: {error:#}");
                    }
                }
                cluster::Effect::Probe { name, addresses } => {
                    let port = self.config.running.api.port;
                    let addresses = addresses.iter().map(|&address| SocketAddr::new(address, port));
                    tokio::spawn(probe(name, addresses.collect(), self.inbox.probe_results.clone()));
                }
                cluster::Effect::ResetFlows { slot, name } => {
                    if let Err(error) = self.reset_flows(slot, &name) {
                        warn!("failed to reset the connections relayed to {name}: {error:#}");
                    }
                }
                cluster::Effect::MembershipChanged => self.balance.membership_changed(now),
                cluster::Effect::Say(level, text) => log!(target: "balancer::cluster", level, "{text}"),
            }
        }
    }

    pub(super) fn carry_out_count(&mut self, effects: Vec<count::Effect>) -> Result<()> {
        for effect in effects {
            match effect {
                count::Effect::Track(cookie, tracked) => {
                    self.programs.data_path.maps.track(cookie, tracked)?;
                }
                count::Effect::Untrack(cookie) => drop(self.programs.data_path.maps.untrack(cookie)),
                count::Effect::WriteSettings => self.write_settings()?,
                count::Effect::Say(level, text) => log!(target: "balancer::count", level, "{text}"),
            }
        }
        Ok(())
    }

    pub(super) fn carry_out_balance(
        &mut self,
        now: Instant,
        effects: impl IntoIterator<Item = balance::Effect>,
    ) {
        for effect in effects {
            match effect {
                balance::Effect::Close { count, youngest_s } => self.close(now, count, youngest_s),
                balance::Effect::Say(level, text) => log!(target: "balancer::balance", level, "{text}"),
            }
        }
    }

    /// Closes up to `count` clients' connections at random, none younger than `youngest_s`.
    fn close(&mut self, now: Instant, count: usize, youngest_s: u32) {
        let (sockets, tracked) = match self.tracked_sockets() {
            Ok(both) => both,
            Err(error) => return warn!("failed to list connections to close: {error:#}"),
        };
        let mut closed = 0;
        for socket in count::choose(&sockets, &tracked, boot_s(), youngest_s, count) {
            match self.sockets.destroy(socket) {
                Ok(was_there) => {
                    closed += u64::from(was_there);
                    // A client that is refused as it comes back may be gone for good: python-libjuju is.
                    let noted = self.programs.data_path.maps.note_refused(socket.remote.ip(), boot_ns());
                    if let Err(error) = noted {
                        warn!("{error:#}");
                    }
                }
                Err(error) => {
                    warn!("failed to close a connection: {error:#}");
                    break;
                }
            }
        }
        self.balance.note_closed(now, closed);
    }

    /// Resets the connections relayed to the controller in `slot`; its host is dead.
    fn reset_flows(&mut self, slot: usize, name: &str) -> Result<()> {
        let mut ended = 0_u32;
        let maps = &mut self.programs.data_path.maps;
        for pair in maps.flows.pairs()? {
            if usize::from(pair.flow.controller) != slot || !pair.flow.is(Kind::Forward) {
                continue;
            }
            // Without an acknowledgement number no RST would be believed; such a client repeats its SYN.
            if pair.flow.ack != 0 {
                let dialled = SocketAddr::new(pair.key.local.into(), pair.key.local_port.host());
                let client = SocketAddr::new(pair.key.remote.into(), pair.key.remote_port.host());
                if let Err(error) = self.resets.send(dialled, client, pair.flow.ack) {
                    debug!("no RST to {client}: {error:#}");
                }
            }
            maps.flows.remove(&pair);
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

/// Probes a host at one address after another until one answers.
async fn probe(
    name: String,
    addresses: Vec<SocketAddr>,
    results: tokio::sync::mpsc::Sender<(String, ProbeResult)>,
) {
    let mut result = ProbeResult::Silent;
    for address in addresses {
        result = rst::probe(address, PROBE).await;
        if result == ProbeResult::Alive {
            break;
        }
    }
    // The agent is ending where nobody listens.
    let _: Result<(), _> = results.send((name, result)).await;
}
