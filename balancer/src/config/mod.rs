//! What the configuration file means.
//!
//! What was typed is read into the `Raw…` structs, which know every key and where it stands in the file; what
//! it means is a [`Config`], checked and with every default filled in. Nothing outside this file sees the
//! former. What the file leaves out on a Juju controller comes from Juju's own file, see [`juju`].

mod juju;
mod policy;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use toml::Spanned;

use self::policy::RawPolicy;
pub use self::{
    juju::{KeySource, Source},
    policy::{Policy, Ratio, Rebalance, Steer},
};
use crate::{cli, juju::agent_conf};

/// Most controllers that a cluster may have: the data path's tables and its picking loop are this long.
pub const MAX_CONTROLLERS: usize = 16;
/// Most relay ports that a range may hold.
pub const MAX_RELAY_PORTS: u16 = 64;
/// Longest name of a controller.
pub const MAX_NAME: usize = 63;

const DEFAULT_API_PORT: u16 = 17070;
const DEFAULT_SYNC_PORT: u16 = 17078;
const DEFAULT_RELAY_PORTS: RelayPorts = RelayPorts { first: 17080, last: 17095 };
const DEFAULT_KEY_FILE: &str = "/etc/balancer/cluster.key";
const DEFAULT_PINS: &str = "/sys/fs/bpf/balancer";
const DEFAULT_CONTROL: &str = "/run/balancer/control.sock";
const MAX_INTERFACE_NAME: usize = 15; // IFNAMSIZ less its NUL
const MAX_SOCKET_PATH: usize = 107; // sun_path less its NUL
const NO_CONTROLLERS: &str =
    "cluster.controllers: missing; add one [[cluster.controllers]] table for each controller";
const JUJU_PORTS: [(u16, &str); 3] = [(17022, "SSH"), (17666, "Dqlite"), (37017, "MongoDB")];

/// One agent's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The API port and who may use it.
    pub api: Api,
    /// The controllers and what they exchange.
    pub cluster: Cluster,
    /// How the balance is kept.
    pub policy: Policy,
    /// Where this agent keeps its things.
    pub paths: Paths,
}

/// `[api]`: the port that is balanced.
#[derive(Clone, Debug, PartialEq)]
pub struct Api {
    /// TCP port of the controllers' API. Default: 17070.
    pub port: u16,
    /// Interfaces on which clients arrive. Default: none named, which means every interface that holds an
    /// address of this controller.
    pub interfaces: Option<Vec<String>>,
    /// Where the packet programs are attached. Default: `auto`.
    pub hook: Hook,
    /// Most client connections this controller takes. Default: derived from jujud's file limit and the
    /// memory.
    pub hard_limit: Option<u32>,
    /// How the local API server is asked whether it is ready. Default: `https`.
    pub health: Health,
    /// Networks whose connections are never limited, relayed or shed, besides the controllers' own addresses.
    /// Default: none.
    pub exempt: Vec<IpNet>,
}

/// `api.hook`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hook {
    /// The best that the kernel and the interface support: native XDP for an entry's packets where it is sound, and
    /// traffic control.
    Auto,
    /// Traffic control: tcx, or clsact below Linux 6.6.
    Tc,
    /// As `auto`, and a warning where native XDP is not sound.
    Xdp,
}

/// `api.health`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Health {
    /// `GET /health` over TLS answers 200.
    Https,
    /// The port accepts a connection.
    Tcp,
    /// Taken to be ready always.
    None,
}

/// `[cluster]`: the controllers.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// Where the controllers below were named. Default: Juju's `agent.conf`, where the file names none.
    pub source: Source,
    /// Name of this controller. Default: the controller one of whose addresses this host has.
    pub name: String,
    /// UDP address on which this controller hears the others; its port is the same on all. Default: this
    /// controller's first address, or all of the host's where they come from `agent.conf`; port 17078.
    pub listen: SocketAddr,
    /// TCP ports on which the other controllers' relayed connections arrive. Default: 17080–17095.
    pub relay_ports: RelayPorts,
    /// Where the cluster's key is, the same on all. Default: see [`KeySource`].
    pub key: KeySource,
    /// Every controller, this one included, in the file's order. From [`Source::AgentConf`] each other one is a
    /// single address, see there.
    pub controllers: Vec<Controller>,
    /// Addresses of controllers of which it is not known yet whose they are; see [`Source::AgentConf`].
    pub candidates: Vec<IpAddr>,
}

impl Cluster {
    /// This controller.
    ///
    /// # Panics
    /// Never for a cluster made by [`Config::parse`], which resolves the name among the controllers.
    pub fn this(&self) -> &Controller {
        self.controllers
            .iter()
            .find(|c| c.name == self.name)
            .expect("name was resolved among the controllers")
    }

    /// Every other controller.
    pub fn others(&self) -> impl Iterator<Item = &Controller> {
        self.controllers.iter().filter(|c| c.name != self.name)
    }
}

/// `[[cluster.controllers]]`: one controller.
#[derive(Clone, Debug, PartialEq)]
pub struct Controller {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Every address it has, the first being the one that peers try first. IPv4-mapped addresses are kept as
    /// IPv4.
    pub addresses: Vec<IpAddr>,
    /// Its share of the clients relative to the others. Default: 1.
    pub weight: f64,
}

/// `cluster.relay_ports`: a range of TCP ports, both ends included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RelayPorts {
    /// Lowest port.
    pub first: u16,
    /// Highest port.
    pub last: u16,
}

