//! The agent is light: an idle one takes hardly any of a processor, and still the others hear of a change at once.
//!
//! What shows that an agent rests is how often it runs, and how many messages it sends. Its processor time depends on the
//! machine (`tests::cluster::load`), so its bounds are wide.
//! `LIGHT_CLIENTS=50000` measures another number of connections, `LIGHT_SECONDS=60` longer.
#![expect(clippy::print_stdout, reason = "the run prints its figures")]

use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use balancer_common::records::{Controller, LAYOUT, MAX_CONTROLLERS, State, map};
use tests::cluster::daemon::Daemon;
use tests::cluster::load::Load;
use tests::cluster::{Cluster, ClusterOptions};
use tests::juju::fleet::{Dial, Kind};
use tests::support::eventually::{SOON, wait_for};

/// How long the processor is watched.
const WATCH: Duration = Duration::from_secs(10);
/// Most that an idle agent takes, in multiples of the yardstick; 1.7 to 6.1 were measured.
const IDLE: f64 = 12.0;
/// The same with thousands of connections.
const MANY: f64 = 16.0;
/// How often an idle agent's threads are given a processor in a second, at most; 46 to 51 were measured.
const TURNS: f64 = 85.0;
/// Agents have done by then all that they do at their start.
const SETTLE: Duration = Duration::from_secs(6);
/// Between two changes of which the others hear, so that each comes after quiet.
const QUIET: Duration = Duration::from_millis(400);
const CHANGES: usize = 25;
const MIB: u64 = 1 << 20;

/// The controller at `address` as a daemon's map has it.
fn record_of(map: &Array<MapData, Controller>, address: SocketAddr) -> Option<Controller> {
    (0..MAX_CONTROLLERS as u32).find_map(|slot| {
        let controller = map.get(&slot, 0).ok()?;
        let is_it = address.ip() == std::net::IpAddr::from(controller.v4);
        (controller.name_hash != 0 && is_it).then_some(controller)
    })
}

fn load_of(map: &Array<MapData, Controller>, address: SocketAddr) -> Option<i64> {
    record_of(map, address).map(|controller| controller.view_base)
}

fn controllers_of(daemon: &Daemon) -> Result<Array<MapData, Controller>> {
    let pin = daemon.pins().join(LAYOUT).join("maps").join(map::CONTROLLERS);
    Ok(Array::try_from(Map::Array(MapData::from_pin(pin)?))?)
}

fn watch(cluster: &mut Cluster) -> Result<Load> {
    sleep(SETTLE);
    let seconds = std::env::var("LIGHT_SECONDS").ok().and_then(|text| text.parse().ok());
    let span = seconds.map_or(WATCH, Duration::from_secs);
    Load::watch(&mut cluster.daemons, span)
}

fn quiet(tag: &str) -> ClusterOptions {
    let policy = toml::toml! { steer = "off" };
    ClusterOptions { policy, nft: false, plain: true, ..ClusterOptions::new(tag) }
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "counts of seconds")]
fn an_idle_agent_takes_hardly_any_of_a_processor() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("litidle"))?;
    let begun = Instant::now();
    let before = cluster.servers[0].stats()?.accepted;
    let taken = watch(&mut cluster)?;
    let seconds = begun.elapsed().as_secs_f64();
    let checks = (cluster.servers[0].stats()?.accepted - before) as f64 / seconds;
    let messages = messages(&cluster)?;
    println!("idle: {taken}; {messages:.1} messages and {checks:.2} connections to jujud a second");
    ensure!(taken.multiples().iter().all(|&times| times <= IDLE), "{taken}; at most {IDLE} times");
    ensure!(taken.turns.iter().any(|&turns| turns <= TURNS), "{taken}; at most {TURNS} turns");
    // A busy machine's agents have late answers now and then, and are quick for a while after that.
    ensure!(messages <= 40.0, "one exchange of a pair serves both: {messages:.1} messages a second");
    ensure!(checks <= 1.2, "some checks share a connection: {checks:.2} connections a second");
    Ok(())
}

/// Messages that an agent sends to the others in a second, in the best of some.
#[expect(clippy::cast_precision_loss, reason = "counts of a second")]
fn messages(cluster: &Cluster) -> Result<f64> {
    let sent = || cluster.daemons[0].counter("sync_sent");
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let (before, begun) = (sent()?, Instant::now());
        sleep(Duration::from_secs(1));
        best = best.min((sent()? - before) as f64 / begun.elapsed().as_secs_f64());
    }
    Ok(best)
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
    let taken = watch(&mut cluster)?;
    let resident = cluster.daemons[0].process()?.resident_bytes()? / MIB;
    println!("{clients} connections: {taken}, {resident} MiB");
    ensure!(taken.multiples()[0] <= MANY && resident <= 120, "{taken}; at most {MANY}; {resident} MiB");
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

#[test]
fn the_others_notice_a_controller_that_dies_or_is_cut_off_at_rest() -> Result<()> {
    /// Agents are at rest this long after the last event.
    const RESTS: Duration = Duration::from_secs(4);
    /// The design's time, with room for a busy machine.
    const NOTICED: Duration = Duration::from_secs(4);
    let mut cluster = Cluster::start(quiet("litdead"))?;
    let maps = cluster.daemons[..2].iter().map(controllers_of).collect::<Result<Vec<_>>>()?;
    let address = cluster.address(2);
    let is_ready = |map: &Array<_, _>| {
        record_of(map, address).is_some_and(|controller| controller.state == State::Ready as u8)
    };
    let ready = || -> Vec<bool> { maps.iter().map(is_ready).collect() };
    let await_ready = || wait_for(SOON, "the last one is ready", || Ok(ready()), |ready| ready == &[true; 2]);
    for (round, dies) in [false, false, false, false, true, true].into_iter().enumerate() {
        await_ready()?;
        // At no fixed place between two exchanges.
        sleep(RESTS + Duration::from_millis(round as u64 * 97 % 250));
        let begun = Instant::now();
        if dies {
            cluster.daemons[2].kill9();
        } else {
            cluster.net.controllers[2].silence(true)?;
        }
        let mut noticed = [None; 2];
        while noticed.contains(&None) {
            ensure!(begun.elapsed() < NOTICED, "dies: {dies}; noticed after {noticed:?}");
            for (noticed, _) in noticed.iter_mut().zip(ready()).filter(|(_, ready)| !ready) {
                noticed.get_or_insert(begun.elapsed());
            }
            sleep(Duration::from_millis(1));
        }
        println!("{} at rest: noticed after {noticed:?}", if dies { "killed" } else { "cut off" });
        if dies {
            cluster.daemons[2].run()?;
        } else {
            cluster.net.controllers[2].silence(false)?;
        }
    }
    Ok(())
}
