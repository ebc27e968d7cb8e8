//! The connections of this controller: how many clients have one, how fast new ones arrive, and whether the programs'
//! count agrees with the kernel's list of sockets.
//!
//! [`Count`] owns the state; its steps are pure.

pub mod audit;
pub mod calm;
pub mod clients;
pub mod collect;
pub mod rate;
pub mod seeded;
pub mod sock_diag;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Instant,
};

use balancer_common::records::{Budget, Tracked};
use log::Level;

use self::{
    audit::{Audit, Findings, Present},
    calm::Calm,
    clients::{Clients, Counts},
    rate::Rate,
    sock_diag::Socket,
};
use crate::{datapath::FlowPair, operator::status::Relays};

#[derive(Debug, Default)]
pub struct Count {
    /// Which connections carry a transfer.
    pub calm: Calm,
    audit: Audit,
    clients: Clients,
    adjust: i64,
    adjust_exempt: i64,
    has_seeded: bool,
    drift: u64,
    arrivals: Rate,
    arrivals_per_s: f64,
    relays: Relays,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Note the socket with this cookie as one that the programs have not seen begin.
    Track(u64, Tracked),
    Untrack(u64),
    /// Replace the note of the socket, if it is still there; else tell [`Count::not_reclassed`].
    Reclass(u64, Tracked),
    /// Write the settings: the adjustment of the count has changed.
    WriteSettings,
    /// Tell the operator.
    Say(Level, String),
}

impl Count {
    /// Goes on with the adjustment that an earlier agent left in the settings, its notes, and the programs' count.
    pub fn resume(&mut self, adjust: i64, noted: &HashMap<u64, Tracked>, budget: &Budget) {
        let (audit, findings) = Audit::resume(adjust, noted, budget.exempt);
        self.audit = audit;
        self.take(&findings);
    }

    fn take(&mut self, findings: &Findings) {
        self.adjust = self.audit.adjust(findings);
        self.adjust_exempt = self.audit.adjust_exempt(findings);
        self.has_seeded = findings.seeded_clients + findings.seeded_exempt > 0;
    }

    /// Added to the programs' count of clients: seeded sockets, and corrections.
    pub fn adjust(&self) -> i64 {
        self.adjust
    }

    /// Established connections of controllers and exempt addresses.
    pub fn exempt_connections(&self, budget: &Budget) -> u64 {
        (i64::from(budget.exempt.cast_signed()) + self.adjust_exempt).max(0) as u64
    }

    /// Whether the next audit should come soon: there are sockets that the programs have not seen begin, and so will not
    /// see end, or differences that only another audit settles.
    pub fn is_due_soon(&self) -> bool {
        self.has_seeded || self.audit.is_in_doubt() || self.clients.is_in_doubt()
    }

    /// The socket of an [`Effect::Reclass`] has ended before its note was replaced.
    pub fn not_reclassed(&mut self, note: &Tracked) {
        self.audit.not_reclassed(note);
        let moved = if note.seeded != 0 {
            0
        } else if note.client == 0 {
            1
        } else {
            -1
        };
        self.adjust += moved;
        self.adjust_exempt -= moved;
    }

    /// The counts of client addresses to correct, as [`Clients::audit`].
    pub fn audit_clients(&mut self, listed: &Counts, before: &Counts, after: &Counts) -> Vec<(IpAddr, u32)> {
        self.clients.audit(listed, before, after)
    }

    /// Differences found so far between the programs' count and the kernel's list.
    pub fn drift(&self) -> u64 {
        self.drift
    }

    /// New client connections a second.
    pub fn arrivals_per_s(&self) -> f64 {
        self.arrivals_per_s
    }

    /// Relayed connections as of the last [`Count::collect`].
    pub fn relays(&self) -> Relays {
        self.relays
    }

    /// Takes in how many client connections have arrived in all.
    pub fn note_arrivals(&mut self, now: Instant, arrived: u64) {
        self.arrivals_per_s = self.arrivals.update(now, arrived);
    }

