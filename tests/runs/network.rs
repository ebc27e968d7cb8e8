//! The host's network changes under the balancer: the agent follows, and puts back what others remove.

use std::fs;

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions};
use balancer::datapath::{Kernel, load_object};
use balancer_common::records::{Controller, LAYOUT, Settings, map};
use tests::cluster::daemon::Daemon;
use tests::cluster::{Cluster, ClusterOptions};
use tests::network::namespace::Namespace;
use tests::support::eventually::{SOON, eventually, wait_for};
use tests::support::process::run;

fn one_controller(tag: &str, hook: Option<&str>) -> Result<Cluster> {
    let hook = hook.map(ToString::to_string);
    Cluster::start(ClusterOptions { controllers: 1, hook, ..ClusterOptions::new(tag) })
}

/// Names of the programs of a tcx hook of `eth0`, in their order.
fn chain(host: &Namespace, direction: TcAttachType) -> Result<Vec<String>> {
    chain_of(host, "eth0", direction)
}

fn chain_of(host: &Namespace, interface: &str, direction: TcAttachType) -> Result<Vec<String>> {
    host.enter(|| {
        let (_, programs) = SchedClassifier::query_tcx(interface, direction)?;
        Ok(programs.iter().filter_map(|program| Some(program.name_as_str()?.to_owned())).collect())
    })?
}

#[test]
fn links_that_somebody_removes_are_put_back() -> Result<()> {
    let mut cluster = one_controller("putback", None)?;
    let host = &cluster.net.controllers[0].namespace;
    let daemon = &mut cluster.daemons[0];
    for program in ["ingress", "egress", "track", "admit"] {
        let logged = daemon.log_lines().len();
        let pins = daemon.pinned("links")?;
        let name_of = |pin: &std::path::PathBuf| pin.file_name().unwrap_or_default().display().to_string();
        let pin = pins.iter().find(|pin| name_of(pin).split('-').next() == Some(program));
        // The last reference: the kernel detaches the link.
        fs::remove_file(pin.with_context(|| format!("the pin of {program} in {pins:?}"))?)?;
        daemon.await_log(logged, &format!("somebody had removed {program} from"), SOON)?;
        let is_back = |pins: &Vec<_>| pins.iter().any(|pin| name_of(pin).split('-').next() == Some(program));
        wait_for(SOON, "the link", || daemon.pinned("links"), is_back)?;
    }
    wait_for(SOON, "ingress", || chain(host, TcAttachType::Ingress), |chain| chain == &["ingress"])?;
    wait_for(SOON, "egress", || chain(host, TcAttachType::Egress), |chain| chain == &["egress"])?;
    Ok(())
}

#[test]
fn a_neighbour_ahead_is_overtaken() -> Result<()> {
    let mut cluster = one_controller("overtake", None)?;
    let host = &cluster.net.controllers[0].namespace;
    // Another instance, with settings of its own that nobody fills in: it passes every packet.
    let mut neighbour = load_object(&Kernel::ask()?, |_| {})?;
    let program: &mut SchedClassifier =
        neighbour.program_mut("egress").context("no program egress")?.try_into()?;
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        host.enter(|| program.attach_with_options("eth0", direction, first))??;
    }
    ensure!(chain(host, TcAttachType::Ingress)? == ["egress", "ingress"], "the neighbour is ahead at first");
    let overtaken = |chain: &Vec<String>| chain == &["ingress", "egress"];
    wait_for(SOON, "the order", || chain(host, TcAttachType::Ingress), overtaken)?;
    cluster.daemons[0].await_log(0, "had put itself before ingress on interface eth0", SOON)
}

/// The priorities and handles of the filters that run, in their order.
fn filters(host: &Namespace, direction: &str) -> Result<Vec<String>> {
    let listed = host.exec(&format!("tc filter show dev eth0 {direction}"))?;
    let lines = listed.lines().filter(|line| line.contains(" handle "));
    let word = |line: &str, before: &str| -> String {
        let mut words = line.split_whitespace().skip_while(|word| *word != before);
        words.nth(1).unwrap_or_default().to_owned()
    };
    Ok(lines.map(|line| format!("{} {}", word(line, "pref"), word(line, "handle"))).collect())
}

/// Adds a filter of priority 1 that matches nothing.
fn add_neighbour(host: &Namespace, protocol: &str) -> Result<()> {
    let filter = ["filter", "add", "dev", "eth0", "ingress", "pref", "1", "protocol", protocol, "bpf"];
    run(host.command("tc").args(filter).args(["bytecode", "1,6 0 0 0,"])).map(drop)
}

/// Makes the qdisc anew with a neighbour's filter of IPv4 alone, before the agent hears of it.
fn new_qdisc_with_neighbour(host: &Namespace) -> Result<()> {
    let script = "qdisc del dev eth0 clsact\nqdisc add dev eth0 clsact\n\
                  filter add dev eth0 ingress pref 1 protocol ip bpf bytecode \"1,6 0 0 0,\"\n";
    run(host.command("sh").args(["-c", "printf %s \"$1\" | tc -batch -", "sh", script])).map(drop)
}

