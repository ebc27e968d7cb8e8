//! Carrying out the effects that the steps return.

use std::{net::SocketAddr, time::Instant};

use anyhow::Result;
use balancer_common::{records::Network, wire::Address};
use log::{debug, log, warn};

use super::{Agent, boot_ns, boot_s};
use crate::{
    balance::{self, Close, Here},
    cluster::{self, waiting::PATIENCE_S},
    count::{
        self, seeded,
        sock_diag::{Ended, Socket},
    },
    datapath::FlowPair,
    operator::repeated::warn_repeated,
};

/// Connections that are looked at for each one to close.
const LOOKED_AT: usize = 4;

impl Agent {
    pub(super) fn carry_out_cluster(&mut self, effects: Vec<cluster::Effect>) {
        for effect in effects {
            match effect {
                cluster::Effect::WriteController { slot, controller } => {
                    if let Err(error) = self.programs.data_path.maps.set_controller(slot, &controller) {
                        warn_repeated!(
                            "write controllers",
                            "failed to write the record of the controller in slot {slot}: {error:#}"
                        );
                    }
                }
                cluster::Effect::Probe(probe) => self.begin_probe(probe),
                cluster::Effect::Knock { name, from, to } => self.begin_knock(name, from, to),
                cluster::Effect::LookForWaiting { slot, name } => {
                    if let Err(error) = self.reset_waiting(slot, &name) {
                        warn_repeated!(
                            "waiting",
                            "failed to look for connections that wait for {name}: {error:#}"
                        );
                    }
                }
                cluster::Effect::Unbar((network, slot)) => {
                    if let Err(error) = self.programs.data_path.maps.unbar(&network, slot) {
                        warn_repeated!("networks", "{error:#}");
                    }
                }
                cluster::Effect::Say(level, text) => log!(target: "balancer::cluster", level, "{text}"),
            }
        }
    }

    pub(super) fn carry_out_count(&mut self, effects: Vec<count::Effect>) -> Result<()> {
        for effect in effects {
            match effect {
                count::Effect::Track(cookie, tracked) => {
                    if let Err(error) = self.programs.data_path.maps.track(cookie, tracked) {
                        warn_repeated!("sockets", "{error:#}: it is not counted");
                    }
                }
                count::Effect::Untrack(cookie) => drop(self.programs.data_path.maps.untrack(cookie)),
                count::Effect::Reclass(cookie, note) => {
                    let done = self.programs.data_path.maps.retrack(cookie, note).unwrap_or_else(|error| {
                        warn_repeated!("sockets", "{error:#}: it counts as before");
                        false
                    });
                    if !done {
                        self.count.not_reclassed(&note);
                    }
                }
                count::Effect::WriteSettings => self.write_settings()?,
                count::Effect::Say(level, text) => log!(target: "balancer::count", level, "{text}"),
            }
        }
        Ok(())
    }

    /// Takes the seeded sockets that have ended off the count.
    pub(super) fn follow_ended(&mut self) {
        if !self.count.has_seeded() {
            self.sockets.ended = None;
            return;
        }
        let Some(ended) = &mut self.sockets.ended else {
            self.sockets.ended =
                Ended::subscribe().inspect_err(|error| warn_repeated!("ended", "{error:#}")).ok();
            return;
        };
        let gone = ended.take();
        let mut any = gone.more;
        for cookie in gone.cookies {
            let maps = &mut self.programs.data_path.maps;
            let note = maps.note_of(cookie).filter(|note| note.seeded != 0);
            if let Some(note) = note
                && maps.untrack(cookie)
            {
                self.count.seeded_ended(&note);
                any = true;
            }
        }
        if gone.more {
            self.schedule.audit = self.schedule.audit.min(Instant::now() + seeded::SOON);
        }
        if any && let Err(error) = self.write_settings() {
            warn_repeated!("settings", "failed to write the settings: {error:#}");
        }
    }

    pub(super) fn carry_out_balance(
        &mut self,
        now: Instant,
        effects: impl IntoIterator<Item = balance::Effect>,
    ) {
        for effect in effects {
            match effect {
                balance::Effect::Close(close) => self.close(now, &close),
                balance::Effect::Look => self.look_for_returns(now),
                balance::Effect::Say(level, text) => log!(target: "balancer::balance", level, "{text}"),
            }
        }
    }

