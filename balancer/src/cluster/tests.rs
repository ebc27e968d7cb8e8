//! Rows for [`Cluster::step`], with a clock of their own: news of controller b in, effects out.

use bytemuck::Zeroable as _;

use super::*;
use crate::config::{Controller as Configured, KeySource, RelayPorts};

const SLOT: usize = 1;
/// Relay port that b announces to a.
const RELAY_PORT: u16 = 17_080;

/// News that reaches controller a between two steps.
#[derive(Clone, Copy, Debug)]
enum Heard {
    /// A fresh report with so many connections.
    Load(u64),
    /// A fresh report of a controller that is not ready.
    NotReady,
    /// A fresh report of a controller that is being drained.
    Draining,
    /// No news; its heartbeat still moves.
    Heartbeat,
    /// Nothing, and its heartbeat has stopped.
    Nothing,
    ProbeAlive,
    ProbeSilent,
}
use Heard::{Draining, Heartbeat, Load, NotReady, Nothing, ProbeAlive, ProbeSilent};

/// Controllers a, which runs the steps, and b.
struct Bench {
    start: Instant,
    cluster: Cluster,
    record: Record,
    view: Option<PeerView>,
}

fn listed(source: Source, names: &[(&str, &str)]) -> config::Cluster {
    let controller = |(name, address): &(&str, &str)| Configured {
        name: (*name).to_owned(),
        addresses: vec![address.parse().unwrap()],
        weight: 1.0,
    };
    config::Cluster {
        source,
        name: "a".into(),
        listen: "[::]:17078".parse().unwrap(),
        relay_ports: RelayPorts { first: 17_080, last: 17_095 },
        key: KeySource::File("/key".into()),
        controllers: names.iter().map(controller).collect(),
        candidates: Vec::new(),
    }
}

fn report(connections: u64) -> Report {
    Report {
        ready: true,
        draining: false,
        connections,
        handshakes: 0,
        limit: 5_000,
        weight: 1.0,
        arrivals_per_s: 2.5,
        received: BTreeMap::new(),
        relay_ports: BTreeMap::from([("a".to_owned(), RELAY_PORT)]),
        addresses: vec!["10.0.0.2".parse().unwrap()],
        closing: 0,
        sheds: false,
    }
}

