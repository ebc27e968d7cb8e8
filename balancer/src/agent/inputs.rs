//! Reading the inputs of the steps, and publishing this controller's report.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use balancer_common::{
    policy::shed::ControllerLoad,
    records::{Budget, State, Tracked},
    verdict::Event,
};

use super::{Agent, boot_ns, boot_s, bounds::Table};
use crate::{
    balance,
    cluster::peers::{MAX_HOST, MAX_REPORTED, Report},
    cluster::{self, Record, membership, paths, waiting},
    config::{Steer, unreachable_kind},
    count::{self, audit::Present, clients::Counts, sock_diag::Socket, sock_diag::State as TcpState},
    operator::{repeated::warn_repeated, status::Relays},
};

impl Agent {
    /// Brings the records of all controllers, and the settings, up to date.
    pub(super) fn write_views(&mut self) {
        let now = Instant::now();
        let inputs = self.cluster_inputs();
        let effects = self.cluster.step(now, &inputs);
        self.carry_out_cluster(effects);
        if let Err(error) = self.write_own(now).and_then(|()| self.write_settings()) {
            warn_repeated!("settings", "failed to write the settings: {error:#}");
        }
    }

    fn cluster_inputs(&self) -> cluster::Inputs {
        let views = self.gossip.views().into_iter().map(|view| (view.name.clone(), view)).collect();
        let maps = &self.programs.data_path.maps;
        let record = |slot| -> Result<Record> {
            Ok(Record { controller: maps.controller(slot)?, traffic: maps.traffic(slot)? })
        };
        let mut records = BTreeMap::new();
        for slot in self.cluster.peers().iter().map(|peer| peer.slot) {
            match record(slot) {
                Ok(record) => drop(records.insert(slot, record)),
                Err(error) => warn_repeated!(
                    "read controllers",
                    "failed to read the record of the controller in slot {slot}: {error:#}"
                ),
            }
        }
        cluster::Inputs { boot_ns: boot_ns(), views, records }
    }

    /// Audits the count against the kernel's list of sockets. `first`: nothing was counted before.
    pub(super) fn audit(&mut self, first: bool) -> Result<()> {
        let counted = self.counted_clients()?;
        let listed = self.api_sockets()?;
        let present =
            |socket: &Socket| Present { cookie: socket.cookie, client: self.is_client(socket.remote.ip()) };
        let present: Vec<Present> = listed.iter().map(present).collect();
        let clients = listed.iter().zip(&present).filter(|(_, present)| present.client);
        let clients: Vec<IpAddr> = clients.map(|(socket, _)| socket.remote.ip()).collect();
        if let Some(before) = counted {
            let after = self.programs.data_path.maps.clients()?;
            let addresses: HashSet<IpAddr> = clients.iter().copied().collect();
            let real = count::by_client(&listed, |address| addresses.contains(&address));
            for (address, count) in self.count.audit_clients(&real, &before, &after) {
                self.programs.data_path.maps.set_client(address, count);
            }
        }
        self.cluster.note_families(paths::used(clients.into_iter()));
        let noted = self.programs.data_path.maps.tracked()?;
        let effects = self.count.audit(boot_s(), &present, &noted, first);
        self.carry_out_count(effects)
    }

    /// The programs' counts by client address, where there is a limit for each.
    fn counted_clients(&self) -> Result<Option<Counts>> {
        let limit = self.config.running.policy.per_client_limit;
        limit.map(|_| self.programs.data_path.maps.clients()).transpose()
    }

    /// Removes the records of connections that are over, and counts the relays. Returns how many were over.
    pub(super) fn collect(&mut self) -> Result<usize> {
        let now_s = boot_s();
        let now = Instant::now();
        let mut relays = Relays::default();
        let pairs = self.programs.data_path.maps.flows.pairs(|flow, live| {
            relays += Relays::of(flow, live);
            count::collect::may_be_over(flow, live, now_s) || waiting::may_be_stuck(flow, live, now_s)
        })?;
        let stuck = self.cluster.stuck(now, now_s, &pairs);
        self.give_up(&stuck);
        let maps = &mut self.programs.data_path.maps;
        let over = self.count.collect(now_s, relays, pairs);
        let ended = over.len();
        for pair in over {
            // Since the listing its client may have connected anew from the same port.
            if let Some(pair) = maps.flows.again(&pair)
                && count::collect::is_over(&pair, now_s)
            {
                maps.flows.remove(&pair);
            }
        }
        if self.config.running.policy.per_client_limit.is_some() {
            let [count, room] = maps.forget_idle_clients(now_s)?;
            // The last record was free for a moment, at best.
            self.programs.bounds.note(Table::Clients, count + 1, room, |_| {
                format!(
                    "more than {room} addresses have connections here, which is all that per_client_limit counts: the \
                     others have the overall limit alone"
                )
            });
        } else {
            self.programs.bounds.note(Table::Clients, 0, 0, |_| String::new());
        }
        let untracked = maps.counter(Event::Untracked.index())? as usize;
        self.programs.bounds.note(Table::Sockets, untracked, 0, |above| {
            format!(
                "{above} connections so far found no room in the table of sockets; each counts from the next audit that \
                 finds room for it"
            )
        });
        if self.cluster.wants_networks() {
            let effects = self.cluster.note_networks(now, &maps.networks()?);
            self.carry_out_cluster(effects);
        }
        Ok(ended)
    }