    /// Clients' established connections.
    pub fn connections(&self, budget: &Budget) -> u64 {
        (i64::from(budget.established) + self.adjust).max(0) as u64
    }

    /// Compares the programs' notes with the sockets that are `present`. `first`: the programs have counted nothing
    /// before, so every socket without a note is seeded.
    pub fn audit(
        &mut self,
        now_s: u32,
        present: &[Present],
        noted: &HashMap<u64, Tracked>,
        first: bool,
    ) -> Vec<Effect> {
        let findings = self.audit.audit(present, noted, first);
        let seed = |socket: &Present| Tracked {
            since_s: now_s,
            client: socket.client.into(),
            seeded: 1,
            pad: [0; 2],
        };
        let mut effects: Vec<_> =
            findings.seed.iter().map(|socket| Effect::Track(socket.cookie, seed(socket))).collect();
        effects.extend(findings.forget.iter().map(|&cookie| Effect::Untrack(cookie)));
        effects.extend(findings.reclass.iter().map(|&(cookie, note)| Effect::Reclass(cookie, note)));
        if findings.drift != 0 {
            self.drift += findings.drift.unsigned_abs();
            let text = format!(
                "the programs' count differed from the kernel's list of sockets by {}; corrected",
                findings.drift
            );
            effects.push(Effect::Say(Level::Error, text));
        }
        let before = self.adjust;
        self.take(&findings);
        if before != self.adjust || first {
            effects.push(Effect::WriteSettings);
        }
        effects
    }

    /// Notes the `relays` that there are records of, and returns those of `pairs` that are over.
    pub fn collect(&mut self, now_s: u32, relays: Relays, mut pairs: Vec<FlowPair>) -> Vec<FlowPair> {
        pairs.retain(|pair| collect::is_over(pair, now_s));
        let mut over = Relays::default();
        for pair in &pairs {
            over += Relays::of(&pair.flow, pair.live);
        }
        self.relays = relays.without(over);
        pairs
    }
}

/// How many connections each client address has among `sockets`.
pub(crate) fn by_client(sockets: &[Socket], is_client: impl Fn(IpAddr) -> bool) -> HashMap<IpAddr, u32> {
    let mut clients = HashMap::new();
    for address in sockets.iter().map(|socket| socket.remote.ip()).filter(|&address| is_client(address)) {
        *clients.entry(address).or_default() += 1;
    }
    clients
}

/// Up to `count` of `sockets`, at random: clients' that have lasted for `youngest_s` seconds or longer.
pub(crate) fn choose<'a>(
    sockets: impl IntoIterator<Item = &'a Socket>,
    tracked: &HashMap<u64, Tracked>,
    now_s: u32,
    youngest_s: u32,
    count: usize,
) -> Vec<&'a Socket> {
    let is_old = |socket: &&Socket| {
        tracked
            .get(&socket.cookie)
            .is_some_and(|tracked| tracked.client != 0 && now_s.saturating_sub(tracked.since_s) >= youngest_s)
    };
    fastrand::choose_multiple(sockets.into_iter().filter(is_old), count)
}

