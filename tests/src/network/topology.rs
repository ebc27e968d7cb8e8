//! Networks of namespaces: a bridge, hosts on it, clients behind routers or a slow line; gone on drop.
//!
//! ```text
//!  controller a   10.77.0.11 ─┐                     ┌─ 10.77.0.101  client 0
//!  controller b   10.77.0.12 ─┤ bridge              │
//!  controller c   10.77.0.13 ─┴──┬──────[delay]─────┴─ 10.77.0.102  client 1
//!                                │
//!            with a router:      └─ core ══ narrow line ══ edge ─── 10.78.0.101  client 0
//! ```
//! IPv6 has the same last numbers in `fd77::` and `fd78::`. Every namespace is called `bal-<tag>-<host>`; what an
//! earlier run with the same tag left behind is removed first.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{LazyLock, Mutex, Once, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::cgroup;
use crate::juju::rpc::canonical;
use crate::network::delay::Delay;
use crate::packet::kernel::load;
use crate::support::eventually::eventually;

/// What the names of all fixtures on a machine begin with.
pub const PREFIX: &str = "bal-";
/// Where iproute2 keeps named namespaces.
const NETNS: &str = "/run/netns";
/// Where pins live.
pub const BPFFS: &str = "/sys/fs/bpf";

static LIVE: LazyLock<Mutex<BTreeSet<String>>> = LazyLock::new(Mutex::default);

fn live() -> std::sync::MutexGuard<'static, BTreeSet<String>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A network namespace; on drop its processes are killed by id and it is deleted.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes the namespace `name`, with `lo` up.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self { name: name.to_owned() };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, for `nsenter --net=`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(NETNS).join(&self.name)
    }

    /// A command that will run `program` inside; mounts stay as they are.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs a command line (split at white space) to its end inside; gives its standard output.
    pub fn exec(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("empty command line")?);
        run(command.args(words))
    }

    /// Runs `ip` commands, one a line, without the word `ip`.
    pub fn ip(&self, script: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to start ip")?;
        child.stdin.take().context("ip has a standard input")?.write_all(script.as_bytes())?;
        let output = child.wait_with_output().context("failed to wait for ip")?;
        if !output.status.success() {
            bail!("ip in {}: {}in {script}", self.name, String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Calls `work` on a thread inside the namespace; sockets opened there stay in it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let file =
            std::fs::File::open(&path).with_context(|| format!("failed to open {}", path.display()))?;
        let inside = || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("failed to enter {}", path.display()))?;
            Ok(work())
        };
        let joined = std::thread::scope(|scope| scope.spawn(inside).join());
        joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Sets a value below /proc/sys, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| std::fs::write(format!("/proc/sys/{key}"), value))?
            .with_context(|| format!("failed to set {key} to {value} in {}", self.name))
    }

    /// Switches offloads, such as `tx off tso off`; features that a device has not are passed over.
    pub fn offloads(&self, interface: &str, switches: &str) -> Result<()> {
        self.exec(&format!("ethtool -K {interface} {switches}")).map(drop)
    }

    /// Sockets of `ss -Htan`, IPv4 addresses unmapped.
    pub fn sockets(&self) -> Result<Vec<TcpSocketRow>> {
        Ok(parse_ss(&self.exec("ss -Htan")?))
    }

    /// Sockets in `ESTABLISHED` or `CLOSE_WAIT` whose local port `wanted` accepts.
    pub fn established(&self, wanted: impl Fn(u16) -> bool) -> Result<Vec<TcpSocketRow>> {
        let rows = parse_ss(&self.exec("ss -Htan state established state close-wait")?);
        Ok(rows.into_iter().filter(|row| wanted(row.local.port())).collect())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove_namespace(&self.name);
    }
}

/// A TCP socket as ss shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TcpSocketRow {
    /// Such as `ESTAB`, `CLOSE-WAIT`, `LISTEN`; empty when ss was asked for certain states.
    pub state: String,
    /// Local end, `[::]` for `*`.
    pub local: SocketAddr,
    /// Other end.
    pub peer: SocketAddr,
}

/// Reads `ss -Htan`; rows that hold no two addresses are passed over.
pub fn parse_ss(text: &str) -> Vec<TcpSocketRow> {
    text.lines()
        .filter_map(|line| {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            let stated = words.first()?.starts_with(|first: char| first.is_ascii_alphabetic());
            let state = if stated { words.remove(0).to_owned() } else { String::new() };
            let [_, _, local, peer, ..] = words.as_slice() else { return None };
            Some(TcpSocketRow { state, local: endpoint(local)?, peer: endpoint(peer)? })
        })
        .collect()
}

