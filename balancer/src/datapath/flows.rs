//! Flow records as the agent sees them: listing, and removing in pairs.

use anyhow::{Context, Result};
use aya::maps::{HashMap, IterableMap as _, Map, MapData, MapError};
use balancer_common::records::{Flow, Kind, Tuple};

use super::{batch, maps::copy};

/// The two maps of flows.
pub struct Flows {
    live: HashMap<MapData, Tuple, Flow>,
    half_open: HashMap<MapData, Tuple, Flow>,
}

/// A connection's two records at this host.
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
    pub fn new(live: HashMap<MapData, Tuple, Flow>, half_open: HashMap<MapData, Tuple, Flow>) -> Self {
        Self { live, half_open }
    }

    /// Every connection with a record here. If the record of the first direction is lost, `flow` is the
    /// second.
    pub fn pairs(&self) -> Result<Vec<FlowPair>> {
        let mut pairs = Vec::new();
        for (map, live) in [(&self.live, true), (&self.half_open, false)] {
            let records = batch::records(map.map()).context("failed to list flows")?;
            let records: std::collections::HashMap<Tuple, Flow> = records.into_iter().collect();
            for (key, flow) in &records {
                let back = records.get(&flow.opposite(key)).copied();
                let first = flow.is(Kind::Forward) || flow.is(Kind::Restore);
                if first || back.is_none() {
                    pairs.push(FlowPair { key: *key, flow: *flow, back, live });
                }
            }
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
