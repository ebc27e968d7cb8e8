//! Flow records as the agent sees them: listing, and removing in pairs.

use std::collections::HashMap;

use anyhow::{Context, Result};
use aya::maps::{HashMap as HashTable, IterableMap as _, Map, MapData, MapError};
use balancer_common::records::{Flow, Kind, Tuple};

use super::{batch, maps::copy};

/// The two maps of flows.
pub struct Flows {
    live: HashTable<MapData, Tuple, Flow>,
    half_open: HashTable<MapData, Tuple, Flow>,
}

/// A connection's two records at this host. If the record of the first direction is lost, `key` and `flow` are the second's.
#[derive(Clone, Copy, Debug)]
pub struct FlowPair {
    /// Key of the client's direction: [`Kind::Forward`] or [`Kind::Restore`].
    pub key: Tuple,
    /// Its record.
    pub flow: Flow,
    /// The other direction's record, if it is still there.
    pub back: Option<Flow>,
    /// Whether the handshake is complete.
    pub live: bool,
}

impl Flows {
    /// Wraps the maps LIVE and HALF_OPEN.
    pub fn new(live: HashTable<MapData, Tuple, Flow>, half_open: HashTable<MapData, Tuple, Flow>) -> Self {
        Self { live, half_open }
    }

    /// The connections of which `wanted` picks a record. It is shown every record, and whether its handshake is complete.
    pub fn pairs(&self, mut wanted: impl FnMut(&Flow, bool) -> bool) -> Result<Vec<FlowPair>> {
        let mut pairs = Vec::new();
        for (map, live) in [(&self.live, true), (&self.half_open, false)] {
            let mut found = HashMap::new();
            let note = |key: &Tuple, flow: &Flow| {
                if wanted(flow, live) {
                    found.insert(*key, *flow);
                }
            };
            batch::visit(map.map(), note).context("failed to list flows")?;
            pairs.extend(pair_up(&found, live, |key| map.get(key, 0).ok()));
        }
        Ok(pairs)
    }

    /// The same maps for another thread.
    pub fn beside(&self) -> Result<Self> {
        Ok(Self {
            live: Map::HashMap(copy(self.live.map())?).try_into()?,
            half_open: Map::LruHashMap(copy(self.half_open.map())?).try_into()?,
        })
    }

    /// The records at the keys of a listed connection as they are now: perhaps those of another one from the same port.
    pub fn again(&self, pair: &FlowPair) -> Option<FlowPair> {
        let map = if pair.live { &self.live } else { &self.half_open };
        let flow = map.get(&pair.key, 0).ok()?;
        let back = map.get(&flow.opposite(&pair.key), 0).ok();
        Some(FlowPair { flow, back, ..*pair })
    }

    /// Shows `note` every record, and whether its handshake is complete.
    pub fn visit(&self, mut note: impl FnMut(&Tuple, &Flow, bool)) -> Result<()> {
        for (map, live) in [(&self.live, true), (&self.half_open, false)] {
            batch::visit(map.map(), |key, flow| note(key, flow, live)).context("failed to list flows")?;
        }
        Ok(())
    }

    /// The record with this key.
    pub fn get(&self, key: &Tuple) -> Option<Flow> {
        [&self.live, &self.half_open].iter().find_map(|map| map.get(key, 0).ok())
    }

    /// Whether there is a record with this key.
    pub fn has(&self, key: &Tuple) -> bool {
        self.get(key).is_some()
    }

    /// Removes both records of a connection.
    pub fn remove(&mut self, pair: &FlowPair) {
        let opposite = pair.flow.opposite(&pair.key);
        let map = if pair.live { &mut self.live } else { &mut self.half_open };
        for key in [pair.key, opposite] {
            // It may be gone already.
            let _: Result<(), MapError> = map.remove(&key);
        }
    }
}

/// The connections that `found` has a record of. `get` looks up the other record, if it is not in `found`.
fn pair_up(
    found: &HashMap<Tuple, Flow>,
    live: bool,
    get: impl Fn(&Tuple) -> Option<Flow>,
) -> impl Iterator<Item = FlowPair> {
    found.iter().filter_map(move |(&key, &flow)| {
        let opposite = flow.opposite(&key);
        let known = found.get(&opposite).copied();
        let back = known.or_else(|| get(&opposite));
        let is_first = flow.is(Kind::Forward) || flow.is(Kind::Restore);
        match back {
            // The first direction's record stands for both.
            Some(_) if !is_first && known.is_some() => None,
            Some(first) if !is_first => Some(FlowPair { key: opposite, flow: first, back: Some(flow), live }),
            _ => Some(FlowPair { key, flow, back, live }),
        }
    })
}

#[cfg(test)]
mod tests {
    use balancer_common::wire::{Address, Port};
    use bytemuck::Zeroable as _;

    use super::*;

    /// The records that were picked and those in the map; the key and whether both records are listed.
    type Row<'a> = (&'a [Tuple], &'a [Tuple], Option<(Tuple, bool)>);

    #[test]
    fn a_connection_is_listed_once_by_either_of_its_records() {
        let end = |port| (Address::UNSPECIFIED, Port::new(port));
        let (client, relay) = (1, 2);
        let forward = Flow::new(Kind::Forward, 0, end(relay), end(9), 0, 0, 0);
        let key = Tuple { remote_port: Port::new(client), local_port: Port::new(8), ..Tuple::zeroed() };
        let back_key = forward.opposite(&key);
        let back = Flow::new(Kind::Return, 0, end(8), end(client), 0, 0, 0);
        assert_eq!(back.opposite(&back_key), key);
        let all = HashMap::from([(key, forward), (back_key, back)]);
        let rows: &[Row<'_>] = &[
            (&[], &[key, back_key], None),
            (&[key, back_key], &[], Some((key, true))),
            (&[key], &[key, back_key], Some((key, true))),
            (&[back_key], &[key, back_key], Some((key, true))),
            (&[key], &[key], Some((key, false))),
            (&[back_key], &[back_key], Some((back_key, false))),
        ];
        for (picked, present, expected) in rows {
            let of = |keys: &[Tuple]| keys.iter().map(|key| (*key, all[key])).collect::<HashMap<_, _>>();
            let present = of(present);
            let found = of(picked);
            let listed: Vec<_> = pair_up(&found, true, |key| present.get(key).copied())
                .map(|pair| (pair.key, pair.back.is_some()))
                .collect();
            assert_eq!(listed, expected.iter().copied().collect::<Vec<_>>(), "{picked:?}");
        }
    }
}
