//! The fleet process: commands in, clients by their habits, events out.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::client::{self, Class, Ended, Failure, Link, Open, Target};
use super::policy::dial_order;
use super::{Command, Dial, Dialled, Event, How, Kind, Spread, Stats};
use crate::juju::rpc::MODEL;
use crate::support::noise::Noise;

/// Errors told in words; the rest is counted.
const ERRORS_TOLD: usize = 8;

/// What all clients of a process share.
pub(super) struct Hub {
    connector: TlsConnector,
    traffic: watch::Sender<u64>,
    next_id: AtomicU64,
    clients: Mutex<BTreeMap<u64, watch::Sender<Option<How>>>>,
    by_server: Mutex<BTreeMap<String, u64>>,
    abandoned: Mutex<Vec<Link>>,
    lost_why: Mutex<Vec<String>>,
    open: AtomicU64,
    lost: AtomicU64,
    reset: AtomicU64,
    lost_most: AtomicU64,
    shortest_life_ms: AtomicU64,
    failed_opens: AtomicU64,
    reconnects: AtomicU64,
    echoes: AtomicU64,
    waiting: AtomicU64,
    data_errors: AtomicU64,
    max_stall_us: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    fn new() -> Result<Self> {
        Ok(Self {
            connector: TlsConnector::from(crate::juju::tls::client()?),
            traffic: watch::Sender::new(0),
            next_id: AtomicU64::new(0),
            clients: Mutex::default(),
            by_server: Mutex::default(),
            abandoned: Mutex::default(),
            lost_why: Mutex::default(),
            open: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            reset: AtomicU64::new(0),
            lost_most: AtomicU64::new(0),
            shortest_life_ms: AtomicU64::new(u64::MAX),
            failed_opens: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            echoes: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            data_errors: AtomicU64::new(0),
            max_stall_us: AtomicU64::new(0),
        })
    }

    pub fn traffic(&self) -> watch::Receiver<u64> {
        self.traffic.subscribe()
    }

    /// Counts a connection as open until the guard goes.
    pub fn opened(self: &Arc<Self>, server: String) -> OpenGuard {
        self.open.fetch_add(1, Ordering::Relaxed);
        *lock(&self.by_server).entry(server.clone()).or_default() += 1;
        OpenGuard { hub: Arc::clone(self), server }
    }

    pub fn lost(&self, reset: bool, why: &impl Display) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.reset.fetch_add(u64::from(reset), Ordering::Relaxed);
        let mut told = lock(&self.lost_why);
        if told.len() < ERRORS_TOLD {
            told.push(why.to_string());
        }
    }

    /// Counts an echo as under way until the guard goes.
    pub fn waits(self: &Arc<Self>) -> WaitingGuard {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        WaitingGuard(Arc::clone(self))
    }

    pub fn stalled(&self, wait: Duration) {
        self.max_stall_us.fetch_max(wait.as_micros() as u64, Ordering::Relaxed);
    }

    pub fn echoed(&self, wait: Duration, right: bool) {
        self.stalled(wait);
        self.echoes.fetch_add(u64::from(right), Ordering::Relaxed);
        self.data_errors.fetch_add(u64::from(!right), Ordering::Relaxed);
    }

    pub fn abandon(&self, link: Link) {
        lock(&self.abandoned).push(link);
    }

    fn stats(&self) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            clients: lock(&self.clients).len(),
            open: count(&self.open),
            lost: count(&self.lost),
            reset: count(&self.reset),
            lost_why: lock(&self.lost_why).clone(),
            lost_most: self.lost_most.load(Ordering::Relaxed),
            shortest_life_ms: match self.shortest_life_ms.load(Ordering::Relaxed) {
                u64::MAX => 0,
                life => life,
            },
            failed_opens: self.failed_opens.load(Ordering::Relaxed),
            reconnects: count(&self.reconnects),
            echoes: count(&self.echoes),
            waiting: count(&self.waiting),
            data_errors: count(&self.data_errors),
            max_stall_ms: Duration::from_micros(count(&self.max_stall_us)).as_secs_f64() * 1e3,
            abandoned: lock(&self.abandoned).len(),
            by_server: lock(&self.by_server).clone(),
        }
    }
}