impl Bench {
    /// b's record says `found`, as an earlier agent left it.
    fn new(found: State) -> Self {
        let start = Instant::now();
        let listed = listed(Source::File, &[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
        let mut cluster = Cluster::new(listed.clone(), Reported::new());
        let controller = Controller { state: found as u8, ..Controller::zeroed() };
        cluster.adopt(start, listed.clone(), &listed, &[0, SLOT], &[Controller::zeroed(), controller]);
        Self { start, cluster, record: Record { controller, traffic: Traffic::default() }, view: None }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn hear(&mut self, ms: u64, heard: Heard) {
        let now = self.at(ms);
        let fresh = |report| PeerView {
            name: "b".into(),
            report: Some(report),
            received_at: Some(now),
            alive: true,
            generation: 1,
        };
        match heard {
            Load(connections) => self.view = Some(fresh(report(connections))),
            NotReady => self.view = Some(fresh(Report { ready: false, ..report(0) })),
            Draining => self.view = Some(fresh(Report { draining: true, ..report(0) })),
            Heartbeat => {}
            Nothing => {
                if let Some(view) = &mut self.view {
                    view.alive = false;
                }
            }
            ProbeAlive => self.cluster.probed("b", ProbeResult::Alive),
            ProbeSilent => self.cluster.probed("b", ProbeResult::Silent),
        }
    }

    /// One step; the record is written back as the agent would. Boot clock: 1,000 s at the start.
    fn step(&mut self, ms: u64) -> Vec<Effect> {
        let inputs = Inputs {
            boot_ns: 1_000_000_000_000 + ms * 1_000_000,
            views: self.view.iter().map(|view| (view.name.clone(), view.clone())).collect(),
            records: BTreeMap::from([(SLOT, self.record)]),
        };
        let effects = self.cluster.step(self.at(ms), &inputs);
        for effect in &effects {
            if let Effect::WriteController { slot: SLOT, controller } = effect {
                self.record.controller = **controller;
            }
        }
        effects
    }

    fn state(&self) -> State {
        self.record.controller.state()
    }
}

/// Effects in short; writes are judged by the record instead.
fn short(effects: &[Effect]) -> String {
    let word = |effect: &Effect| match effect {
        Effect::WriteController { .. } => None,
        Effect::Probe { .. } => Some("probe"),
        Effect::ResetFlows { .. } => Some("reset"),
        Effect::MembershipChanged => Some("changed"),
        Effect::Say(Level::Info, _) => Some("info"),
        Effect::Say(..) => Some("warn"),
    };
    effects.iter().filter_map(word).collect::<Vec<_>>().join(" ")
}

/// Steps through `rows`: time, news, and the state and effects after it.
fn prove(found: State, rows: &[(u64, Heard, State, &str)]) {
    let mut bench = Bench::new(found);
    for &(ms, heard, state, effects) in rows {
        bench.hear(ms, heard);
        let shown = short(&bench.step(ms));
        assert_eq!((bench.state(), shown.as_str()), (state, effects), "{found:?}, {ms} ms: {heard:?}");
    }
}

#[test]
fn a_controller_is_heard_falls_silent_dies_and_comes_back() {
    use State::{Absent, Ready, Silent};
    prove(
        Absent,
        &[
            (0, Nothing, Absent, ""),
            (100, Load(5), Ready, "info changed"),
            (200, Load(6), Ready, ""),
            (300, Heartbeat, Ready, ""),
            // Its agent is silent. A probe is sent at once, as the first three seconds are over by then.
            (5_000, Nothing, Silent, "info changed probe"),
            (5_100, Nothing, Silent, ""),
            (5_400, ProbeSilent, Silent, ""),
            // The next probe leaves half a second after the first.
            (5_499, Nothing, Silent, ""),
            (5_500, Nothing, Silent, "probe"),
            (5_900, ProbeSilent, Absent, "info changed reset"),
            (6_000, Nothing, Absent, "probe"),
            (6_400, ProbeSilent, Absent, ""),
            (6_500, Nothing, Absent, "probe"),
            (6_600, ProbeAlive, Silent, "info changed"),
            (6_700, Load(0), Ready, "info changed"),
        ],
    );
}

#[test]
fn a_silent_agent_on_a_host_that_answers_keeps_its_flows() {
    use State::{Absent, Ready, Silent};
    prove(
        Absent,
        &[
            (4_000, Load(5), Ready, "info changed"),
            (5_000, Nothing, Silent, "info changed probe"),
            (5_400, ProbeSilent, Silent, ""),
            (5_500, Nothing, Silent, "probe"),
            // One answer forgets the silence before it.
            (5_510, ProbeAlive, Silent, ""),
            (6_000, Nothing, Silent, "probe"),
            (6_400, ProbeSilent, Silent, ""),
            (6_500, Nothing, Silent, "probe"),
            (6_510, ProbeAlive, Silent, ""),
            (60_000, Nothing, Silent, "probe"),
        ],
    );
}

#[test]
fn only_one_probe_is_on_its_way() {
    use State::{Absent, Ready, Silent};
    prove(
        Absent,
        &[
            (0, Load(5), Ready, "info changed"),
            (4_000, Nothing, Silent, "info changed probe"),
            (5_000, Nothing, Silent, ""),
            (9_000, Nothing, Silent, ""),
            (9_001, ProbeSilent, Silent, "probe"),
        ],
    );
}

#[test]
fn a_new_agent_keeps_the_states_that_it_finds_for_three_seconds() {
    use State::{Absent, Ready, Silent};
    for found in [Ready, State::NotReady, State::Draining] {
        prove(
            found,
            &[
                (0, Nothing, found, ""),
                (2_999, Nothing, found, ""),
                (3_000, Nothing, Silent, "info changed probe"),
                (3_400, ProbeSilent, Silent, ""),
                (3_500, Nothing, Silent, "probe"),
                (3_900, ProbeSilent, Absent, "info changed reset"),
            ],
        );
    }
    // One that was absent before is not declared dead a second time.
    prove(Absent, &[(0, Nothing, Absent, ""), (3_000, Nothing, Absent, "probe")]);
    // Once heard, a controller is not given the state from before the start.
    prove(Ready, &[(100, Draining, State::Draining, "info changed"), (200, Nothing, Silent, "info changed")]);
}

#[test]
fn a_report_tells_the_state() {
    prove(
        State::Absent,
        &[
            (100, NotReady, State::NotReady, "info changed"),
            (200, Draining, State::Draining, "info changed"),
            (300, Load(1), State::Ready, "info changed"),
            (400, NotReady, State::NotReady, "info changed"),
            (500, NotReady, State::NotReady, ""),
        ],
    );
}

#[test]
fn a_view_is_the_report_and_the_relays_on_their_way() {
    let mut bench = Bench::new(State::Absent);
    // Time, connections reported (none: no news), relays sent to b by then and received of them by b; the load that the
    // programs see: view_base + sent.
    let rows = [
        (0, Some(100), 0, 0, 100),
        (100, None, 7, 0, 107),
        // b has counted three of seven.
        (200, Some(103), 7, 3, 107),
        (300, Some(107), 7, 7, 107),
        (400, None, 9, 7, 109),
        // Clients of b's own have gone.
        (500, Some(90), 9, 9, 90),
        // Two relays that b never counts: lost, and forgotten after a second.
        (600, Some(90), 11, 9, 92),
        (1_500, Some(90), 11, 9, 92),
        (1_700, Some(90), 11, 9, 90),
        (1_800, Some(91), 12, 10, 91),
    ];
    for (ms, connections, sent, received, load) in rows {
        bench.record.traffic.sent = sent;
        if let Some(connections) = connections {
            bench.hear(ms, Load(connections));
            let report = bench.view.as_mut().and_then(|view| view.report.as_mut()).unwrap();
            report.received.insert("a".to_owned(), received);
        }
        bench.step(ms);
        assert_eq!(bench.record.controller.view_base + sent as i64, load, "{ms} ms");
    }
}

#[test]
fn a_record_is_written_when_it_changes_and_only_then() {
    let mut bench = Bench::new(State::Absent);
    let writes = |effects: Vec<Effect>| {
        effects.iter().filter(|effect| matches!(effect, Effect::WriteController { .. })).count()
    };
    bench.hear(0, Load(5));
    assert_eq!(writes(bench.step(0)), 1);
    let Controller { limit, weight, arrivals_milli, relay_out, reported_ns, .. } = bench.record.controller;
    assert_eq!(
        (limit, weight, arrivals_milli, relay_out.host(), reported_ns),
        (5_000, 1_024, 2_500, RELAY_PORT, 1_000_000_000_000)
    );
    assert_eq!(writes(bench.step(10)), 0, "no news");
    bench.hear(20, Load(5));
    assert_eq!(writes(bench.step(20)), 1, "the report is fresh");
    assert_eq!(bench.record.controller.reported_ns, 1_000_020_000_000);
    // The view of a silent controller is frozen, and ages.
    bench.hear(30, Nothing);
    bench.step(30);
    assert_eq!(bench.record.controller.reported_ns, 1_000_020_000_000);
    // A controller that announces no relay port gets no relays.
    bench.hear(40, Load(5));
    bench.view.as_mut().and_then(|view| view.report.as_mut()).unwrap().relay_ports.clear();
    bench.step(40);
    assert_eq!(bench.record.controller.relay_out, Port::NONE);
    // A record that could not be read is left alone.
    let inputs = Inputs { boot_ns: 0, views: BTreeMap::new(), records: BTreeMap::new() };
    assert_eq!(bench.cluster.step(bench.at(50), &inputs), []);
}

#[test]
fn the_operator_hears_once_that_relays_are_not_answered() {
    let mut bench = Bench::new(State::Absent);
    bench.hear(0, Load(5));
    bench.step(0);
    let second = 1_000_000_000;
    let rows = [
        (100, 1_000, ""),
        (200, 1_010, "warn"),
        (300, 1_010, ""),
        (9_000, 1_010, ""),
        (11_000, 1_010, "info"),
    ];
    for (ms, until_s, expected) in rows {
        bench.record.traffic.unreachable_until_ns = until_s * second;
        bench.hear(ms, Load(5));
        assert_eq!(short(&bench.step(ms)), expected, "{ms} ms");
    }
}

#[test]
fn clients_fall_back_where_no_taker_can_be_relayed_to() {
    let mut bench = Bench::new(State::Absent);
    let none = |bench: &Bench, port: Option<u16>| bench.cluster.none_relayable(|_| port.map(Port::new));
    assert!(!none(&bench, Some(RELAY_PORT)), "nobody takes clients");
    bench.hear(0, Load(5));
    bench.step(0);
    let rows = [(Some(RELAY_PORT), false), (Some(0), true), (None, false)];
    for (port, expected) in rows {
        assert_eq!(none(&bench, port), expected, "{port:?}");
    }
    bench.record.traffic.unreachable_until_ns = u64::MAX;
    bench.step(10);
    assert!(none(&bench, Some(RELAY_PORT)), "unreachable");
}

#[test]
fn shedding_sees_the_controllers_that_are_heard() {
    let mut bench = Bench::new(State::Absent);
    let rows = [
        (0, Nothing, None),
        (100, Load(5), Some((5, true, 0))),
        (150, Heartbeat, Some((5, true, 50))),
        (200, Draining, Some((0, false, 0))),
        (300, NotReady, Some((0, false, 0))),
        (400, Nothing, None),
    ];
    for (ms, heard, expected) in rows {
        bench.hear(ms, heard);
        bench.step(ms);
        let loads = bench.cluster.loads(bench.at(ms));
        let seen = loads.first().map(|load| (load.load, load.takes, load.age_ms));
        assert_eq!(seen, expected, "{ms} ms: {heard:?}");
    }
}

#[test]
fn controllers_that_stay_keep_all_that_is_known_of_them() {
    let mut bench = Bench::new(State::Absent);
    bench.hear(0, Load(5));
    bench.step(0);
    let three = listed(Source::File, &[("a", "10.0.0.1"), ("c", "10.0.0.3"), ("b", "10.0.0.9")]);
    let slots = [Controller::zeroed(); 4];
    bench.cluster.adopt(bench.at(10), three.clone(), &three, &[0, 2, SLOT], &slots);
    let seen: Vec<_> = bench
        .cluster
        .peers()
        .iter()
        .map(|peer| (peer.name.as_str(), peer.slot, peer.state, peer.addresses[0].to_string()))
        .collect();
    let expected =
        [("c", 2, State::Absent, "10.0.0.3".to_owned()), ("b", SLOT, State::Ready, "10.0.0.9".to_owned())];
    assert_eq!(seen, expected);
    assert_eq!(
        ["a", "b", "c", "d"].map(|name| bench.cluster.slot_of(name)),
        [Some(0), Some(1), Some(2), None]
    );
    let without = listed(Source::File, &[("a", "10.0.0.1")]);
    bench.cluster.adopt(bench.at(20), without.clone(), &without, &[0], &slots);
    assert!(bench.cluster.peers().is_empty());
}

#[test]
fn reported_addresses_regroup_the_controllers_that_juju_lists() {
    for (source, regroups) in [(Source::File, false), (Source::AgentConf("/agent.conf".into()), true)] {
        let listed = listed(source, &[("a", "10.0.0.1"), ("10.0.0.2", "10.0.0.2"), ("10.1.0.2", "10.1.0.2")]);
        let mut bench = Bench::new(State::Absent);
        bench.cluster = Cluster::new(listed, Reported::new());
        let view = |addresses: &[&str]| PeerView {
            name: "10.0.0.2".into(),
            report: Some(Report {
                addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
                ..report(0)
            }),
            received_at: None,
            alive: true,
            generation: 1,
        };
        let rows = [
            (&["10.0.0.2"][..], regroups),
            (&["10.0.0.2"], false),
            (&["10.0.0.2", "10.1.0.2"], regroups),
            (&["10.0.0.2", "10.1.0.2"], false),
        ];
        for (addresses, expected) in rows {
            bench.view = Some(view(addresses));
            bench.step(0);
            assert_eq!(bench.cluster.take_regroup(), expected, "{addresses:?}");
        }
        let controllers: Vec<usize> =
            bench.cluster.grouped().controllers.iter().map(|one| one.addresses.len()).collect();
        assert_eq!(controllers, if regroups { vec![1, 2] } else { vec![1, 1, 1] });
    }
}
