//! The programs in the kernel, one packet at a time: `BPF_PROG_TEST_RUN` on the real object and real maps.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap as BpfMap, Map, MapData, MapError, PerCpuArray, ProgramArray};
use aya::programs::{SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use balancer::datapath::{Kernel as Ability, load_object, place_stages};
use balancer::host::privileges::raise_limits;
use balancer_common::hooks::Socket;
use balancer_common::records::{AddressClass, MAPS, MAX_CONTROLLERS, Reservation, Traffic, Tuple, map};
use balancer_common::verdict::COUNTER_SLOTS;
use balancer_common::wire::Address;
use nix::sched::{CloneFlags, unshare};
use nix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket as Socket2, Type};

use crate::packet::host::{Hook, World, named, prefix_length};
use crate::packet::testrun::{CHECKSUM_COMPLETE, test_run, test_runs};
use crate::support::eventually::{SOON, eventually};
use crate::support::process::feed;

/// The interface that packets come in by, and its peer.
pub const INTERFACES: [u32; 2] = [7, 8];

/// Room of the larger tables: more than any row needs, and smaller tables that evict do so early.
const LEAST: usize = 4096;

/// No program makes a frame longer than this: a trailer, a RST, a word in front of it.
const GROWTH: usize = 256;

/// The loaded programs and their maps.
pub struct Kernel {
    ebpf: Ebpf,
    /// The kernel empties a program array once no process holds it any more.
    _stages: [ProgramArray<MapData>; 2],
    room: usize,
}

/// The result of running a program on a packet.
#[derive(Debug)]
pub struct Ran {
    /// The TC code.
    pub code: i32,
    /// The frame after the program.
    pub frame: Vec<u8>,
}

/// The result of running `ingress_xdp` on a packet.
#[derive(Debug)]
pub struct RanXdp {
    /// The frame's destination.
    pub left: Left,
    /// The bytes in front of the frame, if the program made room there, and the frame.
    pub out: Vec<u8>,
}

/// Destinations of a frame after an XDP program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Left {
    /// To the next programs and the stack.
    Up,
    /// Dropped.
    Dropped,
    /// Out of the interface where it came in.
    Back,
}

/// Makes the maps, not pinned, and loads all programs. If the verifier rejects one, the error holds its log.
pub fn load() -> Result<Ebpf> {
    load_set(|_| {})
}