impl RelayPorts {
    /// Whether `port` is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Each port, lowest first.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    fn count(self) -> usize {
        usize::from(self.last - self.first) + 1
    }
}

impl fmt::Display for RelayPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// `[paths]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Paths {
    /// Directory on a BPF file system for pinned programs, links and maps. Default: `/sys/fs/bpf/balancer`.
    pub pins: PathBuf,
    /// Unix socket on which the agent answers commands. Default: `/run/balancer/control.sock`.
    pub control: PathBuf,
    /// Root of the cgroup2 hierarchy. Default: wherever cgroup2 is mounted.
    pub cgroup: PathBuf,
    /// Directory of Juju's agents, below which a controller's `agent.conf` is looked for. Default: `/var/lib/juju`.
    pub juju: PathBuf,
}

/// What defaults are taken from this host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Addresses of its interfaces.
    pub addresses: Vec<IpAddr>,
    /// Where cgroup2 is mounted.
    pub cgroup2: Option<PathBuf>,
    /// Where Juju keeps its agents' files.
    pub juju: PathBuf,
}

impl Host {
    /// This host, which has `addresses`.
    pub fn here(addresses: &[IpAddr]) -> Self {
        Self {
            addresses: addresses.to_vec(),
            cgroup2: cgroup2_mount(),
            juju: PathBuf::from(agent_conf::JUJU),
        }
    }
}

/// Why a configuration is not used: where, what, and what to do.
#[derive(Debug)]
pub struct ConfigError {
    file: PathBuf,
    place: Option<Place>,
    message: String,
}

#[derive(Debug)]
struct Place {
    line: usize,
    column: usize,
    source: String,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Place { line, column, source }) = &self.place else {
            return write!(f, "{}: {}", self.file.display(), self.message);
        };
        write!(f, "{}:{line}:{column}: {}", self.file.display(), self.message)?;
        if source.trim().is_empty() {
            return Ok(());
        }
        write!(f, "\n  {line} | {source}\n  {:width$} | {:>column$}", "", "^", width = line.to_string().len())
    }
}

impl Config {
    /// Reads the file at `path` on a host that has `host_addresses`. On a Juju controller there need be none at the
    /// default path.
    ///
    /// # Errors
    /// The file cannot be read, or what it says cannot be used; the message says where and what to do.
    pub fn load(path: &Path, host_addresses: &[IpAddr]) -> Result<Self, ConfigError> {
        Self::load_or_default(path, Path::new(cli::CONFIG), &Host::here(host_addresses))
    }

    /// Where the agent of the file at `path` keeps its things, whatever else the file says: for commands to a running
    /// agent, which goes on with what it has read before.
    ///
    /// # Errors
    /// The file cannot be read, or is no TOML, or its paths cannot be used.
    pub fn load_paths(path: &Path) -> Result<Paths, ConfigError> {
        let text = read_text(path, Path::new(cli::CONFIG))?.unwrap_or_default();
        let read = toml::from_str::<OnlyPaths>(&text).map_err(Fault::from);
        read.and_then(|only| paths(only.paths, &Host::here(&[]))).map_err(|fault| fault.at_place(path, &text))
    }

    fn load_or_default(path: &Path, optional: &Path, host: &Host) -> Result<Self, ConfigError> {
        match read_text(path, optional)? {
            Some(text) => Self::parse(path, &text, host),
            None => Self::parse(path, "", host).map_err(|error| ConfigError {
                place: None,
                message: format!("there is no such file, and {}", error.message),
                ..error
            }),
        }
    }

    /// Reads `text`; `file` only names it in messages.
    ///
    /// # Errors
    /// What the text says cannot be used; the message says where and what to do.
    pub fn parse(file: &Path, text: &str, host: &Host) -> Result<Self, ConfigError> {
        read(text, host).map_err(|fault| fault.at_place(file, text))
    }
}

/// What the file at `path` holds; `None` where there is none and there need be none, at `optional`.
fn read_text(path: &Path, optional: &Path) -> Result<Option<String>, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound && path == optional => Ok(None),
        Err(error) => Err(ConfigError {
            file: path.to_path_buf(),
            place: None,
            message: format!("cannot read the configuration: {error}; name the file with --config FILE"),
        }),
    }
}

/// Where cgroup2 is mounted, the first mount if there are several.
pub fn cgroup2_mount() -> Option<PathBuf> {
    cgroup2_in(&fs::read_to_string("/proc/mounts").ok()?)
}

