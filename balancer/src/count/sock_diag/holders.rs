//! Finds the processes that hold a listening socket, and duplicates it: a walk over `/proc/*/fd`, then `pidfd_getfd`.

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{OwnedFd, RawFd},
    path::Path,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::{
    io::Errno,
    net::{AddressFamily, ipproto, sockopt},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use super::{Family, Socket};

/// A duplicate of another process's listening socket.
#[derive(Debug)]
pub struct Listener {
    pub fd: OwnedFd,
    pub family: Family,
    /// The process from which it was taken.
    pub holder: u32,
}

/// One duplicate for each of `sockets`, in their order.
pub(super) fn duplicate(sockets: &[Socket]) -> Result<Vec<Listener>> {
    let mut search = Search {
        wanted: sockets.iter().map(|socket| (socket.inode, socket.cookie)).collect(),
        found: HashMap::new(),
        failures: HashMap::new(),
        hidden: Vec::new(),
    };
    if !sockets.is_empty() {
        search.walk()?;
    }
    sockets.iter().map(|socket| search.take(socket)).collect()
}

struct Search {
    /// Inode to cookie.
    wanted: HashMap<u32, u64>,
    found: HashMap<u32, Listener>,
    /// By inode: the reason why it could not be duplicated.
    failures: HashMap<u32, anyhow::Error>,
    /// Processes with descriptors that we may not list.
    hidden: Vec<Pid>,
}

impl Search {
    fn walk(&mut self) -> Result<()> {
        for entry in fs::read_dir("/proc").context("failed to list the processes in /proc")? {
            let entry = entry.context("failed to list the processes in /proc")?;
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            let Some(pid) = pid else { continue };
            match fs::read_dir(entry.path().join("fd")) {
                Ok(descriptors) => self.look_into(pid, descriptors),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.hidden.push(pid),
                Err(_) => {} // it has just exited
            }
            if self.found.len() == self.wanted.len() {
                break;
            }
        }
        Ok(())
    }

    fn look_into(&mut self, pid: Pid, descriptors: fs::ReadDir) {
        for descriptor in descriptors {
            let Ok(descriptor) = descriptor else { return };
            let target = match fs::read_link(descriptor.path()) {
                Ok(target) => target,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.hidden.push(pid);
                    return;
                }
                Err(_) => continue, // closed meanwhile
            };
            let Some(inode) = socket_inode(&target) else { continue };
            let Some(&cookie) = self.wanted.get(&inode) else { continue };
            if self.found.contains_key(&inode) {
                continue;
            }
            let Some(number) = descriptor.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            match borrow(pid, number, cookie) {
                Ok(listener) => {
                    self.found.insert(inode, listener);
                }
                Err(error) => {
                    self.failures.insert(inode, error);
                }
            }
        }
    }

    fn take(&mut self, socket: &Socket) -> Result<Listener> {
        if let Some(listener) = self.found.remove(&socket.inode) {
            return Ok(listener);
        }
        if let Some(error) = self.failures.remove(&socket.inode) {
            return Err(error);
        }
        match &self.hidden[..] {
            [] => bail!(
                "no process in /proc holds the listener on {}: is its owner in a container with a PID namespace that is \
                 hidden from here?",
                socket.local
            ),
            [pid, ..] => bail!(
                "failed to look for the listener on {} in {} processes, such as process {} ({}): CAP_SYS_PTRACE is missing",
                socket.local,
                self.hidden.len(),
                pid.as_raw_nonzero(),
                command(*pid)
            ),
        }
    }
}

fn socket_inode(target: &Path) -> Option<u32> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn command(pid: Pid) -> String {
    let path = format!("/proc/{}/comm", pid.as_raw_nonzero());
    fs::read_to_string(path).map_or_else(|_| "exited".into(), |name| name.trim_end().into())
}

fn borrow(pid: Pid, number: RawFd, cookie: u64) -> Result<Listener> {
    let shown = || format!("process {} ({}), file descriptor {number}", pid.as_raw_nonzero(), command(pid));
    let explain = |errno: Errno| match errno {
        Errno::PERM | Errno::ACCESS => anyhow!(errno).context("CAP_SYS_PTRACE is missing"),
        Errno::NOSYS => anyhow!(errno).context("pidfd_getfd needs kernel 5.10 or newer"),
        errno => anyhow!(errno),
    };
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(explain).with_context(shown)?;
    let fd = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).map_err(explain).with_context(shown)?;
    examine(fd, cookie, pid).with_context(shown)
}

/// Checks the cookie: the descriptor may have got another file meanwhile, and inode numbers are used again.
fn examine(fd: OwnedFd, cookie: u64, holder: Pid) -> Result<Listener> {
    let protocol = sockopt::socket_protocol(&fd).context("it is not a socket")?;
    ensure!(protocol != Some(ipproto::MPTCP), "it is an MPTCP socket, which the kernel takes into no map");
    ensure!(protocol == Some(ipproto::TCP), "it is not a TCP socket");
    let found = sockopt::socket_cookie(&fd)?;
    ensure!(found == cookie, "another socket has taken its place (cookie {found}, not {cookie})");
    ensure!(sockopt::socket_acceptconn(&fd)?, "it no longer listens");
    let family = match sockopt::socket_domain(&fd)? {
        AddressFamily::INET => Family::V4,
        AddressFamily::INET6 => Family::V6,
        other => bail!("it is of address family {}", other.as_raw()),
    };
    Ok(Listener { fd, family, holder: holder.as_raw_nonzero().get().cast_unsigned() })
}