fn load_set(set: impl FnOnce(&mut EbpfLoader<'_>)) -> Result<Ebpf> {
    // Linux 5.10 counts maps and programs against this limit, and releases freed memory only after a while.
    raise_limits()?;
    load_object(&Ability::ask()?, set)
}

impl Kernel {
    /// Loads all programs; their maps are not pinned and go with this value. Tables have room for `most`
    /// records, and some more: they are listed for each row, and the kernel looks into every bucket.
    pub fn load(most: usize) -> Result<Self> {
        let room = most.max(LEAST) as u32;
        let mut ebpf = load_set(|loader| {
            for map in MAPS.iter().filter(|map| map.capacity > LEAST) {
                loader.map_max_entries(map.name, room);
            }
        })?;
        let stages = place_stages(&mut ebpf)?;
        Ok(Self { ebpf, _stages: stages, room: room as usize })
    }

    /// The number of records that the tables have room for.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Fills the maps with the contents of `world`.
    pub fn fill(&mut self, world: &World) -> Result<()> {
        self.array(map::SETTINGS)?.set(0, world.settings, 0)?;
        self.array(map::BUDGET)?.set(0, world.budget, 0)?;
        self.all(map::CONTROLLERS, &world.controllers)?;
        self.all(map::TRAFFIC, &world.traffic)?;
        self.replace(map::LIVE, &world.live)?;
        self.replace(map::HALF_OPEN, &world.half_open)?;
        self.replace(map::FRAGMENTS, &world.fragments)?;
        self.replace(map::NETWORKS, &world.networks)?;
        self.replace(map::PROBES, &world.probes)?;
        self.replace(map::RESERVED, &world.reserved)?;
        self.replace(map::CLIENTS, &world.clients)?;
        self.replace(map::RECENTLY_REFUSED, &world.recently_refused)?;
        self.replace(map::DEVICES, &world.devices)?;
        let mut classes: LpmTrie<&mut MapData, [u8; 16], AddressClass> =
            LpmTrie::try_from(self.map_mut(map::ADDRESSES)?)?;
        let old: Vec<_> = classes.keys().collect::<Result<_, _>>()?;
        for key in old {
            classes.remove(&key)?;
        }
        for &(address, length, class) in &world.classes {
            let key = Key::new(prefix_length(address, length), bytemuck::cast(Address::from(address)));
            classes.insert(&key, class, 0)?;
        }
        Ok(())
    }

    /// The contents of the maps; the rest comes from `world`.
    pub fn world(&mut self, world: &World) -> Result<World> {
        let traffic: Array<&mut MapData, Traffic> = self.array(map::TRAFFIC)?;
        let traffic = (0..MAX_CONTROLLERS as u32).map(|index| traffic.get(&index, 0));
        let traffic: Vec<Traffic> = traffic.collect::<Result<_, _>>()?;
        Ok(World {
            traffic: std::array::from_fn(|index| traffic[index]),
            live: self.contents(map::LIVE)?,
            half_open: self.contents(map::HALF_OPEN)?,
            fragments: self.contents(map::FRAGMENTS)?,
            networks: self.contents(map::NETWORKS)?,
            reserved: self.contents::<Tuple, Reservation>(map::RESERVED)?,
            budget: self.array(map::BUDGET)?.get(&0, 0)?,
            clients: self.contents(map::CLIENTS)?,
            recently_refused: self.contents(map::RECENTLY_REFUSED)?,
            ..world.clone()
        })
    }

    /// Counters since the load, over all CPUs, that are not 0.
    pub fn counters(&self) -> Result<HashMap<&'static str, u64>> {
        let counters = self.ebpf.map(map::COUNTERS).context("no map of counters")?;
        let counters = PerCpuArray::<_, u64>::try_from(counters)?;
        let sums = (0..COUNTER_SLOTS as u32).map(|index| Ok(counters.get(&index, 0)?.iter().sum()));
        Ok(named(&sums.collect::<Result<Vec<u64>, MapError>>()?))
    }

    /// Runs a program on a frame that comes in by, or leaves by, `ifindex`. `None`: the kernel has no test
    /// run for such a frame. `summed`: the device has computed the frame's sum, and where the kernel can
    /// compare (from Linux 6.17 on), a sum that does not fit afterwards is an error.
    pub fn run(&self, hook: Hook, frame: &[u8], ifindex: u32, summed: bool) -> Result<Option<Ran>> {
        self.run_program(program_name(hook), frame, ifindex, summed)
    }

    /// Like [`Kernel::run`], for a program by its name: a stage by itself.
    pub fn run_program(&self, name: &str, frame: &[u8], ifindex: u32, summed: bool) -> Result<Option<Ran>> {
        let program: &SchedClassifier = self.ebpf.program(name).context("loaded before")?.try_into()?;
        let context = of_interface(ifindex);
        let mut out = vec![0; frame.len() + GROWTH];
        let program = program.fd()?.as_fd();
        let mut run = |flags| test_run(program, frame, &mut out, &context, flags);
        let is_invalid = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
        let returned = match run(if summed { CHECKSUM_COMPLETE } else { 0 }) {
            Err(error) if is_invalid(&error) => run(0),
            result => result,
        };
        let returned = match returned {
            Ok(returned) => returned,
            Err(error) if is_invalid(&error) => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::EBADMSG) => {
                bail!("the sum that the device has made of the frame does not fit what is left of it")
            }
            Err(error) => return Err(error).context("test run"),
        };
        out.truncate(returned.length as usize);
        Ok(Some(Ran { code: returned.code.cast_signed(), frame: out }))
    }

    /// The mean time of `times` runs of a program at the TC hook in a row, on a frame that comes in by, or leaves by,
    /// `ifindex`, and the frame at the end. Each run gets the frame as the one before has left it.
    pub fn time(&self, name: &str, times: u32, frame: &[u8], ifindex: u32) -> Result<(Duration, Vec<u8>)> {
        let program: &SchedClassifier = self.ebpf.program(name).context("loaded before")?.try_into()?;
        let program = program.fd()?.as_fd();
        let mut out = vec![0; frame.len() + GROWTH];
        let ran =
            test_runs(program, times, frame, &mut out, &of_interface(ifindex), 0).context("test run")?;
        out.truncate(ran.length as usize);
        Ok((ran.took, out))
    }

    /// Runs `ingress_xdp` on a frame that comes in by `ifindex`. `None`: the kernel has no test run for such
    /// a frame, or, before Linux 5.14, none with an interface. Fails if the program returns a code that XDP
    /// programs do not use here.
    pub fn run_xdp(&self, frame: &[u8], ifindex: u32) -> Result<Option<RanXdp>> {
        const XDP_DROP: u32 = 1;
        const XDP_PASS: u32 = 2;
        const XDP_TX: u32 = 3;
        let program: &Xdp = self.ebpf.program("ingress_xdp").context("loaded before")?.try_into()?;
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: [u32; 6] = [0, frame.len() as u32, 0, ifindex, 0, 0];
        let mut out = vec![0; frame.len() + GROWTH];
        let returned =
            match test_run(program.fd()?.as_fd(), frame, &mut out, bytemuck::cast_slice(&context), 0) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
                result => result.context("test run")?,
            };
        out.truncate(returned.length as usize);
        let left = match returned.code {
            XDP_PASS => Left::Up,
            XDP_DROP => Left::Dropped,
            XDP_TX => Left::Back,
            code => bail!("XDP code {code}"),
        };
        Ok(Some(RanXdp { left, out }))
    }

    fn map_mut(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("no map {name}"))
    }

    fn array<V: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, V>> {
        Array::try_from(self.map_mut(name)?).with_context(|| name.to_owned())
    }

    fn all<V: Pod>(&mut self, name: &str, values: &[V]) -> Result<()> {
        let mut array = self.array::<V>(name)?;
        for (index, value) in (0..).zip(values) {
            array.set(index, value, 0)?;
        }
        Ok(())
    }

    fn replace<K: Pod, V: Pod>(&mut self, name: &str, values: &HashMap<K, V>) -> Result<()> {
        let mut map: BpfMap<&mut MapData, K, V> = BpfMap::try_from(self.map_mut(name)?)?;
        let old: Vec<K> = map.keys().collect::<Result<_, _>>()?;
        for key in old {
            map.remove(&key)?;
        }
        for (key, value) in values {
            map.insert(key, value, 0).with_context(|| format!("failed to fill {name}"))?;
        }
        Ok(())
    }

    fn contents<K: Pod + Eq + std::hash::Hash, V: Pod>(&mut self, name: &str) -> Result<HashMap<K, V>> {
        let map: BpfMap<&mut MapData, K, V> = BpfMap::try_from(self.map_mut(name)?)?;
        Ok(map.iter().collect::<Result<_, _>>()?)
    }
}

