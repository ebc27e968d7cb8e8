//! Flow records as the agent sees them: listing, and removing in pairs.

use anyhow::{Context, Result};
use aya::maps::{HashMap, MapData, MapError};
use balancer_common::records::{Flow, Kind, Tuple};

/// The two maps of flows.
pub struct Flows {
    live: HashMap<MapData, Tuple, Flow>,
    half_open: HashMap<MapData, Tuple, Flow>,
}

/// A connection's two records at this host.
#[derive(Clone, Copy, Debug)]
pub struct FlowPair {
    /// Key of the direction that the client talks in: [`Kind::Forward`] or [`Kind::Restore`].
    pub key: Tuple,
    /// Its record.
    pub flow: Flow,
    /// The other direction's record, if it is still there.
    pub back: Option<Flow>,
    /// Whether its handshake is complete.
    pub live: bool,
}

impl Flows {
    /// Over the maps LIVE and HALF_OPEN.
    pub fn new(live: HashMap<MapData, Tuple, Flow>, half_open: HashMap<MapData, Tuple, Flow>) -> Self {
        Self { live, half_open }
    }

    /// Every connection that has a record here. Records that lost their first direction come with
    /// the second as `flow`.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn pairs(&self) -> Result<Vec<FlowPair>> {
        let mut pairs = Vec::new();
        for (map, live) in [(&self.live, true), (&self.half_open, false)] {
            let records: std::collections::HashMap<Tuple, Flow> =
                map.iter().collect::<Result<_, MapError>>().context("failed to list flows")?;
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

    /// Removes both records of a connection.
    pub fn remove(&mut self, pair: &FlowPair) {
        let opposite = pair.flow.opposite(&pair.key);
        let map = if pair.live { &mut self.live } else { &mut self.half_open };
        for key in [pair.key, opposite] {
            // One that is gone already is as good.
            let _: Result<(), MapError> = map.remove(&key);
        }
    }
}
