//! An open connection of a client: its echoes and pings, and its end.

use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep_until;
use tokio_tungstenite::tungstenite::Message;

use super::connect::{Open, WebLink, io_error, message};
use super::hub::{Hub, WaitingGuard};
use super::{How, Timing};
use crate::juju::rpc::Response;
use crate::juju::transfer::finish;
use crate::support::noise::Noise;

/// Bytes of one echo on a raw connection.
const RAW_ECHO: usize = 16;

pub enum Link {
    Web(Box<WebLink>),
    /// With the part of an echo that has arrived.
    Raw(TcpStream, [u8; RAW_ECHO], usize),
}

impl Link {
    pub const fn raw(tcp: TcpStream) -> Self {
        Self::Raw(tcp, [0; RAW_ECHO], 0)
    }

    /// Waits for an answer: its id, which raw ones do not have, and the echoed payload. May be cancelled.
    async fn answer(&mut self) -> Result<(Option<u64>, String)> {
        match self {
            Self::Web(socket) => loop {
                match socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let answer: Option<Response> = serde_json::from_str(&text).ok();
                        return Ok(answer.map_or((Some(0), String::new()), |answer| {
                            let payload = answer.response["echo"].as_str().unwrap_or_default();
                            (Some(answer.request_id), payload.to_owned())
                        }));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(io_error(error)),
                    None => return Err(Error::other("end of stream")),
                }
            },
            Self::Raw(tcp, received, length) => {
                while *length < RAW_ECHO {
                    match tcp.read(&mut received[*length..]).await? {
                        0 => return Err(Error::other("end of stream")),
                        more => *length += more,
                    }
                }
                *length = 0;
                Ok((None, String::from_utf8_lossy(received).into_owned()))
            }
        }
    }

    /// Sends the calls that are due. A failure shows at the next read, with the reason that the socket keeps for it.
    async fn send(&mut self, echo: Option<(u64, String)>, ping: Option<u64>) {
        match self {
            Self::Web(socket) => {
                let echo =
                    echo.map(|(id, payload)| message(id, "Test", 1, "Echo", json!({ "echo": payload })));
                let ping = ping.map(|id| message(id, "Pinger", 1, "Ping", json!({})));
                for due in [echo, ping].into_iter().flatten() {
                    let _ = socket.send(due).await;
                }
            }
            Self::Raw(tcp, ..) => {
                if let Some((_, payload)) = echo {
                    let _ = tcp.write_all(payload.as_bytes()).await;
                }
            }
        }
    }

    async fn end(mut self, how: How, hub: &Hub) {
        match (how, &mut self) {
            (How::Fin, Self::Web(socket)) => finish(socket.get_mut()).await,
            (How::Fin, Self::Raw(tcp, ..)) => finish(tcp).await,
            (How::Rst, Self::Web(socket)) => reset(socket.get_ref().get_ref().0),
            (How::Rst, Self::Raw(tcp, ..)) => reset(tcp),
            (How::Abandon, _) => hub.abandon(self),
        }
    }
}

fn reset(tcp: &TcpStream) {
    // Fails only on a socket that is gone.
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

/// How a held connection ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// By command.
    Closed,
    /// By the peer or the network.
    Lost,
}

/// The things that a held connection has to do besides listening, and when.
struct Duties {
    noise: Noise,
    next_id: u64,
    echoes: Option<Timer>,
    echo: Option<Echo>,
    pings: Option<Timer>,
    ping: Option<(u64, Instant)>,
    /// How long a ping may be unanswered.
    patience: Duration,
}

struct Timer {
    every: Duration,
    due: Instant,
}

impl Timer {
    /// Starts anywhere in the interval, so that thousands of connections do not speak at once.
    fn new(every_ms: u64, noise: &mut Noise) -> Self {
        let every = Duration::from_millis(every_ms);
        Self { every, due: Instant::now() + every.mul_f64(noise.signed_unit().abs()) }
    }

    fn take(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.due;
        if is_due {
            self.due = now + self.every;
        }
        is_due
    }
}

struct Echo {
    id: u64,
    sent: Instant,
    payload: String,
    _counted: WaitingGuard,
}

