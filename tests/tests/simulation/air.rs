//! The simulated network: its effect on datagrams, the hosts' clocks, and the attacker.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use balancer::cluster::peers::{Host, Member};
use tests::support::noise::Noise;
use turmoil::net::UdpSocket;

pub const CONTROLLERS: usize = 7;
pub const PORT: u16 = 17078;
/// Tick of the simulation: datagrams arrive, and views are read, once a tick.
pub const STEP: Duration = Duration::from_millis(2);
/// Length of the longest datagram that the attacker sends.
pub const LONGEST: usize = 2048;

pub const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

pub fn name(node: usize) -> String {
    char::from(b'a' + node as u8).to_string()
}

pub fn address(node: usize) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, 1 + node as u8).into()
}

pub fn socket_address(node: usize) -> SocketAddr {
    SocketAddr::new(address(node), PORT)
}

pub const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 99);

pub fn member(node: usize) -> Member {
    Member { name: name(node), addresses: vec![address(node)] }
}

pub fn everybody() -> Vec<usize> {
    (0..CONTROLLERS).collect()
}

#[derive(Clone)]
pub struct Sent {
    pub from: usize,
    pub to: usize,
    pub datagram: Vec<u8>,
}

/// The network's effect on datagrams, and the hosts' clocks.
pub struct Air {
    pub noise: Noise,
    /// Probabilities of a loss and of a duplicate, from 0.0 to 1.0.
    pub lost: f64,
    pub doubled: f64,
    pub recorded: Option<Vec<Sent>>,
    /// Milliseconds by which each wall clock is ahead.
    pub ahead_ms: [i64; CONTROLLERS],
    pub attacks: VecDeque<(SocketAddr, usize, Vec<u8>)>,
}

impl Air {
    fn happens(&mut self, part: f64) -> bool {
        part > 0.0 && f64::midpoint(self.noise.signed_unit(), 1.0) < part
    }

    /// Returns the number of times that a datagram arrives.
    fn carry(&mut self, from: usize, datagram: &[u8], to: SocketAddr) -> usize {
        if let Some(recorded) = &mut self.recorded
            && let Some(to) = (0..CONTROLLERS).find(|&node| socket_address(node) == to)
        {
            recorded.push(Sent { from, to, datagram: datagram.to_vec() });
        }
        match (self.happens(self.lost), self.happens(self.doubled)) {
            (true, _) => 0,
            (false, true) => 2,
            (false, false) => 1,
        }
    }
}

#[derive(Clone)]
pub struct SharedAir(pub Arc<Mutex<Air>>);

impl SharedAir {
    pub fn lock(&self) -> MutexGuard<'_, Air> {
        self.0.lock().expect("no thread panics while it holds the lock")
    }
}

/// A controller's host. The attacker's datagrams begin with the address that they are spoofed from.
pub struct SimulatedHost {
    pub node: usize,
    pub socket: UdpSocket,
    pub air: SharedAir,
}

#[async_trait]
impl Host for SimulatedHost {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        let times = self.air.lock().carry(self.node, datagram, to);
        for _ in 0..times {
            self.socket.send_to(datagram, to).await?;
        }
        Ok(())
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let mut received = [0; 6 + LONGEST];
        let (length, source) = self.socket.recv_from(&mut received).await?;
        let (source, datagram) = match received[..length].split_first_chunk() {
            Some((&[a, b, c, d, high, low], datagram)) if source.ip() == ATTACKER => {
                let port = u16::from_be_bytes([high, low]);
                (SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port), datagram)
            }
            Some(_) | None => (source, &received[..length]),
        };
        let length = datagram.len().min(buffer.len());
        buffer[..length].copy_from_slice(&datagram[..length]);
        Ok((length, source))
    }

    fn wall_clock(&self) -> SystemTime {
        let now = turmoil::since_epoch().expect("a host's clock is read on the host");
        let ahead_ms = self.air.lock().ahead_ms[self.node];
        SystemTime::UNIX_EPOCH + ms((now.as_millis() as u64).saturating_add_signed(ahead_ms))
    }
}

pub async fn attack(air: SharedAir) -> Result<(), Box<dyn std::error::Error>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    loop {
        let due: Vec<_> = air.lock().attacks.drain(..).collect();
        for (source, to, datagram) in due {
            let IpAddr::V4(v4) = source.ip() else { continue };
            let envelope = [&v4.octets()[..], &source.port().to_be_bytes(), &datagram].concat();
            socket.send_to(&envelope, socket_address(to)).await?;
        }
        tokio::time::sleep(STEP).await;
    }
}