/// Offset of `ifindex` in `struct __sk_buff`.
const IFINDEX_AT: usize = 40;

/// The beginning of the context of a packet of this interface.
fn of_interface(ifindex: u32) -> [u8; IFINDEX_AT + 4] {
    let mut context = [0; IFINDEX_AT + 4];
    context[IFINDEX_AT..].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

const fn program_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Ingress => "ingress",
        Hook::Egress => "egress",
    }
}

/// The boot clock, nanoseconds.
pub fn boot_clock_ns() -> Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    Ok(u64::try_from(now.as_nanos())?)
}

/// Calls `work` on a thread in its own network namespace, with [`INTERFACES`] and all of `addresses` on the
/// loopback interface. The namespace is gone afterwards.
pub fn apart<T: Send>(addresses: &[IpAddr], work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).context("failed to make a network namespace")?;
        let [near, far] = INTERFACES;
        let own = addresses.iter().map(|address| {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            format!("addr add {address} dev lo{nodad}\n")
        });
        let script = format!(
            "link set lo up\nlink add near index {near} type veth peer name far index {far}\n\
             link set near up\nlink set far up\n{}",
            own.collect::<String>()
        );
        // In one process: an emulated processor takes longest to start one.
        feed(Command::new("ip").args(["-batch", "-"]), &script)?;
        for address in addresses {
            // The kernel adds the route to an IPv6 address later (`addrconf_dad_work`).
            let reached = || Ok(UdpSocket::bind((*address, 0))?.connect((*address, 9))?);
            eventually(SOON, "a route to a namespace's own address", reached)?;
        }
        work()
    };
    let joined = std::thread::scope(|scope| scope.spawn(inside).join());
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Opens the sockets of `world` in this thread's network namespace; they stay open as long as the result is
/// kept.
pub fn sockets(world: &World) -> Result<Vec<Socket2>> {
    let mut sockets = Vec::new();
    for (key, socket) in &world.sockets {
        let end = |address: Address, port: u16| SocketAddr::new(address.into(), port);
        let local = end(key.local, key.local_port.host());
        let remote = end(key.remote, key.remote_port.host());
        match socket {
            Socket::None => {}
            Socket::Listener => sockets.push(listener(local)?),
            Socket::Connection => {
                let far = listener(remote)?;
                let near = bound(local)?;
                // Right after the namespace was made, IPv6 may have no route yet.
                let connect = || Ok(near.connect(&remote.into())?);
                eventually(SOON, &format!("a connection from {local} to {remote}"), connect)?;
                near.set_linger(Some(Duration::ZERO))?;
                sockets.extend([near, far]);
            }
            Socket::Handshake => bail!("a handshake cannot be held still"),
        }
    }
    Ok(sockets)
}

fn bound(address: SocketAddr) -> Result<Socket2> {
    let socket = Socket2::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("failed to bind {address}"))?;
    Ok(socket)
}

fn listener(address: SocketAddr) -> Result<Socket2> {
    let socket = bound(address)?;
    socket.listen(8)?;
    Ok(socket)
}
