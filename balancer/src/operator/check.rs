//! `balancer check`: can this host run the balancer, and what is missing?

use std::{
    fmt::{self, Display},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::Path,
    time::Duration,
};

use anyhow::Result;

use crate::{
    balance::limits,
    config::{Config, Hook, Source},
    count::sock_diag::{SockDiag, State},
    datapath,
    host::{
        interfaces::{self, Interfaces},
        privileges,
        rst::{self, ProbeResult},
        xdp_support,
    },
    juju::{
        agent_conf::{self, AgentConf},
        introspection,
    },
    operator::{
        control::{self, Request},
        status::{self, Status},
    },
};

/// How long a peer's host has to answer.
const PROBE: Duration = Duration::from_secs(1);

/// One thing looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    grade: Grade,
    what: &'static str,
    text: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Grade {
    Good,
    Doubtful,
    Fatal,
}

impl Finding {
    fn good(what: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Good, what, text: text.into() }
    }

    fn doubtful(what: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Doubtful, what, text: text.into() }
    }

    fn fatal(what: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Fatal, what, text: text.into() }
    }

    /// Whether `balancer run` would fail for it.
    pub fn is_fatal(&self) -> bool {
        self.grade == Grade::Fatal
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Good => "ok  ",
            Grade::Doubtful => "look",
            Grade::Fatal => "FAIL",
        };
        write!(f, "{grade}  {:<12} {}", self.what, self.text)
    }
}

/// Looks at everything that the daemon needs; changes nothing.
///
/// # Errors
/// Something could not even be looked at.
pub async fn check(path: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let missing = privileges::check()?;
    if missing.is_empty() {
        findings.push(Finding::good("privileges", "all capabilities that the daemon needs"));
    }
    findings.extend(missing.iter().map(|missing| Finding::fatal("privileges", missing.to_string())));
    findings.push(kernel());
    let links = Interfaces::open()?;
    let config = match Config::load(path, &links.host_addresses().await?) {
        Ok(config) => config,
        Err(error) => {
            findings.push(Finding::fatal("config", error.to_string()));
            return Ok(findings);
        }
    };
    findings.extend(configuration(path, &config));
    findings.push(match config.cluster.key.load() {
        Ok(_) => Finding::good("key", config.cluster.key.to_string()),
        Err(error) => Finding::fatal("key", format!("{error:#}")),
    });
    if config.api.hard_limit.is_none() {
        findings.push(Finding::good("limit", limits::derive().1));
    }
    findings.extend(devices(&config, &links).await?);
    findings.push(listener(&config));
    findings.extend(jujud(&config).await);
    findings.push(relay_ports(&config));
    findings.extend(peers(&config, &links).await);
    findings.extend(sync(&config).await);
    Ok(findings)
}

/// Where the configuration comes from, and what of it from Juju's `agent.conf`.
fn configuration(path: &Path, config: &Config) -> Vec<Finding> {
    let from = if path.exists() { path.display().to_string() } else { format!("no {}", path.display()) };
    let others = config.cluster.others().count();
    let others = match config.cluster.source {
        Source::File => format!("{others} others"),
        Source::AgentConf(_) => format!("{others} addresses of others"),
    };
    let mut findings =
        vec![Finding::good("config", format!("{from}; controller {}, {others}", config.cluster.name))];
    match agent_conf::find(&config.paths.juju) {
        Ok(Some(conf)) => {
            let text = match config.cluster.source {
                Source::AgentConf(_) => taken_from(&conf, config),
                Source::File => format!("{}; the configuration names the controllers", conf.path.display()),
            };
            findings.push(Finding::good("agent.conf", text));
        }
        Ok(None) => {}
        Err(error) => findings.push(Finding::doubtful("agent.conf", format!("{error:#}"))),
    }
    findings
}

fn taken_from(conf: &AgentConf, config: &Config) -> String {
    let list = |addresses: Vec<IpAddr>| {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        if addresses.is_empty() { "none".to_owned() } else { addresses.join(", ") }
    };
    let port = match conf.api_port {
        Some(port) if port == config.api.port => format!("API port {port}"),
        Some(port) => format!("API port {port} (api.port is {}, which counts)", config.api.port),
        None => format!("no API port (so {})", config.api.port),
    };
    let own = list(config.cluster.this().addresses.clone());
    let others =
        list(config.cluster.others().flat_map(|controller| &controller.addresses).copied().collect());
    let skipped = match conf.skipped.as_slice() {
        [] => String::new(),
        names => format!("; no IP addresses, and of no use: {}", names.join(", ")),
    };
    format!("{}: {port}; own addresses {own}; others' {others}{skipped}", conf.path.display())
}