fn cgroup2_in(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (directory, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescape(directory)))
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
pub(crate) fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn place(text: &str, offset: usize) -> Place {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Place {
        line: before.matches('\n').count() + 1,
        column: before[start..].chars().count() + 1,
        source: text[start..].lines().next().unwrap_or_default().to_owned(),
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    api: RawApi,
    cluster: Option<Spanned<RawCluster>>,
    policy: RawPolicy,
    paths: RawPaths,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawApi {
    port: Option<Spanned<i64>>,
    interfaces: Option<Spanned<Vec<Spanned<String>>>>,
    hook: Option<Spanned<String>>,
    hard_limit: Option<Spanned<i64>>,
    health: Option<Spanned<String>>,
    exempt: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawCluster {
    name: Option<Spanned<String>>,
    listen: Option<Spanned<String>>,
    relay_ports: Option<Spanned<String>>,
    key_file: Option<Spanned<String>>,
    controllers: Vec<Spanned<RawController>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawController {
    name: Spanned<String>,
    addresses: Spanned<Vec<Spanned<String>>>,
    weight: Option<Spanned<f64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct RawPaths {
    pins: Option<Spanned<String>>,
    control: Option<Spanned<String>>,
    cgroup: Option<Spanned<String>>,
    juju: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct OnlyPaths {
    paths: RawPaths,
}

struct Fault {
    span: Option<Range<usize>>,
    message: String,
}

impl Fault {
    fn at(span: Range<usize>, message: impl Into<String>) -> Self {
        Self { span: Some(span), message: message.into() }
    }

    /// As it is told of `text`, the content of `file`.
    fn at_place(self, file: &Path, text: &str) -> ConfigError {
        let place = self.span.map(|span| place(text, span.start));
        ConfigError { file: file.to_path_buf(), place, message: self.message }
    }
}

impl From<toml::de::Error> for Fault {
    fn from(error: toml::de::Error) -> Self {
        let message =
            error.message().replace("unknown field", "unknown key").replace("missing field", "missing key");
        Self { span: error.span(), message }
    }
}

fn read(text: &str, host: &Host) -> Result<Config, Fault> {
    let raw: RawConfig = toml::from_str(text)?;
    let paths = paths(raw.paths, host)?;
    let port_is_given = raw.api.port.is_some();
    let mut api = api(raw.api)?;
    let cluster = match raw.cluster {
        Some(raw) if !raw.get_ref().controllers.is_empty() => cluster(raw, api.port, &paths.juju, host)?,
        raw => {
            let conf = juju::agent_conf(&paths.juju, raw.as_ref().map(Spanned::span))?;
            if let Some(port) = conf.api_port.filter(|_| !port_is_given) {
                api.port = port;
            }
            juju::cluster(raw, &conf, api.port, host)?
        }
    };
    let policy = policy::policy(raw.policy)?;
    Ok(Config { api, cluster, policy, paths })
}

fn api(raw: RawApi) -> Result<Api, Fault> {
    Ok(Api {
        port: raw.port.map_or(Ok(DEFAULT_API_PORT), |port| api_port(&port))?,
        interfaces: raw.interfaces.map(interfaces).transpose()?,
        hook: raw.hook.map_or(Ok(Hook::Auto), |hook| self::hook(&hook))?,
        hard_limit: raw.hard_limit.map(|limit| hard_limit(&limit)).transpose()?,
        health: raw.health.map_or(Ok(Health::Https), |health| self::health(&health))?,
        exempt: raw.exempt.iter().map(exempt).collect::<Result<_, _>>()?,
    })
}

fn api_port(raw: &Spanned<i64>) -> Result<u16, Fault> {
    u16::try_from(*raw.get_ref()).ok().filter(|port| *port != 0).ok_or_else(|| {
        Fault::at(raw.span(), format!("api.port: {} is not a port; write one from 1 to 65535", raw.get_ref()))
    })
}

fn hard_limit(raw: &Spanned<i64>) -> Result<u32, Fault> {
    u32::try_from(*raw.get_ref()).ok().filter(|limit| *limit != 0).ok_or_else(|| {
        let message = format!(
            "api.hard_limit: {} is out of range; write 1 to {}, or leave the key out for a limit derived from \
             this host",
            raw.get_ref(),
            u32::MAX
        );
        Fault::at(raw.span(), message)
    })
}

fn interfaces(raw: Spanned<Vec<Spanned<String>>>) -> Result<Vec<String>, Fault> {
    let span = raw.span();
    let mut names: Vec<String> = Vec::new();
    for entry in raw.into_inner() {
        let (span, name) = (entry.span(), entry.into_inner());
        let wrong = |why: &str| Err(Fault::at(span.clone(), format!("api.interfaces: {name:?} {why}")));
        if name.is_empty() || name.len() > MAX_INTERFACE_NAME {
            return wrong("is not an interface name; write 1 to 15 characters, as `ip link` shows them");
        }
        if name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
            return wrong("is not an interface name; write it as `ip link` shows it");
        }
        if name == "lo" {
            return wrong("carries the controller's own traffic, which is never balanced; remove it");
        }
        if names.contains(&name) {
            return wrong("is listed twice; remove one");
        }
        names.push(name);
    }
    if names.is_empty() {
        let message = "api.interfaces: empty; name an interface, or leave the key out for every interface that \
                       holds an address of this controller";
        return Err(Fault::at(span, message));
    }
    Ok(names)
}

fn hook(raw: &Spanned<String>) -> Result<Hook, Fault> {
    match raw.get_ref().as_str() {
        "auto" => Ok(Hook::Auto),
        "tc" => Ok(Hook::Tc),
        "xdp" => Ok(Hook::Xdp),
        other => Err(Fault::at(
            raw.span(),
            format!("api.hook: {other:?} is unknown; write \"auto\", \"tc\" or \"xdp\""),
        )),
    }
}

fn health(raw: &Spanned<String>) -> Result<Health, Fault> {
    match raw.get_ref().as_str() {
        "https" => Ok(Health::Https),
        "tcp" => Ok(Health::Tcp),
        "none" => Ok(Health::None),
        other => Err(Fault::at(
            raw.span(),
            format!("api.health: {other:?} is unknown; write \"https\", \"tcp\" or \"none\""),
        )),
    }
}

fn exempt(raw: &Spanned<String>) -> Result<IpNet, Fault> {
    let text = raw.get_ref();
    let Ok(net) = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) else {
        let message =
            format!("api.exempt: {text:?} is not a network; write one like \"10.9.0.0/16\" or \"fd00::/8\"");
        return Err(Fault::at(raw.span(), message));
    };
    if net.trunc() != net {
        let message = format!("api.exempt: {text:?} has host bits set; write \"{}\"", net.trunc());
        return Err(Fault::at(raw.span(), message));
    }
    let net = canonical_net(net);
    if net.prefix_len() == 0 {
        let message = format!("api.exempt: {text:?} exempts every client; name the networks that are meant");
        return Err(Fault::at(raw.span(), message));
    }
    Ok(net)
}

fn canonical_net(net: IpNet) -> IpNet {
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (address @ IpAddr::V4(_), Some(length)) if net.addr().is_ipv6() => {
            IpNet::new(address, length).unwrap_or(net)
        }
        _ => net,
    }
}

fn cluster(raw: Spanned<RawCluster>, api_port: u16, juju: &Path, host: &Host) -> Result<Cluster, Fault> {
    let span = raw.span();
    let raw = raw.into_inner();
    let controllers = controllers(raw.controllers)?;
    let name = own_name(raw.name.as_ref(), &controllers, host, &span)?;
    let this = controllers.iter().find(|c| c.name == name).expect("own_name returns one of their names");
    let default = SocketAddr::new(this.addresses[0], DEFAULT_SYNC_PORT);
    let listen = listen(raw.listen.as_ref(), default, this, &controllers, &span)?;
    let others = controllers.len() - 1;
    let relay_ports = relay_ports(raw.relay_ports.as_ref(), api_port, listen.port(), others, &span)?;
    let key = juju::key_beside_controllers(raw.key_file.as_ref(), juju)?;
    Ok(Cluster { source: Source::File, name, listen, relay_ports, key, controllers, candidates: Vec::new() })
}

fn controllers(raw: Vec<Spanned<RawController>>) -> Result<Vec<Controller>, Fault> {
    if raw.len() > MAX_CONTROLLERS {
        let message = format!(
            "cluster.controllers: {} controllers, and at most {MAX_CONTROLLERS} are supported; remove some",
            raw.len()
        );
        return Err(Fault::at(raw[MAX_CONTROLLERS].span(), message));
    }
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut controllers: Vec<Controller> = Vec::new();
    for raw in raw {
        let raw = raw.into_inner();
        let name = controller_name(&raw.name, &controllers)?;
        let addresses = addresses(&name, raw.addresses, &mut owners)?;
        let weight = raw.weight.map_or(Ok(1.0), |weight| self::weight(&weight))?;
        controllers.push(Controller { name, addresses, weight });
    }
    Ok(controllers)
}

fn controller_name(raw: &Spanned<String>, before: &[Controller]) -> Result<String, Fault> {
    let name = raw.get_ref();
    let wrong = |why: String| Err(Fault::at(raw.span(), format!("cluster.controllers.name: {name:?} {why}")));
    if !is_name(name) {
        return wrong(format!("is not a name; write 1 to {MAX_NAME} letters, digits, '-', '_' or '.'"));
    }
    if before.iter().any(|c| &c.name == name) {
        return wrong("is used twice; give each controller a name of its own".to_owned());
    }
    Ok(name.clone())
}

/// Whether `name` can be a controller's: what peers send is held to it too. Those that `agent.conf` lists are named
/// by an address, be it of IPv6.
pub fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_plain) || name.parse::<Ipv6Addr>().is_ok()
}

fn addresses(
    name: &str,
    raw: Spanned<Vec<Spanned<String>>>,
    owners: &mut BTreeMap<IpAddr, String>,
) -> Result<Vec<IpAddr>, Fault> {
    let list = raw.span();
    let mut addresses = Vec::new();
    for entry in raw.into_inner() {
        let (span, text) = (entry.span(), entry.into_inner());
        let wrong =
            |why: &str| Fault::at(span.clone(), format!("cluster.controllers.addresses: {text:?} {why}"));
        let address: IpAddr = text.parse().map_err(|_not_an_address| {
            wrong("is not an IP address; write one without port or prefix length, not a host name")
        })?;
        let address = address.to_canonical();
        if let Some(kind) = unreachable_kind(address) {
            return Err(wrong(&format!(
                "is {kind}; write an address at which the other controllers reach {name}"
            )));
        }
        if let Some(owner) = owners.insert(address, name.to_owned()) {
            return Err(wrong(&format!("is already an address of {owner}; remove one")));
        }
        addresses.push(address);
    }
    if addresses.is_empty() {
        let message = format!("cluster.controllers.addresses: empty; list every address that {name} has");
        return Err(Fault::at(list, message));
    }
    Ok(addresses)
}

fn unreachable_kind(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

fn weight(raw: &Spanned<f64>) -> Result<f64, Fault> {
    let weight = *raw.get_ref();
    if weight > 0.0 && weight <= 100.0 {
        return Ok(weight);
    }
    let message =
        format!("cluster.controllers.weight: {weight} is out of range; write more than 0 and at most 100");
    Err(Fault::at(raw.span(), message))
}

fn own_name(
    raw: Option<&Spanned<String>>,
    controllers: &[Controller],
    host: &Host,
    cluster: &Range<usize>,
) -> Result<String, Fault> {
    let names = || controllers.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(raw) = raw {
        let name = raw.get_ref();
        if controllers.iter().any(|c| &c.name == name) {
            return Ok(name.clone());
        }
        let message =
            format!("cluster.name: {name:?} is none of the controllers ({}); write one of them", names());
        return Err(Fault::at(raw.span(), message));
    }
    let is_here =
        |c: &&Controller| c.addresses.iter().any(|a| host.addresses.iter().any(|h| h.to_canonical() == *a));
    let here: Vec<&str> = controllers.iter().filter(is_here).map(|c| c.name.as_str()).collect();
    match here.as_slice() {
        [name] => Ok((*name).to_owned()),
        [] => {
            let message = format!(
                "cluster.name: missing, and this host has no address of any controller ({}); set cluster.name, or \
                 correct the addresses",
                names()
            );
            Err(Fault::at(cluster.clone(), message))
        }
        several => {
            let message = format!(
                "cluster.name: missing, and this host has addresses of {}; set cluster.name to one of them",
                several.join(" and ")
            );
            Err(Fault::at(cluster.clone(), message))
        }
    }
}

fn listen(
    raw: Option<&Spanned<String>>,
    default: SocketAddr,
    this: &Controller,
    controllers: &[Controller],
    cluster: &Range<usize>,
) -> Result<SocketAddr, Fault> {
    let span = raw.map_or_else(|| cluster.clone(), Spanned::span);
    let listen = match raw {
        None => default,
        Some(raw) => raw.get_ref().parse().map_err(|_not_an_address| {
            let text = raw.get_ref();
            let message =
                format!("cluster.listen: {text:?} is not an address with a port; write \"{default}\"");
            Fault::at(raw.span(), message)
        })?,
    };
    let listen = SocketAddr::new(listen.ip().to_canonical(), listen.port());
    if listen.port() == 0 {
        return Err(Fault::at(
            span,
            format!("cluster.listen: port 0; write the same port on all, {DEFAULT_SYNC_PORT}"),
        ));
    }
    if !listen.ip().is_unspecified() && !this.addresses.contains(&listen.ip()) {
        let message = format!(
            "cluster.listen: {} is no address of controller {}; write one of its addresses, 0.0.0.0 or [::]",
            listen.ip(),
            this.name
        );
        return Err(Fault::at(span, message));
    }
    let reaches = |c: &Controller| c.addresses.iter().any(|a| hears(listen.ip(), *a));
    if let Some(deaf) = controllers.iter().find(|c| !reaches(c)) {
        let message = format!(
            "cluster.listen: {} cannot exchange datagrams with controller {}, whose addresses are all of the other \
             family; listen on \"[::]:{}\", or give it an address of this family",
            listen.ip(),
            deaf.name,
            listen.port()
        );
        return Err(Fault::at(span, message));
    }
    Ok(listen)
}

/// Whether a socket bound to `listen` can exchange datagrams with `peer`; one bound to `[::]` takes both
/// families.
pub fn hears(listen: IpAddr, peer: IpAddr) -> bool {
    listen.is_ipv4() == peer.is_ipv4() || (listen.is_ipv6() && listen.is_unspecified())
}

fn relay_ports(
    raw: Option<&Spanned<String>>,
    api_port: u16,
    sync_port: u16,
    others: usize,
    cluster: &Range<usize>,
) -> Result<RelayPorts, Fault> {
    let span = raw.map_or_else(|| cluster.clone(), Spanned::span);
    let wrong = |why: String| Err(Fault::at(span.clone(), format!("cluster.relay_ports: {why}")));
    let range = match raw {
        None => DEFAULT_RELAY_PORTS,
        Some(raw) => match port_range(raw.get_ref()) {
            Some(range) => range,
            None => {
                return wrong(format!("{:?} is not a range; write \"{DEFAULT_RELAY_PORTS}\"", raw.get_ref()));
            }
        },
    };
    if range.first > range.last {
        return wrong(format!("{range} ends before it starts; write \"{}-{}\"", range.last, range.first));
    }
    if range.count() > usize::from(MAX_RELAY_PORTS) {
        return wrong(format!("{range} holds {} ports; write at most {MAX_RELAY_PORTS}", range.count()));
    }
    if range.count() < others {
        return wrong(format!(
            "{range} holds {} ports; write at least {others}, one for each other controller",
            range.count()
        ));
    }
    for (port, key) in [(api_port, "api.port"), (sync_port, "the port of cluster.listen")] {
        if range.contains(port) {
            return wrong(format!("{range} contains {port}, {key}; write a range without it"));
        }
    }
    for (port, service) in JUJU_PORTS {
        if range.contains(port) {
            return wrong(format!(
                "{range} contains {port}, a Juju controller's {service}; write a range without it"
            ));
        }
    }
    Ok(range)
}

fn port_range(text: &str) -> Option<RelayPorts> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port != 0);
    Some(RelayPorts { first: port(first)?, last: port(last)? })
}

