//! What the agent is asked: SIGHUP, and requests on the control socket.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use balancer_common::{records::State, wire::Port};
use log::{error, info, warn};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Agent, Peer, boot_s, describe,
    slots::{assign_slots, members},
};
use crate::{
    balance::limits,
    cluster::membership::group,
    config::{Config, Controller, Source},
    host::{interfaces, notify},
    juju::agent_conf::Follow,
    operator::{
        control::{ControlSocket, Request},
        status::{ControllerStatus, Status},
    },
};

/// A request, and where its answer goes.
pub(super) type Asked = (Request, oneshot::Sender<Result<Value, String>>);

impl Agent {
    /// SIGHUP: the new configuration, or the old one if that is not valid.
    pub(super) async fn reload(&mut self) {
        notify::reloading();
        let done = match self.read_again().await {
            Ok(config) => self.reconfigure(config).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => info!("configuration read again"),
            Err(error) => error!("the configuration stays as it was: {error:#}"),
        }
        notify::ready(&format!("{} client connections", self.load()));
    }

    /// Ten times a second: Juju may have rewritten its file, or a controller have said which addresses are its own.
    pub(super) async fn follow_members(&mut self) {
        if self.follow.as_mut().is_some_and(Follow::changed) {
            self.follow_file().await;
        }
        if std::mem::take(&mut self.regroup) {
            let config = Config { cluster: self.listed.clone(), ..self.config.clone() };
            match self.reconfigure(config).await {
                Ok(()) => {
                    let controllers: Vec<_> =
                        self.config.cluster.controllers.iter().map(describe_controller).collect();
                    info!("controllers: {}", controllers.join("; "));
                }
                Err(error) => error!("the controllers stay as they were: {error:#}"),
            }
        }
    }

    async fn follow_file(&mut self) {
        let done = match self.read_again().await {
            Ok(config) if config.cluster == self.listed => return,
            Ok(config) => self.reconfigure(config).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => info!("the controllers are read again, as Juju has changed them"),
            Err(error) => error!("the controllers stay as they were: {error:#}"),
        }
    }

    /// The configuration as it is written now.
    async fn read_again(&self) -> Result<Config> {
        let mut config = Config::load(&self.path, &self.links.host_addresses().await?)?;
        self.keep_name(&mut config);
        Ok(config)
    }

    /// Where `agent.conf` lists the controllers, this one is named by the lowest of its addresses. As long as the
    /// old name is one of them, it keeps that.
    fn keep_name(&self, config: &mut Config) {
        let (name, cluster) = (&self.listed.name, &mut config.cluster);
        let is_own = |controller: &&mut Controller| controller.name == cluster.name;
        if cluster.source != Source::File
            && let Some(this) = cluster.controllers.iter_mut().find(is_own)
            && this.addresses.iter().any(|address| address.to_string() == *name)
        {
            this.name.clone_from(name);
            cluster.name.clone_from(name);
        }
    }

    pub(super) async fn reconfigure(&mut self, mut config: Config) -> Result<()> {
        let fixed = [
            ("api.port", config.api.port == self.config.api.port),
            ("api.hook", config.api.hook == self.config.api.hook),
            ("api.health", config.api.health == self.config.api.health),
            ("cluster.name", config.cluster.name == self.config.cluster.name),
            ("cluster.listen", config.cluster.listen == self.config.cluster.listen),
            ("cluster.relay_ports", config.cluster.relay_ports == self.config.cluster.relay_ports),
            ("the cluster's key", config.cluster.key == self.config.cluster.key),
            ("paths", config.paths == self.config.paths),
        ];
        if let Some((key, _)) = fixed.iter().find(|(_, same)| !same) {
            bail!("{key} cannot change while the agent runs; restart it (connections go on)");
        }
        let listed = config.cluster.clone();
        let mut reported = self.reported.clone();
        reported.retain(|name, _| listed.controllers.iter().any(|controller| controller.name == *name));
        config.cluster = group(&listed, &reported);
        interfaces::api_interfaces(
            &self.devices,
            config.api.interfaces.as_deref(),
            &config.cluster.this().addresses,
        )?;
        self.gossip.set_members(&members(&config))?;
        let now = Instant::now();
        let (own_slot, mut peers) = assign_slots(&mut self.data_path, &config, now)?;
        for peer in &mut peers {
            if let Some(index) = self.peers.iter().position(|known| known.name == peer.name) {
                let known = self.peers.swap_remove(index);
                *peer =
                    Peer { addresses: peer.addresses.clone(), weight: peer.weight, slot: peer.slot, ..known };
            }
        }
        if config.cluster.controllers != self.config.cluster.controllers {
            self.keeper.unsettle(now);
        }
        self.own_slot = own_slot;
        self.peers = peers;
        self.limit = config.api.hard_limit.unwrap_or_else(|| limits::derive().0);
        (self.listed, self.reported) = (listed, reported);
        self.config = config;
        self.apply_configuration()?;
        self.interfaces_changed().await;
        self.detach_interfaces();
        self.write_views();
        Ok(())
    }

