//! The sentences about clients that are not relayed. `status`, `check` and the log use the same ones, and each says what is
//! not relayed, why, and how to put it right.

use balancer_common::{
    records::{Controller, State},
    wire::{Address, Family},
};
use log::Level;

use super::{
    Cluster, Effect, Peer,
    membership::relay_address,
    networks,
    paths::{FAMILIES, family_name},
    peers::Report,
    silence::Silence,
};
use crate::config::RelayPorts;

/// Networks of one controller that have a sentence each; more would hide the rest.
pub const NAMED: usize = 5;

/// Nothing is relayed over `family`, neither from here nor to here.
pub fn from_here(family: Family, why: &str) -> String {
    format!("no client is relayed over {}: {why}", family_name(family))
}

pub fn to_controller(name: &str, family: Family, why: &str) -> String {
    format!("no client is relayed to {name} over {}: {why}", family_name(family))
}

/// The reason is the other controller's own, which leaves the remedy to its operator.
pub fn off_there(name: &str, family: Family, why: &str) -> String {
    to_controller(name, family, &format!("{why}; `balancer status` at {name} says how to put it right"))
}

pub fn not_heard(name: &str, udp: u16, silence: Option<Silence>) -> String {
    let why = match silence {
        Some(Silence::Stopped) => format!(
            "its agent was stopped; its programs go on, and serve its new clients there; `systemctl start balancer` at \
             {name} brings it back"
        ),
        Some(Silence::Crashed) => format!(
            "its host answers, but its agent does not: it has crashed or hangs, or a firewall blocks UDP {udp}; its \
             programs serve its new clients there; see `systemctl status balancer` at {name}"
        ),
        Some(Silence::CutOff) => format!(
            "nothing comes back from its host: it is down, or cut off from this one; its clients dial another controller; \
             look at the host, and at links and firewalls on the way (TCP 17070, UDP {udp})"
        ),
        None => format!(
            "no report arrives from it; is its host or its agent down, does a firewall block UDP {udp}, or does it run an \
             earlier version of the balancer?"
        ),
    };
    format!("no client is relayed to {name}: {why}")
}

/// What a controller that is not heard means for the clients that were relayed to it.
pub const RELAYED_THERE: &str =
    "Connections relayed there go on; one whose client has waited 15 s for an answer is reset.";

pub fn key_changes(name: &str) -> String {
    format!(
        "no client is relayed to {name}: it does not have this controller's key yet; give every controller the same key"
    )
}

pub fn to_network(name: &str, barred: Address, ports: RelayPorts) -> String {
    format!(
        "clients in {} are not relayed to {name}: one got no connection that way; does the firewall of {name} let them \
         reach TCP {ports}, and are its routes and rp_filter right for them?",
        networks::show(barred)
    )
}

/// The sentences about the networks that are not relayed to a controller.
pub fn to_networks(name: &str, barred: impl Iterator<Item = Address>, ports: RelayPorts) -> Vec<String> {
    let mut barred: Vec<Address> = barred.collect();
    barred.sort_by_cached_key(|network| networks::show(*network));
    let named = barred.iter().take(NAMED).map(|network| to_network(name, *network, ports));
    let more = barred.len().saturating_sub(NAMED);
    let more =
        (more > 0).then(|| format!("clients in {more} more networks are not relayed to {name} either"));
    named.chain(more).collect()
}

impl Cluster {
    /// Sentences about everything that is not relayed from here, and why.
    pub fn not_relayed(&self) -> Vec<String> {
        let mut told = Vec::new();
        for (family, why) in FAMILIES.into_iter().zip(&self.off) {
            if let Some(why) = why {
                told.push(from_here(family, why));
            }
        }
        for peer in &self.peers {
            if matches!(peer.state, State::Absent | State::Silent) {
                told.push(not_heard(&peer.name, self.listed.listen.port(), peer.silence()));
                continue;
            }
            if !peer.takes_tag {
                told.push(key_changes(&peer.name));
            }
            for (family, path) in FAMILIES.into_iter().zip(&peer.paths) {
                if let Some(why) = peer.off(family) {
                    told.push(off_there(&peer.name, family, why));
                } else if let Some(why) = path.broken() {
                    told.push(to_controller(&peer.name, family, why));
                }
            }
            let barred = self.networks.of(peer.slot);
            told.extend(to_networks(&peer.name, barred, self.listed.relay_ports));
        }
        told
    }

    /// Whether clients are relayed to `peer`, in a word: see [`crate::operator::status::ControllerStatus::relay`].
    pub fn relay(&self, peer: &Peer) -> &'static str {
        let has = |addresses, family| relay_address(addresses, family == Family::V4).is_some();
        let both = |family: &Family| has(&self.own_addresses, *family) && has(&peer.addresses, *family);
        let all = FAMILIES.into_iter().filter(both).map(Controller::path).sum::<u8>();
        match peer.proved() & all {
            _ if peer.relay_port.is_none() => "none",
            _ if !peer.takes_tag => "off",
            0 => "off",
            proved if proved == all => "ok",
            proved if proved == Controller::path(Family::V4) => "v4 only",
            _ => "v6 only",
        }
    }
}

impl Peer {
    /// Tells the operator of families over which it takes relays no longer, or again, by its new `report`.
    pub(super) fn note_off(&self, report: &Report, effects: &mut Vec<Effect>) {
        for family in FAMILIES {
            let (name, key) = (&self.name, family_name(family));
            effects.push(match (self.off(family), report.off.get(key)) {
                (before, Some(why)) if before != Some(why) => {
                    Effect::Say(Level::Warn, off_there(name, family, why))
                }
                (Some(_), None) => {
                    Effect::Say(Level::Info, format!("controller {name} takes relays over {key} again"))
                }
                _ => continue,
            });
        }
    }
}
