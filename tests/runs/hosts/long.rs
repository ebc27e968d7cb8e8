//! Owners that stay silent: exactly the connections are reset whose own client has asked, and waited for an answer, and those
//! not before a connection without balancers would be near its end.

use std::fmt::{Display, Formatter};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::cluster::Cluster;
use tests::juju::fleet::{Dial, Fleet, Kind};
use tests::support::eventually::SOON;

use crate::contract::{ENTRY_BEFORE, prefer_owners, settle};
use crate::event::{Event, What};
use crate::layout::{FIRST, Layout, OWNER};

/// Clients of a group, about half of them relayed to the silent owner.
const CLIENTS: usize = 30;
/// Between two echoes of a group that asks, so that its first unanswered segment is known to this.
const ASKS: Duration = Duration::from_millis(100);
/// A client has waited so long for an answer before its connection is reset.
const PATIENCE: Duration = Duration::from_secs(15);
/// A connection is reset within this after its first unanswered segment.
const RESET: Duration = Duration::from_secs(18);
/// Between two looks, and the noise of this machine.
const LOOK: Duration = Duration::from_millis(50);
const NOISE: Duration = Duration::from_millis(300);

/// Silence after which a Go client's kernel asks.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// How the clients of a group ask.
#[derive(Clone, Copy, Debug)]
enum Asks {
    /// By echoes, from so many seconds after the owner's falling silent on.
    After(u64),
    /// By TCP keepalives alone.
    Keepalive,
    Never,
}

impl Asks {
    /// The time of the first unanswered segment, since the owner fell silent: not before the first, not after the second.
    fn first(self) -> Option<(Duration, Duration)> {
        match self {
            Self::After(seconds) => {
                let begun = Duration::from_secs(seconds);
                Some((begun, begun + ASKS))
            }
            Self::Keepalive => Some((Duration::ZERO, KEEPALIVE)),
            Self::Never => None,
        }
    }
}

/// Clients of the entry that ask alike.
struct Group {
    name: &'static str,
    asks: Asks,
    fleet: Fleet,
    /// Connections that the silent owner serves.
    relayed: u64,
    asking: bool,
    first_lost: Option<Duration>,
    all_lost: Option<Duration>,
    lost: u64,
}

impl Group {
    fn dial(cluster: &Cluster, name: &'static str, asks: Asks) -> Result<Self> {
        let mut fleet = Fleet::start(&cluster.net.clients[FIRST.client].namespace)?;
        for ipv6 in [false, true] {
            let entry = FIRST.address(&cluster.net.controllers[0], ipv6);
            let dial = Dial::new(&format!("{name}, IPv6 {ipv6}"), Kind::Single, CLIENTS / 2, &[entry]);
            let keepalive = matches!(asks, Asks::Keepalive).then_some(KEEPALIVE.as_secs());
            fleet.dial_unharmed(&Dial { concurrency: 1, keepalive, ..dial })?;
        }
        let relayed = fleet.stats()?.by_server.get("b").copied().unwrap_or_default();
        ensure!(relayed > 0, "{name}: some are relayed to b");
        let (asking, first_lost, all_lost, lost) = (false, None, None, 0);
        Ok(Self { name, asks, fleet, relayed, asking, first_lost, all_lost, lost })
    }

    fn look(&mut self, since: Duration) -> Result<()> {
        if let Asks::After(seconds) = self.asks
            && since >= Duration::from_secs(seconds)
            && !self.asking
        {
            self.fleet.traffic(ASKS)?;
            self.asking = true;
        }
        self.lost = self.fleet.stats()?.lost;
        if self.lost > 0 {
            self.first_lost.get_or_insert(since);
        }
        if self.lost >= self.relayed {
            self.all_lost.get_or_insert(since);
        }
        Ok(())
    }

    /// The resets that it should have seen by the end of the silence: the earliest and the latest time; none without.
    fn wanted(&self, silence: Duration) -> Option<(Duration, Duration)> {
        let (begun, at_latest) = self.asks.first()?;
        let window = (begun + PATIENCE, at_latest + RESET);
        // A time in between would prove nothing.
        (window.1 <= silence).then_some(window)
    }