fn paths(raw: RawPaths, host: &Host) -> Result<Paths, Fault> {
    let pins = absolute("paths.pins", raw.pins.as_ref(), DEFAULT_PINS)?;
    let control = absolute("paths.control", raw.control.as_ref(), DEFAULT_CONTROL)?;
    if control.as_os_str().len() > MAX_SOCKET_PATH {
        let message = format!(
            "paths.control: longer than a socket's path may be; write at most {MAX_SOCKET_PATH} bytes"
        );
        return Err(Fault { span: raw.control.map(|raw| raw.span()), message });
    }
    let juju = match &raw.juju {
        Some(raw) => absolute("paths.juju", Some(raw), "")?,
        None => host.juju.clone(),
    };
    let cgroup = match (&raw.cgroup, &host.cgroup2) {
        (Some(raw), _) => absolute("paths.cgroup", Some(raw), "")?,
        (None, Some(mount)) => mount.clone(),
        (None, None) => {
            let message = "paths.cgroup: missing, and cgroup2 is not mounted; run `mount -t cgroup2 none \
                           /sys/fs/cgroup`, or set paths.cgroup";
            return Err(Fault { span: None, message: message.to_owned() });
        }
    };
    Ok(Paths { pins, control, cgroup, juju })
}

fn absolute(key: &str, raw: Option<&Spanned<String>>, default: &str) -> Result<PathBuf, Fault> {
    let Some(raw) = raw else { return Ok(PathBuf::from(default)) };
    let path = PathBuf::from(raw.get_ref());
    let plain = path.components().all(|part| part != std::path::Component::ParentDir);
    if path.is_absolute() && path.parent().is_some() && plain && !raw.get_ref().contains('\0') {
        return Ok(path);
    }
    let message =
        format!("{key}: {:?} is not usable; write an absolute path below / without \"..\"", raw.get_ref());
    Err(Fault::at(raw.span(), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
[api]
port = 17070
interfaces = ["eth0"]
hook = "tc"
hard_limit = 10000
health = "tcp"
exempt = ["10.9.0.0/16", "192.0.2.7", "::ffff:10.8.0.0/112"]
[cluster]
name = "b"
listen = "[::]:17079"
relay_ports = "18000-18003"
key_file = "/etc/balancer/other.key"
[[cluster.controllers]]
name = "a"
addresses = ["10.0.0.11", "fd00::11"]
weight = 2
[[cluster.controllers]]
name = "b"
addresses = ["::ffff:10.0.0.12"]
[policy]
steer = "off"
[paths]
pins = "/sys/fs/bpf/other"
control = "/run/other.sock"
cgroup = "/cg"
juju = "/j"
"#;

    fn host(addresses: &[&str]) -> Host {
        Host {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            cgroup2: Some(PathBuf::from("/sys/fs/cgroup")),
            juju: PathBuf::from("/nonexistent/juju"),
        }
    }

    fn parse(text: &str, host: &Host) -> Result<Config, String> {
        Config::parse(Path::new("f.toml"), text, host).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(WHOLE, &host(&[])).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let expected = Config {
            api: Api {
                port: 17070,
                interfaces: Some(vec!["eth0".to_owned()]),
                hook: Hook::Tc,
                hard_limit: Some(10_000),
                health: Health::Tcp,
                exempt: ["10.9.0.0/16", "192.0.2.7/32", "10.8.0.0/16"].map(|n| n.parse().unwrap()).to_vec(),
            },
            cluster: Cluster {
                source: Source::File,
                name: "b".to_owned(),
                listen: "[::]:17079".parse().unwrap(),
                relay_ports: RelayPorts { first: 18000, last: 18003 },
                key: KeySource::File(PathBuf::from("/etc/balancer/other.key")),
                controllers: vec![
                    Controller {
                        name: "a".to_owned(),
                        addresses: vec![ip("10.0.0.11"), ip("fd00::11")],
                        weight: 2.0,
                    },
                    Controller { name: "b".to_owned(), addresses: vec![ip("10.0.0.12")], weight: 1.0 },
                ],
                candidates: Vec::new(),
            },
            policy: Policy { steer: Steer::Off, ..Policy::default() },
            paths: Paths {
                pins: PathBuf::from("/sys/fs/bpf/other"),
                control: PathBuf::from("/run/other.sock"),
                cgroup: PathBuf::from("/cg"),
                juju: PathBuf::from("/j"),
            },
        };
        assert_eq!(config, expected);
        assert_eq!(config.cluster.this().name, "b");
        assert_eq!(config.cluster.others().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn every_key_but_the_controllers_has_a_default() {
        let text = "[[cluster.controllers]]\nname = \"a\"\naddresses = [\"10.0.0.11\", \"fd00::11\"]\n";
        let config = parse(text, &host(&["192.0.2.1", "::ffff:10.0.0.11", "fd00::11"])).unwrap();
        assert_eq!(
            config.api,
            Api {
                port: 17070,
                interfaces: None,
                hook: Hook::Auto,
                hard_limit: None,
                health: Health::Https,
                exempt: vec![]
            }
        );
        assert_eq!(config.cluster.name, "a");
        assert_eq!(config.cluster.listen, "10.0.0.11:17078".parse().unwrap());
        assert_eq!(config.cluster.relay_ports.to_string(), "17080-17095");
        assert_eq!(config.cluster.relay_ports.iter().count(), 16);
        assert_eq!(config.cluster.key, KeySource::File(PathBuf::from("/etc/balancer/cluster.key")));
        assert_eq!(config.cluster.controllers[0].weight.to_string(), "1");
        assert_eq!(config.paths.pins, Path::new("/sys/fs/bpf/balancer"));
        assert_eq!(config.paths.control, Path::new("/run/balancer/control.sock"));
        assert_eq!(config.paths.cgroup, Path::new("/sys/fs/cgroup"));
    }

    /// One controller `a`, below whatever `top` and `cluster` say.
    fn with(top: &str, cluster: &str, rest: &str) -> String {
        format!(
            "{top}\n[cluster]\n{cluster}\n[[cluster.controllers]]\nname = \"a\"\naddresses = [\"10.0.0.11\"]\n{rest}\n"
        )
    }

    fn other(name: &str, address: &str) -> String {
        format!("[[cluster.controllers]]\nname = \"{name}\"\naddresses = [\"{address}\"]\n")
    }

    /// Each row: what stands in the file, and what its message holds.
    fn refused<'a>(rows: &[(&'a str, &str)], file: impl Fn(&'a str) -> String) {
        for (typed, expected) in rows {
            let error = parse(&file(typed), &host(&[])).expect_err(typed);
            assert!(error.contains(expected), "{typed}\nexpected: {expected}\ngot: {error}");
        }
    }

    #[test]
    fn wrong_api_keys_are_named_with_their_place() {
        #[rustfmt::skip] // a row a line
        let rows = [
            ("prot = 1", "f.toml:2:1: unknown key `prot`, expected one of `port`, `interfaces`"),
            ("port = 0", "f.toml:2:8: api.port: 0 is not a port; write one from 1 to 65535"),
            ("port = 70000", "f.toml:2:8: api.port: 70000 is not a port"),
            ("port = \"a\"", "f.toml:2:8: invalid type: string \"a\", expected i64\n  2 | port = \"a\"\n    |        ^"),
            ("port = ", "f.toml:2:"),
            ("port = 1\nport = 2", "f.toml:3:1: duplicate key"),
            ("interfaces = []", "f.toml:2:14: api.interfaces: empty; name an interface"),
            ("interfaces = [\"e\", \"a23456789abcdef0\"]", "f.toml:2:20: api.interfaces: \"a23456789abcdef0\" is"),
            ("interfaces = [\"a/b\"]", "f.toml:2:15: api.interfaces: \"a/b\" is not an interface name"),
            ("interfaces = [\"lo\"]", "f.toml:2:15: api.interfaces: \"lo\" carries the controller's own"),
            ("interfaces = [\"a\", \"a\"]", "f.toml:2:20: api.interfaces: \"a\" is listed twice"),
            ("hook = \"TC\"", "f.toml:2:8: api.hook: \"TC\" is unknown; write \"auto\", \"tc\" or \"xdp\""),
            ("hard_limit = 0", "f.toml:2:14: api.hard_limit: 0 is out of range"),
            ("hard_limit = 4294967296", "f.toml:2:14: api.hard_limit: 4294967296 is out of range"),
            ("health = \"http\"", "f.toml:2:10: api.health: \"http\" is unknown"),
            ("exempt = [\"10.9.0.0/33\"]", "f.toml:2:11: api.exempt: \"10.9.0.0/33\" is not a network"),
            ("exempt = [\"10.9.1.0/16\"]", "f.toml:2:11: api.exempt: \"10.9.1.0/16\" has host bits set; write \"10.9"),
            ("exempt = [\"0.0.0.0/0\"]", "f.toml:2:11: api.exempt: \"0.0.0.0/0\" exempts every client"),
        ];
        refused(&rows, |line| with(&format!("[api]\n{line}"), "name = \"a\"", ""));
        let error = parse(&with("[api]\nport = 17090", "name = \"a\"", ""), &host(&[])).unwrap_err();
        assert!(
            error.contains("f.toml:3:1: cluster.relay_ports: 17080-17095 contains 17090, api.port"),
            "{error}"
        );
    }

    #[test]
    fn wrong_controllers_are_named_with_their_place() {
        let table = |name: &str, address: &str| other(name, address);
        #[rustfmt::skip] // a row a line
        let rows = [
            (table("a", "10.0.0.12"), "f.toml:7:8: cluster.controllers.name: \"a\" is used twice"),
            (table("a b", "10.0.0.12"), "f.toml:7:8: cluster.controllers.name: \"a b\" is not a name"),
            (table("b", "10.0.0.11"), "f.toml:8:14: cluster.controllers.addresses: \"10.0.0.11\" is already an"),
            (table("b", "::ffff:10.0.0.11"), "\"::ffff:10.0.0.11\" is already an address of a; remove one"),
            (table("b", "b.lan"), "f.toml:8:14: cluster.controllers.addresses: \"b.lan\" is not an IP address"),
            (table("b", "127.0.0.1"), "\"127.0.0.1\" is a loopback address; write an address at which"),
            (table("b", "::"), "\"::\" is the unspecified address"),
            (table("b", "ff02::1"), "\"ff02::1\" is a multicast address"),
            (table("b", "255.255.255.255"), "\"255.255.255.255\" is the broadcast address"),
            (table("b", "fe80::1"), "\"fe80::1\" is a link-local address"),
            (table("b", "fd00::12"), "f.toml:1:1: cluster.listen: 10.0.0.11 cannot exchange datagrams with controller b"),
            ((0..16).map(|i| other(&format!("c{i}"), &format!("10.0.1.{i}"))).collect(), "17 controllers, and at most 16"),
            ("[[cluster.controllers]]\nname = \"b\"".to_owned(), "f.toml:6:1: missing key `addresses`"),
            ("[[cluster.controllers]]\nname = \"b\"\naddresses = []".to_owned(), "f.toml:8:13: cluster.controllers.addr"),
            ("weight = 0".to_owned(), "f.toml:6:10: cluster.controllers.weight: 0 is out of range"),
            ("weight = 100.5".to_owned(), "f.toml:6:10: cluster.controllers.weight: 100.5 is out of range"),
            ("weight = nan".to_owned(), "f.toml:6:10: cluster.controllers.weight: NaN is out of range"),
        ];
        let rows: Vec<_> = rows.iter().map(|(typed, expected)| (typed.as_str(), *expected)).collect();
        refused(&rows, |rest| with("", "name = \"a\"", rest)[1..].to_owned());
        refused(
            &[("[api]\nport = 1\n", "f.toml: cluster.controllers: missing; add one [[cluster.")],
            str::to_owned,
        );
        refused(
            &[("\n[cluster]\nname = \"a\"\n", "f.toml:2:1: cluster.controllers: missing")],
            str::to_owned,
        );
    }

    #[test]
    fn wrong_cluster_keys_are_named_with_their_place() {
        #[rustfmt::skip] // a row a line
        let rows = [
            ("listen = \"17078\"", "f.toml:4:10: cluster.listen: \"17078\" is not an address with a port; write \"10.0."),
            ("listen = \"10.0.0.11:0\"", "f.toml:4:10: cluster.listen: port 0"),
            ("listen = \"10.0.0.12:17078\"", "f.toml:4:10: cluster.listen: 10.0.0.12 is no address of controller a"),
            ("relay_ports = \"17080:17095\"", "f.toml:4:15: cluster.relay_ports: \"17080:17095\" is not a range"),
            ("relay_ports = \"0-5\"", "cluster.relay_ports: \"0-5\" is not a range"),
            ("relay_ports = \"17095-17080\"", "17095-17080 ends before it starts; write \"17080-17095\""),
            ("relay_ports = \"17080-17144\"", "17080-17144 holds 65 ports; write at most 64"),
            ("relay_ports = \"17060-17075\"", "17060-17075 contains 17070, api.port"),
            ("relay_ports = \"17071-17079\"", "17071-17079 contains 17078, the port of cluster.listen"),
            ("relay_ports = \"17660-17670\"", "17660-17670 contains 17666, a Juju controller's Dqlite"),
            ("key_file = \"k\"", "f.toml:4:12: cluster.key_file: \"k\" is not usable; write an absolute path"),
        ];
        refused(&rows, |line| with("", &format!("name = \"a\"\n{line}"), ""));
        let two_more = other("b", "10.0.0.12") + &other("c", "10.0.0.13");
        refused(
            &[("17080", "17080-17080 holds 1 ports; write at least 2, one for each other controller")],
            |ports| with("", &format!("name = \"a\"\nrelay_ports = \"{ports}\""), &two_more),
        );
        #[rustfmt::skip] // a row a line
        let names = [
            ("name = \"z\"", "f.toml:3:8: cluster.name: \"z\" is none of the controllers (a); write one of them"),
            ("", "f.toml:2:1: cluster.name: missing, and this host has no address of any controller (a)"),
        ];
        refused(&names, |line| with("", line, ""));
    }

    #[test]
    fn wrong_paths_are_named_with_their_place() {
        let long = format!("control = \"/{}\"", "x".repeat(107));
        #[rustfmt::skip] // a row a line
        let rows = [
            ("pins = \"pins\"", "f.toml:8:8: paths.pins: \"pins\" is not usable; write an absolute path"),
            ("pins = \"/\"", "paths.pins: \"/\" is not usable"),
            ("pins = \"/a/../b\"", "paths.pins: \"/a/../b\" is not usable"),
            (long.as_str(), "f.toml:8:11: paths.control: longer than a socket's path may be"),
            ("cgroup = \"\"", "f.toml:8:10: paths.cgroup: \"\" is not usable"),
            ("juju = \"juju\"", "f.toml:8:8: paths.juju: \"juju\" is not usable"),
            ("cgruop = \"\"", "f.toml:8:1: unknown key `cgruop`"),
        ];
        refused(&rows, |line| with("", "name = \"a\"", &format!("[paths]\n{line}")));
    }

    #[test]
    fn an_own_name_must_be_plain() {
        let text = with("", "", &other("b", "10.0.0.12"));
        assert_eq!(parse(&text, &host(&["10.0.0.12"])).unwrap().cluster.name, "b");
        let error = parse(&text, &host(&["10.0.0.12", "10.0.0.11"])).unwrap_err();
        assert!(
            error.contains("f.toml:2:1: cluster.name: missing, and this host has addresses of a and b"),
            "{error}"
        );
    }

    #[test]
    fn a_host_without_cgroup2_needs_the_path() {
        let host = Host::default();
        let error = parse(&with("", "name = \"a\"", ""), &host).unwrap_err();
        assert!(error.contains("f.toml: paths.cgroup: missing, and cgroup2 is not mounted"), "{error}");
        let text = with("", "name = \"a\"", "[paths]\ncgroup = \"/cg\"");
        assert_eq!(parse(&text, &host).unwrap().paths.cgroup, Path::new("/cg"));
    }

    #[test]
    fn cgroup2_is_found_among_mounts() {
        let mounts = "proc /proc proc rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n\
                      cgroup2 /sys/fs/my\\040group cgroup2 rw 0 0\ncgroup2 /other cgroup2 rw 0 0\n";
        assert_eq!(cgroup2_in(mounts), Some(PathBuf::from("/sys/fs/my group")));
        assert_eq!(cgroup2_in("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/nonexistent/balancer.toml"), &[]).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/balancer.toml: cannot read the configuration: "), "{error}");
        assert!(error.ends_with("name the file with --config FILE"), "{error}");
    }
}
