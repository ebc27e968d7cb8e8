//! The networks of clients that a controller does not reach by relay: when to try again.
//!
//! The programs bar a network from relays to a controller after one of its clients got no connection that way. Routes,
//! tunnels and filters for a client's address show in no table of this host, so the agent asks in a client's name whether
//! the way works again before another client tries it.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use balancer_common::{
    records::{MAX_CONTROLLERS, Network},
    wire::Address,
};

/// The first interval between two probes; each is twice as long as the one before.
const FIRST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_mins(30);
/// Probes that begin in one step.
const AT_ONCE: usize = 4;

/// A network, and the slot of a controller that is not to reach it.
pub type Barred = (Address, usize);

#[derive(Debug, Default)]
pub struct Networks {
    barred: HashMap<Barred, Retry>,
}

#[derive(Clone, Copy, Debug)]
struct Retry {
    due: Instant,
    wait: Duration,
    under_way: bool,
}

/// A probe to send.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ask {
    pub barred: Barred,
    /// The client that the probe stands for.
    pub client: Address,
}

impl Networks {
    /// Whether any network is barred.
    pub fn any(&self) -> bool {
        !self.barred.is_empty()
    }

    /// The barred networks of the controller in `slot`.
    pub fn of(&self, slot: usize) -> impl Iterator<Item = Address> {
        self.barred.keys().filter(move |(_, barred)| *barred == slot).map(|(network, _)| *network)
    }

    /// Takes in the networks as the programs have noted them. Returns those barred anew, and the probes to send.
    pub fn step(&mut self, now: Instant, noted: &[(Address, Network)]) -> (Vec<Barred>, Vec<Ask>) {
        let (mut fresh, mut asks, mut still) = (Vec::new(), Vec::new(), HashMap::new());
        for (key, network) in noted {
            for slot in (0..MAX_CONTROLLERS).filter(|slot| network.barred >> slot & 1 != 0) {
                let barred = (*key, slot);
                let mut retry = self.barred.get(&barred).copied().unwrap_or_else(|| {
                    fresh.push(barred);
                    Retry { due: now + FIRST, wait: FIRST, under_way: false }
                });
                if now >= retry.due && !retry.under_way && asks.len() < AT_ONCE {
                    retry.under_way = true;
                    asks.push(Ask { barred, client: network.client });
                }
                still.insert(barred, retry);
            }
        }
        self.barred = still;
        (fresh, asks)
    }

    /// Notes the result of a probe; `true`: clear the network's bit.
    pub fn probed(&mut self, now: Instant, barred: &Barred, works: bool) -> bool {
        let Some(retry) = self.barred.get_mut(barred) else { return false };
        if works {
            self.barred.remove(barred);
            return true;
        }
        retry.wait = (retry.wait * 2).min(LONGEST);
        (retry.under_way, retry.due) = (false, now + retry.wait);
        false
    }
}

/// A network in texts: `10.1.2.0/24`.
pub fn show(network: Address) -> String {
    let address = IpAddr::from(network);
    format!("{address}/{}", if address.is_ipv4() { 24 } else { 64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str, barred: u16) -> (Address, Network) {
        let client = Address::from(address.parse::<IpAddr>().unwrap());
        (Network::of(&client), Network { client, barred, ..Network::default() })
    }

    #[test]
    fn a_barred_network_is_asked_for_at_growing_intervals() {
        let start = Instant::now();
        let mut networks = Networks::default();
        let noted = [network("10.1.2.3", 0b10), network("10.1.3.3", 0)];
        let barred = (noted[0].0, 1);
        let at = |seconds| start + Duration::from_secs(seconds);
        // Seconds, whether it is new, whether a probe begins, its result.
        let rows = [
            (0, true, false, None),
            (29, false, false, None),
            (30, false, true, Some(false)),
            (89, false, false, None),
            (90, false, true, Some(false)),
            (209, false, false, None),
            (210, false, true, Some(true)),
        ];
        for (seconds, fresh, asks, result) in rows {
            let (found, begun) = networks.step(at(seconds), &noted);
            assert_eq!((!found.is_empty(), !begun.is_empty()), (fresh, asks), "{seconds} s");
            if let Some(works) = result {
                assert_eq!(begun, [Ask { barred, client: noted[0].1.client }]);
                assert_eq!(networks.step(at(seconds), &noted).1, [], "one probe at a time");
                assert_eq!(networks.probed(at(seconds), &barred, works), works);
            }
        }
        assert!(!networks.any());
        assert!(!networks.probed(at(211), &barred, true), "not barred any more");
    }

    #[test]
    fn networks_that_gave_way_are_forgotten() {
        let start = Instant::now();
        let mut networks = Networks::default();
        let noted = [network("10.1.2.3", 0b110), network("fd00::1", 0b1)];
        assert_eq!(networks.step(start, &noted).0.len(), 3);
        let shown: Vec<String> = networks.of(0).map(show).collect();
        assert_eq!(shown, ["fd00::/64"]);
        assert_eq!(networks.step(start, &noted[..1]).0, []);
        assert_eq!(
            (networks.of(0).count(), networks.of(1).map(show).next()),
            (0, Some("10.1.2.0/24".into()))
        );
    }
}
