//! A learning Ethernet switch for virtual machines, in user space: QEMU's `-netdev dgram` carries each frame as one
//! datagram of a Unix socket. It can be told to do to frames as a real network does: cut a port off, delay, lose.
//!
//! ```text
//!   machine a ── a.nic │ a.port ──┐
//!   machine b ── b.nic │ b.port ──┤ switch
//!   machine c ── c.nic │ c.port ──┘
//! ```

use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::support::noise::Noise;

/// Longest frame, in bytes.
const FRAME: usize = 65_536;
/// Frames that wait for a machine which does not take them; more are lost, as in any switch.
const BACKLOG: usize = 1_000;
/// How soon a change, a waiting frame or the end is noticed at the latest.
const LOOK: Duration = Duration::from_millis(2);

type Mac = [u8; 6];

/// Faults that the switch imposes on the frames that it forwards.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// Ports that are cut off: no frame comes from them or goes to them.
    pub cut: Vec<usize>,
    pub delay: Duration,
    /// Frames lost of a thousand.
    pub lost_permille: u16,
}

/// Frames since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Frames {
    pub forwarded: u64,
    /// Lost because the conditions say so.
    pub lost: u64,
    /// Of a port that is cut off, or for one.
    pub cut: u64,
    /// For a machine that took none.
    pub overflowed: u64,
}

