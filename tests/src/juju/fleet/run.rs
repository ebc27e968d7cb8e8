//! The fleet process: commands in, clients by their habits, events out.

use std::io::{Error, ErrorKind, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep_until, timeout_at};

use super::habits::{Attempt, Client, Failure};
use super::hub::{ERRORS_TOLD, Hub};
use super::message::Spread;
use super::{Command, Dial, Dialled, Event, Kind, request};
use crate::support::lines::stdin_lines;

/// Runs a fleet until its standard input ends or `quit` comes.
pub async fn run() -> Result<()> {
    let hub = Arc::new(Hub::new()?);
    let mut commands = stdin_lines();
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
            Command::Close { count, how } => drop(tokio::spawn(async move {
                tell(&Event::Closed { count: hub.close(count, how).await });
            })),
            Command::Traffic { interval_ms } => drop(hub.traffic.send_replace(interval_ms)),
            Command::Bulk { id, address, bytes, timeout_ms } => drop(tokio::spawn(async move {
                let limit = Duration::from_millis(timeout_ms);
                tell(&Event::Bulk(request::bulk(&hub.connector, id, address, bytes, limit).await));
            })),
            Command::Get { id, address, path } => drop(tokio::spawn(async move {
                tell(&Event::Got(request::get(&hub.connector, id, address, &path).await));
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

async fn dial_all(hub: Arc<Hub>, dial: Arc<Dial>) {
    let started = tokio::time::Instant::now();
    let slots = Arc::new(Semaphore::new(dial.concurrency.max(1)));
    let mut outcomes = FuturesUnordered::new();
    let mut tally = Tally::default();
    for index in 0..dial.count {
        if dial.rate > 0.0 {
            #[expect(clippy::cast_precision_loss, reason = "client numbers are far below 2^52")]
            sleep_until(started + Duration::from_secs_f64(index as f64 / dial.rate)).await;
        }
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
        let (report, attempts) = mpsc::unbounded_channel();
        let (id, close) = hub.enter();
        tokio::spawn({
            let (hub, dial) = (Arc::clone(&hub), Arc::clone(&dial));
            async move {
                Client { hub: &hub, dial: &dial, index, id, report, close }.live().await;
                hub.leave(id);
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
        if let Ok((failed, last)) = outcome {
            tally.add(failed, last);
        }
    }
    tell(&Event::Dialled(tally.end(&dial.id, started.elapsed())));
}

/// The first success, or the last failure when the client gives up or its time is over.
async fn outcome(
    kind: Kind,
    limit: Duration,
    mut attempts: mpsc::UnboundedReceiver<Attempt>,
) -> (usize, Attempt) {
    let late = Error::new(ErrorKind::TimedOut, format!("no outcome within {limit:?}"));
    let end = tokio::time::Instant::now() + limit;
    let once = matches!(kind, Kind::Single | Kind::Raw);
    let (mut failed, mut last) = (0, Failure { error: late, after: limit });
    loop {
        // Single attempts keep the time themselves.
        let next = if once { Ok(attempts.recv().await) } else { timeout_at(end, attempts.recv()).await };
        match next {
            Ok(Some(Ok(opened))) => return (failed, Ok(opened)),
            Ok(Some(Err(failure))) => (failed, last) = (failed + 1, failure),
            Ok(None) if failed == 0 => {
                let error = Error::other("closed before it was open");
                return (failed, Err(Failure { error, after: limit }));
            }
            Ok(None) | Err(_) => return (failed, Err(last)),
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
    fn add(&mut self, failed: usize, last: Attempt) {
        let dialled = &mut self.dialled;
        dialled.failed_attempts += failed;
        match last {
            Ok(opened) => {
                dialled.ok += 1;
                dialled.wrong_peer += usize::from(opened.wrong_peer);
                self.connected.push(opened.connected_after.as_secs_f64() * 1e3);
                self.opened.push(opened.usable_after.as_secs_f64() * 1e3);
                *dialled.by_server.entry(opened.server).or_default() += 1;
            }
            Err(failure) => {
                #[expect(clippy::wildcard_enum_match_arm, reason = "io::ErrorKind is open-ended")]
                match failure.error.kind() {
                    ErrorKind::ConnectionRefused => {
                        dialled.refused += 1;
                        self.refused.push(failure.after.as_secs_f64() * 1e3);
                    }
                    ErrorKind::TimedOut => dialled.timeout += 1,
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => dialled.reset += 1,
                    _ => dialled.other += 1,
                }
                if dialled.errors.len() < ERRORS_TOLD {
                    dialled.errors.push(failure.error.to_string());
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