/// Reads a budget and the counts of received relays of one moment: `received` twice with `budget` in between, until both
/// are the same. An entry would otherwise believe until the next report that a relay counts nowhere, or twice.
pub(crate) fn of_one_moment(
    budget: impl Fn() -> anyhow::Result<Budget>,
    received: impl Fn() -> anyhow::Result<BTreeMap<String, u64>>,
) -> anyhow::Result<(Budget, BTreeMap<String, u64>)> {
    const TRIES: usize = 4;
    let mut before = received()?;
    for _ in 1..TRIES {
        let budget = budget()?;
        let after = received()?;
        if after == before {
            return Ok((budget, after));
        }
        before = after;
    }
    // Counted twice rather than not at all.
    Ok((budget()?, before))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::bail;
    use balancer_common::{
        records::{Flow, Kind},
        wire::{Address, Port},
    };
    use bytemuck::Zeroable as _;

    use super::*;

    fn note(client: u8, seeded: u8) -> Tracked {
        Tracked { since_s: 3, client, seeded, pad: [0; 2] }
    }

    #[test]
    fn an_audit_s_findings_become_effects() {
        let mut count = Count::default();
        let seed = |client| Tracked { since_s: 7, client, seeded: 1, pad: [0; 2] };
        let present = |cookie, client| Present { cookie, client };
        let mut noted = HashMap::new();
        // The first audit seeds all that is there.
        let effects = count.audit(7, &[present(1, true), present(2, false)], &noted, true);
        let expected = [Effect::Track(1, seed(1)), Effect::Track(2, seed(0)), Effect::WriteSettings];
        assert!(expected.iter().all(|effect| effects.contains(effect)) && effects.len() == 3, "{effects:?}");
        assert_eq!((count.adjust(), count.is_due_soon()), (1, true));
        assert_eq!(count.exempt_connections(&Budget::zeroed()), 1);
        noted.extend([(1, note(1, 1)), (2, note(0, 1))]);
        assert_eq!(count.audit(8, &[present(1, true), present(2, false)], &noted, false), []);
        // A seeded client's socket ends.
        let effects = count.audit(9, &[present(2, false)], &noted, false);
        assert_eq!(effects, [Effect::Untrack(1), Effect::WriteSettings]);
        assert_eq!(count.adjust(), 0);
        noted.remove(&1);
        // A socket that the programs missed: it may open just now, so the second audit tells.
        let both = [present(2, false), present(3, true)];
        assert_eq!(count.audit(10, &both, &noted, false), []);
        let effects = count.audit(11, &both, &noted, false);
        assert!(
            matches!(effects.as_slice(), [Effect::Track(3, _), Effect::Say(Level::Error, _), _]),
            "{effects:?}"
        );
        assert_eq!(count.drift(), 1);
    }

    #[test]
    fn a_count_of_clients_includes_the_adjustment_and_is_never_negative() {
        let mut count = Count::default();
        let budget = Budget { established: 5, ..Budget::zeroed() };
        for (adjust, connections) in [(0, 5), (3, 8), (-2, 3), (-9, 0)] {
            count.resume(adjust, &HashMap::new(), &budget);
            assert_eq!(count.connections(&budget), connections, "{adjust}");
        }
    }

    #[test]
    fn a_reload_moves_connections_between_the_counts() {
        let mut count = Count::default();
        let budget = Budget { established: 2, exempt: 1, ..Budget::zeroed() };
        let mut noted = HashMap::from([(1, note(1, 0)), (2, note(1, 0)), (3, note(0, 0))]);
        let present = [1, 2, 3].map(|cookie| Present { cookie, client: false });
        let effects = count.audit(7, &present, &noted, false);
        let reclass = |cookie| Effect::Reclass(cookie, note(0, 0));
        assert!([reclass(1), reclass(2)].iter().all(|effect| effects.contains(effect)), "{effects:?}");
        assert_eq!(effects.last(), Some(&Effect::WriteSettings), "the settings come last");
        assert_eq!((count.connections(&budget), count.exempt_connections(&budget)), (0, 3));
        // The second one has ended meanwhile, and the programs took it off the clients.
        count.not_reclassed(&note(0, 0));
        let budget = Budget { established: 1, ..budget };
        assert_eq!((count.connections(&budget), count.exempt_connections(&budget)), (0, 2));
        // The first one ends, as one of the exempt.
        noted.remove(&1);
        let budget = Budget { exempt: 0, ..budget };
        assert_eq!((count.connections(&budget), count.exempt_connections(&budget)), (0, 1));
        // An agent that starts in between finds the same.
        let mut next = Count::default();
        next.resume(count.adjust(), &HashMap::from([(3, note(0, 0))]), &budget);
        assert_eq!((next.connections(&budget), next.exempt_connections(&budget)), (0, 1));
    }

    #[test]
    fn finished_flows_are_collected_and_live_relays_counted() {
        let end = (Address::UNSPECIFIED, Port::NONE);
        let pair = |kind, live, state, seen_s| {
            let mut flow = Flow::new(kind, 0, end, end, 0, 0, seen_s);
            flow.state = state;
            FlowPair { key: balancer_common::records::Tuple::zeroed(), flow, back: Some(flow), live }
        };
        let mut count = Count::default();
        let pairs = vec![
            pair(Kind::Forward, true, 0, 100),
            pair(Kind::Forward, true, 0, 100),
            pair(Kind::Restore, true, 0, 100),
            pair(Kind::Forward, false, 0, 100),
            pair(Kind::Forward, true, Flow::RST, 90),
            pair(Kind::Restore, true, Flow::FIN, 70),
            pair(Kind::Forward, false, 0, 20),
        ];
        let mut relays = Relays::default();
        for pair in &pairs {
            relays += Relays::of(&pair.flow, pair.live);
        }
        let done = count.collect(100, relays, pairs);
        assert_eq!(done.iter().map(|pair| pair.flow.seen_s).collect::<Vec<_>>(), [90, 70, 20]);
        assert_eq!((count.relays().out, count.relays().into), (2, 1));
    }

    pub(super) fn socket(cookie: u64, address: &str) -> Socket {
        Socket {
            cookie,
            local: "10.0.0.1:17070".parse().unwrap(),
            remote: format!("{address}:4000").parse().unwrap(),
            state: sock_diag::State::Established,
            inode: 0,
            family: sock_diag::Family::V4,
            interface: 0,
        }
    }

    #[test]
    fn clients_that_are_old_enough_are_chosen() {
        let sockets: Vec<Socket> = (1..=4).map(|cookie| socket(cookie, "192.0.2.1")).collect();
        // 1: a client's of 60 s; 2: of 59 s; 3: exempt; 4: not noted.
        let aged = |since_s, client| Tracked { since_s, client, seeded: 0, pad: [0; 2] };
        let tracked = HashMap::from([(1, aged(40, 1)), (2, aged(41, 1)), (3, aged(0, 0))]);
        let cookies = |youngest_s, count| {
            let mut chosen: Vec<u64> = choose(&sockets, &tracked, 100, youngest_s, count)
                .iter()
                .map(|socket| socket.cookie)
                .collect();
            chosen.sort_unstable();
            chosen
        };
        for (youngest_s, expected) in [(60, vec![1]), (59, vec![1, 2]), (0, vec![1, 2]), (61, vec![])] {
            assert_eq!(cookies(youngest_s, 9), expected, "{youngest_s}");
        }
        assert_eq!(cookies(0, 1).len(), 1);
    }

    #[test]
    fn connections_are_counted_by_client_address() {
        let sockets =
            [socket(1, "192.0.2.1"), socket(2, "192.0.2.1"), socket(3, "192.0.2.2"), socket(4, "10.0.0.2")];
        let counts = by_client(&sockets, |address| address != IpAddr::from([10, 0, 0, 2]));
        assert_eq!(counts, HashMap::from([([192, 0, 2, 1].into(), 2), ([192, 0, 2, 2].into(), 1)]));
    }

    #[test]
    fn a_report_s_load_and_received_relays_are_of_one_moment() {
        // How many relays each look finds, and how many looks it takes; the budget counts the looks at it.
        let rows: [(&[u64], u32); 4] =
            [(&[5, 5], 1), (&[5, 6, 6], 2), (&[5, 6, 7, 7], 3), (&[1, 2, 3, 4, 5], 4)];
        for (looks, budgets) in rows {
            let (looked, taken) = (Cell::new(0), Cell::new(0));
            let received = || {
                let look = looked.replace(looked.get() + 1);
                Ok(BTreeMap::from([("b".to_owned(), looks[look.min(looks.len() - 1)])]))
            };
            let budget = || {
                taken.set(taken.get() + 1);
                Ok(Budget { established: taken.get(), ..Budget::zeroed() })
            };
            let (budget, _) = of_one_moment(budget, received).unwrap();
            assert_eq!(budget.established, budgets, "{looks:?}");
        }
        assert!(of_one_moment(|| bail!("no map"), || Ok(BTreeMap::new())).is_err());
    }
}
