//! Rows for [`Cluster::step`], with a clock of their own: news of controller b in, effects out.

use balancer_common::{
    records::Network,
    wire::{Address, Port},
};
use bytemuck::Zeroable as _;

use super::{
    peers::{About, Report},
    *,
};
use crate::config::{KeySource, RelayPorts, Source};

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
    /// The farewell of a controller whose balancer is being removed.
    Leaving,
    /// No news; its heartbeat still moves.
    Heartbeat,
    /// Nothing, and its heartbeat has stopped.
    Nothing,
    /// The probe of the path worked, or failed.
    Works,
    Fails,
}
use Heard::{Draining, Fails, Heartbeat, Leaving, Load, NotReady, Nothing, Works};

/// Controllers a, which runs the steps, and b.
struct Bench {
    start: Instant,
    cluster: Cluster,
    record: Record,
    view: Option<PeerView>,
    /// The last probe of the path.
    probe: Option<Probe>,
    /// Effects of its result.
    said: String,
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
        names: Vec::new(),
        beside: Vec::new(),
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
        host: Vec::new(),
        tag: String::new(),
        closing: 0,
        sheds: false,
        off: BTreeMap::new(),
        leaving: false,
        farewells: BTreeSet::new(),
        bypassed: false,
        agent: About::default(),
    }
}

