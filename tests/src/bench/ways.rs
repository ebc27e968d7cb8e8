//! The ways from a client to a server that are compared.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::bench::scale::{self, Part};

/// A way, and the one beside which its figures are put.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Way {
    pub name: &'static str,
    pub base: Option<&'static str>,
    pub title: &'static str,
    pub setting: Setting,
    /// Ports and family of the host's other traffic.
    pub other: bool,
    pub ipv6: bool,
    /// The hosts compute checksums themselves.
    pub plain: bool,
}

/// How packets get from the client to the servers at b and c.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Setting {
    /// Without any help.
    Direct,
    /// Through a as a plain router, both ways.
    Routed,
    Balanced(Balanced),
    Haproxy,
    Nginx,
    Nft,
}

/// The task of the balancers on all three controllers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Balanced {
    pub hook: &'static str,
    /// `policy.steer`
    pub steer: &'static str,
    pub dials: Dials,
    /// The agents stand still during each measurement: nothing is relayed by a report that is older than ten seconds.
    pub stopped: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dials {
    /// The servers' own hosts: b and c.
    Servers,
    /// Controller a, which has no server: every client is relayed.
    Entry,
    /// Controller a, which has a server too.
    EntryWithServer,
}

const TC: Balanced = Balanced { hook: "tc", steer: "relay", dials: Dials::Entry, stopped: false };
const PLAIN: Way = Way {
    name: "direct",
    base: None,
    title: "direct",
    setting: Setting::Direct,
    other: false,
    ipv6: false,
    plain: false,
};

/// Every way, each after its base.
pub const WAYS: [Way; 19] = [
    PLAIN,
    Way {
        name: "served",
        base: Some("direct"),
        title: "served where it dials",
        setting: Setting::Balanced(Balanced { steer: "off", dials: Dials::Servers, ..TC }),
        ..PLAIN
    },
    Way {
        name: "served-stopped",
        base: Some("direct"),
        title: "served where it dials, agents stopped",
        setting: Setting::Balanced(Balanced { steer: "off", dials: Dials::Servers, stopped: true, ..TC }),
        ..PLAIN
    },
    Way {
        name: "routed",
        base: Some("direct"),
        title: "plain router hop",
        setting: Setting::Routed,
        ..PLAIN
    },
    Way {
        name: "relayed",
        base: Some("routed"),
        title: "relayed, TC",
        setting: Setting::Balanced(TC),
        ..PLAIN
    },
    Way {
        name: "relayed-stopped",
        base: Some("routed"),
        title: "relayed, TC, agents stopped",
        setting: Setting::Balanced(Balanced { stopped: true, ..TC }),
        ..PLAIN
    },
    Way {
        name: "spread",
        base: Some("routed"),
        title: "spread over a, b, c",
        setting: Setting::Balanced(Balanced { dials: Dials::EntryWithServer, ..TC }),
        ..PLAIN
    },
    Way { name: "nft", base: Some("routed"), title: "nftables DNAT", setting: Setting::Nft, ..PLAIN },
    Way {
        name: "haproxy",
        base: Some("routed"),
        title: "HAProxy leastconn",
        setting: Setting::Haproxy,
        ..PLAIN
    },
    Way { name: "nginx", base: Some("routed"), title: "nginx least_conn", setting: Setting::Nginx, ..PLAIN },
    Way {
        name: "plain-routed",
        title: "plain router hop, no TX checksum offload",
        setting: Setting::Routed,
        plain: true,
        ..PLAIN
    },
    Way {
        name: "plain-tc",
        base: Some("plain-routed"),
        title: "relayed, TC, no TX checksum offload",
        setting: Setting::Balanced(TC),
        plain: true,
        ..PLAIN
    },
    Way {
        name: "plain-xdp",
        base: Some("plain-routed"),
        title: "relayed, XDP, no TX checksum offload",
        setting: Setting::Balanced(Balanced { hook: "xdp", ..TC }),
        plain: true,
        ..PLAIN
    },
    Way { name: "other", title: "other traffic", other: true, ..PLAIN },
    Way {
        name: "other-beside",
        base: Some("other"),
        title: "other traffic beside the balancer",
        setting: Setting::Balanced(BESIDE),
        other: true,
        ..PLAIN
    },
    Way {
        name: "other-stopped",
        base: Some("other"),
        title: "other traffic, agents stopped",
        setting: Setting::Balanced(Balanced { stopped: true, ..BESIDE }),
        other: true,
        ..PLAIN
    },
    Way { name: "other6", title: "other traffic, IPv6", other: true, ipv6: true, ..PLAIN },
    Way {
        name: "other6-beside",
        base: Some("other6"),
        title: "other traffic beside the balancer, IPv6",
        setting: Setting::Balanced(BESIDE),
        other: true,
        ipv6: true,
        ..PLAIN
    },
    Way {
        name: "other6-stopped",
        base: Some("other6"),
        title: "other traffic, agents stopped, IPv6",
        setting: Setting::Balanced(Balanced { stopped: true, ..BESIDE }),
        other: true,
        ipv6: true,
        ..PLAIN
    },
];