    /// Looks at jujud's readiness and at the memory.
    pub(super) fn watch_host(&mut self, now: Instant) {
        let (ready, load) = (self.is_ready(), self.load());
        if now < self.schedule.memory {
            self.balance.note_ready(now, ready);
            return;
        }
        let policy = &self.config.running.policy;
        let usage = policy.memory_guard.then(|| self.jujud.memory.read());
        let pause = usage.as_ref().map_or(Duration::ZERO, |usage| usage.reading.pause());
        self.schedule.memory = now + pause;
        let effect = self.balance.watch(now, ready, load, usage, policy);
        self.carry_out_balance(now, effect);
    }

    /// Closes connections, or says why none is closed.
    pub(super) fn keep_balance(&mut self, now: Instant) {
        let (others, left_out) = self.others(now);
        let (load, ready) = (self.load(), self.is_ready());
        let others = (others.as_slice(), left_out.as_slice());
        let inputs = balance::Inputs::new(&self.config.running, boot_s(), load, ready, others);
        let effects = self.balance.step(now, &inputs);
        self.carry_out_balance(now, effects);
    }

    /// The other controllers as the balance sees them, and those of them that have no share.
    pub(super) fn others(&self, now: Instant) -> (Vec<ControllerLoad>, Vec<String>) {
        // Without relays, clients find the others by themselves.
        let relays = self.config.running.policy.steer == Steer::Relay;
        let mut others = self.cluster.loads(now, relays);
        let reports = self.cluster.peers().iter().filter(|peer| peer.state == State::Ready);
        let parts = reports.filter_map(|peer| Some(peer.report.as_ref()?.weight / peer.weight));
        balance::weigh(&mut others, self.balance.memory_part(), parts);
        (others, self.cluster.left_out(now, relays))
    }

    /// Established connections of the API, direct and relayed, of clients and others.
    pub(super) fn api_sockets(&mut self) -> Result<Vec<Socket>> {
        let config = &self.config.running;
        let (port, relay) = (config.api.port, config.cluster.relay_ports);
        self.sockets.diag.dump(&[port..=port, relay.first..=relay.last], &TcpState::IN_USE)
    }

    pub(super) fn is_client(&self, address: IpAddr) -> bool {
        membership::is_client(&self.config.running, address)
    }

    /// Publishes this controller's load, limit and state; the other controllers pick by them.
    pub(super) fn publish(&mut self) {
        let Ok((mut budget, received)) = self.read_load() else { return };
        budget.advance(boot_s());
        let now = Instant::now();
        self.schedule.pace.reported(now, budget.load(self.count.adjust()));
        let state = self.balance.state(self.is_ready());
        let this = self.config.running.cluster.this();
        let maps = &self.programs.data_path.maps;
        let relay_port = |peer: &cluster::Peer| {
            Some((peer.name.clone(), maps.controller(peer.slot).ok()?.relay_in.host()))
        };
        self.gossip.publish(Report {
            ready: state != State::NotReady,
            draining: state == State::Draining,
            connections: self.count.connections(&budget),
            handshakes: u64::from(budget.in_progress()),
            limit: u64::from(self.balance.admit()),
            weight: self.balance.weight(now, this.weight),
            arrivals_per_s: self.arrivals_told(),
            received,
            relay_ports: self.cluster.peers().iter().filter_map(relay_port).collect(),
            addresses: self.cluster.listed().this().addresses.iter().take(MAX_REPORTED).copied().collect(),
            host: self.further_addresses(),
            tag: self.cluster.announced_tag().to_owned(),
            closing: self.balance.closing(now),
            sheds: self.balance.sheds(),
            off: self.cluster.off(),
            leaving: false,
            farewells: self.cluster.farewells(),
            bypassed: self.balance.bypass().is_on(),
            agent: self.about(),
        });
    }

    /// Addresses of this host that are not listed: another controller may see a connection from one of them.
    fn further_addresses(&self) -> Vec<IpAddr> {
        let listed = &self.cluster.listed().this().addresses;
        let held = self.programs.devices.iter().flat_map(|device| &device.addresses);
        let further: BTreeSet<IpAddr> = held
            .copied()
            .filter(|address| unreachable_kind(*address).is_none() && !listed.contains(address))
            .collect();
        further.into_iter().take(MAX_HOST).collect()
    }

    fn read_load(&self) -> Result<(Budget, BTreeMap<String, u64>)> {
        let maps = &self.programs.data_path.maps;
        let received = || {
            let peers = self.cluster.peers().iter();
            peers.map(|peer| Ok((peer.name.clone(), maps.traffic(peer.slot)?.received))).collect()
        };
        count::of_one_moment(|| maps.budget(), received)
    }

    pub(super) fn tracked_sockets(
        &mut self,
    ) -> Result<(Vec<Socket>, std::collections::HashMap<u64, Tracked>)> {
        Ok((self.api_sockets()?, self.programs.data_path.maps.tracked()?))
    }
}