fn endpoint(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.rsplit_once(':')?;
    let address = address.trim_matches(['[', ']']);
    let address = address.split('%').next()?.trim_end_matches(']');
    let address = if address == "*" { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { address.parse().ok()? };
    let port = if port == "*" { 0 } else { port.parse().ok()? };
    Some(canonical(SocketAddr::new(address, port)))
}

/// A host: a namespace with interfaces `eth0`, `eth1`, … and a port on a bridge for each.
#[derive(Debug)]
pub struct Host {
    /// Name in the topology: `a`, `b`, … for controllers, `c0`, `c1`, … for clients.
    pub name: String,
    /// Its namespace.
    pub namespace: Namespace,
    /// IPv4 addresses: of `eth0`, then the extra ones, then those of further interfaces.
    pub ipv4: Vec<Ipv4Addr>,
    /// IPv6 addresses in the same order.
    pub ipv6: Vec<Ipv6Addr>,
    switch: String,
    ports: Vec<String>,
}

impl Host {
    /// First address, of the family asked for.
    pub fn address(&self, ipv6: bool) -> IpAddr {
        if ipv6 { self.ipv6[0].into() } else { self.ipv4[0].into() }
    }

    /// All addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let v4 = self.ipv4.iter().map(|&address| IpAddr::V4(address));
        v4.chain(self.ipv6.iter().map(|&address| IpAddr::V6(address))).collect()
    }

    /// Lets every frame from and to the host vanish (true), as if its power were cut; the host itself notices
    /// nothing, its interface stays up.
    pub fn silence(&self, silent: bool) -> Result<()> {
        // `ip link set … type bridge_slave state` is accepted without effect; `bridge` has one.
        let state = if silent { "disabled" } else { "forwarding" };
        for port in &self.ports {
            let switch = Path::new(NETNS).join(&self.switch);
            run(Command::new("nsenter")
                .arg(format!("--net={}", switch.display()))
                .args(["bridge", "link", "set", "dev", port, "state", state]))?;
        }
        Ok(())
    }

    /// Sets `eth0` up or down.
    pub fn link(&self, up: bool) -> Result<()> {
        self.namespace.ip(&format!("link set eth0 {}", if up { "up" } else { "down" }))
    }

    /// Switches offloads of `eth0`, such as `tx off`, `gro on`.
    pub fn offloads(&self, switches: &str) -> Result<()> {
        self.namespace.offloads("eth0", switches)
    }

    /// Number of sockets in `ESTABLISHED` or `CLOSE_WAIT` whose local port `wanted` accepts.
    pub fn ss_established(&self, wanted: impl Fn(u16) -> bool) -> Result<usize> {
        Ok(self.namespace.established(wanted)?.len())
    }
}

/// What a network is to look like.
#[derive(Clone, Debug)]
pub struct NetBuilder {
    tag: String,
    controllers: usize,
    clients: usize,
    client_addresses: usize,
    interfaces: usize,
    router_mtu: Option<u32>,
    delay: Option<Duration>,
}

impl NetBuilder {
    /// Number of controllers, called `a`, `b`, …: 10.77.0.11, `fd77::11` and so on.
    #[must_use]
    pub const fn controllers(mut self, count: usize) -> Self {
        self.controllers = count;
        self
    }

    /// Number of client hosts: 10.77.0.101, `fd77::101` and so on; 10.78 and fd78 behind a router.
    #[must_use]
    pub const fn clients(mut self, count: usize) -> Self {
        self.clients = count;
        self
    }

    /// Addresses a client has, of each family, 1 to 250: 10.77.N.1 … beside the first, N the client's number + 1.
    #[must_use]
    pub const fn client_addresses(mut self, count: usize) -> Self {
        self.client_addresses = count;
        self
    }

    /// Interfaces a controller has; `eth1` is 10.101.0.11, `fd01::11` on a bridge of its own. Clients are on all.
    #[must_use]
    pub const fn interfaces(mut self, count: usize) -> Self {
        self.interfaces = count;
        self
    }

    /// Puts the clients behind two routers with a line of this MTU between them, in bytes; the ends keep 1500, so
    /// that only ICMP tells them of the narrow line.
    #[must_use]
    pub const fn router(mut self, mtu: u32) -> Self {
        self.router_mtu = Some(mtu);
        self
    }

