//! Sets of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// One family's addresses in order. IPv4 addresses are numbers as well.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ranges {
    /// First and last, in order, none touching the next.
    merged: Vec<(u128, u128)>,
}

impl Ranges {
    pub fn new(ranges: impl IntoIterator<Item = (u128, u128)>) -> Self {
        let mut ranges: Vec<(u128, u128)> =
            ranges.into_iter().filter(|(first, last)| first <= last).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u128, u128)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                Some(_) | None => merged.push((first, last)),
            }
        }
        Self { merged }
    }

    /// The networks of one family.
    pub fn of_networks<'a>(networks: impl IntoIterator<Item = &'a IpNet>, is_v4: bool) -> Self {
        let networks = networks.into_iter().filter(|network| network.addr().is_ipv4() == is_v4);
        Self::new(networks.map(|network| (number(network.network()), number(network.broadcast()))))
    }

    pub fn holds(&self, address: u128) -> bool {
        let after = self.merged.partition_point(|(first, _)| *first <= address);
        after.checked_sub(1).and_then(|at| self.merged.get(at)).is_some_and(|(_, last)| address <= *last)
    }

    /// The first address of each range, and the first behind it: every address is treated as the nearest of these before
    /// it, or as 0.
    pub fn ends(&self) -> impl Iterator<Item = u128> + '_ {
        self.merged.iter().flat_map(|&(first, last)| [Some(first), last.checked_add(1)]).flatten()
    }
}

pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// `None` for a number above all of the family's addresses.
pub fn address(number: u128, is_v4: bool) -> Option<IpAddr> {
    if is_v4 {
        u32::try_from(number).ok().map(|number| Ipv4Addr::from(number).into())
    } else {
        Some(Ipv6Addr::from(number).into())
    }
}

/// `ADDRESS`, `ADDRESS/LENGTH` or, as iptables writes unusual ones, `ADDRESS/MASK`.
pub fn network(text: &str) -> Option<(bool, (u128, u128))> {
    let network = match text.split_once('/') {
        None => IpNet::from(text.parse::<IpAddr>().ok()?),
        Some((address, length)) => {
            let address: IpAddr = address.parse().ok()?;
            match length.parse::<u8>() {
                Ok(length) => IpNet::new(address, length).ok()?,
                Err(_) => IpNet::with_netmask(address, length.parse().ok()?).ok()?,
            }
        }
    };
    Some((network.addr().is_ipv4(), (number(network.network()), number(network.broadcast()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_addresses() {
        let ranges = Ranges::new([(20, 30), (5, 9), (10, 12), (25, 40), (9, 3), (u128::MAX, u128::MAX)]);
        for (address, held) in [
            (4, false),
            (5, true),
            (12, true),
            (13, false),
            (20, true),
            (40, true),
            (41, false),
            (u128::MAX, true),
        ] {
            assert_eq!(ranges.holds(address), held, "{address}");
        }
        assert_eq!(ranges.ends().collect::<Vec<_>>(), [5, 13, 20, 41, u128::MAX]);
        assert!(!Ranges::default().holds(0));
    }

    #[test]
    fn networks_are_read_in_every_form() {
        for (text, expected) in [
            ("1.2.3.4", Some((true, (0x0102_0304, 0x0102_0304)))),
            ("10.0.0.0/8", Some((true, (0x0a00_0000, 0x0aff_ffff)))),
            ("10.1.2.3/255.0.0.0", Some((true, (0x0a00_0000, 0x0aff_ffff)))),
            ("::/0", Some((false, (0, u128::MAX)))),
            ("10.0.0.0/33", None),
            ("10.0.0.0/255.0.255.0", None),
            ("host", None),
        ] {
            assert_eq!(network(text), expected, "{text}");
        }
    }
}
