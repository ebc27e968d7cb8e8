//! The end of a controller's balancer: the others relay nothing more to it before its programs are removed.
//!
//! `balancer uninstall` runs without an agent. It speaks for the controller as a new start of its agent would, says that
//! the controller is leaving, and waits until the others have said in their reports that they know.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use balancer_common::records::{Controller, State};

use super::{
    membership::members,
    peers::{PeerView, Peers, PeersConfig, Report},
    slots::name_hash,
};
use crate::config::Config;

/// The others notice the silence of an agent within 1.4 s on an idle machine, and take longer on a busy one. After this long
/// they need not be told.
const NOTICED: Duration = Duration::from_secs(5);
/// The longest wait for their word.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// A controller of which only the slot is known.
const UNHEARD: &str = "a controller that is not heard";

/// The controllers that may still relay to this one, by the hashes of their names. `slots`: as the last agent left them,
/// this controller's at `own`; `now_ns`: the boot clock.
pub fn to_tell(slots: &[Controller], own: usize, now_ns: u64) -> BTreeSet<u64> {
    let last_ns = slots.get(own).map_or(0, |own| own.reported_ns);
    if u128::from(now_ns.saturating_sub(last_ns)) >= NOTICED.as_nanos() {
        return BTreeSet::new();
    }
    let others = slots.iter().enumerate().filter(|(index, slot)| *index != own && slot.name_hash != 0);
    let hears = |slot: &Controller| match slot.state() {
        State::Ready | State::NotReady | State::Draining => true,
        State::Absent | State::Silent => false,
    };
    others.filter(|(_, slot)| hears(slot)).map(|(_, slot)| slot.name_hash).collect()
}

/// The controllers to tell that have not said in `views` that they know that `own` is leaving. With Juju's `agent.conf` a
/// controller has a name only once it is heard.
fn without_word(views: &[PeerView], own: &str, to_tell: &BTreeSet<u64>) -> Vec<String> {
    let knows = |view: &PeerView| view.report.as_ref().is_some_and(|report| report.farewells.contains(own));
    let view = |hash: &u64| views.iter().find(|view| name_hash(&view.name) == *hash);
    let silent = to_tell.iter().map(view).filter(|view| !view.is_some_and(knows));
    let mut names: Vec<String> =
        silent.map(|view| view.map_or_else(|| UNHEARD.to_owned(), |view| view.name.clone())).collect();
    names.sort_unstable();
    names
}

/// Tells the controllers `to_tell` that this one is leaving, and waits for their word. Returns the names of those that have
/// not answered in time.
pub async fn say(config: &Config, to_tell: &BTreeSet<u64>) -> Result<Vec<String>> {
    let peers = Peers::start(PeersConfig {
        name: config.cluster.name.clone(),
        listen: config.cluster.listen,
        members: members(&config.cluster),
        key: config.cluster.key.load()?,
        cluster_id: "balancer-v1".into(),
    })?;
    let mut changed = peers.changed();
    peers.publish(Report::farewell());
    let left = || without_word(&peers.views(), &config.cluster.name, to_tell);
    let word = async { while !left().is_empty() && changed.changed().await.is_ok() {} };
    // Those that are left are named.
    let _: Result<(), _> = tokio::time::timeout(PATIENCE, word).await;
    let left = left();
    peers.shutdown().await;
    Ok(left)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    fn slot(name: &str, state: State) -> Controller {
        let reported_ns = if name == "a" { 10_000_000_000 } else { 0 };
        Controller { name_hash: name_hash(name), state: state as u8, reported_ns, ..Controller::zeroed() }
    }

    #[test]
    fn those_are_told_that_may_still_relay_here() {
        let states = [
            slot("a", State::Ready),
            slot("b", State::Ready),
            slot("c", State::NotReady),
            slot("d", State::Draining),
            slot("e", State::Silent),
            slot("f", State::Absent),
            Controller::zeroed(),
        ];
        let names = |names: &[&str]| names.iter().map(|name| name_hash(name)).collect::<BTreeSet<_>>();
        // Milliseconds since the agent's last sign of life.
        let rows: [(u64, &[&str]); 4] =
            [(0, &["b", "c", "d"]), (4_999, &["b", "c", "d"]), (5_000, &[]), (3_600_000, &[])];
        for (since_ms, expected) in rows {
            let now_ns = 10_000_000_000 + since_ms * 1_000_000;
            assert_eq!(to_tell(&states, 0, now_ns), names(expected), "{since_ms}");
        }
        assert_eq!(to_tell(&[], 0, 0), BTreeSet::new());
    }

    #[test]
    fn the_word_of_each_is_awaited() {
        let view = |name: &str, farewells: Option<&[&str]>| PeerView {
            name: name.to_owned(),
            report: farewells.map(|names| Report {
                farewells: names.iter().map(|&name| name.to_owned()).collect(),
                ..Report::farewell()
            }),
            received_at: None,
            alive: true,
            generation: 1,
            ends: None,
            unread: false,
        };
        let told = ["b", "c"].map(name_hash).into_iter().collect();
        let rows: [(&[PeerView], &[&str]); 6] = [
            (&[view("b", None), view("c", None), view("d", None)], &["b", "c"]),
            (&[view("b", Some(&["a"])), view("c", Some(&[]))], &["c"]),
            (&[view("b", Some(&["d"])), view("c", Some(&["a", "d"]))], &["b"]),
            (&[view("b", Some(&["a"])), view("c", Some(&["a"])), view("d", None)], &[]),
            (&[], &[UNHEARD, UNHEARD]),
            // Named by their addresses: nobody has been heard yet.
            (&[view("10.0.0.2", None), view("10.0.0.3", None)], &[UNHEARD, UNHEARD]),
        ];
        for (views, expected) in rows {
            assert_eq!(without_word(views, "a", &told), expected, "{views:?}");
        }
    }
}