    /// Delays every frame between clients and bridge by this, each way.
    #[must_use]
    pub const fn delay(mut self, each_way: Duration) -> Self {
        self.delay = Some(each_way);
        self
    }

    /// Builds it.
    pub fn build(self) -> Result<Net> {
        if !nix::unistd::geteuid().is_root() {
            bail!("namespaces need root: run this as root");
        }
        let prefix = format!("{PREFIX}{}-", self.tag);
        cleanup_all(&prefix);
        live().insert(prefix.clone());
        let switch = Namespace::create(&format!("{prefix}switch"))?;
        let mut net = Net {
            prefix,
            delays: Vec::new(),
            controllers: Vec::new(),
            clients: Vec::new(),
            middle: Vec::new(),
            switch,
            idle: None,
        };
        for interface in 0..self.interfaces.max(1) {
            add_bridge(&net.switch, &format!("br{interface}"))?;
        }
        for index in 0..self.controllers {
            let letter = (b'a'..=b'z').nth(index).context("at most 26 controllers")?;
            let mut host = net.host(&char::from(letter).to_string())?;
            for interface in 0..self.interfaces.max(1) {
                net.plug(&mut host, interface, 11 + index, None)?;
            }
            net.controllers.push(host);
        }
        match self.router_mtu {
            Some(mtu) => self.routed_clients(&mut net, mtu)?,
            None => self.plain_clients(&mut net)?,
        }
        net.await_addresses()?;
        Ok(net)
    }

    fn plain_clients(&self, net: &mut Net) -> Result<()> {
        let mut lines = Vec::new();
        for index in 0..self.clients {
            let mut host = net.host(&format!("c{index}"))?;
            for interface in 0..self.interfaces.max(1) {
                let delayed = self.delay.filter(|_| interface == 0).map(|_| &mut lines);
                net.plug(&mut host, interface, 101 + index, delayed)?;
            }
            self.extra_addresses(&mut host, index, "10.77", "fd77")?;
            net.clients.push(host);
        }
        net.start_delay(self.delay, &lines)
    }

    /// bridge ── core ══ edge (bridge `lan`) ── clients.
    fn routed_clients(&self, net: &mut Net, mtu: u32) -> Result<()> {
        let mut core = net.host("core")?;
        let mut lines = Vec::new();
        net.plug(&mut core, 0, 1, self.delay.map(|_| &mut lines))?;
        net.start_delay(self.delay, &lines)?;
        let edge = net.namespace("edge")?;
        add_bridge(&edge, "lan")?;
        core.namespace.ip(&format!(
            "link add line type veth peer name line netns {}\n\
             link set line up mtu {mtu}\naddr add 10.79.0.1/30 dev line\naddr add fd79::1/64 dev line nodad\n",
            edge.name()
        ))?;
        edge.ip(&format!(
            "link set line up mtu {mtu}\naddr add 10.79.0.2/30 dev line\naddr add fd79::2/64 dev line nodad\n\
             addr add 10.78.0.1/16 dev lan\naddr add fd78::1/64 dev lan nodad\n\
             route add default via 10.79.0.1\nroute add ::/0 via fd79::1\n"
        ))?;
        core.namespace.ip("route add 10.78.0.0/16 via 10.79.0.2\nroute add fd78::/64 via fd79::2\n")?;
        for router in [&core.namespace, &edge] {
            router.sysctl("net/ipv4/ip_forward", "1")?;
            router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
            // Every error counts in a short test; the kernel would hold most of them back.
            router.sysctl("net/ipv4/icmp_ratelimit", "0")?;
            router.sysctl("net/ipv6/icmp/ratelimit", "0")?;
        }
        for controller in &net.controllers {
            controller
                .namespace
                .ip("route add 10.78.0.0/15 via 10.77.0.1\nroute add fd78::/15 via fd77::1\n")?;
        }
        for index in 0..self.clients {
            let mut host = net.host(&format!("c{index}"))?;
            let (v4, v6) = (format!("10.78.0.{}", 101 + index), format!("fd78::{}", 101 + index));
            let port = format!("p-{}", host.name);
            connect(&edge, &port, "lan", &host.namespace, "eth0")?;
            add_address(&mut host, "eth0", &v4, &v6)?;
            host.namespace.ip("route add default via 10.78.0.1\nroute add ::/0 via fd78::1\n")?;
            edge.name().clone_into(&mut host.switch);
            host.ports.push(port);
            self.extra_addresses(&mut host, index, "10.78", "fd78")?;
            net.clients.push(host);
        }
        net.middle.extend([core.namespace, edge]);
        Ok(())
    }

