//! The host names that `agent.conf` lists beside addresses: looked up in the background, again and again.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use log::{info, warn};
use tokio::{net::lookup_host, task::JoinHandle, time::timeout};

/// Names by the addresses that they had last.
pub type Resolved = BTreeMap<String, Vec<IpAddr>>;

/// Between two rounds, and after one in which a name had no address.
const EVERY: Duration = Duration::from_mins(1);
const AGAIN: Duration = Duration::from_secs(5);
/// The longest wait for one name.
const WAIT: Duration = Duration::from_secs(4);

#[derive(Default)]
pub(super) struct Names {
    resolved: Resolved,
    /// Names that had no address in the last round.
    failed: Vec<String>,
    round: Option<JoinHandle<Resolved>>,
    next: Option<Instant>,
}

impl Names {
    pub(super) fn resolved(&self) -> &Resolved {
        &self.resolved
    }

    /// Begins a round when one is due, and takes the result of the last one. Returns whether addresses have changed.
    pub(super) async fn follow(&mut self, now: Instant, names: &[String]) -> bool {
        if let Some(round) = self.round.take_if(|round| round.is_finished()) {
            let found = round.await.unwrap_or_default();
            let (changed, next) = self.take(names, found);
            self.next = Some(now + next);
            return changed;
        }
        if self.round.is_none() && !names.is_empty() && self.next.is_none_or(|next| next <= now) {
            self.round = Some(tokio::spawn(look_up(names.to_vec())));
        }
        false
    }

    /// Takes what a round has `found` for `names`. A name without an address keeps the ones that it had. Returns whether
    /// addresses have changed, and the pause until the next round.
    fn take(&mut self, names: &[String], found: Resolved) -> (bool, Duration) {
        let is_found = |name: &&String| found.get(*name).is_some_and(|addresses| !addresses.is_empty());
        let failed: Vec<String> = names.iter().filter(|name| !is_found(name)).cloned().collect();
        if failed != self.failed {
            match failed.as_slice() {
                [] => info!("each host name in agent.conf has an address"),
                some => warn!("no address for {}, which agent.conf lists; looking again", some.join(", ")),
            }
            self.failed = failed;
        }
        let mut resolved = found;
        resolved.retain(|name, addresses| names.contains(name) && !addresses.is_empty());
        let before = std::mem::take(&mut self.resolved);
        for (name, addresses) in before.iter().filter(|(name, _)| names.contains(name)) {
            resolved.entry(name.clone()).or_insert_with(|| addresses.clone());
        }
        let changed = resolved != before;
        self.resolved = resolved;
        (changed, if self.failed.is_empty() { EVERY } else { AGAIN })
    }
}

async fn look_up(names: Vec<String>) -> Resolved {
    let mut found = Resolved::new();
    for name in names {
        let mut addresses: Vec<IpAddr> = match timeout(WAIT, lookup_host((name.as_str(), 0))).await {
            Ok(Ok(addresses)) => addresses.map(|address| address.ip().to_canonical()).collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        addresses.sort_unstable();
        addresses.dedup();
        found.insert(name, addresses);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Resolved {
        let one = |part: &str| {
            let (name, addresses) = part.split_once('=').unwrap();
            let addresses = addresses.split(',').filter(|one| !one.is_empty());
            (name.to_owned(), addresses.map(|one| one.parse().unwrap()).collect())
        };
        text.split_whitespace().map(one).collect()
    }

    #[test]
    fn a_name_keeps_its_addresses_until_it_has_others() {
        let mut names = Names::default();
        // The names in the file, the addresses found; whether they have changed, those in force, the pause in seconds.
        let rows: [(&[&str], &str, bool, &str, u64); 6] = [
            (&["b"], "b=10.0.0.2", true, "b=10.0.0.2", 60),
            (&["b"], "b=10.0.0.2", false, "b=10.0.0.2", 60),
            (&["b", "c"], "b= c=", false, "b=10.0.0.2", 5),
            (&["b", "c"], "b=10.0.0.9 c=10.0.0.3,fd00::3", true, "b=10.0.0.9 c=10.0.0.3,fd00::3", 60),
            (&["c"], "c=10.0.0.3,fd00::3", true, "c=10.0.0.3,fd00::3", 60),
            (&[], "", true, "", 60),
        ];
        for (listed, text, changed, expected, seconds) in rows {
            let listed: Vec<String> = listed.iter().map(|name| (*name).to_owned()).collect();
            let (moved, pause) = names.take(&listed, found(text));
            assert_eq!(names.resolved, found(expected), "{listed:?} {text}");
            assert_eq!((moved, pause.as_secs()), (changed, seconds), "{listed:?} {text}");
        }
    }

    #[tokio::test]
    async fn names_are_looked_up_in_the_background() {
        let (mut names, listed) = (Names::default(), ["localhost".to_owned()]);
        let start = Instant::now();
        while !names.follow(Instant::now(), &listed).await {
            assert!(start.elapsed() < Duration::from_secs(10), "the system's resolver knows localhost");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(names.resolved()["localhost"].iter().all(IpAddr::is_loopback));
    }
}
