//! Peer sync of seven controllers on a simulated network, with an attacker, and a record of everything they saw.

mod record;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use balancer::cluster::peers::{About, Member, PeerView, Peers, PeersConfig, Report, SyncCounts};
use balancer::juju::key::ClusterKey;
use tests::support::noise::Noise;
use tokio::sync::{mpsc, watch};
use turmoil::net::UdpSocket;
use turmoil::{Builder, Sim};

use self::record::{Event, Seen};
use crate::air::{
    ATTACKER, Air, CONTROLLERS, LONGEST, PORT, STEP, Sent, SharedAir, SimulatedHost, address, attack, member,
    ms, name, socket_address,
};

/// Time at the start of every simulation.
const EPOCH: Duration = Duration::from_hours(500_000);
/// Interval at which an agent publishes its report, changed or not.
const TICK: Duration = Duration::from_millis(100);
/// Prefix of the lines of a course that give a measured time.
pub const TOOK: &str = "took: ";

/// Running peer sync of a host.
struct Running {
    peers: Peers,
    changed: watch::Receiver<u64>,
    pauses: mpsc::UnboundedSender<Duration>,
}

struct Node {
    running: Rc<RefCell<Option<Running>>>,
    members: Rc<RefCell<Vec<Member>>>,
    published: Option<Report>,
    /// Wall clock at its last start.
    started_ns: u64,
}

pub struct Cluster {
    sim: Sim<'static>,
    air: SharedAir,
    nodes: Vec<Node>,
    pub key: ClusterKey,
    seen: BTreeMap<(usize, usize), Seen>,
    pub events: Vec<Event>,
    counted: Vec<SyncCounts>,
    took: Vec<(String, Duration)>,
}

impl Cluster {
    /// Controllers that know each other, on a network with latencies in `latency_ms`; starts those in `running`.
    pub fn new(seed: u64, latency_ms: (u64, u64), running: &[usize]) -> Self {
        let mut builder = Builder::new();
        builder.rng_seed(seed).epoch(SystemTime::UNIX_EPOCH + EPOCH).tick_duration(STEP).udp_capacity(16_384);
        builder.simulation_duration(Duration::from_hours(1));
        builder.min_message_latency(ms(latency_ms.0)).max_message_latency(ms(latency_ms.1));
        let air = SharedAir(Arc::new(Mutex::new(Air {
            noise: Noise::new(seed),
            lost: 0.0,
            doubled: 0.0,
            recorded: None,
            ahead_ms: [0; CONTROLLERS],
            attacks: VecDeque::new(),
        })));
        let sim = builder.build();
        // Spreads latencies almost evenly over the range.
        sim.set_message_latency_curve(1.5);
        let mut cluster = Self {
            sim,
            air,
            nodes: Vec::new(),
            key: ClusterKey::generate().expect("a key"),
            seen: BTreeMap::new(),
            events: Vec::new(),
            counted: vec![SyncCounts::default(); CONTROLLERS],
            took: Vec::new(),
        };
        for node in 0..CONTROLLERS {
            cluster.add(node);
        }
        let air = cluster.air.clone();
        cluster.sim.host(IpAddr::from(ATTACKER), move || attack(air.clone()));
        for node in 0..CONTROLLERS {
            cluster.sim.set_link_latency(IpAddr::from(ATTACKER), address(node), ms(1));
            if running.contains(&node) {
                cluster.set_started(node);
            } else {
                cluster.sim.crash(address(node));
            }
        }
        cluster
    }

    fn add(&mut self, node: usize) {
        let running = Rc::new(RefCell::new(None));
        let members = Rc::new(RefCell::new((0..CONTROLLERS).map(member).collect::<Vec<_>>()));
        self.nodes.push(Node {
            running: Rc::clone(&running),
            members: Rc::clone(&members),
            published: None,
            started_ns: 0,
        });
        let (air, key) = (self.air.clone(), self.key.clone());
        self.sim.host(address(node), move || {
            let (running, members) = (Rc::clone(&running), Rc::clone(&members));
            let (air, key) = (air.clone(), key.clone());
            async move {
                let config = PeersConfig {
                    name: name(node),
                    listen: socket_address(node),
                    members: members.borrow().clone().into(),
                    key,
                    cluster_id: "balancer-v1".to_owned(),
                };
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
                let peers = Peers::start_on(config, Box::new(SimulatedHost { node, socket, air }))?;
                let (pauses, mut paused) = mpsc::unbounded_channel();
                let changed = peers.changed();
                *running.borrow_mut() = Some(Running { peers, changed, pauses });
                while let Some(pause) = paused.recv().await {
                    tokio::time::advance(pause).await;
                }
                pending().await
            }
        });
    }

