//! The controllers' slots in the maps: kept by name, so that a new agent finds each where it was.

use std::{net::IpAddr, time::Instant};

use anyhow::Result;
use balancer_common::records::{Controller, MAX_CONTROLLERS, State};

use crate::{
    cluster::{
        membership::Reported,
        peers::{self, Report},
        slots::{assign, name_hash},
        views::{Liveness, Sent},
    },
    config::{Cluster, Config},
    datapath::DataPath,
};

/// Another controller.
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) weight: f64,
    pub(super) slot: usize,
    pub(super) sent: Sent,
    pub(super) liveness: Liveness,
    pub(super) probing: bool,
    pub(super) probed_at: Option<Instant>,
    pub(super) state: State,
    pub(super) report: Option<Report>,
    pub(super) reported_at: Option<Instant>,
    pub(super) unreachable: bool,
}

/// Gives every controller of the configuration a slot, the one it had if it had one, and each other
/// controller a relay port.
pub(super) fn assign_slots(
    data_path: &mut DataPath,
    config: &Config,
    now: Instant,
) -> Result<(usize, Vec<Peer>)> {
    let mut slots = data_path.maps.controllers()?;
    let Cluster { name: own_name, controllers, relay_ports, .. } = &config.cluster;
    let names: Vec<&str> = controllers.iter().map(|controller| controller.name.as_str()).collect();
    let indices = assign(&mut slots, &names, own_name, *relay_ports)?;
    let (mut own, mut peers) = (0, Vec::new());
    for (controller, slot) in controllers.iter().zip(indices) {
        if controller.name == *own_name {
            own = slot;
            continue;
        }
        let state = slots.get(slot).map_or(State::Absent, Controller::state);
        peers.push(Peer {
            name: controller.name.clone(),
            addresses: controller.addresses.clone(),
            weight: controller.weight,
            slot,
            sent: Sent::default(),
            liveness: Liveness::new(now, state),
            probing: false,
            probed_at: None,
            state,
            report: None,
            reported_at: None,
            unreachable: false,
        });
    }
    for (index, slot) in slots.iter().enumerate().take(MAX_CONTROLLERS) {
        data_path.maps.set_controller(index, slot)?;
    }
    Ok((own, peers))
}

/// The controllers of the cluster that an earlier agent has left slots for, with the addresses that
/// it used.
pub(super) fn known_controllers(data_path: &DataPath, cluster: &Cluster) -> Result<Reported> {
    let slots = data_path.maps.controllers()?;
    let known = cluster.others().filter_map(|other| {
        let slot = slots.iter().find(|slot| slot.name_hash == name_hash(&other.name))?;
        Some((other.name.clone(), vec![slot.v4.into(), slot.v6.into()]))
    });
    Ok(known.collect())
}

/// Who may be heard: every controller, and every address that may be one's.
pub(super) fn members(config: &Config) -> Vec<peers::Member> {
    let members = config.cluster.controllers.iter();
    let candidates = config.cluster.candidates.iter();
    let candidates =
        candidates.map(|&address| peers::Member { name: address.to_string(), addresses: vec![address] });
    members
        .map(|controller| peers::Member {
            name: controller.name.clone(),
            addresses: controller.addresses.clone(),
        })
        .chain(candidates)
        .collect()
}
