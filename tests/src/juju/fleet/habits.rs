//! One client and its habits: when it dials, when it gives up, when it comes back.

use std::future::Future;
use std::io::Error;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::connect::{self, Dialling, Open, Opened, Target, within};
use super::hold::{Ended, hold};
use super::hub::Hub;
use super::policy::dial_order;
use super::{Dial, How, Kind};
use crate::juju::rpc::MODEL;
use crate::support::noise::Noise;

pub(super) type Attempt = Result<Opened, Failure>;

pub(super) struct Failure {
    pub error: Error,
    /// From the first SYN.
    pub after: Duration,
}

async fn attempt<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
    let started = Instant::now();
    work.await.map_err(|error| Failure { error, after: started.elapsed() })
}

pub(super) struct Client<'a> {
    pub hub: &'a Arc<Hub>,
    pub dial: &'a Dial,
    pub index: usize,
    pub id: u64,
    /// Where its attempts are told, up to the first success.
    pub report: mpsc::UnboundedSender<Attempt>,
    pub close: watch::Receiver<Option<How>>,
}

impl Client<'_> {
    pub async fn live(self) {
        match self.dial.kind {
            Kind::Single | Kind::Raw => self.live_once().await,
            Kind::Agent => self.live_agent().await,
            Kind::Cli => self.live_cli().await,
            Kind::Libjuju => self.live_libjuju().await,
        }
    }

    /// Tells the test of an attempt; returns its connection.
    fn tell(&self, attempt: Result<Open, Failure>) -> Option<Open> {
        let (open, told) = match attempt {
            Ok(Open { link, opened }) => (Some(Open { link, opened: opened.clone() }), Ok(opened)),
            Err(failure) => (None, Err(failure)),
        };
        let _ = self.report.send(told);
        open
    }

    fn target(&self, address: SocketAddr) -> Target {
        let binds = &self.dial.bind;
        let bind = (!binds.is_empty()).then(|| binds[self.index % binds.len()]);
        let keepalive = self.dial.keepalive.map(Duration::from_secs);
        Target { address, bind, buffers: self.dial.buffers, keepalive }
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
        // Boxed, here and below: an attempt's memory goes with it.
        let open = Box::pin(async {
            let address = self.dial.addresses.first().ok_or_else(|| Error::other("no address"))?;
            let target = self.target(*address);
            if self.dial.kind == Kind::Raw {
                return connect::open_raw(&target).await;
            }
            let dialled = connect::dial_web(&self.hub.connector, &target, &api_path()).await?;
            connect::identify(dialled, None).await
        });
        let Some(attempt) = self.unless_closed(attempt(within(limit, open))).await else { return };
        if let Some(open) = self.tell(attempt) {
            hold(open, self.hub, None, self.close.clone()).await;
        }
    }

    async fn live_agent(self) {
        let timing = &self.dial.timing;
        let mut noise = Noise::new(Noise::fresh().next() ^ self.id);
        let (mut failures, mut opened_before, mut lost) = (0, false, 0);
        loop {
            let order = dial_order(Kind::Agent, self.dial.addresses.len(), &mut noise);
            let Some(opened) = self.unless_closed(Box::pin(self.agent_open(&order))).await else { return };
            let mut lived = Duration::ZERO;
            if let Some((api, logsink)) = opened {
                self.hub.count(|stats| stats.reconnects += u64::from(opened_before));
                opened_before = true;
                let started = Instant::now();
                if self.hold_both(api, logsink).await == Ended::Closed {
                    return;
                }
                lived = started.elapsed();
                lost += 1;
                self.hub.agent_lost(lost, lived);
            } else {
                self.hub.count(|stats| stats.failed_opens += 1);
            }
            failures = timing.failures_after(failures, lived);
            let pause = timing.back_off(failures, noise.signed_unit());
            if self.unless_closed(sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// API connection by parallel dial, then the logsink to the address that won.
    async fn agent_open(&self, order: &[usize]) -> Option<(Open, Open)> {
        let tag = format!("machine-{}", self.index);
        let once = Duration::from_millis(self.dial.timing.agent_dial);
        let both = async {
            let (address, dialled) = self.race(order, Some(once), None).await?;
            let logsink = async {
                let api = connect::identify(dialled, Some(&tag)).await?;
                let path = format!("/model/{MODEL}/logsink");
                let dialled = connect::dial_web(&self.hub.connector, &self.target(address), &path).await?;
                Ok((api, connect::identify(dialled, None).await?))
            };
            attempt(logsink).await
        };
        match both.await {
            Ok((api, logsink)) => Some((self.tell(Ok(api))?, logsink)),
            Err(failure) => self.tell(Err(failure)).and(None),
        }
    }

    /// Holds an agent's two connections: one lost, the other is given up; closed by command, both are.
    async fn hold_both(&self, api: Open, logsink: Open) -> Ended {
        let timing = Some(&self.dial.timing);
        let mut api = pin!(hold(api, self.hub, timing, self.close.clone()));
        let mut logsink = pin!(hold(logsink, self.hub, None, self.close.clone()));
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
        let open = Box::pin(async {
            loop {
                let attempt = match self.race(&order, None, Some(again)).await {
                    Ok((_, dialled)) => attempt(connect::identify(dialled, Some("user-admin"))).await,
                    Err(failure) => Err(failure),
                };
                if let Some(open) = self.tell(attempt) {
                    self.hub.count(|stats| stats.failed_opens += u64::from(began.elapsed() >= again));
                    return open;
                }
                sleep(again).await;
            }
        });
        let Some(open) = self.unless_closed(open).await else { return };
        hold(open, self.hub, None, self.close.clone()).await;
    }

    async fn live_libjuju(self) {
        let addresses = &self.dial.addresses;
        let patience = Duration::from_millis(self.dial.timing.libjuju_patience);
        let (mut current, mut opened_before) = (0, false);
        while let Some(&address) = addresses.get(current % addresses.len().max(1)) {
            let target = self.target(address);
            let open = Box::pin(async {
                let dialled = connect::dial_web(&self.hub.connector, &target, &api_path()).await?;
                connect::identify(dialled, Some("user-admin")).await
            });
            let Some(attempt) = self.unless_closed(attempt(open)).await else { return };
            if let Some(open) = self.tell(attempt) {
                self.hub.count(|stats| stats.reconnects += u64::from(opened_before));
                opened_before = true;
                if hold(open, self.hub, None, self.close.clone()).await == Ended::Closed {
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
    ) -> Result<(SocketAddr, Dialling), Failure> {
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
                            self.tell(Err(failure));
                            sleep(again).await;
                        }
                    }
                }
            })
            .collect();
        let mut last = Failure { error: Error::other("no address"), after: Duration::ZERO };
        while let Some(result) = dials.next().await {
            match result {
                Ok(won) => return Ok(won),
                Err(failure) => last = failure,
            }
        }
        Err(last)
    }

    async fn dial_once(&self, target: &Target, once: Option<Duration>) -> Result<Dialling, Failure> {
        let path = api_path();
        let dial = connect::dial_web(&self.hub.connector, target, &path);
        match once {
            Some(limit) => attempt(within(limit, dial)).await,
            None => attempt(dial).await,
        }
    }
}

fn api_path() -> String {
    format!("/model/{MODEL}/api")
}