    fn extra_addresses(&self, host: &mut Host, index: usize, v4: &str, v6: &str) -> Result<()> {
        if self.client_addresses > 250 {
            bail!("at most 250 addresses a client: the kernel's neighbour table holds about a thousand");
        }
        let mut script = String::new();
        for number in 1..self.client_addresses {
            let (v4, v6) = (format!("{v4}.{}.{number}", index + 1), format!("{v6}::{}:{number}", index + 1));
            writeln!(script, "addr add {v4}/16 dev eth0\naddr add {v6}/64 dev eth0 nodad")?;
            host.ipv4.push(v4.parse()?);
            host.ipv6.push(v6.parse()?);
        }
        host.namespace.ip(&script)
    }
}

/// A network of namespaces; gone on drop, panics included.
#[derive(Debug)]
pub struct Net {
    prefix: String,
    // Dropped in this order: processes before the namespaces they run in.
    delays: Vec<Delay>,
    /// Hosts `a`, `b`, ….
    pub controllers: Vec<Host>,
    /// Hosts `c0`, `c1`, ….
    pub clients: Vec<Host>,
    /// Routers and delays.
    middle: Vec<Namespace>,
    /// The namespace of the bridges `br0`, `br1`, …; ports are called `p-<host>`.
    pub switch: Namespace,
    /// What [`Net::make_xdp_sound`] has attached to the ports.
    idle: Option<Idle>,
}

/// A program that passes everything.
struct Idle(#[allow(dead_code, reason = "attached while it is kept")] Ebpf);

impl std::fmt::Debug for Idle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Idle").finish_non_exhaustive()
    }
}

impl Net {
    /// Begins a network; `tag` (up to 8 characters) keeps runs apart that happen at the same time.
    #[allow(clippy::new_ret_no_self, reason = "a network is described before it is built")]
    pub fn new(tag: &str) -> NetBuilder {
        NetBuilder {
            tag: tag.to_owned(),
            controllers: 3,
            clients: 1,
            client_addresses: 1,
            interfaces: 1,
            router_mtu: None,
            delay: None,
        }
    }

    /// `bal-<tag>-`: what the names of all its parts begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Has every host compute checksums itself and forward, and every port of the switch have an XDP program, without
    /// which a veth does not take the frames that a program at its other end sends.
    pub fn make_xdp_sound(&mut self) -> Result<()> {
        for host in self.controllers.iter().chain(&self.clients) {
            host.offloads("tx off")?;
            for port in &host.ports {
                self.switch.offloads(port, "tx off")?;
            }
        }
        for controller in &self.controllers {
            for key in ["net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"] {
                controller.namespace.sysctl(key, "1")?;
            }
        }
        let hosts = self.controllers.iter().chain(&self.clients);
        let ports: Vec<&String> = hosts.flat_map(|host| &host.ports).collect();
        let idle = self.switch.enter(|| -> Result<Ebpf> {
            // Without settings it passes everything.
            let mut ebpf = load()?;
            let program: &mut Xdp = ebpf.program_mut("ingress_xdp").context("in the object")?.try_into()?;
            for port in ports {
                program.attach(port, XdpMode::Driver).with_context(|| port.clone())?;
            }
            Ok(ebpf)
        })??;
        self.idle = Some(Idle(idle));
        Ok(())
    }

    /// Removes interface `eth<interface>` of controller `index`, as if the card were pulled.
    pub fn unplug(&self, index: usize, interface: usize) -> Result<()> {
        self.controllers[index].namespace.ip(&format!("link del eth{interface}"))
    }

    /// Puts an interface back that [`Net::unplug`] has removed, with the addresses that it had.
    pub fn plug_again(&self, index: usize, interface: usize) -> Result<()> {
        let host = &self.controllers[index];
        let (device, bridge) = (format!("eth{interface}"), format!("br{interface}"));
        connect(&self.switch, &host.ports[interface], &bridge, &host.namespace, &device)?;
        // A controller has one address of each family and interface.
        set_address(&host.namespace, &device, host.ipv4[interface], host.ipv6[interface])?;
        self.await_addresses()
    }