    /// Judges the group at the end of the silence.
    fn judge(&self, silence: Duration) -> Option<String> {
        let wanted = self.wanted(silence);
        let is_right = match wanted {
            None => self.lost == 0,
            Some((earliest, latest)) => {
                self.lost == self.relayed
                    && self.first_lost.is_some_and(|at| at + LOOK >= earliest)
                    && self.all_lost.is_some_and(|at| at <= latest + NOISE)
            }
        };
        let wanted =
            wanted.map_or("none".to_owned(), |(from, to)| format!("all between {from:?} and {to:?}"));
        (!is_right).then(|| format!("{self}; expected: {wanted}"))
    }
}

impl Display for Group {
    fn fmt(&self, to: &mut Formatter<'_>) -> std::fmt::Result {
        let Self { name, lost, relayed, first_lost, all_lost, .. } = self;
        write!(
            to,
            "{name}: {lost} of {relayed} lost, the first after {first_lost:?}, the last after {all_lost:?}"
        )
    }
}

/// Has the owner fall silent by `what` for `silence`, while groups ask from these times on.
fn silent(tag: &str, what: What, silence: Duration, groups: &[(&'static str, Asks)]) -> Result<()> {
    let mut options = Layout::Plain.options(tag);
    options.balancer = false;
    let mut cluster = Cluster::start(options)?;
    let entry = FIRST.address(&cluster.net.controllers[0], false);
    cluster.fleet.dial_all(&Dial::new("before", Kind::Single, ENTRY_BEFORE, &[entry]))?;
    cluster.start_balancers_as(prefer_owners)?;
    let ready = Instant::now();
    settle(&cluster)?;
    let dial = |&(name, asks): &(&'static str, Asks)| Group::dial(&cluster, name, asks);
    let mut groups = groups.iter().map(dial).collect::<Result<Vec<_>>>()?;
    // Connections of the owner's own clients, which no balancer has to do with.
    let own = FIRST.address(&cluster.net.controllers[OWNER], false);
    cluster.fleet.dial_unharmed(&Dial::new("own", Kind::Single, CLIENTS, &[own]))?;
    std::thread::sleep(crate::contract::STARTED.saturating_sub(ready.elapsed()));

    let event = Event { what, lasts: silence };
    let begun = Instant::now();
    event.begin(&mut cluster)?;
    while begun.elapsed() < silence {
        for group in &mut groups {
            group.look(begun.elapsed()).with_context(|| group.name)?;
        }
        std::thread::sleep(LOOK);
    }
    let mut found: Vec<String> = groups.iter().filter_map(|group| group.judge(silence)).collect();
    for group in &groups {
        println!("{group}");
    }
    if !matches!(what, What::Dark(_)) {
        event.end(&mut cluster)?;
        for group in &mut groups {
            group.fleet.traffic(ASKS)?;
            let answered = |stats: &tests::juju::fleet::Stats| stats.echoes > 4 * stats.open;
            group.fleet.await_stats(SOON * 3, "answers after the silence", answered)?;
            group.fleet.traffic(Duration::ZERO)?;
            let stats =
                group.fleet.await_stats(SOON * 3, "no wait for an answer", |stats| stats.waiting == 0)?;
            if stats.lost != group.lost {
                found.push(format!("{}: {} lost after the silence", group.name, stats.lost - group.lost));
            }
        }
        let stats = cluster.fleet.stats()?;
        if stats.lost > 0 {
            found.push(format!("{} of the owner's own and earlier connections are lost", stats.lost));
        }
    }
    if !found.is_empty() {
        bail!("{what:?} for {silence:?}:\n- {}", found.join("\n- "));
    }
    Ok(())
}

#[test]
#[ignore = "waits for a minute; `cargo xtask hosts` runs it"]
fn clients_that_wait_for_an_owner_apart_are_reset_and_no_others() -> Result<()> {
    let groups = [
        ("ask at once", Asks::After(0)),
        ("ask after 8 s", Asks::After(8)),
        ("ask after 18 s", Asks::After(18)),
        ("never ask", Asks::Never),
    ];
    silent("h16a30", What::Apart(OWNER), Duration::from_secs(30), &groups)
}

#[test]
#[ignore = "waits for a minute; `cargo xtask hosts` runs it"]
fn clients_that_wait_for_a_dead_owner_are_reset_and_no_others() -> Result<()> {
    let groups = [
        ("ask at once", Asks::After(0)),
        ("ask after 8 s", Asks::After(8)),
        ("ask after 25 s", Asks::After(25)),
        ("ask by keepalives", Asks::Keepalive),
        ("never ask", Asks::Never),
    ];
    silent("h16d45", What::Dark(OWNER), Duration::from_secs(45), &groups)
}