#[test]
fn filters_that_somebody_removes_are_put_back() -> Result<()> {
    let mut cluster = one_controller("putbacko", Some("clsact"))?;
    let host = &cluster.net.controllers[0].namespace;
    let daemon = &mut cluster.daemons[0];
    let ours = |filters: &Vec<String>| filters == &["1 0x42ae"];
    for direction in ["ingress", "egress"] {
        wait_for(SOON, "the first filter", || filters(host, direction), ours)?;
    }
    host.exec("tc qdisc del dev eth0 clsact")?;
    for direction in ["ingress", "egress"] {
        wait_for(SOON, "the filter of a new qdisc", || filters(host, direction), ours)?;
    }
    daemon.await_log(0, "somebody had removed ingress from interface eth0", SOON)?;
    // A neighbour takes the same priority: the newest filter of a priority runs first.
    add_neighbour(host, "all")?;
    let overtaken = |filters: &Vec<String>| filters == &["1 0x42ae", "1 0x1"];
    wait_for(SOON, "the order", || filters(host, "ingress"), overtaken)?;
    // Filters of IPv4 alone leave no place of their priority.
    eventually(SOON, "a neighbour in a new qdisc", || new_qdisc_with_neighbour(host))?;
    let behind = |filters: &Vec<String>| filters == &["1 0x1", "2 0x42ae"];
    wait_for(SOON, "the filter behind", || filters(host, "ingress"), behind)?;
    daemon.await_log(0, "another program runs before ingress on interface eth0", SOON)?;
    host.exec("tc filter del dev eth0 ingress pref 1")?;
    wait_for(SOON, "the only filter", || filters(host, "ingress"), |filters| filters.len() == 1)?;
    daemon.sigterm()?;
    daemon.uninstall()?;
    ensure!(filters(host, "ingress")?.is_empty() && filters(host, "egress")?.is_empty());
    Ok(())
}

/// The records of a pinned array at the first `count` indices.
fn array<T: aya::Pod>(daemon: &Daemon, name: &str, count: u32) -> Result<Vec<T>> {
    let map = MapData::from_pin(daemon.pins().join(LAYOUT).join("maps").join(name))?;
    let array = Array::<_, T>::try_from(Map::Array(map))?;
    (0..count).map(|index| Ok(array.get(&index, 0)?)).collect()
}

/// The network of a host as its programs know it: the settings, and the other controller.
fn known(daemon: &Daemon) -> Result<(Settings, Controller)> {
    let settings: Vec<Settings> = array(daemon, map::SETTINGS, 1)?;
    let settings = *settings.first().context("no settings")?;
    let controllers: Vec<Controller> = array(daemon, map::CONTROLLERS, 2)?;
    let other = usize::from(settings.own == 0);
    Ok((settings, *controllers.get(other).context("no other controller")?))
}

fn index_of(host: &Namespace, interface: &str) -> Result<u32> {
    let shown = host.exec(&format!("ip -o link show {interface}"))?;
    Ok(shown.split(':').next().context("no index")?.trim().parse()?)
}

/// `juju add-machine lxd:0` moves a host's address to a bridge, with the interface as its port.
#[test]
fn the_programs_follow_an_address_to_a_bridge() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions { controllers: 2, ..ClusterOptions::new("tobridge") })?;
    let host = &cluster.net.controllers[0].namespace;
    let daemon = &mut cluster.daemons[0];
    let has_filters = host.exec("ls /proc/sys/net/bridge").is_ok();
    let filter = |on: bool| -> Result<()> {
        let value = if on { "1" } else { "0" };
        host.sysctl("net/bridge/bridge-nf-call-iptables", value)?;
        host.sysctl("net/bridge/bridge-nf-call-ip6tables", value)
    };
    if has_filters {
        filter(false)?;
    }
    let eth0 = index_of(host, "eth0")?;
    let (before, other) = known(daemon)?;
    ensure!((before.only_way, other.ifindex, other.ifindex_v6) == (eth0, eth0, eth0), "{before:?} {other:?}");
    ensure!(other.mtu == [1_500; 2] && before.epoch != 0, "{before:?} {other:?}");
    host.ip(
        "link add br0 mtu 1400 type bridge\naddr flush dev eth0\nlink set eth0 mtu 1400 master br0\nlink set br0 up\n\
         addr add 10.77.0.11/16 dev br0\naddr add fd77::11/64 dev br0 nodad",
    )?;
    let br0 = index_of(host, "br0")?;
    let at_bridge = |known: &(Settings, Controller)| {
        let (settings, other) = known;
        settings.epoch > before.epoch
            && (settings.only_way, other.ifindex, other.ifindex_v6) == (br0, br0, br0)
            && other.mtu == [1_400; 2]
    };
    wait_for(SOON, "the ways by the bridge", || known(daemon), at_bridge)?;
    let ingresses = || -> Result<_> {
        Ok([chain(host, TcAttachType::Ingress)?, chain_of(host, "br0", TcAttachType::Ingress)?])
    };
    let moved = |chains: &[Vec<String>; 2]| chains[0].is_empty() && chains[1] == ["ingress"];
    wait_for(SOON, "ingress on the bridge", ingresses, moved)?;
    ensure!(chain_of(host, "br0", TcAttachType::Egress)? == ["egress"]);
    daemon.await_log(0, "eth0 is a port of br0 now", SOON)?;
    if has_filters {
        // Connection tracking would see the frames before a program on the bridge.
        filter(true)?;
        let at_port = |chains: &[Vec<String>; 2]| chains[0] == ["ingress"] && chains[1].is_empty();
        wait_for(SOON, "ingress on the port", ingresses, at_port)?;
        daemon.await_log(0, "the programs move from br0 to its ports", SOON)?;
        filter(false)?;
        wait_for(SOON, "ingress on the bridge again", ingresses, moved)?;
    }
    // BIG TCP, which a bridge's port passes on.
    host.exec("ip link set dev eth0 gro_max_size 100000")?;
    daemon.await_log(0, "no client is relayed over IPv6: eth0 makes packets of up to 100000", SOON)?;
    host.exec("ip link set dev eth0 gro_max_size 65536")?;
    daemon.await_log(0, "clients are relayed over IPv6 again", SOON)?;
    // An agent that starts now finds the programs where they belong.
    daemon.restart()?;
    ensure!(moved(&ingresses()?), "after a restart: {:?}", ingresses()?);
    Ok(())
}
