//! The maps as the agent sees them.

use std::{net::IpAddr, path::Path};

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf,
    maps::{
        Array, HashMap, MapData, MapError, MapInfo, PerCpuArray, SockMap,
        lpm_trie::{Key, LpmTrie},
    },
};
use balancer_common::{
    records::{
        AddressClass, Budget, Controller, Device, LISTENER_V4, LISTENER_V6, Lifetime, MAPS, MAX_CONTROLLERS,
        Map, Network, Probe, Settings, Tracked, Traffic, Tuple, map,
    },
    verdict,
    wire::Address,
};

use crate::count::sock_diag::{Family, Listener};

use super::flows::Flows;

/// All counters by name, summed over the CPUs.
pub type Counters = std::collections::BTreeMap<&'static str, u64>;

/// The maps, typed.
pub struct Maps {
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

    /// Gives every prefix in `wanted` its class, and no other any.
    pub fn set_address_classes(&mut self, wanted: &[(IpAddr, u8, AddressClass)]) -> Result<()> {
        let mut keys = Vec::with_capacity(wanted.len());
        for &(address, bits, member) in wanted {
            // Bits count from the start of the v4-mapped address.
            let bits = u32::from(bits) + if address.is_ipv4() { 96 } else { 0 };
            let key = Key::new(bits, bytemuck::cast(Address::from(address)));
            self.classes
                .insert(&key, member, 0)
                .with_context(|| format!("failed to class {address}/{bits}"))?;
            keys.push((bits, key.data()));
        }
        let stale: Vec<_> = self.classes.keys().collect::<Result<_, MapError>>()?;
        for key in stale.iter().filter(|key| !keys.contains(&(key.prefix_len(), key.data()))) {
            self.classes.remove(key).context("failed to remove a class")?;
        }
        Ok(())
    }

    /// Describes the devices of this host, and no others.
    pub fn set_devices(&mut self, wanted: &[(u32, Device)]) -> Result<()> {
        for (index, device) in wanted {
            self.devices.insert(index, device, 0).context("failed to describe a device")?;
        }
        let known: Vec<u32> = self.devices.keys().collect::<Result<_, MapError>>()?;
        for index in known.iter().filter(|index| !wanted.iter().any(|(wanted, _)| wanted == *index)) {
            self.devices.remove(index).context("failed to forget a device")?;
        }
        Ok(())
    }

    /// Gives relayed connections to this listener.
    pub fn set_listener(&mut self, listener: &Listener) -> Result<()> {
        let slot = match listener.family {
            Family::V4 => LISTENER_V4,
            Family::V6 => LISTENER_V6,
        };
        self.listeners.set(slot, &listener.fd, 0).context("failed to note the API's listener")
    }

    /// Counts connections by client address: `wanted` where there is a limit for each, else none.
    pub fn set_clients(&mut self, wanted: &std::collections::HashMap<IpAddr, u32>) -> Result<()> {
        let known: Vec<Address> = self.clients.keys().collect::<Result<_, MapError>>()?;
        for address in known {
            self.clients.remove(&address).context("failed to forget a client's count")?;
        }
        for (&address, &established) in wanted {
            let budget = Budget { established, ..Budget::default() };
            self.clients.insert(Address::from(address), budget, 0).context("failed to count a client")?;
        }
        Ok(())
    }

    /// Forgets client addresses that have no connection and no handshake at boot second `now_s`.
    pub fn forget_idle_clients(&mut self, now_s: u32) -> Result<()> {
        let known: Vec<(Address, Budget)> = self.clients.iter().collect::<Result<_, MapError>>()?;
        for (address, mut budget) in known {
            budget.advance(now_s);
            if budget.established == 0 && budget.in_progress() == 0 {
                self.clients.remove(&address).context("failed to forget a client's count")?;
            }
        }
        Ok(())
    }

    /// Sees to it that a client is not refused for another controller's sake for a while from `now_ns` on (boot clock).
    pub fn note_refused(&mut self, client: IpAddr, now_ns: u64) -> Result<()> {
        self.recently_refused.insert(Address::from(client), now_ns, 0).context("failed to spare a client")
    }

    /// The networks that clients were seen in.
    pub fn networks(&self) -> Result<Vec<(Address, Network)>> {
        let networks = self.networks.iter().collect::<Result<_, MapError>>();
        networks.context("failed to read the clients' networks")
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
        self.tracked.iter().collect::<Result<_, MapError>>().context("failed to read the counted sockets")
    }

    /// Counts a socket that the programs did not see.
    pub fn track(&mut self, cookie: u64, tracked: Tracked) -> Result<()> {
        self.tracked.insert(cookie, tracked, 0).context("failed to note a socket")
    }

    /// Counts a socket no more. `false`: it was not counted.
    pub fn untrack(&mut self, cookie: u64) -> bool {
        self.tracked.remove(&cookie).is_ok()
    }
}

/// The maps that outlive the agent.
pub fn pinned() -> impl Iterator<Item = Map> {
    MAPS.into_iter().filter(|map| map.lifetime != Lifetime::Scratch)
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
