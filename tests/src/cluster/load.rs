//! The processor time of agents, beside that of a yardstick.
//!
//! A wake costs several times as much on one machine as on another, and on the same one at another time: 8 and 26 % of a
//! core were seen for the same agent on the same machine. So a bound is a multiple of what a thread takes meanwhile that
//! wakes a hundred times a second and sends itself a datagram.

use std::fmt;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};

use crate::cluster::daemon::Daemon;
use crate::support::eventually::SOON;
use crate::support::process::Ran;

/// What was taken of a processor for some time.
pub struct Load {
    /// By each agent, percent.
    agents: Vec<f64>,
    /// How often each agent's threads were given a processor, in a second.
    pub turns: Vec<f64>,
    /// By the yardstick, percent.
    yardstick: f64,
}

impl Load {
    /// Watches agents for `span`.
    pub fn watch(daemons: &mut [Daemon], span: Duration) -> Result<Self> {
        let mut ran =
            || -> Result<Vec<Ran>> { daemons.iter_mut().map(|daemon| daemon.process()?.ran()).collect() };
        let (before, begun) = (ran()?, Instant::now());
        let yardstick = yardstick(span)?;
        let (after, seconds) = (ran()?, begun.elapsed().as_secs_f64());
        let ran = || after.iter().zip(&before).map(|(after, before)| after.since(before));
        let part = |time: Duration| time.as_secs_f64() / seconds * 100.0;
        Ok(Self {
            agents: ran().map(|ran| part(ran.time)).collect(),
            #[expect(clippy::cast_precision_loss, reason = "counts of seconds")]
            turns: ran().map(|ran| ran.turns as f64 / seconds).collect(),
            yardstick: part(yardstick),
        })
    }

    /// What each agent took, in multiples of the yardstick.
    pub fn multiples(&self) -> Vec<f64> {
        self.agents.iter().map(|part| part / self.yardstick).collect()
    }
}

impl fmt::Display for Load {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agents, turns, yardstick } = self;
        write!(
            formatter,
            "{agents:.3?} % of a core, {:.2?} times the yardstick's {yardstick:.3} %, {turns:.0?} turns a second",
            self.multiples()
        )
    }
}

/// Wakes a hundred times a second for `span`, and sends itself a datagram each time. Returns the processor time that it took.
fn yardstick(span: Duration) -> Result<Duration> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(socket.local_addr()?)?;
    socket.set_read_timeout(Some(SOON))?;
    let spent = || anyhow::Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?));
    let (before, begun) = (spent()?, Instant::now());
    let mut datagram = [0; 1_000];
    while begun.elapsed() < span {
        sleep(Duration::from_millis(10));
        socket.send(&datagram)?;
        socket.recv(&mut datagram)?;
    }
    Ok(spent()?.saturating_sub(before))
}
