//! Agents among themselves: their messages to each other, and the time until a count's change is in every map.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use balancer_common::records::{Controller, LAYOUT, MAX_CONTROLLERS, map};
use balancer_common::wire::Address;
use serde::Serialize;

use super::{count, plot, section};
use crate::bench::figures::Spread;
use crate::bench::load::quantile;
use crate::bench::machine::cpu_seconds;
use crate::bench::report::Section;
use crate::bench::room::{Ready, Room};
use crate::bench::table::{Table, number};
use crate::bench::ways::way;
use crate::cluster::API_PORT;
use crate::network::net::Host;
use crate::support::eventually::SOON;
use crate::support::noise::Noise;

/// Controllers.
const SIZES: [usize; 3] = [3, 7, 16];
/// Between two looks at the maps.
const LOOK: Duration = Duration::from_micros(200);
/// A count must rest so long before the next change, and up to this much longer.
const REST_MS: u64 = 250;

/// A cluster in which nothing happens, and then one connection after the other.
#[derive(Debug, Serialize)]
pub struct Talk {
    pub controllers: usize,
    /// UDP datagrams that one controller sends in a second.
    pub messages: f64,
    /// Bytes that one controller sends in a second, with all headers.
    pub bytes: f64,
    /// CPU time of an agent, percent of one processor; low and high are those of single agents.
    pub cpu_percent: Spread,
    /// Milliseconds from the begin of a connection until its count is in every other controller's map: p50 and p99.
    pub change_ms: [f64; 2],
    pub changes: usize,
}

pub fn measure(quick: bool, tag: &str) -> Result<Vec<Talk>> {
    let (sizes, window, changes) = if quick { (&SIZES[..1], 4, 20) } else { (&SIZES[..], 20, 200) };
    sizes.iter().map(|&size| talk(tag, size, Duration::from_secs(window), changes)).collect()
}

fn talk(tag: &str, controllers: usize, window: Duration, changes: usize) -> Result<Talk> {
    let mut room = Room::build(tag, false, controllers)?;
    // Each client is served where it dials: b's count is that of its own clients.
    let mut ready = room.ready(&way("served")?, "".as_ref())?;
    // An idle cluster sends fewer probes than one that has just begun.
    std::thread::sleep(window / 2);
    let (cpu, sent) = (cpu(&mut ready)?, sent(ready.controllers())?);
    std::thread::sleep(window);
    let (cpu_after, sent_after) = (self::cpu(&mut ready)?, self::sent(ready.controllers())?);
    let seconds = window.as_secs_f64();
    let percent = cpu.iter().zip(cpu_after).map(|(before, after)| (after - before) / seconds * 100.0);
    #[expect(clippy::cast_precision_loss, reason = "traffic of some seconds is below 2^52")]
    let [messages, bytes] =
        [0, 1].map(|index| (sent_after[index] - sent[index]) as f64 / seconds / controllers as f64);
    let mut micros = delays(&mut ready, changes)?;
    let change_ms = [0.5, 0.99].map(|share| quantile(&mut micros, share) / 1e3);
    let cpu_percent = Spread::of(percent).context("no controllers")?;
    ready.undo()?;
    Ok(Talk { controllers, messages, bytes, cpu_percent, change_ms, changes })
}

fn cpu(ready: &mut Ready<'_>) -> Result<Vec<f64>> {
    ready.daemons().iter_mut().map(|daemon| cpu_seconds(daemon.process()?.pid())).collect()
}

