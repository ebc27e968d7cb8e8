//! Link delay without netem: frames wait between two packet sockets for a fixed time.
//!
//! A delay namespace holds both ends of a line, `near` and `far`. Frames that arrive at one leave at the other a
//! fixed time later. Offloads must be off on the devices that feed them ([`crate::network::net`] sees to that): a
//! packet socket cannot forward a frame that lacks its checksum because a card was to fill it in.

use std::io::{Read, Write as _};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{LinkAddr, SockaddrLike, bind, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::network::namespace::Namespace;
use crate::network::sockopt::switch_on;
use crate::support::eventually::SOON;
use crate::support::lines::Lines as _;
use crate::support::process::Process;

/// Room for frames that arrive while the process is not running, in bytes.
const BUFFER: usize = 32 << 20;
/// Longest frame, in bytes: MTU 1500 with Ethernet header and some room.
const FRAME: usize = 2048;

/// Delays each line, a pair of device names in `namespace`, by `each_way`, as long as the process lives.
pub(super) fn start(
    namespace: &Namespace,
    each_way: Duration,
    lines: &[(String, String)],
) -> Result<Process> {
    let mut arguments = vec![each_way.as_micros().to_string()];
    arguments.extend(lines.iter().map(|(near, far)| format!("{near},{far}")));
    let mut process = Process::fixture(namespace, "delay", &arguments)?;
    let line = process.read_line(SOON)?;
    ensure!(line == "ready", "delay process said {line:?}");
    Ok(process)
}

/// The delay process: its arguments are the delay each way in microseconds, and lines, each as `NEAR,FAR`. Prints `ready`.
pub fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let each_way = arguments.next().context("usage: delay MICROSECONDS NEAR,FAR…")?.parse()?;
    for line in arguments {
        let (near, far) = line.split_once(',').with_context(|| format!("{line} is not NEAR,FAR"))?;
        forward(near, far, Duration::from_micros(each_way))?;
    }
    writeln!(std::io::stdout(), "ready").context("no test listens")?;
    // Until standard input ends with the test.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
    Ok(())
}

/// Forwards between `near` and `far` both ways from here on, on threads that end with the process.
fn forward(near: &str, far: &str, each_way: Duration) -> Result<()> {
    let (near, far) = (packet_socket(near)?, packet_socket(far)?);
    for (from, to) in [(&near, &far), (&far, &near)] {
        let from = from.try_clone().context("failed to clone a packet socket")?;
        let to = to.try_clone().context("failed to clone a packet socket")?;
        let (sender, waiting) = channel();
        std::thread::spawn(move || receive(&from, each_way, &sender));
        std::thread::spawn(move || send(&to, &waiting));
    }
    Ok(())
}

fn receive(from: &Socket, each_way: Duration, sender: &Sender<(Instant, Vec<u8>)>) {
    let mut frame = [0; FRAME];
    let mut from = from;
    loop {
        // An interface that is going down is an error once; the process ends with its namespace.
        let Ok(length) = from.read(&mut frame) else { continue };
        if sender.send((Instant::now() + each_way, frame[..length].to_vec())).is_err() {
            return;
        }
    }
}

fn send(to: &Socket, waiting: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((due, frame)) = waiting.recv() {
        let left = due.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            std::thread::sleep(left);
        }
        // A frame that cannot leave is lost, as on any line.
        let _ = to.send(&frame);
    }
}

/// A socket for the frames that arrive at `device` (which is promiscuous) and for sending there.
pub fn packet_socket(device: &str) -> Result<Socket> {
    let doing = || format!("failed to open a packet socket on {device}");
    let every = (libc::ETH_P_ALL as u16).to_be();
    let index = nix::net::if_::if_nametoindex(device).with_context(doing)?;
    let socket =
        Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(every)))).with_context(doing)?;
    // Frames of our own would be taken for new ones.
    switch_on(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING).with_context(doing)?;
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).with_context(doing)?;
    setsockopt(&socket, sockopt::SndBufForce, &BUFFER).with_context(doing)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: every,
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is to a whole sockaddr_ll of that family and length, alive during the call.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(length)) };
    bind(socket.as_raw_fd(), &address.context("a link address is one")?).with_context(doing)?;
    Ok(socket)
}
