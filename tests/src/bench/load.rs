//! The clients: one thread, one epoll, and as many connections as an order asks for.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _, stdin, stdout};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ClientConfig;
use socket2::{Domain, Protocol, Socket, Type};

use crate::bench::login::{Client, Step};
use crate::bench::machine::busy_seconds;
use crate::bench::wire::{Order, Outcome, PIECE, REQUEST, Work};
use crate::juju::tls;

/// After a connection that broke.
const PAUSE: Duration = Duration::from_millis(1);
/// All connections are open within this.
const OPEN: Duration = Duration::from_secs(10);
/// Connections that open at a time.
const BATCH: usize = 1000;
/// Idle connections in one table of files, which may be limited to 20,000.
pub const FILES: usize = 15_000;
/// Between two looks at the clock, if nothing happens.
const TICK: Duration = Duration::from_millis(5);
/// Reads or writes of one connection before the others have their turn.
const TURNS: usize = 8;

/// Carries out the orders on the standard input, one a line, and answers each by a line.
pub fn main() -> Result<()> {
    let mut idle = Vec::new();
    for line in stdin().lines() {
        let order: Order = serde_json::from_str(&line?).context("no order")?;
        let outcome = match order.work {
            Work::Idle if order.streams == 0 => {
                idle.clear();
                Ok(Outcome::default())
            }
            Work::Idle => Idle::open(&order, &mut idle),
            Work::Connections | Work::Login | Work::Requests | Work::Up | Work::Down => {
                Load::new(&order)?.run()
            }
        };
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        writeln!(stdout(), "{}", serde_json::to_string(&outcome)?)?;
    }
    Ok(())
}

/// A thread that keeps connections open, until drop.
struct Idle {
    /// Dropped, it tells the thread to end.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Idle {
    /// Opens connections in as many threads as they need.
    fn open(order: &Order, idle: &mut Vec<Self>) -> Result<Outcome> {
        let mut all = Outcome::default();
        for first in (0..order.streams).step_by(FILES) {
            let order = Order { streams: FILES.min(order.streams - first), ..order.clone() };
            let ((end, ended), (tell, told)) = (channel::<()>(), channel());
            let thread = std::thread::spawn(move || {
                let open = || -> Result<_> {
                    // The limit of open files is that of a table of files.
                    unshare(CloneFlags::CLONE_FILES).context("no table of files for a thread")?;
                    let mut load = Load::new(&order)?;
                    Ok((load.run()?, load.slots))
                };
                let (outcome, slots) = match open() {
                    Ok((outcome, slots)) => (Ok(outcome), slots),
                    Err(error) => (Err(error), Vec::new()),
                };
                // Both fail only at the end of this process.
                let _ = tell.send(outcome);
                let _ = ended.recv();
                drop(slots);
            });
            idle.push(Self { end: Some(end), thread: Some(thread) });
            let outcome = told.recv().context("the thread has ended")??;
            all.seconds += outcome.seconds;
            all.done += outcome.done;
            all.broken += outcome.broken;
        }
        Ok(all)
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.end = None;
        // Fails only after a panic, which has been printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Slot {
    end: End,
    began: Instant,
    /// The first bytes are sent.
    open: bool,
    /// Bytes of the present answer.
    got: usize,
}

enum End {
    Plain(TcpStream),
    Login(Box<Client>),
}

/// When to look at a connection again.
enum Next {
    /// At the kernel's next event.
    Event,
    /// After the others.
    Turn,
    /// Never: it has done all that it was for.
    Done,
    Broken,
}

struct Load<'a> {
    order: &'a Order,
    poll: Poll,
    slots: Vec<Option<Slot>>,
    dialled: usize,
    buffer: Vec<u8>,
    /// The figures of the present window.
    done: u64,
    broken: u64,
    micros: Vec<u32>,
    error: Option<anyhow::Error>,
    tls: Arc<ClientConfig>,
}

