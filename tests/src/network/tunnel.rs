//! A tunnel between two hosts: a TUN device on each, whose packets come out at the other, as WireGuard's or OpenVPN's do.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, poll};

use crate::network::namespace::Namespace;

/// MTU of the devices, in bytes: WireGuard's over Ethernet.
const MTU: usize = 1420;
/// How soon the end of a tunnel is noticed, in milliseconds.
const LOOK: u16 = 50;

/// The device at either end of a tunnel.
#[derive(Clone, Copy, Debug)]
pub enum TunnelKind {
    /// A TUN device, by [`Tunnel`].
    Tun,
    /// The kernel's own, which some kernels have as a module.
    WireGuard,
}

/// A working tunnel; its devices are gone on drop.
#[derive(Debug)]
pub struct Tunnel {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes the device `name` in both namespaces and sets it up. It has no addresses, and no route leads there.
    pub fn join(one: &Namespace, other: &Namespace, name: &str) -> Result<Self> {
        let (near, far) = (Arc::new(device(one, name)?), Arc::new(device(other, name)?));
        let mut tunnel = Self { ends: Arc::default(), threads: Vec::new() };
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (from, to, ends) = (Arc::clone(from), Arc::clone(to), Arc::clone(&tunnel.ends));
            tunnel.threads.push(std::thread::spawn(move || carry(&from, &to, &ends)));
        }
        Ok(tunnel)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It has panicked already if that fails, and said so.
            let _ = thread.join();
        }
    }
}

fn carry(mut from: &File, mut to: &File, ends: &AtomicBool) {
    let mut packet = [0; 2 * MTU];
    while !ends.load(Ordering::Relaxed) {
        // A signal ends it early, which is as good.
        let _ = poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], LOOK);
        while let Ok(length) = from.read(&mut packet) {
            // A packet that the other end does not take is lost, as on any line.
            let _ = to.write(&packet[..length]);
        }
    }
}

fn device(namespace: &Namespace, name: &str) -> Result<File> {
    let file =
        namespace.enter(|| open(name))?.with_context(|| format!("failed to make the device {name}"))?;
    namespace.ip(&format!("link set {name} mtu {MTU} up\n"))?;
    Ok(file)
}

/// Opens a TUN device of the calling thread's namespace, without blocking reads; it goes with the file.
fn open(name: &str) -> Result<File> {
    let mut options = File::options();
    let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = [0_u8; size_of::<libc::ifreq>()];
    request[..name.len().min(libc::IFNAMSIZ - 1)].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
    request[libc::IFNAMSIZ..][..2].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the request has the size of a `struct ifreq`, with a name that ends with a zero, and lives during the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    if result == 0 { Ok(file) } else { Err(std::io::Error::last_os_error().into()) }
}