/// A running switch; ended on drop.
#[derive(Debug)]
pub struct Switch {
    shared: Arc<Mutex<Shared>>,
    directory: PathBuf,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    conditions: Conditions,
    frames: Frames,
    ends: bool,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Switch {
    /// Starts one with a port for each of `names`, numbered in their order; its sockets are in `directory`. Which frames
    /// are lost follows from `seed`.
    pub fn start(directory: &Path, names: &[&str], seed: u64) -> Result<Self> {
        let mut ports = Vec::new();
        for name in names {
            let path = directory.join(format!("{name}.port"));
            let socket = UnixDatagram::bind(&path);
            let socket = socket.with_context(|| format!("failed to make {}", path.display()))?;
            socket.set_nonblocking(true).context("failed to set a socket")?;
            let waiting = VecDeque::new();
            ports.push(Port { socket, peer: directory.join(format!("{name}.nic")), waiting });
        }
        let shared = Arc::new(Mutex::new(Shared::default()));
        let fabric = Fabric {
            ports,
            table: Table::default(),
            under_way: BinaryHeap::new(),
            taken: 0,
            noise: Noise::new(seed),
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new().name("switch".to_owned()).spawn(move || fabric.run());
        let thread = Some(thread.context("failed to start a thread")?);
        Ok(Self { shared, directory: directory.to_owned(), thread })
    }

    /// QEMU's option for the network card of the machine on the port called `name`.
    pub fn netdev(&self, name: &str) -> String {
        let path = |end: &str| self.directory.join(format!("{name}.{end}")).display().to_string();
        format!(
            "dgram,id=net,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            path("nic"),
            path("port")
        )
    }

    /// Changes the conditions, for frames that come in from now on.
    pub fn set(&self, change: impl FnOnce(&mut Conditions)) {
        change(&mut lock(&self.shared).conditions);
    }

    pub fn frames(&self) -> Frames {
        lock(&self.shared).frames
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        lock(&self.shared).ends = true;
        // It has panicked already if that fails, and said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Port {
    socket: UnixDatagram,
    /// The machine's end.
    peer: PathBuf,
    waiting: VecDeque<Vec<u8>>,
}

impl Port {
    /// Gives the machine the frames that wait for it, as far as it takes them.
    fn give(&mut self) {
        while let Some(frame) = self.waiting.pop_front() {
            match self.socket.send_to(&frame, &self.peer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.waiting.push_front(frame);
                    return;
                }
                // There is no machine at the moment: lost.
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// A frame under way; the one that is due first is the greatest.
#[derive(Eq, PartialEq)]
struct UnderWay {
    due: Instant,
    number: u64,
    to: usize,
    frame: Vec<u8>,
}

impl Ord for UnderWay {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

impl PartialOrd for UnderWay {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct Fabric {
    ports: Vec<Port>,
    table: Table,
    under_way: BinaryHeap<UnderWay>,
    taken: u64,
    noise: Noise,
    shared: Arc<Mutex<Shared>>,
}

impl Fabric {
    fn run(mut self) {
        let mut frame = vec![0; FRAME];
        while !lock(&self.shared).ends {
            for from in 0..self.ports.len() {
                while let Some(length) =
                    self.ports.get(from).and_then(|port| port.socket.recv(&mut frame).ok())
                {
                    self.take(from, &frame[..length]);
                }
            }
            self.deliver();
            self.wait();
        }
    }

    fn take(&mut self, from: usize, frame: &[u8]) {
        let mut shared = lock(&self.shared);
        let Shared { conditions, frames, .. } = &mut *shared;
        for to in self.table.ports_for(from, frame, self.ports.len()) {
            if conditions.cut.contains(&from) || conditions.cut.contains(&to) {
                frames.cut += 1;
            } else if self.noise.below(1000) < usize::from(conditions.lost_permille) {
                frames.lost += 1;
            } else {
                frames.forwarded += 1;
                let due = Instant::now() + conditions.delay;
                self.taken += 1;
                self.under_way.push(UnderWay { due, number: self.taken, to, frame: frame.to_vec() });
            }
        }
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        while self.under_way.peek().is_some_and(|first| first.due <= now) {
            let Some(UnderWay { to, frame, .. }) = self.under_way.pop() else { break };
            let Some(port) = self.ports.get_mut(to) else { continue };
            if port.waiting.len() < BACKLOG {
                port.waiting.push_back(frame);
            } else {
                lock(&self.shared).frames.overflowed += 1;
            }
        }
        self.ports.iter_mut().for_each(Port::give);
    }

    fn wait(&self) {
        let due = self.under_way.peek().map(|first| first.due.saturating_duration_since(Instant::now()));
        let wait = due.unwrap_or(LOOK).min(LOOK);
        let mut looked: Vec<_> =
            self.ports.iter().map(|port| PollFd::new(port.socket.as_fd(), PollFlags::POLLIN)).collect();
        // A signal ends it early, which is as good.
        let _ = poll(&mut looked, PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO));
    }
}

/// Which machine is behind which port.
#[derive(Default)]
struct Table(HashMap<Mac, usize>);

impl Table {
    /// Where a frame that came in at the port `from` goes, of so many `ports`.
    fn ports_for(&mut self, from: usize, frame: &[u8], ports: usize) -> Vec<usize> {
        const GROUP: u8 = 1;
        let Some((destination, rest)) = frame.split_first_chunk::<6>() else { return Vec::new() };
        let Some(source) = rest.first_chunk::<6>() else { return Vec::new() };
        if source[0] & GROUP == 0 {
            self.0.insert(*source, from);
        }
        match self.0.get(destination) {
            Some(&to) if to == from => Vec::new(),
            Some(&to) => vec![to],
            None => (0..ports).filter(|&to| to != from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(destination: u8, source: u8) -> Vec<u8> {
        let mac = |last: u8| if last == 0xff { [0xff; 6] } else { [0x52, 0x54, 0, 0, 0, last] };
        [mac(destination), mac(source)].concat()
    }

    #[test]
    fn a_switch_learns_who_is_where() {
        let mut table = Table::default();
        for (what, from, frame, to) in [
            ("nobody knows 2 yet", 1, frame(2, 1), vec![0, 2]),
            ("2 answers", 2, frame(1, 2), vec![1]),
            ("and is known", 1, frame(2, 1), vec![2]),
            ("all hear a broadcast", 1, frame(0xff, 1), vec![0, 2]),
            ("1 has moved", 0, frame(2, 1), vec![2]),
            ("it is found where it is", 2, frame(1, 2), vec![0]),
            ("what stays behind its port", 2, frame(2, 9), vec![]),
            ("no frame", 1, vec![0; 11], vec![]),
        ] {
            assert_eq!(table.ports_for(from, &frame, 3), to, "{what}");
        }
    }

    /// A switch of three ports, and the machines' ends of them.
    fn wired() -> (Switch, Vec<UnixDatagram>, tempfile::TempDir) {
        let directory = tempfile::Builder::new().prefix("bal-switch-").tempdir().unwrap();
        let names = ["a", "b", "c"];
        let switch = Switch::start(directory.path(), &names, 1).unwrap();
        let ends = names.map(|name| {
            let end = UnixDatagram::bind(directory.path().join(format!("{name}.nic"))).unwrap();
            end.connect(directory.path().join(format!("{name}.port"))).unwrap();
            end.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            end
        });
        (switch, ends.into(), directory)
    }

    fn hears(end: &UnixDatagram) -> Option<Vec<u8>> {
        let mut frame = vec![0; 100];
        let length = end.recv(&mut frame).ok()?;
        frame.truncate(length);
        Some(frame)
    }

    #[test]
    fn frames_are_forwarded_delayed_lost_and_cut() {
        let (switch, ends, _directory) = wired();
        ends[0].send(&frame(2, 1)).unwrap();
        assert_eq!([hears(&ends[1]), hears(&ends[2])], [Some(frame(2, 1)), Some(frame(2, 1))]);

        switch.set(|conditions| conditions.delay = Duration::from_millis(60));
        let sent = Instant::now();
        ends[1].send(&frame(1, 2)).unwrap();
        assert_eq!(hears(&ends[0]), Some(frame(1, 2)));
        assert!(sent.elapsed() >= Duration::from_millis(60), "{:?}", sent.elapsed());

        switch.set(|conditions| *conditions = Conditions { cut: vec![0], ..Conditions::default() });
        ends[1].send(&frame(1, 2)).unwrap();
        assert_eq!(hears(&ends[0]), None);
        switch.set(|conditions| *conditions = Conditions { lost_permille: 1000, ..Conditions::default() });
        ends[1].send(&frame(1, 2)).unwrap();
        assert_eq!(hears(&ends[0]), None);
        switch.set(|conditions| *conditions = Conditions::default());
        ends[1].send(&frame(1, 2)).unwrap();
        assert_eq!(hears(&ends[0]), Some(frame(1, 2)));
        assert_eq!(switch.frames(), Frames { forwarded: 4, lost: 1, cut: 1, overflowed: 0 });
    }

    #[test]
    fn a_machine_that_takes_nothing_holds_up_nobody() {
        let (switch, ends, _directory) = wired();
        ends[1].send(&frame(0xff, 2)).unwrap();
        ends[2].send(&frame(0xff, 3)).unwrap();
        let mut sent = 0;
        while switch.frames().overflowed == 0 {
            ends[0].send(&frame(2, 1)).unwrap();
            sent += 1;
            assert!(sent < 100_000, "{:?}", switch.frames());
        }
        ends[0].send(&frame(3, 1)).unwrap();
        let mut heard = Vec::new();
        while let Some(frame) = hears(&ends[2]) {
            heard.push(frame);
        }
        assert_eq!(heard.last(), Some(&frame(3, 1)));
    }
}