impl<'a> Load<'a> {
    fn new(order: &'a Order) -> Result<Self> {
        let poll = Poll::new().context("failed to make an epoll")?;
        let slots = (0..order.streams).map(|_| None).collect();
        let buffer = vec![order.work.first_byte(); PIECE];
        let (done, broken, micros) = (0, 0, Vec::with_capacity(1 << 18));
        let tls = tls::client()?;
        Ok(Self { order, poll, slots, dialled: 0, buffer, done, broken, micros, error: None, tls })
    }

    fn run(&mut self) -> Result<Outcome> {
        let mut events = Events::with_capacity(1024);
        let mut turns = VecDeque::new();
        let begun = Instant::now();
        for first in (0..self.slots.len()).step_by(BATCH) {
            self.open(first..self.slots.len().min(first + BATCH), &mut events, &mut turns)?;
        }
        if self.order.work == Work::Idle {
            let (seconds, done) = (begun.elapsed().as_secs_f64(), self.slots.len() as u64);
            return Ok(Outcome { seconds, done, broken: self.broken, ..Outcome::default() });
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(self.order.warm_up) {
            self.pass(&mut events, &mut turns)?;
        }
        (self.done, self.broken) = (0, 0);
        self.micros.clear();
        let (begun, busy) = (Instant::now(), busy_seconds()?);
        while begun.elapsed() < Duration::from_millis(self.order.window) {
            self.pass(&mut events, &mut turns)?;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let busy = busy_seconds()? - busy;
        ensure!(
            self.done > 0,
            "nothing was done in {seconds:.1} s; {} connections broke, the last one by {:?}",
            self.broken,
            self.error
        );
        let latency = [0.5, 0.99, 0.999].map(|share| quantile(&mut self.micros, share));
        Ok(Outcome { seconds, done: self.done, broken: self.broken, busy, latency })
    }

    /// Opens the connections of these slots.
    fn open(&mut self, slots: Range<usize>, events: &mut Events, turns: &mut VecDeque<usize>) -> Result<()> {
        for index in slots.clone() {
            self.dial(index)?;
        }
        let begun = Instant::now();
        let is_idle = self.order.work == Work::Idle;
        let is_open = |slot: &&Slot| slot.open && (!is_idle || slot.got == REQUEST);
        loop {
            let open = self.slots[slots.clone()].iter().flatten().filter(is_open).count();
            if open == slots.len() {
                return Ok(());
            }
            ensure!(
                begun.elapsed() < OPEN,
                "{open} of {} connections are open after {OPEN:?}; {} broke, the last one by {:?}",
                slots.len(),
                self.broken,
                self.error
            );
            self.pass(events, turns)?;
        }
    }

    /// Looks once at every connection that has something to do.
    fn pass(&mut self, events: &mut Events, turns: &mut VecDeque<usize>) -> Result<()> {
        let patience = if turns.is_empty() { TICK } else { Duration::ZERO };
        match self.poll.poll(events, Some(patience)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        turns.extend(events.iter().map(|event| event.token().0));
        for _ in 0..turns.len() {
            let Some(index) = turns.pop_front() else { break };
            match self.advance(index) {
                Next::Event => {}
                Next::Turn => turns.push_back(index),
                Next::Done => self.dial(index)?,
                Next::Broken => {
                    self.broken += 1;
                    // Refused clients that dial again at once would keep the flood guard up.
                    std::thread::sleep(PAUSE);
                    self.dial(index)?;
                }
            }
        }
        Ok(())
    }

    fn dial(&mut self, index: usize) -> Result<()> {
        let (targets, sources) = (&self.order.targets, &self.order.sources);
        let target = targets[self.dialled % targets.len()];
        let source = sources[(self.dialled / targets.len()) % sources.len()];
        self.dialled += 1;
        // The old socket first, so that its port is free.
        self.slots[index] = None;
        let (source, is_idle) = (SocketAddr::new(source, 0), self.order.work == Work::Idle);
        let stream = connect(self.poll.registry(), Token(index), source, target, is_idle)
            .with_context(|| format!("failed to dial {target} from {source}"))?;
        let began = Instant::now();
        let end = match self.order.work {
            Work::Login => End::Login(Box::new(Client::new(stream, &self.tls)?)),
            Work::Connections | Work::Requests | Work::Up | Work::Down | Work::Idle => End::Plain(stream),
        };
        self.slots[index] = Some(Slot { end, began, open: false, got: 0 });
        Ok(())
    }

    fn advance(&mut self, index: usize) -> Next {
        let Some(slot) = &mut self.slots[index] else { return Next::Event };
        let stream = match &mut slot.end {
            End::Plain(stream) => stream,
            End::Login(client) => {
                slot.open = true;
                match client.advance() {
                    Ok(Step::Waits) => return Next::Event,
                    Ok(Step::Over) => {
                        self.done += 1;
                        self.micros.push(slot.began.elapsed().as_micros() as u32);
                        return Next::Done;
                    }
                    Err(error) => {
                        self.error = Some(error);
                        return Next::Broken;
                    }
                }
            }
        };
        let mut ask = |stream: &mut TcpStream, buffer: &[u8]| match stream.write(&buffer[..REQUEST]) {
            Ok(REQUEST) => None,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                Some(Next::Event)
            }
            outcome => {
                self.error = outcome.err().map(Into::into);
                Some(Next::Broken)
            }
        };
        if !slot.open {
            self.buffer[0] = self.order.work.first_byte();
            if let Some(next) = ask(stream, &self.buffer) {
                return next;
            }
            slot.open = true;
        }
        for _ in 0..TURNS {
            let moved = match self.order.work {
                Work::Up => stream.write(&self.buffer),
                Work::Connections | Work::Login | Work::Requests | Work::Down | Work::Idle => {
                    stream.read(&mut self.buffer)
                }
            };
            let length = match moved {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Next::Event,
                Err(error) => {
                    self.error = Some(error.into());
                    return Next::Broken;
                }
            };
            slot.got += length;
            match self.order.work {
                Work::Connections if length == 0 && slot.got == REQUEST => {
                    self.done += 1;
                    self.micros.push(slot.began.elapsed().as_micros() as u32);
                    return Next::Done;
                }
                _ if length == 0 => return Next::Broken,
                Work::Up | Work::Down => self.done += length as u64,
                Work::Connections | Work::Login | Work::Idle => {}
                Work::Requests if slot.got < REQUEST => {}
                Work::Requests => {
                    slot.got = 0;
                    self.done += 1;
                    let now = Instant::now();
                    self.micros.push((now - slot.began).as_micros() as u32);
                    slot.began = now;
                    // A socket with room takes a request at once; there is never more than one in it.
                    return ask(stream, &self.buffer).unwrap_or(Next::Event);
                }
            }
        }
        Next::Turn
    }
}

fn connect(
    registry: &Registry,
    token: Token,
    source: SocketAddr,
    target: SocketAddr,
    aborts: bool,
) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // The port is chosen at connect, when the target is known: all ports for each target.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&source.into())?;
    if aborts {
        // Nothing of it is to rest when it is closed.
        socket.set_linger(Some(Duration::ZERO))?;
    }
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error.into()),
        _ => {}
    }
    let mut stream = TcpStream::from_std(socket.into());
    registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

/// The smallest value that `share` of all do not exceed; 0 of none.
pub fn quantile(values: &mut [u32], share: f64) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "a run has fewer than 2^52 values")]
    let rank = (values.len() as f64 * share).ceil() as usize;
    let index = rank.clamp(1, values.len()) - 1;
    f64::from(*values.select_nth_unstable(index).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let rows: [(&[u32], f64, f64); 6] = [
            (&[], 0.5, 0.0),
            (&[7], 0.999, 7.0),
            (&[3, 1, 2], 0.5, 2.0),
            (&[4, 3, 2, 1], 0.5, 2.0),
            (&[4, 3, 2, 1], 0.99, 4.0),
            (&[1, 2, 3, 4], 0.0, 1.0),
        ];
        for (values, share, expected) in rows {
            let found = quantile(&mut values.to_vec(), share);
            assert!((found - expected).abs() < f64::EPSILON, "{share} of {values:?}: {found}");
        }
    }
}
