//! Relays that the agent opens itself, to prove a path before a client uses it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use balancer_common::{
    records::{Probe as Record, Tuple},
    wire::{Address, Port},
};
use log::warn;
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use super::{Agent, Found, Probed};
use crate::{cluster::Probe, juju::health::Prober};

/// The longest wait for a connection: a SYN that was lost is repeated once within it.
const CONNECT: Duration = Duration::from_millis(1_500);
/// The longest wait for a silent controller's host: a SYN that was lost is repeated once within it.
const KNOCK: Duration = Duration::from_millis(1_200);
/// The longest wait for the answer to a request, which is lost and repeated as well.
const ANSWER: Duration = Duration::from_secs(2);
/// Local ports to try: one may belong to a relay, of which the stack does not know.
const TRIES: usize = 8;
/// Clients use higher ports.
const FIRST_CLIENT_PORT: u16 = 1_024;

impl Agent {
    /// Opens a relay; its result comes by the inbox.
    pub(super) fn begin_probe(&mut self, probe: Probe) {
        let results = self.inbox.finders.clone();
        match self.open_probe(&probe) {
            Ok((socket, key)) => {
                let prober = self.jujud.prober.clone();
                self.inbox.tasks.beside.spawn(async move {
                    let result = run(&probe, socket, &prober).await;
                    // The agent is ending where nobody listens.
                    let _: Result<(), _> =
                        results.send(Found::Probed(Probed { probe, key: Some(key), result })).await;
                });
            }
            Err(error) => {
                let result = Err(format!("failed to probe it: {error:#}"));
                if results.try_send(Found::Probed(Probed { probe, key: None, result })).is_err() {
                    warn!("failed to note a probe");
                }
            }
        }
    }

    /// A socket for the probe, and its ends, which the programs know.
    fn open_probe(&mut self, probe: &Probe) -> Result<(TcpSocket, Tuple)> {
        let maps = &mut self.programs.data_path.maps;
        for _ in 0..TRIES {
            let socket = if probe.from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
            let socket = socket.context("no socket")?;
            socket
                .bind(SocketAddr::new(probe.from, 0))
                .with_context(|| format!("failed to bind to {}", probe.from))?;
            let key = Tuple {
                remote: probe.to.into(),
                local: probe.from.into(),
                remote_port: Port::new(probe.port),
                local_port: Port::new(socket.local_addr()?.port()),
            };
            if maps.flows.has(&key) {
                continue;
            }
            let client = probe.ask.map_or(Address::from(probe.from), |ask| ask.client);
            let port = Port::new(fastrand::u16(1..FIRST_CLIENT_PORT));
            maps.set_probe(&key, &Record { client, port, pad: [0; 2] })?;
            return Ok((socket, key));
        }
        bail!("every port that the kernel gave belongs to a relay")
    }

    /// Asks the host at `to` whether it is there, by a connection to its API port from `from`.
    pub(super) fn begin_knock(&self, name: String, from: IpAddr, to: IpAddr) {
        let results = self.inbox.finders.clone();
        let to = SocketAddr::new(to, self.config.running.api.port);
        self.inbox.tasks.beside.spawn(async move {
            let answered = answers(from, to).await;
            let _: Result<(), _> = results.send(Found::Knocked { name, answered }).await;
        });
    }

    pub(super) fn found(&mut self, found: Found) {
        match found {
            Found::Probed(probed) => self.probe_ended(probed),
            Found::Knocked { name, answered } => {
                let effects = self.cluster.knocked(&name, answered);
                self.carry_out_cluster(effects);
            }
        }
    }

    /// Takes the result of a probe.
    fn probe_ended(&mut self, probed: Probed) {
        let Probed { probe, key, result } = probed;
        if let Some(key) = key {
            self.programs.data_path.maps.forget_probe(&key);
        }
        let now = std::time::Instant::now();
        let effects = self.cluster.probed(now, &probe, result);
        self.carry_out_cluster(effects);
        self.write_views();
    }
}

/// Whether anything comes back from `to`: a connection, or a refusal.
async fn answers(from: IpAddr, to: SocketAddr) -> bool {
    let socket = if from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let Ok(socket) = socket else { return false };
    if socket.bind(SocketAddr::new(from, 0)).is_err() {
        return false;
    }
    match timeout(KNOCK, socket.connect(to)).await {
        Ok(Ok(stream)) => {
            reset_when_dropped(&stream);
            true
        }
        Ok(Err(error)) => {
            matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
        }
        Err(_) => false,
    }
}

/// Connects, and exchanges full packets with the other controller's API server.
async fn run(probe: &Probe, socket: TcpSocket, prober: &Prober) -> Result<(), String> {
    let (name, to) = (&probe.name, SocketAddr::new(probe.to, probe.port));
    let stream = match timeout(CONNECT, socket.connect(to)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(refused(name, to, &error)),
        Err(_) => {
            return Err(format!(
                "{to} does not answer; does a firewall drop TCP port {}, do the routes or rp_filter of {name} stop the \
                 answers, or are the balancer's programs not first there (`balancer check` at {name})?",
                to.port()
            ));
        }
    };
    reset_when_dropped(&stream);
    match timeout(ANSWER, prober.carries(stream)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(reason)) => {
            Err(format!("a relay opens, but the API does not answer: {reason}; is jujud at work on {name}?"))
        }
        Err(_) => Err(format!(
            "a relay to {to} opens but carries no data; does a filter drop its packets as invalid, or do links carry \
             smaller packets than their MTU says?"
        )),
    }
}

fn refused(name: &str, to: SocketAddr, error: &io::Error) -> String {
    if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) {
        format!(
            "{to} refuses connections; let TCP port {} through the firewall of {name}, and see that the balancer's \
             programs are attached there (`balancer check`)",
            to.port()
        )
    } else {
        format!("{to}: {error}; look at the routes to {name}, and at its firewall")
    }
}

/// Leaves no socket in TIME_WAIT on either host. Without it the probe works all the same.
fn reset_when_dropped(stream: &TcpStream) {
    let _: io::Result<()> = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