/// An open connection in the counts.
pub(super) struct OpenGuard {
    hub: Arc<Hub>,
    server: String,
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.hub.open.fetch_sub(1, Ordering::Relaxed);
        let mut servers = lock(&self.hub.by_server);
        if let Some(count) = servers.get_mut(&self.server) {
            *count -= 1;
            if *count == 0 {
                servers.remove(&self.server);
            }
        }
    }
}

/// An echo under way in the counts.
pub(super) struct WaitingGuard(Arc<Hub>);

impl Drop for WaitingGuard {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs a fleet until its standard input ends or `quit` comes.
pub async fn run() -> Result<()> {
    let hub = Arc::new(Hub::new()?);
    let (sender, mut commands) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    tell(&Event::Ready);
    while let Some(line) = commands.recv().await {
        let command = match serde_json::from_str(&line) {
            Ok(command) => command,
            Err(error) => {
                tell(&Event::Error { message: format!("{error} in {line}") });
                continue;
            }
        };
        let hub = Arc::clone(&hub);
        match command {
            Command::Dial(dial) => drop(tokio::spawn(dial_all(hub, Arc::new(dial)))),
            Command::Stats => tell(&Event::Stats(hub.stats())),
            Command::Close { count, how } => drop(tokio::spawn(close_some(hub, count, how))),
            Command::Traffic { interval_ms } => drop(hub.traffic.send_replace(interval_ms)),
            Command::Bulk(bulk) => drop(tokio::spawn(async move {
                tell(&Event::Bulk(client::bulk(&hub.connector, bulk).await));
            })),
            Command::Get(get) => drop(tokio::spawn(async move {
                tell(&Event::Got(client::get(&hub.connector, get).await));
            })),
            Command::Quit => break,
        }
    }
    Ok(())
}

fn tell(event: &Event) {
    // Events are plain data, and a test that is gone reads none of them.
    if let Ok(line) = serde_json::to_string(event) {
        let _ = writeln!(std::io::stdout().lock(), "{line}");
    }
}

async fn close_some(hub: Arc<Hub>, count: usize, how: How) {
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count
        && let Some((_, client)) = lock(&hub.clients).pop_first()
    {
        client.send_replace(Some(how));
        chosen.push(client);
    }
    for client in &chosen {
        client.closed().await;
    }
    tell(&Event::Closed { count: chosen.len() });
}

type Attempt = Result<Opened, Failure>;

/// Figures of a connection that came about.
struct Opened {
    server: String,
    wrong_peer: bool,
    until_connected: Duration,
    until_usable: Duration,
}

async fn dial_all(hub: Arc<Hub>, dial: Arc<Dial>) {
    let started = tokio::time::Instant::now();
    let slots = Arc::new(Semaphore::new(dial.concurrency.max(1)));
    let mut outcomes = FuturesUnordered::new();
    let mut tally = Tally::default();
    for index in 0..dial.count {
        if dial.rate > 0.0 {
            #[allow(clippy::cast_precision_loss, reason = "client numbers are far below 2^52")]
            sleep_until(started + Duration::from_secs_f64(index as f64 / dial.rate)).await;
        }
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
        let (report, attempts) = mpsc::unbounded_channel();
        let id = hub.next_id.fetch_add(1, Ordering::Relaxed);
        let (close, closing) = watch::channel(None);
        lock(&hub.clients).insert(id, close);
        tokio::spawn({
            let (hub, dial) = (Arc::clone(&hub), Arc::clone(&dial));
            async move {
                let client = Client { hub: &hub, dial: &dial, index, id, report, close: closing };
                client.live().await;
                lock(&hub.clients).remove(&id);
            }
        });
        let limit = Duration::from_millis(dial.timeout_ms);
        let kind = dial.kind;
        outcomes.push(tokio::spawn(async move {
            let outcome = outcome(kind, limit, attempts).await;
            drop(slot);
            outcome
        }));
    }
    while let Some(outcome) = outcomes.next().await {
        if let Ok(outcome) = outcome {
            tally.add(outcome);
        }
    }
    tell(&Event::Dialled(tally.end(&dial.id, started.elapsed())));
}

struct Outcome {
    failed: usize,
    last: Attempt,
}

/// The first success, or the last failure when the client gives up or its time is over.
async fn outcome(kind: Kind, limit: Duration, mut attempts: mpsc::UnboundedReceiver<Attempt>) -> Outcome {
    let started = Instant::now();
    let end = tokio::time::Instant::now() + limit;
    let once = matches!(kind, Kind::Single | Kind::Raw);
    let mut failed = 0;
    let mut last =
        Failure { class: Class::Timeout, message: format!("no outcome within {limit:?}"), after: limit };
    loop {
        // Single attempts keep the time themselves.
        let next = if once { Ok(attempts.recv().await) } else { timeout_at(end, attempts.recv()).await };
        match next {
            Ok(Some(Ok(opened))) => return Outcome { failed, last: Ok(opened) },
            Ok(Some(Err(failure))) => (failed, last) = (failed + 1, failure),
            Ok(None) if failed == 0 => {
                let gone = Failure::new(Class::Other, "closed before it was open", started);
                return Outcome { failed, last: Err(gone) };
            }
            Ok(None) | Err(_) => return Outcome { failed, last: Err(last) },
        }
    }
}

#[derive(Default)]
struct Tally {
    dialled: Dialled,
    connected: Vec<f64>,
    opened: Vec<f64>,
    refused: Vec<f64>,
}

impl Tally {
    fn add(&mut self, outcome: Outcome) {
        let dialled = &mut self.dialled;
        dialled.failed_attempts += outcome.failed;
        match outcome.last {
            Ok(opened) => {
                dialled.ok += 1;
                dialled.wrong_peer += usize::from(opened.wrong_peer);
                self.connected.push(opened.until_connected.as_secs_f64() * 1e3);
                self.opened.push(opened.until_usable.as_secs_f64() * 1e3);
                *dialled.by_server.entry(opened.server).or_default() += 1;
            }
            Err(failure) => {
                match failure.class {
                    Class::Refused => {
                        dialled.refused += 1;
                        self.refused.push(failure.after.as_secs_f64() * 1e3);
                    }
                    Class::Timeout => dialled.timeout += 1,
                    Class::Reset => dialled.reset += 1,
                    Class::Other => dialled.other += 1,
                }
                if dialled.errors.len() < ERRORS_TOLD {
                    dialled.errors.push(failure.message);
                }
            }
        }
    }