/// What jujud counts, beside what the kernel does.
async fn jujud(config: &Config) -> Option<Finding> {
    let socket = introspection::socket(config)?;
    let counted = match introspection::connections(&socket).await {
        Ok(counted) => status::by_endpoint(&counted),
        Err(error) if introspection::is_absent(&error) => return None,
        Err(error) => return Some(Finding::doubtful("jujud", format!("{error:#}"))),
    };
    let ports = config.cluster.relay_ports;
    let ranges = [config.api.port..=config.api.port, ports.first..=ports.last];
    let sockets = SockDiag::open().and_then(|mut sockets| sockets.dump(&ranges, &State::IN_USE));
    Some(match sockets {
        Ok(sockets) => {
            Finding::good("jujud", format!("{counted}; the kernel counts {} sockets", sockets.len()))
        }
        Err(error) => Finding::doubtful("jujud", format!("{counted}; {error:#}")),
    })
}

fn kernel() -> Finding {
    let release = nix::sys::utsname::uname()
        .map_or_else(|_| "?".into(), |name| name.release().to_string_lossy().into_owned());
    // Before 5.11 programs and maps count against RLIMIT_MEMLOCK; where that cannot be lifted, loading says so.
    let _: Result<()> = privileges::raise_limits();
    let loaded = datapath::Kernel::ask().and_then(|kernel| datapath::load_object(&kernel, |_| {}));
    match loaded {
        Ok(_) => Finding::good("kernel", format!("{release} takes every program")),
        Err(error) => Finding::fatal("kernel", format!("{release}: {error:#}; 5.10 or newer is needed")),
    }
}

async fn devices(config: &Config, links: &Interfaces) -> Result<Vec<Finding>> {
    let all = links.list().await?;
    let own = &config.cluster.this().addresses;
    Ok(match interfaces::api_interfaces(&all, config.api.interfaces.as_deref(), own) {
        Ok(api) => {
            let mut findings = Vec::new();
            for device in api {
                let hook = datapath::hook_of_this_kernel(&device.name).name();
                let text = format!("{}: hook {hook}, MTU {}", device.name, device.mtu);
                findings.push(match xdp_support::why_not(device, &all, config.api.hook) {
                    None => Finding::good("interface", format!("{text}; native XDP too, if its driver can")),
                    Some(why) if config.api.hook == Hook::Xdp => {
                        Finding::doubtful("interface", format!("{text}; no XDP: {why}"))
                    }
                    Some(why) => Finding::good("interface", format!("{text}; no XDP: {why}")),
                });
            }
            findings
        }
        Err(error) => vec![Finding::fatal("interface", format!("{error:#}"))],
    })
}

fn listener(config: &Config) -> Finding {
    let port = config.api.port;
    match SockDiag::open().and_then(|mut sockets| sockets.listener_fds(port)) {
        Ok(listeners) if listeners.is_empty() => {
            Finding::doubtful("jujud", format!("nothing listens on TCP port {port} yet"))
        }
        Ok(_) => {
            Finding::good("jujud", format!("listens on TCP port {port} and can be given relayed connections"))
        }
        Err(error) => Finding::good(
            "jujud",
            format!("listens on TCP port {port}, and is handed relayed connections one by one: {error:#}"),
        ),
    }
}

/// Whether anything else has a relay port, as listener or as end of a connection.
fn relay_ports(config: &Config) -> Finding {
    let ports = config.cluster.relay_ports;
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    let (drawn, reserved) = (read("ip_local_port_range"), read("ip_local_reserved_ports"));
    let shared = ports.iter().any(|port| is_drawn(port, &drawn, &reserved)).then(|| {
        let range = drawn.split_whitespace().collect::<Vec<_>>().join(" ");
        Finding::doubtful(
            "relay ports",
            format!(
                "the kernel may give {ports} to connections of this host (net.ipv4.ip_local_port_range is {range}): \
                 set net.ipv4.ip_local_reserved_ports={ports}"
            ),
        )
    });
    if std::os::unix::net::UnixStream::connect(&config.paths.control).is_ok() {
        return shared
            .unwrap_or_else(|| Finding::good("relay ports", format!("{ports} are the running agent's")));
    }
    let is_taken = |port: u16| {
        let taken = |address: IpAddr| {
            TcpListener::bind((address, port)).is_err_and(|error| error.kind() == ErrorKind::AddrInUse)
        };
        // A host without IPv6 has no address of the first kind.
        taken(Ipv6Addr::UNSPECIFIED.into()) || taken(Ipv4Addr::UNSPECIFIED.into())
    };
    let listening = ports.iter().find(|&port| is_taken(port));
    if let Some(port) = listening {
        return Finding::fatal(
            "relay ports",
            format!("TCP port {port} is taken; choose others in cluster.relay_ports"),
        );
    }
    if let Some(shared) = shared {
        return shared;
    }
    let used = SockDiag::open()
        .and_then(|mut sockets| sockets.dump(&[ports.first..=ports.last], &State::AFTER_HANDSHAKE));
    match used {
        Ok(used) if used.is_empty() => Finding::good("relay ports", format!("{ports} are free")),
        Ok(used) => Finding::doubtful(
            "relay ports",
            format!(
                "{} connections use ports of {ports}; keep them out of net.ipv4.ip_local_port_range",
                used.len()
            ),
        ),
        Err(error) => Finding::doubtful("relay ports", format!("{error:#}")),
    }
}

