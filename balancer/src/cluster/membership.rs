//! Grouping addresses by controller: `agent.conf` lists addresses only, and each controller reports its own.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use balancer_common::{
    records::{AddressClass, Class, MAX_CONTROLLERS},
    wire::Address,
};

use super::peers::Member;
use crate::config::{Cluster, Config, Controller, Source};

/// Addresses by the controller that reported them, its name being one of them.
pub type Reported = BTreeMap<String, Vec<IpAddr>>;

/// `listed` with the candidates that were heard of as controllers, each with all addresses that it
/// reported; addresses that nobody reported stay candidates. Where the configuration names the
/// controllers, nothing is to be found out.
///
/// A report can only claim an address that is listed, is not this controller's, and is not the name of another reporter.
pub fn group(listed: &Cluster, reported: &Reported) -> Cluster {
    if listed.source == Source::File {
        return listed.clone();
    }
    let own = listed.this();
    let is_reporter = |address: &IpAddr| reported.contains_key(&address.to_string());
    let mut free: Vec<IpAddr> = listed
        .others()
        .flat_map(|other| other.addresses.iter().copied())
        .filter(|a| !is_reporter(a))
        .collect();
    let mut controllers = vec![own.clone()];
    for other in listed.others() {
        let Some(claimed) = reported.get(&other.name) else { continue };
        let mut addresses = other.addresses.clone();
        let (theirs, left): (Vec<IpAddr>, Vec<IpAddr>) = free.iter().partition(|a| claimed.contains(a));
        addresses.extend(theirs);
        free = left;
        controllers.push(Controller { addresses, ..other.clone() });
    }
    Cluster { controllers, candidates: free, ..listed.clone() }
}

/// Whether connections from `address` are a client's: counted, limited, balanced.
pub fn is_client(config: &Config, address: IpAddr) -> bool {
    let is_controllers = |controller: &Controller| controller.addresses.contains(&address);
    !(address.is_loopback()
        || config.cluster.controllers.iter().any(is_controllers)
        || config.cluster.candidates.contains(&address)
        || config.api.exempt.iter().any(|network| network.contains(&address)))
}

/// The class of every prefix that is not clients'; `slots` holds the slot of each of the controllers in
/// `config.cluster.controllers`, in the same order; [`MAX_CONTROLLERS`]: it has none. Of two classes of one prefix the later one holds.
pub fn address_classes(config: &Config, slots: &[usize]) -> Vec<(IpAddr, u8, AddressClass)> {
    let (exempt, denied) = (AddressClass::new(Class::Exempt, 0), AddressClass::new(Class::Denied, 0));
    let loopback = [(Ipv4Addr::from([127, 0, 0, 0]).into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)];
    let networks = config.api.exempt.iter().map(|network| (network.addr(), network.prefix_len()));
    // A candidate is some controller's, though nobody has said yet which one's.
    let candidates = config.cluster.candidates.iter().map(|&address| (address, bits(address)));
    let mut classes: Vec<_> = loopback
        .into_iter()
        .chain(networks)
        .chain(candidates)
        .map(|(address, length)| (address, length, exempt))
        .collect();
    classes.extend(config.api.deny.iter().map(|network| (network.addr(), network.prefix_len(), denied)));
    for (controller, &slot) in config.cluster.controllers.iter().zip(slots) {
        let is_own = controller.name == config.cluster.name;
        let class = if is_own { Class::Own } else { Class::Controller };
        // Nothing is relayed to a controller without a slot.
        let class = if slot < MAX_CONTROLLERS { AddressClass::new(class, slot as u8) } else { exempt };
        classes.extend(controller.addresses.iter().map(|&address| (address, bits(address), class)));
    }
    classes
}

/// The address of a controller for relays of one family: the first.
pub fn relay_address(addresses: &[IpAddr], is_v4: bool) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv4() == is_v4)
}

/// The first address of each family, IPv4 first: relays go there.
pub fn relay_addresses(addresses: &[IpAddr]) -> (Address, Address) {
    let first = |is_v4| relay_address(addresses, is_v4).map_or(Address::UNSPECIFIED, Address::from);
    (first(true), first(false))
}

/// Every host that is heard: the controllers, and the candidates, each of which may be a controller.
pub fn members(cluster: &Cluster) -> Vec<Member> {
    let controllers = cluster.controllers.iter();
    let controllers =
        controllers.map(|one| Member { name: one.name.clone(), addresses: one.addresses.clone() });
    let candidates = cluster.candidates.iter();
    let candidates =
        candidates.map(|&address| Member { name: address.to_string(), addresses: vec![address] });
    controllers.chain(candidates).collect()
}