    fn end(self, id: &str, elapsed: Duration) -> Dialled {
        Dialled {
            id: id.to_owned(),
            connect_ms: Spread::of(self.connected),
            open_ms: Spread::of(self.opened),
            refused_ms: Spread::of(self.refused),
            elapsed_ms: elapsed.as_secs_f64() * 1e3,
            ..self.dialled
        }
    }
}

/// One client and its habits.
struct Client<'a> {
    hub: &'a Arc<Hub>,
    dial: &'a Dial,
    index: usize,
    id: u64,
    report: mpsc::UnboundedSender<Attempt>,
    close: watch::Receiver<Option<How>>,
}

impl Client<'_> {
    async fn live(self) {
        match self.dial.kind {
            Kind::Single | Kind::Raw => self.live_once().await,
            Kind::Agent => self.live_agent().await,
            Kind::Cli => self.live_cli().await,
            Kind::Libjuju => self.live_libjuju().await,
        }
    }

    /// Tells the test; it listens up to the first success only.
    fn tell(&self, attempt: Result<&Open, &Failure>) {
        let figures = attempt.map(|open| Opened {
            server: open.server.clone(),
            wrong_peer: open.wrong_peer,
            until_connected: open.connected_after,
            until_usable: open.usable_after,
        });
        let _ = self.report.send(figures.map_err(Clone::clone));
    }

    fn target(&self, address: SocketAddr) -> Target {
        let binds = &self.dial.bind;
        let bind = (!binds.is_empty()).then(|| binds[self.index % binds.len()]);
        Target { address, bind, buffers: self.dial.buffers }
    }

    /// `work`, unless the client is closed first.
    async fn unless_closed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut close = self.close.clone();
        let closed = close.wait_for(Option::is_some);
        tokio::select! {
            _ = closed => None,
            value = work => Some(value),
        }
    }

    async fn live_once(self) {
        let limit = Duration::from_millis(self.dial.timeout_ms);
        let started = Instant::now();
        let attempt = async {
            let address = self.dial.addresses.first();
            let address = *address.ok_or_else(|| Failure::new(Class::Other, "no address", started))?;
            let target = self.target(address);
            if self.dial.kind == Kind::Raw {
                return client::open_raw(&target).await;
            }
            let dialled = client::dial_web(&self.hub.connector, &target, &api_path()).await?;
            client::identify(dialled, None).await
        };
        let Some(attempt) = self.unless_closed(timeout(limit, attempt)).await else { return };
        let late = |_| Failure::new(Class::Timeout, format!("not open within {limit:?}"), started);
        let attempt = attempt.map_err(late).and_then(std::convert::identity);
        self.tell(attempt.as_ref());
        if let Ok(open) = attempt {
            client::hold(open, self.hub, None, self.close.clone()).await;
        }
    }

    async fn live_agent(self) {
        let timing = &self.dial.timing;
        let mut noise = Noise::new(Noise::fresh().next() ^ self.id);
        let (mut failures, mut opened_before, mut lost) = (0, false, 0);
        loop {
            let order = dial_order(Kind::Agent, self.dial.addresses.len(), &mut noise);
            let attempt = self.unless_closed(self.agent_open(&order)).await;
            let lived = match attempt {
                None => return,
                Some(Err(failure)) => {
                    self.tell(Err(&failure));
                    self.hub.failed_opens.fetch_add(1, Ordering::Relaxed);
                    Duration::ZERO
                }
                Some(Ok((api, logsink))) => {
                    self.tell(Ok(&api));
                    self.hub.reconnects.fetch_add(u64::from(opened_before), Ordering::Relaxed);
                    opened_before = true;
                    let started = Instant::now();
                    if self.hold_both(api, logsink).await == Ended::Closed {
                        return;
                    }
                    let lived = started.elapsed();
                    lost += 1;
                    self.hub.lost_most.fetch_max(lost, Ordering::Relaxed);
                    self.hub.shortest_life_ms.fetch_min(lived.as_millis() as u64, Ordering::Relaxed);
                    lived
                }
            };
            failures = timing.failures_after(failures, lived);
            let pause = timing.back_off(failures, noise.signed_unit());
            if self.unless_closed(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// API connection by parallel dial, then the logsink to the address that won.
    async fn agent_open(&self, order: &[usize]) -> Result<(Open, Open), Failure> {
        let tag = format!("machine-{}", self.index);
        let once = Duration::from_millis(self.dial.timing.agent_dial);
        let (address, dialled) = self.race(order, Some(once), None).await?;
        let api = client::identify(dialled, Some(&tag)).await?;
        let path = format!("/model/{MODEL}/logsink");
        let dialled = client::dial_web(&self.hub.connector, &self.target(address), &path).await?;
        Ok((api, client::identify(dialled, None).await?))
    }

    /// Holds an agent's two connections: one lost, the other is given up; closed by command, both are.
    async fn hold_both(&self, api: Open, logsink: Open) -> Ended {
        let timing = Some(&self.dial.timing);
        let mut api = pin!(client::hold(api, self.hub, timing, self.close.clone()));
        let mut logsink = pin!(client::hold(logsink, self.hub, None, self.close.clone()));
        let (ended, other) = tokio::select! {
            ended = &mut api => (ended, logsink),
            ended = &mut logsink => (ended, api),
        };
        match ended {
            Ended::Closed => other.await,
            Ended::Lost => Ended::Lost,
        }
    }

    async fn live_cli(self) {
        let mut noise = Noise::new(Noise::fresh().next() ^ self.id);
        let order = dial_order(Kind::Cli, self.dial.addresses.len(), &mut noise);
        let again = Duration::from_millis(self.dial.timing.cli_retry);
        let began = Instant::now();
        let open = async {
            loop {
                let attempt = match self.race(&order, None, Some(again)).await {
                    Ok((_, dialled)) => client::identify(dialled, Some("user-admin")).await,
                    Err(failure) => Err(failure),
                };
                self.tell(attempt.as_ref());
                match attempt {
                    Ok(open) => {
                        self.hub
                            .failed_opens
                            .fetch_add(u64::from(began.elapsed() >= again), Ordering::Relaxed);
                        return open;
                    }
                    Err(_) => sleep(again).await,
                }
            }
        };
        let Some(open) = self.unless_closed(open).await else { return };
        client::hold(open, self.hub, None, self.close.clone()).await;
    }

    async fn live_libjuju(self) {
        let addresses = &self.dial.addresses;
        let patience = Duration::from_millis(self.dial.timing.libjuju_patience);
        let (mut current, mut opened_before) = (0, false);
        while let Some(&address) = addresses.get(current % addresses.len().max(1)) {
            let target = self.target(address);
            let attempt = async {
                let dialled = client::dial_web(&self.hub.connector, &target, &api_path()).await?;
                client::identify(dialled, Some("user-admin")).await
            };
            let Some(attempt) = self.unless_closed(attempt).await else { return };
            self.tell(attempt.as_ref());
            if let Ok(open) = attempt {
                self.hub.reconnects.fetch_add(u64::from(opened_before), Ordering::Relaxed);
                opened_before = true;
                if client::hold(open, self.hub, None, self.close.clone()).await == Ended::Closed {
                    return;
                }
                continue;
            }
            if self.unless_closed(sleep(patience)).await.is_none() {
                return;
            }
            // Once it had an endpoint it knows no other.
            current += usize::from(!opened_before);
        }
    }

    /// Dials the addresses in parallel, their starts staggered: the first websocket handshake to finish wins and
    /// the others are closed. Each dial takes at most `once` and is repeated after `again`.
    async fn race(
        &self,
        order: &[usize],
        once: Option<Duration>,
        again: Option<Duration>,
    ) -> Result<(SocketAddr, client::Dialling), Failure> {
        let stagger = self.dial.timing.stagger(self.dial.kind);
        let mut dials: FuturesUnordered<_> = (0..)
            .zip(order)
            .map(|(place, &index)| async move {
                let address = self.dial.addresses[index];
                let target = self.target(address);
                sleep(stagger * place).await;
                loop {
                    match (self.dial_once(&target, once).await, again) {
                        (Ok(dialled), _) => return Ok((address, dialled)),
                        (Err(failure), None) => return Err(failure),
                        (Err(failure), Some(again)) => {
                            self.tell(Err(&failure));
                            sleep(again).await;
                        }
                    }
                }
            })
            .collect();
        let mut last = Failure::new(Class::Other, "no address", Instant::now());
        while let Some(result) = dials.next().await {
            match result {
                Ok(won) => return Ok(won),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn dial_once(&self, target: &Target, once: Option<Duration>) -> Result<client::Dialling, Failure> {
        let started = Instant::now();
        let path = api_path();
        let dial = client::dial_web(&self.hub.connector, target, &path);
        let Some(limit) = once else { return dial.await };
        let late = |_| Failure::new(Class::Timeout, format!("no websocket within {limit:?}"), started);
        timeout(limit, dial).await.map_err(late).and_then(std::convert::identity)
    }
}

fn api_path() -> String {
    format!("/model/{MODEL}/api")
}