/// Whether the kernel draws `port` for connections from here: `drawn` is first and last, `reserved` a list of ports and
/// ranges, as in `/proc/sys/net/ipv4` (kernel `Documentation/networking/ip-sysctl.rst`).
fn is_drawn(port: u16, drawn: &str, reserved: &str) -> bool {
    let number = |text: &str| text.trim().parse::<u16>().ok();
    let within = |first: &str, last: &str| {
        number(first).zip(number(last)).is_some_and(|(first, last)| (first..=last).contains(&port))
    };
    let range = drawn.trim().split_once(char::is_whitespace);
    let spared = |one: &str| one.split_once('-').map_or_else(|| within(one, one), |(a, b)| within(a, b));
    range.is_some_and(|(first, last)| within(first, last)) && !reserved.split(',').any(spared)
}

async fn peers(config: &Config, links: &Interfaces) -> Vec<Finding> {
    let mut findings = Vec::new();
    for peer in config.cluster.others() {
        for &address in &peer.addresses {
            if let Err(error) = links.route_to(address).await {
                findings.push(Finding::doubtful("peer", format!("{} at {address}: {error:#}", peer.name)));
                continue;
            }
            let api = SocketAddr::new(address, config.api.port);
            findings.push(match rst::probe(api, PROBE).await {
                ProbeResult::Alive => Finding::good("peer", format!("{} answers at {address}", peer.name)),
                ProbeResult::Silent => Finding::doubtful(
                    "peer",
                    format!(
                        "{} does not answer at {api}; is it down, or does a firewall block it?",
                        peer.name
                    ),
                ),
            });
        }
    }
    findings
}

/// What the running agent hears of the others.
async fn sync(config: &Config) -> Vec<Finding> {
    let answer = control::call(&config.paths.control, &Request::Status).await;
    let Some(status) = answer.ok().and_then(|answer| serde_json::from_value::<Status>(answer).ok()) else {
        return vec![Finding::doubtful(
            "agent",
            "not running: peer sync and clocks can only be looked at while it is",
        )];
    };
    let mut findings = vec![Finding::good("agent", format!("running; jujud here: {}", status.health))];
    for controller in status.controllers.iter().filter(|controller| controller.name != status.controller) {
        findings.push(match (controller.state.as_str(), controller.relay.as_str()) {
            ("absent", _) => Finding::doubtful(
                "sync",
                format!(
                    "{} is not heard; does a firewall block UDP {}?",
                    controller.name,
                    config.cluster.listen.port()
                ),
            ),
            (_, "unreachable") => Finding::doubtful(
                "relay",
                format!(
                    "{} does not answer on its relay ports; does a firewall there block TCP {}?",
                    controller.name, config.cluster.relay_ports
                ),
            ),
            (state, _) => Finding::good(
                "sync",
                format!("{} is {state}, heard {} ms ago", controller.name, controller.age_ms),
            ),
        });
    }
    if status.balance.steer.starts_with("refuse, as") {
        findings.push(Finding::doubtful(
            "steer",
            format!(
                "no other controller can be relayed to: newcomers are refused here so that they go elsewhere; do \
                 firewalls block TCP {}?",
                config.cluster.relay_ports
            ),
        ));
    }
    let count = |name: &str| status.counters.get(name).copied().unwrap_or(0);
    if count("sync_clock_skew") > 0 {
        findings.push(Finding::doubtful(
            "clock",
            format!(
                "{} datagrams came with a clock more than 30 s off; is every host's time synchronised?",
                count("sync_clock_skew")
            ),
        ));
    } else {
        findings.push(Finding::good("clock", "no datagram with a clock more than 30 s off"));
    }
    if count("sync_wrong_key") > 0 {
        findings.push(Finding::doubtful(
            "key",
            format!(
                "{} datagrams were sealed with another key; has every controller the same key?",
                count("sync_wrong_key")
            ),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_the_kernel_draws_are_those_of_its_range_that_are_not_reserved() {
        for (port, drawn, reserved, expected) in [
            (17_080, "32768\t60999\n", "\n", false),
            (17_080, "1024\t65535\n", "\n", true),
            (17_080, "17080\t17080\n", "", true),
            (17_080, "1024\t65535\n", "17080-17095\n", false),
            (17_095, "1024\t65535\n", "8080,17080-17095\n", false),
            (17_096, "1024\t65535\n", "8080,17080-17095\n", true),
            (8_080, "1024\t65535\n", "8080,17080-17095\n", false),
            (17_080, "", "", false),
        ] {
            assert_eq!(is_drawn(port, drawn, reserved), expected, "{port} of {drawn:?} without {reserved:?}");
        }
    }
}