/// UDP datagrams and bytes that all controllers together have sent.
fn sent(controllers: &[Host]) -> Result<[u64; 2]> {
    let mut sums = [0, 0];
    for host in controllers {
        // `/proc/net` is that of the main thread.
        let read =
            || ["snmp", "dev"].map(|file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")));
        let [snmp, dev] = host.namespace.enter(read)?;
        let (snmp, dev) = (snmp.context("snmp")?, dev.context("dev")?);
        sums[0] += udp_sent(&snmp).with_context(|| snmp.clone())?;
        sums[1] += bytes_sent(&dev, "eth0").with_context(|| dev.clone())?;
    }
    Ok(sums)
}

/// `OutDatagrams` of /proc/net/snmp: a line of names and a line of values.
fn udp_sent(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let index = lines.next()?.split(' ').position(|name| name == "OutDatagrams")?;
    lines.next()?.split(' ').nth(index)?.parse().ok()
}

/// The ninth value of an interface in /proc/net/dev.
fn bytes_sent(dev: &str, interface: &str) -> Option<u64> {
    let values = dev.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    values?.split_whitespace().nth(8)?.parse().ok()
}

/// Opens and closes a connection at b, again and again; each change's time until all others know it, in microseconds.
fn delays(ready: &mut Ready<'_>, changes: usize) -> Result<Vec<u32>> {
    let owner = ready.controllers()[1].address(false);
    let views = ready.daemons().iter().enumerate().filter(|(index, _)| *index != 1);
    let views =
        views.map(|(_, daemon)| View::open(daemon.pins(), owner.into())).collect::<Result<Vec<_>>>()?;
    let await_all = |wanted: i64| -> Result<()> {
        let begun = Instant::now();
        loop {
            let loads = views.iter().map(View::load).collect::<Result<Vec<_>>>()?;
            if loads.iter().all(|load| *load == wanted) {
                return Ok(());
            }
            ensure!(begun.elapsed() < SOON, "the views of {owner} are {loads:?}, not {wanted}");
            std::thread::sleep(LOOK);
        }
    };
    await_all(0)?;
    let client = ready.client();
    let (mut noise, mut micros) = (Noise::new(1), Vec::new());
    for _ in 0..changes {
        // At any time between two reports.
        std::thread::sleep(Duration::from_millis(REST_MS + noise.next() % REST_MS));
        let begun = Instant::now();
        let dial = || TcpStream::connect(SocketAddr::new(owner, API_PORT));
        let connection = client.namespace.enter(dial)?.context("failed to connect")?;
        await_all(1)?;
        micros.push(begun.elapsed().as_micros() as u32);
        drop(connection);
        await_all(0)?;
    }
    Ok(micros)
}

/// Another controller, as one controller's map has it.
struct View {
    map: Array<MapData, Controller>,
    index: u32,
}

impl View {
    /// The view of the controller at `address`.
    fn open(pins: &Path, address: Address) -> Result<Self> {
        let data = MapData::from_pin(pins.join(LAYOUT).join("maps").join(map::CONTROLLERS))?;
        let map: Array<MapData, Controller> = Array::try_from(Map::Array(data))?;
        let index =
            (0..MAX_CONTROLLERS as u32).find(|index| map.get(index, 0).is_ok_and(|one| one.v4 == address));
        let index = index.with_context(|| format!("no controller at {address:?}"))?;
        Ok(Self { map, index })
    }

    fn load(&self) -> Result<i64> {
        Ok(self.map.get(&self.index, 0)?.view_base)
    }
}

pub fn show(talks: &[Talk]) -> Section {
    let row = |talk: &Talk| {
        let Spread { median, low, high } = talk.cpu_percent;
        vec![
            count(talk.controllers),
            number(talk.messages),
            number(talk.bytes),
            format!("{median:.2}"),
            format!("{low:.2}–{high:.2}"),
            number(talk.change_ms[0]),
            number(talk.change_ms[1]),
        ]
    };
    let head = ["controllers", "messages/s", "bytes/s", "CPU, % of one", "agents", "change p50 ms", "p99 ms"];
    let label = |talk: &Talk| format!("{} controllers", talk.controllers);
    let plots = vec![
        plot("bytes a second", talks.iter().map(|talk| (label(talk), talk.bytes))),
        plot(
            "CPU time, percent of one processor",
            talks.iter().map(|talk| (label(talk), talk.cpu_percent.median)),
        ),
        plot("a change in every map, p99, ms", talks.iter().map(|talk| (label(talk), talk.change_ms[1]))),
    ];
    section("agents among themselves", ABOUT, plots, Table::new(&head, talks.iter().map(row)))
}

const ABOUT: &str = "Messages and bytes are those that one controller sends. A change is one connection: the time from its \
                     SYN until every other controller's map has it.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_read_from_proc() {
        let snmp = "Tcp: A B\nTcp: 1 2\nUdp: InDatagrams NoPorts InErrors OutDatagrams Rcv\nUdp: 9 8 7 6 5\nUdpLite: A\n";
        assert_eq!(udp_sent(snmp), Some(6));
        let dev = "Inter-|\n face |\n    lo: 1 2 3 4 5 6 7 8 9 10\n  eth0: 11 12 13 14 15 16 17 18 19 20\n";
        assert_eq!((bytes_sent(dev, "eth0"), bytes_sent(dev, "eth1")), (Some(19), None));
    }
}
