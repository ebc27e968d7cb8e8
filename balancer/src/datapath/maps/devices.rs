//! Room in the map of devices: its capacity fits the host.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use balancer_common::records::{Device, MAPS, map};

/// Capacity of the map of devices on a host that has `count` of them.
fn room_for_devices(count: usize) -> u32 {
    let least = MAPS.iter().find(|map| map.name == map::DEVICES).map_or(0, |map| map.capacity);
    let room = count.saturating_mul(2).max(least).checked_next_power_of_two();
    room.and_then(|room| u32::try_from(room).ok()).unwrap_or(u32::MAX >> 1)
}

/// The capacity of the map of devices for a host that has `count` of them. A map pinned in `directory` that is too small
/// gives way; its records are returned for the next one.
pub fn make_room_for_devices(directory: &Path, count: usize) -> Result<(u32, Vec<(u32, Device)>)> {
    let room = room_for_devices(count);
    let pin = directory.join(map::DEVICES);
    if !pin.exists() {
        return Ok((room, Vec::new()));
    }
    let pinned = MapData::from_pin(&pin).with_context(|| format!("failed to open {}", pin.display()))?;
    let has_room = pinned.info()?.max_entries();
    if has_room as usize >= count {
        return Ok((has_room, Vec::new()));
    }
    let known: HashMap<_, u32, Device> = HashMap::try_from(aya::maps::Map::HashMap(pinned))?;
    let known = known.iter().collect::<Result<_, MapError>>()?;
    fs::remove_file(&pin).with_context(|| format!("failed to remove {}", pin.display()))?;
    Ok((room, known))
}

/// Describes devices in a loaded object.
pub fn describe_devices(ebpf: &mut Ebpf, known: &[(u32, Device)]) -> Result<()> {
    let map = ebpf.map_mut(map::DEVICES).context("the object lacks the map of devices")?;
    let mut devices: HashMap<&mut MapData, u32, Device> = map.try_into()?;
    for (index, device) in known {
        devices.insert(index, device, 0).context("failed to describe a device")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_of_devices_has_room_for_twice_as_many() {
        let rows = [(0, 1_024), (512, 1_024), (513, 2_048), (5_000, 16_384), (usize::MAX, u32::MAX >> 1)];
        for (count, room) in rows {
            assert_eq!(room_for_devices(count), room, "{count}");
        }
    }
}