    pub fn air_loses(&self, part: f64) {
        self.air.lock().lost = part;
    }

    pub fn air_doubles(&self, part: f64) {
        self.air.lock().doubled = part;
    }

    /// Sets a host's wall clock ahead of the true time, or behind it.
    pub fn set_ahead(&self, node: usize, ms: i64) {
        self.air.lock().ahead_ms[node] = ms;
    }

    /// Records every datagram from here on.
    pub fn record(&self) {
        self.air.lock().recorded = Some(Vec::new());
    }

    pub fn take_recorded(&self) -> Vec<Sent> {
        self.air.lock().recorded.take().unwrap_or_default()
    }

    /// Makes the attacker send a datagram with `source` as its spoofed source.
    pub fn attack(&self, source: SocketAddr, to: usize, datagram: Vec<u8>) {
        assert!(datagram.len() <= LONGEST, "{} bytes are too long", datagram.len());
        self.air.lock().attacks.push_back((source, to, datagram));
    }

    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    fn wall_clock(&self, node: usize) -> Duration {
        let ms = (EPOCH + self.elapsed()).as_millis() as u64;
        Duration::from_millis(ms.saturating_add_signed(self.air.lock().ahead_ms[node]))
    }

    /// A host's wall clock in milliseconds.
    pub fn wall_clock_ms(&self, node: usize) -> u64 {
        self.wall_clock(node).as_millis() as u64
    }

    /// Cuts a controller's power.
    pub fn crash(&mut self, node: usize) {
        let running = self.nodes[node].running.borrow_mut().take();
        self.counted[node] = SyncCounts::default();
        drop(running);
        self.sim.crash(address(node));
        self.seen.retain(|(observer, _), _| *observer != node);
    }

    /// Starts crashed controllers, each with another count than before.
    pub fn start(&mut self, nodes: &[usize], connections: u64) {
        for &node in nodes {
            self.sim.bounce(address(node));
            self.set_started(node);
        }
        self.run(STEP);
        self.publish_all(nodes, connections);
    }

    /// Publishes a report of each, with another count each.
    pub fn publish_all(&mut self, nodes: &[usize], connections: u64) {
        for &node in nodes {
            self.publish(node, connections + node as u64);
        }
    }

    /// The wall clock at a controller's last start, in nanoseconds.
    pub fn started_ns(&self, node: usize) -> u64 {
        self.nodes[node].started_ns
    }

    fn set_started(&mut self, node: usize) {
        self.nodes[node].started_ns = self.wall_clock(node).as_nanos() as u64;
    }

    /// Pauses a host for `pause` by its own monotonic clock; no time passes for the others.
    pub fn pause(&self, node: usize, pause: Duration) {
        let running = self.nodes[node].running.borrow();
        running.as_ref().expect("the host runs").pauses.send(pause).expect("the host receives");
    }

    /// Sets the members with which a controller starts.
    pub fn configure(&self, node: usize, members: &[usize]) {
        *self.nodes[node].members.borrow_mut() = members.iter().copied().map(member).collect();
    }

    /// Tells a running controller its members.
    pub fn set_members(&self, node: usize, members: &[usize]) {
        let members: Vec<_> = members.iter().copied().map(member).collect();
        self.with(node, |peers| peers.set_members(&members.into())).expect("the members are accepted");
    }

    pub fn publish(&mut self, node: usize, connections: u64) {
        let report = Report {
            ready: true,
            draining: false,
            connections,
            handshakes: connections % 7,
            limit: 10_000,
            weight: 1.0,
            arrivals_per_s: 2.5,
            received: BTreeMap::from([(name(0), 3 * connections)]),
            relay_ports: BTreeMap::from([(name(0), 17080)]),
            addresses: vec![address(node)],
            host: Vec::new(),
            tag: String::new(),
            closing: 0,
            sheds: false,
            off: BTreeMap::new(),
            leaving: false,
            farewells: std::collections::BTreeSet::new(),
            bypassed: false,
            agent: About::default(),
        };
        self.nodes[node].published = Some(report.clone());
        self.with(node, |peers| peers.publish(report));
    }