    /// Closes clients' connections at random; at rest first, and of a gentle closing these alone.
    fn close(&mut self, now: Instant, close: &Close) {
        let (mut sockets, tracked) = match self.tracked_sockets() {
            Ok(both) => both,
            Err(error) => {
                warn_repeated!("close", "failed to list connections to close: {error:#}");
                return;
            }
        };
        // The last audit may not have seen the latest configuration.
        sockets.retain(|socket| self.is_client(socket.remote.ip()));
        if close.gentle {
            let barred = self.cluster.barred();
            sockets.retain(|socket| !barred.contains(&Network::of(&Address::from(socket.remote.ip()))));
        }
        // More than are to be closed, as some carry a transfer.
        let wanted = close.count * LOOKED_AT + LOOKED_AT;
        let calm = &mut self.count.calm;
        let (mut candidates, fresh): (Vec<&Socket>, Vec<&Socket>) =
            sockets.iter().partition(|socket| calm.awaits(socket.cookie));
        candidates.extend(count::choose(fresh, &tracked, boot_s(), close.youngest_s, wanted));
        let mut looked = Vec::new();
        for socket in candidates {
            match self.sockets.diag.activity(socket) {
                Ok(Some(activity)) => looked.push((socket, activity)),
                Ok(None) => {}
                Err(error) => {
                    warn_repeated!("close", "{error:#}");
                    return;
                }
            }
        }
        let (calm, busy) = calm.split(now, &looked);
        let busy = if close.gentle { Vec::new() } else { busy };
        let mut clients = Vec::new();
        for socket in calm.into_iter().chain(busy).take(close.count) {
            match self.sockets.diag.destroy(socket) {
                Ok(was_there) => {
                    clients.extend(was_there.then(|| socket.remote.ip()));
                    // A client that is refused as it comes back may be gone for good: python-libjuju is.
                    let noted = self.programs.data_path.maps.note_refused(socket.remote.ip(), boot_ns());
                    if let Err(error) = noted {
                        warn_repeated!("refused", "{error:#}");
                    }
                }
                Err(error) => {
                    warn_repeated!("destroy", "failed to close a connection: {error:#}");
                    break;
                }
            }
        }
        self.balance.note_closed(now, boot_s(), close, &clients);
    }

    fn look_for_returns(&mut self, now: Instant) {
        let (sockets, tracked) = match self.tracked_sockets() {
            Ok(both) => both,
            Err(error) => {
                warn_repeated!("close", "failed to list connections: {error:#}");
                return;
            }
        };
        let here = |socket: &Socket| {
            let tracked = tracked.get(&socket.cookie).filter(|tracked| tracked.client != 0)?;
            Some(Here { cookie: socket.cookie, client: socket.remote.ip(), since_s: tracked.since_s })
        };
        let here: Vec<Here> = sockets.iter().filter_map(here).collect();
        let effect = self.balance.look(now, &here);
        self.carry_out_balance(now, effect);
    }

    /// The controller in `slot` is silent: resets those of its relays that have left their client without an answer for too
    /// long.
    fn reset_waiting(&mut self, slot: usize, name: &str) -> Result<()> {
        let pairs =
            self.programs.data_path.maps.flows.pairs(|flow, _| usize::from(flow.controller) == slot)?;
        let waiting = self.cluster.waiting(boot_s(), slot, pairs);
        self.reset(&waiting);
        if !waiting.is_empty() {
            warn!(
                "controller {name} is silent: {} connections relayed to it, whose clients have had no answer for {} s, \
                 are reset",
                waiting.len(),
                PATIENCE_S
            );
        }
        Ok(())
    }

    /// Ends relays that have opened and carry nothing. Their clients' networks are not relayed there for a while.
    pub(super) fn give_up(&mut self, stuck: &[FlowPair]) {
        self.reset(stuck);
        for pair in stuck {
            let (network, slot) = (Network::of(&pair.key.remote), usize::from(pair.flow.controller));
            if let Err(error) = self.programs.data_path.maps.bar(&network, slot) {
                warn_repeated!("networks", "{error:#}");
            }
        }
        if !stuck.is_empty() {
            warn!(
                "{} relays opened and carried nothing; they are reset, and their clients are served where they dial; does \
                 a filter drop packets as invalid, or do links carry smaller packets than their MTU says?",
                stuck.len()
            );
        }
    }

    /// Resets relays at this entry, so that their clients come back.
    fn reset(&mut self, pairs: &[FlowPair]) {
        for pair in pairs {
            // First: `egress` drops a RST of a relay that goes on.
            self.programs.data_path.maps.flows.remove(pair);
            let dialled = SocketAddr::new(pair.key.local.into(), pair.key.local_port.host());
            let client = SocketAddr::new(pair.key.remote.into(), pair.key.remote_port.host());
            if let Err(error) = self.sockets.resets.send(dialled, client, pair.flow.ack) {
                debug!("no RST to {client}: {error:#}");
            }
        }
    }
}