const BESIDE: Balanced = Balanced { dials: Dials::Servers, ..TC };

impl Way {
    /// The program that it needs and that is not in `packages`.
    pub fn missing(&self, packages: &Path) -> Option<PathBuf> {
        let program = match self.setting {
            Setting::Haproxy => packages.join("usr/sbin/haproxy"),
            Setting::Nginx => packages.join("usr/sbin/nginx"),
            Setting::Direct | Setting::Routed | Setting::Nft | Setting::Balanced(_) => return None,
        };
        (!program.is_file()).then_some(program)
    }
}

/// The ways and parts called `names`, all without any, and the ways beside which those are put.
pub fn choose(names: &[String]) -> Result<(Vec<Way>, Vec<Part>)> {
    let parts = Part::ALL.map(Part::name);
    let known = || WAYS.iter().map(|way| way.name).chain([scale::ALL]).chain(parts);
    if let Some(wrong) = names.iter().find(|name| known().all(|known| known != **name)) {
        bail!("no way is called {wrong:?}; the names are {}", known().collect::<Vec<_>>().join(", "));
    }
    let is_wanted =
        |part: &Part| names.is_empty() || names.iter().any(|name| *name == part.name() || name == scale::ALL);
    let is_named = |way: &Way| names.is_empty() || names.iter().any(|name| name == way.name);
    let is_base = |way: &Way| WAYS.iter().any(|other| is_named(other) && other.base == Some(way.name));
    let ways = WAYS.into_iter().filter(|way| is_named(way) || is_base(way)).collect();
    Ok((ways, Part::ALL.into_iter().filter(is_wanted).collect()))
}

/// The way called `name`.
pub fn way(name: &str) -> Result<Way> {
    WAYS.into_iter().find(|way| way.name == name).with_context(|| format!("no way {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Vec<&'static str> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let (ways, parts) = choose(&names).unwrap();
        ways.iter().map(|way| way.name).chain(parts.into_iter().map(Part::name)).collect()
    }

    #[test]
    fn a_way_comes_with_its_base() {
        assert_eq!(chosen(&["relayed"]), ["routed", "relayed"]);
        assert_eq!(chosen(&["served", "direct"]), ["direct", "served"]);
        assert_eq!(chosen(&[]).len(), WAYS.len() + Part::ALL.len());
    }

    #[test]
    fn parts_of_scale_have_names_of_their_own() {
        assert_eq!(chosen(&["short"]), ["short"]);
        assert_eq!(chosen(&["direct", "scale"]), ["direct", "flows", "agents", "memory", "peers", "short"]);
    }

    #[test]
    fn a_wrong_name_is_answered_by_the_names() {
        let error = choose(&["relay".to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with("no way is called \"relay\"; the names are direct, served, "), "{error}");
    }

    #[test]
    fn every_base_comes_before_and_is_in_the_same_network() {
        for (index, way) in WAYS.iter().enumerate() {
            let Some(base) = way.base else { continue };
            let base = WAYS[..index].iter().find(|other| other.name == base).expect(way.name);
            assert_eq!((base.plain, base.other, base.ipv6), (way.plain, way.other, way.ipv6), "{way:?}");
        }
    }
}
