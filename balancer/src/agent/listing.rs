//! Long lists for the operator, made on a thread of their own: the agent's loop goes on meanwhile.

use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use serde_json::{Value, to_value};

use super::{Agent, boot_s};
use crate::{
    config::Config,
    count::sock_diag::{SockDiag, State},
    datapath::{Classes, Flows},
    operator::{
        clients::Counted,
        control::Request,
        explain::class_in_words,
        flows::{Collector, Wanted, client},
    },
};

/// A list that is yet to be made.
pub(super) enum Listing {
    Flows { flows: Flows, wanted: Wanted, own: String, names: Vec<(usize, String)> },
    Clients { flows: Flows, classes: Classes, limit: usize, config: Box<Config> },
}

impl Agent {
    /// The list that `request` asks for, if it asks for one.
    pub(super) fn listing(&self, request: &Request) -> Result<Option<Listing>> {
        let maps = &self.programs.data_path.maps;
        Ok(match request {
            Request::Flows(wanted) => Some(Listing::Flows {
                flows: maps.flows.beside()?,
                wanted: *wanted,
                own: self.config.running.cluster.name.clone(),
                names: self.cluster.peers().iter().map(|peer| (peer.slot, peer.name.clone())).collect(),
            }),
            Request::Clients { limit } => Some(Listing::Clients {
                flows: maps.flows.beside()?,
                classes: maps.classes()?,
                limit: *limit,
                config: Box::new(self.config.running.clone()),
            }),
            Request::Status
            | Request::Sample
            | Request::StatusAll
            | Request::Drain { .. }
            | Request::Bypass { .. }
            | Request::On
            | Request::Resume
            | Request::Limit { .. }
            | Request::Rebalance { .. }
            | Request::Explain { .. }
            | Request::Events { .. }
            | Request::View => None,
        })
    }
}

impl Listing {
    pub(super) fn make(self) -> Result<Value> {
        /// One list at a time: each may need some memory.
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        match self {
            Self::Flows { flows, wanted, own, names } => {
                let mut collector = Collector::new(wanted, boot_s());
                flows.visit(|key, flow, live| collector.note(key, flow, live))?;
                let name = |slot: u8| {
                    let named = names.iter().find(|(at, _)| *at == usize::from(slot));
                    named.map_or_else(|| "a controller that has left".into(), |(_, name)| name.clone())
                };
                Ok(to_value(collector.finish(&own, name, |key| flows.get(key)))?)
            }
            Self::Clients { flows, classes, limit, config } => {
                let mut counted = Counted::default();
                let (port, relay) = (config.api.port, config.cluster.relay_ports);
                let ports = [port..=port, relay.first..=relay.last];
                for socket in SockDiag::open()?.dump(&ports, &State::IN_USE)? {
                    counted.note(socket.remote.ip(), false);
                }
                flows.visit(|key, flow, live| {
                    if let Some((client, true)) = client(key, flow).filter(|_| live) {
                        counted.note(client.ip(), true);
                    }
                })?;
                let class =
                    |address| anyhow::Ok(class_in_words(&config, address, classes.of(address.into())?));
                Ok(to_value(counted.list(limit, class)?)?)
            }
        }
    }
}