    fn with<T>(&self, node: usize, act: impl FnOnce(&Peers) -> T) -> T {
        let running = self.nodes[node].running.borrow();
        act(&running.as_ref().unwrap_or_else(|| panic!("{} does not run", name(node))).peers)
    }

    pub fn view(&self, observer: usize, subject: usize) -> PeerView {
        let views = self.with(observer, Peers::views);
        views.into_iter().find(|view| view.name == name(subject)).expect("a member")
    }

    pub fn partition(&self, these: &[usize], those: &[usize]) {
        each_pair(these, those, |a, b| self.sim.partition(address(a), address(b)));
    }

    pub fn heal(&self, these: &[usize], those: &[usize]) {
        each_pair(these, those, |a, b| self.sim.repair(address(a), address(b)));
    }

    /// Holds datagrams between them until [`Self::release`].
    pub fn hold(&self, these: &[usize], those: &[usize]) {
        each_pair(these, those, |a, b| self.sim.hold(address(a), address(b)));
    }

    pub fn release(&self, these: &[usize], those: &[usize]) {
        each_pair(these, those, |a, b| self.sim.release(address(a), address(b)));
    }

    /// Sets the range of latencies between them.
    pub fn set_latency(&self, these: &[usize], those: &[usize], (least, most): (u64, u64)) {
        each_pair(these, those, |a, b| {
            self.sim.set_link_latency(address(a), address(b), ms(least));
            self.sim.set_link_max_message_latency(address(a), address(b), ms(most));
        });
    }

    /// Runs one step; returns whether any view changed.
    fn step(&mut self) -> bool {
        self.sim.step().expect("no host fails");
        if self.elapsed().as_millis().is_multiple_of(TICK.as_millis()) {
            self.renew();
        }
        let before = self.events.len();
        for observer in 0..CONTROLLERS {
            let views = match &mut *self.nodes[observer].running.borrow_mut() {
                Some(running) if running.changed.has_changed().is_ok_and(|changed| changed) => {
                    running.changed.borrow_and_update();
                    running.peers.views()
                }
                Some(_) | None => continue,
            };
            for view in views {
                let subject = usize::from(view.name.as_bytes()[0] - b'a');
                let seen = Seen {
                    alive: view.alive,
                    generation: view.generation,
                    connections: view.report.map(|report| report.connections),
                };
                let known = self.seen.entry((observer, subject)).or_default();
                if *known != seen {
                    let died = known.alive && !seen.alive;
                    known.clone_from(&seen);
                    self.events.push(Event { at: self.sim.elapsed(), observer, subject, died, seen });
                }
            }
        }
        self.events.len() > before
    }

    fn renew(&self) {
        for node in &self.nodes {
            if let (Some(running), Some(report)) = (&*node.running.borrow(), &node.published) {
                running.peers.publish(report.clone());
            }
        }
    }

    pub fn run(&mut self, time: Duration) {
        let end = self.elapsed() + time;
        while self.elapsed() < end {
            self.step();
        }
    }

    /// Runs until `check` holds; returns the time taken.
    pub fn until(&mut self, what: &str, within: Duration, check: impl Fn(&Self) -> bool) -> Duration {
        let start = self.elapsed();
        let mut is_due = true;
        loop {
            if is_due && check(self) {
                let took = self.elapsed().saturating_sub(start);
                self.took.push((what.to_owned(), took));
                return took;
            }
            assert!(self.elapsed() <= start + within, "{what}: not within {within:?}; {self}");
            is_due = self.step();
        }
    }

    /// Whether each of `nodes` sees every other one alive, with its latest report from its latest start.
    pub fn agree(&self, nodes: &[usize]) -> bool {
        nodes.iter().all(|&observer| {
            let views = self.with(observer, Peers::views);
            let others = nodes.iter().filter(|&&subject| subject != observer);
            others.into_iter().all(|&subject| {
                let node = &self.nodes[subject];
                views.iter().find(|view| view.name == name(subject)).is_some_and(|view| {
                    view.alive && view.report == node.published && view.generation >= node.started_ns
                })
            })
        })
    }
}

fn each_pair(these: &[usize], those: &[usize], act: impl Fn(usize, usize)) {
    for &a in these {
        for &b in those {
            if a != b {
                act(a, b);
            }
        }
    }
}
