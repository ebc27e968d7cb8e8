//! `explain`: reads the records that decide about one client.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use balancer_common::{
    records::MAX_CONTROLLERS,
    stages::choose::relay_address,
    wire::{Address, Family},
};

use super::Agent;
use crate::{
    host::clock::boot_ns,
    operator::explain::{self, Explanation, Facts, tables::Snapshot},
};

impl Agent {
    pub(super) fn explain(&self, client: IpAddr) -> Result<Explanation> {
        let maps = &self.programs.data_path.maps;
        let address = Address::from(client);
        let client = IpAddr::from(address);
        let (settings, controllers) = (maps.settings()?, maps.controllers()?);
        let family = if client.is_ipv4() { Family::V4 } else { Family::V6 };
        let own = controllers.get(usize::from(settings.own)).context("this controller has no slot")?;
        let dialled = *relay_address(own, family);
        anyhow::ensure!(
            dialled != Address::UNSPECIFIED,
            "this controller has no address that {client} could dial"
        );
        let classes = maps.classes()?;
        let class = classes.of(address)?;
        let named = self.cluster.peers().iter().map(|peer| (peer.slot, peer.name.clone()));
        let own_name = self.config.running.cluster.name.clone();
        explain::explain(Facts {
            class: explain::class_in_words(&self.config.running, client, class),
            names: std::iter::once((self.cluster.own_slot(), own_name.clone())).chain(named).collect(),
            name: own_name,
            not_relayed: self.not_relayed(),
            snapshot: Snapshot {
                client,
                dialled: dialled.into(),
                classes: [class, classes.of(dialled)?],
                traffic: (0..MAX_CONTROLLERS).map(|slot| maps.traffic(slot)).collect::<Result<_>>()?,
                budget: maps.budget()?,
                own: maps.client(address)?,
                network: maps.network_of(address)?,
                refused_ns: maps.recently_refused(address)?,
                now_ns: boot_ns(),
                settings,
                controllers,
            },
        })
    }
}
