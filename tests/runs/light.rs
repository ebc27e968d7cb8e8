//! The agent is light: an idle one takes hardly any of a processor, and still the others hear of a change at once.
//!
//! The bounds are generous, as machines that run tests are busy: a wake costs several times as much there.
//! `LIGHT_CLIENTS=50000` measures another number of connections, `LIGHT_SECONDS=60` longer.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use balancer_common::records::{Controller, LAYOUT, MAX_CONTROLLERS, map};
use tests::cluster::daemon::Daemon;
use tests::cluster::{Cluster, ClusterOptions};
use tests::juju::fleet::{Dial, Kind};
use tests::support::eventually::{SOON, wait_for};

/// How long the processor is watched.
const WATCH: Duration = Duration::from_secs(10);
/// Agents have done by then all that they do at their start.
const SETTLE: Duration = Duration::from_secs(6);
/// Between two changes of which the others hear, so that each comes after quiet.
const QUIET: Duration = Duration::from_millis(400);
const CHANGES: usize = 25;
const MIB: u64 = 1 << 20;

/// A controller as a daemon's map has it: the load of the one at `address`.
fn load_of(map: &Array<MapData, Controller>, address: SocketAddr) -> Option<i64> {
    (0..MAX_CONTROLLERS as u32).find_map(|slot| {
        let controller = map.get(&slot, 0).ok()?;
        let is_it = address.ip() == std::net::IpAddr::from(controller.v4);
        (controller.name_hash != 0 && is_it).then_some(controller.view_base)
    })
}

fn controllers_of(daemon: &Daemon) -> Result<Array<MapData, Controller>> {
    let pin = daemon.pins().join(LAYOUT).join("maps").join(map::CONTROLLERS);
    Ok(Array::try_from(Map::Array(MapData::from_pin(pin)?))?)
}

/// The part of a processor that each agent takes, percent, while nothing happens.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of seconds")]
fn watch(cluster: &mut Cluster) -> Result<Vec<f64>> {
    sleep(SETTLE);
    let seconds = std::env::var("LIGHT_SECONDS").ok().and_then(|text| text.parse().ok());
    let span = seconds.map_or(WATCH, Duration::from_secs);
    let mut spent = || -> Result<Vec<Duration>> {
        cluster.daemons.iter_mut().map(|daemon| daemon.process()?.processor_time()).collect()
    };
    let (before, begun) = (spent()?, Instant::now());
    sleep(span);
    let (after, took) = (spent()?, begun.elapsed());
    let part = |(after, before): (&Duration, &Duration)| {
        after.saturating_sub(*before).as_nanos() as f64 / took.as_nanos() as f64 * 100.0
    };
    Ok(after.iter().zip(&before).map(part).collect())
}

fn quiet(tag: &str) -> ClusterOptions {
    let policy = toml::toml! { steer = "off" };
    ClusterOptions { policy, nft: false, plain: true, ..ClusterOptions::new(tag) }
}

#[test]
fn an_idle_agent_takes_hardly_any_of_a_processor() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("litidle"))?;
    let parts = watch(&mut cluster)?;
    println!("idle: {parts:.3?} % of a core");
    ensure!(parts.iter().all(|&part| part <= 1.5), "{parts:.3?} %");
    Ok(())
}

#[test]
fn thousands_of_connections_cost_an_agent_hardly_more() -> Result<()> {
    let clients = std::env::var("LIGHT_CLIENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(3_000);
    let options = ClusterOptions { client_addresses: 8, balancer: false, ..quiet("litmany") };
    let mut cluster = Cluster::start(options)?;
    let bind = cluster.client_addresses();
    let dial =
        |id| Dial { bind: bind.clone(), ..Dial::new(id, Kind::Raw, clients / 2, &[cluster.address(0)]) };
    let (older, younger) = (dial("older"), dial("younger"));
    cluster.fleet.dial_all(&older)?;
    cluster.start_balancers()?;
    cluster.await_settled()?;
    cluster.fleet.dial_all(&younger)?;
    cluster.await_total("all are there", clients / 2 * 2)?;
    let parts = watch(&mut cluster)?;
    let resident = cluster.daemons[0].process()?.resident_bytes()? / MIB;
    println!("{clients} connections: {parts:.3?} % of a core, {resident} MiB");
    ensure!(parts[0] <= 2.5 && resident <= 120, "{parts:.3?} %, {resident} MiB");
    Ok(())
}

#[test]
fn the_others_hear_of_a_change_at_once() -> Result<()> {
    let cluster = Cluster::start(quiet("litnews"))?;
    let maps = cluster.daemons[1..].iter().map(controllers_of).collect::<Result<Vec<_>>>()?;
    let address = cluster.address(0);
    let loads = || -> Vec<_> { maps.iter().map(|map| load_of(map, address)).collect() };
    wait_for(SOON, "the others know the first one", || Ok(loads()), |loads| loads == &[Some(0), Some(0)])?;
    let mut took = Vec::new();
    let mut held = Vec::new();
    let mut await_load = |begun: Instant, wanted: i64| -> Result<()> {
        while loads() != [Some(wanted), Some(wanted)] {
            ensure!(begun.elapsed() < Duration::from_secs(5), "{wanted} expected: {:?}", loads());
            sleep(Duration::from_micros(500));
        }
        took.push(begun.elapsed());
        // At no fixed place between two ticks of the agent's.
        sleep(QUIET + Duration::from_millis(took.len() as u64 * 7 % 100));
        Ok(())
    };
    for count in 1..=CHANGES {
        let begun = Instant::now();
        let stream = cluster.net.clients[0].namespace.enter(|| TcpStream::connect(address))?;
        held.push(stream.context("failed to connect")?);
        await_load(begun, count as i64)?;
    }
    for count in (0..CHANGES).rev() {
        let mut stream = held.pop().context("a connection is left")?;
        let begun = Instant::now();
        stream.shutdown(std::net::Shutdown::Write)?;
        let _ = stream.read(&mut [0; 64]);
        drop(stream);
        await_load(begun, count as i64)?;
    }
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
    println!("a change is in every map after {:?} (p50), {:?} (p99)", at(50), at(99));
    ensure!(at(50) <= Duration::from_millis(60) && at(99) <= Duration::from_millis(180), "{took:?}");
    Ok(())
}