    fn namespace(&self, name: &str) -> Result<Namespace> {
        let namespace = Namespace::create(&format!("{}{name}", self.prefix))?;
        namespace.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        Ok(namespace)
    }

    fn host(&self, name: &str) -> Result<Host> {
        Ok(Host {
            name: name.to_owned(),
            namespace: self.namespace(name)?,
            ipv4: Vec::new(),
            ipv6: Vec::new(),
            switch: self.switch.name().to_owned(),
            ports: Vec::new(),
        })
    }

    /// Connects a host's interface to its bridge, through the delay namespace when `delayed` collects its lines.
    fn plug(
        &mut self,
        host: &mut Host,
        interface: usize,
        number: usize,
        delayed: Option<&mut Vec<(String, String)>>,
    ) -> Result<()> {
        let (device, bridge) = (format!("eth{interface}"), format!("br{interface}"));
        let suffix = if interface == 0 { String::new() } else { format!("-{interface}") };
        let port = format!("p-{}{suffix}", host.name);
        match delayed {
            None => connect(&self.switch, &port, &bridge, &host.namespace, &device)?,
            Some(lines) => {
                let name = format!("{}delay", self.prefix);
                if !self.middle.iter().any(|namespace| namespace.name() == name) {
                    self.middle.push(self.namespace("delay")?);
                }
                let delay = self.middle.last().context("the delay namespace was just made")?;
                let (near, far) = (format!("n-{}", host.name), format!("f-{}", host.name));
                connect_delayed(&self.switch, &port, &bridge, &host.namespace, delay, &near, &far)?;
                lines.push((near, far));
            }
        }
        let (v4, v6) = match interface {
            0 => (format!("10.77.0.{number}"), format!("fd77::{number}")),
            _ => (format!("10.{}.0.{number}", 100 + interface), format!("fd{interface:02}::{number}")),
        };
        add_address(host, &device, &v4, &v6)?;
        host.ports.push(port);
        Ok(())
    }

    fn start_delay(&mut self, delay: Option<Duration>, lines: &[(String, String)]) -> Result<()> {
        let name = format!("{}delay", self.prefix);
        let namespace = self.middle.iter().find(|namespace| namespace.name() == name);
        if let (Some(delay), Some(namespace)) = (delay, namespace) {
            self.delays.push(Delay::start(namespace, delay, lines)?);
        }
        Ok(())
    }

    /// Waits until no address is tentative and every link has its carrier.
    fn await_addresses(&self) -> Result<()> {
        for host in self.controllers.iter().chain(&self.clients) {
            eventually(Duration::from_secs(5), &format!("addresses of {}", host.name), || {
                let tentative =
                    host.namespace.exec("ip -o addr show tentative").map_err(|e| e.to_string())?;
                let down = host.namespace.exec("ip -o link show up").map_err(|e| e.to_string())?;
                if tentative.trim().is_empty() && !down.contains("NO-CARRIER") {
                    Ok(())
                } else {
                    Err(format!("{tentative}{down}"))
                }
            })?;
        }
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        live().remove(&self.prefix);
    }
}

fn add_bridge(namespace: &Namespace, name: &str) -> Result<()> {
    namespace.ip(&format!("link add {name} type bridge stp_state 0 mcast_snooping 0\nlink set {name} up\n"))
}

fn connect(switch: &Namespace, port: &str, bridge: &str, host: &Namespace, device: &str) -> Result<()> {
    switch.ip(&format!(
        "link add {port} type veth peer name {device} netns {}\nlink set {port} master {bridge} up\n",
        host.name()
    ))?;
    host.ip(&format!("link set {device} up\n"))
}

/// host eth0 ═ near (delay process) far ═ port bridge. Packet sockets see what the stack made of a frame: without
/// offloads that is what would be on a wire, checksums filled in and no longer than the MTU.
fn connect_delayed(
    switch: &Namespace,
    port: &str,
    bridge: &str,
    host: &Namespace,
    delay: &Namespace,
    near: &str,
    far: &str,
) -> Result<()> {
    const PLAIN: &str = "tx off tso off gso off gro off";
    host.ip(&format!("link add eth0 type veth peer name {near} netns {}\nlink set eth0 up\n", delay.name()))?;
    switch.ip(&format!(
        "link add {port} type veth peer name {far} netns {}\nlink set {port} master {bridge} up\n",
        delay.name()
    ))?;
    for device in [near, far] {
        delay.sysctl(&format!("net/ipv6/conf/{device}/disable_ipv6"), "1")?;
        delay.ip(&format!("link set {device} up promisc on\n"))?;
        delay.offloads(device, PLAIN)?;
    }
    host.offloads("eth0", PLAIN)?;
    switch.offloads(port, PLAIN)
}

