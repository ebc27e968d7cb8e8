//! How many connections are open at once: in all, and of one address. A new one beyond that takes the place of the oldest of
//! the address that has the most, so that strangers who only hold connections keep nobody else out.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

/// A connection takes some 50 kB.
const MOST: usize = 2_048;
/// Clients behind one router share an address, and each stays for some milliseconds.
const MOST_OF_ONE: usize = 256;

/// The open connections by address; of IPv6 by the /64 that one host may have to itself.
#[derive(Debug, Default)]
pub(super) struct Bounds(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    all: usize,
    next: u64,
    by_address: HashMap<IpAddr, BTreeMap<u64, oneshot::Sender<()>>>,
}

/// The place of one connection; free again on drop.
#[derive(Debug)]
pub(super) struct Place {
    bounds: Arc<Bounds>,
    address: IpAddr,
    number: u64,
    cut: oneshot::Receiver<()>,
}

impl Bounds {
    /// A place for a connection from `address`.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Place {
        let address = group(address);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.by_address.get(&address).map_or(0, BTreeMap::len) >= MOST_OF_ONE {
            open.cut_oldest(address);
        } else if open.all >= MOST
            && let Some((largest, _)) = open.by_address.iter().max_by_key(|(_, held)| held.len())
        {
            let largest = *largest;
            open.cut_oldest(largest);
        }
        let (keep, cut) = oneshot::channel();
        let number = open.next;
        open.next += 1;
        open.all += 1;
        open.by_address.entry(address).or_default().insert(number, keep);
        Place { bounds: Arc::clone(self), address, number, cut }
    }
}

impl Open {
    fn cut_oldest(&mut self, address: IpAddr) {
        let oldest = self.by_address.get(&address).and_then(|held| held.keys().next().copied());
        if let Some(oldest) = oldest {
            self.remove(address, oldest);
        }
    }

    fn remove(&mut self, address: IpAddr, number: u64) {
        let Some(held) = self.by_address.get_mut(&address) else { return };
        if held.remove(&number).is_some() {
            self.all -= 1;
        }
        if held.is_empty() {
            self.by_address.remove(&address);
        }
    }
}

impl Place {
    /// Waits until another connection takes this place.
    pub(super) async fn is_cut(&mut self) {
        // Nothing is ever sent: the sender is dropped.
        let _: Result<(), _> = (&mut self.cut).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.bounds.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(self.address, self.number);
    }
}

fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn strangers_take_the_places_of_strangers() {
        type Numbered = fn(u32) -> IpAddr;
        let bounds = Arc::new(Bounds::default());
        let mut held: Vec<(&str, Place)> = Vec::new();
        // Addresses, how many connections they open, and how many of them and of "one" have their places since.
        let rows: [(&str, Numbered, u32, usize, usize); 6] = [
            ("one", |_| Ipv4Addr::new(10, 0, 0, 1).into(), 1, 1, 1),
            ("another", |_| Ipv4Addr::new(10, 0, 0, 2).into(), 1_000, MOST_OF_ONE, 1),
            ("the same, mapped", |_| "::ffff:10.0.0.2".parse().unwrap(), 100, 100, 1),
            ("a /64", |n| Ipv6Addr::from_bits(0xfd77 << 112 | u128::from(n)).into(), 1_000, MOST_OF_ONE, 1),
            ("ten", |n| Ipv4Addr::new(10, 1, 0, (n % 10) as u8).into(), 10_000, MOST * 10 / 12, 1),
            ("thousands", |n| Ipv4Addr::from(0x0b00_0000 + n).into(), 1_500, 1_500, 1),
        ];
        for (what, address, opened, kept, of_one) in rows {
            held.extend((0..opened).map(|number| (what, bounds.admit(address(number)))));
            let count = |whose: &str, held: &mut Vec<(&str, Place)>| {
                let is_there =
                    |place: &mut Place| place.cut.try_recv() == Err(oneshot::error::TryRecvError::Empty);
                held.iter_mut()
                    .filter_map(|(name, place)| (*name == whose && is_there(place)).then_some(()))
                    .count()
            };
            let (found, one) = (count(what, &mut held), count("one", &mut held));
            assert!(
                found.abs_diff(kept) <= MOST_OF_ONE / 8 && one == of_one,
                "{what}: {found} of {kept}, {one}"
            );
            assert!(bounds.0.lock().unwrap().all <= MOST, "{what}");
        }
        held.clear();
        let open = bounds.0.lock().unwrap();
        assert!(open.all == 0 && open.by_address.is_empty());
    }
}
