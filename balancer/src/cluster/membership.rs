//! Whose is each of the addresses that `agent.conf` lists? Each controller says which are its own.

use std::{collections::BTreeMap, net::IpAddr};

use crate::config::{Cluster, Controller, Source};

/// Addresses by the controller that reported them, its name being one of them.
pub type Reported = BTreeMap<String, Vec<IpAddr>>;

/// `listed` with the candidates that were heard of as controllers, each with all addresses that it
/// reported; addresses that nobody reported stay candidates. Where the configuration names the
/// controllers, nothing is to be found out.
///
/// A report can only claim what is listed, is not this controller's, and is no other reporter's name.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KeySource, RelayPorts};

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
            // What is not listed, this controller's, another reporter's or claimed already stays whose it is.
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
}
