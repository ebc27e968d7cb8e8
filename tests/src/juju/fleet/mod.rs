//! Client fleet: one process holds thousands of clients. [`Fleet`] is a test's handle of it, [`run`] the process.

mod connect;
mod habits;
mod hold;
mod hub;
mod message;
mod policy;
mod request;
pub mod run;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use self::message::{BulkDone, Command, Dial, Dialled, Event, Got, How, Stats};
pub use self::policy::{Kind, Timing};
use crate::cluster::judge::unharmed;
use crate::network::namespace::Namespace;
use crate::support::eventually::wait_for;
use crate::support::lines::Lines;
use crate::support::process::Process;

/// A fleet process is up, and answers requests that need no network, within this.
const ANSWER: Duration = Duration::from_secs(20);

/// A fleet: a process here, killed on drop and its connections with it, or one that a `Line` leads to.
#[derive(Debug)]
pub struct Fleet<Line = Process> {
    line: Line,
    pending: VecDeque<Event>,
}

impl Fleet {
    pub fn start(namespace: &Namespace) -> Result<Self> {
        Self::behind(Process::fixture(namespace, "fleet", &[])?)
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.line
    }
}

impl<Line: Lines> Fleet<Line> {
    /// The fleet that has just been started behind `line`.
    pub fn behind(line: Line) -> Result<Self> {
        let mut fleet = Self { line, pending: VecDeque::new() };
        fleet.expect(ANSWER, |event| matches!(event, Event::Ready).then_some(()))?;
        Ok(fleet)
    }

    pub fn send(&mut self, command: &Command) -> Result<()> {
        self.line.write_line(&serde_json::to_string(command)?)
    }

    /// Waits at most `deadline` for the first event that `wanted` turns into a value; others stay for later.
    pub fn expect<T>(&mut self, deadline: Duration, wanted: impl Fn(&Event) -> Option<T>) -> Result<T> {
        let end = Instant::now() + deadline;
        let seen = self.pending.iter().enumerate().find_map(|(index, event)| Some((index, wanted(event)?)));
        if let Some((index, value)) = seen {
            self.pending.remove(index);
            return Ok(value);
        }
        loop {
            let line = self.line.read_line(end.saturating_duration_since(Instant::now()))?;
            let event: Event = serde_json::from_str(&line).with_context(|| format!("fleet said {line}"))?;
            if let Event::Error { message } = event {
                bail!("the fleet reports: {message}");
            }
            match wanted(&event) {
                Some(value) => return Ok(value),
                None => self.pending.push_back(event),
            }
        }
    }

    /// Dials and waits for the outcomes, as long as the dial's own limits allow.
    pub fn dial(&mut self, dial: &Dial) -> Result<Dialled> {
        self.start_dial(dial)?;
        #[expect(clippy::cast_precision_loss, reason = "client numbers are far below 2^52")]
        let paced = if dial.rate > 0.0 { dial.count as f64 / dial.rate } else { 0.0 };
        // Six times over is patience enough even when every client runs into its limit.
        let rounds = dial.count.div_ceil(dial.concurrency.max(1)).min(6) as u64;
        let deadline =
            Duration::from_millis(dial.timeout_ms * rounds) + Duration::from_secs_f64(paced) + ANSWER;
        self.dialled(&dial.id, deadline)
    }

    /// Dials, and ensures that every client gets in.
    pub fn dial_all(&mut self, dial: &Dial) -> Result<Dialled> {
        let dialled = self.dial(dial)?;
        ensure!(dialled.ok == dial.count, "{} of {} get in: {dialled:?}", dialled.ok, dial.count);
        Ok(dialled)
    }

    /// Dials, and ensures that no client notices anything.
    pub fn dial_unharmed(&mut self, dial: &Dial) -> Result<Dialled> {
        let dialled = self.dial(dial)?;
        unharmed(&dialled, dial.count)?;
        Ok(dialled)
    }

    /// Dials without waiting; [`Fleet::dialled`] waits for the outcomes.
    pub fn start_dial(&mut self, dial: &Dial) -> Result<()> {
        self.send(&Command::Dial(dial.clone()))
    }

    pub fn dialled(&mut self, id: &str, deadline: Duration) -> Result<Dialled> {
        let ours = |event: &Event| {
            if let Event::Dialled(dialled) = event {
                Some(dialled).filter(|one| one.id == id).cloned()
            } else {
                None
            }
        };
        self.expect(deadline, ours).with_context(|| format!("no outcome of dial {id}"))
    }

    pub fn stats(&mut self) -> Result<Stats> {
        self.send(&Command::Stats)?;
        self.expect(ANSWER, |event| if let Event::Stats(stats) = event { Some(stats.clone()) } else { None })
    }

    pub fn await_stats(
        &mut self,
        deadline: Duration,
        what: &str,
        wanted: impl Fn(&Stats) -> bool,
    ) -> Result<Stats> {
        wait_for(deadline, what, || self.stats(), wanted)
    }

    /// Ends up to `count` clients, oldest first, and waits for that; returns how many.
    pub fn close(&mut self, count: usize, how: How) -> Result<usize> {
        self.send(&Command::Close { count, how })?;
        self.expect(ANSWER, |event| if let Event::Closed { count } = event { Some(*count) } else { None })
    }

    /// Makes every open connection send an echo at this interval and check the answer; zero ends it.
    pub fn traffic(&mut self, interval: Duration) -> Result<()> {
        self.send(&Command::Traffic { interval_ms: interval.as_millis() as u64 })
    }

    /// Moves `bytes` each way over one connection, and ensures that they arrive whole.
    pub fn bulk(&mut self, address: SocketAddr, bytes: u64, deadline: Duration) -> Result<BulkDone> {
        let id = format!("bulk-{address}");
        let timeout_ms = deadline.as_millis() as u64;
        self.send(&Command::Bulk { id: id.clone(), address, bytes, timeout_ms })?;
        let done = self.expect(deadline + ANSWER, |event| {
            if let Event::Bulk(done) = event { Some(done).filter(|one| one.id == id).cloned() } else { None }
        })?;
        match &done.error {
            Some(error) => bail!("{bytes} bytes each way to {address}: {error}"),
            None => Ok(done),
        }
    }

    /// One HTTPS GET; status 0 stands for a server that does not answer.
    pub fn get(&mut self, address: SocketAddr, path: &str) -> Result<Got> {
        let id = format!("get-{address}{path}");
        self.send(&Command::Get { id: id.clone(), address, path: path.to_owned() })?;
        self.expect(ANSWER, |event| {
            if let Event::Got(got) = event { Some(got).filter(|one| one.id == id).cloned() } else { None }
        })
    }
}
