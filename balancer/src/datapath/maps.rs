//! The maps as the agent sees them.

mod devices;
mod lookups;

pub use self::{
    devices::{describe_devices, make_room_for_devices},
    lookups::Classes,
};

use std::{collections::HashSet, net::IpAddr, os::fd::AsFd as _, path::Path};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    maps::{
        Array, HashMap, IterableMap, MapData, MapError, MapInfo, PerCpuArray, SockMap,
        lpm_trie::{Key, LpmTrie},
    },
};
use balancer_common::{
    records::{
        AddressClass, Budget, Controller, Device, LISTENER_MUTE, LISTENER_V4, LISTENER_V6, Lifetime, MAPS,
        MAX_CONTROLLERS, Map, Network, Probe, Settings, Tracked, Traffic, Tuple, map,
    },
    verdict,
    wire::Address,
};

use crate::{
    count::sock_diag::{Family, Listener},
    host::mute::Mute,
};

use super::{batch, flows::Flows};

/// All counters by name, summed over the CPUs.
pub type Counters = std::collections::BTreeMap<&'static str, u64>;

/// The maps, typed.
pub struct Maps {
    awaited: Array<MapData, u32>,
    budget: Array<MapData, Budget>,
    clients: HashMap<MapData, Address, Budget>,
    controllers: Array<MapData, Controller>,
    counters: PerCpuArray<MapData, u64>,
    devices: HashMap<MapData, u32, Device>,
    /// Flows, live and half-open.
    pub flows: Flows,
    listeners: SockMap<MapData>,
    networks: HashMap<MapData, Address, Network>,
    probes: HashMap<MapData, Tuple, Probe>,
    classes: LpmTrie<MapData, [u8; 16], AddressClass>,
    settings: Array<MapData, Settings>,
    recently_refused: HashMap<MapData, Address, u64>,
    tracked: HashMap<MapData, u64, Tracked>,
    traffic: Array<MapData, Traffic>,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut map =
            |name: &'static str| ebpf.take_map(name).with_context(|| format!("the object lacks map {name}"));
        Ok(Self {
            awaited: map(map::AWAITED)?.try_into()?,
            budget: map(map::BUDGET)?.try_into()?,
            clients: map(map::CLIENTS)?.try_into()?,
            controllers: map(map::CONTROLLERS)?.try_into()?,
            counters: map(map::COUNTERS)?.try_into()?,
            devices: map(map::DEVICES)?.try_into()?,
            flows: Flows::new(map(map::LIVE)?.try_into()?, map(map::HALF_OPEN)?.try_into()?),
            listeners: map(map::LISTENERS)?.try_into()?,
            networks: map(map::NETWORKS)?.try_into()?,
            probes: map(map::PROBES)?.try_into()?,
            classes: map(map::ADDRESSES)?.try_into()?,
            settings: map(map::SETTINGS)?.try_into()?,
            recently_refused: map(map::RECENTLY_REFUSED)?.try_into()?,
            tracked: map(map::TRACKED)?.try_into()?,
            traffic: map(map::TRAFFIC)?.try_into()?,
        })
    }

    /// The budget as of now; fields of different moments may meet.
    pub fn budget(&self) -> Result<Budget> {
        self.budget.get(&0, 0).context("failed to read the budget")
    }

    /// Lets the programs wake the agent at the next change of the count ([`super::News`]).
    pub fn await_news(&mut self) -> Result<()> {
        self.awaited.set(0, 1, 0).context("failed to ask for news of the count")
    }

    /// The settings in force.
    pub fn settings(&self) -> Result<Settings> {
        self.settings.get(&0, 0).context("failed to read the settings")
    }

    /// Puts settings in force.
    pub fn set_settings(&mut self, settings: &Settings) -> Result<()> {
        self.settings.set(0, settings, 0).context("failed to write the settings")
    }

    /// The controller in a slot.
    pub fn controller(&self, slot: usize) -> Result<Controller> {
        self.controllers.get(&(slot as u32), 0).context("failed to read a controller")
    }

    /// Replaces the controller in a slot.
    pub fn set_controller(&mut self, slot: usize, controller: &Controller) -> Result<()> {
        self.controllers.set(slot as u32, controller, 0).context("failed to write a controller")
    }

    /// All slots.
    pub fn controllers(&self) -> Result<Vec<Controller>> {
        (0..MAX_CONTROLLERS).map(|slot| self.controller(slot)).collect()
    }

    /// The connections exchanged with the controller in a slot.
    pub fn traffic(&self, slot: usize) -> Result<Traffic> {
        self.traffic.get(&(slot as u32), 0).context("failed to read what was exchanged with a controller")
    }

    /// The counter at `index`, summed over the CPUs.
    pub fn counter(&self, index: u32) -> Result<u64> {
        let per_cpu = self.counters.get(&index, 0).context("failed to read a counter")?;
        Ok(per_cpu.iter().sum())
    }

    /// Every counter.
    pub fn counters(&self) -> Result<Counters> {
        let mut counters = Counters::new();
        for (index, name) in verdict::names().into_iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            counters.insert(name, self.counter(index as u32)?);
        }
        Ok(counters)
    }

    /// Gives every prefix in `wanted` its class, the last one of several, and no other any. The first ones, loopback
    /// aside, are left out if they are too many. Returns how many there are, and the most that there is room for.
    pub fn set_address_classes(&mut self, wanted: &[(IpAddr, u8, AddressClass)]) -> Result<[usize; 2]> {
        let room = IterableMap::<_, AddressClass>::map(&self.classes).info()?.max_entries() as usize;
        let wanted = last_of_each(wanted);
        let key = |&(address, bits, _): &(IpAddr, u8, AddressClass)| {
            // Bits count from the start of the v4-mapped address.
            let bits = u32::from(bits) + if address.is_ipv4() { 96 } else { 0 };
            Key::new(bits, bytemuck::cast::<Address, [u8; 16]>(Address::from(address)))
        };
        let fitting = wanted.get(..room).unwrap_or(&wanted);
        let keys: HashSet<_> = fitting.iter().map(key).map(|key| (key.prefix_len(), key.data())).collect();
        let known: Vec<_> = self.classes.keys().collect::<Result<_, MapError>>()?;
        for key in known.iter().filter(|key| !keys.contains(&(key.prefix_len(), key.data()))) {
            self.classes.remove(key).context("failed to remove a class")?;
        }
        for one in fitting {
            let class = self.classes.insert(&key(one), one.2, 0);
            class.with_context(|| format!("failed to class {}/{}", one.0, one.1))?;
        }
        Ok([wanted.len(), room])
    }

    /// Describes the devices of this host, and no others; the last ones are left out if they are too many. Returns the
    /// most that there is room for.
    pub fn set_devices(&mut self, wanted: &[(u32, Device)]) -> Result<usize> {
        let room = self.devices.map().info()?.max_entries() as usize;
        let wanted = wanted.get(..room).unwrap_or(wanted);
        let indices: HashSet<u32> = wanted.iter().map(|(index, _)| *index).collect();
        let known: Vec<u32> = self.devices.keys().collect::<Result<_, MapError>>()?;
        for index in known.iter().filter(|index| !indices.contains(index)) {
            self.devices.remove(index).context("failed to forget a device")?;
        }
        for (index, device) in wanted {
            self.devices.insert(index, device, 0).context("failed to describe a device")?;
        }
        Ok(room)
    }

    /// Gives relayed connections to this listener.
    pub fn set_listener(&mut self, listener: &Listener) -> Result<()> {
        let slot = match listener.family {
            Family::V4 => LISTENER_V4,
            Family::V6 => LISTENER_V6,
        };
        self.listeners.set(slot, &listener.fd, 0).context("failed to note the API's listener")
    }

    /// Notes the listener that takes segments to which the stack must not answer.
    pub fn set_mute(&mut self, listener: &Mute) -> Result<()> {
        self.listeners.set(LISTENER_MUTE, listener, 0).context("failed to note the mute listener")
    }

    /// Counts connections by client address: `wanted` where there is a limit for each, else none.
    pub fn set_clients(&mut self, wanted: &std::collections::HashMap<IpAddr, u32>) -> Result<()> {
        let known: Vec<Address> = self.clients.keys().collect::<Result<_, MapError>>()?;
        for address in known {
            self.clients.remove(&address).context("failed to forget a client's count")?;
        }
        for (&address, &established) in wanted {
            let budget = Budget { established, ..Budget::default() };
            // Where the map is full, the programs do without, too.
            let _: Result<(), MapError> = self.clients.insert(Address::from(address), budget, 0);
        }
        Ok(())
    }

    /// The connections of each client address, as the programs count them.
    pub fn clients(&self) -> Result<std::collections::HashMap<IpAddr, u32>> {
        let known: Vec<(Address, Budget)> =
            batch::records(self.clients.map()).context("failed to read the clients' counts")?;
        Ok(known.into_iter().map(|(address, budget)| (address.into(), budget.established)).collect())
    }

    /// Corrects the connections of a client address. The record's lock keeps the fields together; a change that the
    /// programs make between look and write is lost, and the next audit finds it.
    pub fn set_client(&mut self, address: IpAddr, established: u32) {
        const BPF_F_LOCK: u64 = 4;
        let key = Address::from(address);
        let known = self.clients.get(&key, BPF_F_LOCK);
        let flags = if known.is_ok() { BPF_F_LOCK } else { 0 };
        let budget = Budget { established, ..known.unwrap_or_default() };
        // A full map takes no other address; the programs do without its count, too.
        let _: Result<(), MapError> = self.clients.insert(key, budget, flags);
    }

    /// Forgets client addresses that have no connection and no handshake at boot second `now_s`. Returns how many are
    /// left, and the most that there is room for.
    pub fn forget_idle_clients(&mut self, now_s: u32) -> Result<[usize; 2]> {
        let known: Vec<(Address, Budget)> = batch::records(self.clients.map())?;
        let mut left = known.len();
        for (address, mut budget) in known {
            budget.advance(now_s);
            if budget.established == 0 && budget.in_progress() == 0 {
                self.clients.remove(&address).context("failed to forget a client's count")?;
                left -= 1;
            }
        }
        Ok([left, self.clients.map().info()?.max_entries() as usize])
    }

    /// Sees to it that a client is not refused for another controller's sake for a while from `now_ns` on (boot clock).
    pub fn note_refused(&mut self, client: IpAddr, now_ns: u64) -> Result<()> {
        self.recently_refused.insert(Address::from(client), now_ns, 0).context("failed to spare a client")
    }

    /// The networks that clients were seen in.
    pub fn networks(&self) -> Result<Vec<(Address, Network)>> {
        batch::records(self.networks.map()).context("failed to read the clients' networks")
    }

    /// Allows relays from a network to the controller in `slot` again.
    pub fn unbar(&mut self, network: &Address, slot: usize) -> Result<()> {
        // It may have given way to another one.
        let Ok(mut record) = self.networks.get(network, 0) else { return Ok(()) };
        record.barred &= !(1 << slot);
        self.networks.insert(network, record, 0).context("failed to write a network")
    }

    /// Keeps relays from a network from the controller in `slot`.
    pub fn bar(&mut self, network: &Address, slot: usize) -> Result<()> {
        let Ok(mut record) = self.networks.get(network, 0) else { return Ok(()) };
        record.barred |= 1 << slot;
        self.networks.insert(network, record, 0).context("failed to write a network")
    }

    /// Tells the programs about a relay that the agent is to open.
    pub fn set_probe(&mut self, key: &Tuple, probe: &Probe) -> Result<()> {
        self.probes.insert(key, probe, 0).context("failed to note a probe")
    }

    /// Forgets it.
    pub fn forget_probe(&mut self, key: &Tuple) {
        // It is gone where the maps were made anew.
        let _: Result<(), MapError> = self.probes.remove(key);
    }

    /// Notes the way to a network, unless it was forgotten meanwhile. A change that the programs make at this very moment
    /// may be lost.
    pub fn set_way(&mut self, network: &Address, ifindex: u32, epoch: u32) -> Result<()> {
        const BPF_EXIST: u64 = 2;
        let written = self
            .networks
            .get(network, 0)
            .and_then(|known| self.networks.insert(network, Network { ifindex, epoch, ..known }, BPF_EXIST));
        match written {
            Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(())
            }
            written => written.context("failed to note the way to a client"),
        }
    }

    /// All counted sockets by cookie.
    pub fn tracked(&self) -> Result<std::collections::HashMap<u64, Tracked>> {
        let tracked = batch::records(self.tracked.map()).context("failed to read the counted sockets")?;
        Ok(tracked.into_iter().collect())
    }

    /// The note of a counted socket.
    pub fn note_of(&self, cookie: u64) -> Option<Tracked> {
        self.tracked.get(&cookie, 0).ok()
    }

    /// Counts a socket that the programs did not see.
    pub fn track(&mut self, cookie: u64, tracked: Tracked) -> Result<()> {
        self.tracked.insert(cookie, tracked, 0).context("failed to note a socket")
    }

    /// Replaces the note of a socket. `false`: it has ended.
    pub fn retrack(&mut self, cookie: u64, tracked: Tracked) -> Result<bool> {
        const BPF_EXIST: u64 = 2;
        match self.tracked.insert(cookie, tracked, BPF_EXIST) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(false)
            }
            Err(error) => Err(error).context("failed to note a socket's class"),
        }
    }

    /// Counts a socket no more. `false`: it was not counted.
    pub fn untrack(&mut self, cookie: u64) -> bool {
        self.tracked.remove(&cookie).is_ok()
    }
}