    pub(super) fn answer(&mut self, request: &Request) -> Result<Value, String> {
        match request {
            Request::Status => {
                if let Err(error) = self.collect() {
                    warn!("flows could not be counted: {error:#}");
                }
                self.status()
                    .and_then(|status| Ok(serde_json::to_value(status)?))
                    .map_err(|error| format!("{error:#}"))
            }
            Request::Drain { within_s } => said(self.drain(Duration::from_secs(*within_s))),
            Request::Resume => Ok(self.resume().into()),
            Request::Limit { limit } => Ok(self.set_limit(*limit).into()),
            Request::Rebalance { now, dry_run } => said(self.rebalance(*now, *dry_run)),
        }
    }

    pub(super) fn status(&self) -> Result<Status> {
        let mut counters: BTreeMap<String, u64> = self
            .data_path
            .maps
            .counters()?
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count))
            .collect();
        if let Value::Object(sync) = serde_json::to_value(self.gossip.counters().snapshot())? {
            counters.extend(
                sync.into_iter().filter_map(|(name, count)| Some((format!("sync_{name}"), count.as_u64()?))),
            );
        }
        let mut budget = self.data_path.maps.budget()?;
        budget.advance(boot_s());
        counters.insert("handshakes_in_progress".into(), u64::from(budget.in_progress()));
        let now = Instant::now();
        let mut controllers = Vec::new();
        for configured in &self.config.cluster.controllers {
            let status = if configured.name == self.config.cluster.name {
                ControllerStatus {
                    name: configured.name.clone(),
                    addresses: configured.addresses.clone(),
                    state: describe(self.own_state()).into(),
                    connections: self.connections(&budget),
                    limit: u64::from(self.limits().admit),
                    weight: self.own_weight(now),
                    age_ms: 0,
                    relay: "self".into(),
                }
            } else {
                let Some(peer) = self.peers.iter().find(|peer| peer.name == configured.name) else {
                    continue;
                };
                let controller = self.data_path.maps.controller(peer.slot)?;
                ControllerStatus {
                    name: peer.name.clone(),
                    addresses: peer.addresses.clone(),
                    state: describe(peer.state).into(),
                    connections: peer.report.as_ref().map_or(0, |report| report.connections),
                    limit: peer.report.as_ref().map_or(0, |report| report.limit),
                    weight: peer.report.as_ref().map_or(peer.weight, |report| report.weight),
                    age_ms: peer.reported_at.map_or(u64::MAX, |at| now.duration_since(at).as_millis() as u64),
                    relay: if peer.unreachable {
                        "unreachable"
                    } else if controller.relay_out == Port::NONE {
                        "none"
                    } else {
                        "ok"
                    }
                    .into(),
                }
            };
            controllers.push(status);
        }
        controllers.extend(self.config.cluster.candidates.iter().map(|address| ControllerStatus {
            name: address.to_string(),
            addresses: vec![*address],
            state: describe(State::Absent).into(),
            connections: 0,
            limit: 0,
            weight: 1.0,
            age_ms: u64::MAX,
            relay: "none".into(),
        }));
        Ok(Status {
            controller: self.config.cluster.name.clone(),
            api_port: self.config.api.port,
            hooks: self
                .data_path
                .hooks
                .iter()
                .map(|(name, attached)| (name.clone(), attached.name()))
                .collect(),
            without_xdp: self
                .data_path
                .hooks
                .iter()
                .filter_map(|(name, attached)| Some((name.clone(), attached.without_xdp.clone()?)))
                .collect(),
            hard_limit: self.limits().admit,
            controllers,
            exempt_connections: u64::from(budget.exempt) + u64::from(self.seeded.1),
            relays: self.relays,
            counters,
            health: self.health.borrow().reason.clone(),
            jujud_connections: self.jujud.borrow().clone(),
            balance: self.balance(),
            drift: self.drift,
        })
    }
}

fn describe_controller(controller: &Controller) -> String {
    let addresses: Vec<_> = controller.addresses.iter().map(ToString::to_string).collect();
    addresses.join(", ")
}

fn said(outcome: Result<String>) -> Result<Value, String> {
    outcome.map(Value::from).map_err(|error| format!("{error:#}"))
}

/// Answers requests on the control socket by asking the agent.
pub(super) async fn serve_control(
    control: ControlSocket,
    ask: mpsc::Sender<Asked>,
    mut stopped: watch::Receiver<bool>,
) {
    let handler = move |request| {
        let ask = ask.clone();
        async move {
            let (answer, answered) = oneshot::channel();
            ask.send((request, answer)).await.map_err(|_gone| "the agent is ending".to_owned())?;
            answered.await.map_err(|_gone| "the agent is ending".to_owned())?
        }
    };
    control
        .serve(handler, async move {
            let _: Result<_, _> = stopped.wait_for(|stopped| *stopped).await;
        })
        .await;
}
