//! Upgrade from another layout of the maps: an agent of another version starts, and relayed connections go
//! on.
//!
//! The new version's programs get their own maps, beside the old version's ([`LAYOUT`] names their
//! directory). Then
//!
//! 1. the agent copies the records that must go on: flows, the controllers' slots (which hold the relay
//!    ports), and the operator's settings;
//! 2. it adopts the links: each gets its new program in one step, as at any start;
//! 3. it repeats the old programs' later changes to flows on the copies, just before the packet programs
//!    change and again after, and removes the old maps. In between, the new programs know that they do not
//!    know every flow ([`Settings::upgrading`]).
//!
//! Counts are not copied: they are made again from the kernel's list of sockets, as at a first start. If an
//! agent is killed midway, its remains are still an older layout, and the next agent does it all again. If 1
//! or 2 fails, the links go back. Maps that no agent ever filled, because it was killed in its first moments,
//! are of no use and are removed.
//!
//! [`LAYOUT`]: balancer_common::records::LAYOUT

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    mem::offset_of,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use balancer_common::records::{Flow, Lifetime, MAPS, Settings, map};

use super::{
    pins::{layouts, remove_layout},
    records::Records,
};

type Copies = HashMap<Vec<u8>, Vec<u8>>;

/// The data path of another version that is being replaced.
#[derive(Debug)]
pub struct Older {
    layout: PathBuf,
    /// The last copy of each followed map, by name.
    copied: HashMap<&'static str, Copies>,
    /// Adopted links.
    adopted: Vec<OsString>,
}

impl Older {
    /// All data paths under `pins` except `layout` that were ever active; removes those that were not.
    pub fn all(pins: &Path, layout: &Path) -> Result<Vec<Self>> {
        let mut others: Vec<_> = layouts(pins).filter(|path| path != layout).collect();
        others.sort();
        let mut at_work = Vec::new();
        for layout in others {
            if was_active(&layout)? {
                at_work.push(Self { layout, copied: HashMap::new(), adopted: Vec::new() });
            } else {
                remove_layout(&layout);
            }
        }
        Ok(at_work)
    }

    /// The name of its layout.
    pub fn name(&self) -> String {
        self.layout.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Copies the records that must go on into the maps of `layout`, and adopts the links. An error names the
    /// map; the older data path then stays active, and [`Older::give_back`] returns the links.
    pub fn take_over(&mut self, layout: &Path) -> Result<()> {
        for name in names(Lifetime::Copied) {
            let Some((from, into)) = self.pair(layout, name)? else { continue };
            for (key, value) in from.all()? {
                into.set(&key, &mut fitted(&value, into.value_size()))?;
            }
        }
        self.copy_flows(layout)?;
        for link in fs::read_dir(self.layout.join("links")).into_iter().flatten().flatten() {
            let (old, new) = (link.path(), layout.join("links").join(link.file_name()));
            if !new.exists() {
                fs::rename(&old, &new).with_context(|| format!("failed to adopt {}", old.display()))?;
                self.adopted.push(link.file_name());
            }
        }
        Ok(())
    }

    /// Undoes the adoption of links that still run the older programs.
    pub fn give_back(&self, layout: &Path) {
        for name in &self.adopted {
            let (old, new) = (self.layout.join("links").join(name), layout.join("links").join(name));
            if let Err(error) = fs::rename(&new, &old) {
                log::warn!("failed to move {} back to {}: {error}", new.display(), old.display());
            }
        }
    }

    /// Updates the copies, once no program of the older version runs any more, and removes the older data
    /// path. Returns the number of flow records that went on.
    pub fn finish(mut self, layout: &Path) -> Result<usize> {
        self.copy_flows(layout)?;
        remove_layout(&self.layout);
        Ok(self.copied.values().map(HashMap::len).sum())
    }

    /// Updates the copies of flows.
    pub fn copy_flows(&mut self, layout: &Path) -> Result<()> {
        for name in names(Lifetime::Followed) {
            let Some((from, into)) = self.pair(layout, name)? else { continue };
            let now: Copies = from.all()?.into_iter().collect();
            let before = self.copied.entry(name).or_default();
            copy(before, &now, &into).with_context(|| format!("failed to copy the map {name}"))?;
            *before = now;
        }
        Ok(())
    }

    /// A map of the older version and the one that replaces it; `None` if the older version has no such map.
    fn pair(&self, layout: &Path, name: &str) -> Result<Option<(Records, Records)>> {
        let pin = self.layout.join("maps").join(name);
        if !pin.exists() {
            return Ok(None);
        }
        let (from, into) = (Records::open(&pin)?, Records::open(&layout.join("maps").join(name))?);
        ensure!(
            from.key_size() == into.key_size(),
            "the map {} has other keys than this version's, so that relayed connections cannot go on; let them end by \
             `balancer drain`, run `balancer uninstall`, and start again",
            pin.display()
        );
        Ok(Some((from, into)))
    }
}

/// Names of the maps of a lifetime.
fn names(lifetime: Lifetime) -> impl Iterator<Item = &'static str> {
    MAPS.into_iter().filter(move |map| map.lifetime == lifetime).map(|map| map.name)
}

/// Whether an agent has ever filled in the maps of `layout`: an agent killed in its first moments has not.
pub fn was_active(layout: &Path) -> Result<bool> {
    let pin = layout.join("maps").join(map::SETTINGS);
    if !pin.exists() {
        return Ok(false);
    }
    let settings = Records::open(&pin)?.all()?;
    Ok(settings.iter().any(|(_, record)| record.get(offset_of!(Settings, active)).is_some_and(|&on| on != 0)))
}

/// Repeats on `into` the changes from `before`, the records at the last copy, to `now`. Changes that others
/// have made to `into` meanwhile stay.
fn copy(before: &Copies, now: &Copies, into: &Records) -> Result<()> {
    let size = into.value_size();
    for (key, value) in now.iter().filter(|(key, value)| before.get(*key) != Some(value)) {
        let mut value = fitted(value, size);
        if into.add(key, &mut value)? {
            continue;
        }
        let Some(mut newer) = into.get(key)? else { continue };
        if before.get(key).is_some_and(|copied| fitted(copied, size) == newer) {
            into.set(key, &mut value)?;
        } else {
            // Both have seen packets: FIN and RST of either count.
            let state = offset_of!(Flow, state);
            newer[state] |= value[state];
            into.set(key, &mut newer)?;
        }
    }
    for (key, copied) in before.iter().filter(|(key, _)| !now.contains_key(*key)) {
        if into.get(key)?.is_some_and(|newer| newer == fitted(copied, size)) {
            into.remove(key);
        }
    }
    Ok(())
}

/// Resizes a record of another version to `size` bytes. Records grow at their ends, by fields whose zero
/// stands for the earlier behaviour.
fn fitted(value: &[u8], size: usize) -> Vec<u8> {
    let mut value = value.to_vec();
    value.resize(size, 0);
    value
}
