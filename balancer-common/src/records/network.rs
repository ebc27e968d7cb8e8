//! The part of the network that a client is in: the way to it, and the controllers that do not reach it.

use bytemuck::{Pod, Zeroable};

use crate::wire::Address;

/// What this host knows of the clients in one network: an IPv4 /24 or an IPv6 /64. The programs note clients and failures;
/// the agent fills in the way, and clears the bits of controllers that a probe finds to reach the network again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Pod, Zeroable)]
pub struct Network {
    /// The client that was seen last.
    pub client: Address,
    /// This host's address that it dialled.
    pub dialled: Address,
    /// Boot clock, seconds: the time at which it was seen.
    pub seen_s: u32,
    /// Interface towards the network; 0: none that the programs can send by.
    pub ifindex: u32,
    /// [`super::Settings::epoch`] as of which `ifindex` is right; 0: never looked up.
    pub epoch: u32,
    /// Bits by slot: a client here got no connection by a relay to this controller, so none is relayed there.
    pub barred: u16,
    /// Explicit padding.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<Network>() == 48);
const _: () = assert!(super::MAX_CONTROLLERS <= 16);

impl Network {
    /// Nothing known.
    pub const NONE: Self = Self {
        client: Address::UNSPECIFIED,
        dialled: Address::UNSPECIFIED,
        seen_s: 0,
        ifindex: 0,
        epoch: 0,
        barred: 0,
        pad: [0; 2],
    };

    /// The key of the network that `client` is in.
    #[inline(always)]
    pub const fn of(client: &Address) -> Address {
        let [a, b, c, d] = client.words();
        if client.is_v4() {
            Address::from_v6([a, b, c, d & u32::from_be(0xffff_ff00)])
        } else {
            Address::from_v6([a, b, 0, 0])
        }
    }

    /// The slots that clients here are not relayed to, as bits. Each bit has cost a client a second, so two are enough to
    /// tell that the network is the reason: then it is left out of relaying altogether.
    #[inline(always)]
    pub const fn barred(&self) -> u32 {
        let bits = self.barred as u32;
        if bits & bits.wrapping_sub(1) != 0 { 0xffff } else { bits }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn a_network_is_a_24_or_a_64() {
        let rows = [
            ("10.1.2.3", "10.1.2.0"),
            ("10.1.2.255", "10.1.2.0"),
            ("fd00:1:2:3:4:5:6:7", "fd00:1:2:3::"),
            ("2001:db8::1", "2001:db8::"),
        ];
        for (client, network) in rows {
            let parse = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
            assert_eq!(Network::of(&parse(client)), parse(network), "{client}");
        }
    }

    #[test]
    fn two_failures_bar_every_controller() {
        let rows = [(0, 0), (0b1, 0b1), (0b1000, 0b1000), (0b11, 0xffff), (0x8001, 0xffff), (0xffff, 0xffff)];
        for (barred, expected) in rows {
            assert_eq!(Network { barred, ..Network::default() }.barred(), expected, "{barred:b}");
        }
    }
}