/// `map` by a descriptor of its own, for another thread.
pub fn copy(map: &MapData) -> Result<MapData> {
    let copy = || -> Result<MapData> { Ok(MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)?) };
    copy().context("failed to copy the descriptor of a map")
}

/// The maps that outlive the agent.
pub fn pinned() -> impl Iterator<Item = Map> {
    MAPS.into_iter().filter(|map| map.lifetime != Lifetime::Scratch)
}

/// The last class of each prefix, in the reverse order but for loopback, which comes first.
fn last_of_each(wanted: &[(IpAddr, u8, AddressClass)]) -> Vec<(IpAddr, u8, AddressClass)> {
    let mut seen = HashSet::new();
    let last = wanted.iter().rev().filter(|(address, bits, _)| seen.insert((*address, *bits)));
    let mut last: Vec<_> = last.copied().collect();
    last.sort_by_key(|(address, ..)| !address.is_loopback());
    last
}

/// Refuses pinned maps of another shape: the loader takes them by name alone.
pub fn check_shapes(directory: &Path) -> Result<()> {
    for map in pinned() {
        let pin = directory.join(map.name);
        if !pin.exists() {
            continue;
        }
        let info =
            MapInfo::from_pin(&pin).with_context(|| format!("failed to open the map {}", pin.display()))?;
        if (info.key_size() as usize, info.value_size() as usize) != (map.key, map.value) {
            bail!("the map {} has another shape; run `balancer uninstall` and start again", pin.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_class_of_a_prefix_holds_and_loopback_comes_first() {
        use balancer_common::records::Class;
        let class = |class| AddressClass::new(class, 0);
        let row = |address: &str, class| (address.parse().unwrap(), 32, class);
        let (exempt, own) = (class(Class::Exempt), class(Class::Own));
        let wanted = [
            row("127.0.0.0", exempt),
            row("10.0.0.1", exempt),
            row("10.0.0.2", exempt),
            row("10.0.0.1", own),
            row("10.0.0.3", own),
        ];
        let expected =
            [row("127.0.0.0", exempt), row("10.0.0.3", own), row("10.0.0.1", own), row("10.0.0.2", exempt)];
        assert_eq!(last_of_each(&wanted), expected);
    }
}