fn add_address(host: &mut Host, device: &str, v4: &str, v6: &str) -> Result<()> {
    let (v4, v6) = (v4.parse()?, v6.parse()?);
    set_address(&host.namespace, device, v4, v6)?;
    host.ipv4.push(v4);
    host.ipv6.push(v6);
    Ok(())
}

fn set_address(host: &Namespace, device: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
    host.ip(&format!("addr add {v4}/16 dev {device}\naddr add {v6}/64 dev {device} nodad\n"))
}

/// Runs a command to its end; gives its standard output.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("failed to start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(anyhow!("{command:?}: {}: {errors}{text}", output.status));
    }
    Ok(text)
}

/// Removes everything whose name begins with `prefix`: processes in such namespaces and cgroups, both of these, pins
/// and temporary directories. For what crashed runs left behind; nothing is there after an orderly one.
pub fn cleanup_all(prefix: &str) {
    for name in names_in(NETNS, prefix) {
        remove_namespace(&name);
    }
    cgroup::remove_all(prefix);
    for root in [PathBuf::from(BPFFS), std::env::temp_dir()] {
        for name in names_in(&root, prefix) {
            // Fails only when somebody else removes it at the same time.
            let _ = std::fs::remove_dir_all(root.join(name));
        }
    }
}

/// Removes on SIGINT and SIGTERM what this process has built, then exits with 130.
pub fn cleanup_on_signals() -> Result<()> {
    static ONCE: Once = Once::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    ONCE.call_once(|| {
        std::thread::spawn(move || {
            runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                let (Ok(mut interrupt), Ok(mut terminate)) =
                    (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
                else {
                    return;
                };
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                let prefixes = std::mem::take(&mut *live());
                for prefix in &prefixes {
                    cleanup_all(prefix);
                }
                std::process::exit(130);
            });
        });
    });
    Ok(())
}

pub(crate) fn names_in(directory: impl Into<PathBuf>, prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(directory.into()).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

fn remove_namespace(name: &str) {
    for process in processes_in(name) {
        // Fails only for one that has ended meanwhile.
        let _ = kill(process, Signal::SIGKILL);
    }
    // A name that is gone, or was never a mount, is what was wanted.
    let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
}

/// Processes whose main thread is in the namespace, this one excepted.
fn processes_in(name: &str) -> Vec<Pid> {
    let Ok(namespace) = std::fs::metadata(PathBuf::from(NETNS).join(name)) else { return Vec::new() };
    let inside = |process: &Pid| {
        std::fs::metadata(format!("/proc/{process}/ns/net"))
            .is_ok_and(|own| (own.dev(), own.ino()) == (namespace.dev(), namespace.ino()))
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw));
    ids.filter(|id| *id != nix::unistd::getpid() && inside(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(state: &str, local: &str, peer: &str) -> TcpSocketRow {
        TcpSocketRow { state: state.to_owned(), local: local.parse().unwrap(), peer: peer.parse().unwrap() }
    }

    #[test]
    fn ss_rows_of_every_shape() {
        let text = "\
LISTEN    0  4096               *:17070            *:*
ESTAB     0  0    [::ffff:10.77.0.11]:17070 [::ffff:10.77.0.101]:40000
ESTAB     0  0          10.77.0.11:17083    10.77.0.101:40001 users:((\"x\",pid=1,fd=2))
CLOSE-WAIT 1 0          [fd77::11]:17070   [fd77::101]:40002
0         0           [fe80::1%eth0]:22      [fe80::2]:50
";
        assert_eq!(
            parse_ss(text),
            [
                row("LISTEN", "[::]:17070", "[::]:0"),
                row("ESTAB", "10.77.0.11:17070", "10.77.0.101:40000"),
                row("ESTAB", "10.77.0.11:17083", "10.77.0.101:40001"),
                row("CLOSE-WAIT", "[fd77::11]:17070", "[fd77::101]:40002"),
                row("", "[fe80::1]:22", "[fe80::2]:50"),
            ]
        );
    }

    #[test]
    fn strange_rows_are_passed_over() {
        assert_eq!(parse_ss("\nESTAB\nESTAB 0 0 nonsense 10.0.0.1:1\n"), []);
    }
}