impl Bench {
    /// b's record says `found`, as an earlier agent left it.
    fn new(found: State) -> Self {
        let start = Instant::now();
        let listed = listed(Source::File, &[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
        let mut cluster = Cluster::new(listed.clone(), Reported::new(), Tag::default());
        let controller = Controller { state: found as u8, ..Controller::zeroed() };
        cluster.adopt(
            start,
            listed.clone(),
            &listed,
            &[Some(0), Some(SLOT)],
            &[Controller::zeroed(), controller],
        );
        Self {
            start,
            cluster,
            record: Record { controller, traffic: Traffic::default() },
            view: None,
            probe: None,
            said: String::new(),
        }
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
            ends: None,
            unread: false,
        };
        match heard {
            Load(connections) => self.view = Some(fresh(report(connections))),
            NotReady => self.view = Some(fresh(Report { ready: false, ..report(0) })),
            Draining => self.view = Some(fresh(Report { draining: true, ..report(0) })),
            Leaving => self.view = Some(fresh(Report::farewell())),
            Heartbeat => {}
            Nothing => {
                if let Some(view) = &mut self.view {
                    view.alive = false;
                }
            }
            Works | Fails => {
                let result = if matches!(heard, Works) { Ok(()) } else { Err("refused".to_owned()) };
                let probe = self.probe.clone().expect("a probe was sent");
                let effects = self.cluster.probed(now, &probe, result);
                self.said = short(&effects);
            }
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
            match effect {
                Effect::WriteController { slot: SLOT, controller } => self.record.controller = **controller,
                Effect::Probe(probe) => self.probe = Some(probe.clone()),
                Effect::WriteController { .. }
                | Effect::Knock { .. }
                | Effect::LookForWaiting { .. }
                | Effect::Unbar(_)
                | Effect::Say(..) => {}
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
        Effect::LookForWaiting { .. } => Some("look"),
        Effect::Unbar(_) => Some("unbar"),
        Effect::Knock { .. } => Some("knock"),
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
fn a_controller_is_heard_falls_silent_and_comes_back() {
    use State::{Absent, Ready, Silent};
    prove(
        Absent,
        &[
            (0, Nothing, Absent, ""),
            (100, Load(5), Ready, "info probe"),
            (110, Works, Ready, ""),
            (200, Load(6), Ready, ""),
            (300, Heartbeat, Ready, ""),
            // Its agent is silent: it is not picked, and its clients are looked at twice a second.
            (5_000, Nothing, Silent, "warn knock look"),
            (5_100, Nothing, Silent, ""),
            (5_500, Nothing, Silent, "look"),
            (60_000, Nothing, Silent, "knock look"),
            (60_100, Load(0), Ready, "info probe"),
            (60_200, Works, Ready, ""),
            (60_600, Heartbeat, Ready, ""),
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
                (3_000, Nothing, Silent, "warn knock look"),
            ],
        );
    }
    // One that was absent before was never heard.
    prove(Absent, &[(0, Nothing, Absent, ""), (3_000, Nothing, Absent, "")]);
    // Once heard, a controller is not given the state from before the start.
    prove(
        Ready,
        &[(100, Draining, State::Draining, "info probe"), (200, Nothing, Silent, "warn knock look")],
    );
}

#[test]
fn nothing_is_relayed_to_a_controller_that_leaves_and_the_report_says_so() {
    use State::{Absent, Ready, Silent};
    prove(
        Ready,
        &[
            (100, Load(5), Ready, "probe"),
            (110, Works, Ready, ""),
            (200, Leaving, Absent, "info"),
            (300, Heartbeat, Absent, ""),
            (2_000, Nothing, Silent, "warn look"),
            // It is installed again.
            (60_000, Load(0), Ready, "info probe"),
        ],
    );
    let mut bench = Bench::new(Ready);
    for (ms, heard, farewells) in
        [(100, Load(5), false), (200, Leaving, true), (300, Nothing, false), (400, Load(0), false)]
    {
        bench.hear(ms, heard);
        bench.step(ms);
        assert_eq!(bench.cluster.farewells().contains("b"), farewells, "{heard:?}");
        let is_told = bench.record.controller.relay_out == Port::NONE;
        assert!(is_told || !farewells, "{heard:?}: the record holds no relay port");
    }
}

#[test]
fn relays_begin_when_a_probe_has_worked_and_end_when_two_have_failed() {
    let mut bench = Bench::new(State::Absent);
    // Time, news, the bits of proved paths, effects of the step, effects of the result, the word of `status`.
    let rows = [
        (100, Load(5), 0, "info probe", "", "off"),
        (150, Works, 1, "", "", "ok"),
        (200, Load(6), 1, "", "", "ok"),
        (60_150, Load(6), 1, "probe", "", "ok"),
        (60_200, Fails, 1, "", "", "ok"),
        (60_450, Load(6), 1, "probe", "", "ok"),
        (60_500, Fails, 0, "", "warn", "off"),
        (61_000, Load(6), 0, "probe", "", "off"),
        (61_010, Fails, 0, "", "", "off"),
        (62_010, Load(6), 0, "probe", "", "off"),
        (62_020, Works, 1, "", "info", "ok"),
    ];
    for (ms, heard, paths, effects, said, relay) in rows {
        bench.said.clear();
        bench.hear(ms, heard);
        let shown = short(&bench.step(ms));
        let found = (
            bench.record.controller.paths,
            shown.as_str(),
            bench.said.as_str(),
            bench.cluster.relay(&bench.cluster.peers()[0]),
        );
        assert_eq!(found, (paths, effects, said, relay), "{ms} ms: {heard:?}");
    }
    let probe = bench.probe.as_ref().unwrap();
    let shown = (probe.from.to_string(), probe.to.to_string(), probe.port, probe.ask);
    assert_eq!(shown, ("10.0.0.1".into(), "10.0.0.2".into(), RELAY_PORT, None));
}

#[test]
fn everything_that_is_not_relayed_is_told() {
    let mut bench = Bench::new(State::Absent);
    bench.hear(0, Load(5));
    bench.step(0);
    for ms in [10, 20] {
        bench.hear(ms, Fails);
    }
    let client = Address::from(IpAddr::from([10, 1, 2, 3]));
    let noted = [(Network::of(&client), Network { client, barred: 1 << SLOT, ..Network::default() })];
    assert_eq!(short(&bench.cluster.note_networks(bench.at(30), &noted)), "warn");
    assert_eq!(short(&bench.cluster.note_networks(bench.at(40), &noted)), "");
    assert_eq!(short(&bench.cluster.set_off([None, Some("big packets".into())])), "warn");
    let expected = [
        "no client is relayed over IPv6: big packets",
        "no client is relayed to b over IPv4: refused",
        "clients in 10.1.2.0/24 are not relayed to b: one got no connection that way; does the firewall of b let them reach TCP \
         17080-17095, and are its routes and rp_filter right for them?",
    ];
    assert_eq!(bench.cluster.not_relayed(), expected);
    // A probe in the client's name takes the bar away.
    let effects = bench.cluster.note_networks(bench.at(31_000), &noted);
    let [Effect::Probe(probe)] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(probe.ask.map(|ask| ask.client), Some(client));
    assert_eq!(short(&bench.cluster.probed(bench.at(31_010), probe, Ok(()))), "unbar info");
    assert_eq!(bench.cluster.not_relayed().len(), 2);
}

#[test]
fn nothing_is_probed_from_a_host_that_relays_nothing() {
    let mut bench = Bench::new(State::Absent);
    assert_eq!(short(&bench.cluster.set_off([Some("a firewall".into()), None])), "warn");
    assert_eq!(short(&bench.cluster.set_off([Some("a firewall".into()), None])), "");
    assert_eq!(bench.cluster.off(), BTreeMap::from([("IPv4".to_owned(), "a firewall".to_owned())]));
    bench.hear(0, Load(5));
    assert_eq!(short(&bench.step(0)), "info");
    assert_eq!(short(&bench.cluster.set_off([None, None])), "info");
    bench.hear(10, Load(5));
    assert_eq!(short(&bench.step(10)), "probe");
    // What is proved is closed at once, in the same step.
    bench.hear(15, Works);
    bench.step(15);
    assert_ne!(bench.record.controller.paths, 0);
    bench.cluster.set_off([Some("a firewall".into()), None]);
    bench.step(16);
    assert_eq!(bench.record.controller.paths, 0);
    bench.cluster.set_off([None, None]);
    bench.step(17);
    // Nor where the other one takes none.
    bench.hear(20, Load(5));
    let report = bench.view.as_mut().and_then(|view| view.report.as_mut()).unwrap();
    report.off.insert("IPv4".into(), "its firewall".into());
    assert_eq!(short(&bench.step(20)), "warn");
    assert_eq!(short(&bench.step(30)), "", "once");
    let expected =
        "no client is relayed to b over IPv4: its firewall; `balancer status` at b says how to put it right";
    assert_eq!(bench.cluster.not_relayed(), [expected]);
    assert_eq!(bench.cluster.relay(&bench.cluster.peers()[0]), "off");
    bench.hear(40, Load(5));
    assert_eq!(short(&bench.step(40)), "info");
    // Nor where it is not heard.
    bench.hear(5_000, Nothing);
    bench.step(5_000);
    let [sentence] = &bench.cluster.not_relayed()[..] else { panic!("one sentence") };
    assert!(sentence.starts_with("no client is relayed to b: no report arrives from it; "), "{sentence}");
    for (answered, said, why) in
        [(true, "warn", "its host answers"), (true, "", "its host answers"), (false, "warn", "nothing")]
    {
        assert_eq!(short(&bench.cluster.knocked("b", answered)), said);
        let told = bench.cluster.not_relayed();
        assert!(told[0].starts_with(&format!("no client is relayed to b: {why}")), "{told:?}");
    }
    assert_eq!(short(&bench.cluster.knocked("nobody", true)), "");
}

/// Addresses of both controllers, whether a port is announced, the bits of proved paths, the word.
type Relayed<'a> = (&'a [&'a str], &'a [&'a str], bool, u8, &'a str);

#[test]
fn the_word_of_status_names_the_family_that_works() {
    let (v4, v6) = (Controller::path(Family::V4), Controller::path(Family::V6));
    let dual = ["10.0.0.1", "fd00::1"];
    let rows: [Relayed; 9] = [
        (&dual, &dual, true, v4 | v6, "ok"),
        (&dual, &dual, true, v4, "v4 only"),
        (&dual, &dual, true, v6, "v6 only"),
        (&dual, &dual, true, 0, "off"),
        (&dual, &dual, false, v4, "none"),
        (&dual, &dual[..1], true, v4, "ok"),
        (&dual[1..], &dual, true, v6, "ok"),
        (&dual[..1], &dual[..1], true, 0, "off"),
        (&dual[..1], &dual[1..], true, 0, "off"),
    ];
    for (own, others, announced, proved, word) in rows {
        let mut bench = Bench::new(State::Ready);
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        bench.cluster.own_addresses = parse(own);
        let [peer] = &mut bench.cluster.peers[..] else { panic!("one peer") };
        peer.addresses = parse(others);
        peer.relay_port = announced.then_some(RELAY_PORT);
        peer.paths = FAMILIES.map(|family| Path::new(bench.start, proved & Controller::path(family) != 0));
        let cluster = &bench.cluster;
        assert_eq!(cluster.relay(&cluster.peers[0]), word, "{own:?} {others:?} {announced} {proved}");
    }
}

#[test]
fn a_report_tells_the_state() {
    prove(
        State::Absent,
        &[
            (100, NotReady, State::NotReady, "info"),
            (200, Draining, State::Draining, "info probe"),
            (300, Load(1), State::Ready, "info"),
            (400, NotReady, State::NotReady, "info"),
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
fn shedding_sees_the_controllers_that_are_heard() {
    let mut bench = Bench::new(State::Absent);
    let rows = [
        (0, Nothing, None),
        (100, Load(5), Some((5, true, 0, false))),
        (110, Works, Some((5, true, 10, false))),
        (150, Heartbeat, Some((5, true, 50, false))),
        // It has been ready for a minute.
        (60_099, Load(5), Some((5, true, 0, false))),
        (60_100, Heartbeat, Some((5, true, 1, true))),
        (60_200, Draining, Some((0, false, 0, false))),
        (60_300, NotReady, Some((0, false, 0, false))),
        (60_400, Nothing, None),
    ];
    for (ms, heard, expected) in rows {
        bench.hear(ms, heard);
        bench.step(ms);
        let loads = bench.cluster.loads(bench.at(ms), true);
        let seen = loads.first().map(|load| (load.load, load.takes, load.age_ms, load.settled));
        assert_eq!(seen, expected, "{ms} ms: {heard:?}");
    }
}

#[test]
fn a_controller_has_no_share_where_no_relay_takes_clients_there() {
    let mut bench = Bench::new(State::Absent);
    // Milliseconds, news, the families that clients here use, whether it can be reached, and why it has no share.
    let rows = [
        (100, Load(5), [true, false], false, "controller b: no relay reaches it over IPv4"),
        (110, Works, [true, false], true, "controller b: it has been ready for less than 60 s"),
        (120, Heartbeat, [true, true], false, "controller b: no relay reaches it over IPv6"),
        (130, Heartbeat, [false, false], true, "controller b: it has been ready for less than 60 s"),
        (60_200, Load(5), [true, false], true, ""),
        (60_300, NotReady, [true, true], false, ""),
        (60_400, Load(5), [true, false], false, "controller b: no relay reaches it over IPv4"),
        (60_410, Works, [true, false], true, "controller b: it has been ready for less than 60 s"),
        (
            60_500,
            NotReady,
            [true, false],
            false,
            "controller b: it came and went 2 times; it has a share again once it has been ready for 120 s",
        ),
    ];
    for (ms, heard, used, reachable, why) in rows {
        bench.cluster.note_families(used);
        bench.hear(ms, heard);
        bench.step(ms);
        let at = bench.at(ms);
        assert_eq!(bench.cluster.loads(at, true)[0].reachable, reachable, "{ms} ms: {heard:?}");
        assert!(bench.cluster.loads(at, false)[0].reachable, "clients find it by themselves");
        assert_eq!(bench.cluster.left_out(at, true).join("; "), why, "{ms} ms: {heard:?}");
    }
}

#[test]
fn controllers_that_stay_keep_all_that_is_known_of_them() {
    let mut bench = Bench::new(State::Absent);
    bench.hear(0, Load(5));
    bench.step(0);
    let three = listed(Source::File, &[("a", "10.0.0.1"), ("c", "10.0.0.3"), ("b", "10.0.0.9")]);
    let slots = [Controller::zeroed(); 4];
    bench.cluster.adopt(bench.at(10), three.clone(), &three, &[Some(0), Some(2), Some(SLOT)], &slots);
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
    bench.cluster.adopt(bench.at(20), without.clone(), &without, &[Some(0)], &slots);
    assert!(bench.cluster.peers().is_empty());
}

/// Controllers as `name=addresses`, those that are on their way out in brackets.
fn grouping(cluster: &Cluster, now: Instant) -> String {
    let grouped = cluster.grouped(now, cluster.listed());
    let leaving = |name: &str| cluster.peers.iter().any(|peer| peer.name == name && peer.leaving.is_some());
    let shown = grouped.controllers.iter().map(|one| {
        let addresses: Vec<_> = one.addresses.iter().map(ToString::to_string).collect();
        let text = format!("{}={}", one.name, addresses.join(","));
        if leaving(&one.name) { format!("({text})") } else { text }
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// What the agent does when the controllers have changed.
fn regroup(cluster: &mut Cluster, now: Instant, slots: &mut [Controller], listed: config::Cluster) {
    let grouped = cluster.grouped(now, &listed);
    let wanted: Vec<_> =
        grouped.controllers.iter().map(|one| (one.name.as_str(), &one.addresses[..])).collect();
    let indices = slots::assign(slots, &wanted, &grouped.name, grouped.relay_ports).unwrap();
    for (one, index) in grouped.controllers.iter().zip(&indices) {
        let index = index.expect("a slot for each");
        (slots[index].v4, slots[index].v6) = membership::relay_addresses(&one.addresses);
    }
    cluster.adopt(now, listed, &grouped, &indices, slots);
}

/// A change of Juju's list, or the word of an agent.
enum Word {
    Lists(&'static [&'static str]),
    Says(&'static str, &'static [&'static str]),
    Silent(&'static str),
}
use Word::{Lists, Says, Silent};

/// A name; then a time in ms, a word, and the controllers and the slot of `machine-1` after it.
type Story = (&'static str, &'static [(u64, Word, &'static str, Option<usize>)]);

#[rustfmt::skip] // a step a line
const STORIES: &[Story] = &[
    ("an absence of 5 s costs nothing", &[
        (0, Lists(&["10.0.0.2"]), "a=10.0.0.1", None),
        (100, Says("machine-1", &["10.0.0.2"]), "a=10.0.0.1 machine-1=10.0.0.2", Some(1)),
        (1_000, Lists(&["10.0.0.3"]), "a=10.0.0.1 (machine-1=10.0.0.2)", Some(1)),
        (1_100, Says("machine-2", &["10.0.0.3"]), "a=10.0.0.1 machine-2=10.0.0.3 (machine-1=10.0.0.2)", Some(1)),
        (6_000, Lists(&["10.0.0.2", "10.0.0.3"]), "a=10.0.0.1 machine-1=10.0.0.2 machine-2=10.0.0.3", Some(1)),
    ]),
    ("it leaves after a minute, and no sooner", &[
        (0, Lists(&["10.0.0.2"]), "a=10.0.0.1", None),
        (100, Says("machine-1", &["10.0.0.2"]), "a=10.0.0.1 machine-1=10.0.0.2", Some(1)),
        (1_000, Lists(&["10.0.0.3"]), "a=10.0.0.1 (machine-1=10.0.0.2)", Some(1)),
        (30_000, Lists(&["10.0.0.4"]), "a=10.0.0.1 (machine-1=10.0.0.2)", Some(1)),
        (60_999, Silent("machine-1"), "a=10.0.0.1 (machine-1=10.0.0.2)", Some(1)),
        (61_000, Silent("machine-1"), "a=10.0.0.1", None),
    ]),
    ("its address changes: its agent hears of it first", &[
        (0, Lists(&["10.0.0.2"]), "a=10.0.0.1", None),
        (100, Says("machine-1", &["10.0.0.2"]), "a=10.0.0.1 machine-1=10.0.0.2", Some(1)),
        (200, Says("machine-1", &["10.0.0.9"]), "a=10.0.0.1 (machine-1=10.0.0.2)", Some(1)),
        (300, Lists(&["10.0.0.9"]), "a=10.0.0.1 machine-1=10.0.0.9", Some(1)),
    ]),
    ("its address changes: this host hears of it first", &[
        (0, Lists(&["10.0.0.2"]), "a=10.0.0.1", None),
        (100, Says("machine-1", &["10.0.0.2"]), "a=10.0.0.1 machine-1=10.0.0.2", Some(1)),
        (200, Lists(&["10.0.0.9"]), "a=10.0.0.1 (machine-1=10.0.0.2)", Some(1)),
        (300, Says("machine-1", &["10.0.0.9"]), "a=10.0.0.1 machine-1=10.0.0.9", Some(1)),
    ]),
    ("its first network leaves the list", &[
        (0, Lists(&["10.0.0.2", "10.1.0.2"]), "a=10.0.0.1", None),
        (100, Says("machine-1", &["10.0.0.2", "10.1.0.2"]), "a=10.0.0.1 machine-1=10.0.0.2,10.1.0.2", Some(1)),
        (200, Lists(&["10.1.0.2"]), "a=10.0.0.1 machine-1=10.1.0.2", Some(1)),
    ]),
    ("an agent that was named by its address gets its tag", &[
        (0, Lists(&["10.0.0.2"]), "a=10.0.0.1", None),
        (100, Says("10.0.0.2", &["10.0.0.2"]), "a=10.0.0.1 10.0.0.2=10.0.0.2", None),
        (200, Silent("10.0.0.2"), "a=10.0.0.1 10.0.0.2=10.0.0.2", None),
        (300, Says("machine-1", &["10.0.0.2"]), "a=10.0.0.1 machine-1=10.0.0.2", Some(1)),
    ]),
    ("an agent that has got its tag falls silent", &[
        (0, Lists(&["10.0.0.2"]), "a=10.0.0.1", None),
        (100, Says("10.0.0.2", &["10.0.0.2"]), "a=10.0.0.1 10.0.0.2=10.0.0.2", None),
        (200, Silent("10.0.0.2"), "a=10.0.0.1 10.0.0.2=10.0.0.2", None),
        (300, Says("machine-1", &["10.0.0.2"]), "a=10.0.0.1 machine-1=10.0.0.2", Some(1)),
        (400, Silent("machine-1"), "a=10.0.0.1 machine-1=10.0.0.2", Some(1)),
    ]),
    ("another host gets its address", &[
        (0, Lists(&["10.0.0.2"]), "a=10.0.0.1", None),
        (100, Says("machine-1", &["10.0.0.2"]), "a=10.0.0.1 machine-1=10.0.0.2", Some(1)),
        (200, Silent("machine-1"), "a=10.0.0.1 machine-1=10.0.0.2", Some(1)),
        (300, Says("machine-7", &["10.0.0.2"]), "a=10.0.0.1 machine-7=10.0.0.2", None),
    ]),
];

#[test]
fn controllers_come_change_and_leave() {
    for (what, steps) in STORIES {
        let start = Instant::now();
        let named = |others: &[&str]| {
            let names = [("a", "10.0.0.1")].into_iter().chain(others.iter().map(|one| (*one, *one)));
            listed(Source::AgentConf("/agent.conf".into()), &names.collect::<Vec<_>>())
        };
        let mut cluster = Cluster::new(named(&[]), Reported::new(), Tag::default());
        let (mut slots, mut views) = ([Controller::zeroed(); 16], BTreeMap::new());
        for (ms, word, controllers, slot) in *steps {
            let now = start + Duration::from_millis(*ms);
            let mut listed = cluster.listed().clone();
            match word {
                Lists(others) => listed = named(others),
                Says(name, addresses) => {
                    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
                    let report = Some(Report { addresses, ..report(0) });
                    let (name, received_at) = ((*name).to_owned(), Some(now));
                    let view = PeerView {
                        name: name.clone(),
                        report,
                        received_at,
                        alive: true,
                        generation: 1,
                        ends: None,
                        unread: false,
                    };
                    views.insert(name, view);
                }
                Silent(name) => {
                    if let Some(view) = views.get_mut(*name) {
                        view.alive = false;
                    }
                }
            }
            let inputs = Inputs { boot_ns: 0, views: views.clone(), records: BTreeMap::new() };
            cluster.step(now, &inputs);
            if cluster.take_regroup() || matches!(word, Lists(_)) {
                regroup(&mut cluster, now, &mut slots, listed);
            }
            assert!(!cluster.take_regroup());
            assert_eq!(grouping(&cluster, now), *controllers, "{what}, {ms} ms");
            assert_eq!(cluster.slot_of("machine-1"), *slot, "{what}, {ms} ms");
        }
    }
}

#[test]
fn this_controller_s_address_may_change_and_come_back() {
    let start = Instant::now();
    let named = |own: &str| listed(Source::AgentConf("/agent.conf".into()), &[("a", own)]);
    let mut cluster = Cluster::new(named("10.0.0.1"), Reported::new(), Tag::default());
    let mut slots = [Controller::zeroed(); 16];
    // The listed address; further ones of this host, to which connections go on.
    for (own, before) in
        [("10.0.0.1", ""), ("10.0.0.9", "10.0.0.1"), ("10.0.0.1", "10.0.0.9"), ("10.0.0.1", "10.0.0.9")]
    {
        regroup(&mut cluster, start, &mut slots, named(own));
        let asks = cluster.take_regroup();
        let grouped = cluster.grouped(start, cluster.listed());
        assert_eq!(asks, cluster.grouped != grouped, "the agent takes the further address: {own}");
        let beside: Vec<_> = grouped
            .beside
            .iter()
            .map(|(address, name)| {
                assert_eq!(name.as_deref(), Some("a"));
                address.to_string()
            })
            .collect();
        assert_eq!(
            (grouped.this().addresses[0].to_string().as_str(), beside.join(" ").as_str()),
            (own, before)
        );
    }
}

#[test]
fn a_new_agent_that_does_not_know_this_controller_yet_keeps_its_relay_port() {
    let mut bench = Bench::new(State::Absent);
    // The names to which b gives ports, whether it leaves, and the port in use.
    let rows: [(&[&str], bool, u16); 6] = [
        (&["a", "c"], false, RELAY_PORT),
        (&["10.0.0.1", "10.0.0.3"], false, RELAY_PORT),
        (&["a", "10.0.0.3"], false, RELAY_PORT),
        (&["c"], false, 0),
        (&["a"], false, RELAY_PORT),
        (&[], true, 0),
    ];
    for (ms, (names, leaving, port)) in (0..).step_by(100).zip(rows) {
        bench.hear(ms, Load(1));
        let report = bench.view.as_mut().and_then(|view| view.report.as_mut()).unwrap();
        report.relay_ports = names.iter().map(|name| ((*name).to_owned(), RELAY_PORT)).collect();
        report.leaving = leaving;
        bench.step(ms);
        assert_eq!(bench.record.controller.relay_out.host(), port, "{names:?} {leaving}");
    }
}

#[test]
fn a_controller_on_its_way_out_gets_no_new_clients() {
    let mut bench = Bench::new(State::Absent);
    bench.hear(0, Load(1));
    bench.step(0);
    bench.cluster.peers[0].leaving = Some(bench.at(0));
    bench.hear(100, Load(1));
    bench.step(100);
    assert_eq!(bench.record.controller.state(), State::Draining);
    bench.hear(200, Nothing);
    bench.step(4_000);
    assert_eq!(bench.record.controller.state(), State::Silent);
}

#[test]
fn nothing_is_relayed_while_the_keys_of_the_tags_differ() {
    let mut bench = Bench::new(State::Absent);
    bench.cluster.rotation = Rotation::new(Tag { key: [1, 2], name: "old".into() });
    let say = |bench: &mut Bench, ms: u64, tag: &str| {
        bench.hear(ms, Load(1));
        bench.view.as_mut().and_then(|view| view.report.as_mut()).unwrap().tag = tag.into();
        bench.probe = None;
        bench.step(ms);
    };
    say(&mut bench, 0, "old");
    assert!(bench.probe.is_some());
    bench.hear(10, Works);
    // The name that b announces; whether clients are relayed to it.
    for (ms, tag, relayed) in [(100, "old", true), (200, "-", false), (300, "new", false), (400, "old", true)]
    {
        say(&mut bench, ms, tag);
        assert_eq!(bench.record.controller.paths != 0, relayed, "{tag}");
        assert_eq!(bench.cluster.not_relayed().is_empty(), relayed, "{tag}");
    }
}
