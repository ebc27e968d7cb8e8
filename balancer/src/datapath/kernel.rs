//! Features that this kernel lacks. The agent probes for them and passes the results to the programs as
//! constants before it loads them. The verifier skips code that a constant rules out, so one object serves
//! all kernels from 5.10 on.

use std::{io, net::UdpSocket, os::fd::AsRawFd, os::unix::fs::MetadataExt};

use anyhow::{Context, Result, ensure};
use aya::EbpfLoader;

use super::{
    btf::Btf,
    verify::{Kind, verify},
};

/// Differences between kernels that matter to the programs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kernel {
    /// 1 if `sk_lookup` knows the interface by which a segment arrived (Linux 5.17).
    knows_interface: u32,
    /// 1 if `sock_ops` can tell namespaces apart by cookie (Linux 5.15); older kernels need the offsets.
    knows_netns: u32,
    /// Offset of the namespace's address in `struct sock`, bytes.
    sock_net: u32,
    /// Offset of a namespace's inode number in `struct net`, bytes.
    net_inum: u32,
}

impl Kernel {
    /// Probes the kernel. Fails if this process may not load programs, or if an older kernel has no BTF for
    /// the offsets.
    pub fn ask() -> Result<Self> {
        let knows_interface = accepts(Kind::SK_LOOKUP, &[load(R1, R1, 64), set(R0, 1), EXIT])?;
        let knows_netns = accepts(Kind::SOCK_OPS, &[call(GET_NETNS_COOKIE), set(R0, 0), EXIT])?;
        let mut kernel = Self {
            knows_interface: knows_interface.into(),
            knows_netns: knows_netns.into(),
            sock_net: 0,
            net_inum: 0,
        };
        if !knows_netns {
            (kernel.sock_net, kernel.net_inum) = offsets().context(
                "this kernel, older than 5.15, cannot tell network namespaces apart without BTF (CONFIG_DEBUG_INFO_BTF)",
            )?;
        }
        Ok(kernel)
    }

    /// Whether a socket look-up knows the interface by which the segment arrived.
    pub fn knows_interface(&self) -> bool {
        self.knows_interface != 0
    }

    /// Passes the results to the programs.
    pub fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        loader
            .override_global("KNOWS_INTERFACE", &self.knows_interface, true)
            .override_global("KNOWS_NETNS", &self.knows_netns, true)
            .override_global("SOCK_NET", &self.sock_net, true)
            .override_global("NET_INUM", &self.net_inum, true);
    }

    /// This thread's network namespace, by cookie or inode number; `track` compares a socket's namespace with
    /// it.
    pub fn netns(&self) -> Result<u64> {
        if self.knows_netns != 0 {
            return netns_cookie();
        }
        let path = "/proc/thread-self/ns/net";
        Ok(std::fs::metadata(path).with_context(|| format!("failed to look at {path}"))?.ino())
    }
}

/// `SO_NETNS_COOKIE`, Linux 5.14.
fn netns_cookie() -> Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = UdpSocket::bind("0.0.0.0:0").or_else(|_| UdpSocket::bind("[::]:0"))?;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: both out-pointers live until the call returns, and `length` is the size of `cookie`.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error()).context("failed to ask for this network namespace's cookie");
    }
    Ok(cookie)
}

/// Offsets of `__sk_common.skc_net` in `struct sock` and of `ns.inum` in `struct net`.
fn offsets() -> Result<(u32, u32)> {
    /// Bytes of a socket that `track` reads.
    const READ: u32 = 64;
    let btf = Btf::of_the_kernel()?;
    let sock_net = btf.member("sock", "__sk_common")? + btf.member("sock_common", "skc_net")?;
    ensure!(
        sock_net % 8 == 0 && sock_net + 8 <= READ,
        "struct sock has its network namespace at byte {sock_net}, beyond the bytes that the programs read"
    );
    Ok((sock_net, btf.member("net", "ns")? + btf.member("ns_common", "inum")?))
}

/// `bpf_get_netns_cookie`.
const GET_NETNS_COOKIE: i32 = 122;
const R0: u64 = 0;
const R1: u64 = 1;
const EXIT: u64 = 0x95;

/// `destination = *(u32 *)(source + offset)`.
const fn load(destination: u64, source: u64, offset: u64) -> u64 {
    0x61 | destination << 8 | source << 12 | offset << 16
}

const fn set(register: u64, value: u64) -> u64 {
    0xb7 | register << 8 | value << 32
}

const fn call(helper: i32) -> u64 {
    0x85 | (helper as u64) << 32
}

/// Whether the verifier accepts a program of these instructions.
fn accepts(kind: Kind, instructions: &[u64]) -> Result<bool> {
    let Err(error) = verify(kind, instructions, &mut []) else { return Ok(true) };
    match error.raw_os_error() {
        // The verifier rejects programs with either of these.
        Some(libc::EACCES | libc::EINVAL) => Ok(false),
        _ => Err(error).context("failed to probe this kernel; CAP_BPF and CAP_PERFMON are needed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_asked() {
        let kernel = Kernel::ask().unwrap();
        assert_ne!(kernel.netns().unwrap(), 0);
        assert!(!accepts(Kind::SOCK_OPS, &[call(9999), set(R0, 0), EXIT]).unwrap(), "no such helper");
        assert!(!accepts(Kind::SK_LOOKUP, &[load(R1, R1, 9996), set(R0, 1), EXIT]).unwrap(), "no such field");
        assert!(accepts(Kind::SK_LOOKUP, &[load(R1, R1, 8), set(R0, 1), EXIT]).unwrap());
    }

    #[test]
    fn offsets_come_from_the_running_kernel() {
        let (sock_net, net_inum) = offsets().unwrap();
        assert_eq!(sock_net, 48, "the same for years on 64-bit hosts");
        assert!((64..4096).contains(&net_inum), "{net_inum}");
    }
}