impl Duties {
    fn new(interval_ms: u64, pings: Option<&Timing>) -> Self {
        let mut noise = Noise::fresh();
        let pings_timer = pings.map(|timing| Timer::new(timing.ping, &mut noise));
        let patience = pings.map_or(Duration::MAX, |timing| Duration::from_millis(timing.ping_answer));
        let mut duties =
            Self { noise, next_id: 1, echoes: None, echo: None, pings: pings_timer, ping: None, patience };
        duties.set_traffic(interval_ms);
        duties
    }

    fn set_traffic(&mut self, interval_ms: u64) {
        self.echoes = (interval_ms > 0).then(|| Timer::new(interval_ms, &mut self.noise));
    }

    /// Until something is to be done; for ever if nothing is.
    async fn due(&self) {
        let timers = [&self.echoes, &self.pings].map(|timer| timer.as_ref().map(|timer| timer.due));
        let overdue = self.ping.map(|(_, sent)| sent + self.patience);
        match timers.into_iter().chain([overdue]).flatten().min() {
            Some(wake) => sleep_until(wake.into()).await,
            None => std::future::pending().await,
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Payload of the echo that is due, if one is; at most one is under way.
    fn due_echo(&mut self, hub: &Arc<Hub>) -> Option<(u64, String)> {
        if !self.echoes.as_mut()?.take() {
            return None;
        }
        if let Some(echo) = &self.echo {
            hub.stalled(echo.sent.elapsed());
            return None;
        }
        let id = self.id();
        let payload = format!("{:016x}", self.noise.next());
        self.echo = Some(Echo { id, sent: Instant::now(), payload: payload.clone(), _counted: hub.waits() });
        Some((id, payload))
    }

    fn due_ping(&mut self) -> Option<u64> {
        if !self.pings.as_mut()?.take() || self.ping.is_some() {
            return None;
        }
        let id = self.id();
        self.ping = Some((id, Instant::now()));
        Some(id)
    }

    fn ping_overdue(&self) -> bool {
        self.ping.is_some_and(|(_, sent)| sent.elapsed() >= self.patience)
    }

    /// An answer without id is taken for that of the echo under way.
    fn answered(&mut self, hub: &Hub, id: Option<u64>, payload: &str) {
        if id.is_some() && self.ping.map(|(ping, _)| ping) == id {
            self.ping = None;
        } else if let Some(echo) = self.echo.take_if(|echo| id.is_none_or(|id| id == echo.id)) {
            hub.echoed(echo.sent.elapsed(), echo.payload == payload);
        } else {
            hub.echoed(Duration::ZERO, false);
        }
    }
}

/// Keeps a connection until it is closed by command or lost; `pings` for those that ping.
pub async fn hold(
    open: Open,
    hub: &Arc<Hub>,
    pings: Option<&Timing>,
    mut close: watch::Receiver<Option<How>>,
) -> Ended {
    let guard = hub.opened(open.opened.server);
    let mut link = open.link;
    let mut traffic = hub.traffic.subscribe();
    let mut duties = Duties::new(*traffic.borrow_and_update(), pings);
    let error = loop {
        tokio::select! {
            how = commanded(&mut close) => {
                drop(guard);
                link.end(how, hub).await;
                return Ended::Closed;
            }
            Ok(()) = traffic.changed() => duties.set_traffic(*traffic.borrow_and_update()),
            answer = link.answer() => match answer {
                Ok((id, payload)) => duties.answered(hub, id, &payload),
                Err(error) => break error,
            },
            () = duties.due() => {
                if duties.ping_overdue() {
                    break Error::other("ping unanswered");
                }
                let (echo, ping) = (duties.due_echo(hub), duties.due_ping());
                link.send(echo, ping).await;
            }
        }
    };
    hub.lost(error.kind() == ErrorKind::ConnectionReset, error);
    Ended::Lost
}

async fn commanded(close: &mut watch::Receiver<Option<How>>) -> How {
    // No sender is left when the process ends.
    close.wait_for(Option::is_some).await.ok().and_then(|how| *how).unwrap_or(How::Rst)
}
