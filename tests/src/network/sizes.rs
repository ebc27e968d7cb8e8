//! Sizes of a device that iproute2 does not set in the version of the oldest machine here.

use std::io::{Read as _, Write as _};

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, Socket, Type};

use crate::network::namespace::Namespace;

/// `IFLA_GSO_MAX_SIZE`, `IFLA_GRO_MAX_SIZE`, `IFLA_GSO_IPV4_MAX_SIZE`, `IFLA_GRO_IPV4_MAX_SIZE`.
const SIZES: [u16; 4] = [41, 58, 63, 64];

/// Lets packets of `device` inside the host be as long as `bytes`, of both families: BIG TCP above 64 KiB.
pub fn set_largest(namespace: &Namespace, device: &str, bytes: u32) -> Result<()> {
    let changed = namespace.enter(|| -> Result<i32> {
        let index = if_nametoindex(device).context("no such device")?;
        let mut socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(0)))?;
        socket.write_all(&request(index, bytes))?;
        let mut answer = [0; 1024];
        let length = socket.read(&mut answer)?;
        // A header, and an error, which is 0 for success.
        ensure!(length >= 20, "an answer of {length} bytes");
        Ok(i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]))
    })?;
    let error = changed.with_context(|| format!("failed to set the sizes of {device}"))?;
    ensure!(error == 0, "sizes of {device}: {}", std::io::Error::from_raw_os_error(-error));
    Ok(())
}

/// `RTM_NEWLINK` for an existing device.
fn request(index: u32, bytes: u32) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(libc::RTM_NEWLINK.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    for attribute in SIZES {
        message.extend(8_u16.to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(bytes.to_ne_bytes());
    }
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}