/// Where `agent.conf` lists the controllers, this one is named by the lowest of its addresses. It keeps its `old` name
/// as long as that is one of them: the others know it by it.
pub fn keep_name(cluster: &mut Cluster, old: &str) {
    let own_name = cluster.name.clone();
    if cluster.source != Source::File
        && let Some(this) = cluster.controllers.iter_mut().find(|controller| controller.name == own_name)
        && this.addresses.iter().any(|address| address.to_string() == old)
    {
        old.clone_into(&mut this.name);
        old.clone_into(&mut cluster.name);
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Host, KeySource, RelayPorts};

    fn listed(names: &[&str]) -> Cluster {
        let controller = |name: &&str| {
            let addresses = name.split(' ').map(|address| address.parse().unwrap()).collect();
            Controller { name: name.split(' ').next().unwrap().to_owned(), addresses, weight: 1.0 }
        };
        let controllers: Vec<_> = names.iter().map(controller).collect();
        Cluster {
            source: Source::AgentConf("/agent.conf".into()),
            name: controllers[0].name.clone(),
            listen: "[::]:17078".parse().unwrap(),
            relay_ports: RelayPorts { first: 17080, last: 17095 },
            key: KeySource::File("/key".into()),
            controllers,
            candidates: Vec::new(),
        }
    }

    fn shown(cluster: &Cluster) -> String {
        let addresses =
            |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let groups: Vec<_> =
            cluster.controllers.iter().map(|controller| addresses(&controller.addresses)).collect();
        format!("{} | {}", groups.join(", "), addresses(&cluster.candidates))
    }

    type Row<'a> = (&'a [(&'a str, &'a [&'a str])], &'a str);

    #[test]
    fn addresses_go_to_those_who_report_them() {
        let all = ["10.0.0.1 fd00::1", "10.0.0.2", "10.0.0.3", "192.0.2.9", "fd00::2", "fd00::3"];
        let rows: [Row; 5] = [
            (&[], "10.0.0.1 fd00::1 | 10.0.0.2 10.0.0.3 192.0.2.9 fd00::2 fd00::3"),
            (
                &[("10.0.0.2", &["10.0.0.2", "fd00::2"])],
                "10.0.0.1 fd00::1, 10.0.0.2 fd00::2 | 10.0.0.3 192.0.2.9 fd00::3",
            ),
            (
                &[("10.0.0.2", &["10.0.0.2", "fd00::2"]), ("10.0.0.3", &["fd00::3"])],
                "10.0.0.1 fd00::1, 10.0.0.2 fd00::2, 10.0.0.3 fd00::3 | 192.0.2.9",
            ),
            // No report can claim an address that is not listed, is this controller's, or belongs to another reporter.
            (
                &[("10.0.0.2", &["8.8.8.8", "10.0.0.1", "10.0.0.3", "fd00::2"]), ("10.0.0.3", &["fd00::2"])],
                "10.0.0.1 fd00::1, 10.0.0.2 fd00::2, 10.0.0.3 | 192.0.2.9 fd00::3",
            ),
            // A stranger's name.
            (
                &[("10.9.9.9", &["10.0.0.2"])],
                "10.0.0.1 fd00::1 | 10.0.0.2 10.0.0.3 192.0.2.9 fd00::2 fd00::3",
            ),
        ];
        for (reported, expected) in rows {
            let reported: Reported = reported
                .iter()
                .map(|(name, addresses)| {
                    ((*name).to_owned(), addresses.iter().map(|a| a.parse().unwrap()).collect())
                })
                .collect();
            assert_eq!(shown(&group(&listed(&all), &reported)), expected, "{reported:?}");
        }
        let file = Cluster { source: Source::File, ..listed(&all) };
        assert_eq!(group(&file, &Reported::from([("10.0.0.2".into(), Vec::new())])), file);
    }

    #[test]
    fn an_address_is_a_client_s_unless_somebody_else_has_it() {
        let cluster = Cluster {
            candidates: vec!["192.0.2.9".parse().unwrap()],
            ..listed(&["10.0.0.1 fd00::1", "10.0.0.2"])
        };
        let config = config(cluster, &["10.8.0.0/16", "10.0.0.2/32"]);
        let rows = [
            ("10.9.0.1", true),
            ("fd00::9", true),
            ("127.0.0.5", false),
            ("::1", false),
            ("10.0.0.1", false),
            ("fd00::1", false),
            ("10.0.0.2", false),
            ("192.0.2.9", false),
            ("10.8.3.4", false),
            ("203.0.113.9", true),
        ];
        for (address, client) in rows {
            assert_eq!(is_client(&config, address.parse().unwrap()), client, "{address}");
        }
        let without = address_classes(&config, &[4, MAX_CONTROLLERS]);
        let other: IpAddr = "10.0.0.2".parse().unwrap();
        let last = without.into_iter().rfind(|class| class.0 == other);
        assert_eq!(
            last,
            Some((other, 32, AddressClass::new(Class::Exempt, 0))),
            "a controller without a slot"
        );
        let class = |name: &str| {
            let address: IpAddr = name.parse().unwrap();
            let classes = address_classes(&config, &[4, 5]);
            let is_it = |class: &(IpAddr, u8, AddressClass)| class.0 == address && class.1 == bits(address);
            classes.into_iter().rfind(is_it)
        };
        let own = AddressClass::new(Class::Own, 4);
        let other = AddressClass::new(Class::Controller, 5);
        let exempt = AddressClass::new(Class::Exempt, 0);
        // A controller's address in an exempt network is the controller's.
        let rows = [
            ("10.0.0.1", own),
            ("fd00::1", own),
            ("10.0.0.2", other),
            ("192.0.2.9", exempt),
            ("::1", exempt),
            ("203.0.113.9", AddressClass::new(Class::Denied, 0)),
        ];
        for (address, expected) in rows {
            assert_eq!(class(address).map(|(.., class)| class), Some(expected), "{address}");
        }
    }

    fn config(cluster: Cluster, exempt: &[&str]) -> Config {
        let text = "[cluster]\nname = \"a\"\nkey_file = \"/k\"\n[[cluster.controllers]]\nname = \"a\"\n\
                    addresses = [\"10.0.0.1\"]\n";
        let host = Host { cgroup2: Some("/cgroup".into()), ..Host::default() };
        let mut config = Config::parse(Path::new("balancer.toml"), text, &host).unwrap();
        config.api.exempt = exempt.iter().map(|network| network.parse().unwrap()).collect();
        config.api.deny = vec!["203.0.113.9/32".parse().unwrap()];
        Config { cluster, ..config }
    }

    #[test]
    fn relays_go_to_the_first_address_of_each_family() {
        let rows: [(&[&str], &str, &str); 4] = [
            (&["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"], "10.0.0.1", "fd00::1"),
            (&["fd00::2", "10.0.0.2"], "10.0.0.2", "fd00::2"),
            (&["10.0.0.1"], "10.0.0.1", ""),
            (&[], "", ""),
        ];
        for (addresses, v4, v6) in rows {
            let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let expected =
                [v4, v6].map(|address| address.parse::<IpAddr>().map_or(Address::UNSPECIFIED, Address::from));
            assert_eq!(<[Address; 2]>::from(relay_addresses(&addresses)), expected, "{addresses:?}");
        }
    }

    #[test]
    fn this_controller_keeps_its_name_while_that_is_one_of_its_addresses() {
        let rows = [
            ("10.0.0.1 10.0.0.7", "10.0.0.7", "10.0.0.7"),
            ("10.0.0.1 10.0.0.7", "10.0.0.8", "10.0.0.1"),
            ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
        ];
        for (addresses, old, expected) in rows {
            let mut cluster = listed(&[addresses, "10.0.0.2"]);
            keep_name(&mut cluster, old);
            assert_eq!((cluster.name.as_str(), cluster.this().name.as_str()), (expected, expected), "{old}");
        }
        let mut cluster = Cluster { source: Source::File, ..listed(&["10.0.0.1 10.0.0.7"]) };
        keep_name(&mut cluster, "10.0.0.7");
        assert_eq!(cluster.name, "10.0.0.1", "a configured name stays");
    }

    #[test]
    fn controllers_and_candidates_are_heard() {
        let cluster = Cluster {
            candidates: vec!["192.0.2.9".parse().unwrap()],
            ..listed(&["10.0.0.1 fd00::1", "10.0.0.2"])
        };
        let heard: Vec<_> =
            members(&cluster).into_iter().map(|member| (member.name, member.addresses.len())).collect();
        let expected = [("10.0.0.1", 2), ("10.0.0.2", 1), ("192.0.2.9", 1)];
        assert_eq!(heard, expected.map(|(name, addresses)| (name.to_owned(), addresses)));
    }
}
