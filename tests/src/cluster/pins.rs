//! A daemon's data path as its pins hold it: records in maps, memory of maps, links.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapType};
use aya::programs::links::{FdLink, PinnedLink};
use balancer_common::records::{Flow, LAYOUT, Tracked, Tuple, map};

use crate::cluster::daemon::Daemon;
use crate::network::neighbour::detach_link;

impl Daemon {
    /// Records of relayed connections in its maps: live ones and handshakes, both directions of each.
    pub fn flows(&self) -> Result<Vec<(Tuple, Flow)>> {
        let flows = [map::LIVE, map::HALF_OPEN].map(|name| records(self.pins(), name));
        flows.into_iter().collect::<Result<Vec<_>>>().map(|flows| flows.concat())
    }

    /// Memory that its maps hold, in bytes, as the kernel accounts for it.
    pub fn map_memory(&self) -> Result<u64> {
        let mut sum = 0;
        for pin in self.pinned("maps")? {
            let map = MapData::from_pin(pin)?;
            let about = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
            let text = fs::read_to_string(&about).with_context(|| format!("failed to read {about}"))?;
            let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
            let bytes = bytes.with_context(|| format!("memlock in {text}"))?.trim();
            sum += bytes.parse::<u64>().with_context(|| text.clone())?;
        }
        Ok(sum)
    }

    /// Its programs' links, by the kernel's numbers.
    pub fn links(&self) -> Result<BTreeSet<u32>> {
        let number = |pin| Ok(FdLink::from(PinnedLink::from_pin(pin)?).info()?.id());
        self.pinned("links")?.into_iter().map(number).collect()
    }

    /// Detaches its programs for arriving packets from every interface, as an operator or other software may.
    pub fn detach_ingress(&self) -> Result<()> {
        let arriving =
            |pin: &PathBuf| pin.file_name().is_some_and(|name| name.as_bytes().starts_with(b"ingress"));
        for pin in self.pinned("links")?.iter().filter(|pin| arriving(pin)) {
            detach_link(pin).with_context(|| format!("failed to detach {}", pin.display()))?;
        }
        Ok(())
    }

    /// Paths of its pins of one kind: `maps` or `links`.
    pub fn pinned(&self, kind: &str) -> Result<Vec<PathBuf>> {
        let directory = self.pins().join(LAYOUT).join(kind);
        let pins = fs::read_dir(&directory).with_context(|| format!("{}", directory.display()))?;
        pins.map(|pin| Ok(pin?.path())).collect()
    }
}

/// Number of records in each table, pinned under `pins`, that must be empty when no client is connected.
pub fn tables(pins: &Path) -> Result<BTreeMap<String, usize>> {
    let mut tables = BTreeMap::new();
    for name in [map::LIVE, map::HALF_OPEN] {
        tables.insert(name.to_owned(), records::<Tuple, Flow>(pins, name)?.len());
    }
    // Not the exempt ones: an agent's own connection to jujud is one of them.
    let clients = records::<u64, Tracked>(pins, map::TRACKED)?;
    let clients = clients.iter().filter(|(_, tracked)| tracked.client != 0);
    tables.insert(map::TRACKED.to_owned(), clients.count());
    Ok(tables)
}

/// The records of the hash map `name`; one that ends meanwhile is passed over.
fn records<K: Pod, V: Pod>(pins: &Path, name: &str) -> Result<Vec<(K, V)>> {
    let data = MapData::from_pin(pins.join(LAYOUT).join("maps").join(name))?;
    let evicts = data.info()?.map_type()? == MapType::LruHash;
    let map = if evicts { Map::LruHashMap(data) } else { Map::HashMap(data) };
    Ok(HashMap::<_, K, V>::try_from(map)?.iter().filter_map(Result::ok).collect())
}
